"""Drives a twin in virtual time, and a small world whose arithmetic can be done in the head."""

from typing import Any, TypeVar

from bellmare.twin.config import GIB, GpuConfig, TwinConfig, TwinModel
from bellmare.twin.messages import Cancel, Effect, Generate, Input, Loaded, LoadOnly, RunnerOptions, Tick, Unload
from bellmare.twin.server import Twin

S = 1_000_000
_E = TypeVar("_E", bound=Effect)

GPU = GpuConfig(
    vram_bytes=24 * GIB,
    context_overhead_bytes=GIB // 2,
    disk_bytes_per_s=GIB,
    pcie_bytes_per_s=4 * GIB,
    host_cache_bytes=64 * GIB,
    decode_bytes_per_s=40 * GIB,
    host_decode_bytes_per_s=4 * GIB,
    prefill_byte_tokens_per_s=400 * GIB,
    slot_cost_percent=0,
)
"""A model of 4 GiB: cold load 1 s + 4 s, warm 1 s + 1 s, 100 prompt tokens a second, 10 tokens a second."""


def model(name: str, *, blob: str | None = None, gib: int = 4, **more: Any) -> TwinModel:
    """``gib`` GiB of weights, no KV cache unless asked for, a compute buffer of under 200 MiB."""
    blob = blob or name.partition(":")[0]
    defaults: dict[str, Any] = {
        "weights_bytes": gib * GIB,
        "layers": 32,
        "kv_bytes_per_token": 0,
        "context_max": 131_072,
    }
    return TwinModel(name=name, blob=blob, digest=f"d-{name}", **(defaults | more))


WORLD = (model("a:1"), model("b:1"), model("c:1"), model("e:1", gib=1, embedding=True, capabilities=("embedding",)))


class Drive:
    """A twin, its clock and everything that it ever said."""

    def __init__(self, *models: TwinModel, **config: Any) -> None:
        defaults: dict[str, Any] = {"gpu": GPU, "context_length": 4096}
        self.twin = Twin(TwinConfig(**(defaults | config)), models or WORLD)
        self.now_us = 0
        self.effects: list[Effect] = []
        self._count = 0

    def give(self, given: Input) -> list[Effect]:
        effects = self.twin.step(self.now_us, given)
        self.effects += effects
        return effects

    def _id(self, request: str) -> str:
        self._count += 1
        return request or f"r{self._count}"

    def generate(self, name: str, request: str = "", *, options: dict[str, Any] | None = None, **more: Any) -> str:
        """Ask for 100 tokens in (1 s on a 4 GiB model) and 11 out (1 s) unless told otherwise."""
        request = self._id(request)
        sizes = {"prompt_tokens": 100, "output_tokens": 11} | more
        self.give(Generate(request, name, options=RunnerOptions(**(options or {})), **sizes))
        return request

    def load(self, name: str, request: str = "", *, options: dict[str, Any] | None = None, **more: Any) -> str:
        request = self._id(request)
        self.give(LoadOnly(request, name, options=RunnerOptions(**(options or {})), **more))
        return request

    def unload(self, name: str) -> list[Effect]:
        return self.give(Unload(self._id(""), name))

    def cancel(self, request: str) -> None:
        self.give(Cancel(request))

    def until(self, instant_s: float) -> None:
        """Let time pass, from deadline to deadline, to ``instant_s`` seconds after the start."""
        goal = round(instant_s * S)
        while (due := self.twin.next_deadline_us()) is not None and due <= goal:
            self.now_us = max(due, self.now_us)
            self.give(Tick())
        self.now_us = goal
        self.give(Tick())

    def later(self, span_s: float) -> None:
        self.until(self.now_us / S + span_s)

    def loaded_now(self, *names: str, wait_s: float = 10) -> None:
        """Make ``names`` resident, one after another, each for ever."""
        for name in names:
            self.load(name, keep_alive_us=(1 << 63) // 1000 - 1)
            self.later(wait_s)

    def all(self, kind: type[_E], request: str | None = None) -> list[_E]:
        found = [effect for effect in self.effects if isinstance(effect, kind)]
        return found if request is None else [effect for effect in found if getattr(effect, "request", "") == request]

    def the(self, kind: type[_E], request: str) -> _E:
        (found,) = self.all(kind, request)
        return found

    def at_s(self, kind: type[_E], request: str) -> float:
        return self.the(kind, request).at_us / S

    def ps(self) -> list[str]:
        return [row.name for row in self.twin.loaded()]

    def row(self, name: str) -> Loaded:
        (found,) = (row for row in self.twin.loaded() if row.name == name)
        return found

    def expires_s(self, name: str) -> float:
        return self.row(name).expires_us / S
