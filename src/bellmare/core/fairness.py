"""Whose turn it is among those that wait for one model: priorities with a floor, tenants by weight, near deadlines.

Each priority is a lane of its own. Inside a lane tenants share slot time by virtual counters (start-time fair queueing,
VTC): the one that has had least for its weight is next, and its requests go in order of arrival. An index over the
model's plain data: a turn costs the logarithm of the tenants, whatever waits. Must never ask where a slot is free.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping

from bellmare.core.events import Priority
from bellmare.core.state import Account, Lane, Model, Request, RequestPhase
from bellmare.core.units import SpanUs

LANES = (Priority.high, Priority.normal, Priority.low)
LANE_TURN_EVERY = 8
"""A lane that waits gets one turn of so many at least, whatever goes before it: low priority is slow, never starved."""
RESCUE_LOOK_MAX = 4
"""Tenants looked at, the nearest deadline first, for one whose next request would be lost by waiting."""
RESCUE_BORROWED_MAX = 4
"""Turns of its own future that a tenant may have borrowed to save its deadlines: a hurry must not become a share."""
IDLE_TENANTS_MAX = 256
"""Tenants of one lane, without any request there, whose debt is remembered; the one idle longest is forgotten."""
SHARE_UNIT = 100
"""Virtual time of one microsecond at weight 1: whole numbers up to the largest weight."""


NOWHERE = (-1, -1)
SETTLED = SpanUs(-1)


class Flow:
    """The requests of one tenant in one lane, while there are any: those that wait, by arrival."""

    __slots__ = ("account", "due", "key", "tenant", "waiting", "weight")

    def __init__(self, tenant: str, account: Account, weight: int) -> None:
        self.tenant = tenant
        self.account = account
        self.weight = weight
        self.waiting: list[tuple[int, Request]] = []
        self.key = NOWHERE
        """Where the lane's order has it: (virtual time served, sequence number of its first)."""
        self.due: tuple[int, int] = NOWHERE
        """Where the lane's deadlines have it: (deadline of its first, its sequence number)."""


class LaneTurns:
    """One lane: who waits in it, by whose turn it is and by the nearest deadline of a tenant's first request."""

    __slots__ = ("due", "flows", "lane", "order", "waiting", "weights")

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.flows: dict[str, Flow] = {}
        """By tenant, from its first request that waits until it has none any more."""
        self.order: list[tuple[int, int, Flow]] = []
        self.due: list[tuple[int, int, Flow]] = []
        self.waiting = 0
        self.weights = 0
        """Sum over the tenants that wait."""

    def file(self, entry: tuple[int, Request], flow: Flow) -> None:
        waiting = flow.waiting
        self.waiting += 1
        if waiting and waiting[-1][0] < entry[0]:
            waiting.append(entry)
            return
        if not waiting:
            self.weights += flow.weight
        insort(waiting, entry)  # its first, or one that comes back to its old place
        self.refile(flow)

    def remove(self, request: Request, flow: Flow) -> None:
        """Take it out; the flow is to be filed anew by the caller."""
        waiting = flow.waiting
        del waiting[0 if waiting[0][1] is request else bisect_left(waiting, (request.seq,))]
        self.waiting -= 1
        if not waiting:
            self.weights -= flow.weight
            if not self.waiting:
                self.lane.passed = 0

    def refile(self, flow: Flow) -> None:
        """Put it where what it was served and its first request belong in the order; nowhere without one."""
        old, order = flow.key, self.order
        if not flow.waiting:
            if old is not NOWHERE:
                del order[bisect_left(order, old)]
                del self.due[bisect_left(self.due, flow.due)]
                flow.key = flow.due = NOWHERE
            return
        served, (seq, first) = flow.account.served, flow.waiting[0]
        key = (served, seq)
        if key == old:
            return
        due = (first.deadline_us, seq)
        if old is NOWHERE:
            insort(order, (served, seq, flow))
            insort(self.due, (*due, flow))
        elif len(order) == 1:
            order[0] = (served, seq, flow)
            self.due[0] = (*due, flow)
        else:
            del order[bisect_left(order, old)]
            insort(order, (served, seq, flow))
            if due != flow.due:
                del self.due[bisect_left(self.due, flow.due)]
                insort(self.due, (*due, flow))
        flow.key, flow.due = key, due

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
        if own == self.waiting:
            return own
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
        if len(self.due) > 1 and self.due[0][0] <= now_us + gap_us:
            for deadline_us, _, flow in self.due[:RESCUE_LOOK_MAX]:
                if deadline_us > now_us + gap_us:
                    break
                if flow.account.served <= self.lane.virtual + ahead // flow.weight:
                    return flow.waiting[0][1]
        return self.order[0][2].waiting[0][1]


class Turns:
    """All lanes of one model. The accounts are the model's own data; the rest is derived from who waits."""

    __slots__ = ("_lanes", "_model", "_weights")

    def __init__(self, model: Model, weights: Mapping[str, int]) -> None:
        self._model = model
        self._weights = weights
        self._lanes = {priority: LaneTurns(model.lanes[priority]) for priority in LANES if priority in model.lanes}

    # ------------------------------------------------------------------ the life of a request

    def began(self, request: Request) -> None:
        """A request came in, to wait or to run. Its tenant gets no credit for the time that it was idle."""
        turns = self._lanes.get(request.priority)
        if turns is None:
            lane = self._model.lanes[request.priority] = Lane()
            turns = self._lanes[request.priority] = LaneTurns(lane)
        lane, tenant = turns.lane, request.tenant
        account = lane.accounts.get(tenant)
        if account is None:
            served = max(lane.virtual, lane.idle.pop(tenant, 0)) if lane.idle else lane.virtual
            lane.accounts[tenant] = Account(served=served, live=1)
        else:
            account.live += 1

    def joined(self, request: Request, entry: tuple[int, Request]) -> None:
        """It waits from now on. ``entry``: its sequence number and itself."""
        turns = self._lanes[request.priority]
        flow = turns.flows.get(request.tenant) or self._open(turns, request.tenant)
        if not flow.waiting:
            flow.account.served = max(flow.account.served, turns.lane.virtual)
        turns.file(entry, flow)

    def file(self, request: Request) -> None:
        """Only the index: after a restart, the accounts are as they were."""
        turns = self._lanes[request.priority]
        flow = turns.flows.get(request.tenant) or self._open(turns, request.tenant)
        turns.file((request.seq, request), flow)

    def _open(self, turns: LaneTurns, tenant: str) -> Flow:
        flow = turns.flows[tenant] = Flow(tenant, turns.lane.accounts[tenant], self._weights.get(tenant, 1))
        return flow

    def left(self, request: Request) -> None:
        """It waits no longer, but is about to be charged for. Lanes below its own come nearer to their turn."""
        turns = self._lanes[request.priority]
        turns.remove(request, turns.flows[request.tenant])
        if len(self._lanes) == 1:
            return
        rank = LANES.index(request.priority)
        for priority, turns in self._lanes.items():
            if priority is request.priority:
                turns.lane.passed = 0
            elif turns.waiting and LANES.index(priority) > rank:
                turns.lane.passed += 1

    def charge(self, request: Request, span_us: SpanUs) -> None:
        """It runs: its tenant pays for ``span_us`` of a slot, to be corrected at the end."""
        turns, tenant = self._lanes[request.priority], request.tenant
        lane = turns.lane
        account, flow = lane.accounts[tenant], turns.flows.get(tenant)
        if account.served > lane.virtual:
            lane.virtual = account.served
        elif flow is None or not flow.waiting:
            account.served = lane.virtual
        request.charged_us = span_us
        account.served += span_us * SHARE_UNIT // self._weights.get(tenant, 1)
        if flow is not None:
            turns.refile(flow)

    def settle(self, request: Request, spent_us: int) -> None:
        """It runs no more: what was charged becomes what it took. Once only, however often it is called."""
        if request.charged_us >= 0:
            self._add(self._lanes[request.priority], request.tenant, spent_us - request.charged_us)
            request.charged_us = SETTLED

    def _add(self, turns: LaneTurns, tenant: str, span_us: int) -> None:
        """Slot time more or less than was thought."""
        account, flow = turns.lane.accounts[tenant], turns.flows.get(tenant)
        account.served = max(0, account.served + span_us * SHARE_UNIT // self._weights.get(tenant, 1))
        if flow is not None and flow.waiting:
            turns.refile(flow)

    def add_debt(self, request: Request, span_us: int) -> None:
        """An aborted prefill goes on in its slot, although the request is over."""
        turns = self._lanes[request.priority]
        lane, tenant = turns.lane, request.tenant
        if tenant in lane.accounts:
            self._add(turns, tenant, span_us)
        elif lane.accounts:
            served = max(lane.virtual, lane.idle.pop(tenant, 0))
            turns.remember(tenant, served + span_us * SHARE_UNIT // self._weights.get(tenant, 1))

    def ended(self, request: Request, spent_us: int) -> None:
        """The request is over, whether it waited, or ran for ``spent_us``."""
        turns = self._lanes[request.priority]
        lane, tenant = turns.lane, request.tenant
        if request.phase is RequestPhase.waiting:
            flow = turns.flows[tenant]
            turns.remove(request, flow)
            turns.refile(flow)
        elif request.charged_us >= 0:
            self._add(turns, tenant, spent_us - request.charged_us)
            request.charged_us = SETTLED
        account = lane.accounts[tenant]
        account.live -= 1
        if account.live:
            return
        del lane.accounts[tenant]
        turns.flows.pop(tenant, None)
        if not lane.accounts:
            lane.idle.clear()  # everybody has had what he asked for: nobody owes anything
        elif account.served > lane.virtual:
            turns.remember(tenant, account.served)

    # ------------------------------------------------------------------ whose turn

    def alone(self) -> Request | None:
        """Who is next if one tenant's requests are all that wait: nobody needs to be compared."""
        if len(self._lanes) == 1:
            for turns in self._lanes.values():
                if len(turns.order) == 1:
                    return turns.order[0][2].waiting[0][1]
        return None

    def first(self, now_us: int, *, gap_us: int, service_us: int) -> Request | None:
        """Who is next; None if nobody waits. ``gap_us`` is about the time to the turn after this one."""
        for turns in self._in_order():
            return turns.first(now_us, gap_us, RESCUE_BORROWED_MAX * service_us * SHARE_UNIT)
        return None

    def in_turn(self) -> Iterator[Request]:
        """All that wait, about in the order of their turns; not valid any more once somebody has left."""
        for turns in self._in_order():
            for _, _, flow in turns.order:
                for _, request in flow.waiting:
                    yield request

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
        if turns is None:
            return self._with_other_lanes(0, priority)
        same = turns.before_newcomer(tenant, self._weights.get(tenant, 1))
        return same if len(self._lanes) == 1 else self._with_other_lanes(same, priority)

    def before(self, request: Request, *, service_us: int) -> int:
        """About how many that wait now go before one that waits; each holds a slot for ``service_us``."""
        same = self._lanes[request.priority].before(request, max(1, service_us) * SHARE_UNIT)
        return self._with_other_lanes(same, request.priority)

    def _with_other_lanes(self, same: int, priority: Priority) -> int:
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
        waiting = sum(1 for request in requests if request.phase is RequestPhase.waiting)
        if waiting != sum(turns.waiting for turns in self._lanes.values()) or waiting != len(list(self.in_turn())):
            yield f"{waiting} wait, and not all of them have their turn"
        for turns in self._lanes.values():
            order = [(flow.account.served, flow.waiting[0][0]) for _, _, flow in turns.order]
            due = [(flow.waiting[0][1].deadline_us, flow.waiting[0][0]) for _, _, flow in turns.due]
            if due != sorted(due) or len(due) != len(order):
                yield f"deadlines are out of order: {due[:3]}"
            if order != sorted(order) or len(order) != sum(1 for flow in turns.flows.values() if flow.waiting):
                yield f"turns are out of order: {order[:3]}"
            if len(turns.lane.idle) > IDLE_TENANTS_MAX:
                yield f"{len(turns.lane.idle)} idle tenants are remembered"
