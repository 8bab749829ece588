"""Whose turn it is among those that wait for one model: priorities with a floor, tenants by weight, near deadlines.

Each priority is a lane of its own. Inside a lane tenants share slot time by virtual counters (start-time fair queueing,
VTC): the one that has had least for its weight is next, and its requests go in order of arrival. An index over the
model's plain data: a turn costs the logarithm of the tenants, whatever waits. Must never ask where a slot is free.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping

from bellmare.core.events import Priority
from bellmare.core.state import Account, Lane, Model, Request, RequestPhase
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
    """The requests of one tenant in one lane, while there are any: those that wait, by arrival."""

    __slots__ = ("account", "key", "tenant", "waiting", "weight")

    def __init__(self, tenant: str, account: Account, weight: int) -> None:
        self.tenant = tenant
        self.account = account
        self.weight = weight
        self.waiting: list[tuple[int, Request]] = []
        self.key = (-1, -1)
        """Where the lane's order has it: (virtual time served, sequence number of its first); nowhere if negative."""


class LaneTurns:
    """One lane: who waits in it, in the order of turns and in the order of deadlines."""

    __slots__ = ("due", "flows", "lane", "order", "waiting", "weights")

    def __init__(self, lane: Lane, weights: Mapping[str, int]) -> None:
        self.lane = lane
        self.flows = {tenant: Flow(tenant, a, weights.get(tenant, 1)) for tenant, a in lane.accounts.items()}
        self.order: list[tuple[int, int, Flow]] = []
        self.due: list[tuple[InstantUs, int, Request]] = []
        self.waiting = 0
        self.weights = 0
        """Sum over the tenants that wait."""

    def file(self, request: Request, flow: Flow) -> None:
        waiting = flow.waiting
        if waiting and waiting[-1][0] < request.seq:
            waiting.append((request.seq, request))
        else:  # its first, or one that comes back to its old place
            if not waiting:
                self.weights += flow.weight
            insort(waiting, (request.seq, request))
            self.refile(flow)
        insort(self.due, (request.deadline_us, request.seq, request))
        self.waiting += 1

    def remove(self, request: Request) -> None:
        flow = self.flows[request.tenant]
        del flow.waiting[bisect_left(flow.waiting, (request.seq,))]
        del self.due[bisect_left(self.due, (request.deadline_us, request.seq))]
        self.waiting -= 1
        self.refile(flow)
        if not flow.waiting:
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

    def add(self, flow: Flow, span_us: int) -> None:
        """Slot time more or less than was thought."""
        account = flow.account
        account.served = max(0, account.served + span_us * SHARE_UNIT // flow.weight)
        if flow.waiting:
            self.refile(flow)

    def remember(self, tenant: str, served: int) -> None:
        idle = self.lane.idle
        idle[tenant] = served
        if len(idle) > IDLE_TENANTS_MAX:
            del idle[next(iter(idle))]

    def before_newcomer(self, tenant: str, weight: int) -> int:
        """About how many of this lane go before a request of the tenant that came now: by weights alone."""
        flow = self.flows.get(tenant)
        if flow is None or not flow.waiting:
            return min(self.waiting, self.weights // weight)
        own = len(flow.waiting)
        return own + min(self.waiting - own, (own + 1) * (self.weights - weight) // weight)

    def before(self, request: Request, turn: int) -> int:
        """How many of this lane go before a waiting request if each costs ``turn``. Looks at each tenant that waits."""
        mine = self.flows[request.tenant]
        own = bisect_left(mine.waiting, (request.seq,))
        reached = mine.account.served + own * (turn // mine.weight)
        ahead = own
        for served, _, flow in self.order:
            if served > reached:
                break
            if flow is not mine:
                theirs, rest = divmod(reached - served, turn // flow.weight)
                theirs += rest > 0
                if theirs < len(flow.waiting):
                    tie = rest == 0 and flow.waiting[theirs][0] < request.seq
                    ahead += theirs + tie
                else:
                    ahead += len(flow.waiting)
        return ahead

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
        self._lanes = {
            priority: LaneTurns(model.lanes[priority], weights) for priority in LANES if priority in model.lanes
        }

    # ------------------------------------------------------------------ the life of a request

    def began(self, request: Request) -> None:
        """A request came in, to wait or to run. Its tenant gets no credit for the time that it was idle."""
        turns = self._lanes.get(request.priority)
        if turns is None:
            lane = self._model.lanes[request.priority] = Lane()
            turns = self._lanes[request.priority] = LaneTurns(lane, self._weights)
        tenant = request.tenant
        flow = turns.flows.get(tenant)
        if flow is None:
            lane = turns.lane
            account = lane.accounts[tenant] = Account(served=max(lane.virtual, lane.idle.pop(tenant, 0)))
            flow = turns.flows[tenant] = Flow(tenant, account, self._weights.get(tenant, 1))
        flow.account.live += 1

    def joined(self, request: Request) -> None:
        """It waits from now on."""
        turns = self._lanes[request.priority]
        flow = turns.flows[request.tenant]
        if not flow.waiting:
            flow.account.served = max(flow.account.served, turns.lane.virtual)
        turns.file(request, flow)

    def file(self, request: Request) -> None:
        """Only the index: after a restart, the accounts are as they were."""
        turns = self._lanes[request.priority]
        turns.file(request, turns.flows[request.tenant])

    def left(self, request: Request) -> None:
        """It waits no longer, but runs."""
        self._lanes[request.priority].remove(request)

    def passed(self, request: Request) -> None:
        """It got a slot that others waited for as well: lanes below it come nearer to their turn."""
        if len(self._lanes) == 1:
            return
        rank = LANES.index(request.priority)
        for priority, turns in self._lanes.items():
            if priority is request.priority:
                turns.lane.passed = 0
            elif turns.waiting and LANES.index(priority) > rank:
                turns.lane.passed += 1

    def charge(self, request: Request, span_us: int) -> None:
        """It runs: its tenant pays for ``span_us`` of a slot, to be corrected at the end."""
        turns = self._lanes[request.priority]
        lane, flow = turns.lane, turns.flows[request.tenant]
        account = flow.account
        if account.served > lane.virtual:
            lane.virtual = account.served
        elif not flow.waiting:
            account.served = lane.virtual
        request.charged_us = SpanUs(span_us)
        turns.add(flow, span_us)

    def settle(self, request: Request, spent_us: int) -> None:
        """It runs no more: what was charged becomes what it took. Once only, however often it is called."""
        if request.charged_us >= 0:
            turns = self._lanes[request.priority]
            turns.add(turns.flows[request.tenant], spent_us - request.charged_us)
            request.charged_us = SpanUs(-1)

    def add_debt(self, request: Request, span_us: int) -> None:
        """An aborted prefill goes on in its slot, although the request is over."""
        turns = self._lanes[request.priority]
        lane, tenant = turns.lane, request.tenant
        flow = turns.flows.get(tenant)
        if flow is not None:
            turns.add(flow, span_us)
        elif turns.flows:
            served = max(lane.virtual, lane.idle.pop(tenant, 0))
            turns.remember(tenant, served + span_us * SHARE_UNIT // self._weights.get(tenant, 1))

    def ended(self, request: Request) -> None:
        """The request is over, whether it ran or waited."""
        turns = self._lanes[request.priority]
        if request.phase is RequestPhase.waiting:
            turns.remove(request)
        lane, tenant = turns.lane, request.tenant
        account = lane.accounts[tenant]
        account.live -= 1
        if account.live:
            return
        del turns.flows[tenant], lane.accounts[tenant]
        if not lane.accounts:
            lane.idle.clear()  # everybody has had what he asked for: nobody owes anything
        elif account.served > lane.virtual:
            turns.remember(tenant, account.served)

    # ------------------------------------------------------------------ whose turn

    def first(self, now_us: int, *, gap_us: int, service_us: int) -> Request | None:
        """Who is next; None if nobody waits. ``gap_us`` is about the time to the turn after this one."""
        lanes = self._lanes.values() if len(self._lanes) == 1 else self._in_order()
        for turns in lanes:
            if not turns.waiting:
                break
            return turns.first(now_us, gap_us, RESCUE_BORROWED_MAX * service_us * SHARE_UNIT)
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

    def before_newcomer(self, tenant: str, priority: Priority) -> int:
        """About how many that wait now go before a request that came now.

        Counts whole turns at equal cost; who comes later and goes first is not foreseen.
        """
        turns = self._lanes.get(priority)
        same = turns.before_newcomer(tenant, self._weights.get(tenant, 1)) if turns is not None else 0
        return self._with_other_lanes(same, priority)

    def before(self, request: Request, *, service_us: int) -> int:
        """About how many that wait now go before one that waits; each holds a slot for ``service_us``."""
        same = self._lanes[request.priority].before(request, max(1, service_us) * SHARE_UNIT)
        return self._with_other_lanes(same, request.priority)

    def _with_other_lanes(self, same: int, priority: Priority) -> int:
        if len(self._lanes) <= 1 and priority in self._lanes:
            return same
        rank = LANES.index(priority)
        above = sum(t.waiting for p, t in self._lanes.items() if LANES.index(p) < rank)
        below = sum(t.waiting for p, t in self._lanes.items() if LANES.index(p) > rank)
        above = min(above, (same + 1) * (LANE_TURN_EVERY - 1))
        return same + above + min(below, (same + above) // (LANE_TURN_EVERY - 1))

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
            if order != sorted(order) or len(order) != sum(1 for flow in turns.flows.values() if flow.waiting):
                yield f"turns are out of order: {order[:3]}"
            if len(turns.lane.idle) > IDLE_TENANTS_MAX:
                yield f"{len(turns.lane.idle)} idle tenants are remembered"
