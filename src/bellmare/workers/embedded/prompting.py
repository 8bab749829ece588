"""From a request to the prompt that the engine completes: template, then Ollama's two ways to cut what is too long.

First whole messages, oldest first, without the system's and the last one; then, for one that is too long by itself,
tokens: the first ``num_keep`` and the newest half of the rest (ollama.md 5).
"""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec

from bellmare.http.client import Upstream, UpstreamError
from bellmare.protocols.ollama import ChatRequest, GenerateRequest, Message
from bellmare.workers.embedded.completion import template_messages
from bellmare.workers.embedded.gguf_header import GgufHeader
from bellmare.workers.embedded.refusals import OllamaError
from bellmare.workers.embedded.relay import RUNNER_DIED
from bellmare.workers.embedded.toolcalls import told_in_text

CALL_TIMEOUT_S = 30.0
NUM_KEEP = 4
"""Ollama's default."""
_SPECIAL_TOKENS = 4
"""Beginning and end of a text; beside these no text has more tokens than bytes, a blank counted as the three of
U+2581, which SentencePiece puts in its place."""

Prompt = str | list[int]
_Request = TypeVar("_Request", bound=GenerateRequest | ChatRequest)


class Prompter:
    """Makes the prompts of one request on one loaded model."""

    def __init__(self, upstream: Upstream, header: GgufHeader, *, num_ctx: int) -> None:
        self._upstream = upstream
        self._header = header
        self._num_ctx = num_ctx

    async def rendered(self, request: GenerateRequest | ChatRequest) -> str:
        """The whole text, through the chat template unless raw."""
        if isinstance(request, GenerateRequest) and request.raw:
            return request.prompt or ""
        return await self._template(self._plain(request))

    async def fitting(self, request: GenerateRequest | ChatRequest) -> Prompt:
        """As :meth:`rendered`, cut to the context unless the request says ``truncate: false``."""
        prompt = await self.rendered(request)
        if request.truncate is False or await self._fits(prompt):
            return prompt
        if isinstance(request, ChatRequest):
            prompt = await self._without_oldest(self._plain(request))
        tokens = await self.tokens(prompt)
        if len(tokens) <= self._num_ctx:
            return prompt
        given = (request.options or {}).get("num_keep")
        keep = (given if isinstance(given, int) and given >= 0 else NUM_KEEP) + self._adds_beginning()
        keep = min(keep, self._num_ctx - 1)
        limit = self._num_ctx - (self._num_ctx - keep) // 2
        return tokens[:keep] + tokens[len(tokens) - (limit - keep) :]

    async def tokens(self, text: str) -> list[int]:
        """As the engine will count them, special ones included."""
        body = {"content": text, "add_special": True, "parse_special": True}
        found: list[int] = (await self._call("/tokenize", msgspec.json.encode(body)))["tokens"]
        return found

    def _plain(self, request: _Request) -> _Request:
        """With the tools told in words, where the template does not know of any."""
        if not isinstance(request, ChatRequest) or knows_tools(self._header):
            return request
        messages = request.messages or []
        if request.tools or any(message.tool_calls or message.role == "tool" for message in messages):
            told = told_in_text(messages, request.tools or [])
            return msgspec.structs.replace(request, messages=told, tools=None)
        return request

    async def _without_oldest(self, request: ChatRequest) -> str:
        """The most messages that fit; if none but system and last are left, those. Halving: few calls, not one each."""
        messages = request.messages or []
        droppable = [index for index, one in enumerate(messages[:-1]) if one.role != "system"]
        low, high = 1, len(droppable)
        if not droppable:
            return await self._template(request)
        while low < high:
            middle = (low + high) // 2
            if await self._fits(await self._template(_without(request, droppable[:middle]))):
                high = middle
            else:
                low = middle + 1
        return await self._template(_without(request, droppable[:low]))

    async def _fits(self, prompt: str) -> bool:
        if len(prompt.encode()) + 2 * prompt.count(" ") + _SPECIAL_TOKENS <= self._num_ctx:
            return True
        return len(await self.tokens(prompt)) <= self._num_ctx

    async def _template(self, request: GenerateRequest | ChatRequest) -> str:
        prompt: str = (await self._call("/apply-template", template_messages(request)))["prompt"]
        return prompt

    def _adds_beginning(self) -> int:
        return int(self._header.metadata.get("tokenizer.ggml.add_bos_token") is True)

    async def _call(self, path: str, body: bytes) -> Any:
        try:
            answer = await self._upstream.fetch("POST", path, body=body, timeout_s=CALL_TIMEOUT_S)
        except UpstreamError:
            raise OllamaError(500, RUNNER_DIED) from None
        if answer.status != 200:
            raise OllamaError(answer.status, answer.body.decode("utf-8", "replace")[:65_536])
        return msgspec.json.decode(answer.body)


def knows_tools(header: GgufHeader) -> bool:
    """Whether the model's own template renders tools."""
    return "tools" in header.chat_template


def _without(request: ChatRequest, dropped: list[int]) -> ChatRequest:
    gone = set(dropped)
    messages: list[Message] = [one for index, one in enumerate(request.messages or ()) if index not in gone]
    return msgspec.structs.replace(request, messages=messages)
