"""OpenAI's chat completions over the native API, which alone carries num_ctx, pins and error texts (ollama.md 1.8)."""

from collections.abc import Iterable
from typing import Any

import msgspec

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.jsonbody import Gate, check_depth
from bellmare.protocols.names import DEFAULT_NAMESPACE
from bellmare.protocols.ollama_fields import check_image_count, check_images, check_top_logprobs
from bellmare.protocols.ollama_requests import (
    ChatRequest,
    Message,
    Tool,
    ToolCall,
    ToolCallFunction,
    check_messages,
    check_tools,
    known_fields,
)

STOPS_MAX = 64
"""OpenAI allows 4, Ollama any number."""
_EFFORTS = ("high", "medium", "low", "none")
_IMAGE_PREFIXES = ("data:;base64,", *(f"data:image/{kind};base64," for kind in ("jpeg", "jpg", "png", "webp")))
"""As Ollama; the first stands for plain base64."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""``developer`` is the newer word for ``system``; model templates know only that one."""


class _Received(msgspec.Struct, frozen=True, gc=False):
    """Base of what is only read. Why ``gc=False``: see ``ollama_requests.Part``."""


class ImageUrl(_Received, frozen=True):
    url: str


class ContentPart(_Received, frozen=True):
    type: str
    text: str | None = None
    image_url: ImageUrl | str | None = None


class OpenAIFunction(_Received, frozen=True):
    name: str
    arguments: str = ""
    """A JSON object as a string."""


class OpenAIToolCall(_Received, frozen=True):
    function: OpenAIFunction
    id: str = ""


class OpenAIMessage(_Received, frozen=True):
    role: str
    content: str | list[ContentPart] | None = None
    reasoning: str | None = None
    tool_calls: list[OpenAIToolCall] | None = None
    name: str | None = None
    tool_call_id: str | None = None


class JsonSchema(_Received, frozen=True):
    schema: dict[str, Any] | None = None


class ResponseFormat(_Received, frozen=True):
    type: str
    json_schema: JsonSchema | None = None


class StreamOptions(_Received, frozen=True):
    include_usage: bool | None = None


class Reasoning(_Received, frozen=True):
    effort: str | None = None


class OpenAIChat(_Received, frozen=True, kw_only=True):
    """Body of POST /v1/chat/completions; fields that are not here are ignored, as Ollama does."""

    model: str = ""
    messages: list[OpenAIMessage] = []
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None
    """Ollama's own /v1 ignores it and then runs on without a limit (ecosystem.md 0)."""
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: str | list[str] | None = None
    n: int | None = None
    tools: list[Tool] | None = None
    tool_choice: Any = None
    response_format: ResponseFormat | None = None
    reasoning: Reasoning | None = None
    reasoning_effort: str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


_IGNORED = frozenset(
    {
        "audio",
        "function_call",
        "functions",
        "logit_bias",
        "metadata",
        "modalities",
        "parallel_tool_calls",
        "prediction",
        "prompt_cache_key",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
        "verbosity",
    }
)
"""OpenAI's other fields of this route."""
_gate = Gate(OpenAIChat, known_fields(OpenAIChat), ignored=_IGNORED)
_arguments_decoder = msgspec.json.Decoder(dict[str, Any] | None)


def _check_tool_choice(choice: object) -> None:
    if choice is None or choice in ("auto", "none"):
        return
    shown = choice if isinstance(choice, str) and len(choice) <= 32 else "a named tool"
    raise InvalidRequest(f'tool_choice {shown} is not supported: use "auto" or "none"')


def _check_response_format(wanted: ResponseFormat | None) -> None:
    if wanted is None or wanted.type in ("text", "json_object"):
        return
    if wanted.type != "json_schema":
        raise InvalidRequest('response_format.type must be "text", "json_object" or "json_schema"')
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise InvalidRequest("response_format.json_schema.schema is required")
    check_depth(wanted.json_schema.schema, "response_format.json_schema.schema")


def _effort(chat: OpenAIChat) -> str:
    """``reasoning.effort`` comes before ``reasoning_effort``, as in Ollama; empty if unset."""
    return ((chat.reasoning.effort if chat.reasoning else chat.reasoning_effort) or "").strip()


def parse_chat_completion(body: bytes) -> OpenAIChat:
    """POST /v1/chat/completions. Raises :class:`InvalidRequest`; messages are looked into by :func:`to_native`."""
    chat = _gate(body)
    if not chat.model.strip():
        raise InvalidRequest("model is required")
    if not chat.messages:
        raise InvalidRequest("[] is too short - 'messages'")
    if chat.n not in (None, 1):
        raise InvalidRequest("n must be 1: a model here gives one answer per request")
    for name, limit in (("max_tokens", chat.max_tokens), ("max_completion_tokens", chat.max_completion_tokens)):
        if limit is not None and limit < -1:
            raise InvalidRequest(f"{name} must not be negative")
    if isinstance(chat.stop, list) and len(chat.stop) > STOPS_MAX:
        raise InvalidRequest(f"stop has more than {STOPS_MAX} strings")
    effort = _effort(chat)
    if effort and effort not in _EFFORTS:
        allowed = '"high", "medium", "low", or "none"'
        raise InvalidRequest(f"invalid reasoning value: '{effort[:32]}' (must be {allowed})")
    _check_tool_choice(chat.tool_choice)
    _check_response_format(chat.response_format)
    check_top_logprobs(chat.top_logprobs)
    if chat.tools:
        check_tools(chat.tools)
    return chat


def _image(part: ContentPart) -> str:
    """The base64 of an ``image_url`` part."""
    url = part.image_url.url if isinstance(part.image_url, ImageUrl) else part.image_url
    if url is None:
        raise InvalidRequest("invalid message format")
    for prefix in _IMAGE_PREFIXES:
        if url.startswith(prefix):
            return url[len(prefix) :]
    if url[:8].lower().startswith(("http://", "https://")):
        raise InvalidRequest("invalid image input: give the image as a data: URI, addresses are not fetched")
    raise InvalidRequest("invalid image input")


def _content(parts: list[ContentPart]) -> tuple[str, list[str] | None]:
    """Text and images of a message in parts.

    One message stays one: Ollama's /v1 makes one of each part, and templates that want alternating roles then fail.
    Texts are joined as Ollama joins messages of one role, by an empty line.
    """
    texts: list[str] = []
    images: list[str] = []
    for part in parts:
        if part.type == "text" and part.text is not None:
            texts.append(part.text)
        elif part.type == "image_url":
            images.append(_image(part))
        else:
            raise InvalidRequest("invalid message format")
    check_images(images)
    return "\n\n".join(texts), images or None


def _tool_call(call: OpenAIToolCall) -> ToolCall:
    text = call.function.arguments.strip()
    try:
        arguments = _arguments_decoder.decode(text) if text else {}
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest("invalid tool call arguments") from None
    return ToolCall(function=ToolCallFunction(name=call.function.name, arguments=arguments or {}), id=call.id or None)


def _native_message(message: OpenAIMessage, tool_names: dict[str, str]) -> Message:
    role = _ROLES.get(message.role) or _ROLES.get(message.role.strip().lower())
    if role is None:
        raise InvalidRequest(f"invalid message role: must be one of {', '.join(_ROLES)}")
    content, images = message.content, None
    if isinstance(content, list):
        content, images = _content(content)
    elif content is None and message.tool_calls is None:
        raise InvalidRequest("invalid message content type: <nil>")
    tool_name = None
    if role == "tool":
        tool_name = message.name or tool_names.get(message.tool_call_id or "")
    return Message(
        role=role,
        content=content,
        thinking=message.reasoning or None,
        images=images,
        tool_calls=[_tool_call(call) for call in message.tool_calls] if message.tool_calls else None,
        tool_name=tool_name,
        tool_call_id=message.tool_call_id if role == "tool" else None,
    )


def _options(chat: OpenAIChat) -> dict[str, Any]:
    """Ollama's /v1 sets temperature and top_p to 1.0, where the native API would take 0.8 and 0.9 (ollama.md 1.8)."""
    limit = chat.max_tokens if chat.max_completion_tokens is None else chat.max_completion_tokens
    options = {
        "temperature": 1.0 if chat.temperature is None else chat.temperature,
        "top_p": 1.0 if chat.top_p is None else chat.top_p,
        "num_predict": limit,
        "seed": chat.seed,
        "frequency_penalty": chat.frequency_penalty,
        "presence_penalty": chat.presence_penalty,
        "stop": [chat.stop] if isinstance(chat.stop, str) else chat.stop,
    }
    return {name: value for name, value in options.items() if value is not None}


def _format(wanted: ResponseFormat | None) -> Any:
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return "json"
    assert wanted.json_schema is not None
    return wanted.json_schema.schema


def to_native(chat: OpenAIChat) -> ChatRequest:
    """The same request for /api/chat; ``stream`` is always said. Raises :class:`InvalidRequest` for bad messages."""
    tool_names = {
        call.id: call.function.name
        for message in chat.messages
        if message.tool_calls
        for call in message.tool_calls
        if call.id
    }
    messages = [_native_message(message, tool_names) for message in chat.messages]
    check_messages([message for message in messages if message.tool_calls])
    check_image_count(sum(len(message.images or ()) for message in messages))
    effort = _effort(chat)
    return ChatRequest(
        model=chat.model,
        messages=messages,
        stream=bool(chat.stream),
        format=_format(chat.response_format),
        tools=None if chat.tool_choice == "none" else chat.tools or None,
        options=_options(chat),
        think=None if not effort else False if effort == "none" else effort,
        logprobs=chat.logprobs,
        top_logprobs=chat.top_logprobs,
    )


def models_list(names: Iterable[tuple[str, int]]) -> bytes:
    """Answer of GET /v1/models for names (canonical) and their times in Unix seconds; without models ``[]``.

    Ollama writes ``"data":null`` there, over which OpenAI's clients stumble (ollama.md 1.5).
    """
    models = [_model(name, created_s) for name, created_s in names]
    return msgspec.json.encode({"object": "list", "data": models})


def model_entry(name: str, created_s: int) -> bytes:
    """Answer of GET /v1/models/NAME, as in :func:`models_list`."""
    return msgspec.json.encode(_model(name, created_s))


def _model(name: str, created_s: int) -> dict[str, object]:
    path = name.split("/")
    owner = path[-2] if len(path) > 1 else DEFAULT_NAMESPACE
    return {"id": name, "object": "model", "created": created_s, "owned_by": owner}
