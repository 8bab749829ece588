"""How the gateway answers when no worker's answer is relayed: statuses, texts and headers, in each dialect's shape."""

import functools
import re
import secrets
from collections.abc import Iterable, Sequence

from bellmare.core.decisions import Dispatch, Refusal, Reject
from bellmare.http.messages import HeaderLines, header_lines
from bellmare.http.messages import Refusal as HttpRefusal
from bellmare.protocols.errors import Dialect, render_error
from bellmare.protocols.names import close_names, display_name

Headers = list[tuple[bytes, bytes]]

JSON = (b"content-type", b"application/json; charset=utf-8")
PLAIN_JSON = (b"content-type", b"application/json")
"""Of whole answers of the other dialects: Ollama names no character set there."""
NDJSON = (b"content-type", b"application/x-ndjson")
EVENTS = (b"content-type", b"text/event-stream")
TEXT = (b"content-type", b"text/plain; charset=utf-8")

STATUS: dict[Refusal, int] = {
    Refusal.unknown_model: 404,
    Refusal.queue_full: 429,
    Refusal.wait_too_long: 429,
    Refusal.no_healthy_worker: 503,
    Refusal.model_does_not_fit: 503,
    Refusal.load_failed: 502,
    Refusal.deadline_passed: 504,
    Refusal.worker_failed: 502,
    Refusal.worker_timed_out: 504,
    Refusal.retries_spent: 502,
    Refusal.poison_suspected: 502,
}
TEXTS: dict[Refusal, str] = {
    Refusal.unknown_model: "model '{name}' not found",
    Refusal.queue_full: "too many requests are waiting for '{name}': try again in {retry} s",
    Refusal.wait_too_long: "'{name}' is busy: the predicted wait is too long; try again in {retry} s",
    Refusal.no_healthy_worker: "no worker that stores '{name}' is reachable at the moment: try again in {retry} s",
    Refusal.model_does_not_fit: "'{name}' does not fit into the memory of any worker that stores it",
    Refusal.load_failed: "'{name}' could not be loaded on any worker",
    Refusal.deadline_passed: "'{name}' did not become free in time: the request waited until its deadline",
    Refusal.worker_failed: "the workers that tried to answer with '{name}' failed",
    Refusal.worker_timed_out: "the workers that tried to answer with '{name}' did not begin in time",
    Refusal.retries_spent: "a worker failed '{name}', and too much is being tried again: try again in {retry} s",
    Refusal.poison_suspected: "poison_suspected: such a request for '{name}' took down two workers; "
    "it is not tried again for some minutes",
}
_PATH = re.compile(r"(?:[A-Za-z]:)?[\\/][^\s:,;\"']+")
POINTLESS = frozenset(
    {Refusal.unknown_model, Refusal.model_does_not_fit, Refusal.load_failed, Refusal.poison_suspected}
)
"""Retrying by itself will not help: both OpenAI SDKs obey ``x-should-retry``."""


def dialect_of(target: str) -> Dialect:
    """The dialect in which a path is answered, also one that is not served."""
    if target.startswith("/v1/messages"):
        return Dialect.anthropic
    return Dialect.openai if target.startswith("/v1/") else Dialect.ollama


def refusal_status(decision: Reject) -> int:
    """502 says that a load failed, 503 that it is tried again in a while."""
    return 503 if decision.refusal is Refusal.load_failed and decision.retry_after_us else STATUS[decision.refusal]


FALLS_BACK = frozenset(
    {Refusal.unknown_model, Refusal.no_healthy_worker, Refusal.model_does_not_fit, Refusal.load_failed}
)
"""The model cannot be had at the moment, so that another may answer in its place. Who only has to wait waits."""


def refusal_text(decision: Reject, name: str, known: Sequence[str], *, embedding: bool = False) -> str:
    """What happened, why, and what to do about it. ``known`` are the names that could have been meant.

    ``embedding``: of the routes where Ollama has other words for an unknown model (ollama.md 1.6).
    """
    retry_s = max(1, round(decision.retry_after_us / 1e6))
    text = TEXTS[decision.refusal].format(name=name, retry=retry_s)
    if embedding and decision.refusal is Refusal.unknown_model:
        text = f'model "{name}" not found, try pulling it first'
    if decision.refusal is Refusal.unknown_model:
        close = [display_name(other) for other in close_names(name, known)]
        if close:
            text += "; did you mean " + " or ".join(f"'{other}'" for other in close) + "?"
    elif decision.refusal is Refusal.load_failed and decision.detail:
        text += ": " + _PATH.sub("...", decision.detail)  # of a fresh runner: it can quote no other request
    if decision.refusal in POINTLESS and decision.retry_after_us:
        text += f" at the moment: try again in {retry_s} s"
    return text


def not_found_text(spelling: str, name: str, known: Iterable[str], *, embedding: bool = False) -> str:
    """Of a name that no worker stores, with what may have been meant. ``embedding``: see :func:`refusal_text`."""
    text = f"model '{spelling[:200]}' not found"
    if embedding:
        text = f'model "{spelling[:200]}" not found, try pulling it first'
    close = [display_name(other) for other in close_names(name, known)]
    if close:
        text += "; did you mean " + " or ".join(f"'{other}'" for other in close) + "?"
    return text


def retry_headers(retry_after_us: int) -> Headers:
    """When to come again, in seconds and in milliseconds."""
    retry_ms = max(1, retry_after_us // 1000)
    return [(b"retry-after", b"%d" % -(-retry_ms // 1000)), (b"retry-after-ms", b"%d" % retry_ms)]


def refusal_headers(decision: Reject) -> Headers:
    """Retry-After, where a retry makes sense."""
    headers: Headers = []
    if decision.retry_after_us:
        headers += retry_headers(decision.retry_after_us)
    elif decision.refusal in POINTLESS:
        headers.append((b"x-should-retry", b"false"))
    return headers


def answer_headers(first: HeaderLines, decision: Dispatch, public_id: str) -> HeaderLines:
    """``first``, and then where and how a request was served. ``public_id`` is of ``[A-Za-z0-9_-]``."""
    return HeaderLines(
        b"%b%bx-request-id: %b\r\nx-bellmare-queue-ms: %d\r\nx-bellmare-load-ms: %d\r\n"
        % (
            first,
            _served_by(decision.worker, decision.cache),
            public_id.encode("ascii"),
            (decision.queued_us - decision.load_us) // 1000,
            decision.load_us // 1000,
        )
    )


@functools.lru_cache(maxsize=4096)
def _served_by(worker: str, cache: str) -> HeaderLines:
    return header_lines([(b"x-bellmare-worker", worker.encode()), (b"x-bellmare-cache", cache.encode())])


def anthropic_request_id(public_id: str) -> str:
    """What Anthropic's SDK shows as a request's id, out of a header ``request-id`` and of an error's body."""
    return f"req_{public_id}"


def error_answer(
    dialect: Dialect, status: int, message: str, *, public_id: str = "", code: str | None = None
) -> tuple[Headers, bytes]:
    """Headers and body of an error. ``public_id`` is the request's, where it has come so far as to have one."""
    if dialect is not Dialect.anthropic:
        return [JSON], render_error(dialect, status, message, code=code)
    request_id = anthropic_request_id(public_id or new_id())
    headers = [JSON, (b"request-id", request_id.encode())]
    return headers, render_error(dialect, status, message, request_id=request_id)


def new_id() -> str:
    """For an answer to a request that was given none; as long as Ollama's."""
    return secrets.token_hex(12)


def http_refusal(status: int, message: str, target: str, *, close: bool = False) -> HttpRefusal:
    """An error before a body was read, in the shape that the path's dialect wants."""
    if target.startswith(("/api/", "/v1/")):
        headers, body = error_answer(dialect_of(target), status, message)
        return HttpRefusal(status=status, headers=tuple(headers), body=body, close=close)
    return HttpRefusal(status=status, headers=(TEXT,), body=f"{status} {message}\n".encode(), close=close)
