"""One inference request from its admission to its accounted end: the data plane's side of what the core decides.

It listens to three sides at once (core, worker, client), and whoever comes first ends it: exactly once, in ``_end``.
A worker's first line decides the status; bytes leave on line boundaries only; after the first byte nothing is retried.
"""

from typing import Protocol

import msgspec

from bellmare.core.decisions import Dispatch, Reject
from bellmare.core.events import (
    DispatchFailed,
    FaultKind,
    FirstTokenReceived,
    Outcome,
    Priority,
    RequestArrived,
    RequestCancelled,
    RequestFinished,
    RequestKind,
)
from bellmare.core.units import SECOND_US, InstantUs, RequestId, WorkerId
from bellmare.gateway import replies
from bellmare.gateway.errands.errand import Errand, Stamp, without_thinking
from bellmare.gateway.faults import BROKEN_TEXT, STATUS_LEFT, THINKS_NOT, is_crash, public_text, status_within
from bellmare.gateway.fingerprint import fingerprint
from bellmare.gateway.relay import NOT_REACHED
from bellmare.gateway.translate import Native, TooLong, Translator
from bellmare.http.call import Call, UpstreamFailure
from bellmare.http.client import Upstream
from bellmare.http.exchange import Exchange
from bellmare.http.listening import Paced
from bellmare.http.messages import HeaderLines, header_lines
from bellmare.protocols.errors import BadAnswer, upstream_error_text
from bellmare.protocols.ndjson import LineTooLong
from bellmare.runtime.driver import Driver
from bellmare.workers.ollama import FAULTS

SHUTTING_DOWN = "the gateway is shutting down"
ERROR_BODY_BYTES_MAX = 64 << 10
"""Of a worker's error answer only so much is read."""


class GatewayTimeouts(msgspec.Struct, frozen=True):
    """Spans in seconds; every wait of the data plane has one of these."""

    queue_s: float = 300.0
    """From arrival to dispatch: then 504."""
    first_token_s: float = 300.0
    """From dispatch to the first byte of a streamed answer: a long prompt on a slow machine takes minutes."""
    token_s: float = 60.0
    """Between two reads of a streamed answer."""
    answer_s: float = 900.0
    """From dispatch to the end of an answer that is not streamed: Ollama sends nothing before (ollama.md 1.5)."""


class Desk(Protocol):
    """What a conversation needs of the gateway around it."""

    driver: Driver
    timeouts: GatewayTimeouts

    def upstream(self, worker: WorkerId) -> Upstream | None: ...

    def known_names(self) -> list[str]: ...

    def account(self, conversation: "Conversation") -> None: ...

    def again(self, conversation: "Conversation") -> RequestId:
        """What the core is to call a request whose last name there has come to its end."""

    def report(self, what: str, error: BaseException) -> None: ...


class Conversation(Paced, msgspec.Struct, eq=False):
    """RequestSink of the driver, Receiver of the worker's answer, ExchangeListener of the client."""

    desk: Desk
    exchange: Exchange
    errand: Errand
    request: RequestId
    public_id: str
    arrived_us: InstantUs
    first_byte_us: InstantUs = InstantUs(-1)
    dispatched: Dispatch | None = None
    attempts: int = 0
    status: int = 0
    """What the client got; 499 if it left before."""
    outcome: str = ""
    """completed, failed, refused or cancelled."""
    refusal: str = ""
    detail: str = ""
    """Why it failed, in the worker's words, for operators."""
    translator: Translator | None = None
    client_left: bool = False
    ended: bool = False
    rejected: Reject | None = None
    """Why the model that was meant could not have it, once a fallback was asked."""
    _arrival: tuple[InstantUs, str, Priority] = (InstantUs(0), "", Priority.normal)
    """What the core was told beside the errand: deadline, tenant, priority."""
    _beaten_us: InstantUs = InstantUs(0)
    """When it last heard a heartbeat."""
    _call: Call | None = None
    _upstream_status: int = 0
    _upstream_plain: bool = False
    """Its error names no character set: so it is where a stream would have begun (ollama.md 1.5)."""
    _error_body: bytes = b""

    def begin(self, deadline_us: InstantUs, *, tenant: str = "", priority: Priority = Priority.normal) -> None:
        """Ask the core. ``deadline_us`` is the instant by which it must have been handed to a worker."""
        self.exchange.listener = self
        self._arrival = (deadline_us, tenant, priority)
        self._arrive()

    def _arrive(self) -> None:
        driver, errand = self.desk.driver, self.errand
        deadline_us, tenant, priority = self._arrival
        state = driver.engine.fleet.state
        known_by = fingerprint(errand) if state.suspects or state.poison else ""
        driver.submit(
            RequestArrived(  # in the order of its fields: by name it takes thrice as long
                self.request,
                (errand.guarded and errand.guarded.class_name) or errand.context_class or errand.name,
                deadline_us,
                errand.kind,
                tenant,
                priority,
                errand.prompt_tokens,
                known_by,
            ),
            self,
        )

    # ------------------------------------------------------------------ the core's side

    def on_dispatch(self, decision: Dispatch) -> None:
        """Send it to the worker, in the runner's own shape."""
        self.dispatched = decision
        self.attempts = decision.attempt
        errand = self.errand
        self.translator = errand.translator(self._stamp())
        self._upstream_status = 0
        self._error_body = b""
        upstream = self.desk.upstream(decision.worker)
        if upstream is None:
            self._try_elsewhere(FaultKind.refused, "the worker has left the fleet")
            return
        streams, timeouts = self.errand.stream, self.desk.timeouts
        self._call = upstream.send(
            "POST",
            self.errand.upstream_path,
            body=self.errand.body(decision.num_ctx),
            receiver=self,
            first_byte_timeout_s=timeouts.first_token_s if streams else timeouts.answer_s,
            idle_timeout_s=timeouts.token_s,
        )

    def on_reject(self, decision: Reject) -> None:
        """The core will not run it."""
        if self.errand.fallbacks and decision.refusal in replies.FALLS_BACK:
            if self.rejected is None:
                self.rejected = decision
            self.errand = self.errand.fallen_back()
            self.dispatched = None
            self.request = self.desk.again(self)
            self._arrive()
            return
        if self.rejected is not None and decision.refusal in replies.FALLS_BACK:
            decision = self.rejected  # the client asked for that model, and knows no other
        self.refusal = str(decision.refusal)
        status = replies.refusal_status(decision)
        text = replies.refusal_text(
            decision, self.errand.spelling, self.desk.known_names(), embedding=self.errand.kind is RequestKind.embedding
        )
        self._respond_error(status, text, headers=replies.refusal_headers(decision))
        self._end("refused" if not self.attempts else "failed", status)

    # ------------------------------------------------------------------ the worker's side

    def on_response(self, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self._upstream_status = status
        self._upstream_plain = status != 200 and replies.PLAIN_JSON in headers

    def on_data(self, data: bytes) -> None:
        if self._upstream_status != 200:
            if len(self._error_body) < ERROR_BODY_BYTES_MAX:
                self._error_body += data
            return
        translator = self.translator
        assert translator is not None, "data comes after dispatch"
        try:
            ready = translator.feed(data)
            if ready:
                if self.first_byte_us < 0:
                    self._start(translator)
                self.exchange.write(ready)
        except Exception as error:  # noqa: BLE001 - whatever a worker's bytes do to a codec, the request must end
            self._unreadable(error)

    def on_end(self) -> None:
        self._call = None
        try:
            self._complete()
        except Exception as error:  # noqa: BLE001 - as above
            self._unreadable(error)

    def on_failure(self, failure: UpstreamFailure) -> None:
        self._call = None
        self._broke(FAULTS[failure.kind], failure.detail)

    def _complete(self) -> None:
        """The worker's answer has ended in order: it may still be an error, or no whole answer."""
        translator = self.translator
        assert translator is not None, "an answer ends after dispatch"
        if self._upstream_status != 200:
            self._error_answer(self._upstream_status, upstream_error_text(self._error_body))
            return
        rest = translator.end()
        if translator.error is not None:
            self._error_inside(translator.error)
        elif translator.final is None:
            self._broke(FaultKind.bad_answer, "the answer stopped before its end")
        elif translator.streams:
            self.exchange.finish()
            self._finish(Outcome.completed, status=200)
        else:
            self._note_first_byte()
            self.exchange.respond(200, self._headers(translator), rest)
            self._finish(Outcome.completed, status=200)

    def _unreadable(self, error: Exception) -> None:
        """A limit, a bad answer, or a bug of ours that a worker's bytes found: in any case the end of this attempt."""
        if self.ended:
            raise error
        if not isinstance(error, LineTooLong | TooLong | BadAnswer):
            self.desk.report("an answer could not be translated", error)
        self.drop_call()
        self._broke(FaultKind.bad_answer, str(error))

    # ------------------------------------------------------------------ the client's side

    def on_disconnect(self) -> None:
        """The client is gone: free the worker at once."""
        if self.ended:
            return
        self.client_left = True
        self.drop_call()
        self.desk.driver.feed(RequestCancelled(request=self.request))
        self._end("cancelled", STATUS_LEFT)

    # ------------------------------------------------------------------ ways to end

    def _error_answer(self, status: int, text: str) -> None:
        """The worker answered with an error status, before any byte was sent."""
        if status == 503:
            self._try_elsewhere(FaultKind.busy, text)
        elif status == 404:
            self._try_elsewhere(FaultKind.not_found, text)
        elif is_crash(status, text):
            self._try_elsewhere(FaultKind.crashed, text)
        elif self.errand.thinks_if_it_can and status == 400 and text.endswith(THINKS_NOT):
            assert self.dispatched is not None, "it was a worker that answered"
            self.errand = without_thinking(self.errand)
            self.on_dispatch(self.dispatched)
        elif 400 <= status < 600:
            self._respond_error(status, public_text(status, text), plain=self._upstream_plain)
            fault = FaultKind.failed if status >= 500 else None
            self._finish(Outcome.failed, status=status, detail=text, fault=fault)
        else:
            self._try_elsewhere(FaultKind.bad_answer, f"status {status}")

    def _error_inside(self, text: str) -> None:
        """An error within a 200: as a status if nothing was sent, else as the dialect's error frame."""
        if self.first_byte_us < 0:
            self._error_answer(status_within(text), text)
            return
        fault = FaultKind.crashed if is_crash(500, text) else FaultKind.failed
        self._cut(public_text(500, text))
        self._finish(Outcome.failed, status=200, detail=text, fault=fault)

    def _broke(self, fault: FaultKind, detail: str) -> None:
        """The connection will bring no more: was it whole, may another worker try, or is it one error frame?"""
        translator = self.translator
        assert translator is not None, "an answer breaks after dispatch"
        if translator.error is not None and self._upstream_status == 200:
            self._error_inside(translator.error)
        elif self.first_byte_us < 0:
            self._try_elsewhere(fault, detail)
        elif translator.final is not None:  # the client has its whole answer; only the last chunk is missing
            self.exchange.finish()
            self._finish(Outcome.completed, status=200)
        else:
            self._cut(BROKEN_TEXT)
            self._finish(Outcome.failed, status=200, detail=detail, fault=fault)

    def _cut(self, text: str) -> None:
        translator = self.translator
        if translator is None:  # it has only heard heartbeats
            translator = self.errand.translator(self._stamp())
        self.exchange.write(translator.cut(text))
        self.exchange.finish()

    def _try_elsewhere(self, fault: FaultKind, detail: str) -> None:
        """``detail`` is for our log only: a worker's words may quote other requests, so they do not reach the core."""
        assert self.dispatched is not None
        self.detail = detail
        self.desk.driver.feed(
            DispatchFailed(
                request=self.request,
                worker=self.dispatched.worker,
                fault=fault,
                fingerprint=fingerprint(self.errand) if fault is FaultKind.crashed else "",
            )
        )

    def withdraw(self) -> bool:
        """Leave a request that still waits to another process, which accounts for it; whether it did wait."""
        if self.ended or self._call is not None or self.exchange.started:
            return False
        if not self.exchange.request.body_parts:  # a large one's were given up when it was parsed
            self.shut(NOT_REACHED)
            return False
        self.ended = True
        self.exchange.listener = None
        self.desk.driver.feed(RequestCancelled(request=self.request))
        return True

    def shut(self, text: str = SHUTTING_DOWN) -> None:
        """The gateway goes down and cannot wait for it: tell the client, in its dialect, and free the worker."""
        if self.ended:
            return
        self.drop_call()
        status = 200
        if self.exchange.started:
            self._cut(text)
        else:
            status = 503
            self._respond_error(status, text, headers=replies.retry_headers(SECOND_US))
        self.desk.driver.feed(RequestCancelled(request=self.request))
        self._end("cancelled", status)

    def _finish(self, outcome: Outcome, *, status: int, detail: str = "", fault: FaultKind | None = None) -> None:
        """Tell the core that a dispatched request is over."""
        final = self.translator.final if self.translator is not None else None
        self.detail = detail
        self.desk.driver.feed(
            RequestFinished(
                request=self.request,
                outcome=outcome,
                fault=fault,
                prompt_tokens=final.prompt_eval_count if final is not None else 0,
                output_tokens=final.eval_count if final is not None else 0,
                fingerprint=fingerprint(self.errand) if fault is FaultKind.crashed else "",
            )
        )
        self._end(str(outcome), status)

    def _end(self, outcome: str, status: int) -> None:
        assert not self.ended, "a request ends once"
        self.ended = True
        self.outcome = outcome
        self.status = 200 if self._beaten_us else status  # whatever came after a heartbeat
        self.exchange.listener = None
        self.desk.account(self)

    # ------------------------------------------------------------------ writing

    def _start(self, translator: Translator) -> None:
        self._note_first_byte()
        exchange = self.exchange
        if not exchange.started:
            exchange.start(200, self._headers(translator))
        exchange.request.take_parts()  # nobody will ask for it again, and a stream is long
        if self._call is not None and exchange.chunked and isinstance(translator, Native):
            self._call.relay = translator.relay(exchange.passer())
        self.desk.driver.feed(FirstTokenReceived(request=self.request))

    def _stamp(self) -> Stamp:
        errand = self.errand
        return Stamp(self.public_id, self.desk.driver.clock.wall_s(), errand.spelling, errand.asked)

    def silent_since(self, instant_us: int) -> bool:
        """Whether it has waited since then without a word to its client."""
        return self.first_byte_us < 0 and not self.ended and max(self.arrived_us, self._beaten_us) <= instant_us

    def beat(self, heartbeat: bytes, first: HeaderLines | None) -> None:
        """Send a sign of life. ``first``: with the head of the answer, which says this too."""
        self._beaten_us = self.desk.driver.clock.now_us()
        if self.exchange.paused:
            return
        if first is not None:
            begin = self.errand.translator(self._stamp()).headers
            request_id = header_lines([(b"x-request-id", self.public_id.encode())])
            self.exchange.start(200, HeaderLines(begin + request_id + first))
        self.exchange.write(heartbeat)

    def _note_first_byte(self) -> None:
        self.first_byte_us = self.desk.driver.clock.now_us()

    def _headers(self, translator: Translator) -> HeaderLines:
        assert self.dispatched is not None
        headers = replies.answer_headers(translator.headers, self.dispatched, self.public_id)
        errand = self.errand
        guarded = errand.guarded
        noted = guarded.header if guarded is not None else b""
        if errand.context_class and not noted:
            noted = b"class=%d" % errand.context
        if errand.overridden or errand.redirected or noted:
            more: replies.Headers = []
            if errand.overridden:
                more.append((b"x-bellmare-overridden", ",".join(errand.overridden).encode()))
            if errand.redirected:
                more.append((b"x-bellmare-model", errand.name.encode()))
            if noted:
                more.append((b"x-bellmare-context", noted))
            return HeaderLines(headers + header_lines(more))
        return headers

    def _respond_error(
        self, status: int, text: str, *, headers: replies.Headers | None = None, plain: bool = False
    ) -> None:
        if self.exchange.started:  # by a heartbeat
            self._cut(text)
            return
        begin, body = replies.error_answer(self.errand.dialect, status, text, public_id=self.public_id, plain=plain)
        all_headers = [*begin, (b"x-request-id", self.public_id.encode()), *(headers or [])]
        if self.dispatched is not None:
            all_headers.append((b"x-bellmare-worker", self.dispatched.worker.encode()))
        self.exchange.respond(status, all_headers, body)
