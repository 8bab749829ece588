"""Native answers as the codecs of other dialects read them (ollama.md 1.4)."""

from typing import TypeVar

import msgspec
from msgspec import Raw

from bellmare.protocols.errors import BadAnswer, upstream_error_text

UNREADABLE = "the model's worker sent an answer that could not be read"


class StreamState:
    """Base of the codecs of streams: open, then ``finished`` or ``failed``; after either, lines give no bytes."""

    def __init__(self) -> None:
        self.finished = False
        self.failed = False
        self.error = ""
        """The worker's words if it failed, for the log."""

    def cut(self, message: str) -> bytes:
        """The events that end a stream which failed after its first byte; nothing may follow them."""
        raise NotImplementedError

    def _fail(self, text: str) -> bytes:
        self.failed = True
        self.error = text
        return self.cut(text)


class NativeFunction(msgspec.Struct, frozen=True):
    name: str = ""
    arguments: Raw = Raw(b"{}")


class NativeCall(msgspec.Struct, frozen=True):
    function: NativeFunction = NativeFunction()
    id: str = ""


class NativeMessage(msgspec.Struct, frozen=True):
    content: str = ""
    thinking: str = ""
    tool_calls: list[NativeCall] | None = None


class NativeAnswer(msgspec.Struct, frozen=True):
    """What lines of a stream and unstreamed answers have in common (ollama.md 1.4)."""

    done: bool = False
    done_reason: str = ""
    prompt_eval_count: int = 0
    prompt_eval_cached_count: int | None = None
    """Of the prompt, out of a cache; newer Ollamas say it."""
    eval_count: int = 0
    total_duration: int = 0
    """Nanoseconds."""
    logprobs: list[Raw] | None = None
    error: Raw = Raw(b"")

    @property
    def failed(self) -> bool:
        return bytes(self.error) not in (b"", b"null")


class ChatAnswer(NativeAnswer, frozen=True):
    """Of /api/chat."""

    message: NativeMessage = NativeMessage()

    @property
    def is_text(self) -> bool:
        """Whether there is nothing in it but ``message.content``."""
        message = self.message
        return not (self.done or self.error or message.thinking or message.tool_calls or self.logprobs)


class TextAnswer(NativeAnswer, frozen=True):
    """Of /api/generate."""

    response: str = ""


class EmbedAnswer(msgspec.Struct, frozen=True):
    """Of /api/embed; the vectors are not looked into."""

    embeddings: list[Raw]
    prompt_eval_count: int = 0


chat_decoder = msgspec.json.Decoder(ChatAnswer)
text_decoder = msgspec.json.Decoder(TextAnswer)

_A = TypeVar("_A", bound=NativeAnswer)


def whole(body: bytes, decoder: msgspec.json.Decoder[_A], route: str) -> _A:
    """An unstreamed answer. Raises :class:`BadAnswer` if it is an error, unfinished or unreadable."""
    try:
        answer = decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadAnswer(f"{route}: {str(error)[:200]}") from None
    if answer.failed:
        raise BadAnswer(upstream_error_text(body))
    if not answer.done:
        raise BadAnswer(f"{route}: the answer is unfinished")
    return answer


def arguments_text(call: NativeCall) -> str:
    """A call's arguments as a string of JSON."""
    arguments = bytes(call.function.arguments).decode(errors="replace")  # msgspec does not look into a Raw
    return "{}" if arguments == "null" else arguments
