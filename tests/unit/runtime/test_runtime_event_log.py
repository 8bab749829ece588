"""The event log: every file replays on its own, whatever the disk or a crash did to it."""

from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from bellmare import __version__
from bellmare.core.config import CoreConfig
from bellmare.core.engine import Engine
from bellmare.core.events import (
    Event,
    LoadedModel,
    OperationEnded,
    OperationOutcome,
    RequestArrived,
    StoredModel,
    TimePassed,
    WorkerAdded,
    WorkerKind,
    WorkerObserved,
)
from bellmare.core.units import SECOND_US, Bytes, InstantUs, ModelId, OperationId, RequestId, WorkerId
from bellmare.runtime import recorder as recorder_module
from bellmare.runtime.recorder import Recorder, header_line
from bellmare.runtime.replay import LogError, Report, replay

WORKER = WorkerId("w")


def events(requests: int) -> list[Event]:
    """A short life: a worker, a load, and requests that queue for one slot until they are refused."""
    stored = StoredModel(name="m:latest", model=ModelId("sha256:m"), digest="d", weights_bytes=Bytes(10**9))
    loaded = LoadedModel(name="m:latest", model=ModelId("sha256:m"), bytes=Bytes(10**9), num_ctx=8192, pinned=True)
    script: list[Event] = [
        WorkerAdded(worker=WORKER, kind=WorkerKind.sim, capacity_bytes=Bytes(10**10)),
        WorkerObserved(worker=WORKER, started_us=InstantUs(15_000), loaded=(), stored=(stored,)),
        RequestArrived(request=RequestId("first"), name="m:latest", deadline_us=InstantUs(2**60)),
        OperationEnded(operation=OperationId(1), outcome=OperationOutcome.done, loaded=loaded),
    ]
    script += [
        RequestArrived(request=RequestId(f"r{i}"), name="m:latest", deadline_us=InstantUs(2**60))
        for i in range(requests)
    ]
    return [*script, TimePassed()]


class Life:
    """An engine whose steps are recorded."""

    def __init__(self, folder: Path, **limits: int) -> None:
        self.engine = Engine(CoreConfig())
        self.now = InstantUs(0)
        self.recorder = Recorder(folder, header=self._header, **limits)

    def _header(self) -> bytes:
        return header_line(__version__, self.engine.config, self.engine.snapshot())

    def live(self, script: list[Event]) -> None:
        for event in script:
            self.now = InstantUs(self.now + SECOND_US // 100)
            self.recorder.append(self.now, event, self.engine.step(self.now, event))


def last(path: Path) -> Report:
    return list(replay(path))[-1]


def test_a_recorded_life_replays_to_the_same_decisions(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.live(events(50))
    life.recorder.close()
    report = last(tmp_path)
    assert report.difference is None
    assert report.steps == len(events(50))
    assert report.decisions > 1


def test_each_file_begins_with_a_snapshot_and_replays_alone(tmp_path: Path) -> None:
    life = Life(tmp_path, file_bytes_max=4096, files_max=100)
    life.live(events(400))
    life.recorder.close()
    files = sorted(tmp_path.glob("events-*.jsonl"))
    assert len(files) > 3
    for file in files:
        assert last(file).difference is None
    assert last(tmp_path).steps == len(events(400))


def test_old_files_are_deleted_and_the_rest_still_replays(tmp_path: Path) -> None:
    life = Life(tmp_path, file_bytes_max=4096, files_max=2)
    life.live(events(300))
    life.recorder.close()
    assert len(list(tmp_path.glob("events-*.jsonl"))) == 2
    assert last(tmp_path).difference is None


def test_a_changed_decision_is_found_with_its_line(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.live(events(5))
    life.recorder.close()
    file = next(tmp_path.glob("events-*.jsonl"))
    lines = file.read_bytes().splitlines(keepends=True)
    number = next(i for i, line in enumerate(lines) if b'"Dispatch"' in line and i > 0)
    step, _, decisions = lines[number].partition(b'"d":')
    lines[number] = step + b'"d":' + decisions.replace(b'"num_ctx":8192', b'"num_ctx":4096')
    file.write_bytes(b"".join(lines))
    report = last(file)
    assert report.difference is not None
    assert report.difference.line == number + 1
    assert '"num_ctx":4096' in report.difference.recorded
    assert '"num_ctx":8192' in report.difference.replayed


def test_a_line_cut_by_a_crash_is_left_out(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.live(events(5))
    life.recorder.close()
    file = next(tmp_path.glob("events-*.jsonl"))
    file.write_bytes(file.read_bytes()[:-7])
    report = last(file)
    assert report.truncated
    assert report.difference is None
    assert report.steps == len(events(5)) - 1


def test_a_file_cut_off_in_its_first_line_does_not_hide_the_others(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.live(events(5))
    life.recorder.close()
    (tmp_path / "events-000002.jsonl").write_bytes(b'{"bellmare_log":1,"vers')
    report = last(tmp_path)
    assert report.truncated
    assert report.steps == len(events(5))
    with pytest.raises(LogError):
        last(tmp_path / "events-000002.jsonl")


def corrupt(line: int, text: bytes) -> Callable[[list[bytes]], None]:
    def change(lines: list[bytes]) -> None:
        lines[line] = text

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (corrupt(0, b"hello\n"), ":1: not an event log"),
        (corrupt(0, b'{"bellmare_log":99,"version":"9","config":{},"state":{}}\n'), "log version 99"),
        (corrupt(2, b'{"t":1,"e":{"type":"Nonsense"},"d":[]}\n'), ":3:"),
    ],
)
def test_a_damaged_log_is_their_error_with_the_line(
    tmp_path: Path, change: Callable[[list[bytes]], None], says: str
) -> None:
    life = Life(tmp_path)
    life.live(events(5))
    life.recorder.close()
    file = next(tmp_path.glob("events-*.jsonl"))
    lines = file.read_bytes().splitlines(keepends=True)
    change(lines)
    file.write_bytes(b"".join(lines))
    with pytest.raises(LogError, match=says):
        last(file)


def test_no_log_is_an_error_and_not_an_empty_success(tmp_path: Path) -> None:
    with pytest.raises(LogError):
        last(tmp_path)
    with pytest.raises(LogError):
        last(tmp_path / "nothing.jsonl")


def test_a_disk_that_does_not_keep_up_breaks_the_log_off_and_a_snapshot_mends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backlog is bounded; what follows the gap begins with a snapshot and replays."""
    monkeypatch.setattr(recorder_module, "BACKLOG_BYTES_MAX", 6000)
    monkeypatch.setattr(recorder_module, "FLUSH_S", 3600.0)  # the writer sleeps: a stuck disk
    life = Life(tmp_path)
    life.live(events(60))
    assert life.recorder.dropped > 0
    life.recorder._drain()  # the disk is back
    monkeypatch.setattr(recorder_module, "BACKLOG_BYTES_MAX", 10**9)
    later = [
        RequestArrived(request=RequestId(f"late{i}"), name="m:latest", deadline_us=InstantUs(2**60)) for i in range(9)
    ]
    life.live(list(later))
    life.recorder.close()
    files = sorted(tmp_path.glob("events-*.jsonl"))
    assert len(files) == 2
    assert all(last(file).difference is None for file in files)
    assert b"late8" in files[1].read_bytes()


def test_a_folder_that_cannot_be_written_costs_the_log_and_nothing_else(tmp_path: Path) -> None:
    life = Life(tmp_path / "log")
    life.recorder.close()
    broken = Life(tmp_path / "log2")
    (tmp_path / "log2").rmdir()
    (tmp_path / "log2").write_text("in the way")
    broken.live(events(5))
    broken.recorder.close()
    assert broken.recorder.error


def test_prompts_cannot_be_in_the_log(tmp_path: Path) -> None:
    """Events have no field that could hold one: only ids, names, numbers, and a hash with a secret of the process."""
    fields = {field.name: field.type for field in msgspec.structs.fields(RequestArrived)}
    numbers = {"deadline_us", "kind", "priority", "prompt_tokens"}
    assert set(fields) == {"request", "name", "tenant", "fingerprint"} | numbers
