"""The event log when the disk is full, the state is large, the core broke, or others write the same folder."""

import errno
import subprocess
import sys
from io import FileIO
from pathlib import Path

import pytest
from test_runtime_event_log import Life, events, last

from bellmare.core.events import Event, RequestArrived
from bellmare.core.units import SECOND_US, InstantUs, RequestId
from bellmare.runtime import recorder as recorder_module
from bellmare.runtime.recorder import RETRY_US


def late(prefix: str, count: int) -> list[Event]:
    return [
        RequestArrived(request=RequestId(f"{prefix}{i}"), name="m:latest", deadline_us=InstantUs(2**60))
        for i in range(count)
    ]


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("events-*.jsonl"))


@pytest.fixture
def asleep(monkeypatch: pytest.MonkeyPatch) -> None:
    """The writer's thread waits for ``close``; tests call ``_drain`` themselves."""
    monkeypatch.setattr(recorder_module, "FLUSH_S", 3600.0)


class Disk:
    """Takes so many bytes and then says that it is full, until ``room`` is raised."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.room = 10**9
        disk = self

        class LimitedFile(FileIO):
            def write(self, data: bytes | memoryview) -> int:  # type: ignore[override]
                if not disk.room:
                    raise OSError(errno.ENOSPC, "No space left on device")
                taken = super().write(bytes(data)[: disk.room]) or 0
                disk.room -= taken
                return taken

        monkeypatch.setattr(recorder_module, "FileIO", LimitedFile)


@pytest.mark.usefixtures("asleep")
def test_after_a_full_disk_the_log_goes_on_in_a_new_file_and_counts_the_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = Disk(monkeypatch)
    life = Life(tmp_path)
    life.live(events(20))
    life.recorder._drain()
    disk.room = 500  # some lines and a half
    life.live(late("lost", 30))
    life.recorder._drain()
    assert life.recorder.error == "[Errno 28] No space left on device"
    lost = life.recorder.dropped
    assert 20 < lost < 30
    disk.room = 10**9
    life.live(late("late", 10))  # the first of them is in the snapshot
    life.recorder.close()
    assert life.recorder.error == ""
    assert life.recorder.dropped == lost + 1
    assert len(files(tmp_path)) == 2
    report = last(tmp_path)
    assert report.difference is None
    assert not report.truncated
    assert report.steps == len(events(20)) + 30 + 10 - life.recorder.dropped


@pytest.mark.usefixtures("asleep")
def test_a_header_that_does_not_fit_leaves_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = Disk(monkeypatch)
    life = Life(tmp_path)
    disk.room = 100
    life.live(events(5))
    life.recorder._drain()
    assert files(tmp_path) == []
    assert life.recorder.dropped == len(events(5))
    life.recorder.close()


@pytest.mark.usefixtures("asleep")
def test_while_the_disk_stays_full_a_snapshot_is_taken_once_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Disk(monkeypatch).room = 0
    life = Life(tmp_path)
    snapshots = 0
    header = life.recorder._header

    def counted() -> bytes:
        nonlocal snapshots
        snapshots += 1
        return header()

    life.recorder._header = counted
    script = [*events(20), *late("more", 480)]
    for event in script:
        life.recorder._drain()
        life.live([event])
    assert snapshots <= life.now // RETRY_US + 1
    assert life.now > 4 * SECOND_US
    life.recorder.close()


@pytest.mark.usefixtures("asleep")
def test_a_header_larger_than_the_backlog_does_not_count_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder_module, "BACKLOG_BYTES_MAX", 4000)
    life = Life(tmp_path, file_bytes_max=1000)
    life.live(events(0))
    life.recorder._drain()
    header = life.recorder._header
    life.recorder._header = lambda: header().rstrip() + b" " * 9000 + b"\n"
    life.recorder.break_off()
    for event in late("r", 60):
        life.live([event])
        life.recorder._drain()
    life.recorder.close()
    assert life.recorder.dropped == 1  # the step that the break began with
    assert len(files(tmp_path)) <= 3
    assert last(tmp_path).steps == len(events(0)) + 59


@pytest.mark.usefixtures("asleep")
def test_after_a_break_a_new_file_begins_with_a_snapshot(tmp_path: Path) -> None:
    life = Life(tmp_path)
    life.live(events(5))
    life.engine.step(InstantUs(life.now + 1), late("unseen", 1)[0])  # the log knows nothing of it
    life.recorder.break_off()
    life.live(late("more", 5))
    life.recorder.close()
    assert len(files(tmp_path)) == 2
    report = last(tmp_path)
    assert report.difference is None
    assert report.steps == len(events(5)) + 4


def test_two_writers_of_one_folder_never_share_a_file(tmp_path: Path) -> None:
    """As two gateways with the same settings; locks are per open file, so that one process shows it too."""
    one, two = Life(tmp_path, file_bytes_max=4096, files_max=100), Life(tmp_path, file_bytes_max=4096, files_max=100)
    for number in range(10):
        one.live(events(10) if not number else late(f"a{number}-", 10))
        two.live(events(10) if not number else late(f"b{number}-", 10))
    one.recorder.close()
    two.recorder.close()
    report = last(tmp_path)
    assert report.difference is None
    assert report.steps == 2 * (len(events(10)) + 90)


HOLDER = """
import sys
from pathlib import Path
from bellmare.runtime.recorder import _create
file, path = _create(Path(sys.argv[1]))
print(path.name, flush=True)
sys.stdin.read()
"""


@pytest.mark.skipif(sys.platform == "win32", reason="files are locked on POSIX only")
def test_pruning_spares_what_another_living_process_writes(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        theirs = tmp_path / holder.stdout.readline().strip()
        life = Life(tmp_path, file_bytes_max=4096, files_max=2)
        life.live(events(300))
        life.recorder.close()
        assert theirs.exists()
        assert len(files(tmp_path)) <= 3
        holder.communicate("")
    again = Life(tmp_path, files_max=2)
    again.recorder.close()
    assert not theirs.exists()
    assert len(files(tmp_path)) == 2


def test_files_that_are_not_ours_are_left_alone(tmp_path: Path) -> None:
    notes = tmp_path / "events-of-may2.jsonl"
    notes.write_text("mine")
    life = Life(tmp_path, file_bytes_max=4096, files_max=1)
    life.live(events(100))
    life.recorder.close()
    assert notes.read_text() == "mine"
