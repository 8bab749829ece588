"""House rules that no linter has: sizes of modules and functions, names of modules, what no tracked file may hold.

Prints ``file:line: reason`` and ends with 1 if there is anything. An exception is a comment ``tidy: <why>`` on that
line; for a function anywhere in its signature, for a module in its first line.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

MODULE_LINES_MAX = 500
FUNCTION_LINES_MAX = 60
PARAMETERS_MAX = 5
POSITIONAL_MAX = 3  # the context (mostly the fleet), the subject, the object; all of types that mypy tells apart
TEXT_MAX = 4 << 20
"""Bytes; larger files are no text of ours."""

VAGUE = frozenset({"utils", "util", "helpers", "helper", "common", "manager", "data", "info", "misc"})
"""Names that say nothing; such modules collect everything."""

_WHY = re.compile(r"tidy: \w+")
_MACHINE_PATH = re.compile(r"(?<![\w.$~}\]>*?-])/(?:" + "|".join(["work", "root", "home"]) + r")/[\w.-]")
_REGISTRY = re.compile(
    r"\b(?:"
    + "|".join(["pypi[.]org", "python" + "hosted[.]org", "registry[.]npm" + "js[.]org", "deb[.]debian[.]org"])
    + r")\b"
)
_ADDRESS = re.compile(r"[a-z]+://", re.IGNORECASE)

Finding = tuple[int, str]
AnyFunction = ast.FunctionDef | ast.AsyncFunctionDef


def check_module(path: Path, text: str) -> Iterator[Finding]:
    """Rules for Python files."""
    lines = text.splitlines()
    if path.stem in VAGUE:
        yield 1, f"a module named {path.stem} says nothing; name it after what it decides"
    if len(lines) > MODULE_LINES_MAX and not _WHY.search(lines[0]):
        yield 1, f"{len(lines)} lines; at most {MODULE_LINES_MAX}"
    try:
        tree = ast.parse(text)
    except SyntaxError as error:
        yield error.lineno or 1, f"cannot be parsed: {error.msg}"
        return
    tests = path.parts[0] == "tests"
    for function, method in _functions(tree):
        signature = lines[function.lineno - 1 : max(function.lineno, function.body[0].lineno - 1)]
        if not any(_WHY.search(line) for line in signature):
            yield from _check_function(function, method=method, tests=tests)


def _functions(tree: ast.AST) -> Iterator[tuple[AnyFunction, bool]]:
    """Every function, and whether its first parameter is the object."""
    for node in ast.walk(tree):
        for child in ast.iter_child_nodes(node):
            if isinstance(child, AnyFunction):
                static = any(isinstance(mark, ast.Name) and mark.id == "staticmethod" for mark in child.decorator_list)
                yield child, isinstance(node, ast.ClassDef) and not static


def _check_function(function: AnyFunction, *, method: bool, tests: bool) -> Iterator[Finding]:
    line, name = function.lineno, function.name
    length = (function.end_lineno or line) - line + 1
    if length > FUNCTION_LINES_MAX:
        yield line, f"{name} has {length} lines; at most {FUNCTION_LINES_MAX}"
    if tests:
        return  # parameters of tests are fixtures
    positional = len(function.args.posonlyargs) + len(function.args.args) - method
    parameters = positional + len(function.args.kwonlyargs)
    if parameters > PARAMETERS_MAX:
        yield line, f"{name} has {parameters} parameters; at most {PARAMETERS_MAX}"
    dunder = name.startswith("__") and name.endswith("__")
    if positional > POSITIONAL_MAX and not dunder:
        yield line, f"{name} has {positional} positional parameters; keyword-only after {POSITIONAL_MAX}"


def check_text(path: Path, text: str) -> Iterator[Finding]:
    """Rules for every tracked text file."""
    lock = path.suffix == ".lock"
    for number, line in enumerate(text.splitlines(), 1):
        if _WHY.search(line):
            continue
        if lock and _ADDRESS.search(line):
            yield number, "a lock file names no address"
        if found := _MACHINE_PATH.search(line):
            yield number, f"a path of one machine: {found[0]}..."
        if found := _REGISTRY.search(line):
            yield number, f"the address of a registry: {found[0]}"


def check_file(root: Path, path: Path) -> Iterator[Finding]:
    full = root / path
    if not full.is_file() or full.is_symlink() or full.stat().st_size > TEXT_MAX:
        return
    raw = full.read_bytes()
    if b"\0" in raw:
        return
    text = raw.decode("utf-8", "replace")
    yield from check_text(path, text)
    if path.suffix == ".py":
        yield from check_module(path, text)


def tracked(root: Path) -> list[Path]:
    """Files that are tracked, or would be."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split("\0")
    return sorted({Path(name) for name in names if name})


def main() -> int:
    root = Path(__file__).resolve().parent.parent
    count = 0
    for path in tracked(root):
        for line, reason in check_file(root, path):
            print(f"{path}:{line}: {reason}")
            count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(main())
