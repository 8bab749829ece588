"""Every planted bug is caught, and by a rule that says what is wrong. A survivor is a hole in the oracle."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import core_mutants
import pytest

MUTANTS_MIN = 25


def _said(mutant: core_mutants.Mutant, seeds: int) -> str:
    done = subprocess.run(
        [sys.executable, str(Path(core_mutants.__file__)), mutant.name, str(seeds)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr[-2_000:]
    return done.stdout.strip()


def test_there_are_enough_planted_bugs_in_every_part_of_the_core() -> None:
    assert len(core_mutants.MUTANTS) >= MUTANTS_MIN
    assert len(core_mutants.BY_NAME) == len(core_mutants.MUTANTS)
    modules = {mutant.module for mutant in core_mutants.MUTANTS}
    assert {
        "admission",
        "queueing",
        "placement",
        "scheduler",
        "operations",
        "reconcile",
        "health",
        "fleet",
        "breaker",
        "attempts",
        "poison",
    } <= modules


@pytest.mark.slow
@pytest.mark.parametrize("mutant", core_mutants.MUTANTS, ids=lambda mutant: mutant.name.replace(" ", "-"))
def test_a_planted_bug_is_caught_by_its_rule(mutant: core_mutants.Mutant) -> None:
    said = _said(mutant, core_mutants.SEEDS)
    assert said, "it survived"
    rule = said.split(": ")[1]
    assert rule in mutant.rules, said


@pytest.mark.slow
def test_a_patch_without_its_text_is_an_error_and_not_a_catch() -> None:
    mutant = core_mutants.MUTANTS[0]
    code = (
        "import sys, core_mutants, msgspec, dataclasses\n"
        f"mutant = dataclasses.replace(core_mutants.BY_NAME[{mutant.name!r}], old='text that is nowhere')\n"
        "core_mutants.caught_by(mutant, 1)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(core_mutants.__file__).parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "write it anew" in done.stderr
