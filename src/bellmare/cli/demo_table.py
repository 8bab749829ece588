"""The demo's table: one still picture of the fleet as lines of text, for any terminal of 60 columns or more.

Only draws: a ``Frame`` holds all there is to know. Colour says how busy a model is, never that something is wrong; a
full GPU is success. Everything that colour says is written too.
"""

from collections.abc import Iterator
from typing import NamedTuple

import msgspec
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

from bellmare.admin.views import RunnerRow, WorkerRow
from bellmare.bench.load import TrafficReport
from bellmare.cli.demo_story import Told, Waiting, short, span

WAITING_LINES_MAX = 12
TOLD_LINES_MAX = 20
WIDE = 110
"""Columns from which there is room for explanations."""
GB = 1_000_000_000


class Glyphs(msgspec.Struct, frozen=True):
    """What the parts of a bar are filled with."""

    edge: str
    ready: str
    loading: str
    leaving: str
    free: str
    headroom: str
    share: str
    dot: str
    rule: str
    cut: str


UNICODE = Glyphs("▏", " ", "╱", "╲", "·", "░", "█", "·", "─", "…")  # noqa: RUF001 - a hatch, not a slash
ASCII = Glyphs("|", " ", "/", "\\", ".", "#", "=", "|", "-", "~")

BUSY = ("black on grey62", "white on dodger_blue3", "white on purple3")
"""Of a ready model: idle, some slots busy, all busy."""
MOVING = {"loading": "dodger_blue1", "draining": "white on grey35", "unloading": "grey62"}
QUIET = "grey50"
SHARES = {
    "hit": ("at once", "green4"),
    "queued": ("waited for a slot", "dodger_blue3"),
    "cold": ("waited for a load", "purple3"),
}


class OwnDoings(msgspec.Struct, frozen=True):
    """What the simulated Ollamas did by themselves, over all workers: what bellmare is there to prevent."""

    evictions: int = 0
    reloads: int = 0
    queued: int = 0
    rejected: int = 0
    overcommits: int = 0

    @property
    def total(self) -> int:
        return self.evictions + self.reloads + self.queued + self.rejected + self.overcommits


class Frame(msgspec.Struct, frozen=True):
    """All that one picture shows."""

    elapsed_s: float
    speed: float
    gateway: str
    """host:port of the data plane."""
    admin: str
    model: str
    """For the curl line."""
    workers: list[WorkerRow]
    doing: dict[str, str]
    """By worker: what its loader is doing."""
    runners: list[RunnerRow]
    waiting: list[Waiting]
    told: list[Told]
    """Oldest first."""
    traffic: TrafficReport
    loads: int
    evictions: int
    refused: int
    own: OwnDoings


def clock(seconds: float) -> str:
    return f"{int(seconds) // 60:02d}:{int(seconds) % 60:02d}"


def percent(part: int, whole: int) -> str:
    """Whole percents; never 0 or 100 for what only comes near it."""
    if not whole or part in (0, whole):
        return f"{100 if whole and part else 0} %"
    return f"{min(99, max(1, round(100 * part / whole)))} %"


class DemoTable:
    """A frame as rich draws it: exactly as many lines as fit."""

    def __init__(self, frame: Frame, *, height: int = 0) -> None:
        self.frame = frame
        self._height = height

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        glyphs = ASCII if options.ascii_only else UNICODE
        height = self._height or options.height or console.size.height
        yield from draw(self.frame, glyphs, width=options.max_width, height=height)


def draw(frame: Frame, glyphs: Glyphs, *, width: int, height: int) -> Iterator[Text]:
    """The lines from top to bottom; what is told and who waits share what room the rest leaves."""
    head = list(_head(frame, width=width))
    fleet = list(_fleet(frame, glyphs, width=width))
    totals = list(_totals(frame, glyphs, width=width))
    left = max(4, height - len(head) - len(fleet) - len(totals) - 2)
    waiting_max = min(WAITING_LINES_MAX, max(1, (left + 1) // 3))
    told_max = min(TOLD_LINES_MAX, left - waiting_max)
    lines = [
        *head,
        *fleet,
        *_waiting(frame, glyphs, width=width, lines_max=waiting_max),
        *_told(frame, glyphs, width=width, lines_max=told_max),
        *totals,
    ]
    for line in lines:
        line.no_wrap = True
        line.overflow = "ellipsis" if glyphs is UNICODE else "crop"
        line.truncate(width, overflow=line.overflow)
        yield line


def _rule(title: str, glyphs: Glyphs, *, width: int, note: str = "") -> Text:
    line = Text(f"{glyphs.rule * 2} ", style=QUIET)
    line.append(title, style="bold")
    line.append(f"  {note} " if note else " ", style=QUIET)
    line.append(glyphs.rule * max(0, width - line.cell_len), style=QUIET)
    return line


def _head(frame: Frame, *, width: int) -> Iterator[Text]:
    title = Text("bellmare demo", style="bold")
    title.append(f"  {clock(frame.elapsed_s)}  ")
    title.append("simulated GPUs", style="bold")
    title.append(f", {frame.speed:g}x real speed; real gateway")
    leave = "Ctrl-C ends"
    title.append(" " * max(2, width - title.cell_len - len(leave)) + leave, style=QUIET)
    yield title
    where = Text(f"Ollama, OpenAI and Anthropic API http://{frame.gateway}", style=QUIET)
    where.append(f"  admin http://{frame.admin}", style=QUIET)
    yield where
    attempt = Text("try ", style=QUIET)
    attempt.append(curl(frame.gateway, frame.model), style="dark_cyan")
    yield attempt


def curl(gateway: str, model: str) -> str:
    """A line to paste; fits 80 columns with a short name."""
    return f'curl {gateway}/api/generate -d \'{{"model":"{short(model)}","prompt":"Hi"}}\''


# ---------------------------------------------------------------------- the GPUs


def _fleet(frame: Frame, glyphs: Glyphs, *, width: int) -> Iterator[Text]:
    legend = "2/4 slots busy"
    for mark, word in ((glyphs.loading, "loading"), (glyphs.leaving, "leaving"), (glyphs.free, "free")):
        legend += f"  {mark * 2} {word}"
    yield _rule("GPU memory", glyphs, width=width, note=f"{legend}  {glyphs.headroom * 2} headroom")
    for worker in frame.workers:
        runners = [runner for runner in frame.runners if runner.worker == worker.worker]
        bar, unnamed = _bar(worker, _parts(worker, runners, glyphs=glyphs), glyphs=glyphs, width=width)
        line = Text(worker.worker, style="bold")
        used_bytes = worker.resident_bytes + worker.reserved_bytes + worker.foreign_bytes
        line.append(f"  {used_bytes / GB:.1f} of {worker.capacity_bytes / GB:.0f} GB  ", style=QUIET)
        if worker.healthy:
            now = frame.doing.get(worker.worker, "")
            line.append(now or "loader idle", style="" if now else QUIET)
        else:
            line.append(worker.reason, style="bold red")
        if unnamed:
            line.append("  + " + ", ".join(unnamed), style=QUIET)
        yield line
        yield bar


class _Part(NamedTuple):
    """A stretch of memory: how much, of whom, and how it is drawn."""

    size: int
    label: str
    fill: str
    style: str


def _parts(worker: WorkerRow, runners: list[RunnerRow], *, glyphs: Glyphs) -> list[_Part]:
    """All of a worker's memory, the headroom at the right end."""
    fills = {"loading": glyphs.loading, "draining": glyphs.leaving, "unloading": glyphs.leaving}
    parts = [
        _Part(runner.bytes, _label(runner), fills.get(runner.residency, glyphs.ready), _style(runner))
        for runner in runners
    ]
    if worker.foreign_bytes:
        parts.append(_Part(worker.foreign_bytes, "others", glyphs.headroom, QUIET))
    parts.append(_Part(worker.free_bytes, "", glyphs.free, QUIET))
    used_bytes = sum(part.size for part in parts)
    parts.append(_Part(max(0, worker.capacity_bytes - used_bytes), "", glyphs.headroom, QUIET))
    return parts


def _bar(worker: WorkerRow, parts: list[_Part], *, glyphs: Glyphs, width: int) -> tuple[Text, list[str]]:
    """The memory to scale, and the models whose part is too narrow for their name."""
    bar, unnamed = Text(), []
    passed, column = 0, 0
    for part in parts:
        passed += part.size
        end = min(width, round(passed * width / max(1, worker.capacity_bytes)))
        text, named = _fill(part, glyphs, width=end - column)
        bar.append(text, style=part.style)
        if part.label and not named:
            unnamed.append(part.label.rpartition(" ")[0] or part.label)
        column = end
    return bar, unnamed


def _fill(part: _Part, glyphs: Glyphs, *, width: int) -> tuple[str, bool]:
    """One part of a bar, and whether its label was legible."""
    if not part.label or width < 1:
        return part.fill * width, False
    room = width - 2
    if len(part.label) <= room:
        return f"{glyphs.edge}{part.label} {part.fill * (room - len(part.label))}", True
    return glyphs.edge + part.fill * (width - 1), False


def _label(runner: RunnerRow) -> str:
    if runner.residency in ("loading", "unloading"):
        return short(runner.model)
    return f"{short(runner.model)} {runner.busy + runner.zombies}/{runner.slots}"


def _style(runner: RunnerRow) -> str:
    moving = MOVING.get(runner.residency)
    if moving is not None:
        return moving
    return BUSY[0 if not runner.busy else 2 if runner.busy >= runner.slots else 1]


# ---------------------------------------------------------------------- who waits, what was decided, what came of it


def _waiting(frame: Frame, glyphs: Glyphs, *, width: int, lines_max: int) -> Iterator[Text]:
    total = sum(row.count for row in frame.waiting)
    note = "waiting requests by model" if total else "nobody waits"
    yield _rule(f"Queue {total}", glyphs, width=width, note=note)
    shown = frame.waiting if len(frame.waiting) <= lines_max else frame.waiting[: lines_max - 1]
    for row in shown:
        line = Text(f"{row.count:>5}  {short(row.model):<17} ")
        line.append(row.reason, style=QUIET)
        yield line
    rest = frame.waiting[len(shown) :]
    if rest:
        yield Text(f"{sum(row.count for row in rest):>5}  for {len(rest)} more models", style=QUIET)
    for _ in range(lines_max - len(shown) - bool(rest)):
        yield Text()


def _told(frame: Frame, glyphs: Glyphs, *, width: int, lines_max: int) -> Iterator[Text]:
    yield _rule("Decisions", glyphs, width=width, note="newest last")
    shown = frame.told[-lines_max:] if lines_max > 0 else []
    for told in shown:
        line = Text(f"{clock(told.at_s)} ", style=QUIET)
        line.append(f"{told.worker:<6}{told.verb:<7}", style="bold" if told.verb == "load" else "")
        line.append(f"{short(told.model):<17}")
        line.append(told.reason, style=QUIET)
        if told.ending:
            line.append(f", {told.ending}", style="red" if told.broke else "")
        yield line
    for _ in range(lines_max - len(shown)):
        yield Text()


def _totals(frame: Frame, glyphs: Glyphs, *, width: int) -> Iterator[Text]:
    traffic = frame.traffic
    yield _rule("So far", glyphs, width=width)
    line = Text(f"{traffic.completed:,} answered", style="bold")
    first = traffic.first_token
    line.append(f"  first token p50 {span(first.p50_ms)}, p95 {span(first.p95_ms)}", style="")
    line.append(f"  {traffic.in_flight} under way  ")
    line.append(f"{traffic.failed} failed", style="bold red" if traffic.failed else "")
    yield line
    yield _shares(traffic, glyphs, width=width)
    line = Text(f"{frame.loads} loads  {frame.evictions} evictions  {frame.refused} refused")
    line.append("  by Ollama itself: ", style=QUIET)
    own = frame.own
    line.append(f"{own.evictions} evictions, {own.queued} queued", style="bold red" if own.total else "bold green")
    if width >= WIDE:
        line.append("  (bellmare's promise: none, ever)", style=QUIET)
    yield line


def _shares(traffic: TrafficReport, glyphs: Glyphs, *, width: int) -> Text:
    """How requests were served, as one line of parts with their words."""
    counts = {state: traffic.by_cache.get(state, 0) for state in SHARES}
    whole = sum(counts.values())
    words = Text()
    for state, (text, colour) in SHARES.items():
        words.append(f"  {percent(counts[state], whole)}", style=f"bold {colour}")
        words.append(f" {text}")
    line = Text()
    room = max(0, width - words.cell_len)
    passed, column = 0, 0
    for state, (_, colour) in SHARES.items():
        passed += counts[state]
        end = round(room * passed / whole) if whole else 0
        line.append(glyphs.share * (end - column), style=colour)
        column = end
    line.append(words)
    return line
