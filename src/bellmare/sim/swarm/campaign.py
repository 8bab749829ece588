"""Many seeds on several cores, and what they add up to. A failing seed is told in one line that runs it again."""

import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256

import msgspec

from bellmare.core import events as e
from bellmare.core.decisions import Refusal
from bellmare.sim.swarm.life import Life, outcome
from bellmare.sim.swarm.marks import Fault, outlived, unmet

EVENTS = tuple(kind.__name__ for kind in e.Event.__subclasses__())
TOLD_EVERY_S = 10.0
"""Progress into a file or a log; a terminal sees every seed."""
COVERED_REQUESTS = 100_000
"""A campaign of fewer requests is not held to having met everything."""
SEEDS_AT_ONCE = 2
"""Seeds that a process takes at a time: lives differ much in length."""
BROKEN_SHOWN = 600
"""Characters of a broken rule that are shown."""


@dataclass
class Campaign:
    """The sum of many lives."""

    seeds: int = 0
    requests: int = 0
    steps: int = 0
    seconds: float = 0.0
    """Wall time."""
    broken: list[Life] = field(default_factory=list)
    met: dict[str, int] = field(default_factory=dict)
    checked: dict[str, int] = field(default_factory=dict)
    decided: dict[str, int] = field(default_factory=dict)
    digests: dict[int, str] = field(default_factory=dict)
    demands_coverage: bool = False

    def add(self, life: Life) -> None:
        self.seeds += 1
        if life.broken:
            self.broken.append(life)
            return
        self.requests += life.requests
        self.steps += life.steps
        self.digests[life.seed] = life.digest
        for total, part in ((self.met, life.met), (self.checked, life.checked), (self.decided, life.decided)):
            for what, count in part.items():
                total[what] = total.get(what, 0) + count

    @property
    def digest(self) -> str:
        """Of all lives in the order of their seeds, whichever ended first."""
        found = sha256()
        for seed in sorted(self.digests):
            found.update(f"{seed} {self.digests[seed]}".encode())
        return found.hexdigest()

    @property
    def unmet(self) -> list[str]:
        return unmet(self.met) if self.demands_coverage else []

    @property
    def passed(self) -> bool:
        return not self.broken and not self.unmet

    def figures(self) -> dict[str, object]:
        """Everything that is reported, units in the names."""
        met = self.met
        return {
            "seeds": self.seeds,
            "requests": self.requests,
            "events": {kind: met.get(kind, 0) for kind in EVENTS},
            "decisions": dict(sorted(self.decided.items())),
            "refusals": {one.value: met.get(f"Refusal.{one}", 0) for one in Refusal},
            "faults": {one.value: met.get(f"Fault.{one}", 0) for one in Fault},
            "rules": len(self.checked),
            "checks": sum(self.checked.values()),
            "steps": self.steps,
            "seconds": round(self.seconds, 1),
            "digest": self.digest,
            "unmet": self.unmet,
            "exemptions_outlived": outlived(met),
            "failed": [{"seed": life.seed, "broken": life.broken} for life in self.broken],
        }


def replay_line(seed: int, requests: int) -> str:
    """What runs exactly that seed again."""
    return f"python -m bellmare.sim.swarm --seed {seed} --requests {requests}"


def run(seeds: Iterable[int], requests: int, *, jobs: int, progress: bool = True) -> Campaign:
    """Run every seed. Deterministic but for the seconds, whatever the number of jobs."""
    campaign = Campaign()
    chosen = list(seeds)
    campaign.demands_coverage = len(chosen) * requests >= COVERED_REQUESTS
    began = told = time.perf_counter()
    for life in _lives(chosen, requests, jobs=jobs):
        campaign.add(life)
        campaign.seconds = time.perf_counter() - began
        if life.broken:
            _say_broken(life, requests)
        if progress and (sys.stderr.isatty() or time.perf_counter() - told > TOLD_EVERY_S):
            told = time.perf_counter()
            _say_progress(campaign, len(chosen))
    if progress and sys.stderr.isatty():
        sys.stderr.write("\n")
    return campaign


def _lives(seeds: list[int], requests: int, *, jobs: int) -> Iterator[Life]:
    if jobs < 2 or len(seeds) < 2:
        for seed in seeds:
            yield outcome(seed, requests)
        return
    with ProcessPoolExecutor(max_workers=jobs) as pool:
        yield from pool.map(partial(outcome, requests=requests), seeds, chunksize=SEEDS_AT_ONCE)


def _say_broken(life: Life, requests: int) -> None:
    sys.stderr.write(f"\nseed {life.seed}: {life.broken[:BROKEN_SHOWN]}\n{replay_line(life.seed, requests)}\n")


def _say_progress(campaign: Campaign, seeds: int) -> None:
    rate = campaign.requests / campaign.seconds if campaign.seconds else 0
    line = f"{campaign.seeds}/{seeds} seeds, {campaign.requests} requests, {rate:.0f} a second"
    line += f", {len(campaign.broken)} failed" if campaign.broken else ""
    sys.stderr.write(f"\r{line}  " if sys.stderr.isatty() else f"{line}\n")
    sys.stderr.flush()


def table(campaign: Campaign) -> str:
    """The figures for people."""
    figures = campaign.figures()
    lines = [f"{name:<12}{figures[name]}" for name in ("seeds", "requests", "steps", "rules", "checks", "seconds")]
    lines.append(f"{'digest':<12}{campaign.digest[:16]}")
    for group in ("events", "decisions", "refusals", "faults"):
        counts = figures[group]
        assert isinstance(counts, dict)
        lines.append(group)
        lines.extend(f"  {what:<22}{count:>10}" for what, count in counts.items())
    lines.extend(f"not met: {mark}" for mark in campaign.unmet)
    lines.extend(f"met although exempt (take it out of marks.EXEMPT): {mark}" for mark in outlived(campaign.met))
    failed = ", ".join(str(life.seed) for life in campaign.broken)
    lines.append("passed" if campaign.passed else f"FAILED; seeds: {failed or 'none, but not everything was met'}")
    return "\n".join(lines)


def as_json(campaign: Campaign) -> str:
    return msgspec.json.format(msgspec.json.encode(campaign.figures())).decode()
