"""What may be done about a prompt that does not fit, and its verdict: passed, cut, or refused as too long."""

from collections.abc import Mapping

import msgspec

from bellmare.context.counting import Count, Method
from bellmare.core import context as plans
from bellmare.core.context import Item, Role, Room
from bellmare.gateway.errands.errand import Errand, Guarded
from bellmare.gateway.parsing import INLINE_BYTES_MAX
from bellmare.observability.context_metrics import ContextMetrics
from bellmare.protocols.errors import ContextExceeded
from bellmare.protocols.ollama import ChatRequest, Message

_ROLES = {"system": Role.system, "developer": Role.system, "user": Role.user, "tool": Role.tool}


class Policy(msgspec.Struct, frozen=True):
    """``context`` of the settings."""

    policy: str = "truncate"
    at_percent: int = 80
    otherwise: str = "truncate"


class Differs(msgspec.Struct, frozen=True):
    """``context`` of a model or a tenant; None: as usual."""

    policy: str | None = None
    at_percent: int | None = None
    otherwise: str | None = None

    def applied(self, usual: Policy) -> Policy:
        """``usual`` with what differs."""
        return Policy(
            usual.policy if self.policy is None else self.policy,
            usual.at_percent if self.at_percent is None else self.at_percent,
            usual.otherwise if self.otherwise is None else self.otherwise,
        )


class ContextRules(msgspec.Struct, frozen=True):
    """What the operator says; names are canonical. A tenant's word comes before a model's."""

    usual: Policy = Policy()
    models: Mapping[str, Differs] = {}
    tenants: Mapping[str, Differs] = {}

    def of(self, name: str, tenant: str) -> Policy:
        """For one request."""
        found = self.usual
        if self.models and (differs := self.models.get(name)) is not None:
            found = differs.applied(found)
        if self.tenants and (differs := self.tenants.get(tenant)) is not None:
            found = differs.applied(found)
        return found


class Judging:
    """One request on its way to a verdict."""

    def __init__(self, errand: Errand, count: Count, policy: Policy, *, output: int) -> None:
        self.errand = errand
        self.count = count
        self.policy = policy
        self.output = output
        self.class_name = ""

    def room(self, num_ctx: int) -> Room:
        return plans.room(num_ctx, at_percent=self.policy.at_percent, output=self.output)

    def passed(self, num_ctx: int, *, note: str = "") -> Errand:
        """As it is."""
        told = f"prompt={self.count.tokens} limit={num_ctx} dropped=0 {note}" if note else ""
        return self._with(self.count, num_ctx, header=told)

    def strict(self, num_ctx: int) -> Errand:
        """As it is, but the worker is to refuse it rather than cut it: our count was not exact."""
        native = msgspec.structs.replace(self.errand.native, truncate=False)
        return msgspec.structs.replace(self._with(self.count, num_ctx), native=native)

    def refuse_too_long(self, num_ctx: int, most: int, metrics: ContextMetrics) -> None:
        """Raise ContextExceeded if it is surely longer than ``most``."""
        if self.count.lowest > most:
            metrics.refused(self.errand.name)
            raise ContextExceeded(self.count.tokens, num_ctx, most=most)

    def cut(self, native: ChatRequest, num_ctx: int) -> tuple[Errand, bool]:
        """Without its oldest turns; and whether the body has to be written anew beside the loop."""
        messages = native.messages or []
        count, room = self.count, self.room(num_ctx)
        items = [Item(_ROLES.get(_role(one), Role.answer), max(0, size)) for one, size in _sized(messages, count)]
        found = plans.cut(items, fixed=count.fixed, room=room)
        # What must stay and does not fit is left to the worker, which cuts it as it would without us: we say so.
        note = " cut=worker" if count.lowest - (count.tokens - found.tokens) > room.most else ""
        if not found.dropped:
            return self.passed(num_ctx, note=note.strip()), False
        gone = set(found.dropped)
        kept = [position for position in range(len(messages)) if position not in gone]
        sizes = tuple(count.messages[position] for position in kept)
        gone_tokens = sum(count.messages[position] - count.each for position in gone)
        counted = max(0, count.counted - gone_tokens)
        share = found.tokens / max(1, count.tokens)
        left = Count(
            found.tokens,
            count.fixed,
            sizes,
            count.method,
            round(count.lowest * share),
            counted,
            count.rough * share,
            count.each,
        )
        told = f"prompt={found.tokens} limit={num_ctx} dropped={len(gone)}{note}"
        errand = self._with(left, num_ctx, header=told, cut_tokens=count.tokens - found.tokens)
        native = msgspec.structs.replace(native, messages=[messages[position] for position in kept])
        large = errand.prepared is not None and _is_large(native)
        return msgspec.structs.replace(errand, native=native, prepared=errand.prepared if large else None), large

    def _with(self, count: Count, num_ctx: int, *, header: str = "", cut_tokens: int = 0) -> Errand:
        if header and count.method is Method.learned:
            header += " counted=about"
        guarded = Guarded(count, num_ctx, self.class_name, header.encode(), cut_tokens)
        return msgspec.structs.replace(self.errand, guarded=guarded, prompt_tokens=count.tokens)


class Cutting(msgspec.Struct, frozen=True):
    """A conversation that is to be cut, here or in a thread."""

    judging: Judging
    native: ChatRequest
    num_ctx: int

    def cut(self) -> tuple[Errand, bool]:
        return self.judging.cut(self.native, self.num_ctx)

    def left(self) -> Errand:
        """As it is: the worker cuts it."""
        return self.judging.passed(self.num_ctx, note="cut=worker")


def _role(message: Message) -> str:
    return message.role or ""


def _sized(messages: list[Message], count: Count) -> list[tuple[Message, int]]:
    assert len(messages) == len(count.messages), "each message was counted"
    return list(zip(messages, count.messages, strict=True))


def _is_large(native: ChatRequest) -> bool:
    """Whether writing it down takes longer than the loop should wait."""
    total = 0
    for message in native.messages or ():
        total += len(message.content or "") + sum(map(len, message.images or ()))
        if total > INLINE_BYTES_MAX or message.tool_calls:
            return True
    return bool(native.tools)
