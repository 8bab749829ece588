"""What is known of requests to come: who said so, when they are due, and how often such hints came true."""

from bellmare.core.events import HintGiven
from bellmare.core.fleet import Fleet


def given(fleet: Fleet, event: HintGiven) -> None:
    """Take in one hint. A name that no worker stores says nothing."""
    model = fleet.resolve(event.name)
    if model is None:
        return
    fleet.count(f"hint_{event.source}")
