"""The engine against a fake world and an oracle with its own books, driven by Hypothesis: safety after every step, then
faults stop and everything must come to a good end."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from bellmare.core.events import FaultKind, HintGiven, HintSource, Priority, RequestKind
from bellmare.sim.swarm.draws import PLAIN
from bellmare.sim.swarm.healing import heal
from bellmare.sim.swarm.world import Ask, World

EXAMPLES = int(os.environ.get("BELLMARE_EXAMPLES", "120"))
SECOND_US = 1_000_000
NAMES = tuple(PLAIN.sizes)
FAULTS = tuple(FaultKind)
PICK = st.integers(0, 7)
NAME = st.integers(0, len(NAMES) - 1)
FAULT = st.integers(0, len(FAULTS) - 1)
SHARED = (1 << len(NAMES)) - 1


class EngineMachine(RuleBasedStateMachine):
    """Each rule is something that the world does; ``World.step`` checks every answer."""

    world: World

    @initialize(specs=st.lists(st.tuples(PICK, st.integers(1, SHARED), st.booleans()), min_size=1, max_size=3))
    def fleet(self, specs: list[tuple[int, int, bool]]) -> None:
        self.world = World()
        for pick, names, known in specs:
            self.world.add_worker(pick, names | 3, known=known)
        for name in list(self.world.workers):
            self.world.observe_now(name)

    @rule(
        name=st.integers(0, len(NAMES)),
        wait_s=st.integers(0, 150),
        kind=st.sampled_from(RequestKind),
        tokens=st.integers(0, 20_000),
        tenant=st.sampled_from(("", "a", "b")),
        priority=st.sampled_from(Priority),
    )
    def arrives(self, name: int, wait_s: int, kind: RequestKind, tokens: int, tenant: str, priority: Priority) -> None:
        ask = Ask(self.world.name(name), wait_s * SECOND_US, kind, tokens, tenant, priority)
        self.world.arrive(ask)

    @rule(name=st.integers(0, len(NAMES)), source=st.sampled_from(HintSource), in_s=st.integers(0, 30))
    def hinted(self, name: int, source: HintSource, in_s: int) -> None:
        self.world.hint(HintGiven(source=source, name=self.world.name(name), tenant="a", in_us=in_s * SECOND_US))

    @rule(pick=PICK)
    def a_class_is_asked_for(self, pick: int) -> None:
        classes = [name for name in self.world.all_names() if "#" in name]
        if classes:
            self.world.arrive(Ask(classes[pick % len(classes)]))

    @rule(name=NAME, count=st.integers(2, 16))
    def many_arrive(self, name: int, count: int) -> None:
        for _ in range(count):
            self.world.arrive(Ask(NAMES[name]))

    @rule(pick=PICK)
    def first_token(self, pick: int) -> None:
        self.world.first_token(pick)

    @rule(pick=PICK)
    def finishes(self, pick: int) -> None:
        self.world.finish(pick)

    @rule(pick=PICK, fault=FAULT)
    def breaks_after_first_byte(self, pick: int, fault: int) -> None:
        self.world.finish(pick, fault)

    @rule(pick=PICK, fault=FAULT)
    def fails_before_first_byte(self, pick: int, fault: int) -> None:
        self.world.fail_dispatch(pick, fault)

    @rule(pick=PICK)
    def cancelled(self, pick: int) -> None:
        self.world.cancel(pick)

    @precondition(lambda self: self.world.operations)
    @rule(pick=PICK, short=st.booleans())
    def operation_done(self, pick: int, short: bool) -> None:
        self.world.end_operation(pick, short=short)

    @precondition(lambda self: self.world.operations)
    @rule(pick=PICK, fault=FAULT)
    def operation_fails(self, pick: int, fault: int) -> None:
        self.world.end_operation(pick, fault)

    @precondition(lambda self: self.world.operations)
    @rule(pick=PICK, happened=st.booleans())
    def end_is_lost(self, pick: int, happened: bool) -> None:
        self.world.end_operation(pick, -1 if happened else 0, lost=True)

    @rule(pick=PICK, timeout=st.booleans(), stored=st.booleans())
    def asked(self, pick: int, timeout: bool, stored: bool) -> None:
        self.world.look(pick, timeout=timeout, stored=stored)

    @precondition(lambda self: self.world.sights)
    @rule(pick=PICK)
    def answered(self, pick: int) -> None:
        self.world.arrive_sight(pick)

    @rule(pick=PICK)
    def polled(self, pick: int) -> None:
        self.world.look(pick)
        self.world.arrive_sight(len(self.world.sights) - 1)

    @rule(pick=PICK, empties=st.booleans())
    def dies(self, pick: int, empties: bool) -> None:
        self.world.kill(pick, empties=empties)

    @rule(pick=PICK)
    def comes_back(self, pick: int) -> None:
        self.world.revive(pick)

    @precondition(lambda self: self.world.dead_requests)
    @rule(pick=PICK)
    def death_is_noticed(self, pick: int) -> None:
        self.world.report_dead(pick)

    @rule(pick=PICK, names=st.integers(1, SHARED), known=st.booleans())
    def joins(self, pick: int, names: int, known: bool) -> None:
        self.world.add_worker(pick, names, known=known)

    @rule(pick=PICK)
    def leaves(self, pick: int) -> None:
        self.world.remove_worker(pick)

    @rule(name=NAME, pick=st.integers(-1, 5))
    def operator_loads(self, name: int, pick: int) -> None:
        self.world.ask_load(name, pick)

    @rule(name=NAME, pick=st.integers(-1, 5))
    def operator_unloads(self, name: int, pick: int) -> None:
        self.world.ask_unload(name, pick)

    @rule(name=NAME)
    def released(self, name: int) -> None:
        self.world.release(name)

    @rule(pick=PICK, name=NAME, version=PICK)
    def renamed(self, pick: int, name: int, version: int) -> None:
        self.world.rename(pick, name, version)

    @rule(pick=PICK, what=PICK, size=PICK)
    def meddled_with(self, pick: int, what: int, size: int) -> None:
        self.world.meddle(pick, what, size)

    @rule(us=st.integers(1, 30_000_000))
    def time_passes(self, us: int) -> None:
        self.world.pass_time(us)

    @rule(offset=st.sampled_from((-1, 0, 1)))
    def jumps_to_the_deadline(self, offset: int) -> None:
        self.world.jump(offset)

    @rule()
    def restored_beside(self) -> None:
        self.world.copy_engine()

    def teardown(self) -> None:
        if hasattr(self, "world"):
            heal(self.world)
            self.world.replay()


EngineMachine.TestCase.settings = settings(
    max_examples=EXAMPLES,
    stateful_step_count=50,
    deadline=None,
    derandomize="BELLMARE_EXAMPLES" not in os.environ,  # CI must not fail by luck; a longer run searches anew
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
TestEngine = EngineMachine.TestCase
