"""The npm clients that people use: ollama, openai, and the AI SDK with its provider for Ollama.

Their versions are those of ``clients_npm/package-lock.json``, which names no registry; they are installed once a run.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from serving import said, simulated

HERE = Path(__file__).parent / "clients_npm"
INSTALL_TIMEOUT_S = 240
TIMEOUT_S = 120
TESTS = {"ollama": 9, "openai": 9, "ai-sdk-ollama": 7}
"""Clients, and how many tests each has: all must have run."""

pytestmark = [pytest.mark.node, pytest.mark.slow, pytest.mark.timeout(INSTALL_TIMEOUT_S + TIMEOUT_S)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The packages; a failing install fails the tests, only missing tools skip them."""
    for tool in ("node", "npm"):
        if shutil.which(tool) is None:
            pytest.skip(f"NOT TESTED: the npm clients; {tool} is not installed")
    made = tmp_path_factory.mktemp("npm")
    for name in ("package.json", "package-lock.json", "client.mjs"):
        shutil.copy(HERE / name, made)
    command = ["npm", "ci", "--no-audit", "--no-fund", "--loglevel=error"]
    done = subprocess.run(command, cwd=made, timeout=INSTALL_TIMEOUT_S, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return made


@pytest.mark.parametrize("client", TESTS)
async def test_an_npm_client_is_at_home(_gate: None, folder: Path, client: str) -> None:
    async with simulated() as environment:
        child = await asyncio.create_subprocess_exec(
            "node", "client.mjs", client, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        out, err = await said(child, TIMEOUT_S)
    assert child.returncode == 0 and out, err.decode()
    found = json.loads(out.splitlines()[-1])
    failed = {name: error for name, error in found.items() if error is not None}
    assert not failed, "\n\n".join(f"{name}: {error}" for name, error in failed.items())
    assert len(found) == TESTS[client]


def test_the_lock_names_no_registry() -> None:
    assert "registry" not in (HERE / "package-lock.json").read_text()
