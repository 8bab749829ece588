"""What OpenAI's routes have in common: effort, images, tools, what is refused. In Ollama's words where it has any."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.forced_tools import ForcedCall, forced_call
from bellmare.protocols.jsonbody import check_depth
from bellmare.protocols.ollama_fields import check_images
from bellmare.protocols.ollama_requests import Tool, ToolCall, ToolCallFunction

HINTS = frozenset(
    {
        "metadata",
        "parallel_tool_calls",
        "prompt_cache_key",
        "prompt_cache_retention",
        "safety_identifier",
        "service_tier",
        "store",
        "user",
    }
)
"""Fields of both routes that change no answer: hints, and what concerns OpenAI's accounts."""
NO_WEIGHING = "Ollama cannot weigh single tokens"
STOPS_MAX = 64
"""OpenAI allows 4, Ollama any number."""
_SHOWN_CHARS_MAX = 64
"""Of what a client wrote, in a message to it."""

_THINK: dict[str, bool | str] = {
    "none": False,
    "minimal": "low",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "xhigh": "max",
    "max": "max",
}
"""Efforts of OpenAI's models as levels of ``think``, as Ollama takes them."""
_IMAGE_PREFIXES = ("data:;base64,", *(f"data:image/{kind};base64," for kind in ("jpeg", "jpg", "png", "webp")))
"""As Ollama; the first stands for plain base64."""
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "tool"}
"""``developer`` is the newer word for ``system``; most model templates know only that one and would drop the other."""

_arguments_decoder = msgspec.json.Decoder(dict[str, Any] | None)


class Received(msgspec.Struct, frozen=True, gc=False):
    """Base of what is only read. Why ``gc=False``: see ``ollama_requests.Part``."""


class StreamOptions(Received, frozen=True):
    include_usage: bool | None = None


class Sampled(Received, frozen=True, kw_only=True):
    """How an answer is made and sent, as chat/completions and completions say it."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    seed: int | None = None
    stop: Any = None
    n: int | None = None
    logit_bias: Any = None

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a usage chunk."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ToolChoice(Received, frozen=True):
    """What a client says about the tools, in one form for both routes."""

    offered: list[Tool] | None
    """To the model; fewer than were sent, or none."""
    forced: ForcedCall | None = None


def role_of(text: str) -> str:
    """The role that a model's template knows. Raises :class:`InvalidRequest`."""
    role = _ROLES.get(text) or _ROLES.get(text.strip().lower())
    if role is None:
        raise InvalidRequest(f"invalid message role: must be one of {', '.join(_ROLES)}")
    return role


def think_of(effort: str | None) -> bool | str | None:
    """``think`` for an effort; None leaves it to the model."""
    if not effort:
        return None
    think = _THINK.get(effort)
    if think is None:
        allowed = '"high", "medium", "low", "max", or "none"'
        raise InvalidRequest(f"invalid reasoning value: '{effort[:_SHOWN_CHARS_MAX]}' (must be {allowed})")
    return think


def image_of(url: object) -> str:
    """The base64 of a data URI. Raises :class:`InvalidRequest`, also for too many pixels."""
    if not isinstance(url, str):
        raise InvalidRequest("invalid message format")
    if url.startswith(("http://", "https://")):
        raise InvalidRequest("image URLs are not currently supported, please use base64 encoded data instead")
    for prefix in _IMAGE_PREFIXES:
        if url.startswith(prefix):
            image = url[len(prefix) :]
            try:
                check_images([image])
            except InvalidRequest as error:
                raise error if error.status != 400 else InvalidRequest("invalid image input") from None
            return image
    raise InvalidRequest("invalid image input")


def arguments_of(text: str) -> dict[str, Any]:
    """A call's arguments, which OpenAI writes as a string; none for an empty one. Raises :class:`InvalidRequest`."""
    if not text or text.isspace():
        return {}
    try:
        return _arguments_decoder.decode(text) or {}
    except (msgspec.DecodeError, RecursionError):
        raise InvalidRequest("invalid tool call arguments") from None


def call_of(name: str, arguments: str, call_id: str) -> ToolCall:
    """A call out of a conversation, for the native API."""
    return ToolCall(function=ToolCallFunction(name=name, arguments=arguments_of(arguments)), id=call_id or None)


def stops_of(stop: object) -> list[str] | None:
    """``stop`` as a list. Raises :class:`InvalidRequest`."""
    if stop is None:
        return None
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list):
        raise InvalidRequest(f"invalid type for 'stop' field: {go_type(stop)}")
    if len(stops) > STOPS_MAX:
        raise InvalidRequest(f"stop has more than {STOPS_MAX} strings")
    for item in stops:
        if not isinstance(item, str):
            raise InvalidRequest(f"invalid type for 'stop' field: {go_type(item)}")
    return stops


def go_type(value: object) -> str:
    """What Go calls the type of a decoded JSON value: Ollama's messages name it so."""
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "float64"
    if isinstance(value, str):
        return "string"
    return "[]interface {}" if isinstance(value, list) else "map[string]interface {}"


def refuse(field: str, why: str) -> InvalidRequest:
    """For what changes the answer's meaning and cannot be had."""
    return InvalidRequest(f"{field} is not supported: {why}")


def refuse_asked(wanted: Received, unsupported: Mapping[str, str]) -> None:
    """Raises :class:`InvalidRequest` for a field that is set and cannot be had; ``unsupported`` says why not."""
    for name, why in unsupported.items():
        if getattr(wanted, name):
            raise refuse(name, why)


def check_one(name: str, count: int | None) -> None:
    """Of answers to one request. Raises :class:`InvalidRequest`."""
    if count not in (None, 1):
        raise InvalidRequest(f"{name} must be 1: a model here gives one answer per request")


def check_limit(name: str, limit: int | None) -> None:
    """Of tokens; -1 is Ollama's word for no limit."""
    if limit is not None and limit < -1:
        raise InvalidRequest(f"{name} must not be negative")


def chosen_tools(tools: list[Tool] | None, choice: object) -> ToolChoice:
    """What ``tool_choice`` makes of the tools; both routes' forms of it. Raises :class:`InvalidRequest`.

    ``none`` and ``auto`` are as good as Ollama's. It has no word for a call that must be made, nor for some of the
    tools only: the one is emulated (``forced_tools``), for the other the rest is not sent.
    """
    if choice is None or choice == "auto":
        return ToolChoice(tools or None)
    if choice == "none":
        return ToolChoice(None)
    if choice == "required":
        return ToolChoice(None, forced_call(tools))
    check_depth(choice, "tool_choice")
    if isinstance(choice, dict):
        kind = choice.get("type")
        if kind == "function":
            return ToolChoice(None, forced_call(tools, name=_named(choice)))
        if kind == "allowed_tools":
            return _allowed(tools, choice)
    shown = msgspec.json.encode(choice)[:_SHOWN_CHARS_MAX].decode(errors="replace")
    raise refuse(
        f"tool_choice {shown}",
        'use "none", "auto", "required", {"type": "function", ...} or {"type": "allowed_tools", ...}',
    )


def _named(choice: dict[str, Any]) -> str:
    """The name in a reference to a function: chat completions nest it, responses do not."""
    nested = choice.get("function")
    name = nested.get("name") if isinstance(nested, dict) else choice.get("name")
    if not isinstance(name, str) or choice.get("type") != "function":
        raise InvalidRequest("tool_choice: a function is named by its type and its name")
    return name


def _allowed(tools: list[Tool] | None, choice: dict[str, Any]) -> ToolChoice:
    """Some of the tools, of which one may or must be called."""
    nested = choice.get("allowed_tools")
    rules = nested if isinstance(nested, dict) else choice
    named, mode = rules.get("tools"), rules.get("mode", "auto")
    if not isinstance(named, list) or mode not in ("auto", "required"):
        raise InvalidRequest('tool_choice: allowed_tools has a mode, "auto" or "required", and a list of tools')
    names = {_named(one if isinstance(one, dict) else {}) for one in named}
    allowed = _only(tools or (), names)
    return ToolChoice(allowed or None) if mode == "auto" else ToolChoice(None, forced_call(allowed))


def _only(tools: Sequence[Tool], names: set[str]) -> list[Tool]:
    missing = sorted(names.difference(tool.function.name for tool in tools))
    if missing:
        raise InvalidRequest(f"tool_choice names '{missing[0][:_SHOWN_CHARS_MAX]}', which is not among the tools")
    return [tool for tool in tools if tool.function.name in names]
