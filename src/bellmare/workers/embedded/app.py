"""Ollama's wire API over the engine: routes, statuses and texts as ollama.md 1.3 to 1.6 and 12 give them.

One task per request; a client that leaves cancels it, and with it what it was waiting for: a load, a slot, an answer.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec

from bellmare import __version__
from bellmare.http.client import Upstream
from bellmare.http.exchange import Exchange
from bellmare.http.listening import Leaver
from bellmare.http.messages import Refusal, Request
from bellmare.protocols.errors import Dialect, InvalidRequest, render_error
from bellmare.protocols.names import canonical_name
from bellmare.protocols.ollama import (
    ChatRequest,
    EmbeddingsRequest,
    EmbedRequest,
    GenerateRequest,
    InferenceRequest,
    is_load,
    is_unload,
    keep_alive_seconds,
    parse_chat,
    parse_embed,
    parse_embeddings,
    parse_generate,
    parse_show,
    stream_wanted,
)
from bellmare.workers.embedded import catalogue
from bellmare.workers.embedded.catalogue import Catalogue, NamedModel
from bellmare.workers.embedded.completion import (
    AnswerWriter,
    completion_body,
    refuse_unsupported,
)
from bellmare.workers.embedded.embedding import NO_EMBEDDINGS, Embedded, embed, shortened
from bellmare.workers.embedded.engine import Engine, LoadRefused, Runner
from bellmare.workers.embedded.gguf_header import GgufError, read_header
from bellmare.workers.embedded.hosts import is_foreign
from bellmare.workers.embedded.process import EngineStartError
from bellmare.workers.embedded.prompting import Prompter
from bellmare.workers.embedded.refusals import OllamaError
from bellmare.workers.embedded.relay import JSON_HEADERS, Relay, respond_error, rfc3339

OLLAMA_VERSION = f"0.33.0+bellmare.{__version__}"
"""The Ollama whose wire this is; clients parse it."""
REQUEST_BYTES_MAX = 32 << 20
"""Ollama has no limit. A prompt for the largest context is under 2 MB."""
NUM_CTX_MIN = 4
"""As Ollama."""
RUNNER_GONE = (
    "model runner has unexpectedly stopped, this may be due to resource limitations or an internal error, "
    "check ollama server logs for details"
)
_TEXT_HEADERS = ((b"content-type", b"text/plain; charset=utf-8"),)
_FOREVER_NS = (1 << 63) - 1
"""Go's longest duration: -1 shows as some 292 years from now."""

Handler = Callable[[Exchange], Awaitable[None]]


class App:
    """The http server's application. ``num_ctx`` is used where a request names none, in tokens per slot.

    ``check_host``: refuse requests for foreign host names, as Ollama does while it listens on a loopback address.
    """

    def __init__(self, models: Catalogue, engine: Engine, *, num_ctx: int, check_host: bool) -> None:
        self._check_host = check_host
        self._models = models
        self._engine = engine
        self._num_ctx = num_ctx
        self._tasks: set[asyncio.Task[None]] = set()
        reads: dict[str, Handler] = {"/": self._root, "/api/version": self._version, "/api/tags": self._tags}
        posts: dict[str, Handler] = {
            "/api/show": self._show,
            "/api/generate": self._generate,
            "/api/chat": self._chat,
            "/api/embed": self._embed,
            "/api/embeddings": self._embeddings,
        }
        self._routes: dict[str, dict[str, Handler]] = {
            **{path: {"GET": handler, "HEAD": handler} for path, handler in reads.items()},
            **{path: {"POST": handler} for path, handler in posts.items()},
            "/api/ps": {"GET": self._ps},
            "/api/bellmare": {"GET": self._bellmare},
        }

    async def close(self) -> None:
        """Cancel what is under way and wait for it."""
        for task in self._tasks:
            task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    # The http server's callbacks

    def on_head(self, request: Request) -> Refusal | int:
        if is_foreign(request, check_host=self._check_host):
            return Refusal(403)
        methods = self._routes.get(request.path)
        if methods is None:
            return Refusal(404, _TEXT_HEADERS, b"404 page not found")
        if request.method not in methods:
            return Refusal(405, _TEXT_HEADERS, b"405 method not allowed")
        return REQUEST_BYTES_MAX

    def on_request(self, exchange: Exchange) -> None:
        handler = self._routes[exchange.request.path][exchange.request.method]
        # Workers stand below the runtime, whose task group they may not import.
        work: Coroutine[Any, Any, None] = self._serve(handler, exchange)
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        exchange.listener = Leaver(task)

    def on_bad_request(self, status: int, reason: str, target: str) -> Refusal:  # tidy: the http server calls it so
        return Refusal(status, JSON_HEADERS, render_error(Dialect.ollama, status, reason))

    async def _serve(self, handler: Handler, exchange: Exchange) -> None:
        """The end of every request: what a handler raises becomes an answer."""
        try:
            await handler(exchange)
        except InvalidRequest as error:
            respond_error(exchange, error.message, status=error.status)
        except OllamaError as error:
            respond_error(exchange, error.text, status=error.status)
        except (LoadRefused, EngineStartError, GgufError, OSError) as error:
            respond_error(exchange, str(error), status=500)
        except asyncio.CancelledError:
            # The client left, or we are closing: then it deserves more than a silent cut.
            _end_unanswered(exchange)
            raise
        except Exception as error:  # noqa: BLE001 - this is where the task ends
            _end_unanswered(exchange)
            context = {"message": f"{exchange.request.path} failed", "exception": error}
            asyncio.get_running_loop().call_exception_handler(context)

    # Routes that read

    async def _root(self, exchange: Exchange) -> None:
        exchange.respond(200, _TEXT_HEADERS, b"Ollama is running")

    async def _version(self, exchange: Exchange) -> None:
        _respond(exchange, {"version": OLLAMA_VERSION})

    async def _tags(self, exchange: Exchange) -> None:
        await self._models.refresh()
        _respond(exchange, {"models": [_listed(model) for model in self._models.models()]})

    async def _ps(self, exchange: Exchange) -> None:
        _respond(exchange, {"models": [_running(runner) for runner in self._engine.runners()]})

    async def _bellmare(self, exchange: Exchange) -> None:
        """What a gateway cannot learn from Ollama's own routes."""
        config = self._engine.config
        answer = {
            "kind": "embedded",
            "vram_bytes": config.memory_bytes,
            "overhead_bytes": config.runner_overhead_bytes,
            "parallel": config.parallel,
            "runners_max": 0,
            "fit_percent": 100,
            "counters": self._engine.counters,
        }
        _respond(exchange, answer)

    async def _show(self, exchange: Exchange) -> None:
        request = parse_show(exchange.request.body)
        model = await self._find(request.model)
        header = model.blob.header
        answer = {
            "modelfile": catalogue.modelfile(model),
            "parameters": "",
            "template": header.chat_template,
            "details": catalogue.details(model.blob),
            "model_info": {},
            "tensors": header.tensors,
            "capabilities": catalogue.capabilities(model.blob),
            "modified_at": rfc3339(model.blob.modified_ns),
        }
        if request.verbose:
            # Megabytes of vocabulary: read again and written down on a thread.
            exchange.respond(200, JSON_HEADERS, await asyncio.to_thread(_verbose, model.blob.path, answer))
            return
        _respond(exchange, answer | {"model_info": catalogue.model_info(header)})

    # Routes that need a runner

    async def _generate(self, exchange: Exchange) -> None:
        await self._complete(exchange, parse_generate(exchange.request.body), verb="generate")

    async def _chat(self, exchange: Exchange) -> None:
        await self._complete(exchange, parse_chat(exchange.request.body), verb="chat")

    async def _complete(self, exchange: Exchange, request: GenerateRequest | ChatRequest, *, verb: str) -> None:
        started_ns = time.monotonic_ns()
        model = await self._find(request.model)
        writer = AnswerWriter(request)
        if is_unload(request):
            self._engine.expire(model)
            exchange.respond(200, JSON_HEADERS, writer.empty("unload", created_at=_now()))
            return
        if model.blob.header.is_embedding_model:
            raise InvalidRequest(f'"{request.model}" does not support {verb}')
        refuse_unsupported(request, name=model.name, tools="tools" in catalogue.capabilities(model.blob))
        async with self._runner(request, model) as runner:
            load_ns = time.monotonic_ns() - started_ns
            if is_load(request):
                exchange.respond(200, JSON_HEADERS, writer.empty("load", created_at=_now()))
                return
            relay = Relay(
                exchange, writer, stream=stream_wanted(request), started_ns=started_ns, load_ns=load_ns
            )  # fmt: skip
            async with runner.slots:
                upstream = _upstream(runner)
                prompter = Prompter(upstream, model.blob.header, num_ctx=runner.num_ctx)
                if request.debug_render_only:
                    prompt = await prompter.rendered(request)
                    exchange.respond(200, JSON_HEADERS, writer.rendered(prompt, created_at=_now()))
                    return
                fitting = await prompter.fitting(request)
                await relay.run(upstream, completion_body(request, fitting, num_ctx=runner.num_ctx))

    async def _embed(self, exchange: Exchange) -> None:
        started_ns = time.monotonic_ns()
        request = parse_embed(exchange.request.body)
        texts = [request.input] if isinstance(request.input, str) else request.input or []
        found, load_ns = await self._embedded(request, texts=texts, truncate=request.truncate is not False)
        answer: dict[str, Any] = {"model": request.model, "embeddings": []}
        if found is not None:
            answer["embeddings"] = [shortened(vector, request.dimensions) for vector in found.vectors]
            answer |= {"total_duration": time.monotonic_ns() - started_ns, "load_duration": load_ns}
            answer["prompt_eval_count"] = found.tokens
        _respond(exchange, answer)

    async def _embeddings(self, exchange: Exchange) -> None:
        request = parse_embeddings(exchange.request.body)
        found, _ = await self._embedded(request, texts=[request.prompt or ""], truncate=True)
        _respond(exchange, {"embedding": found.vectors[0] if found is not None else []})

    async def _embedded(
        self, request: EmbedRequest | EmbeddingsRequest, *, texts: list[str], truncate: bool
    ) -> tuple[Embedded | None, int]:
        """The vectors, and how long the load took in nanoseconds. None for a request that only loads."""
        started_ns = time.monotonic_ns()
        model = await self._find(request.model, text='model "{}" not found, try pulling it first')
        async with self._runner(request, model) as runner:
            load_ns = time.monotonic_ns() - started_ns
            if is_load(request):
                return None, load_ns
            if not model.blob.header.is_embedding_model:
                raise OllamaError(501, NO_EMBEDDINGS)
            async with runner.slots:
                upstream = _upstream(runner)
                prompter = Prompter(upstream, model.blob.header, num_ctx=runner.num_ctx)
                found = await embed(upstream, prompter, texts=texts, num_ctx=runner.num_ctx, truncate=truncate)
                return found, load_ns

    def _runner(self, request: InferenceRequest, model: NamedModel) -> Any:
        options = request.options or {}
        num_ctx = max(NUM_CTX_MIN, int(options.get("num_ctx") or self._num_ctx))
        if trained := model.blob.header.context_length:
            num_ctx = min(num_ctx, trained)
        return self._engine.runner(
            model,
            num_ctx=num_ctx,
            shift=not isinstance(request, GenerateRequest | ChatRequest) or request.shift is not False,
            keep_alive_s=keep_alive_seconds(request.keep_alive),
            implicit=not is_load(request),
        )

    async def _find(self, name: str, *, text: str = "model '{}' not found") -> NamedModel:
        model = await self._models.find(canonical_name(name))
        if model is None:
            raise OllamaError(404, text.format(name))
        return model


def _verbose(path: Path, answer: dict[str, Any]) -> bytes:
    """/api/show with every array."""
    header = read_header(path, whole_arrays=True)
    return msgspec.json.encode(answer | {"model_info": catalogue.model_info(header, arrays=True)})


def _upstream(runner: Runner) -> Upstream:
    """Of a runner that may have crashed while this request waited for its slot."""
    if runner.gone.is_set() or runner.upstream is None:
        raise OllamaError(500, RUNNER_GONE)
    return runner.upstream


def _end_unanswered(exchange: Exchange) -> None:
    if exchange.started:
        exchange.abort()
    else:
        respond_error(exchange, "request canceled", status=500)


def _respond(exchange: Exchange, answer: dict[str, Any]) -> None:
    exchange.respond(200, JSON_HEADERS, msgspec.json.encode(answer))


def _now() -> str:
    return rfc3339(time.time_ns())


def _listed(model: NamedModel) -> dict[str, Any]:
    blob = model.blob
    return {
        "name": model.name,
        "model": model.name,
        "modified_at": rfc3339(blob.modified_ns),
        "size": blob.size_bytes,
        "digest": blob.digest,
        "details": catalogue.details(blob),
        "capabilities": catalogue.capabilities(blob),
    }


def _running(runner: Runner) -> dict[str, Any]:
    blob = runner.model.blob
    if math.isinf(runner.expires_at_s):
        expires_ns = time.time_ns() + _FOREVER_NS
    else:
        expires_ns = int(runner.expires_at_s * 1e9)
    return {
        "name": runner.model.name,
        "model": runner.model.name,
        "size": runner.claimed_bytes,
        "digest": blob.digest,
        "details": catalogue.details(blob),
        "expires_at": rfc3339(expires_ns),
        "size_vram": runner.claimed_bytes,
        "context_length": runner.num_ctx,
    }
