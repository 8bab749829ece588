"""Generate, chat, embed, their loads and unloads: from a body to a question for the twin (ollama.md 1.4, 2.1-2.3)."""

from collections.abc import Callable
from typing import Any

from bellmare.http.server import Exchange
from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.ollama_fields import checked_format
from bellmare.twin.config import TwinModel
from bellmare.twin.messages import Finished, Generate, LoadOnly, RunnerOptions, Unload, UnloadReplied
from bellmare.workers.sim.answers import GenerationAnswer, ShortAnswer
from bellmare.workers.sim.driver import Driver, RequestEffect
from bellmare.workers.sim.faults import Faults
from bellmare.workers.sim.probabilities import Probabilities
from bellmare.workers.sim.prompting import generate_messages, rendered_chat
from bellmare.workers.sim.render import NativeVoice, OpenAIVoice
from bellmare.workers.sim.requests import (
    CHAT_FIELDS,
    EMBED_FIELDS,
    EMBEDDINGS_FIELDS,
    GENERATE_FIELDS,
    Body,
    counted,
    messages_text,
    prompt_tokens,
    runner_options,
)
from bellmare.workers.sim.speech import Asked, Speech, speech
from bellmare.workers.sim.text import count_tokens, embedding, normalised, seed_of
from bellmare.workers.sim.vocabulary import Vocabulary, vocabulary
from bellmare.workers.sim.world import World

TOP_LOGPROBS_MAX = 20
NO_VISION = "this model is missing data required for image input"


class Inference:
    """The handlers that need the scheduler."""

    def __init__(self, driver: Driver, faults: Faults, *, world: World, seed: int) -> None:
        self._driver = driver
        self._world = world
        self._faults = faults
        self._seed = seed

    def generate(self, exchange: Exchange) -> None:
        """POST /api/generate."""
        body = Body(exchange.request.body)
        body.check_types(GENERATE_FIELDS)
        text = body.text("prompt")
        self._native(exchange, body, text=text, tokens=prompt_tokens(body), chat=False)

    def chat(self, exchange: Exchange) -> None:
        """POST /api/chat."""
        body = Body(exchange.request.body)
        body.check_types(CHAT_FIELDS)
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
        said = self._speech(body, text, options={"num_predict": body.get("max_tokens")})
        streams = body.flag("stream", default=False) is True
        usage = (body.get("stream_options") or {}).get("include_usage") is True
        created = self._driver.clock.now_us() // 1_000_000 + 1_700_000_000
        voice = OpenAIVoice(said, body.asked_name, created=created, usage=usage)
        answer = GenerationAnswer(exchange, self._driver, voice=voice, stream=streams)
        answer.begin(
            Generate(
                answer.request,
                model.name,
                tokens,
                said.length,
                length_cut=said.cut,
                fail_after_tokens=self._faults.take_error_after(),
            )
        )

    def embed(self, exchange: Exchange) -> None:
        """POST /api/embed. Inputs run as one call of their summed length."""
        body = Body(exchange.request.body)
        body.check_types(EMBED_FIELDS)
        if not body.asked_name.strip():
            raise InvalidRequest(f"model '{body.asked_name}' not found", status=404)
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
        body.check_types(EMBEDDINGS_FIELDS)
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
        counter = self._counter(model)
        if not texts:
            answer.begin(LoadOnly(answer.request, model.name, keep_alive_us, options, embed=True))
            return
        answer.begin(
            Generate(
                answer.request,
                model.name,
                sum(counted(counter, text) if counter else count_tokens(text) for text in texts),
                keep_alive_us=keep_alive_us,
                options=options,
                truncate=body.flag("truncate", default=True) is not False,
                embed=True,
            )
        )

    def _native(self, exchange: Exchange, body: Body, *, text: str, tokens: int, chat: bool) -> None:
        """What generate and chat have in common."""
        _check_top_logprobs(body)
        if not chat and not body.asked_name.strip():
            raise InvalidRequest(f"model '{body.asked_name}' not found", status=404)
        model = self._model(body)
        keep_alive_us = body.keep_alive_us
        empty = not body.rows("messages") if chat else not text
        if empty and keep_alive_us == 0:
            self._short(exchange, body, chat=chat, ask=lambda request: Unload(request, model.name))
            return
        raw = body.flag("raw", default=False) is True
        if raw and (body.text("template") or body.text("system") or body.rows("context")):
            raise InvalidRequest("raw mode does not support template, system, or context")
        _check(model, body, verb="chat" if chat else "generate")
        options = self._world.entry(model).model.parameters | body.options()
        shape = runner_options(options)
        shift = body.flag("shift", default=None)
        load = _loader(model.name, keep_alive_us, options=shape, shift=shift)
        if empty:
            self._short(exchange, body, chat=chat, ask=load)
            return
        checked_format(body.get("format"))
        if "vision" not in model.capabilities and _image_count(body):
            raise InvalidRequest(NO_VISION)
        if body.flag("_debug_render_only", default=False):
            self._render(exchange, body, chat=chat, ask=load)
            return
        counter = self._counter(model)
        if counter is not None:
            tokens = counted(counter, _prompt(body, chat=chat), _image_count(body)) + len(body.rows("context"))
        thinks = "thinking" in model.capabilities and body.get("think") is not False
        said = self._speech(body, text, options=options, thinks=thinks)
        voice = NativeVoice(
            said, body.asked_name, clock=self._driver.clock, chat=chat, raw=raw, probabilities=self._probabilities(body)
        )
        answer = GenerationAnswer(exchange, self._driver, voice=voice, stream=body.stream)
        answer.begin(
            Generate(
                answer.request,
                model.name,
                tokens,
                said.length,
                length_cut=said.cut,
                keep_alive_us=keep_alive_us,
                options=shape,
                shift=shift,
                truncate=body.flag("truncate", default=True) is not False,
                fail_after_tokens=self._faults.take_error_after(),
            )
        )

    def _render(self, exchange: Exchange, body: Body, *, chat: bool, ask: Callable[[str], LoadOnly]) -> None:
        """``_debug_render_only``: the prompt, once the model is loaded, and no inference (ollama.md 5, 12)."""
        prompt = _prompt(body, chat=chat)
        images = _image_count(body)
        told = {"rendered_template": prompt} | ({"image_count": images} if images else {})

        def render(_: RequestEffect) -> dict[str, Any]:
            said = {"message": {"role": "", "content": ""}} if chat else {"response": ""}
            return self._stamp(body) | said | {"done": False, "_debug_info": told}

        answer = ShortAnswer(exchange, self._driver, render=render)
        answer.begin(ask(answer.request))

    def _short(self, exchange: Exchange, body: Body, *, chat: bool, ask: Callable[[str], Unload | LoadOnly]) -> None:
        """The empty forms: one object, never NDJSON, without durations (ollama.md 2.1)."""

        def render(effect: RequestEffect) -> dict[str, Any]:
            said = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
            reason = "unload" if isinstance(effect, UnloadReplied) else "load"
            return self._stamp(body) | said | {"done": True, "done_reason": reason}

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

    def _counter(self, model: TwinModel) -> Vocabulary | None:
        kind = self._world.entry(model).model.tokenizer
        return vocabulary(kind) if kind else None

    def _stamp(self, body: Body) -> dict[str, Any]:
        return {"model": body.asked_name, "created_at": self._driver.clock.stamp().decode()}

    def _speech(self, body: Body, text: str, *, options: dict[str, Any], thinks: bool = False) -> Speech:
        limit, stops = options.get("num_predict"), options.get("stop")
        return speech(
            Asked(
                seed=seed_of(self._seed, options.get("seed") or 0, text),
                text=text,
                messages=body.rows("messages"),
                tools=body.rows("tools"),
                form=body.get("format") or None,
                thinks=thinks,
                limit=limit if isinstance(limit, int) else 0,
                stops=tuple(stop for stop in stops if isinstance(stop, str)) if isinstance(stops, list) else (),
            )
        )

    def _probabilities(self, body: Body) -> Probabilities | None:
        if not body.flag("logprobs", default=False):
            return None
        return Probabilities(self._seed, body.get("top_logprobs") or 0)


def _loader(
    name: str, keep_alive_us: int | None, *, options: RunnerOptions, shift: bool | None
) -> Callable[[str], LoadOnly]:
    return lambda request: LoadOnly(request, name, keep_alive_us, options, shift)


def _check(model: TwinModel, body: Body, *, verb: str) -> None:
    """Capabilities and values (ollama.md 1.4, 1.6)."""
    asked, full_name = body.asked_name, f"registry.ollama.ai/library/{model.name}"
    if body.get("think") and "thinking" not in model.capabilities:
        raise InvalidRequest(f'"{asked}" does not support thinking')
    if "completion" not in model.capabilities:
        raise InvalidRequest(f'"{asked}" does not support {verb}')
    if body.rows("tools") and "tools" not in model.capabilities:
        raise InvalidRequest(f"{full_name} does not support tools")
    if body.text("suffix") and "insert" not in model.capabilities:
        raise InvalidRequest(f"{full_name} does not support insert")


def _check_top_logprobs(body: Body) -> None:
    """Before anything else, the name included."""
    top = body.get("top_logprobs")
    if top is not None and not 0 <= top <= TOP_LOGPROBS_MAX:
        raise InvalidRequest(f"top_logprobs must be between 0 and {TOP_LOGPROBS_MAX}")


def _prompt(body: Body, *, chat: bool) -> str:
    """The text that the model sees."""
    if chat:
        return rendered_chat(body.rows("messages"))
    if body.flag("raw", default=False):
        return body.text("prompt")
    return rendered_chat(generate_messages(body.text("prompt"), body.text("system"), body.rows("images")))


def _image_count(body: Body) -> int:
    rows = [body.rows("images"), *(row.get("images") or () for row in body.rows("messages") if isinstance(row, dict))]
    return sum(map(len, rows))
