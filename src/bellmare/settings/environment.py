"""Environment variables to values: ``BELLMARE_*`` as strictly as the file, other programs' ones as mere defaults."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

from bellmare.settings.addresses import WorkerUrl, parse_worker_url
from bellmare.settings.keys import Key, all_keys, keys_of
from bellmare.settings.model import Settings
from bellmare.settings.problems import Path, Problem, did_you_mean, nearest, quoted
from bellmare.settings.quantities import Count, Size, Word, Words
from bellmare.settings.yaml_text import SIZE_MAX, read_yaml

PREFIX = "BELLMARE_"
RESERVED = frozenset({"BELLMARE_CONFIG", "BELLMARE_ADMIN_URL"})
"""Variables with our prefix that are no settings: the path of the file, read by the command line."""

_SERVICE_LINK = re.compile(
    r"BELLMARE_([A-Z0-9_]+_)?(SERVICE_(HOST|PORT)(_\w+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_\w+)?)?|NAME)"
)
"""Kubernetes and Docker set these in every container beside a service named bellmare; they are not about us."""

_PARALLEL = Count(1, 1024, "slots")
_MAX_LOADED = Count(0, 1024, "models")
_CONTEXT = Count(4, 1 << 24, "tokens")
_VRAM = Size(1 << 20, 64 << 40)
_ORIGINS = Words(Word(r"[!-~]{1,300}", "origins"), 100)


class Variable(msgspec.Struct, frozen=True):
    """One understood variable: which key it sets, to what. ``name`` is for messages."""

    name: str
    path: Path
    value: Any


def variable_name(key: Key) -> str:
    """``BELLMARE_QUEUE__PER_MODEL``; only for keys outside lists and mappings."""
    return PREFIX + "__".join(key.path).upper()


def _variables() -> Iterator[tuple[str, Key]]:
    for key in all_keys():
        if all(part.isidentifier() for part in key.path):
            yield variable_name(key), key


def split_workers(value: Any) -> Any:
    """``http://a:11434, http://b:11434`` as a list."""
    if isinstance(value, str):
        return [part for part in re.split(r"[,\s]+", value) if part]
    return value


def read_environment(environment: Mapping[str, str]) -> tuple[list[Variable], list[Problem]]:
    """All ``BELLMARE_*`` variables, sorted by name. An empty one counts as not set."""
    known = dict(_variables())
    variables: list[Variable] = []
    problems: list[Problem] = []
    for name in sorted(environment, key=lambda name: (name.count("__"), name)):
        text = environment[name]
        if not name.startswith(PREFIX) or name in RESERVED or _SERVICE_LINK.fullmatch(name) or not text.strip():
            continue
        key = known.get(name)
        if key is None:
            problems.append(Problem(f"env {name}", "", _unknown(name, known)))
        elif key.kind is not None:
            variables.append(Variable(name, key.path, text))
        else:
            value, reason = _structured(text)
            if reason:
                problems.append(Problem(f"env {name}", "", reason))
            else:
                variables.append(Variable(name, key.path, split_workers(value) if key.path == ("workers",) else value))
    return variables, problems


def _structured(text: str) -> tuple[Any, str]:
    """A list, mapping or word written as YAML or JSON, or the reason why not."""
    if len(text) > SIZE_MAX:
        return None, f"longer than {SIZE_MAX} characters"
    document = read_yaml(text)
    if document.faults:
        return None, document.faults[0].reason
    return document.value, ""


def _unknown(name: str, known: Mapping[str, Key]) -> str:
    top = name.removeprefix(PREFIX).split("__")[0].lower()
    key = keys_of(Settings).get(top)
    if key is not None and key.collection:
        example = "[{url: http://127.0.0.1:11434}]" if key.path == ("workers",) else "{llama3.1: {pinned: true}}"
        return f"unknown variable; set {variable_name(key)} as a whole, for example to {example}"
    return f"unknown variable{did_you_mean(nearest(name, known))}"


class OllamaDefaults(msgspec.Struct):
    """What Ollama's own variables say about servers on this machine. What does not parse is a warning."""

    host: WorkerUrl | None = None
    num_ctx: int | None = None
    origins: tuple[str, ...] | None = None
    worker: dict[str, tuple[int, str]] = {}
    """Key of a worker to its value and the variable that it comes from."""
    warnings: list[str] = []


def read_ollama(environment: Mapping[str, str]) -> OllamaDefaults:
    """OLLAMA_HOST, _ORIGINS, _NUM_PARALLEL, _CONTEXT_LENGTH, _MAX_LOADED_MODELS and MAX_VRAM_BYTES."""
    found = OllamaDefaults()

    def read(name: str, parse: Callable[[object], Any]) -> Any:
        text = environment.get(name, "").strip("\"' ")  # Ollama strips quotes as well
        if text in {"", "0"}:  # zero is "choose yourself" in all of them
            return None
        try:
            return parse(text)
        except ValueError as error:
            found.warnings.append(f"env {name} is ignored: {error}")
            return None

    found.host = read("OLLAMA_HOST", parse_worker_url)
    found.num_ctx = read("OLLAMA_CONTEXT_LENGTH", _CONTEXT.parse)
    found.origins = read("OLLAMA_ORIGINS", _ORIGINS.parse)
    for name, key, parse in (
        ("OLLAMA_NUM_PARALLEL", "parallel", _PARALLEL.parse),
        ("OLLAMA_MAX_LOADED_MODELS", "max_loaded", _MAX_LOADED.parse),
        ("MAX_VRAM_BYTES", "vram", _VRAM.parse),
    ):
        value = read(name, parse)
        if value is not None:
            found.worker[key] = (value, name)
    return found


def expand_home(text: str, environment: Mapping[str, str]) -> str:
    """``~`` at the start of a path as the home directory. Raises ValueError if there is none, or for ``~somebody``."""
    if not text.startswith("~"):
        return text
    if text != "~" and not text.startswith("~/"):
        raise ValueError(f"{quoted(text)} is another user's home directory; write the path out")
    home = environment.get("HOME") or environment.get("USERPROFILE")
    if not home:
        raise ValueError(f"{quoted(text)} needs HOME, which is not set")
    return home.rstrip("/") + text[1:]
