"""What things cost: bytes of a runner, time of a load, of a request, of a prefill. Learned, else estimated."""

from bellmare.core.fleet import Fleet
from bellmare.core.memory import DEFAULT_BATCH, UNKNOWN_SHAPE_BYTES, UNKNOWN_SHAPE_FACTOR_PERCENT
from bellmare.core.residency import Residency
from bellmare.core.state import Model, Runner, Worker
from bellmare.core.units import SECOND_US, Bytes, InstantUs, SpanUs

SPAWN_US = SECOND_US
"""A llama-server needs about a second before it reads weights."""
LOAD_BYTES_PER_S = 1_500_000_000
"""Weights from disk or page cache, before the first measurement."""
UNLOAD_US = SpanUs(SECOND_US)
"""Ollama's runners are gone and their memory back after 0.5 to 1.5 s (ollama.md 3.4)."""
SERVICE_US = SpanUs(3 * SECOND_US)
PREFILL_TOKENS_PER_S = 500
OUTPUT_WEIGHT = 8
"""A moving average takes in an eighth of each new value."""


def average(old: int, new: int) -> int:
    """Moving average in integers; the first value stands for itself."""
    return new if old == 0 else old + (new - old) // OUTPUT_WEIGHT


def slots_of(worker: Worker, model: Model) -> int:
    """Concurrent generations of one runner (OLLAMA_NUM_PARALLEL, forced to one for some families: ollama.md 3.2)."""
    limit = model.stored.parallel_max
    return max(1, min(worker.parallel, limit) if limit else worker.parallel)


def canonical_num_ctx(fleet: Fleet, model: Model) -> int:
    """The one context per slot of this model (``Fleet.context_of``)."""
    return fleet.context_of(model)


def shape_key(worker: Worker, num_ctx: int, slots: int) -> str:
    """What a measurement of runner bytes is valid for."""
    return f"{worker.kind}/{num_ctx}x{slots}"


def estimate_bytes(model: Model, num_ctx: int, slots: int) -> int:
    """Weights, KV cache, state and compute buffers by the formula; without the process's own overhead."""
    stored = model.stored
    if not stored.kv_bytes_per_token and not stored.recurrent_bytes_per_slot:
        return stored.weights_bytes * UNKNOWN_SHAPE_FACTOR_PERCENT // 100 + UNKNOWN_SHAPE_BYTES
    cache = stored.kv_bytes_per_token * num_ctx * slots + stored.recurrent_bytes_per_slot * slots
    return stored.weights_bytes + cache + stored.compute_bytes + 2 * DEFAULT_BATCH * num_ctx


def need_bytes(worker: Worker, model: Model, num_ctx: int) -> Bytes:
    """What a runner of ``model`` with ``num_ctx`` per slot will take on ``worker``: measured if known."""
    slots = slots_of(worker, model)
    measured = model.measured_bytes.get(shape_key(worker, num_ctx, slots)) if model.measured_bytes else None
    if measured is not None:
        return Bytes(measured + worker.unshown_bytes)
    return Bytes(estimate_bytes(model, num_ctx, slots) + worker.overhead_bytes)


def predicted_bytes(worker: Worker, model: Model, num_ctx: int) -> int:
    """What Ollama will predict for the load, whatever it then takes: file plus KV (ollama.md 4.4)."""
    stored = model.stored
    per_token = stored.predicted_kv_bytes_per_token or stored.kv_bytes_per_token
    return stored.weights_bytes + per_token * num_ctx * slots_of(worker, model)


def learn_bytes(worker: Worker, model: Model, runner: Runner, *, measured: Bytes) -> Bytes:
    """Remember a measurement (zero: the worker cannot say) and return what the ledger shall book."""
    if measured <= 0:
        return runner.bytes
    key = shape_key(worker, runner.num_ctx, runner.slots)
    if model.measured_bytes.get(key) != measured:
        model.measured_bytes[key] = measured
        model.least_bytes = min(model.least_bytes, measured)
    return Bytes(measured + worker.unshown_bytes)


def book_bytes(worker: Worker, model: Model, runner: Runner, *, measured: Bytes) -> Bytes:
    """What the ledger shall book for a runner seen again. Growth is drift: it says nothing about the next load."""
    known = shape_key(worker, runner.num_ctx, runner.slots) in model.measured_bytes
    if known and measured > 0:
        return Bytes(measured + worker.unshown_bytes)
    return learn_bytes(worker, model, runner, measured=measured)


def learn_least(fleet: Fleet, model: Model) -> None:
    """Set the floor of the bytes that a runner of ``model`` is booked for, after its description or shape changed."""
    estimate = estimate_bytes(model, canonical_num_ctx(fleet, model), 1)
    model.least_bytes = Bytes(min([estimate, *model.measured_bytes.values()]))


def lower_least(fleet: Fleet, model: Model) -> None:
    """As ``learn_least``, but never upwards: a floor that is too low costs time only."""
    floor = model.least_bytes
    learn_least(fleet, model)
    model.least_bytes = min(floor, model.least_bytes)


def load_estimate_us(worker: Worker, model: Model) -> SpanUs:
    """Time from the load call to a ready runner."""
    if model.load_us:
        return model.load_us
    rate = worker.load_bytes_per_s or LOAD_BYTES_PER_S
    return SpanUs(SPAWN_US + model.stored.weights_bytes * SECOND_US // rate)


def learn_load(worker: Worker, model: Model, took_us: int) -> None:
    model.load_us = SpanUs(average(model.load_us, max(1, took_us)))
    if not model.stored.weights_bytes:
        return
    reading_us = max(took_us - SPAWN_US, took_us // 2, 1)
    worker.load_bytes_per_s = max(
        1, average(worker.load_bytes_per_s, model.stored.weights_bytes * SECOND_US // reading_us)
    )


def learn_unload(worker: Worker, took_us: int) -> None:
    worker.unload_us = SpanUs(average(worker.unload_us, max(1, took_us)))


def unload_estimate_us(worker: Worker) -> SpanUs:
    """Time from the unload call until the memory is back."""
    return worker.unload_us or UNLOAD_US


def service_estimate_us(fleet: Fleet, model: Model) -> SpanUs:
    return model.service_us or fleet.state.service_us or SERVICE_US


def note_service(fleet: Fleet, model: Model, took_us: int) -> None:
    """A request of the model held a slot for so long, from its dispatch to the end of a whole answer."""
    took_us = max(1, took_us)
    model.service_us = SpanUs(average(model.service_us, took_us))
    fleet.state.service_us = SpanUs(average(fleet.state.service_us, took_us))


def prefill_left_us(worker: Worker, *, prompt_tokens: int, spent_us: int) -> int:
    """How much longer an aborted prefill keeps its slot busy."""
    rate = worker.prefill_tokens_per_s or PREFILL_TOKENS_PER_S
    return max(0, prompt_tokens * SECOND_US // rate - spent_us)


def predicted_wait_us(fleet: Fleet, model: Model, *, ahead: int | None = None) -> SpanUs:
    """How long a request would wait that so many go before: its turn over the slots, and the load if nothing is ready.

    Without ``ahead`` it is the whole queue's length in time.
    """
    slots = fleet.ready_slots[model.model]
    if ahead is None:
        ahead = model.waiting
    if slots:
        return SpanUs(ahead * service_estimate_us(fleet, model) // slots)
    loading_us = 0
    if fleet.loading[model.model]:
        for _, runner in fleet.copies(model):
            if runner.residency is Residency.loading:
                slots += runner.slots
                loading_us = max(loading_us, _left_us(runner, fleet.now_us))
    turn_us = ahead * service_estimate_us(fleet, model) // max(1, slots)
    if not slots:
        loading_us = model.load_us or SPAWN_US + model.stored.weights_bytes * SECOND_US // LOAD_BYTES_PER_S
        if model.blocked_us and model.want == "blocked":
            loading_us += fleet.config.drain_after_us
    return SpanUs(turn_us + loading_us)


def _left_us(runner: Runner, now_us: InstantUs) -> int:
    return max(0, runner.since_us + runner.load_us - now_us)
