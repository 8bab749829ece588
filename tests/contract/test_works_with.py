"""docs/works-with.md tells the truth: its versions are those that are tested, and it has every client that is."""

from __future__ import annotations

import json
import re
from pathlib import Path

from test_clients_npm import TESTS
from test_clients_python import CLIENTS

HERE = Path(__file__).parent
PAGE = HERE.parents[1] / "docs" / "works-with.md"
TOOLS_OF_OURS = {"pytest", "pytest-asyncio", "pytest-timeout", "langchain-tests"}
"""Packages of the clients' environment that are no clients."""


def rows() -> list[tuple[str, bool, str, str]]:
    """Package, whether it is npm's, version, test file."""
    found = []
    for line in PAGE.read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        match = re.fullmatch(r"([\w-]+)(?: \((Python|npm)\))?", cells[0])
        if len(cells) == 5 and match and re.match(r"\d", cells[1]):
            found.append((match.group(1), match.group(2) == "npm", cells[1], cells[4].strip("`")))
    return found


def locked() -> dict[tuple[str, bool], str]:
    """Version by package and whether it is npm's."""
    python = re.findall(r"^([\w-]+)==([\w.]+)", (HERE / "clients" / "requirements.lock").read_text(), re.MULTILINE)
    packages = json.loads((HERE / "clients_npm" / "package-lock.json").read_text())["packages"]
    npm = {path.removeprefix("node_modules/"): one["version"] for path, one in packages.items() if path}
    return {(name, False): version for name, version in python} | {(name, True): one for name, one in npm.items()}


def test_the_versions_are_those_of_the_locks() -> None:
    versions = locked()
    assert len(rows()) >= 14
    assert [row for row in rows() if versions.get((row[0], row[1])) != row[2]] == []


def test_every_row_is_a_test_and_every_client_a_row() -> None:
    assert all((HERE / file).exists() for _, _, _, file in rows())
    assert {f"clients/test_{client}.py" for client in CLIENTS} <= {file for _, _, _, file in rows()}
    assert set(TESTS) <= {name for name, npm, _, _ in rows() if npm}
    wanted = re.findall(r"^([\w-]+)>=", (HERE / "clients" / "requirements.in").read_text(), re.MULTILINE)
    assert set(wanted) - TOOLS_OF_OURS <= {name for name, npm, _, _ in rows() if not npm}


def test_every_file_of_clients_is_run() -> None:
    found = {path.stem.removeprefix("test_") for path in (HERE / "clients").glob("test_*.py")}
    assert found == set(CLIENTS)
