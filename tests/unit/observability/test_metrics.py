"""The metrics: labels from closed sets, no series twice, and what the event log lost."""

import msgspec

from bellmare.core.config import CoreConfig
from bellmare.core.engine import Engine
from bellmare.core.events import RequestArrived, StoredModel, WorkerAdded, WorkerKind, WorkerObserved
from bellmare.core.units import Bytes, InstantUs, ModelId, RequestId, WorkerId
from bellmare.observability import metrics as metrics_module
from bellmare.observability.metrics import Metrics

LINES_PER_MODEL_MAX = 28
"""Two histograms of ten buckets with sum and count, the counters, the gauge."""


class Life:
    """An engine with workers that store models and have no room for any, so that all requests wait."""

    def __init__(self, workers: int = 1) -> None:
        self.engine = Engine(CoreConfig())
        self.now = 0
        self.asked = 0
        for number in range(workers):
            self.engine.step(self._later(), WorkerAdded(
                worker=WorkerId(f"w{number}"), kind=WorkerKind.sim, capacity_bytes=Bytes(1), capacity_known=False
            ))  # fmt: skip

    def _later(self) -> InstantUs:
        self.now += 1
        return InstantUs(self.now)

    def store(self, worker: int, **models: str) -> None:
        entries = tuple(
            StoredModel(name=name, model=ModelId(blob), digest=blob, weights_bytes=Bytes(10**9))
            for name, blob in models.items()
        )
        now = self._later()
        self.engine.step(now, WorkerObserved(worker=WorkerId(f"w{worker}"), started_us=now, loaded=(), stored=entries))

    def ask(self, name: str) -> None:
        self.asked += 1
        request = RequestId(f"r{self.asked}")
        self.engine.step(self._later(), RequestArrived(request=request, name=name, deadline_us=InstantUs(2**60)))


def queued(metrics: Metrics) -> list[str]:
    lines = metrics.render().decode().splitlines()
    return sorted(line for line in lines if line.startswith("bellmare_queued_requests{"))


def test_two_blobs_under_one_name_are_one_series() -> None:
    """A new pull moved the name while requests for the old blob still wait."""
    life = Life(workers=2)
    life.store(0, a="old")
    life.ask("a")
    life.store(1, a="new")
    life.store(0, a="new")
    life.ask("a")
    assert len(life.engine.fleet.state.models) == 2
    assert queued(Metrics(life.engine)) == ['bellmare_queued_requests{model="a"} 2.0']


def test_queued_requests_of_many_models_are_booked_as_other(monkeypatch) -> None:
    monkeypatch.setattr(metrics_module, "MODELS_MAX", 2)
    life = Life()
    life.store(0, **{f"m{number}": f"blob{number}" for number in range(6)})
    for number in range(5):
        life.ask(f"m{number}")
    assert queued(Metrics(life.engine)) == [
        'bellmare_queued_requests{model="m0"} 1.0',
        'bellmare_queued_requests{model="m1"} 1.0',
        'bellmare_queued_requests{model="other"} 3.0',
    ]


def test_a_model_on_disk_that_nobody_asked_for_takes_up_no_label() -> None:
    life = Life()
    life.store(0, a="a", b="b")
    metrics = Metrics(life.engine)
    metrics.request(model="a", status=200, total_us=1, first_token_us=1, queued_us=1)
    assert queued(metrics) == ['bellmare_queued_requests{model="a"} 0.0']


def test_what_the_event_log_lost_is_told() -> None:
    class Log(msgspec.Struct):
        error: str = "disk full"
        dropped: int = 7

    metrics = Metrics(Engine(CoreConfig()))
    assert b"event_log" not in metrics.render()
    metrics.event_log = log = Log()
    text = metrics.render().decode()
    assert "\nbellmare_event_log_dropped_total 7.0\n" in text
    assert "\nbellmare_event_log_failing 1.0\n" in text
    log.error = ""
    assert "\nbellmare_event_log_failing 0.0\n" in metrics.render().decode()
    assert "\nbellmare_event_log_failing 0.0\n" in Metrics(Engine(CoreConfig()), event_log=log).render().decode()


def test_one_more_model_costs_a_scrape_few_lines() -> None:
    """Each line costs the loop about 0.6 us, at every scrape, and whoever scrapes a series."""
    metrics = Metrics(Engine(CoreConfig()))
    sizes = []
    for number in range(3):
        name = f"m{number}"
        metrics.request(model=name, status=200, total_us=1, first_token_us=1, queued_us=1)
        metrics.tokens(name, 1, 1)
        sizes.append(metrics.render().count(b"\n"))
    assert sizes[2] - sizes[1] <= LINES_PER_MODEL_MAX


def test_lost_lines_of_the_log_are_told() -> None:
    lost = [0]
    metrics = Metrics(Engine(CoreConfig()), lost_lines=lambda: lost[0])
    assert b"\nbellmare_log_lines_dropped_total 0.0\n" in metrics.render()
    lost[0] = 900
    assert b"\nbellmare_log_lines_dropped_total 900.0\n" in metrics.render()
