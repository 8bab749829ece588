"""A tool call that a client insists on, which Ollama cannot be asked for: the answer is bound to the call's schema.

The request gets no tools but a ``format`` and a system text; what the model then writes is the call. Which words a
dialect has for it is the dialect's business. The answer is taken as it is: nothing is repaired, nothing is invented.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.ollama_requests import ChatRequest, Message, Tool

ARGUMENTS_CHARS_MAX = 1 << 20
"""Of one call; what is beyond it is passed on but no longer checked. A quarter of a million tokens."""
HEAD_CHARS_MAX = 4096
"""In these the name must have come, where the model chooses among tools: names have some 64 characters."""

_HEAD = re.compile(r'\s*\{\s*"name"\s*:\s*("(?:[^"\\]|\\.)*")\s*,\s*"arguments"\s*:\s*(?=\{)')
_OUTSIDE = re.compile(r'["{}\[\]]')
_INSIDE = re.compile(r'["\\]')
_REFERENCE = "$ref"

_encode = msgspec.json.Encoder().encode
_arguments_decoder = msgspec.json.Decoder(dict[str, Any])
_string_decoder = msgspec.json.Decoder(str)


class ForcedCall(msgspec.Struct, frozen=True, gc=False):
    """One call of a tool that the answer will be."""

    names: tuple[str, ...]
    """Of the tools among which the model chooses; mostly one."""
    format: dict[str, Any]
    """The JSON schema of the answer: the arguments of the one tool, or an object with ``name`` and ``arguments``."""
    instruction: str
    """What the model is told, as a system text."""


def forced_call(tools: Sequence[Tool] | None, *, name: str | None = None) -> ForcedCall:
    """A call of the tool called ``name``, or of any of ``tools``. Raises :class:`InvalidRequest` if there is none."""
    if not tools:
        raise InvalidRequest("tool_choice asks for a tool, but there are no tools")
    if name is not None:
        tools = [tool for tool in tools if tool.function.name == name][:1]
        if not tools:
            raise InvalidRequest(f"tool_choice names '{name[:64]}', which is not among the tools")
    shown = "\n".join(_described(tool) for tool in tools)
    if len(tools) == 1:
        (tool,) = tools
        text = (
            f"Call the tool '{tool.function.name}' now. Answer with the JSON object of its arguments and nothing else."
        )
        return ForcedCall((tool.function.name,), _parameters(tool), f"{text}\n\n{shown}")
    text = (
        "Call exactly one of the following tools now. Answer with a JSON object and nothing else: "
        '{"name": the name of the tool, "arguments": the object of its arguments}.'
    )
    return ForcedCall(tuple(tool.function.name for tool in tools), _any_of(tools), f"{text}\n\n{shown}")


def bound(request: ChatRequest, forced: ForcedCall) -> ChatRequest:
    """``request`` with the call's schema in place of its tools and format, and the instruction in its system text."""
    messages = request.messages or []
    if messages and messages[0].role == "system":
        told = "\n\n".join(filter(None, (messages[0].content, forced.instruction)))
        messages = [msgspec.structs.replace(messages[0], content=told), *messages[1:]]
    else:
        messages = [Message(role="system", content=forced.instruction), *messages]
    return msgspec.structs.replace(request, messages=messages, tools=None, format=forced.format)


def _described(tool: Tool) -> str:
    function = tool.function
    fields = {"name": function.name, "description": function.description, "parameters": function.parameters}
    return _encode({key: value for key, value in fields.items() if value}).decode()


def _parameters(tool: Tool) -> dict[str, Any]:
    """The schema of a tool's arguments: an object in any case."""
    parameters = tool.function.parameters
    if not parameters:
        return {"type": "object", "properties": {}, "additionalProperties": False}
    return parameters if "type" in parameters else {"type": "object", **parameters}


def _any_of(tools: Sequence[Tool]) -> dict[str, Any]:
    """``name`` stands before ``arguments``: llama.cpp's grammars keep the order, and a stream begins with the name."""
    definitions: dict[str, Any] = {}
    branches = []
    for index, tool in enumerate(tools):
        arguments = _parameters(tool)
        if _refers(arguments):  # its references count from the root, which is not its own any more
            place = f"tool{index}"
            definitions[place] = _moved(arguments, f"#/$defs/{place}")
            arguments = {_REFERENCE: f"#/$defs/{place}"}
        branch = {
            "type": "object",
            "properties": {"name": {"const": tool.function.name}, "arguments": arguments},
            "required": ["name", "arguments"],
            "additionalProperties": False,
        }
        branches.append(branch)
    return {"anyOf": branches, "$defs": definitions} if definitions else {"anyOf": branches}


def _refers(schema: object) -> bool:
    """Whether there is a reference in it. Schemas are as shallow as ``jsonbody.DEPTH_MAX``."""
    if isinstance(schema, dict):
        return _REFERENCE in schema or any(_refers(value) for value in schema.values())
    return isinstance(schema, list) and any(_refers(item) for item in schema)


def _moved(schema: Any, place: str) -> Any:
    """``schema`` for another place than the root: its references are rewritten."""
    if isinstance(schema, list):
        return [_moved(item, place) for item in schema]
    if not isinstance(schema, dict):
        return schema
    moved = {key: _moved(value, place) for key, value in schema.items()}
    reference = schema.get(_REFERENCE)
    if isinstance(reference, str) and reference.startswith("#"):
        moved[_REFERENCE] = place + reference[1:]
    return moved


class CallReader:
    """Reads the call out of the answer's content as it comes; the same whichever way the content is cut.

    States: *open* until it is clear what comes; then *call*, with ``name`` set and the arguments passed on, or *text*:
    the model wrote something else, which is passed on as the text that it is.
    """

    def __init__(self, forced: ForcedCall) -> None:
        self.name = ""
        """Set as soon as arguments may follow."""
        self.is_text = False
        self._names = forced.names
        self._head = ""
        self._arguments: list[str] = []
        self._chars = 0
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self._ended = False

    def feed(self, content: str) -> tuple[str, str]:
        """Text and arguments that may leave now; one of them is empty."""
        if self.is_text:
            return content, ""
        if not self.name:
            self._head += content
            text, content = self._opened()
            if text:
                return text, ""
        return "", self._argument(content) if content else ""

    def close(self) -> str:
        """The answer is over. The text that was held back, if no call came."""
        if self.name or self.is_text:
            return ""
        self.is_text = True
        return self._head

    @property
    def complete(self) -> bool:
        """Whether the arguments are a whole JSON object."""
        if not self._ended or self._chars > ARGUMENTS_CHARS_MAX:
            return self._ended
        try:
            _arguments_decoder.decode("".join(self._arguments))
        except (msgspec.DecodeError, RecursionError):
            return False
        return True

    def _opened(self) -> tuple[str, str]:
        """Of the head: the text that it is, or what already belongs to the arguments."""
        head = self._head
        begin = head.lstrip()
        if len(self._names) == 1:
            if begin.startswith("{"):
                self.name = self._names[0]
                return "", begin
        else:
            match = _HEAD.match(head)
            if match is not None and _name(match.group(1)) in self._names:
                self.name = _name(match.group(1))
                return "", head[match.end() :]
            if match is None and begin.startswith("{") and len(head) <= HEAD_CHARS_MAX:
                return "", ""
        self.is_text = bool(begin) or len(head) > HEAD_CHARS_MAX
        return (head if self.is_text else ""), ""

    def _argument(self, content: str) -> str:
        """The part of ``content`` up to the object's end; what follows it is nobody's."""
        if self._ended:
            return ""
        piece = content[: self._scan(content)]
        self._chars += len(piece)
        if self._chars <= ARGUMENTS_CHARS_MAX:
            self._arguments.append(piece)
        else:
            self._arguments.clear()
        return piece

    def _scan(self, content: str) -> int:
        """Where the object ends in ``content``; its length if it goes on."""
        position, length = 0, len(content)
        if self._escaped and length:
            self._escaped, position = False, 1
        while position < length:
            found = (_INSIDE if self._in_string else _OUTSIDE).search(content, position)
            if found is None:
                return length
            mark, position = found.group(), found.end()
            if mark == '"':
                self._in_string = not self._in_string
            elif mark == "\\":
                if position == length:
                    self._escaped = True
                position += 1
            elif mark in "{[":
                self._depth += 1
            else:
                self._depth -= 1
                if self._depth <= 0:
                    self._ended = True
                    return position
        return length


def _name(quoted: str) -> str:
    """Of a JSON string; empty if it is none."""
    try:
        return _string_decoder.decode(quoted)
    except msgspec.DecodeError:
        return ""
