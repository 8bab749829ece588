"""The good end: faults stop, and all that waits must come to rest, be served again, and match the truth."""

from __future__ import annotations

from core_books import SECOND, must
from core_world import GIB, NAMES, World


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
    run_calmly(world, 300, until_quiet=True)
    open_now = [key for key, request in world.oracle.requests.items() if request.phase != "ended"]
    must(not open_now, "all requests end", open_now)
    must(not world.operations and not world.oracle.operations, "all operations end", world.operations)
    serves_again(world)
    meets_truth(world)


def run_calmly(world: World, seconds: int, *, until_quiet: bool = False) -> None:
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
        quiet = not world.operations and not world.oracle.operations
        open_now = any(request.phase != "ended" for request in world.oracle.requests.values())
        if until_quiet and quiet and not open_now:
            return


def serves_again(world: World) -> None:
    """A request for each name that a worker could hold by itself is served."""
    run_calmly(world, 70)  # back-off and patience after the faults
    for number, name in enumerate(NAMES):
        if not could_serve(world, name):
            continue
        world.arrive(number, 400, 0, 10)
        request = f"r{world.next_request - 1}"
        run_calmly(world, 330, until_quiet=True)
        book = world.oracle.requests[request]
        must(book.attempts == 1 and book.phase == "ended", "who can be served is served", name, book)


def could_serve(world: World, name: str) -> bool:
    blob = world.oracle.resolve(name)
    pinned = {world.oracle.resolve(n) for n, said in world.config.models.items() if said.pinned}
    for worker in world.workers.values():
        entry = worker.names.get(name)
        if entry is None or entry.model != blob or not worker.spec.capacity_known:
            continue
        if any(held in pinned for held in worker.runners if held != blob):
            continue
        if blob in worker.runners:
            return True
        capacity = worker.spec.capacity_bytes - worker.spec.headroom_bytes
        need = max(entry.weights_bytes * 2 + GIB, world.oracle.measured.get(entry.model, 0))
        if need + worker.spec.overhead_bytes <= capacity:
            return True
    return False


def meets_truth(world: World) -> None:
    run_calmly(world, 5, until_quiet=False)
    for name, worker in world.workers.items():
        believed = set(world.engine.fleet.state.workers[name].runners)
        must(believed == set(worker.runners), "belief meets truth", name, believed, set(worker.runners))
        must(world.engine.fleet.state.workers[name].healthy, "all are back in routing", name)
