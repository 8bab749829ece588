"""Fits the shipped weights of the forecast, by running the simulator and learning from what it saw.

    python tools/fit_forecast.py [--traces FOLDER] > src/bellmare/core/forecast_weights.py

Samples are those that the core itself takes (``core.forecast``), on seeds that no benchmark uses; a trace of a licence
that forbids derived work must not lie in the folder. Prints the losses of each source to standard error: those of the
fit, and those of a constant.
"""

import argparse
import random
import sys
from math import exp, log
from pathlib import Path

from bellmare.core import forecast
from bellmare.core.engine import Engine
from bellmare.core.knowledge import Forecast, Sample
from bellmare.sim.drive import Drive, core_config
from bellmare.sim.fleet import read_fleet
from bellmare.sim.scenarios import REQUESTS, SCENARIOS
from bellmare.sim.tally import Tally
from bellmare.sim.workload import Workload, first
from bellmare.sim.workloads.traces import load_trace, traces_in
from bellmare.sim.world import LightWorld

SEEDS = (101, 102, 103)
SCENARIO_NAMES = ("S1", "S4x4", "S5", "S6", "S7")
FLEET = "1x48GB"
REQUESTS_MAX = 20_000
SAMPLES_PER_MODEL = 6
EPOCHS = 12
RATE = 0.3
WEIGHT_DECAY = 2e-6

Seen = list[tuple[list[float], float]]
"""Features, and seconds to the next arrival."""


def collect(workload: Workload) -> Seen:
    """All samples that the core took in one run, with the truth about them."""
    seen: Seen = []

    def lesson(_: Forecast, sample: Sample, gap_us: int) -> None:
        seen.append((sample.features, gap_us / 1e6))

    forecast._lesson, forecast.SAMPLES_MAX = lesson, SAMPLES_PER_MODEL  # type: ignore[assignment]
    tally = Tally(workload)
    engine = Engine(core_config("lru", ahead=False))
    Drive(engine, LightWorld(workload, read_fleet(FLEET), tally), tally).run()
    return seen


def fit(sources: list[Seen], tau_s: float, chance: random.Random) -> list[float]:
    """Adagrad over all sources, each with the same weight in all."""
    weights, squares = [0.0] * forecast.SIZE, [1e-8] * forecast.SIZE
    mean = sum(map(len, sources)) / len(sources)
    lessons = [(values, exp(-gap_s / tau_s), mean / len(seen)) for seen in sources for values, gap_s in seen]
    for epoch in range(EPOCHS):
        chance.shuffle(lessons)
        rate = RATE / (1 + epoch)
        for values, truth, weight in lessons:
            z = sum(w * v for w, v in zip(weights, values, strict=True))
            error = weight * (1 / (1 + exp(-max(-30.0, min(30.0, z)))) - truth)
            for i, value in enumerate(values):
                slope = error * value + WEIGHT_DECAY * weights[i]
                squares[i] += slope * slope
                weights[i] -= rate * slope / squares[i] ** 0.5
    return weights


def loss(seen: Seen, tau_s: float, weights: list[float] | None) -> float:
    """Mean cross-entropy; without weights that of the best constant."""
    truths = [exp(-gap_s / tau_s) for _, gap_s in seen]
    base = sum(truths) / len(truths)
    total = 0.0
    for (values, _), truth in zip(seen, truths, strict=True):
        said = base
        if weights is not None:
            said = 1 / (1 + exp(-sum(w * v for w, v in zip(weights, values, strict=True))))
        said = min(1 - 1e-6, max(1e-6, said))
        total -= truth * log(said) + (1 - truth) * log(1 - said)
    return total / len(seen)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", type=Path, help="a folder of traces to learn from, too")
    asked = parser.parse_args()
    sources: dict[str, Seen] = {}
    for name in SCENARIO_NAMES:
        sources[name] = [one for seed in SEEDS for one in collect(SCENARIOS[name].build(seed, REQUESTS))]
    if asked.traces is not None:
        for path, kind, _ in traces_in(asked.traces):
            if kind is not None:
                loaded = (first(load_trace(path, seed=seed), REQUESTS_MAX) for seed in SEEDS)
                sources[path.name] = [one for workload in loaded for one in collect(workload)]
    chance = random.Random(1)
    fitted = [fit(list(sources.values()), tau_s, chance) for tau_s in forecast.HEADS_S]
    for name, seen in sources.items():
        figures = ", ".join(
            f"{tau_s:g} s {loss(seen, tau_s, weights):.4f} ({loss(seen, tau_s, None):.4f})"
            for tau_s, weights in zip(forecast.HEADS_S, fitted, strict=True)
        )
        print(f"{name}: {len(seen)} samples; {figures}", file=sys.stderr)
    print('"""Shipped weights of the forecast, one row per head (``tools/fit_forecast.py``)."""\n')
    print("WEIGHTS: tuple[tuple[float, ...], ...] = (")
    for weights in fitted:
        half = len(weights) // 2
        print("    (")
        for part in (weights[:half], weights[half:]):
            print(f"        {', '.join(f'{weight:.3f}' for weight in part)},")
        print("    ),")
    print(")  # fmt: skip")
    return 0


if __name__ == "__main__":
    sys.exit(main())
