"""The house rules hold for what they are meant for, and an exception needs a reason."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))

import tidy  # noqa: E402 - tools are scripts, not a package


def reasons(text: str, path: str = "src/bellmare/x.py") -> list[str]:
    return [reason for _, reason in [*tidy.check_module(Path(path), text), *tidy.check_text(Path(path), text)]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("def f(a, b, c, d): pass", "f has 4 positional parameters"),
        ("def f(a, b, *, c, d, e, g): pass", "f has 6 parameters"),
        ("class A:\n    def f(self, a, b, c, d): pass", "f has 4 positional parameters"),
        ("class A:\n    @staticmethod\n    def f(a, b, c, d): pass", "f has 4 positional parameters"),
        ("def f():\n" + "    pass\n" * 60, "f has 61 lines"),
        ("x = 1\n" * 501, "501 lines"),
        ("p = '/" + "work/main'", "a path of one machine"),
        ("p = 'https://py" + "pi.org/simple'", "the address of a registry"),
        ("def f(:", "cannot be parsed"),
    ],
)
def test_a_rule_that_is_broken_is_told(text: str, reason: str) -> None:
    assert reason in " ".join(reasons(text))


@pytest.mark.parametrize(
    "text",
    [
        "def f(a, b, *, c, d, e): pass",
        "class A:\n    def f(self, a, b): pass\n    def __exit__(self, a, b, c): pass",
        "def f(a, b, c):  # tidy: the protocol calls it so\n    pass",
        "def f(  # tidy: the protocol calls it so\n    a, b, c\n):\n    pass",
        "def f():\n" + "    pass\n" * 59,
        "x = 1\n" * 500,
        "p = 'src/home/page' + '~/home/x'",
    ],
)
def test_what_is_allowed_passes(text: str) -> None:
    assert reasons(text) == []


def test_a_vague_module_and_a_lock_with_an_address_are_told() -> None:
    assert "says nothing" in reasons("x = 1", "src/bellmare/utils.py")[0]
    assert "names no address" in reasons("a==1 # http://x", "requirements.lock")[-1]


def test_parameters_of_tests_are_fixtures() -> None:
    assert reasons("def test_x(a, b, c, d, e, f): pass", "tests/unit/test_x.py") == []


def test_locks_are_hashed_name_no_address_and_agree() -> None:
    pins: list[dict[str, str]] = []
    for name in ("requirements.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text()
        assert "://" not in text
        packages = [line for line in text.splitlines() if "==" in line and not line.startswith((" ", "#"))]
        assert text.count("--hash=sha256:") >= len(packages)
        pins.append(dict(line.rstrip(" \\").split("==", 1) for line in packages))
    run, dev = pins
    assert {name: dev.get(name) for name in run} == run


def test_scripts_are_valid_shell() -> None:
    for script in ("tools/setup.sh", ".ci/run"):
        subprocess.run(["bash", "-n", str(ROOT / script)], check=True)
