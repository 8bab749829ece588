"""How one generation is written down: native objects (ollama.md 1.4) or OpenAI chunks (1.5). Bytes only, no timing."""

from typing import Any, Protocol

import msgspec

from bellmare.protocols.errors import Dialect, render_error
from bellmare.twin.messages import Finished
from bellmare.workers.sim.clock import Clock
from bellmare.workers.sim.probabilities import Probabilities
from bellmare.workers.sim.speech import Speech

Headers = tuple[tuple[bytes, bytes], ...]

JSON: Headers = ((b"content-type", b"application/json; charset=utf-8"),)
JSON_V1: Headers = ((b"content-type", b"application/json"),)
NDJSON: Headers = ((b"content-type", b"application/x-ndjson"),)
SSE: Headers = ((b"content-type", b"text/event-stream"),)

encode = msgspec.json.encode


class Voice(Protocol):
    """One way to write an answer."""

    stream_headers: Headers
    json_headers: Headers
    speech: Speech

    def piece(self, index: int) -> bytes:
        """Token ``index`` of a stream; may be empty."""

    def last(self, finished: Finished) -> bytes:
        """What ends a good stream."""

    def whole(self, finished: Finished) -> bytes:
        """The answer without a stream."""

    def broken(self, text: str) -> bytes:
        """What ends a stream that failed after its first byte."""

    def error(self, status: int, text: str) -> bytes:
        """The body of an error before the first byte."""


def durations(finished: Finished) -> dict[str, int]:
    """The counters of a final object, nanoseconds and counts; zeros are left out, as Go's omitempty does."""
    found = {
        "total_duration": finished.total_us * 1000,
        "load_duration": max(1, finished.load_us * 1000),  # Ollama measures some time always
        "prompt_eval_count": finished.prompt_tokens,
        "prompt_eval_duration": finished.prompt_us * 1000,
        "eval_count": finished.output_tokens,
        "eval_duration": finished.output_us * 1000,
    }
    return {key: value for key, value in found.items() if value}


class NativeVoice:
    """/api/generate and /api/chat. ``probabilities`` gives the tokens' log probabilities, if they were asked for."""

    stream_headers: Headers = NDJSON
    json_headers: Headers = JSON

    def __init__(
        self,
        speech: Speech,
        model: str,
        *,
        clock: Clock,
        chat: bool,
        raw: bool = False,
        probabilities: Probabilities | None = None,
    ) -> None:  # tidy: what makes one native answer
        self.speech = speech
        self._clock = clock
        self._chat = chat
        self._raw = raw
        self._probabilities = probabilities
        self._model = model
        self._plain = speech.plain and probabilities is None
        self._start = b'{"model":' + encode(model) + b',"created_at":"'
        self._open, self._close = (
            (b'","message":{"role":"assistant","content":', b'},"done":false}\n')
            if chat
            else (b'","response":', b',"done":false}\n')
        )

    def piece(self, index: int) -> bytes:
        text = self.speech.said(index)
        if self._plain:
            if not text:  # held back: part of a stop sequence
                return b""
            return self._start + self._clock.stamp() + self._open + encode(text) + self._close
        call, thought = self.speech.call(index), self.speech.thought(index)
        if not text and not thought and call is None and self._probabilities is None:
            return b""
        said = self._said(text, thought, calls=[call] if call else [])
        stamp = {"model": self._model, "created_at": self._clock.stamp().decode()}
        return encode(stamp | said | {"done": False} | self._logprobs(index, index + 1)) + b"\n"

    def last(self, finished: Finished) -> bytes:
        return encode(self._final(finished, self._said("", "", calls=[]))) + b"\n"

    def whole(self, finished: Finished) -> bytes:
        tokens = range(finished.output_tokens)
        text = "".join([self.speech.said(index) for index in tokens])
        thought = "".join([self.speech.thought(index) for index in range(min(len(tokens), self.speech.thinking))])
        calls = [] if self.speech.plain else [call for call in map(self.speech.call, tokens) if call is not None]
        said = self._said(text, thought, calls=calls)
        return encode(self._final(finished, said) | self._logprobs(0, finished.output_tokens))

    def broken(self, text: str) -> bytes:
        return encode({"error": text}) + b"\n"

    def error(self, status: int, text: str) -> bytes:
        return encode({"error": text})

    def _said(self, text: str, thought: str, *, calls: list[dict[str, Any]]) -> dict[str, Any]:
        more: dict[str, Any] = {"thinking": thought} if thought else {}
        if not self._chat:
            return {"response": text} | more
        if calls:
            more["tool_calls"] = calls
        return {"message": {"role": "assistant", "content": text} | more}

    def _logprobs(self, first: int, end: int) -> dict[str, Any]:
        if self._probabilities is None:
            return {}
        texts = [self.speech.thought(index) or self.speech.said(index) for index in range(first, end)]
        return {"logprobs": [self._probabilities.of(index, text) for index, text in enumerate(texts, first)]}

    def _final(self, finished: Finished, said: dict[str, Any]) -> dict[str, Any]:
        bare = self._chat or self._raw
        more = {} if bare else {"context": [1, finished.prompt_tokens, finished.output_tokens]}
        return {
            "model": self._model,
            "created_at": self._clock.stamp().decode(),
            **said,
            "done": True,
            "done_reason": finished.done_reason,
            **more,
            **durations(finished),
        }


class OpenAIVoice:
    """/v1/chat/completions, with stock's loss of the error text in mid-stream (ollama.md 1.6)."""

    stream_headers: Headers = SSE
    json_headers: Headers = JSON_V1

    def __init__(self, speech: Speech, model: str, *, created: int, usage: bool) -> None:
        self.speech = speech
        self._usage = usage
        self._base = {
            "id": f"chatcmpl-{created % 999}",
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "system_fingerprint": "fp_ollama",
        }

    def piece(self, index: int) -> bytes:
        return self._chunk({"role": "assistant", "content": self.speech.said(index)}, None)

    def last(self, finished: Finished) -> bytes:
        ending = self._chunk({}, finished.done_reason)
        if self._usage:
            ending += b"data: " + encode(self._base | {"choices": [], "usage": _usage(finished)}) + b"\n\n"
        return ending + b"data: [DONE]\n\n"

    def whole(self, finished: Finished) -> bytes:
        message = {
            "role": "assistant",
            "content": "".join([self.speech.said(index) for index in range(finished.output_tokens)]),
        }
        choice = {"index": 0, "message": message, "finish_reason": finished.done_reason}
        return encode(self._base | {"object": "chat.completion", "choices": [choice], "usage": _usage(finished)})

    def broken(self, text: str) -> bytes:
        return self._chunk({"role": "assistant", "content": ""}, None, model="")

    def error(self, status: int, text: str) -> bytes:
        return render_error(Dialect.openai, status, text)

    def _chunk(self, delta: dict[str, str], reason: str | None, **more: str) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return b"data: " + encode(self._base | more | {"choices": [choice]}) + b"\n\n"


def _usage(finished: Finished) -> dict[str, int]:
    return {
        "prompt_tokens": finished.prompt_tokens,
        "completion_tokens": finished.output_tokens,
        "total_tokens": finished.prompt_tokens + finished.output_tokens,
    }
