"""Small workloads that every test of the simulator may use; nothing is read from outside the project."""

import pytest

from bellmare.sim.workload import Workload
from bellmare.sim.workloads.generated import Sessions, sessions

REQUESTS = 1_200


@pytest.fixture(scope="session")
def day() -> Workload:
    """A day and a half of an office."""
    return sessions(3, Sessions(requests=REQUESTS))
