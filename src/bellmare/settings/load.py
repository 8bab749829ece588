"""Sources to settings: read each, merge, validate, remember who set what, and refuse with every problem found."""

from collections.abc import Mapping
from pathlib import Path as FilePath
from typing import Any

import msgspec
from pydantic import ValidationError

from bellmare.settings.addresses import is_loopback
from bellmare.settings.checks import check
from bellmare.settings.environment import (
    OllamaDefaults,
    expand_home,
    read_environment,
    read_ollama,
    split_workers,
)
from bellmare.settings.keys import meant, section_at
from bellmare.settings.model import Settings, WorkerSettings
from bellmare.settings.problems import Path, Problem, SettingsError, did_you_mean, dotted, quoted
from bellmare.settings.yaml_text import SIZE_MAX, Document, Mark, decode, read_yaml

_TYPE_REASONS = {
    "model_type": "is not a mapping of keys",
    "model_attributes_type": "is not a mapping of keys",
    "dict_type": "is not a mapping of keys",
    "tuple_type": "is not a list",
}


class _Place(msgspec.Struct, frozen=True):
    """Who set a key. ``order`` sorts problems: sources in the order of their rank, files by line."""

    origin: str
    key: str
    """Where the key stands, for an unknown one."""
    value: str
    order: tuple[int, int, int]


class _Merge:
    """The merged tree of all sources so far, and the place of every key in it."""

    def __init__(self) -> None:
        self.tree: dict[str, Any] = {}
        self.places: dict[Path, _Place] = {}
        self.problems: list[tuple[tuple[int, int, int], Problem]] = []

    def put(self, path: Path, value: Any, *, place: _Place) -> None:
        """Set one key. Mappings are merged key by key; everything else, lists too, replaces what was there."""
        target = self.tree
        for part in path[:-1]:
            inner = target.get(str(part))
            if not isinstance(inner, dict):
                inner = target[str(part)] = {}
            target = inner
        last = str(path[-1])
        if isinstance(value, dict) and isinstance(target.get(last), dict):
            for name, inner_value in value.items():
                self.put((*path, name), inner_value, place=place)
            return
        for known in [known for known in self.places if known[: len(path)] == path]:
            del self.places[known]
        target[last] = value
        self.places[path] = place

    def place_of(self, path: Path) -> _Place:
        for length in range(len(path), 0, -1):
            place = self.places.get(path[:length])
            if place is not None:
                return place
        return _Place("default", "defaults", "defaults", (9, 0, 0))

    def refuse(self, path: Path, reason: str, *, unknown: bool = False) -> None:
        place = self.place_of(path)
        where = place.key if unknown else place.value
        self.problems.append((place.order, Problem(where, dotted(path), reason)))

    def raise_problems(self) -> None:
        if self.problems:
            ordered = sorted(self.problems, key=lambda item: item[0])
            raise SettingsError(dict.fromkeys(problem for _, problem in ordered))


def load_settings(
    path: FilePath | None, *, environment: Mapping[str, str], overrides: Mapping[str, object] | None = None
) -> Settings:
    """Settings from defaults, OLLAMA_*, the file at ``path`` (None: no file), ``BELLMARE_*`` and ``overrides``.

    ``overrides`` are flags: dotted keys to values, of which None means "not given". Raises :class:`SettingsError` with
    every problem of every source; only relations between keys wait until each key by itself is valid.
    """
    merge = _Merge()
    ollama = read_ollama(environment)
    if ollama.num_ctx is not None:
        merge.put(("num_ctx",), ollama.num_ctx, place=_elsewhere("env OLLAMA_CONTEXT_LENGTH", 0))
    if ollama.origins is not None:
        merge.put(("origins",), list(ollama.origins), place=_elsewhere("env OLLAMA_ORIGINS", 0))
    if path is not None:
        _put_file(merge, path)
    variables, problems = read_environment(environment)
    merge.problems.extend(((2, 0, 0), problem) for problem in problems)
    for variable in variables:
        merge.put(variable.path, variable.value, place=_elsewhere(f"env {variable.name}", 2))
    _put_flags(merge, overrides or {})

    settings = _validate(merge)
    settings = _fill(settings, merge, ollama=ollama, environment=environment)
    for finding, reason in check(settings):
        merge.refuse(finding, reason)
    merge.raise_problems()
    above = {known[:length] for known in merge.places for length in range(1, len(known))}
    settings._origins = {known: place.origin for known, place in merge.places.items() if known not in above}
    return settings


def _elsewhere(origin: str, rank: int) -> _Place:
    return _Place(origin, origin, origin, (rank, 0, 0))


def _put_file(merge: _Merge, path: FilePath) -> None:
    shown = str(path)

    def fail(reason: str, where: str = shown) -> None:
        merge.problems.append(((1, 0, 0), Problem(where, "", reason)))

    try:
        with path.open("rb") as file:
            raw = file.read(SIZE_MAX + 1)
        document = read_yaml(decode(raw))
    except FileNotFoundError:
        return fail("no such file")
    except OSError as error:
        return fail(f"cannot be read: {(error.strerror or str(error)).lower()}")
    except ValueError as error:
        line = f"{shown}:{error.args[1]}" if len(error.args) > 1 else shown
        return fail(str(error.args[0]), line)
    for fault in document.faults:
        where = f"{shown}:{fault.mark.line}:{fault.mark.column}"
        order = (1, fault.mark.line, fault.mark.column)
        merge.problems.append((order, Problem(where, dotted(fault.path), fault.reason)))
    if document.value is None:
        return None
    if not isinstance(document.value, dict):
        return fail(f"holds {quoted(document.value)} instead of keys such as `listen: 127.0.0.1:11435`")
    merge.tree = _merge_trees(merge.tree, document.value)
    for known in document.values:
        if known and _value_at(document.value, known) is not None:
            merge.places[known] = _in_file(known, document, shown=shown)
    return None


def _merge_trees(base: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Nothing but ``num_ctx`` can be set below the file, so one level is enough."""
    return {**base, **above}


def _value_at(value: Any, path: Path) -> Any:
    """None for a key that was left out because it stands there without a value."""
    for part in path:
        if isinstance(value, dict):
            value = value.get(str(part))
        elif isinstance(value, list) and isinstance(part, int):
            value = value[part]
    return value


def _in_file(path: Path, document: Document, *, shown: str) -> _Place:
    key = document.keys.get(path, document.values[path])
    mark = key if isinstance(_value_at(document.value, path), dict | list) else document.values[path]
    return _Place(f"{shown}:{key.line}", _text(shown, key), _text(shown, mark), (1, mark.line, mark.column))


def _text(shown: str, mark: Mark) -> str:
    return f"{shown}:{mark.line}:{mark.column}"


def _put_flags(merge: _Merge, overrides: Mapping[str, object]) -> None:
    for name, value in overrides.items():
        if value is None:
            continue
        path: Path = tuple(name.split("."))
        place = _elsewhere(f"flag {name}", 3)
        if section_at(path[:-1]) is None:
            reason = f"unknown key{did_you_mean(meant(path))}"
            merge.problems.append((place.order, Problem(place.value, "", reason)))
            continue
        merge.put(path, split_workers(value) if name == "workers" else value, place=place)


def _validate(merge: _Merge) -> Settings:
    try:
        settings = Settings.model_validate(merge.tree)
    except ValidationError as error:
        for details in error.errors(include_url=False):
            path = tuple(details["loc"])
            if details["type"] == "extra_forbidden":
                merge.refuse(path, f"unknown key{did_you_mean(meant(path))}", unknown=True)
            else:
                merge.refuse(path, _reason(details))
    merge.raise_problems()
    return settings


def _reason(details: Any) -> str:
    """One line for one of pydantic's error records."""
    kind, context = details["type"], details.get("ctx", {})
    if kind == "value_error":
        return str(context["error"])
    if kind in _TYPE_REASONS:
        return f"{quoted(details['input'])} {_TYPE_REASONS[kind]}"
    if kind == "too_long":
        return f"has {context['actual_length']} entries; at most {context['max_length']}"
    return str(details["msg"]).lower()


def _fill(settings: Settings, merge: _Merge, *, ollama: OllamaDefaults, environment: Mapping[str, str]) -> Settings:
    """What is only known once all values are: names of workers, OLLAMA_* for those here, home directories."""
    local = {key: value for key, (value, _) in ollama.worker.items()}
    workers = []
    kinds: dict[str, int] = {}
    for index, worker in enumerate(settings.workers):
        workers.append(_fill_worker(worker, ("workers", index), merge=merge, ollama=ollama, kinds=kinds))
        embedded = workers[-1].embedded
        if embedded is not None and embedded.models is not None:
            models = _home(embedded.models, environment, merge=merge, path=("workers", index, "embedded", "models"))
            embedded = embedded.model_copy(update={"models": models})
            workers[-1] = workers[-1].model_copy(update={"embedded": embedded})
    record = settings.record
    if record is not None and record.path is not None:
        record = record.model_copy(
            update={"path": _home(record.path, environment, merge=merge, path=("record", "path"))}
        )
    filled = settings.model_copy(update={"workers": tuple(workers), "record": record})
    warnings = list(ollama.warnings)
    host = ollama.host
    if host is not None and host.port == settings.listen.port and (host.loopback or host.host == settings.listen.host):
        warnings.append(f"env OLLAMA_HOST is ignored: {host} is bellmare itself")
        host = None
    filled._warnings = tuple(warnings)
    filled._ollama_host = host
    filled._local_worker = local
    return filled


def _fill_worker(
    worker: WorkerSettings, path: Path, *, merge: _Merge, ollama: OllamaDefaults, kinds: dict[str, int]
) -> WorkerSettings:
    update: dict[str, Any] = {}
    if worker.url is not None and is_loopback(worker.url.host):
        for key, field in (("parallel", "parallel"), ("max_loaded", "max_loaded"), ("vram", "vram_bytes")):
            if key in ollama.worker and getattr(worker, field) is None:
                value, variable = ollama.worker[key]
                update[field] = value
                merge.places[(*path, key)] = _elsewhere(f"env {variable}", 0)
    if not worker.name:
        if worker.url is not None:
            update["name"] = str(worker.url.address)
        else:
            number = kinds[worker.kind] = kinds.get(worker.kind, 0) + 1
            update["name"] = worker.kind.value if number == 1 else f"{worker.kind.value}-{number}"
    return worker.model_copy(update=update)


def _home(text: str, environment: Mapping[str, str], *, merge: _Merge, path: Path) -> str:
    try:
        return expand_home(text, environment)
    except ValueError as error:
        merge.refuse(path, str(error))
        return text
