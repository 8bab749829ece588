"""The baseline does what stock Ollama does: timers, three models, its own victims, one pending loop."""

from bellmare.sim.fleet import read_fleet
from bellmare.sim.stock import Stock
from bellmare.sim.tally import Tally
from bellmare.sim.workload import Arrival, SimModel, Workload

SECOND = 1_000_000
GB = 1_000_000_000
LOAD_1GB = 1_500_000


def asked(*arrivals: tuple[float, int, float], weights_gb: float = 1.0) -> Workload:
    """Arrivals as (second, model, seconds of service); model k has the k-th blob in order."""
    models = tuple(SimModel(f"m{i}:latest", f"{i:064x}", int(weights_gb * GB)) for i in range(6))
    made = tuple(Arrival(int(at * SECOND), model, int(span * SECOND), 0) for at, model, span in arrivals)
    return Workload("asked", 1, models, made, slots=2)


def served(workload: Workload, fleet_text: str = "1x24GB", *, pinned: bool = False) -> Stock:
    stock = Stock(Tally(workload), read_fleet(fleet_text), pinned=pinned)
    stock.run()
    assert stock.tally.open == 0
    return stock


def waits_s(stock: Stock) -> list[float]:
    arrivals = stock.tally.workload.arrivals
    starts = stock.tally.start_us
    return [(start - arrival.at_us) / SECOND for start, arrival in zip(starts, arrivals, strict=True)]


def test_a_request_waits_for_the_load_and_is_served_as_long_as_the_trace_says() -> None:
    stock = served(asked((1, 0, 8.6), (20, 0, 3)))
    assert waits_s(stock) == [LOAD_1GB / SECOND, 0.0]
    assert stock.tally.end_us == [1 * SECOND + LOAD_1GB + 8_600_000, 23 * SECOND]
    assert list(stock.tally.cold) == [1, 0]


def test_a_model_leaves_after_five_minutes_and_stays_if_pinned() -> None:
    workload = asked((1, 0, 1), (300, 0, 1), (700, 0, 1))
    assert list(served(workload).tally.cold) == [1, 0, 1]
    assert list(served(workload, pinned=True).tally.cold) == [1, 0, 0]


def test_three_models_are_the_limit_unless_it_is_lifted() -> None:
    workload = asked(*((1 + 10 * i, i % 4, 1) for i in range(8)))
    assert served(workload).tally.evictions > 1
    assert served(workload, pinned=True).tally.evictions == 0
    assert sum(served(workload, pinned=True).tally.cold) == 4


def test_pinned_models_are_evicted_in_the_order_of_their_blobs() -> None:
    """Three of 7 GB do not fit into 24 GB by Ollama's rule; the one used last, but first by name, has to go."""
    stock = served(asked((1, 1, 1), (20, 0, 1), (40, 2, 1), (60, 1, 1), (80, 0, 1), weights_gb=7.0), pinned=True)
    assert list(stock.tally.cold) == [1, 1, 1, 0, 1]


def test_a_miss_blocks_other_misses_but_the_slots_of_what_is_loaded_go_on() -> None:
    stock = served(asked((1, 0, 1), (10, 1, 1), (10.1, 2, 1), (10.2, 0, 1)))
    assert waits_s(stock) == [1.5, 1.5, 2.9, 0.0]


def test_the_balancer_takes_the_worker_with_fewest_requests_and_the_first_of_equals() -> None:
    stock = served(asked((1, 0, 60), (2, 0, 60), (3, 0, 1), (70, 0, 1)), "2x24GB")
    loaded = [list(backend.loaded) for backend in stock.backends]
    assert [len(blobs) for blobs in loaded] == [1, 1], "the second request went to the second worker"
    assert list(stock.tally.cold) == [1, 1, 0, 0]
    assert waits_s(stock)[2:] == [0.0, 0.0]
    assert [backend.in_flight for backend in stock.backends] == [0, 0]


def test_host_memory_makes_the_second_load_quicker() -> None:
    machines = read_fleet("1x24GB,ram=10GB")
    stock = Stock(Tally(asked((1, 0, 1), (700, 0, 1), weights_gb=6.0)), machines)
    stock.run()
    assert waits_s(stock) == [4.0, 2.0]
