"""Generate, chat, embed, their loads and unloads: from a body to a question for the twin (ollama.md 1.4, 2.1-2.3)."""

from collections.abc import Callable
from typing import Any

from bellmare.http.server import Exchange
from bellmare.protocols.errors import InvalidRequest
from bellmare.twin.config import TwinModel
from bellmare.twin.messages import Finished, Generate, LoadOnly, RunnerOptions, Unload, UnloadReplied
from bellmare.workers.sim.answers import GenerationAnswer, ShortAnswer
from bellmare.workers.sim.driver import Driver, RequestEffect
from bellmare.workers.sim.faults import Faults
from bellmare.workers.sim.render import NativeVoice, OpenAIVoice
from bellmare.workers.sim.requests import Body, messages_text, prompt_tokens, runner_options
from bellmare.workers.sim.text import Story, count_tokens, embedding, natural_length, normalised, seed_of

TOOL_MARKER = "[[call a tool]]"
"""A prompt with these words, in a request with tools, is answered by a call of the first tool."""
TOOL_TOKENS = 8


class Inference:
    """The handlers that need the scheduler."""

    def __init__(self, driver: Driver, faults: Faults, *, seed: int) -> None:
        self._driver = driver
        self._faults = faults
        self._seed = seed

    def generate(self, exchange: Exchange) -> None:
        """POST /api/generate."""
        body = Body(exchange.request.body)
        text = body.text("prompt")
        self._native(exchange, body, text=text, tokens=prompt_tokens(body), chat=False)

    def chat(self, exchange: Exchange) -> None:
        """POST /api/chat."""
        body = Body(exchange.request.body)
        text, tokens = messages_text(body.rows("messages"))
        self._native(exchange, body, text=text, tokens=tokens, chat=True)

    def openai_chat(self, exchange: Exchange) -> None:
        """POST /v1/chat/completions: no num_ctx, no keep_alive (ollama.md 1.8)."""
        body = Body(exchange.request.body)
        model = self._model(body)
        messages = body.rows("messages")
        if not messages:
            raise InvalidRequest("[] is too short - 'messages'")
        _check(model, body, verb="chat")
        text, tokens = messages_text(messages)
        story, cut = self._story(body, text, limit=body.get("max_tokens"))
        streams = body.flag("stream", default=False) is True
        usage = (body.get("stream_options") or {}).get("include_usage") is True
        created = self._driver.clock.now_us() // 1_000_000 + 1_700_000_000
        voice = OpenAIVoice(story, body.asked_name, created=created, usage=usage)
        answer = GenerationAnswer(exchange, self._driver, voice=voice, stream=streams)
        answer.begin(
            Generate(
                answer.request,
                model.name,
                tokens,
                story.length,
                length_cut=cut,
                fail_after_tokens=self._faults.take_error_after(),
            )
        )

    def embed(self, exchange: Exchange) -> None:
        """POST /api/embed. Inputs run as one call of their summed length."""
        body = Body(exchange.request.body)
        given = body.get("input")
        texts = [given] if isinstance(given, str) else ([] if given is None else given)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise InvalidRequest("invalid input type")
        texts = [] if texts == [""] else texts
        model = self._model(body, embed=True)
        dimensions = body.get("dimensions") or model.embedding_length

        def render(effect: RequestEffect) -> dict[str, Any]:
            if not isinstance(effect, Finished):
                return {"model": body.asked_name, "embeddings": []}
            full = [embedding(self._of(text), model.embedding_length) for text in texts]
            return {
                "model": body.asked_name,
                "embeddings": [normalised(vector[:dimensions]) for vector in full],
                "total_duration": effect.total_us * 1000,
                "load_duration": effect.load_us * 1000,
                "prompt_eval_count": effect.prompt_tokens,
            }

        answer = ShortAnswer(exchange, self._driver, render=render, crash_status=400)
        self._begin_embedding(answer, body, model=model, texts=texts)

    def embeddings(self, exchange: Exchange) -> None:
        """POST /api/embeddings, the deprecated single form."""
        body = Body(exchange.request.body)
        text = body.text("prompt")
        model = self._model(body, embed=True)

        def render(effect: RequestEffect) -> dict[str, Any]:
            if not isinstance(effect, Finished):
                return {"embedding": []}
            return {"embedding": embedding(self._of(text), model.embedding_length)}

        answer = ShortAnswer(exchange, self._driver, render=render)
        self._begin_embedding(answer, body, model=model, texts=[text] if text else [])

    # ---- inside -----------------------------------------------------------------------------------------------------

    def _begin_embedding(self, answer: ShortAnswer, body: Body, *, model: TwinModel, texts: list[str]) -> None:
        keep_alive_us, options = body.keep_alive_us, runner_options(body.options())
        if not texts:
            answer.begin(LoadOnly(answer.request, model.name, keep_alive_us, options, embed=True))
            return
        answer.begin(
            Generate(
                answer.request,
                model.name,
                sum(map(count_tokens, texts)),
                keep_alive_us=keep_alive_us,
                options=options,
                truncate=body.flag("truncate", default=True) is not False,
                embed=True,
            )
        )

    def _native(self, exchange: Exchange, body: Body, *, text: str, tokens: int, chat: bool) -> None:
        """What generate and chat have in common."""
        model = self._model(body)
        keep_alive_us = body.keep_alive_us
        empty = not body.rows("messages") if chat else not text
        if empty and keep_alive_us == 0:
            self._short(exchange, body, chat=chat, ask=lambda request: Unload(request, model.name))
            return
        _check(model, body, verb="chat" if chat else "generate")
        options = body.options()
        shape = runner_options(options)
        shift = body.flag("shift", default=None)
        if empty:
            load = _loader(model.name, keep_alive_us, options=shape, shift=shift)
            self._short(exchange, body, chat=chat, ask=load)
            return
        tool = _tool(body, text) if chat else ""
        story, cut = self._story(body, text, limit=options.get("num_predict"), seed=options.get("seed"))
        if tool:
            story, cut = Story(0, TOOL_TOKENS), False
        voice = NativeVoice(story, body.asked_name, clock=self._driver.clock, chat=chat, tool=tool)
        answer = GenerationAnswer(exchange, self._driver, voice=voice, stream=body.stream)
        answer.begin(
            Generate(
                answer.request,
                model.name,
                tokens,
                story.length,
                length_cut=cut,
                keep_alive_us=keep_alive_us,
                options=shape,
                shift=shift,
                truncate=body.flag("truncate", default=True) is not False,
                fail_after_tokens=self._faults.take_error_after(),
            )
        )

    def _short(self, exchange: Exchange, body: Body, *, chat: bool, ask: Callable[[str], Unload | LoadOnly]) -> None:
        """The empty forms: one object, never NDJSON, without durations (ollama.md 2.1)."""

        def render(effect: RequestEffect) -> dict[str, Any]:
            said = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
            return {
                "model": body.asked_name,
                "created_at": self._driver.clock.stamp().decode(),
                **said,
                "done": True,
                "done_reason": "unload" if isinstance(effect, UnloadReplied) else "load",
            }

        answer = ShortAnswer(exchange, self._driver, render=render)
        answer.begin(ask(answer.request))

    def _model(self, body: Body, *, embed: bool = False) -> TwinModel:
        model = self._driver.twin.model(body.name)
        if model is None:
            name = body.asked_name
            text = f'model "{name}" not found, try pulling it first' if embed else f"model '{name}' not found"
            raise InvalidRequest(text, status=404)
        return model

    def _of(self, text: str) -> int:
        return seed_of(self._seed, text)

    def _story(self, body: Body, text: str, *, limit: object, seed: object = None) -> tuple[Story, bool]:
        """What to say, and whether a limit ends it. A limit is used up: load tests want a known number of tokens."""
        number = seed_of(self._seed, seed or 0, text)
        cut = isinstance(limit, int) and limit > 0
        length = limit if isinstance(limit, int) and limit > 0 else natural_length(number)
        return Story(number, length, as_json=bool(body.get("format"))), cut


def _loader(
    name: str, keep_alive_us: int | None, *, options: RunnerOptions, shift: bool | None
) -> Callable[[str], LoadOnly]:
    return lambda request: LoadOnly(request, name, keep_alive_us, options, shift)


def _check(model: TwinModel, body: Body, *, verb: str) -> None:
    """Capabilities (ollama.md 1.4, 1.6)."""
    asked = body.asked_name
    if "completion" not in model.capabilities:
        raise InvalidRequest(f'"{asked}" does not support {verb}')
    if body.get("think") and "thinking" not in model.capabilities:
        raise InvalidRequest(f'"{asked}" does not support thinking')
    if body.get("tools") and "tools" not in model.capabilities:
        raise InvalidRequest(f"registry.ollama.ai/library/{model.name} does not support tools")


def _tool(body: Body, text: str) -> str:
    """The function that a scripted prompt calls; empty: none."""
    if TOOL_MARKER not in text:
        return ""
    for tool in body.rows("tools"):
        function = tool.get("function") if isinstance(tool, dict) else None
        if isinstance(function, dict) and isinstance(function.get("name"), str):
            return str(function["name"])
    return ""
