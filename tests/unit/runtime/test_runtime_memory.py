"""The file of what was learned: written whole, read if it fits, ignored otherwise."""

from __future__ import annotations

from pathlib import Path

import pytest

from bellmare.core import events as e
from bellmare.core.config import CoreConfig
from bellmare.core.engine import Engine
from bellmare.core.units import InstantUs
from bellmare.runtime.clock import Clock
from bellmare.runtime.memory import AWAY_MAX_US, Memory


class Hands(Clock):
    """A clock whose hands the test moves."""

    def __init__(self) -> None:
        self.at_us = 1_000_000_000
        self.wall = 1_700_000_000_000_000

    def now_us(self) -> InstantUs:
        return InstantUs(self.at_us)

    def wall_us(self) -> int:
        return self.wall


def memory(path: Path, clock: Hands) -> tuple[Memory, Engine, list[str]]:
    engine, said = Engine(CoreConfig()), []
    return Memory(path, engine, clock, complain=lambda text, _: said.append(text)), engine, said


def live(engine: Engine, clock: Hands) -> None:
    stored = e.StoredModel(name="ant", model="blob", digest="0" * 64, weights_bytes=1)  # type: ignore[arg-type]
    worker = e.WorkerAdded(worker="w", kind=e.WorkerKind.sim, capacity_bytes=1 << 34)  # type: ignore[arg-type]
    engine.step(clock.now_us(), worker)
    seen = e.WorkerObserved(worker="w", started_us=clock.now_us(), loaded=(), stored=(stored,))  # type: ignore[arg-type]
    engine.step(clock.now_us(), seen)
    engine.step(clock.now_us(), e.RequestArrived(request="r", name="ant", deadline_us=InstantUs(clock.at_us + 10)))  # type: ignore[arg-type]


async def test_what_was_written_is_recalled_by_the_next_life(tmp_path: Path) -> None:
    clock = Hands()
    first, engine, said = memory(tmp_path / "deep" / "learned.json", clock)
    live(engine, clock)
    await first.write()
    assert said == [] and (tmp_path / "deep" / "learned.json").stat().st_mode & 0o077 == 0
    clock.wall += 90_000_000
    clock.at_us = 5_000_000_000
    second, later, said = memory(tmp_path / "deep" / "learned.json", clock)
    assert second.recall() and said == []
    (known,) = later.fleet.state.remembered.values()
    assert known.demand.last_us == clock.at_us - 90_000_000


def test_no_file_is_no_complaint(tmp_path: Path) -> None:
    keeper, _, said = memory(tmp_path / "learned.json", Hands())
    assert not keeper.recall() and said == []


@pytest.mark.parametrize("content", [b"", b"{}", b"nonsense", b'{"written_us": 1, "learned": 3}'])
def test_a_damaged_file_is_ignored(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "learned.json"
    path.write_bytes(content)
    keeper, engine, _ = memory(path, Hands())
    assert not keeper.recall()
    assert engine.snapshot() == Engine(CoreConfig()).snapshot()


async def test_a_file_from_the_future_or_older_than_a_month_is_ignored(tmp_path: Path) -> None:
    clock = Hands()
    keeper, engine, _ = memory(tmp_path / "learned.json", clock)
    live(engine, clock)
    await keeper.write()
    for off_us in (-1, AWAY_MAX_US + 1):
        clock.wall += off_us
        assert not memory(tmp_path / "learned.json", clock)[0].recall()
        clock.wall -= off_us


async def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    keeper, _, said = memory(tmp_path / "file" / "learned.json", Hands())
    await keeper.write()
    assert said == ["what was learned cannot be written"]
