"""Whose turn it is among those that wait for one model: priorities with a floor, tenants by weight, near deadlines.

Each priority is a lane of its own. Inside a lane tenants share slot time by virtual counters (start-time fair queueing,
VTC): the one that has had least for its weight is next, and its requests go in order of arrival. An index over the
model's plain data: a turn costs the logarithm of the tenants, whatever waits. Must never ask where a slot is free.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping

from bellmare.core.events import Priority
from bellmare.core.state import Account, Lane, Model, Request
from bellmare.core.units import InstantUs, SpanUs

LANES = (Priority.high, Priority.normal, Priority.low)
LANE_TURN_EVERY = 8
"""A lane that waits gets one turn of so many at least, whatever goes before it: low priority is slow, never starved."""
RESCUE_LOOK_MAX = 4
"""Requests looked at, the nearest deadline first, for one that would be lost by waiting."""
RESCUE_BORROWED_MAX = 4
"""Turns of its own future that a tenant may have borrowed to save its deadlines: a hurry must not become a share."""
IDLE_TENANTS_MAX = 256
"""Tenants of one lane, without any request there, whose debt is remembered; the one idle longest is forgotten."""
SHARE_UNIT = 100
"""Virtual time of one microsecond at weight 1: whole numbers up to the largest weight."""


class Flow:
    """The requests of one tenant that wait in one lane, by arrival."""

    __slots__ = ("account", "key", "tenant", "waiting", "weight")

    def __init__(self, tenant: str, account: Account, weight: int) -> None:
        self.tenant = tenant
        self.account = account
        self.weight = weight
        self.waiting: list[tuple[int, Request]] = []
        self.key = (-1, -1)
        """Where the lane's order has it: (virtual time served, sequence number of its first)."""


class LaneTurns:
    """One lane: who waits in it, in the order of turns and in the order of deadlines."""

    __slots__ = ("due", "flows", "lane", "order", "waiting", "weights")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.flows: dict[str, Flow] = {}
        self.order: list[tuple[int, int, Flow]] = []
        self.due: list[tuple[InstantUs, int, Request]] = []
        self.waiting = 0
        self.weights = 0
        """Sum over the tenants that wait."""

    def file(self, request: Request, weight: int) -> None:
        flow = self.flows.get(request.tenant)
        if flow is None:
            flow = self.flows[request.tenant] = Flow(request.tenant, self.lane.accounts[request.tenant], weight)
            self.weights += weight
        insort(flow.waiting, (request.seq, request))
        insort(self.due, (request.deadline_us, request.seq, request))
        self.waiting += 1
        self.refile(flow)

    def remove(self, request: Request) -> None:
        flow = self.flows[request.tenant]
        del flow.waiting[bisect_left(flow.waiting, (request.seq,))]
        del self.due[bisect_left(self.due, (request.deadline_us, request.seq))]
        self.waiting -= 1
        self.refile(flow)
        if not flow.waiting:
            del self.flows[request.tenant]
            self.weights -= flow.weight
        if not self.waiting:
            self.lane.passed = 0

    def refile(self, flow: Flow) -> None:
        """Put it where what it was served and its first request belong in the order; nowhere without one."""
        key = (flow.account.served, flow.waiting[0][0]) if flow.waiting else (-1, -1)
        if key == flow.key:
            return
        if flow.key[0] >= 0:
            del self.order[bisect_left(self.order, flow.key)]
        if key[0] >= 0:
            insort(self.order, (*key, flow))
        flow.key = key

    def first(self, now_us: int, gap_us: int, ahead: int) -> Request:
        """Who is next. ``gap_us``: who has no longer left is lost if passed over; ``ahead``: what may be borrowed."""
        if self.due[0][0] <= now_us + gap_us:
            for deadline_us, _, request in self.due[:RESCUE_LOOK_MAX]:
                if deadline_us > now_us + gap_us:
                    break
                flow = self.flows[request.tenant]
                if flow.account.served <= self.lane.virtual + ahead // flow.weight:
                    return request
        return self.order[0][2].waiting[0][1]


class Turns:
    """All lanes of one model. The accounts are the model's own data; the rest is derived from who waits."""

    __slots__ = ("_lanes", "_model", "_weights")

    def __init__(self, model: Model, weights: Mapping[str, int]) -> None:
        self._model = model
        self._weights = weights
        self._lanes: dict[Priority, LaneTurns] = {}
        for priority in LANES:
            if priority in model.lanes:
                self._lanes[priority] = LaneTurns(model.lanes[priority])

    # ------------------------------------------------------------------ the life of a request

    def began(self, request: Request) -> None:
        """A request came in, to wait or to run. Its tenant gets no credit for the time that it was idle."""
        lane = self._lane(request.priority).lane
        account = lane.accounts.get(request.tenant)
        if account is None:
            served = max(lane.virtual, lane.idle.pop(request.tenant, 0))
            account = lane.accounts[request.tenant] = Account(served=served)
        account.live += 1

    def joined(self, request: Request) -> None:
        """It waits from now on."""
        turns = self._lanes[request.priority]
        if request.tenant not in turns.flows:
            account = turns.lane.accounts[request.tenant]
            account.served = max(account.served, turns.lane.virtual)
        self.file(request)

    def file(self, request: Request) -> None:
        """Only the index: after a restart, the accounts are as they were."""
        self._lanes[request.priority].file(request, self._weight(request.tenant))

    def left(self, request: Request) -> None:
        """It waits no longer."""
        self._lanes[request.priority].remove(request)

    def passed(self, request: Request) -> None:
        """It got a slot that others waited for as well: lanes below it come nearer to their turn."""
        rank = LANES.index(request.priority)
        for priority, turns in self._lanes.items():
            if priority is request.priority:
                turns.lane.passed = 0
            elif turns.waiting and LANES.index(priority) > rank:
                turns.lane.passed += 1

    def charge(self, request: Request, span_us: int) -> None:
        """It runs: its tenant pays for ``span_us`` of a slot, to be corrected at the end."""
        turns = self._lanes[request.priority]
        lane, account = turns.lane, turns.lane.accounts[request.tenant]
        if request.tenant not in turns.flows:
            account.served = max(account.served, lane.virtual)
        lane.virtual = max(lane.virtual, account.served)
        request.charged_us = SpanUs(span_us)
        self._add(request, span_us)

    def settle(self, request: Request, spent_us: int) -> None:
        """It runs no more: what was charged becomes what it took. Once only, however often it is called."""
        if request.charged_us < 0:
            return
        more_us = spent_us - request.charged_us
        request.charged_us = SpanUs(-1)
        self._add(request, more_us)

    def add_debt(self, request: Request, span_us: int) -> None:
        """An aborted prefill goes on in its slot, although the request is over."""
        lane = self._lanes[request.priority].lane
        if request.tenant in lane.accounts:
            self._add(request, span_us)
        elif lane.accounts:
            served = max(lane.virtual, lane.idle.pop(request.tenant, 0))
            self._remember(lane, request.tenant, served + self._share(request.tenant, span_us))

    def ended(self, request: Request) -> None:
        """The request is over; it neither waits nor runs."""
        lane = self._lanes[request.priority].lane
        account = lane.accounts[request.tenant]
        account.live -= 1
        if account.live:
            return
        del lane.accounts[request.tenant]
        if not lane.accounts:
            lane.idle.clear()  # everybody has had what he asked for: nobody owes anything
        elif account.served > lane.virtual:
            self._remember(lane, request.tenant, account.served)

    @staticmethod
    def _remember(lane: Lane, tenant: str, served: int) -> None:
        lane.idle[tenant] = served
        if len(lane.idle) > IDLE_TENANTS_MAX:
            del lane.idle[next(iter(lane.idle))]

    def _add(self, request: Request, span_us: int) -> None:
        turns = self._lanes[request.priority]
        account = turns.lane.accounts[request.tenant]
        account.served = max(0, account.served + self._share(request.tenant, span_us))
        flow = turns.flows.get(request.tenant)
        if flow is not None:
            turns.refile(flow)

    # ------------------------------------------------------------------ whose turn

    def first(self, now_us: int, *, gap_us: int, service_us: int) -> Request | None:
        """Who is next; None if nobody waits. ``gap_us`` is about the time to the turn after this one."""
        for turns in self._in_order():
            return turns.first(now_us, gap_us, self._share("", RESCUE_BORROWED_MAX * service_us))
        return None

    def in_turn(self) -> Iterator[Request]:
        """All that wait, about in the order of their turns; not valid any more once somebody has left."""
        for turns in self._in_order():
            for _, _, flow in turns.order:
                for _, request in flow.waiting:
                    yield request

    def nearest_deadlines(self) -> Iterator[list[tuple[InstantUs, int, Request]]]:
        """For each lane who waits in it, the nearest deadline first."""
        for priority in LANES:
            if priority in self._lanes:
                yield self._lanes[priority].due

    def _in_order(self) -> list[LaneTurns]:
        """Lanes in which somebody waits, the next one first: by priority, but for one that was passed too often."""
        lanes = [self._lanes[priority] for priority in LANES if priority in self._lanes]
        lanes = [turns for turns in lanes if turns.waiting]
        for turns in reversed(lanes[1:]):
            if turns.lane.passed >= LANE_TURN_EVERY - 1:
                lanes.remove(turns)
                lanes.insert(0, turns)
                break
        return lanes

    # ------------------------------------------------------------------ how long it takes

    def ahead(self, tenant: str, priority: Priority, *, seq: int | None = None) -> int:
        """About how many that wait now go before a request: the one of that number, or one that came now.

        Counts whole turns at equal cost; who comes later and goes first is not foreseen.
        """
        waiting = sum(turns.waiting for turns in self._lanes.values())
        turns = self._lanes.get(priority)
        flow = turns.flows.get(tenant) if turns is not None else None
        own = len(flow.waiting) if flow is not None else 0
        before = own
        if seq is not None and flow is not None:
            before = bisect_left(flow.waiting, (seq,))
            waiting -= 1  # itself
        same = before
        if turns is not None:
            weight = self._weight(tenant)
            others = turns.weights - (weight if flow is not None else 0)
            same += min(turns.waiting - own, (before + 1) * others // weight)
        rank = LANES.index(priority)
        above = sum(t.waiting for p, t in self._lanes.items() if LANES.index(p) < rank)
        below = sum(t.waiting for p, t in self._lanes.items() if LANES.index(p) > rank)
        above = min(above, (same + 1) * (LANE_TURN_EVERY - 1))
        below = min(below, (same + above) // (LANE_TURN_EVERY - 1))
        return min(waiting, same + above + below)

    # ------------------------------------------------------------------ small things

    def _lane(self, priority: Priority) -> LaneTurns:
        turns = self._lanes.get(priority)
        if turns is None:
            lane = self._model.lanes[priority] = Lane()
            turns = self._lanes[priority] = LaneTurns(lane)
        return turns

    def _weight(self, tenant: str) -> int:
        return self._weights.get(tenant, 1)

    def _share(self, tenant: str, span_us: int) -> int:
        return span_us * SHARE_UNIT // self._weight(tenant)

    # ------------------------------------------------------------------ for ``check``

    def problems(self, requests: list[Request]) -> Iterator[str]:
        """What is filed wrongly, given all live requests of the model in any phase."""
        live: dict[tuple[Priority, str], int] = {}
        for request in requests:
            key = (request.priority, request.tenant)
            live[key] = live.get(key, 0) + 1
        kept = {(p, t): a.live for p, lane in self._model.lanes.items() for t, a in lane.accounts.items()}
        if kept != live:
            yield f"accounts are kept for {len(kept)} tenants, {len(live)} have requests"
        filed = sorted(request.seq for turns in self._lanes.values() for _, _, request in turns.due)
        in_turn = sorted(request.seq for request in self.in_turn())
        if filed != in_turn:
            yield f"{len(filed)} wait by deadline, {len(in_turn)} by turn"
        for turns in self._lanes.values():
            order = [(flow.account.served, flow.waiting[0][0]) for _, _, flow in turns.order]
            if order != sorted(order) or len(order) != len(turns.flows):
                yield f"turns are out of order: {order[:3]}"
            if len(turns.lane.idle) > IDLE_TENANTS_MAX:
                yield f"{len(turns.lane.idle)} idle tenants are remembered"
