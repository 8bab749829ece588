"""The vocabulary is closed: every event has a handler, every decision is in the union, every pair of states a rule."""

from typing import get_args

import pytest

from bellmare.core.config import CoreConfig
from bellmare.core.decisions import AnyDecision, Decision
from bellmare.core.engine import Engine
from bellmare.core.events import AnyEvent, Event
from bellmare.core.fleet import Timer
from bellmare.core.residency import TRANSITIONS, Cue, Residency, after


def test_every_event_has_a_handler_and_is_in_the_union() -> None:
    events = set(Event.__subclasses__())
    assert set(get_args(AnyEvent)) == events
    assert set(Engine(CoreConfig())._handlers) == events


def test_every_decision_is_in_the_union() -> None:
    assert set(get_args(AnyDecision)) == set(Decision.__subclasses__())


def test_every_timer_has_a_handler() -> None:
    assert set(Engine(CoreConfig())._timers) == set(Timer)


@pytest.mark.parametrize("state", Residency)
@pytest.mark.parametrize("cue", Cue)
def test_a_transition_is_in_the_table_or_our_own_bug(state: Residency, cue: Cue) -> None:
    if (state, cue) in TRANSITIONS:
        assert after(state, cue) is TRANSITIONS[state, cue]
    else:
        with pytest.raises(AssertionError):
            after(state, cue)


def test_every_state_is_entered_and_left_and_whatever_is_there_can_be_gone() -> None:
    assert set(TRANSITIONS.values()) == set(Residency)
    assert {state for state, _ in TRANSITIONS} == set(Residency)
    for state in Residency:
        if state is not Residency.absent:
            assert TRANSITIONS[state, Cue.gone] is Residency.absent
    assert {cue for _, cue in TRANSITIONS} == set(Cue)


def test_only_a_resident_comes_from_a_load_and_nothing_leaves_without_being_unloaded_or_gone() -> None:
    ready = {pair for pair, to in TRANSITIONS.items() if to is Residency.resident}
    assert ready == {
        (Residency.absent, Cue.adopted),
        (Residency.loading, Cue.loaded),
        (Residency.draining, Cue.undrain),
        (Residency.unloading, Cue.adopted),
    }
    assert {cue for (_, cue), to in TRANSITIONS.items() if to is Residency.absent} == {Cue.gone}
