"""The context guard: a prompt that would not fit is cut, refused or sent to a larger context before it is admitted.

Most requests are so short that nothing is counted: they have no more tokens than bytes. Every request handed in here is
given back, refused or left exactly once.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from bellmare.context.aside import Aside, Job
from bellmare.context.counter import Counter
from bellmare.context.counting import Count, Prompted, Waiting
from bellmare.core import context as plans
from bellmare.core.events import RequestKind
from bellmare.core.fleet import Fleet
from bellmare.gateway.errands.errand import Errand, prepare
from bellmare.gateway.judging import ContextRules, Cutting, Judging
from bellmare.http.exchange import Exchange
from bellmare.http.listening import Unpaced
from bellmare.observability.context_metrics import ContextMetrics
from bellmare.protocols.errors import ContextExceeded
from bellmare.protocols.ollama import ChatRequest, GenerateRequest

TOOLS_OVERHEAD_TOKENS = 2_048
"""What a template adds at most where tools are offered, beside them: command-r's preamble has some 700 tokens."""
SAMPLED_MAX = 16
"""Short prompts of each model that are counted after the fact, to learn what its template adds."""
CUT_SHARE = 0.9
"""A worker that counted less than this of a prompt that was too long has cut it."""
PREPARE_TIMEOUT_S = 10.0
CUT_INLINE_MESSAGES = 2_000
"""Up to here a conversation is cut at once: 4 ms; one of 50,000 messages takes 90 (measured)."""
_GENERATION = RequestKind.generation
_NOTHING: dict[str, int] = {}


Taken = Callable[[Exchange, Errand | BaseException], None]


class _Guarding(Unpaced):
    """ExchangeListener of a request that is being counted."""

    __slots__ = ("left", "on_left", "waiting")

    def __init__(self, on_left: Callable[[], None]) -> None:
        self.waiting: Waiting | Job | None = None
        self.left = False
        self.on_left = on_left

    def on_disconnect(self) -> None:
        self.left = True
        if self.waiting is not None:
            self.waiting.cancel()
        self.on_left()


class ContextGuard:
    """Judges parsed requests. ``on_left`` is told of each client that left while its prompt was counted."""

    def __init__(
        self,
        fleet: Fleet,
        counter: Counter,
        metrics: ContextMetrics,
        *,
        rules: ContextRules,
        on_left: Callable[[], None],
    ) -> None:
        self.rules = rules
        self.counter = counter
        self._fleet = fleet
        self._overhead = counter.overhead
        self._metrics = metrics
        self._on_left = on_left
        self._open: dict[Exchange, _Guarding] = {}
        self._aside: Aside[Any] = Aside("bellmare-cut", waiting_max=64)
        self._sampled: dict[str, int] = {}

    @property
    def waiting(self) -> int:
        """Requests handed in and not given back."""
        return len(self._open)

    def passes(self, errand: Errand, tenant: str, body_bytes: int) -> bool:
        """Whether ``errand`` needs no counting. For nearly all requests this is all that is done."""
        if errand.kind is not _GENERATION:
            return True
        name, native = errand.name, errand.native
        fleet = self._fleet
        model = fleet.resolve(name)
        if model is None:
            return True
        rules = self.rules
        policy = rules.of(name, tenant) if rules.models or rules.tenants else rules.usual
        if policy.policy == "off":
            return True
        num_ctx = errand.context or fleet.context_of(model)
        options = native.options
        if options and options.get("num_predict", 0) > 0:
            wanted = plans.room(num_ctx, at_percent=policy.at_percent, output=options["num_predict"]).wanted
        else:
            wanted = num_ctx * policy.at_percent // 100
        if body_bytes + self._overhead(name) > wanted:
            return False
        if isinstance(native, ChatRequest):
            if native.tools and body_bytes + self._overhead(name) + TOOLS_OVERHEAD_TOKENS > wanted:
                return False
            for message in native.messages or ():
                if message.images:
                    return False
        elif isinstance(native, GenerateRequest) and native.images:
            return False
        self._metrics.proven += 1
        return True

    def take(self, exchange: Exchange, errand: Errand, tenant: str, *, taken: Taken) -> None:
        """Have ``taken`` called, now or later, with the errand as it is to be run, or with what speaks against it.

        That is ``ContextExceeded``, or a bug of ours. Never if the client leaves before.
        """
        guarding = self._open[exchange] = _Guarding(partial(self._leave, exchange))
        exchange.listener = guarding
        native = errand.native
        assert isinstance(native, ChatRequest | GenerateRequest), "only generations are counted"
        judge = partial(self._judge, exchange, errand, tenant=tenant, taken=taken)
        waiting = self.counter.count(errand.name, native, judge)
        if waiting is not None:
            self._wait(exchange, guarding, waiting)

    def _wait(self, exchange: Exchange, guarding: _Guarding, waiting: Waiting | Job) -> None:
        guarding.waiting = waiting
        if guarding.left:
            waiting.cancel()

    def _leave(self, exchange: Exchange) -> None:
        if self._open.pop(exchange, None) is not None:
            self._on_left()

    def ended(self, errand: Errand, *, tokens: int, output: int, num_ctx: int) -> None:
        """A request was answered whole: ``tokens`` and ``output`` are the worker's counts, ``num_ctx`` its context."""
        native, guarded = errand.native, errand.guarded
        if errand.kind is not _GENERATION or not isinstance(native, ChatRequest | GenerateRequest) or tokens <= 0:
            return
        if tokens + output > num_ctx:
            self._metrics.worker_cut(errand.name)  # in the middle of the answer
        if guarded is None:
            self._sample(errand.name, native, tokens)
            return
        count = guarded.count
        if count.lowest > num_ctx:
            if tokens < CUT_SHARE * count.tokens and tokens + output <= num_ctx:
                self._metrics.worker_cut(errand.name)
            return  # nothing is to be learned from a prompt that was cut
        self._learn(errand.name, native, count, tokens=tokens)

    def _sample(self, name: str, native: Prompted, tokens: int) -> None:
        seen = self._sampled.get(name, 0)
        if seen >= SAMPLED_MAX:
            return
        if len(self._sampled) > 10 * SAMPLED_MAX * SAMPLED_MAX:
            self._sampled.clear()
        self._sampled[name] = seen + 1
        self.counter.count(name, native, partial(self._learn, name, native, tokens=tokens), ask=False)

    def _learn(self, name: str, native: Prompted, count: Count, *, tokens: int) -> None:
        error = self.counter.learn(name, native, count, tokens=tokens)
        if error is not None:
            self._metrics.error(count.method, error)

    def shut(self) -> list[Exchange]:
        """The gateway goes down: give all up. Those that are still to be answered."""
        exchanges = list(self._open)
        for guarding in self._open.values():
            if guarding.waiting is not None:
                guarding.waiting.cancel()
        self._open.clear()
        self._aside.shut()
        return exchanges

    def close(self) -> None:
        """Nobody is served any more."""
        self.shut()
        self.counter.close()

    # ------------------------------------------------------------------ once it is counted

    def _judge(self, exchange: Exchange, errand: Errand, count: Count, *, tenant: str, taken: Taken) -> None:
        guarding = self._open.get(exchange)
        if guarding is None:
            return  # given up by shut
        self._metrics.counted(count.method)
        try:
            verdict = self._judged(errand, tenant, count)
        except ContextExceeded as refusal:
            self._give(exchange, refusal, taken=taken)
            return
        ready = partial(self._ready, exchange, guarding, taken=taken)
        if not isinstance(verdict, Cutting):
            ready(verdict)
        elif len(verdict.native.messages or ()) <= CUT_INLINE_MESSAGES:
            ready(verdict.cut())
        else:
            job = self._aside.begin(lambda _: verdict.cut(), ready, timeout_s=PREPARE_TIMEOUT_S)
            if job is None:
                ready((verdict.left(), False))
            else:
                self._wait(exchange, guarding, job)

    def _ready(
        self,
        exchange: Exchange,
        guarding: _Guarding,
        verdict: "tuple[Errand, bool] | BaseException",
        *,
        taken: Taken,
    ) -> None:  # tidy: the last two are bound ahead
        """The verdict is there: the errand as it is to be run, and whether its body is another."""
        if isinstance(verdict, BaseException):
            self._give(exchange, verdict, taken=taken)
            return
        judged, renewed = verdict
        guarded = judged.guarded
        if guarded is not None and guarded.cut_tokens:
            self._metrics.cut(judged.name, guarded.cut_tokens)
        if not renewed or judged.prepared is None:
            self._give(exchange, judged, taken=taken)
            return
        # What a worker is sent was encoded ahead, and now has to be again.
        give = partial(self._give, exchange, taken=taken)
        job = self._aside.begin(lambda _: prepare(judged), give, timeout_s=PREPARE_TIMEOUT_S)
        if job is None:
            self._give(exchange, judged, taken=taken)
        else:
            self._wait(exchange, guarding, job)

    def _give(self, exchange: Exchange, result: Errand | BaseException, *, taken: Taken) -> None:
        if self._open.pop(exchange, None) is None:
            return
        exchange.listener = None
        if exchange.disconnected:
            self._on_left()
            return
        taken(exchange, result)

    def _judged(self, errand: Errand, tenant: str, count: Count) -> "tuple[Errand, bool] | Cutting":
        """The errand as it is to be run, and whether its body is another; or how to get it. Raises ContextExceeded."""
        native, name = errand.native, errand.name
        assert isinstance(native, ChatRequest | GenerateRequest)
        policy = self.rules.of(name, tenant)
        contexts = self._fleet.contexts(name) or (0,)
        model = self._fleet.resolve(name)
        num_ctx = (errand.context or self._fleet.context_of(model)) if model is not None else 0
        if not num_ctx:  # its last worker has gone meanwhile: the core will say so
            return errand, False
        output = (native.options or _NOTHING).get("num_predict", 0)
        judging = Judging(errand, count, policy, output=output)
        if native.truncate is False:
            judging.refuse_too_long(num_ctx, plans.room(num_ctx, at_percent=100, output=0).most, self._metrics)
            return judging.passed(num_ctx), False
        if count.tokens <= judging.room(num_ctx).wanted:
            return judging.passed(num_ctx), False
        if policy.policy == "class":
            larger = [one for one in contexts if one > num_ctx]
            fitting = next((one for one in larger if count.tokens <= judging.room(one).wanted), None)
            chosen = fitting or (larger[-1] if larger else num_ctx)
            asked = self._fleet.class_asked(name, chosen) or name
            if chosen != num_ctx:
                judging.class_name, num_ctx = asked, chosen
                self._metrics.routed(name)
            if fitting:
                return judging.passed(num_ctx, note=f"class={chosen}"), False
        action = policy.otherwise if policy.policy == "class" else policy.policy
        if action == "refuse":
            judging.refuse_too_long(num_ctx, judging.room(num_ctx).wanted, self._metrics)
            return judging.strict(num_ctx), True
        if isinstance(native, GenerateRequest):
            # A text of its own has no oldest part that could be left out without its author: Ollama cuts it.
            beyond = count.tokens > judging.room(num_ctx).most
            return judging.passed(num_ctx, note="cut=worker" if beyond else ""), False
        return Cutting(judging, native, num_ctx)
