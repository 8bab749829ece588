"""Arrivals without serving: what the core's statistics are fed with, one request after another."""

from core_script import S, Script, stored

from bellmare.core import demand, forecast, hints
from bellmare.core.fleet import Fleet
from bellmare.core.state import Model


def fleet_of(*names: str, start_s: int = 1000) -> Fleet:
    """A fleet whose only worker stores these models and holds none."""
    script = Script()
    script.worker("w", *(stored(name) for name in names))
    fleet = script.engine.fleet
    fleet.now_us = start_s * S  # type: ignore[assignment]
    return fleet


def model_of(fleet: Fleet, name: str) -> Model:
    model = fleet.resolve(name)
    assert model is not None
    return model


def arrive(fleet: Fleet, name: str, *, after_s: float = 0.0, tenant: str = "") -> Model:
    """One request, in the order in which the engine tells of it."""
    fleet.now_us += int(after_s * S)  # type: ignore[assignment]
    model = model_of(fleet, name)
    forecast.learn(fleet, model)
    hints.came_true(fleet, model)
    demand.note_arrival(fleet, model, tenant)
    hints.note_arrival(fleet, model, tenant)
    return model
