"""What is written down of every request at its end: one log line, and the metrics. Prompts and answers never."""

from bellmare.core.decisions import CacheState
from bellmare.core.events import HintSource
from bellmare.core.units import InstantUs
from bellmare.gateway.conversation import Conversation
from bellmare.observability.logs import Logs
from bellmare.observability.metrics import Metrics


class Accounts:
    """Books ended requests."""

    def __init__(self, metrics: Metrics, logs: Logs) -> None:
        self._metrics = metrics
        self._logs = logs

    def refused_early(self, status: int) -> None:
        """A request that never became one: bad bytes, unknown path, invalid body."""
        self._metrics.bad_request(status)

    def hints_limited(self, source: HintSource, count: int) -> None:
        """Hints that were dropped: their client gave more than its allowance."""
        self._metrics.hints.limited(source, count)

    def ended(self, conversation: Conversation, now_us: InstantUs) -> None:
        """Book one conversation; called exactly once for each."""
        decision = conversation.dispatched
        errand = conversation.errand
        known = errand.name in conversation.desk.driver.engine.fleet.state.votes
        final = conversation.translator.final if conversation.translator is not None else None
        total_us = now_us - conversation.arrived_us
        first_us = conversation.first_byte_us - conversation.arrived_us if conversation.first_byte_us >= 0 else None
        self._metrics.request(
            model=errand.name if known else "",
            status=conversation.status,
            total_us=total_us,
            first_token_us=first_us,
            queued_us=decision.queued_us if decision is not None else None,
        )
        if final is not None:
            self._metrics.tokens(errand.name, final.prompt_eval_count, final.eval_count)
        cache: CacheState | None = conversation.cache
        self._logs.request_line(
            id=conversation.public_id,
            request=conversation.request,
            model=errand.name,
            worker=decision.worker if decision is not None else None,
            dialect=str(errand.dialect),
            route=conversation.exchange.request.path,
            status=conversation.status,
            outcome=conversation.outcome,
            refusal=conversation.refusal or None,
            cache=str(cache) if cache is not None else None,
            queue_ms=_ms(decision.queued_us - decision.load_us) if decision is not None else None,
            load_ms=_ms(decision.load_us) if decision is not None else None,
            first_token_ms=_ms(first_us) if first_us is not None else None,
            total_ms=_ms(total_us),
            prompt_tokens=final.prompt_eval_count if final is not None else None,
            output_tokens=final.eval_count if final is not None else None,
            attempts=conversation.attempts,
            error=conversation.detail or None,
        )


def _ms(span_us: int) -> float:
    return round(span_us / 1000, 1)
