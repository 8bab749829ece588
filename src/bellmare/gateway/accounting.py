"""What is written down of every request at its end: one log line, and the metrics. Prompts and answers never.

It runs once per request on the loop, and is bound to cost next to nothing: plain attributes, integers, no formatting.
"""

from bellmare.core.events import HintSource
from bellmare.core.units import InstantUs
from bellmare.gateway.cloud import CloudTalk
from bellmare.gateway.conversation import Conversation
from bellmare.http.messages import Request
from bellmare.observability.context_metrics import ContextMetrics
from bellmare.observability.logs import Logs
from bellmare.observability.metrics import Metrics
from bellmare.observability.request_lines import RequestLine


class Accounts:
    """Books ended requests."""

    def __init__(self, metrics: Metrics, logs: Logs) -> None:
        self._metrics = metrics
        self._logs = logs

    def refused_early(self, status: int) -> None:
        """A request that never became one: bad bytes, unknown path, invalid body."""
        self._metrics.bad_request(status)

    @property
    def context(self) -> ContextMetrics:
        """What the context guard counts."""
        return self._metrics.context

    def unread(self, model: str, why: str) -> None:
        """The tokens of a model's prompts cannot be counted, only estimated."""
        self._logs.info("no vocabulary: prompts are estimated", model=model, why=why)

    def changed(self, request: Request, model: str, answered: bool) -> None:
        """A change of what workers store has ended. Not ``answered``: its client left, or the process goes down."""
        self._logs.info("change", path=request.path, model=model, client=request.peer, answered=answered)

    def hints_limited(self, source: HintSource, count: int) -> None:
        """Hints that were dropped: their client gave more than its allowance."""
        self._metrics.hints.limited(source, count)

    def passed_on(self, talk: CloudTalk, now_us: InstantUs) -> None:
        """Book one request for a model of ollama.com."""
        total_us = now_us - talk.arrived_us
        self._metrics.request(model="", status=talk.status, total_us=total_us, first_token_us=None, queued_us=None)
        final = talk.translator.final
        self._logs.request_line(
            RequestLine(
                talk.public_id,
                talk.public_id,
                talk.errand.native.model[:200],
                talk.worker or None,
                talk.errand.dialect,
                talk.exchange.request.path,
                talk.status,
                "completed" if talk.status == 200 else "failed",
                None,
                None,
                None,
                None,
                None,
                (total_us + 50) // 100 / 10,
                final.prompt_eval_count if final is not None else None,
                final.eval_count if final is not None else None,
                1,
                None,
            )
        )

    def ended(self, conversation: Conversation, now_us: InstantUs) -> None:
        """Book one conversation; called exactly once for each."""
        metrics = self._metrics
        errand = conversation.errand
        name = errand.name
        status = conversation.status
        arrived_us = conversation.arrived_us
        total_us = now_us - arrived_us
        first_us = conversation.first_byte_us - arrived_us if conversation.first_byte_us >= 0 else None
        decision = conversation.dispatched
        worker = cache = queue_ms = load_ms = prompt_tokens = output_tokens = None
        label = name
        if decision is not None:
            worker, cache = decision.worker, decision.cache
            queued_us, load_us = decision.queued_us, decision.load_us
            queue_ms = (queued_us - load_us + 50) // 100 / 10
            load_ms = (load_us + 50) // 100 / 10
        else:
            queued_us = None
            if not metrics.known(name):
                label = ""
        metrics.request(model=label, status=status, total_us=total_us, first_token_us=first_us, queued_us=queued_us)
        translator = conversation.translator
        if translator is not None and (final := translator.final) is not None:
            prompt_tokens, output_tokens = final.prompt_eval_count, final.eval_count
            metrics.tokens(label, prompt_tokens, output_tokens)
        self._logs.request_line(
            RequestLine(  # in the order of its fields: by name it would take five times as long
                conversation.public_id,
                conversation.request,
                name,
                worker,
                errand.dialect,
                conversation.exchange.request.path,
                status,
                conversation.outcome,
                conversation.refusal or None,
                cache,
                queue_ms,
                load_ms,
                (first_us + 50) // 100 / 10 if first_us is not None else None,
                (total_us + 50) // 100 / 10,
                prompt_tokens,
                output_tokens,
                conversation.attempts,
                conversation.detail or None,
            )
        )
