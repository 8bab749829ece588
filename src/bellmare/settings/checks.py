"""Relations between keys, checked once each key by itself is valid."""

import ipaddress
from collections.abc import Iterator

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.names import canonical_name
from bellmare.settings.addresses import Address
from bellmare.settings.model import Settings, WorkerSettings
from bellmare.settings.problems import Path, quoted
from bellmare.settings.quantities import show_duration, show_size

Finding = tuple[Path, str]
_ALL_INTERFACES = frozenset({"0.0.0.0", "::"})


def check(settings: Settings) -> Iterator[Finding]:
    """Every contradiction, as the key to blame and the reason."""
    yield from _listeners(settings)
    yield from _queue(settings)
    yield from _bodies(settings)
    yield from _grace(settings)
    for index, worker in enumerate(settings.workers):
        yield from _worker(worker, settings, path=("workers", index))
    yield from _duplicate_workers(settings)
    yield from _models(settings)
    yield from _managers(settings)


def _managers(settings: Settings) -> Iterator[Finding]:
    for index, text in enumerate(settings.manage):
        try:
            ipaddress.ip_network(text, strict=False)
        except ValueError:
            yield ("manage", index), f"{quoted(text)} is neither an address nor a network"


def _listeners(settings: Settings) -> Iterator[Finding]:
    named = [("listen", settings.listen)] + ([("admin", settings.admin)] if settings.admin else [])
    for key, address in named:
        if not address.loopback and not settings.insecure:
            yield (
                (key,),
                f"{address} can be reached from other machines, and there are no keys yet; "
                f"listen on 127.0.0.1:{address.port}, or say `insecure: true`",
            )
    if settings.admin and _collide(settings.listen, settings.admin):
        yield ("admin",), f"{settings.admin} is where `listen` already is; give it another port, or `off`"


def _collide(one: Address, other: Address) -> bool:
    hosts = {one.host, other.host}
    return one.port == other.port != 0 and (len(hosts) == 1 or bool(hosts & _ALL_INTERFACES))


def _queue(settings: Settings) -> Iterator[Finding]:
    queue = settings.queue
    if queue.total < queue.per_model:
        yield ("queue", "total"), f"{queue.total} is less than `queue.per_model` ({queue.per_model})"
    if queue.timeout_us < queue.wait_us:
        shown = show_duration(queue.timeout_us), show_duration(queue.wait_us)
        yield (
            ("queue", "timeout"),
            f"{shown[0]} is less than `queue.wait` ({shown[1]}): what is accepted could never be served",
        )


def _bodies(settings: Settings) -> Iterator[Finding]:
    limits = settings.limits
    if limits.bodies_bytes < limits.body_bytes:
        shown = show_size(limits.bodies_bytes), show_size(limits.body_bytes)
        yield (
            ("limits", "bodies"),
            f"{shown[0]} is less than `limits.body` ({shown[1]}): the largest could never be read",
        )


def _grace(settings: Settings) -> Iterator[Finding]:
    limits = settings.limits
    if limits.lame_duck_us is not None and limits.lame_duck_us > limits.grace_us:
        shown = show_duration(limits.lame_duck_us), show_duration(limits.grace_us)
        yield ("limits", "lame_duck"), f"{shown[0]} is more than `limits.grace` ({shown[1]}), of which it is a part"


def _worker(worker: WorkerSettings, settings: Settings, *, path: Path) -> Iterator[Finding]:
    parts = {"url": worker.url, "embedded": worker.embedded, "sim": worker.sim}
    given = [name for name, part in parts.items() if part is not None]
    if len(given) != 1:
        said = "it has " + " and ".join(given) if given else "it has none"
        yield path, f"a worker needs exactly one of url, embedded and sim; {said}"
        return
    if worker.url is None:
        for key, value in (
            ("vram", worker.vram_bytes),
            ("parallel", worker.parallel),
            ("max_loaded", worker.max_loaded),
        ):
            if value is not None:
                yield (*path, key), f"belongs to a worker with a url; this one is {given[0]}"
    else:
        own = [address for address in (settings.listen, settings.admin) if address is not None]
        if any(_same_server(worker.url.address, address) for address in own):
            yield (*path, "url"), f"{worker.url} is bellmare's own listener; requests would go round in circles"
    memory = _memory(worker)
    if memory is not None and settings.headroom_bytes(worker.kind, memory[1]) >= memory[1]:
        below, size = memory
        kept = show_size(settings.headroom_bytes(worker.kind, size))
        yield (*path, *below), f"{show_size(size)} leaves no room beside the headroom of {kept}; lower `headroom`"


def _memory(worker: WorkerSettings) -> tuple[Path, int] | None:
    if worker.embedded is not None:
        return ("embedded", "memory"), worker.embedded.memory_bytes
    if worker.sim is not None:
        return ("sim", "vram"), worker.sim.vram_bytes
    return None if worker.vram_bytes is None else (("vram",), worker.vram_bytes)


def _same_server(one: Address, other: Address) -> bool:
    if one.port != other.port:
        return False
    return one.host == other.host or (one.loopback and (other.loopback or other.host in _ALL_INTERFACES))


def _duplicate_workers(settings: Settings) -> Iterator[Finding]:
    names: dict[str, int] = {}
    urls: dict[str, int] = {}
    for index, worker in enumerate(settings.workers):
        first = names.setdefault(worker.name, index)
        if first != index:
            yield ("workers", index, "name"), f"{quoted(worker.name)} is already the name of worker {first}"
        if worker.url is not None:
            host = "loopback" if worker.url.loopback else worker.url.host
            first = urls.setdefault(f"{host}:{worker.url.port}{worker.url.path}", index)
            if first != index:
                yield (
                    ("workers", index, "url"),
                    f"{worker.url} is already worker {first}; two would fill its memory twice",
                )


def _models(settings: Settings) -> Iterator[Finding]:
    seen: dict[str, str] = {}
    for name in settings.models:
        try:
            canonical = canonical_name(name)
        except InvalidRequest as error:
            yield ("models", name), str(error)
            continue
        first = seen.setdefault(canonical, name)
        if first != name:
            yield ("models", name), f"is the same model as {quoted(first)}"
    yield from _aliases(settings)
    yield from _fallbacks(settings)


def _names(settings: Settings, attribute: str) -> Iterator[tuple[str, str, str | Finding]]:
    """Model, name as written, and its canonical form or what is wrong with it."""
    for model, rules in settings.models.items():
        for index, name in enumerate(getattr(rules, attribute)):
            try:
                yield model, name, canonical_name(name)
            except InvalidRequest as error:
                yield model, name, (("models", model, attribute, index), f"{quoted(name)}: {error}")


def _aliases(settings: Settings) -> Iterator[Finding]:
    meant: dict[str, str] = {}
    configured = {name for _, name in _configured(settings)}
    for model, alias, found in _names(settings, "aliases"):
        if not isinstance(found, str):
            yield found
        elif found in configured:
            yield ("models", model, "aliases"), f"{quoted(alias)} is a model of its own in `models`"
        elif meant.setdefault(found, model) != model:
            yield ("models", model, "aliases"), f"{quoted(alias)} already stands for {quoted(meant[found])}"


def _fallbacks(settings: Settings) -> Iterator[Finding]:
    own = dict(_configured(settings))
    for model, fallback, found in _names(settings, "fallbacks"):
        if not isinstance(found, str):
            yield found
        elif found == own.get(model):
            yield ("models", model, "fallbacks"), f"{quoted(fallback)} is the model itself"


def _configured(settings: Settings) -> Iterator[tuple[str, str]]:
    """Models as written, and canonical; without those that are invalid anyway."""
    for name in settings.models:
        try:
            yield name, canonical_name(name)
        except InvalidRequest:
            continue
