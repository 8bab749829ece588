"""How many tokens a request of Anthropic's has: Ollama's guess for the start of a stream, and the answer to a count."""

import msgspec
from msgspec import Raw

from bellmare.protocols.anthropic import Block, MessageParam, MessagesRequest, Part

_BYTES_PER_TOKEN = 4
_EXACT_BYTES_MAX = 1 << 20
"""Up to it a nested value is measured as Ollama writes it, in some milliseconds; above, as the client wrote it."""

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
    size += len('{"type":""}') + len(block.type) + (len(',"is_error":true') if block.is_error else 0)
    for name, text in (("text", block.text), ("thinking", block.thinking)):
        if text is not None:
            size += _member_bytes(name, text)
    for name, text in (("id", block.id), ("name", block.name), ("tool_use_id", block.tool_use_id)):
        if text:
            size += _member_bytes(name, text)
    for name, raw in (("input", block.input), ("content", block.content)):
        value = _measured(raw)
        size += len(name) + 4 + value if value else 0
    return size


def _member_bytes(name: str, text: str) -> int:
    """Of a member behind another, its comma, colon and quotes included."""
    written = _encode(text)
    return len(name) + 4 + len(written) + _escapes(written)


def _measured(raw: Raw) -> int:
    """Bytes of a nested value as Go writes it, without blanks and with its own escapes; 0 if there is none."""
    size = memoryview(raw).nbytes
    if size > _EXACT_BYTES_MAX:
        return size
    data = bytes(raw)
    if data in (b"", b"null"):
        return 0
    try:
        # The first takes blanks out and makes no objects; only the second undoes a client's own escapes.
        data = msgspec.json.format(data, indent=-1) if b"\\u" not in data else _encode(msgspec.json.decode(data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        pass  # what cannot be measured is guessed
    return len(data) + _escapes(data)


def _escapes(written: bytes) -> int:
    """Bytes that Go adds: it writes ``<``, ``>``, ``&`` and two line ends as ``\\u003c`` and so on."""
    count = written.count
    more = 5 * (count(b"<") + count(b">") + count(b"&"))
    if not written.isascii():
        more += 3 * (count(b"\xe2\x80\xa8") + count(b"\xe2\x80\xa9"))
    return more
