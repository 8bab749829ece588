"""Tools for models of which the engine knows no way to call them: told in the system message, read out of the text.

The convention is Hermes', which SmolLM2, Qwen and others were trained on: ``<tool_call>{"name":…,"arguments":{…}}
</tool_call>``. A template that knows ``tools`` itself renders them; the answer is read the same way. Pure.
"""

from __future__ import annotations

from typing import Any

import msgspec

from bellmare.protocols.ollama import Message, Tool

OPEN, CLOSE = "<tool_call>", "</tool_call>"
CALL_CHARS_MAX = 65_536
"""A call that does not close by then is text."""
_SYSTEM = """You are given a question and a set of possible functions. If one of them helps to answer, call it.

You have access to the following tools:
<tools>{tools}</tools>

For each call return a JSON object with the function's name and arguments within <tool_call></tool_call> tags:
<tool_call>
{{"name": "function", "arguments": {{"argument": "value"}}}}
</tool_call>"""


def tools_system(tools: list[Tool]) -> str:
    """The system message that tells of ``tools``."""
    told = [{"type": "function", "function": tool.function} for tool in tools]
    return _SYSTEM.format(tools=msgspec.json.encode(told).decode())


def told_in_text(messages: list[Message], tools: list[Tool]) -> list[Message]:
    """The same conversation for a template that knows only roles and contents."""
    made: list[Message] = []
    system = tools_system(tools)
    for message in messages:
        if message.role == "system" and system:
            made.append(Message(role="system", content=f"{message.content or ''}\n\n{system}"))
            system = ""
        elif message.tool_calls:
            calls = [_call_text(call.function.name, call.function.arguments) for call in message.tool_calls]
            made.append(Message(role="assistant", content="\n".join([message.content or "", *calls]).strip()))
        elif message.role == "tool":
            made.append(Message(role="user", content=f"<tool_response>\n{message.content or ''}\n</tool_response>"))
        else:
            made.append(message)
    return [Message(role="system", content=system), *made] if system else made


def _call_text(name: str, arguments: dict[str, Any] | None) -> str:
    call = msgspec.json.encode({"name": name, "arguments": arguments or {}}).decode()
    return f"{OPEN}\n{call}\n{CLOSE}"


class ToolReader:
    """Finds calls in a text that comes in pieces. Any cutting of the text gives the same content and calls."""

    def __init__(self) -> None:
        self._held = ""
        self._calling = False
        self.calls = 0

    def feed(self, text: str) -> tuple[str, list[dict[str, Any]]]:
        """Content that is certainly none of a call, and calls that are complete, as ``{"name", "arguments"}``."""
        self._held += text
        content: list[str] = []
        calls: list[dict[str, Any]] = []
        while self._step(content, calls):
            pass
        self.calls += len(calls)
        return "".join(content), calls

    def finish(self) -> tuple[str, list[dict[str, Any]]]:
        """What is left at the end: a call whose closing tag is missing, or text."""
        held, self._held = self._held, ""
        if self._calling:
            self._calling = False
            call = _parsed(held)
            if call is not None:
                self.calls += 1
                return "", [call]
            return OPEN + held, []
        return held, []

    def _step(self, content: list[str], calls: list[dict[str, Any]]) -> bool:
        """One tag; False if more text is needed."""
        if not self._calling:
            before, tag, after = self._held.partition(OPEN)
            if not tag:
                kept = _overlap(self._held)
                content.append(self._held[: len(self._held) - kept])
                self._held = self._held[len(self._held) - kept :]
                return False
            content.append(before)
            self._held, self._calling = after, True
            return True
        inside, tag, after = self._held.partition(CLOSE)
        if not tag:
            if len(self._held) > CALL_CHARS_MAX:
                content.append(OPEN + self._held)
                self._held, self._calling = "", False
            return False
        call = _parsed(inside)
        if call is None:
            content.append(OPEN + inside + CLOSE)
        else:
            calls.append(call)
        self._held, self._calling = after, False
        return True


def _overlap(text: str) -> int:
    """Length of the longest end of ``text`` that begins the opening tag."""
    for length in range(min(len(text), len(OPEN) - 1), 0, -1):
        if OPEN.startswith(text[-length:]):
            return length
    return 0


def _parsed(text: str) -> dict[str, Any] | None:
    """A call; None for what is none."""
    try:
        found = msgspec.json.decode(text.strip().encode())
    except (msgspec.DecodeError, UnicodeEncodeError, RecursionError):
        return None
    if not isinstance(found, dict) or not isinstance(found.get("name"), str):
        return None
    arguments = found.get("arguments", found.get("parameters"))
    if arguments is None:
        arguments = {}
    return {"name": found["name"], "arguments": arguments} if isinstance(arguments, dict) else None
