"""From Anthropic's messages to /api/chat, message by message as Ollama itself makes them of the same request.

A worker that gets another conversation gives another answer, so even what looks odd is done as Ollama does it: texts
are joined without a separator, results of tools come before the rest of their turn.
"""

from typing import Any

import msgspec
from msgspec import Raw

from bellmare.protocols.anthropic import AnthropicTool, Block, ImageSource, MessageParam, MessagesRequest, Part
from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.forced_tools import ForcedCall, bound, forced_call
from bellmare.protocols.jsonbody import quoted
from bellmare.protocols.ollama_fields import check_image_count, check_images
from bellmare.protocols.ollama_requests import (
    ChatRequest,
    Message,
    Tool,
    ToolCall,
    ToolCallFunction,
    ToolFunction,
    check_messages,
    check_tools,
)

_EFFORTS = frozenset({"high", "medium", "low", "max"})
_UNREADABLE_BLOCKS = frozenset({"redacted_thinking"})
"""Encrypted for Anthropic's own models: no other can read them, and clients send back what they once got."""
_CUSTOM = (None, "", "custom")
_INPUT_BYTES_MAX = 4 << 20
"""Of one tool call in the conversation; objects of that many bytes are decoded in 60 ms. Real ones have kilobytes."""
_object_decoder = msgspec.json.Decoder(dict[str, Any] | None)
_parts_decoder = msgspec.json.Decoder(str | list[Part] | Part | None)


def to_native(wanted: MessagesRequest) -> tuple[ChatRequest, ForcedCall | None]:
    """The same request for /api/chat, and the call that its answer is bound to be. Raises :class:`InvalidRequest`.

    ``stream`` is always said. ``messages`` may come out empty, as of one empty text: then Ollama only loads the model,
    and so do we.
    """
    assert wanted.model is not None and wanted.messages is not None, "parsed"
    messages = [*_system(wanted.system)]
    for index, message in enumerate(wanted.messages):
        messages += _messages(message, f"messages.{index}")
    check_image_count(sum(len(message.images or ()) for message in messages))
    check_messages([message for message in messages if message.tool_calls])
    tools = [_tool(tool, f"tools.{index}") for index, tool in enumerate(wanted.tools or ())]
    check_tools(tools)
    choice = wanted.tool_choice.type if wanted.tool_choice is not None else None
    request = ChatRequest(
        model=wanted.model,
        messages=messages,
        stream=bool(wanted.stream),
        format=wanted.format.schema if wanted.format is not None else None,
        tools=None if choice == "none" else tools or None,
        options=_options(wanted),
        think=_think(wanted),
    )
    if choice not in ("any", "tool") or not messages:
        return request, None
    assert wanted.tool_choice is not None
    forced = forced_call(tools, name=wanted.tool_choice.name if choice == "tool" else None)
    return bound(request, forced), forced


def _options(wanted: MessagesRequest) -> dict[str, Any]:
    """Absent ones stay absent: here Ollama takes the model's own defaults, other than on OpenAI's routes."""
    options = {
        "num_predict": wanted.max_tokens,
        "temperature": wanted.temperature,
        "top_p": wanted.top_p,
        "top_k": wanted.top_k,
        "stop": wanted.stop_sequences or None,
    }
    return {name: value for name, value in options.items() if value is not None}


def _think(wanted: MessagesRequest) -> Any:
    """``enabled`` and ``disabled`` come before an effort; ``adaptive`` leaves it to the effort, else to the model."""
    if wanted.thinking is not None and wanted.thinking.type in ("enabled", "disabled"):
        return wanted.thinking.type == "enabled"
    if wanted.output_config is None:
        return None
    effort = (wanted.output_config.effort or "").strip().lower()
    effort = "high" if effort == "xhigh" else effort
    return effort if effort in _EFFORTS else None


def _system(system: str | list[Part] | None) -> list[Message]:
    if isinstance(system, list):
        system = "".join(block.text or "" for block in system if block.type == "text")
    return [Message(role="system", content=system)] if system else []


def _messages(message: MessageParam, where: str) -> list[Message]:
    """One turn: the results of tools, each by itself, and whatever else is in it as one message."""
    role = message.role.lower()
    if not isinstance(message.content, list):
        return [Message(role=role, content=message.content)] if message.content else []
    texts: list[str] = []
    images: list[str] = []
    calls: list[ToolCall] = []
    thinking = ""
    results: list[Message] = []
    for index, block in enumerate(message.content):
        kind = block.type
        if kind == "text":
            texts.append(block.text or "")
        elif kind == "image":
            images.append(_image(block.source))
        elif kind == "tool_use" or kind == "server_tool_use":
            calls.append(_tool_call(block, f"{where}.content.{index}"))
        elif kind == "tool_result":
            results.append(_tool_result(block, f"{where}.content.{index}"))
        elif kind == "web_search_tool_result":
            content = _found(_parts(block.content, f"{where}.content.{index}"))
            results.append(Message(role="tool", content=content, tool_call_id=block.tool_use_id))
        elif kind == "thinking":
            thinking = block.thinking if block.thinking is not None else thinking
        else:
            _refuse_block(kind, f"{where}.content.{index}")
    text = "".join(texts)
    rest = []
    if text or images or calls or thinking:
        rest.append(
            Message(
                role=role,
                content=text,
                thinking=thinking or None,
                images=_checked_images(images),
                tool_calls=calls or None,
            )
        )
    return [*results, *rest] if role == "user" else [*rest, *results]


def _refuse_block(kind: str | None, where: str) -> None:
    """Ollama drops in silence what it does not know; then the model answers without what the client believes it has."""
    if kind in _UNREADABLE_BLOCKS:
        return
    shown = quoted(kind or "")
    raise InvalidRequest(f"{where}.type: blocks of type {shown} are not supported")


def _image(source: ImageSource | None) -> str:
    """The base64 of an image. Addresses are not fetched, and there are no files."""
    if source is None:
        raise InvalidRequest("invalid image source")
    if source.type != "base64":
        shown = (source.type or "")[:64]
        raise InvalidRequest(f"invalid image source type: {shown}. Only base64 images are supported.")
    return source.data or ""


def _checked_images(images: list[str]) -> list[str] | None:
    if not images:
        return None
    try:
        check_images(images)
    except InvalidRequest as error:
        if error.status != 400:
            raise
        raise InvalidRequest("invalid base64 image data: illegal base64 data") from None
    return images


def _tool_call(block: Block, where: str) -> ToolCall:
    if block.type == "tool_use":
        for field, value in (("id", block.id), ("name", block.name)):
            if not value:
                raise InvalidRequest(f"tool_use block missing required '{field}' field")
    arguments = _object(block.input, f"{where}.input") or {}
    return ToolCall(function=ToolCallFunction(name=block.name or "", arguments=arguments), id=block.id or None)


def _object(raw: Raw, where: str) -> dict[str, Any] | None:
    """A nested object, decoded by itself: what it may hold is bounded."""
    size = memoryview(raw).nbytes
    if size > _INPUT_BYTES_MAX:
        raise InvalidRequest(f"{where} is larger than {_INPUT_BYTES_MAX >> 20} MiB", status=413)
    try:
        return _object_decoder.decode(raw) if size else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(f"{where} must be an object") from None


def _parts(raw: Raw, where: str) -> str | list[Part] | Part | None:
    try:
        return _parts_decoder.decode(raw) if memoryview(raw).nbytes else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(f"{where}.content must be a string or a list of blocks") from None


def _tool_result(block: Block, where: str) -> Message:
    """Whether it is an error Ollama does not tell the model; the text does."""
    text, images = "", None
    content = _parts(block.content, where)
    if isinstance(content, str):
        text = content
    elif isinstance(content, list):
        text, images = _result(content, f"{where}.content")
    return Message(role="tool", content=text, images=images, tool_call_id=block.tool_use_id)


def _result(parts: list[Part], where: str) -> tuple[str, list[str] | None]:
    texts: list[str] = []
    images: list[str] = []
    for index, part in enumerate(parts):
        if part.type == "text":
            texts.append(part.text or "")
        elif part.type == "image":
            if part.source is None:
                raise InvalidRequest("invalid tool_result image source")
            images.append(_image(part.source))
        else:
            _refuse_block(part.type, f"{where}.{index}")
    return "".join(texts), _checked_images(images)


def _found(content: str | list[Part] | Part | None) -> str:
    """A web search of an earlier turn, in the words that Ollama gives to the model."""
    if isinstance(content, str):
        return content
    lines: list[str] = []
    for part in [content] if isinstance(content, Part) else content or []:
        if part.type == "web_search_tool_result_error":
            return f"{part.type}: {part.error_code}" if part.error_code else part.type
        if part.type == "web_search_result":
            lines.append(f"- {part.title or ''}: {part.url or ''}\n")
    return "".join(lines)


def _tool(tool: AnthropicTool, where: str) -> Tool:
    """A client's own tool. Those that Anthropic runs itself, or whose parameters only its models know, are refused."""
    name = tool.name or ""
    schema = bytes(tool.input_schema)
    if tool.type not in _CUSTOM and (not schema or (tool.type or "").startswith("web_search")):
        raise InvalidRequest(
            f"{where}.type: {quoted(tool.type or '')} is not supported: only tools with an input_schema are"
        )
    try:
        parameters = _object_decoder.decode(schema) if schema else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise InvalidRequest(f"invalid input_schema for tool {quoted(name)}: it must be an object") from None
    return Tool(
        type="function",
        function=ToolFunction(name=name, description=tool.description or None, parameters=parameters),
    )
