"""OpenAI's responses over /api/chat: the request, and what of it the answer repeats."""

from typing import Any

import msgspec

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.forced_tools import ForcedCall, bound
from bellmare.protocols.jsonbody import Gate, check_depth, quoted
from bellmare.protocols.ollama_fields import check_image_count, check_top_logprobs
from bellmare.protocols.ollama_requests import (
    ChatRequest,
    Message,
    Tool,
    ToolFunction,
    check_messages,
    check_tools,
    known_fields,
)
from bellmare.protocols.openai_fields import (
    HINTS,
    Received,
    call_of,
    check_limit,
    chosen_tools,
    image_of,
    refuse,
    refuse_asked,
    role_of,
    think_of,
)

_LOGPROBS = "message.output_text.logprobs"


class ResponsesTool(Received, frozen=True):
    type: str = ""
    name: str = ""
    description: str | None = None
    strict: bool | None = None
    parameters: dict[str, Any] | None = None


class ResponsesFormat(Received, frozen=True):
    type: str = ""
    name: str | None = None
    schema: dict[str, Any] | None = None
    strict: bool | None = None


class ResponsesText(Received, frozen=True):
    format: ResponsesFormat | None = None


class ResponsesReasoning(Received, frozen=True):
    effort: str | None = None
    summary: str | None = None


class ResponsesPart(Received, frozen=True):
    """Of a message or of a call's result."""

    type: str = ""
    text: str | None = None
    image_url: str | None = None


class Item(Received, frozen=True, kw_only=True):
    """One of ``input``: which fields it has depends on its type."""

    type: str = ""
    role: str = ""
    content: str | list[ResponsesPart] | None = None
    call_id: str = ""
    name: str = ""
    arguments: str = ""
    output: str | list[ResponsesPart] | None = None
    encrypted_content: str | None = None


class OpenAIResponse(Received, frozen=True, kw_only=True):
    """Body of POST /v1/responses; fields that are not here are ignored, as Ollama does."""

    model: str = ""
    input: str | list[Item] = ""
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    tools: list[ResponsesTool] | None = None
    tool_choice: Any = None
    text: ResponsesText | None = None
    reasoning: ResponsesReasoning | None = None
    stream: bool | None = None
    truncation: str | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    background: bool | None = None
    conversation: Any = None
    previous_response_id: Any = None
    prompt: Any = None

    @property
    def logprobs(self) -> bool:
        """Whether tokens are wanted with their logarithms of probability."""
        return bool(self.top_logprobs) or (self.include is not None and _LOGPROBS in self.include)


_IGNORED = HINTS | {"max_tool_calls", "stream_options"}
_UNSUPPORTED = {
    "background": "nothing is stored here",
    "conversation": "nothing is stored here; send the whole conversation as input",
    "previous_response_id": "nothing is stored here; send the whole conversation as input",
    "prompt": "nothing is stored here; send instructions and input",
}
"""What would change the answer, and why it cannot be had."""
_gate = Gate(OpenAIResponse, known_fields(OpenAIResponse), ignored=_IGNORED)


def parse_response(body: bytes) -> OpenAIResponse:
    """POST /v1/responses. Raises :class:`InvalidRequest`; items are looked into by :func:`to_native`."""
    wanted = _gate(body)
    if not wanted.model.strip():
        raise InvalidRequest("model is required")
    refuse_asked(wanted, _UNSUPPORTED)
    check_limit("max_output_tokens", wanted.max_output_tokens)
    check_top_logprobs(wanted.top_logprobs)
    for tool in wanted.tools or ():
        if tool.type != "function":
            raise refuse(f"a tool of type {quoted(tool.type)}", "only functions, which the client runs itself, are")
        if not tool.name:
            raise InvalidRequest("a tool has no name")
    wanted_format = wanted.text.format if wanted.text is not None else None
    if wanted_format is not None:
        _check_format(wanted_format)
    return wanted


def _check_format(wanted: ResponsesFormat) -> None:
    if wanted.type not in ("text", "json_object", "json_schema"):
        raise InvalidRequest('text.format.type must be "text", "json_object" or "json_schema"')
    if wanted.type == "json_schema":
        if wanted.schema is None:
            raise InvalidRequest("text.format.schema is required")
        check_depth(wanted.schema, "text.format.schema")


def _content(parts: str | list[ResponsesPart] | None, where: str) -> tuple[str, list[str] | None]:
    """Text and images; texts are joined without anything between, as Ollama joins them."""
    if parts is None:
        return "", None
    if isinstance(parts, str):
        return parts, None
    texts: list[str] = []
    images: list[str] = []
    for index, part in enumerate(parts):
        if part.type in ("input_text", "output_text"):
            texts.append(part.text or "")
        elif part.type == "input_image":
            if not part.image_url:
                raise refuse(f"{where}[{index}]", "an image is given as a data: URI in image_url; no files are kept")
            images.append(image_of(part.image_url))
        elif part.type == "input_file":
            raise InvalidRequest("file inputs are not currently supported")
        else:
            raise InvalidRequest(f"{where}[{index}]: unknown content type: {part.type[:64]}")
    return "".join(texts), images or None


class _Conversation:
    """Items of the input as messages; reasoning waits for the assistant's message that it belongs to."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._thinking: str | None = None

    def take(self, item: Item, where: str) -> None:
        """Raises :class:`InvalidRequest`."""
        kind = item.type or ("message" if item.role else "")
        if kind == "message":
            self._said(item, where)
        elif kind == "function_call":
            self._called(item)
        elif kind == "function_call_output":
            content, images = _content(item.output, f"{where}.output")
            result = Message(role="tool", content=content, images=images, tool_call_id=item.call_id or None)
            self.messages.append(result)
        elif kind == "reasoning":
            self._thinking = item.encrypted_content or None
        elif kind:
            raise InvalidRequest(f"{where}: unknown input item type: {quoted(kind)}")
        else:
            raise InvalidRequest(f"{where}: input item missing required 'type' field")

    def close(self) -> list[Message]:
        """All of them; reasoning that nothing followed is the assistant's last word."""
        if self._thinking is not None:
            self.messages.append(Message(role="assistant", thinking=self._thought()))
        return self.messages

    def _thought(self) -> str | None:
        thinking, self._thinking = self._thinking, None
        return thinking

    def _said(self, item: Item, where: str) -> None:
        role = role_of(item.role)
        content, images = _content(item.content, f"{where}.content")
        thinking = self._thought() if role == "assistant" else None
        self.messages.append(Message(role=role, content=content, images=images, thinking=thinking))

    def _called(self, item: Item) -> None:
        call = call_of(item.name, item.arguments, item.call_id)
        last = self.messages[-1] if self.messages else None
        if last is None or last.role != "assistant":
            self.messages.append(Message(role="assistant", thinking=self._thought(), tool_calls=[call]))
            return
        calls = [*(last.tool_calls or ()), call]
        self.messages[-1] = msgspec.structs.replace(
            last, tool_calls=calls, thinking=last.thinking if self._thinking is None else self._thought()
        )


def _messages(wanted: OpenAIResponse) -> list[Message]:
    conversation = _Conversation()
    if wanted.instructions:
        conversation.messages.append(Message(role="system", content=wanted.instructions))
    if isinstance(wanted.input, str):
        if wanted.input:
            conversation.messages.append(Message(role="user", content=wanted.input))
    else:
        for index, item in enumerate(wanted.input):
            conversation.take(item, f"input[{index}]")
    messages = conversation.close()
    if not messages:
        raise InvalidRequest("input is required")
    check_messages([message for message in messages if message.tool_calls])
    check_image_count(sum(len(message.images or ()) for message in messages))
    return messages


def _tools(tools: list[ResponsesTool] | None) -> list[Tool] | None:
    if not tools:
        return None
    native = [
        Tool(
            type=tool.type,
            function=ToolFunction(name=tool.name, description=tool.description, parameters=tool.parameters),
        )
        for tool in tools
    ]
    check_tools(native)
    return native


def to_native(wanted: OpenAIResponse) -> tuple[ChatRequest, ForcedCall | None]:
    """The same request for /api/chat, and the call that the answer is bound to, if the client insists on one.

    As in Ollama temperature is 1.0 unless said, while top_p is left to the model. Raises :class:`InvalidRequest`.
    """
    options: dict[str, Any] = {"temperature": 1.0 if wanted.temperature is None else wanted.temperature}
    if wanted.top_p is not None:
        options["top_p"] = wanted.top_p
    if wanted.max_output_tokens is not None:
        options["num_predict"] = wanted.max_output_tokens
    wanted_format = wanted.text.format if wanted.text is not None else None
    kind = wanted_format.type if wanted_format is not None else "text"
    choice = chosen_tools(_tools(wanted.tools), wanted.tool_choice)
    native = ChatRequest(
        model=wanted.model,
        messages=_messages(wanted),
        stream=bool(wanted.stream),
        format="json" if kind == "json_object" else wanted_format.schema if wanted_format is not None else None,
        tools=choice.offered,
        options=options,
        think=think_of(wanted.reasoning.effort if wanted.reasoning is not None else None),
        logprobs=wanted.logprobs or None,
        top_logprobs=wanted.top_logprobs or None,
    )
    if choice.forced is None:
        return native, None
    return bound(msgspec.structs.replace(native, logprobs=None, top_logprobs=None), choice.forced), choice.forced


def echo(wanted: OpenAIResponse) -> dict[str, Any]:
    """The fields of a response object that repeat what was asked or never change, in Ollama's order."""
    tools = [
        {
            "type": tool.type,
            "name": tool.name,
            "description": tool.description,
            "strict": tool.strict,
            "parameters": tool.parameters,
        }
        for tool in wanted.tools or ()
    ]
    return {
        "previous_response_id": None,
        "instructions": wanted.instructions or None,
        "output": [],
        "error": None,
        "tools": tools,
        "tool_choice": "auto" if wanted.tool_choice is None else wanted.tool_choice,
        "truncation": wanted.truncation or "disabled",
        "parallel_tool_calls": True,
        "text": {"format": _format_echo(wanted.text.format if wanted.text is not None else None)},
        "top_p": 1 if wanted.top_p is None else wanted.top_p,
        "presence_penalty": 0,
        "frequency_penalty": 0,
        "top_logprobs": wanted.top_logprobs or 0,
        "temperature": 1 if wanted.temperature is None else wanted.temperature,
        "reasoning": _reasoning_echo(wanted.reasoning, whole=not wanted.stream),
        "usage": None,
        "max_output_tokens": wanted.max_output_tokens,
        "max_tool_calls": None,
        "store": False,
        "background": False,
        "service_tier": "default",
        "metadata": {},
        "safety_identifier": None,
        "prompt_cache_key": None,
    }


def _format_echo(wanted: ResponsesFormat | None) -> dict[str, Any]:
    if wanted is None:
        return {"type": "text"}
    fields = {"type": wanted.type, "name": wanted.name, "schema": wanted.schema, "strict": wanted.strict}
    return {name: value for name, value in fields.items() if value is not None}


def _reasoning_echo(wanted: ResponsesReasoning | None, *, whole: bool) -> dict[str, Any] | None:
    """Ollama leaves out what was not said in a whole answer, and writes null for it in a stream's events."""
    if wanted is None or not (wanted.effort or wanted.summary):
        return None
    fields = {"effort": wanted.effort or None, "summary": wanted.summary or None}
    return {name: value for name, value in fields.items() if value is not None} if whole else fields
