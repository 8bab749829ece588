"""Knowledge of requests to come, from clients that say so and from their traffic, handed to the core as hints.

Nothing here waits, loads or promises: what a hint is worth is the core's to judge, by what becomes of its like.
"""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from bellmare.core.events import HintGiven, HintSource
from bellmare.core.residency import Residency
from bellmare.core.units import SpanUs
from bellmare.gateway import replies
from bellmare.gateway.accounting import Accounts
from bellmare.gateway.allowance import Allowance, Rates
from bellmare.gateway.naming import Naming
from bellmare.gateway.tenants import Tenants
from bellmare.http.exchange import Exchange
from bellmare.http.messages import Request
from bellmare.protocols.errors import InvalidRequest, render_error
from bellmare.protocols.hints import Expected, parse_next, parse_prepare
from bellmare.runtime.driver import Driver

NEXT_HEADER = b"x-bellmare-next"
LONG_BODY_BYTES = 256 << 10
"""Above it a body takes longer to come (0.2 s at 10 Mbit/s) than it takes to tell the core that it does."""
SAID = Rates(per_s=2.0, burst=32, all_per_s=200.0, all_burst=400)
"""Of hints that a client gives: one with every keystroke that matters, four full calls at once; all together a few per
cent of what the core takes in, even from many thousands of clients."""
SEEN = Rates(per_s=0.2, burst=8, all_per_s=50.0, all_burst=200)
"""Of hints read from traffic: a page that polls every second says nothing new with the second poll."""


UNSAID = SpanUs(0)


class ModelState(StrEnum):
    """What a preparation answers; as of this moment, and no promise."""

    resident = "resident"
    loading = "loading"
    """Being loaded, or its room is being made."""
    expected = "expected"
    """The core knows; whether a load pays is decided whenever a loader is free."""


class Hinting:
    """Gives the core its hints, each within its client's allowance."""

    def __init__(self, driver: Driver, tenants: Tenants, accounts: Accounts, *, naming: Naming) -> None:
        self._driver = driver
        self._naming = naming
        self._tenants = tenants
        self._accounts = accounts
        self.said = Allowance(SAID)
        self.seen = Allowance(SEEN)

    # ------------------------------------------------------------------ what clients say

    def prepare(self, exchange: Exchange) -> None:
        """POST /api/prepare and /v1/prepare: all models of the body or, past the allowance, none."""
        request = exchange.request
        dialect = replies.dialect_of(request.path)
        try:
            said = parse_prepare(request.body)
        except InvalidRequest as error:
            self._accounts.refused_early(error.status)
            exchange.respond(error.status, [replies.JSON], render_error(dialect, error.status, error.message))
            return
        votes = self._driver.engine.fleet.state.votes
        models = self._meant(said.models)
        for model in models:
            if model.name not in votes:
                text = replies.not_found_text(model.spelling, model.name, votes)
                exchange.respond(404, [replies.JSON], render_error(dialect, 404, text))
                return
        tenant = self._tenants.of(request)
        wait_us = self._take(self.said, HintSource.prepare, tenant, count=len(models))
        if wait_us:
            headers = [replies.JSON, *replies.retry_headers(wait_us)]
            text = "too many preparations: say it once, 5 to 15 s before the request"
            exchange.respond(429, headers, render_error(dialect, 429, text))
            return
        self._give(HintSource.prepare, models, tenant=tenant, ttl_us=said.ttl_us)
        rows = [{"model": model.spelling, "state": str(self._state_of(model.name))} for model in models]
        exchange.respond(202, [replies.JSON], msgspec.json.encode({"models": rows}))

    def announce(self, models: Sequence[Expected], tenant: str) -> None:
        """The models of a request's X-Bellmare-Next. Past the allowance they are dropped: the request is served."""
        if models and not self._take(self.said, HintSource.next_header, tenant, count=len(models)):
            self._give(HintSource.next_header, self._meant(models), tenant=tenant)

    def _meant(self, models: Sequence[Expected]) -> list[Expected]:
        """The models for which the names that were said stand."""
        meant = self._naming.meant
        return [msgspec.structs.replace(model, name=meant(model.name)) for model in models]

    # ------------------------------------------------------------------ what traffic says

    def looked_at(self, request: Request, name: str) -> None:
        """/api/show of a model: clients look before they ask."""
        tenant = self._tenants.of(request)
        if not self._take(self.seen, HintSource.show, tenant):
            self._driver.feed(HintGiven(source=HintSource.show, name=name, tenant=tenant))

    def listed(self, request: Request) -> None:
        """/api/tags or /v1/models: whoever asked for a model before mostly goes on with his usual one."""
        self._usual(request, HintSource.tags)

    def uploading(self, request: Request) -> None:
        """The head of an inference request: if a long body follows, its model can be loaded while it comes."""
        length = request.header(b"content-length")
        if length is not None and length.isdigit() and int(length) >= LONG_BODY_BYTES:
            self._usual(request, HintSource.body)

    def _usual(self, request: Request, source: HintSource) -> None:
        tenant = self._tenants.of(request)
        if tenant not in self._driver.engine.fleet.state.callers:
            return  # nothing is known of what he uses: not worth a step
        if not self._take(self.seen, source, tenant):
            self._driver.feed(HintGiven(source=source, tenant=tenant))

    # ------------------------------------------------------------------ both

    def _take(self, allowance: Allowance, source: HintSource, tenant: str, *, count: int = 1) -> SpanUs:
        wait_us = allowance.take(tenant, count, self._driver.clock.now_us())
        if wait_us:
            self._accounts.hints_limited(source, count)
        return wait_us

    def _give(self, source: HintSource, models: Sequence[Expected], *, tenant: str, ttl_us: SpanUs = UNSAID) -> None:
        for model in models:
            self._driver.feed(
                HintGiven(source=source, name=model.name, tenant=tenant, in_us=model.in_us, ttl_us=ttl_us)
            )

    def _state_of(self, name: str) -> ModelState:
        fleet = self._driver.engine.fleet
        model = fleet.resolve(name)
        if model is None:
            return ModelState.expected
        need = fleet.context_of(model)
        serving = [one for one in fleet.family(model) if fleet.context_of(one) >= need]
        state = ModelState.loading if any(one.placements for one in serving) else ModelState.expected
        for _, runner in (copy for one in serving for copy in fleet.copies(one)):
            if runner.residency is Residency.resident:
                return ModelState.resident
            if runner.residency is Residency.loading:
                state = ModelState.loading
        return state


def next_models(request: Request) -> tuple[Expected, ...]:
    """What ``X-Bellmare-Next`` says, however many lines it has; nothing without it. Raises ``InvalidRequest``."""
    lines = [value.decode("latin-1") for name, value in request.headers if name == NEXT_HEADER]
    return parse_next(",".join(lines)) if lines else ()
