"""Shadows: other policies and stock Ollama on the live stream, what that saves, and when another policy should decide.

Ghosts follow every request that the fleet took in; they never change what it does. Only ``better`` proposes something:
another policy, when its ghost was clearly better for long enough (policy findings 5.6).
"""

import msgspec

from bellmare.core import ghost_stock, ghosts
from bellmare.core.bins import close_bin, drop_bin, empty_bin, open_bin, put, room_of
from bellmare.core.costs import service_estimate_us
from bellmare.core.decisions import PolicySwitch
from bellmare.core.eviction.policy import EvictionPolicy
from bellmare.core.eviction.registry import POLICIES, policy
from bellmare.core.fleet import Fleet
from bellmare.core.residency import Residency
from bellmare.core.shadow_state import Bin, Held, Shadow, Tally
from bellmare.core.state import Model, Worker
from bellmare.core.tallies import age, book_cold_start, recent_share
from bellmare.core.units import SECOND_US, InstantUs, WorkerId

SHADOWED = ("hv", "lru", "gdsf", "lhd")
"""Beside these the policy that the settings name, and stock Ollama."""
STOCK = "stock"
MARGIN = 0.1
"""A ghost must have a tenth less load-seconds: less is not worth losing what the policy in use has learned."""
COMPARE_EVERY_US = 60 * SECOND_US


class ShadowFigures(msgspec.Struct, frozen=True):
    """Of one policy's ghost, or of the fleet itself. ``recent``: decayed over about six hours."""

    policy: str
    cold_starts: int
    loads: int
    """On demand, as is the time that they took or should take."""
    load_seconds: float
    recent_cold_starts: float
    recent_loads: float
    recent_load_seconds: float


class ShadowReport(msgspec.Struct, frozen=True):
    """What ghosts and fleet did with the same requests."""

    policy: str
    """In use now."""
    switching: bool
    switches: int
    since_s: float
    """How long the policy in use has been so, or since the first request; 0 before it."""
    fleet: ShadowFigures
    shadows: tuple[ShadowFigures, ...]
    """Empty if shadows are off; stock Ollama comes last."""
    cold_starts_saved: float
    """Against stock Ollama, lately; negative: it would have had fewer. Loads ahead of demand are not counted."""
    load_seconds_saved: float
    regret_ratio: float
    """How many more load-seconds the fleet had lately than the best policy's ghost, as a share of the latter's;
    negative: it did better than all of them, as loads ahead of demand allow. 0 before anything was loaded."""


class Shadowing:
    """The ghosts of one fleet. What they know is in its state; the policies that value for them are here."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._policies: dict[str, EvictionPolicy] = {}
        kept = fleet.state.shadows.ghosts
        if not fleet.config.shadows:
            kept.clear()
            return
        for name in dict.fromkeys((*SHADOWED, fleet.state.policy, *kept)):
            if name in POLICIES:
                self._policies[name] = policy(name, kept.setdefault(name, Shadow()).experience)
        kept.setdefault(STOCK, Shadow())
        for worker in fleet.state.workers.values():
            if worker.healthy:
                self.routing_changed(worker.worker)

    # ------------------------------------------------------------------ what happens

    def arrived(self, model: Model, *, cold: bool, times: int = 1) -> None:
        """Requests were taken in; ``cold``: no copy was ready for them."""
        fleet = self.fleet
        shadows = fleet.state.shadows
        if cold:
            book_cold_start(shadows.fleet, fleet.now_us)
        if shadows.switched_us < 0:
            shadows.switched_us = fleet.now_us
        if not self._policies:
            return
        service_us = service_estimate_us(fleet, model)
        asked = ghosts.Asked(model, service_us, times)
        for name, by in self._policies.items():
            ghosts.arrived(fleet, shadows.ghosts[name], by, asked=asked)
        ghost_stock.arrived(fleet, shadows.ghosts[STOCK], asked)

    def routing_changed(self, worker_id: WorkerId) -> None:
        """A worker came into routing, went out of it, or left the fleet."""
        worker = self.fleet.state.workers.get(worker_id)
        for name, shadow in self.fleet.state.shadows.ghosts.items():
            if worker is None:
                drop_bin(shadow, worker_id)
            elif not worker.healthy:
                close_bin(shadow, worker_id)
            else:
                self._bring_in(shadow, worker, by_connections=name == STOCK)

    def _bring_in(self, shadow: Shadow, worker: Worker, *, by_connections: bool) -> None:
        """A new bin begins with what the worker holds; one that comes back empty-handed has lost all."""
        found = shadow.bins.get(worker.worker)
        if found is None:
            found = shadow.bins[worker.worker] = Bin(index=worker.index)
            self._fill(shadow, worker, everywhere=by_connections)
        elif not found.in_routing and not worker.runners:
            empty_bin(shadow, found)
        open_bin(shadow, found, key=found.connections if by_connections else room_of(worker) - found.used_bytes)

    def _fill(self, shadow: Shadow, worker: Worker, *, everywhere: bool) -> None:
        """``everywhere``: copies beside others count too."""
        now_us = self.fleet.now_us
        for runner in worker.runners.values():
            if runner.residency is not Residency.resident or runner.model in shadow.where:
                continue
            if not everywhere:
                shadow.where[runner.model] = worker.worker
            put(
                shadow,
                worker.worker,
                Held(
                    model=runner.model,
                    bytes=runner.bytes,
                    used_us=runner.used_us,
                    load_us=runner.load_us,
                    ready_us=now_us,
                    busy_us=now_us,
                ),
            )

    # ------------------------------------------------------------------ what follows

    def better(self) -> PolicySwitch | None:
        """The policy that should decide from now on, booked as chosen; None: the one in use. Once a minute."""
        fleet, config = self.fleet, self.fleet.config
        shadows, now_us = fleet.state.shadows, fleet.now_us
        if not config.switch_policy or now_us - shadows.compared_us < min(COMPARE_EVERY_US, config.switch_dwell_us):
            return None
        shadows.compared_us = now_us
        before = fleet.state.policy
        if before not in self._policies or now_us - shadows.switched_us < config.switch_dwell_us:
            return None
        own = shadows.ghosts[before].tally
        age(own, now_us)
        age(shadows.fleet, now_us)
        best_name, best = before, own
        for name in self._policies:
            tally = shadows.ghosts[name].tally
            age(tally, now_us)
            if tally.recent_load_s < best.recent_load_s:
                best_name, best = name, tally
        if own.recent_loads < config.switch_loads_min or not _clearly(best, own, fleet=shadows.fleet):
            return None
        shadows.switched_us = now_us
        shadows.switches += 1
        return PolicySwitch(
            policy=best_name,
            before=before,
            saved_percent=int(100 * (1 - best.recent_load_s / own.recent_load_s)),
            loads=int(own.recent_loads),
        )

    def report(self) -> ShadowReport:
        """The figures of this moment."""
        fleet = self.fleet
        shadows, now_us = fleet.state.shadows, fleet.now_us
        real = _figures("fleet", shadows.fleet, now_us)
        found = tuple(_figures(name, shadows.ghosts[name].tally, now_us) for name in (*self._policies, STOCK)
                      if name in shadows.ghosts)  # fmt: skip
        stock = found[-1] if found else real
        best_s = min((figures.recent_load_seconds for figures in found[:-1]), default=0.0)
        return ShadowReport(
            policy=fleet.state.policy,
            switching=fleet.config.shadows and fleet.config.switch_policy,
            switches=shadows.switches,
            since_s=max(0, now_us - shadows.switched_us) / SECOND_US if shadows.switched_us >= 0 else 0.0,
            fleet=real,
            shadows=found,
            cold_starts_saved=stock.recent_cold_starts - real.recent_cold_starts,
            load_seconds_saved=stock.recent_load_seconds - real.recent_load_seconds,
            regret_ratio=real.recent_load_seconds / best_s - 1.0 if best_s > 0 else 0.0,
        )


def _clearly(best: Tally, own: Tally, *, fleet: Tally) -> bool:
    """Whether ``best`` had a tenth less load-seconds than ``own`` and than the fleet itself, and not by chance.

    The fleet loads ahead of demand too, which some policies do not: what a ghost on demand does better than the
    policy's own ghost need not be better than that. Loads are as good as independent events, so that the spread of a
    sum is the root of its squares: with 50 loads each it takes a fifth less, with 200 a tenth.
    """
    saved_s = own.recent_load_s - best.recent_load_s
    if best.recent_load_s >= (1 - MARGIN) * min(own.recent_load_s, fleet.recent_load_s):
        return False
    return saved_s * saved_s > own.recent_squares + best.recent_squares


def _figures(name: str, tally: Tally, now_us: InstantUs) -> ShadowFigures:
    left = recent_share(tally, now_us)
    return ShadowFigures(
        policy=name,
        cold_starts=tally.cold_starts,
        loads=tally.loads,
        load_seconds=tally.load_us / SECOND_US,
        recent_cold_starts=left * tally.recent_cold_starts,
        recent_loads=left * tally.recent_loads,
        recent_load_seconds=left * tally.recent_load_s,
    )
