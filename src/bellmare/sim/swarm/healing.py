"""The good end (I16, I17): faults stop, and all that waits must come to rest, be served again, and match the truth."""

from bellmare.core.units import InstantUs
from bellmare.sim.swarm.books import GIB, SECOND
from bellmare.sim.swarm.holdings import CLASS, weights
from bellmare.sim.swarm.world import Ask, World

DRAIN_S = 400
"""All that waits has ended by then: the longest deadline, and the end of the longest operation."""
REST_S = 90
"""Back-off and patience after the faults."""
SERVED_S = 330
SETTLE_US = 1_200 * SECOND
"""Without arrivals, loads and unloads must have ceased by then (a forecast may believe in one more for a while)."""
QUIET_US = 600 * SECOND
ACTIONS_PER_MODEL_MAX = 4
"""Loads and unloads per model while it settles: each may come and go twice."""
LOOK_US = 20 * SECOND
OVERLOAD = 40
"""Requests at once, far beyond the queues; then few."""
RECOVERED_WAIT_US = 10 * SECOND


def heal(world: World) -> None:
    """Faults stop. All that waits ends within bounds, models are served again, and the books meet the truth."""
    for worker in world.workers.values():
        worker.alive = True
        worker.foreign = 0
        for runner in worker.runners.values():
            runner.bytes = min(runner.bytes, 2 * GIB)
        reached = {entry.model for entry in worker.names.values()}
        worker.runners = {blob: runner for blob, runner in worker.runners.items() if blob in reached}
    world.sights = []
    world.errands = []
    world.broken = ()
    world.stand_by(False)
    must = world.oracle.must
    run_calmly(world, DRAIN_S, until_quiet=True)
    must(not world.oracle.requests, "all requests end", list(world.oracle.requests))
    must(not world.operations and not world.oracle.operations, "all operations end", world.operations)
    serves_again(world)
    recovers(world)
    comes_to_rest(world)
    meets_truth(world)
    world.oracle.meet("healed")


def run_calmly(world: World, seconds: int, *, until_quiet: bool = False) -> None:
    """Everything works: loads end within a second, answers too, every worker is seen every two seconds."""
    for second in range(seconds):
        while world.dead_requests:
            world.report_dead(0)
        while world.operations:
            world.end_operation(0)
        for _ in range(len(world.oracle.requests)):
            if world.pick_request(0, ("running",)) is None:
                break
            world.finish(0)
        world.pass_time(SECOND)
        if second % 2 == 0:
            for name in list(world.workers):
                world.observe_now(name)
        quiet = not world.operations and not world.oracle.operations and not world.oracle.requests
        if until_quiet and quiet:
            return


def serves_again(world: World) -> None:
    """A request for each name that a worker could hold by itself is served."""
    run_calmly(world, REST_S)
    for name in world.all_names():
        if not could_serve(world, name):
            continue
        request = world.arrive(Ask(name, wait_us=400 * SECOND, tokens=10))
        run_calmly(world, SERVED_S, until_quiet=True)
        how = world.phase(request)
        world.oracle.must(how == "completed", "who can be served is served", name, how)


def could_serve(world: World, name: str) -> bool:
    oracle = world.oracle
    blob = oracle.resolve(name)
    if blob is None:
        return False
    for worker in world.workers.values():
        entry = worker.names.get(name.partition(CLASS)[0])
        if entry is None or entry.model != weights(blob) or not worker.spec.capacity_known:
            continue
        if any(oracle.pinned(held) for held in worker.runners if held != blob):
            continue
        if blob in oracle.workers[worker.spec.worker].runners:
            return True
        need = max(oracle.need(oracle.workers[worker.spec.worker], blob, oracle.canonical(blob)), 0)
        need = max(need, oracle.largest.get(blob, 0) + worker.spec.overhead_bytes)
        if need <= worker.spec.capacity_bytes - worker.spec.headroom_bytes:
            return True
    return False


def recovers(world: World) -> None:
    """After far more requests than the queues take, few requests wait little again."""
    names = [name for name in world.names if could_serve(world, name)]
    if not names:
        return
    for number in range(OVERLOAD):
        world.arrive(Ask(names[number % len(names)], wait_us=60 * SECOND, tokens=10))
    run_calmly(world, DRAIN_S, until_quiet=True)
    name = names[0]
    run_calmly(world, 12)
    first = world.arrive(Ask(name, wait_us=60 * SECOND, tokens=10))
    run_calmly(world, SERVED_S, until_quiet=True)
    began = world.now
    last = world.arrive(Ask(name, wait_us=60 * SECOND, tokens=10))
    run_calmly(world, SERVED_S, until_quiet=True)
    for request in (first, last):
        world.oracle.must(world.phase(request) == "completed", "overload passes", request)
    waited = InstantUs(world.now - began)
    world.oracle.must(waited <= RECOVERED_WAIT_US, "after overload nobody waits long", waited)
    world.oracle.meet("overload passed")


def comes_to_rest(world: World) -> None:
    """Without arrivals, control actions cease: what is resident stays, and nothing goes back and forth."""
    oracle = world.oracle
    before = world.actions
    _watch(world, SETTLE_US)
    most = ACTIONS_PER_MODEL_MAX * len(world.names)
    oracle.must(world.actions - before <= most, "few loads and unloads without arrivals", world.actions - before)
    before = world.actions
    _watch(world, QUIET_US)
    oracle.must(world.actions == before, "no loads and unloads without arrivals", world.actions - before)


def _watch(world: World, span_us: int) -> None:
    until = world.now + span_us
    while world.now < until:
        while world.operations:
            world.end_operation(0)
        for name in list(world.workers):
            world.observe_now(name)
        world.pass_time(LOOK_US)


def meets_truth(world: World) -> None:
    """Belief is the truth, all are in routing, and what is pinned is there where it fits."""
    run_calmly(world, 5)
    must, state = world.oracle.must, world.engine.fleet.state
    for name, worker in world.workers.items():
        believed = {weights(blob): runner.num_ctx for blob, runner in state.workers[name].runners.items()}
        truth = {blob: runner.num_ctx for blob, runner in worker.runners.items()}
        must(believed == truth, "belief meets truth", name, believed, truth)
        booked = {weights(blob): runner.num_ctx for blob, runner in world.oracle.workers[name].runners.items()}
        must(booked == truth, "the ledger meets the truth", name)
        going = [blob for blob, runner in world.oracle.workers[name].runners.items() if runner.state != "ready"]
        must(not going, "nobody is left half gone", name, going)
        must(state.workers[name].healthy, "all are back in routing", name)
        must(not state.workers[name].placement, "no room is being made for nobody", name)
    for pinned, said in world.oracle.config.models.items():
        if said.pinned and pinned in world.names and could_serve(world, pinned):
            blob = world.oracle.resolve(pinned)
            there = any(blob in holder.runners for holder in world.oracle.workers.values())
            must(there, "what is pinned is resident", pinned)
