"""Anthropic's messages as they are received: typed and checked, in Ollama's own words where it has any.

What asks for something that no worker can do is refused by its name; what tunes Anthropic's own service is ignored.
"""

from typing import Any

import msgspec
from msgspec import Raw

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.jsonbody import Gate, check_depth
from bellmare.protocols.ollama_requests import known_fields

STOPS_MAX = 64
"""Ollama takes any number."""
_CHOICES = ("auto", "any", "tool", "none")
_NOTHING = (b"", b"null", b"[]", b"{}")
_NOTHING_BYTES_MAX = max(map(len, _NOTHING))


class _Received(msgspec.Struct, frozen=True, gc=False):
    """Base of what is only read. Why ``gc=False``: see ``ollama_requests.Part``."""


class ImageSource(_Received, frozen=True):
    type: str | None = None
    data: str | None = None


class Part(_Received, frozen=True):
    """One block inside another: of a tool's result, of a search that Anthropic ran, or of the system text."""

    type: str | None = None
    text: str | None = None
    source: ImageSource | None = None
    title: str | None = None
    url: str | None = None
    error_code: str | None = None


class Block(_Received, frozen=True):
    """One content block of any type; which fields count is said by ``type``."""

    type: str | None = None
    text: str | None = None
    thinking: str | None = None
    source: ImageSource | None = None
    id: str | None = None
    name: str | None = None
    input: Raw = Raw(b"")
    """An object."""
    tool_use_id: str | None = None
    content: Raw = Raw(b"")
    """Of a tool's result: a string, or a list of :class:`Part`."""
    is_error: bool | None = None


class MessageParam(_Received, frozen=True):
    content: str | list[Block] | None
    role: str = ""


class AnthropicTool(_Received, frozen=True):
    type: str | None = None
    name: str | None = None
    description: str | None = None
    input_schema: Raw = Raw(b"")


class ToolChoice(_Received, frozen=True):
    type: str | None = None
    name: str | None = None
    disable_parallel_tool_use: bool | None = None
    """Ignored: a worker's model calls as many as it likes."""


class Thinking(_Received, frozen=True):
    type: str | None = None
    budget_tokens: int | None = None
    """Ignored: workers know no budget."""


class OutputFormat(_Received, frozen=True):
    type: str | None = None
    schema: dict[str, Any] | None = None


class OutputConfig(_Received, frozen=True):
    effort: str | None = None
    format: OutputFormat | None = None


class MessagesRequest(_Received, frozen=True, kw_only=True):
    """Body of POST /v1/messages and, without ``max_tokens``, of /v1/messages/count_tokens.

    Fields that are not here are ignored, as Ollama does.
    """

    model: str | None = None
    max_tokens: int | None = None
    messages: list[MessageParam] | None = None
    system: str | list[Part] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[AnthropicTool] | None = None
    tool_choice: ToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = None
    """The older place of ``output_config.format``."""
    mcp_servers: Raw = Raw(b"")
    container: Raw = Raw(b"")

    @property
    def format(self) -> OutputFormat | None:
        """In what form the answer is wanted; None for text."""
        config = self.output_config
        return config.format if config is not None and config.format is not None else self.output_format


_IGNORED = frozenset(
    {
        "anthropic_beta",
        "anthropic_version",
        "cache_control",
        "context_management",
        "inference_geo",
        "metadata",
        "service_tier",
        "speed",
    }
)
"""Anthropic's other fields of these routes."""
_gate = Gate(MessagesRequest, known_fields(MessagesRequest), ignored=_IGNORED)


def parse_messages(body: bytes) -> MessagesRequest:
    """POST /v1/messages. Raises :class:`InvalidRequest`; messages are looked into by ``anthropic_native``."""
    wanted = _gate(body)
    _check_model(wanted)
    if wanted.max_tokens is None or wanted.max_tokens <= 0:
        raise InvalidRequest("max_tokens is required and must be positive")
    _check(wanted)
    return wanted


def parse_count_tokens(body: bytes) -> MessagesRequest:
    """POST /v1/messages/count_tokens: the same request, of which only the prompt counts."""
    wanted = _gate(body)
    _check_model(wanted)
    _check(wanted)
    return wanted


def _check_model(wanted: MessagesRequest) -> None:
    if not (wanted.model or "").strip():
        raise InvalidRequest("model is required")


def _check(wanted: MessagesRequest) -> None:
    if not wanted.messages:
        raise InvalidRequest("messages is required")
    if wanted.stop_sequences is not None and len(wanted.stop_sequences) > STOPS_MAX:
        raise InvalidRequest(f"stop_sequences has more than {STOPS_MAX} strings")
    if wanted.tool_choice is not None:
        _check_tool_choice(wanted.tool_choice)
    if wanted.output_config is not None or wanted.output_format is not None:
        _check_format(wanted.format)
    for name, raw in (("mcp_servers", wanted.mcp_servers), ("container", wanted.container)):
        if memoryview(raw).nbytes > _NOTHING_BYTES_MAX or bytes(raw) not in _NOTHING:
            raise InvalidRequest(f"{name} is not supported: nothing runs here but the model itself")


def _check_tool_choice(choice: ToolChoice) -> None:
    if choice.type not in _CHOICES:
        allowed = ", ".join(f'"{kind}"' for kind in _CHOICES)
        raise InvalidRequest(f"tool_choice.type must be one of {allowed}")
    if choice.type == "tool" and not choice.name:
        raise InvalidRequest("tool_choice.name is required")


def _check_format(wanted: OutputFormat | None) -> None:
    if wanted is None:
        return
    if wanted.type != "json_schema":
        raise InvalidRequest('output_config.format.type must be "json_schema"')
    if wanted.schema is None:
        raise InvalidRequest("output_config.format.schema is required")
    check_depth(wanted.schema, "output_config.format.schema")
