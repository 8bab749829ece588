"""Starts and stops a simulated worker: in the caller's loop, or as a process of its own (``bellmare worker sim``)."""

import asyncio

import msgspec

from bellmare.http.server import Limits, Server, listen
from bellmare.twin.config import GIB, SECOND_US, GpuConfig, TwinConfig
from bellmare.twin.server import Twin
from bellmare.workers.sim.app import SimApplication
from bellmare.workers.sim.clock import Clock
from bellmare.workers.sim.driver import Driver
from bellmare.workers.sim.listing import Shelf
from bellmare.workers.sim.transfer import Downloads
from bellmare.workers.sim.world import DEFAULT_MODELS, REGISTRY, SimModel, World

_LIMITS = Limits(keep_alive_timeout_s=300.0, write_stall_timeout_s=300.0)
"""Go's server closes idle connections only after its client does; a slow reader is the twin's client to judge."""


class SimConfig(msgspec.Struct, frozen=True):
    """One simulated worker."""

    vram_bytes: int = 24 * GIB
    parallel: int = 1
    """OLLAMA_NUM_PARALLEL."""
    runners_max: int = 0
    """OLLAMA_MAX_LOADED_MODELS; zero: three."""
    queue_max: int = 512
    context_length: int = 0
    """OLLAMA_CONTEXT_LENGTH; zero: by VRAM."""
    keep_alive_s: float = 300.0
    host_cache_bytes: int = 32 * GIB
    seed: int = 0
    """Decides what is said, never what happens."""
    time_scale: float = 1.0
    """Spans of loads, unloads and tokens times this: 0.01 is a machine a hundred times faster. keep_alive is not
    scaled.
    """
    models: tuple[SimModel, ...] = DEFAULT_MODELS
    registry: tuple[SimModel, ...] = REGISTRY
    """What can be pulled beside ``models``."""
    pull_bytes_per_s: int = 100_000_000
    """Of pulls and pushes; scaled as the other spans."""
    extension: bool = True
    """Answer /api/bellmare and /sim/fault; without it the worker cannot be told from a stock Ollama."""
    stall_switch: bool = True

    def twin_config(self) -> TwinConfig:
        """The twin's configuration, sped up by ``time_scale``."""
        assert self.time_scale > 0
        stock = GpuConfig(vram_bytes=self.vram_bytes, host_cache_bytes=self.host_cache_bytes)
        rates = {name: round(getattr(stock, name) / self.time_scale) for name in _RATES}
        spans = {name: round(getattr(_STOCK, name) * self.time_scale) for name in _SPANS}
        return TwinConfig(
            gpu=msgspec.structs.replace(stock, **rates),
            num_parallel=self.parallel,
            queue_max=self.queue_max,
            loaded_models_max=self.runners_max,
            keep_alive_us=round(self.keep_alive_s * SECOND_US),
            context_length=self.context_length,
            stall_switch=self.stall_switch,
            **spans,
        )


_STOCK = TwinConfig()
_SPANS = ("spawn_us", "unload_us", "load_timeout_us")
_RATES = (
    "disk_bytes_per_s",
    "pcie_bytes_per_s",
    "decode_bytes_per_s",
    "host_decode_bytes_per_s",
    "prefill_byte_tokens_per_s",
)


class SimServer:
    """A running simulated worker. Made by :func:`start_sim_worker`."""

    def __init__(self, server: Server, driver: Driver, *, app: SimApplication, world: World) -> None:
        self.port = server.port
        self.world = world
        self.faults = app.faults
        """Faults without the HTTP detour: ``faults.set(Fault("crash", model="llama3.1:8b"))``."""
        self.library = app.library
        self._server = server
        self._driver = driver

    @property
    def twin(self) -> Twin:
        """For counters and rows. Read only: inputs go through HTTP or ``faults``, else effects are lost."""
        return self._driver.twin

    async def close(self, *, grace_s: float = 0.0) -> None:
        """Stop. Requests under way have ``grace_s`` to end, then they are cut."""
        await self._server.close(grace_s)
        self._driver.close()


async def start_sim_worker(config: SimConfig, *, host: str = "127.0.0.1", port: int = 0) -> SimServer:
    """Serve a simulated Ollama on ``host``:``port``; port 0 takes any free one. Raises OSError if it is taken."""
    world = World(config.models)
    twin = Twin(config.twin_config(), tuple(entry.twin for entry in world.entries))
    clock = Clock(asyncio.get_running_loop())
    driver = Driver(twin, clock)
    app = SimApplication(
        driver,
        Shelf(twin, world, clock=clock),
        world=world,
        downloads=Downloads(
            config.models + config.registry, bytes_per_s=max(1, round(config.pull_bytes_per_s / config.time_scale))
        ),
        seed=config.seed,
        extension=config.extension,
        loopback=host in ("localhost", "::1") or host.startswith("127."),
    )
    server = await listen(app, host, port, limits=_LIMITS)
    return SimServer(server, driver, app=app, world=world)
