"""Sets of scenarios and policies that are run and compared together."""

import msgspec

from bellmare.sim.runs import TWIN, Policy
from bellmare.sim.scenarios import SCENARIOS

SEEDS = 5
"""Sizes are drawn by seed, and on one GPU luck with them is worth more than a policy: at least five (policy.md 6)."""


CLAIMS = "claims"
"""The published claims, in a closed loop: no suite of scenarios and policies, so it has a package of its own."""


class Suite(msgspec.Struct, frozen=True):
    """What one name after ``--suite`` runs."""

    scenarios: tuple[str, ...]
    policies: tuple[Policy, ...]
    seeds: int = SEEDS


SUITES: dict[str, Suite] = {
    "policy": Suite(
        tuple(name for name in SCENARIOS if name != "XL"), tuple(policy for policy in Policy if policy not in TWIN)
    ),
}
"""``policy``: all scenarios and all policies in the quick world; the twins answer another question."""
