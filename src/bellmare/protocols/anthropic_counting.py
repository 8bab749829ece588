"""How many tokens a request of Anthropic's has: Ollama's guess for the start of a stream, and the answer to a count."""

import msgspec
from msgspec import Raw

from bellmare.protocols.anthropic import Block, MessageParam, MessagesRequest, Part

_BYTES_PER_TOKEN = 4
_EXACT_BYTES_MAX = 64 << 10
"""Up to it a nested value is measured as Ollama writes it; above, as the client wrote it."""
_ESCAPED_MORE = ((b"<", 5), (b">", 5), (b"&", 5), (b"\xe2\x80\xa8", 3), (b"\xe2\x80\xa9", 3))
"""Go writes these as ``\\u003c`` and so on: so many bytes more than they have by themselves."""

_encode = msgspec.json.Encoder().encode


def input_tokens_answer(tokens: int) -> bytes:
    """Answer of POST /v1/messages/count_tokens."""
    return _encode({"input_tokens": tokens})


def guessed_input_tokens(wanted: MessagesRequest) -> int:
    """What Ollama says in ``message_start``, before it knows: a quarter of the bytes of texts, calls and schemas.

    For nothing else: it counts a picture inside a tool's result by its base64 and any other picture as nothing.
    """
    size = _system_bytes(wanted.system)
    for message in wanted.messages or ():
        size += _text_bytes(message.role) + _content_bytes(message)
    for tool in wanted.tools or ():
        size += _text_bytes(tool.name) + _text_bytes(tool.description) + len(bytes(tool.input_schema))
    return max(1, size // _BYTES_PER_TOKEN)


def _text_bytes(text: str | None) -> int:
    if not text:
        return 0
    return len(text) if text.isascii() else len(text.encode())


def _system_bytes(system: str | list[Part] | None) -> int:
    if isinstance(system, list):
        return sum(_text_bytes(part.text) for part in system)
    return _text_bytes(system)


def _content_bytes(message: MessageParam) -> int:
    if isinstance(message.content, list):
        return sum(map(_block_bytes, message.content))
    return _text_bytes(message.content)


def _block_bytes(block: Block) -> int:
    size = _text_bytes(block.text) + _text_bytes(block.thinking)
    if block.type not in ("tool_use", "tool_result"):
        return size
    shown = {"type": block.type}
    if block.text is not None:
        shown["text"] = block.text
    fields = (("id", block.id), ("name", block.name), ("tool_use_id", block.tool_use_id))
    shown.update((name, value) for name, value in fields if value)
    if block.thinking is not None:
        shown["thinking"] = block.thinking
    written = _encode(shown)
    size += len(written) + _escapes(written) + (len(',"is_error":true') if block.is_error else 0)
    for name, raw in (("input", block.input), ("content", block.content)):
        value = _measured(raw)
        size += len(name) + 4 + value if value else 0
    return size


def _measured(raw: Raw) -> int:
    """Bytes of a nested value as Go writes it, without blanks and with its own escapes; 0 if there is none."""
    data = bytes(raw)
    if data in (b"", b"null"):
        return 0
    if len(data) <= _EXACT_BYTES_MAX:
        try:
            data = _encode(msgspec.json.decode(data))
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            pass  # what cannot be measured is guessed
    return len(data) + _escapes(data)


def _escapes(written: bytes) -> int:
    return sum(more * written.count(mark) for mark, more in _ESCAPED_MORE)
