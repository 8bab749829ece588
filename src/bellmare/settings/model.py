"""All settings: names, kinds, ranges, defaults and the reason of each. Immutable; sources are ``load``'s business.

Attributes carry their unit; the key in a file is the shorter alias, because there the value carries it.
"""

from collections.abc import Mapping
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PrivateAttr, model_validator

from bellmare.core.config import CoreConfig, ModelConfig, TenantConfig
from bellmare.core.events import WorkerKind
from bellmare.core.eviction.registry import POLICIES
from bellmare.core.units import GIB, MIB, SECOND_US, Bytes, SpanUs
from bellmare.protocols.names import canonical_name
from bellmare.settings.addresses import Address, AddressKind, WorkerUrl, WorkerUrlKind, parse_worker_url
from bellmare.settings.problems import Path, dotted, quoted
from bellmare.settings.quantities import (
    Choice,
    Count,
    Counts,
    Duration,
    Factor,
    Flag,
    Headroom,
    HeadroomKind,
    Percent,
    Size,
    Word,
    Words,
)

GATEWAY_PORT = 11435
ADMIN_PORT = 11436
TIB = 1 << 40
DAY_US = 86_400 * SECOND_US
MILLISECOND_US = 1_000
LAME_DUCK_US = 5 * SECOND_US
"""Kubernetes takes an endpoint out within a second or two; a balancer that asks `/readyz` every 2 s, within four."""
WORKERS_MAX = 1000
MODELS_MAX = 2000
CLASSES_MAX = 8
"""Each class is a model more to the core, and a load more on a GPU: from 8192 to 131072 there are four doublings."""
TENANTS_MAX = 1000
LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "json", "text")

HEADROOM_DEFAULTS = {
    WorkerKind.ollama: Headroom(size_bytes=GIB),
    WorkerKind.sim: Headroom(size_bytes=GIB),
    WorkerKind.embedded: Headroom(),
}
"""A GPU is never ours alone (driver, display, growing contexts); an embedded engine's memory is a limit that we set."""

_Context = Count(4, 16 * MIB, "tokens")
_Parallel = Count(1, 1024, "slots")
_Memory = Size(MIB, 64 * TIB)
_Wait = Duration(MILLISECOND_US, DAY_US)


def is_off(value: object) -> bool:
    """``off``, also as YAML 1.1 and JSON write it."""
    return value is False or (isinstance(value, str) and value.strip().casefold() == "off")


def _none_if_off(value: object) -> object:
    return None if is_off(value) else value


def _mapping_or_off(value: object) -> object:
    if value is None or is_off(value) or isinstance(value, Mapping | BaseModel):
        return _none_if_off(value)
    raise ValueError(f"{quoted(value)} is neither a mapping nor off")


OFF = BeforeValidator(_none_if_off)


class Section(BaseModel):
    """Base of all parts: closed, immutable, filled by the keys of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True, arbitrary_types_allowed=True)


class QueueSettings(Section):
    per_model: Annotated[int, Count(1, 100_000, "requests")] = Field(
        default=512,
        description="Requests that may wait for one model; the next is refused with 429. OLLAMA_MAX_QUEUE per model.",
    )
    total: Annotated[int, Count(1, 1_000_000, "requests")] = Field(
        default=20_000, description="Requests that may wait in all: bounds the gateway's memory."
    )
    wait_us: Annotated[SpanUs, _Wait] = Field(
        default=SpanUs(120 * SECOND_US),
        alias="wait",
        description="A request whose predicted wait is longer is refused at once with an honest Retry-After.",
    )
    timeout_us: Annotated[SpanUs, _Wait] = Field(
        default=SpanUs(300 * SECOND_US),
        alias="timeout",
        description="A request that was not dispatched after so long is refused with 504. At least `queue.wait`.",
    )
    heartbeat_us: Annotated[SpanUs, Duration(0, DAY_US)] = Field(
        default=SpanUs(0),
        alias="heartbeat",
        description=(
            "A stream that still waits hears something every so often: a blank, or a comment with its position, which "
            "clients ignore and proxies see. With the first one the status is 200, whatever comes. 0: nothing."
        ),
    )


class LimitSettings(Section):
    body_bytes: Annotated[Bytes, Size(1 << 10, 4 * GIB)] = Field(
        default=Bytes(64 * MIB), alias="body", description="Largest request body; images travel inside it as base64."
    )
    bodies_bytes: Annotated[Bytes, Size(1 << 20, 1024 * GIB)] = Field(
        default=Bytes(512 * MIB),
        alias="bodies",
        description="Request bodies above 64 KiB that are kept at once, all together; at least `body`. More get 503.",
    )
    load_timeout_us: Annotated[SpanUs, Duration(SECOND_US, DAY_US)] = Field(
        default=SpanUs(600 * SECOND_US),
        alias="load_timeout",
        description="A load that takes longer has failed. 70B from a slow disk takes minutes.",
    )
    first_token_timeout_us: Annotated[SpanUs, Duration(SECOND_US, DAY_US)] = Field(
        default=SpanUs(300 * SECOND_US),
        alias="first_token_timeout",
        description="From dispatch to the first token. Without a GPU a prompt is read at some hundred tokens a second.",
    )
    answer_timeout_us: Annotated[SpanUs, Duration(SECOND_US, DAY_US)] = Field(
        default=SpanUs(900 * SECOND_US),
        alias="answer_timeout",
        description="From dispatch to the end of an answer that is not streamed; a worker shows nothing of it before. "
        "Longer than clients wait (the OpenAI SDKs 10 minutes); a stuck worker is noticed so late.",
    )
    token_timeout_us: Annotated[SpanUs, Duration(SECOND_US, DAY_US)] = Field(
        default=SpanUs(60 * SECOND_US),
        alias="token_timeout",
        description="Silence in the middle of an answer after which the runner counts as stuck.",
    )
    grace_us: Annotated[SpanUs, Duration(0, DAY_US)] = Field(
        default=SpanUs(30 * SECOND_US),
        alias="grace",
        description="From the signal to stop until answers that still run are ended with an error.",
    )
    lame_duck_us: Annotated[SpanUs, Duration(0, DAY_US)] | None = Field(
        default=None,
        alias="lame_duck",
        description=(
            "The part of `limits.grace` in which clients are still let in while `/readyz` says `draining`: a balancer "
            "needs some seconds to notice. Absent: 0 on loopback, where nobody balances, else 5s."
        ),
    )


class EmbeddedSettings(Section):
    """A llama.cpp engine of our own, in a child process."""

    models: Annotated[str, Word(r"[^\x00]{1,4096}", "a path")] | None = Field(
        default=None,
        description="Directory with *.gguf files. Absent: our own, into which SmolLM2 135M is fetched at first use.",
    )
    memory_bytes: Annotated[Bytes, _Memory] = Field(
        default=Bytes(4 * GIB), alias="memory", description="Memory that loaded models may take together."
    )
    parallel: Annotated[int, _Parallel] = Field(default=2, description="Requests at once on one model.")


class SimSettings(Section):
    """A simulated GPU: behaves like an Ollama and computes nothing."""

    vram_bytes: Annotated[Bytes, _Memory] = Field(
        default=Bytes(24 * 10**9), alias="vram", description="Memory of the simulated GPU."
    )
    parallel: Annotated[int, _Parallel] = Field(default=4, description="Requests at once on one model.")
    speed: Annotated[float, Factor(0.001, 100_000)] = Field(
        default=1.0, description="How many times faster than a real GPU it pretends to be."
    )


class WorkerSettings(Section):
    """One worker: exactly one of `url`, `embedded` and `sim`."""

    url: Annotated[WorkerUrl, WorkerUrlKind()] | None = Field(
        default=None,
        description="Where an Ollama answers. As in OLLAMA_HOST, no scheme is port 11434, http:// alone port 80.",
    )
    name: Annotated[
        str, Word(r"[A-Za-z0-9\[][A-Za-z0-9._:\[\]-]{0,62}", "a name (letters, digits, . _ : -; at most 63)")
    ] = Field(
        default="", description="Name in metrics, logs and commands. Default: host:port, or the kind with a number."
    )
    vram_bytes: Annotated[Bytes, _Memory] | None = Field(
        default=None,
        alias="vram",
        description="Memory of its GPUs. Absent: MAX_VRAM_BYTES if on this machine, else guessed low and learned.",
    )
    parallel: Annotated[int, _Parallel] | None = Field(
        default=None,
        description="OLLAMA_NUM_PARALLEL of that server, which it does not tell. Absent: 1, as Ollama's default.",
    )
    max_loaded: Annotated[int, Count(0, 1024, "models")] | None = Field(
        default=None,
        description="OLLAMA_MAX_LOADED_MODELS of that server; 0 is no limit. Absent: 3, Ollama's default for one GPU.",
    )
    embedded: EmbeddedSettings | None = Field(
        default=None, description="A llama.cpp engine of our own in a child process."
    )
    sim: SimSettings | None = Field(default=None, description="A simulated GPU, to try things out.")

    @model_validator(mode="before")
    @classmethod
    def _from_url(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str) else value

    @property
    def kind(self) -> WorkerKind:
        if self.embedded is not None:
            return WorkerKind.embedded
        return WorkerKind.sim if self.sim is not None else WorkerKind.ollama


CONTEXT_POLICIES = ("truncate", "refuse", "class", "off")
_ContextPolicy = Choice(CONTEXT_POLICIES)
_Otherwise = Choice(("truncate", "refuse"))
_At = Percent(10, 100)


class ContextSettings(Section):
    """What happens to a prompt that would fill the context (context.md)."""

    policy: Annotated[str, _ContextPolicy] = Field(
        default="truncate",
        description="`truncate` leaves out the oldest turns, `refuse` answers 400 with the counts, `class` serves it "
        "by a larger of the model's `context_classes`, `off` leaves it to the worker, which cuts in silence.",
    )
    at: Annotated[int, _At] = Field(
        default=80,
        description="Share of the context that a prompt may fill if its client does not say how long an answer may be.",
    )
    otherwise: Annotated[str, _Otherwise] = Field(
        default="truncate", description="With `class`: what happens to a prompt for which no class is large enough."
    )


class ContextOverride(Section):
    """As ``ContextSettings``, where it differs."""

    policy: Annotated[str, _ContextPolicy] | None = Field(default=None, description="As `context.policy`.")
    at: Annotated[int, _At] | None = Field(default=None, description="As `context.at`.")
    otherwise: Annotated[str, _Otherwise] | None = Field(default=None, description="As `context.otherwise`.")


_ModelNames = Words(Word(r"[^\s\x00-\x1f\x7f]{1,500}", "model names"), 100)


class ModelSettings(Section):
    num_ctx: Annotated[int, _Context] | None = Field(
        default=None, description="Context per slot of this model. Absent: what its Modelfile says, else `num_ctx`."
    )
    aliases: Annotated[tuple[str, ...], _ModelNames] = Field(
        default=(), description="Other names under which clients may ask for this model; answers repeat them."
    )
    fallbacks: Annotated[tuple[str, ...], _ModelNames] = Field(
        default=(),
        description="Models that answer in its place, the first first, while no worker has it or can load it.",
    )
    pinned: Annotated[bool, Flag()] = Field(
        default=False, description="Loaded at start, with its own context, and never evicted."
    )
    context_classes: Annotated[tuple[int, ...], Counts(_Context, CLASSES_MAX)] = Field(
        default=(),
        description=(
            "Other contexts per slot, for requests that need more or ask for another `num_ctx`. Each has runners of "
            "its own; a worker holds one of them at a time. Capped to the model's training context."
        ),
    )
    context: ContextOverride = Field(default=ContextOverride(), description="What `context` says, but for this model.")


class TenantSettings(Section):
    weight: Annotated[int, Count(1, 100, "shares")] = Field(
        default=1, description="Share of slot time among all that wait for a model: 2 gets twice what 1 gets."
    )
    context: ContextOverride = Field(
        default=ContextOverride(), description="What `context` and the model say, but for this client."
    )


class RecordSettings(Section):
    path: Annotated[str, Word(r"[^\x00]{1,4096}", "a path")] | None = Field(
        default=None,
        description="Directory of the event log. Absent: bellmare/events in XDG_STATE_HOME, else in ~/.local/state.",
    )
    file_bytes: Annotated[Bytes, Size(MIB, 64 * GIB)] = Field(
        default=Bytes(64 * MIB), alias="file", description="Size at which the next file is begun."
    )
    keep: Annotated[int, Count(1, 10_000, "files")] = Field(default=8, description="Files kept; the oldest is deleted.")


class LogSettings(Section):
    level: Annotated[str, Choice(LEVELS)] = Field(
        default="info", description="Least important lines that are still written."
    )
    format: Annotated[str, Choice(FORMATS)] = Field(
        default="auto", description="`auto` is text on a terminal, JSON elsewhere."
    )


class Settings(Section):
    """The validated whole. Made by ``load_settings``."""

    listen: Annotated[Address, AddressKind(GATEWAY_PORT)] = Field(
        default=Address("127.0.0.1", GATEWAY_PORT),
        description="Where clients connect: Ollama's and OpenAI's API.",
    )
    admin: Annotated[Annotated[Address, AddressKind(ADMIN_PORT)] | None, OFF] = Field(
        default=Address("127.0.0.1", ADMIN_PORT), description="Where operators and Prometheus connect; `off` for none."
    )
    insecure: Annotated[bool, Flag()] = Field(
        default=False,
        description="Allow listening on other than loopback. There are no keys yet: who reaches the port may use it.",
    )
    num_ctx: Annotated[int, _Context] | None = Field(
        default=None,
        description=(
            "Context per slot for models that name none. One for the fleet: each context is a runner of its own. "
            "Absent: OLLAMA_CONTEXT_LENGTH, else 8192."
        ),
    )
    headroom: Annotated[Headroom, HeadroomKind(TIB, 90)] | None = Field(
        default=None,
        description="Memory kept free on each worker, as a size or in percent. Absent: 1GiB; 0 on embedded workers.",
    )
    eviction: Annotated[str, Choice(tuple(POLICIES))] = Field(
        default="hv",
        description="Who leaves when space is needed. `hv` prices by forecast; the others are the classics.",
    )
    ahead: Annotated[bool, Flag()] = Field(
        default=True, description="Load and make room ahead of demand, by forecast and hints."
    )
    shadows: Annotated[bool, Flag()] = Field(
        default=True,
        description="Follow what other policies and stock Ollama would have done, to show what is saved: books only.",
    )
    switch_policy: Annotated[bool, Flag()] = Field(
        default=True,
        description="Let another eviction policy take over when its shadow needs 10 % less loading. Needs `shadows`.",
    )
    origins: Annotated[tuple[str, ...], Words(Word(r"[!-~]{1,300}", "origins"), 100)] = Field(
        default=(),
        description=(
            "Web pages that may use the gateway beside those of this machine, such as `https://chat.example.com` or "
            "`https://*.example.com`; `*` for all. Absent: OLLAMA_ORIGINS."
        ),
    )
    manage: Annotated[tuple[str, ...], Words(Word(r"[0-9A-Fa-f.:]{2,45}(?:/[0-9]{1,3})?", "addresses"), 100)] = Field(
        default=(),
        description=(
            "Clients that may pull, push, create, copy and delete models and upload blobs, on all workers: addresses "
            "or networks such as `127.0.0.1` or `10.0.0.0/8`. Absent: nobody."
        ),
    )
    cloud: Annotated[bool, Flag()] = Field(
        default=False,
        description="Pass requests for names such as `m:cloud` on to a worker, which sends them to ollama.com.",
    )
    queue: QueueSettings = Field(default=QueueSettings(), description="Bounds of waiting.")
    drain_after_us: Annotated[SpanUs, Duration(0, DAY_US)] = Field(
        default=SpanUs(5 * SECOND_US),
        alias="drain_after",
        description="A model that needs space waits so long for an idle victim before a busy one is drained.",
    )
    drain_max_us: Annotated[SpanUs, Duration(SECOND_US, DAY_US)] = Field(
        default=SpanUs(30 * SECOND_US),
        alias="drain_max",
        description="A drain that a long answer holds up is given up after so long; the next one may take twice that.",
    )
    batch_max_us: Annotated[SpanUs, Duration(0, DAY_US)] = Field(
        default=SpanUs(15 * SECOND_US),
        alias="batch_max",
        description="A model that was loaded for waiting requests serves those before it is drained, at most so long.",
    )
    context: ContextSettings = Field(
        default=ContextSettings(), description="What happens to prompts that do not fit into the context."
    )
    limits: LimitSettings = Field(default=LimitSettings(), description="Limits of single requests and loads.")
    workers: Annotated[tuple[WorkerSettings, ...], Field(max_length=WORKERS_MAX)] = Field(
        default=(),
        description="What runs the models. Absent: `bellmare up` looks for an Ollama, then for an engine of its own.",
    )
    models: Annotated[dict[str, ModelSettings], Field(max_length=MODELS_MAX)] = Field(
        default={}, description="Exceptions by model name."
    )
    tenants: Annotated[dict[str, TenantSettings], Field(max_length=TENANTS_MAX)] = Field(
        default={},
        description="Exceptions by client address, for clients that send no key: each client is a tenant of its own.",
    )
    record: Annotated[RecordSettings | None, BeforeValidator(_mapping_or_off)] = Field(
        default=RecordSettings(),
        description="Event log for `bellmare replay` and `explain`; `off` for none. Holds no prompts.",
    )
    log: LogSettings = Field(default=LogSettings(), description="Our own log lines, on standard error.")

    _origins: dict[Path, str] = PrivateAttr(default_factory=dict)
    _warnings: tuple[str, ...] = PrivateAttr(default=())
    _ollama_host: WorkerUrl | None = PrivateAttr(default=None)
    _local_worker: dict[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Values of other programs' variables that were ignored, one line each; to be logged at start."""
        return self._warnings

    @property
    def ollama_host(self) -> WorkerUrl | None:
        """OLLAMA_HOST, if it is set, valid and not ourselves: where ``bellmare up`` looks first if no worker is set."""
        return self._ollama_host

    def worker_at(self, url: str) -> WorkerSettings:
        """A found Ollama as a worker, with the OLLAMA_* and MAX_VRAM_BYTES defaults if it is on this machine."""
        parsed = parse_worker_url(url)
        defaults = self._local_worker if parsed.loopback else {}
        return WorkerSettings.model_validate({"url": parsed, "name": str(parsed.address), **defaults})

    def with_workers(self, *workers: WorkerSettings) -> Self:
        """The same settings with ``workers`` instead, for what ``bellmare up`` found by itself."""
        return self.model_copy(update={"workers": tuple(workers)})

    def headroom_bytes(self, kind: WorkerKind, capacity_bytes: int) -> Bytes:
        """Bytes kept free on a worker of ``kind`` with so much memory."""
        headroom = HEADROOM_DEFAULTS[kind] if self.headroom is None else self.headroom
        return Bytes(headroom.of(capacity_bytes))

    @property
    def lame_duck_s(self) -> float:
        """In seconds, never more than the grace."""
        wanted_us = self.limits.lame_duck_us
        if wanted_us is None:
            wanted_us = SpanUs(0 if self.listen.loopback else LAME_DUCK_US)
        return min(wanted_us, self.limits.grace_us) / 1e6

    def core_config(self) -> CoreConfig:
        """What the decision core is told, and what heads every event log."""
        defaults = CoreConfig()
        return CoreConfig(
            default_num_ctx=defaults.default_num_ctx if self.num_ctx is None else self.num_ctx,
            queue_per_model_max=self.queue.per_model,
            queue_total_max=self.queue.total,
            queue_wait_max_us=self.queue.wait_us,
            drain_after_us=self.drain_after_us,
            drain_max_us=self.drain_max_us,
            batch_max_us=self.batch_max_us,
            load_timeout_us=self.limits.load_timeout_us,
            eviction=self.eviction,
            ahead=self.ahead,
            shadows=self.shadows,
            switch_policy=self.switch_policy,
            models={
                canonical_name(name): ModelConfig(
                    num_ctx=model.num_ctx or 0, pinned=model.pinned, context_classes=model.context_classes
                )
                for name, model in self.models.items()
            },
            tenants={name: TenantConfig(weight=tenant.weight) for name, tenant in self.tenants.items()},
        )

    def origin_of(self, key: str | Path) -> str:
        """Who set ``key``: ``default``, ``bellmare.yaml:7``, ``env BELLMARE_LISTEN`` or ``flag listen``.

        A string is split at dots; a model's name has its own, so give a path: ``("models", "llama3.1:8b", "pinned")``.
        A key that is set only as part of a larger value (a list from the environment) has that value's origin.
        """
        path: Path = (
            tuple(int(part) if part.isdigit() else part for part in key.split(".")) if isinstance(key, str) else key
        )
        for length in range(len(path), 0, -1):
            origin = self._origins.get(path[:length])
            if origin is not None:
                return origin
        return "default"

    def __repr__(self) -> str:
        return f"Settings({', '.join(sorted(dotted(path) for path in self._origins))})"
