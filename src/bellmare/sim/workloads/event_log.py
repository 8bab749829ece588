"""bellmare's own event log as a trace: what was asked of the live gateway, with the models' real sizes.

The writer is ``runtime.recorder``: a line with a snapshot, then one line per step, as ``{"t": instant, "e": event, "d":
decisions}``. Only what a workload needs is read, and kinds that are not known here are passed over, so that logs of
other versions can be read.
"""

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import msgspec

from bellmare.core.naming import CLASS_MARK
from bellmare.core.units import SECOND_US
from bellmare.sim.workload import START_US, Arrival, SimModel, Workload
from bellmare.sim.workloads.columns import TraceError
from bellmare.sim.workloads.spans import median_us

FILES_MAX = 1_000
LINES_MAX = 20_000_000
"""Steps of one log that are read."""
REQUESTS_MAX = 5_000_000
SERVICE_US = 5 * SECOND_US
"""Of a request in a log in which none was served to its end: our guess."""
SIZE_STEP_BYTES = 1_000_000
"""To which a recorded memory size is rounded: fleets are written in GB with nine digits."""


class _Stored(msgspec.Struct, frozen=True):
    name: str
    model: str
    weights_bytes: int = 0


class _Happening(msgspec.Struct, frozen=True):
    """An event or a decision, as far as it matters here."""

    type: str
    request: str = ""
    name: str = ""
    tenant: str = ""
    worker: str | None = None
    model: str | None = None
    stored: tuple[_Stored, ...] | None = None
    capacity_bytes: int = 0
    parallel: int = 0


class _Step(msgspec.Struct, frozen=True, rename={"at_us": "t", "event": "e", "decisions": "d"}):
    at_us: int
    event: _Happening
    decisions: tuple[_Happening, ...] = ()


class _Worker(msgspec.Struct, frozen=True):
    capacity_bytes: int = 0
    parallel: int = 1
    stored: dict[str, _Stored] = {}


class _State(msgspec.Struct, frozen=True):
    roster: tuple[str, ...] = ()
    workers: dict[str, _Worker] = {}


class _Header(msgspec.Struct, frozen=True):
    bellmare_log: int
    state: _State = _State()


class _Asked:
    """One request of the log."""

    __slots__ = ("at_us", "began_us", "model", "name", "span_us", "tenant")

    def __init__(self, at_us: int, name: str, tenant: str) -> None:
        self.at_us = at_us
        self.name = name
        self.tenant = tenant
        self.model = ""
        self.began_us: int | None = None
        self.span_us: int | None = None


class _Reading:
    """What has been read so far. Instants go on rising where the clock of a new process began anew."""

    def __init__(self) -> None:
        self.requests: list[_Asked] = []
        self.sizes: dict[str, int] = {}
        """Weights by blob, in order of first mention."""
        self.blobs: dict[str, str] = {}
        """By name, as bound last."""
        self.capacities: dict[str, int] = {}
        self.slots = 1
        self._open: dict[str, _Asked] = {}
        self._last_us = 0
        self._shift_us = 0

    def begin(self, state: _State) -> None:
        """A file begins: what its snapshot knows."""
        for name, worker in state.workers.items():
            self._joined(name, worker.capacity_bytes, worker.parallel)
            self._stores(tuple(worker.stored.values()))

    def take(self, step: _Step) -> None:
        event = step.event
        if step.at_us + self._shift_us < self._last_us:
            self._shift_us = self._last_us - step.at_us
            self._open.clear()  # another process: it knows nothing of requests under way
        now_us = self._last_us = step.at_us + self._shift_us
        if event.type == "RequestArrived":
            name = event.name.partition(CLASS_MARK)[0]  # contexts of a blob are one model here
            self._open[event.request] = asked = _Asked(now_us, name, event.tenant)
            self.requests.append(asked)
        elif event.type in ("RequestFinished", "RequestCancelled"):
            self._ended(event.request, now_us)
        elif event.type == "WorkerAdded" and event.worker:
            self._joined(event.worker, event.capacity_bytes, event.parallel)
        elif event.type == "WorkerObserved" and event.stored is not None:
            self._stores(event.stored)
        for decision in step.decisions:
            if decision.type == "Dispatch" and (found := self._open.get(decision.request)) is not None:
                found.began_us, found.model = now_us, (decision.model or "").partition(CLASS_MARK)[0]
            elif decision.type == "Reject":
                self._open.pop(decision.request, None)

    def _ended(self, request: str, now_us: int) -> None:
        found = self._open.pop(request, None)
        if found is not None and found.began_us is not None:
            found.span_us = max(1, now_us - found.began_us)

    def _joined(self, worker: str, capacity_bytes: int, parallel: int) -> None:
        self.capacities[worker] = capacity_bytes
        self.slots = max(self.slots, parallel)

    def _stores(self, stored: tuple[_Stored, ...]) -> None:
        for line in stored:
            self.blobs[line.name] = line.model
            self.sizes[line.model] = max(line.weights_bytes, self.sizes.get(line.model, 1))


def event_log(path: Path, seed: int) -> Workload:
    """Arrivals, tenants, models with their real sizes, and service spans from dispatch to end; a seed draws nothing.

    Where a request did not come to its end (refused, or the log breaks off), its span is the median of its model, else
    of all. Requests for names that nobody stored are left out: they need no room.
    """
    found = _read(path)
    asked = [(request, blob) for request in found.requests if (blob := request.model or found.blobs.get(request.name))]
    if not asked:
        raise TraceError(f"{path}: no requests for models that are known in it")
    spans_us: dict[str, list[int]] = {}
    for request, blob in asked:
        if request.span_us is not None:
            spans_us.setdefault(blob, []).append(request.span_us)
    everybody = [span_us for spans in spans_us.values() for span_us in spans]
    usual_us = median_us(everybody) if everybody else SERVICE_US
    by_blob = {blob: median_us(spans) for blob, spans in spans_us.items()}
    names = {blob: name for name, blob in reversed(found.blobs.items())}
    numbers = {blob: i for i, blob in enumerate(dict.fromkeys(blob for _, blob in asked))}
    models = tuple(SimModel(names.get(blob, blob), blob, found.sizes.get(blob, 1)) for blob in numbers)
    users: dict[str, int] = {}
    shift_us = START_US - asked[0][0].at_us
    arrivals = tuple(
        Arrival(
            at_us=request.at_us + shift_us,
            model=numbers[blob],
            service_us=request.span_us or by_blob.get(blob, usual_us),
            user=users.setdefault(request.tenant, len(users)),
        )
        for request, blob in asked
    )
    return Workload(name=path.name, seed=seed, models=models, arrivals=arrivals, slots=found.slots)


def recorded_fleet(path: Path) -> str:
    """The fleet of the log as it is written on the command line; empty if it knows no worker."""
    sizes = [size // SIZE_STEP_BYTES / 1000 for size in _read(path).capacities.values() if size >= SIZE_STEP_BYTES]
    return "+".join(f"{len(list(same))}x{size:.3f}GB" for size, same in groupby(sizes))


def _read(path: Path) -> _Reading:
    found = _Reading()
    header, step = msgspec.json.Decoder(_Header), msgspec.json.Decoder(_Step)
    lines = 0
    for file in _files(path):
        try:
            with file.open("rb") as stream:
                found.begin(header.decode(next(stream, b"")).state)
                for line, text in enumerate(stream, start=2):
                    if not text.endswith(b"\n"):
                        break  # cut off, as by a crash
                    lines += 1
                    if lines > LINES_MAX or len(found.requests) > REQUESTS_MAX:
                        raise TraceError(f"{path}: more than {LINES_MAX} steps or {REQUESTS_MAX} requests")
                    found.take(_decoded(step, text, file=file, line=line))
        except OSError as error:
            raise TraceError(f"{file}: {error}") from error
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise TraceError(f"{file}: no event log of bellmare: {error}") from error
    return found


def _decoded(decoder: msgspec.json.Decoder[_Step], text: bytes, *, file: Path, line: int) -> _Step:
    try:
        return decoder.decode(text)
    except msgspec.DecodeError as error:
        raise TraceError(f"{file}:{line}: {error}") from error


def _files(path: Path) -> Iterator[Path]:
    files = sorted(path.glob("events-*.jsonl")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise TraceError(f"{path}: no event log there")
    if len(files) > FILES_MAX:
        raise TraceError(f"{path}: more than {FILES_MAX} files")
    yield from files
