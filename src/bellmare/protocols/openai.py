"""OpenAI's chat completions over the native API, which alone carries num_ctx, pins and error texts (ollama.md 1.8)."""

from collections.abc import Iterable
from typing import Any

import msgspec

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.forced_tools import ForcedCall, bound
from bellmare.protocols.jsonbody import Gate, check_depth
from bellmare.protocols.names import DEFAULT_NAMESPACE
from bellmare.protocols.ollama_fields import check_image_count, check_images, check_top_logprobs
from bellmare.protocols.ollama_requests import (
    ChatRequest,
    Message,
    Tool,
    ToolCall,
    check_messages,
    check_tools,
    known_fields,
)
from bellmare.protocols.openai_fields import (
    HINTS,
    NO_WEIGHING,
    STOPS_MAX,
    Received,
    Sampled,
    ToolChoice,
    call_of,
    check_limit,
    check_one,
    chosen_tools,
    go_type,
    image_of,
    refuse,
    refuse_asked,
    role_of,
    stops_of,
    think_of,
)

__all__ = ["STOPS_MAX", "OpenAIChat", "model_entry", "models_list", "parse_chat_completion", "to_native"]


class OpenAIFunction(Received, frozen=True):
    name: str
    arguments: str = ""
    """A JSON object as a string."""


class OpenAIToolCall(Received, frozen=True):
    function: OpenAIFunction
    id: str = ""


class ImageUrl(Received, frozen=True):
    url: str | None = None


class InputAudio(Received, frozen=True):
    data: str | None = None


class ContentPart(Received, frozen=True):
    type: str = ""
    text: str | None = None
    image_url: ImageUrl | str | None = None
    input_audio: InputAudio | None = None


class OtherObject(Received, frozen=True):
    """Any, of which nothing is read."""


class OpenAIMessage(Received, frozen=True):
    role: str
    content: str | list[ContentPart] | float | bool | OtherObject | None = None
    """Only the first two are valid; the others are told apart for Ollama's words."""
    reasoning: str | None = None
    tool_calls: list[OpenAIToolCall] | None = None
    name: str | None = None
    tool_call_id: str | None = None


class JsonSchema(Received, frozen=True):
    schema: dict[str, Any] | None = None


class ResponseFormat(Received, frozen=True):
    type: str
    json_schema: JsonSchema | None = None


class Reasoning(Received, frozen=True):
    effort: str | None = None


class OpenAIChat(Sampled, frozen=True, kw_only=True):
    """Body of POST /v1/chat/completions; fields that are not here are ignored, as Ollama does."""

    model: str = ""
    messages: list[OpenAIMessage] = msgspec.field(default_factory=list)
    max_completion_tokens: int | None = None
    """Ollama's own /v1 ignores it and then runs on without a limit (ecosystem.md 0)."""
    tools: list[Tool] | None = None
    tool_choice: Any = None
    response_format: ResponseFormat | None = None
    reasoning: Reasoning | None = None
    reasoning_effort: str | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    audio: Any = None
    modalities: Any = None
    functions: Any = None
    function_call: Any = None
    prediction: Any = None
    web_search_options: Any = None


_IGNORED = HINTS | {"verbosity"}
_UNSUPPORTED = {
    "logit_bias": NO_WEIGHING,
    "audio": "answers are text",
    "functions": "use tools",
    "function_call": "use tool_choice",
    "prediction": "Ollama takes no predicted text",
    "web_search_options": "nothing is searched here",
}
"""What would change the answer, and why it cannot be had."""
_gate = Gate(OpenAIChat, known_fields(OpenAIChat), ignored=_IGNORED)


def _check_unsupported(chat: OpenAIChat) -> None:
    check_one("n", chat.n)
    refuse_asked(chat, _UNSUPPORTED)
    if chat.modalities and chat.modalities != ["text"]:
        raise refuse("modalities", "answers are text")


def _check_response_format(wanted: ResponseFormat) -> None:
    kind = wanted.type.strip().lower()
    if kind in ("text", "json_object"):
        return
    if kind != "json_schema":
        raise InvalidRequest('response_format.type must be "text", "json_object" or "json_schema"')
    if wanted.json_schema is None or wanted.json_schema.schema is None:
        raise InvalidRequest("response_format.json_schema.schema is required")
    check_depth(wanted.json_schema.schema, "response_format.json_schema.schema")


def parse_chat_completion(body: bytes) -> OpenAIChat:
    """POST /v1/chat/completions. Raises :class:`InvalidRequest`; messages are looked into by :func:`to_native`."""
    chat = _gate(body)
    if not chat.model.strip():
        raise InvalidRequest("model is required")
    if not chat.messages:
        raise InvalidRequest("[] is too short - 'messages'")
    _check_unsupported(chat)
    check_limit("max_tokens", chat.max_tokens)
    check_limit("max_completion_tokens", chat.max_completion_tokens)
    if chat.response_format is not None:
        _check_response_format(chat.response_format)
    check_top_logprobs(chat.top_logprobs)
    if chat.tools:
        check_tools(chat.tools)
    return chat


def tool_choice_of(chat: OpenAIChat) -> ToolChoice:
    """Which tools the model sees, and whether one must be called. Raises :class:`InvalidRequest`."""
    if chat.tool_choice is None:
        return ToolChoice(chat.tools or None)
    return chosen_tools(chat.tools, chat.tool_choice)


def _part(part: ContentPart, role: str) -> Message:
    if part.type == "text" and part.text is not None:
        return Message(role=role, content=part.text)
    if part.type == "image_url":
        given = part.image_url
        return Message(role=role, images=[image_of(given.url if isinstance(given, ImageUrl) else given)])
    if part.type == "input_audio":
        return Message(role=role, images=[_audio(part.input_audio)])
    raise InvalidRequest("invalid message format")


def _audio(given: InputAudio | None) -> str:
    """Sound goes where pictures go: Ollama's models that hear take both from one field."""
    if given is None:
        raise InvalidRequest("invalid input_audio format")
    if given.data is None:
        raise InvalidRequest("invalid input_audio format: missing data")
    try:
        check_images([given.data])
    except InvalidRequest as error:
        if error.status != 400:
            raise
        raise InvalidRequest("invalid input_audio base64 data") from None
    return given.data


def _native_messages(message: OpenAIMessage, tool_names: dict[str, str]) -> list[Message]:
    """One message, or one for each part of it: Ollama's /v1 makes them so, and templates join them again."""
    role, content = role_of(message.role), message.content
    if isinstance(content, list):
        messages = [_part(part, role) for part in content]
    elif content is None or isinstance(content, str):
        messages = [Message(role=role, content=content)]
        if content is None and message.tool_calls is None:
            raise InvalidRequest("invalid message content type: <nil>")
    else:
        raise InvalidRequest(f"invalid message content type: {go_type(content)}")
    calls = _calls(message.tool_calls) if message.tool_calls else None
    if not messages:
        if not calls:
            return []
        messages = [Message(role=role)]
    if role != "tool" and calls is None and not message.reasoning:
        return messages
    tool_name = None
    if role == "tool":
        tool_name = message.name or tool_names.get(message.tool_call_id or "")
    messages[-1] = msgspec.structs.replace(
        messages[-1],
        thinking=message.reasoning or None,
        tool_calls=calls,
        tool_name=tool_name,
        tool_call_id=message.tool_call_id if role == "tool" else None,
    )
    return messages


def _calls(calls: list[OpenAIToolCall]) -> list[ToolCall]:
    return [call_of(call.function.name, call.function.arguments, call.id) for call in calls]


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
        "stop": stops_of(chat.stop),
    }
    return {name: value for name, value in options.items() if value is not None}


def _format(wanted: ResponseFormat | None) -> Any:
    kind = "text" if wanted is None else wanted.type.strip().lower()
    if wanted is None or kind == "text":
        return None
    if kind == "json_object":
        return "json"
    assert wanted.json_schema is not None
    return wanted.json_schema.schema


def to_native(chat: OpenAIChat) -> ChatRequest:
    """The same request for /api/chat; ``stream`` is always said. Raises :class:`InvalidRequest` for bad messages."""
    return native_and_forced(chat)[0]


def native_and_forced(chat: OpenAIChat) -> tuple[ChatRequest, ForcedCall | None]:
    """As :func:`to_native`, with the call that the answer is bound to, if the client insists on one."""
    tool_names = {
        call.id: call.function.name
        for message in chat.messages
        if message.tool_calls
        for call in message.tool_calls
        if call.id
    }
    messages = [one for message in chat.messages for one in _native_messages(message, tool_names)]
    check_messages([message for message in messages if message.tool_calls])
    check_image_count(sum(len(message.images or ()) for message in messages))
    # ``reasoning`` comes before ``reasoning_effort``, also if it is empty, as in Ollama
    effort = chat.reasoning_effort if chat.reasoning is None else chat.reasoning.effort
    choice = tool_choice_of(chat)
    native = ChatRequest(
        model=chat.model,
        messages=messages,
        stream=bool(chat.stream),
        format=_format(chat.response_format),
        tools=choice.offered,
        options=_options(chat),
        think=think_of(effort),
        logprobs=chat.logprobs,
        top_logprobs=chat.top_logprobs,
    )
    if choice.forced is None:
        return native, None
    return bound(msgspec.structs.replace(native, logprobs=None, top_logprobs=None), choice.forced), choice.forced


def models_list(names: Iterable[tuple[str, int]]) -> bytes:
    """Answer of GET /v1/models for names (as tags lists them) and their times in Unix seconds; without models ``[]``.

    Ollama writes ``"data":null`` there, over which OpenAI's clients stumble (ollama.md 1.5).
    """
    models = [_model(name, created_s) for name, created_s in names]
    return msgspec.json.encode({"object": "list", "data": models})


def model_entry(name: str, created_s: int) -> bytes:
    """Answer of GET /v1/models/NAME, as in :func:`models_list`; ``name`` is as the client wrote it."""
    return msgspec.json.encode(_model(name, created_s))


def _model(name: str, created_s: int) -> dict[str, object]:
    path = name.split("/")
    owner = path[-2] if len(path) > 1 else DEFAULT_NAMESPACE
    return {"id": name, "object": "model", "created": created_s, "owned_by": owner}
