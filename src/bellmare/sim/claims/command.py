"""`bellmare simulate --suite claims`: runs the cases, shows the rows and the verdicts."""

import sys
from collections.abc import Sequence
from typing import Any

import msgspec
from rich.console import Console, Group
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from bellmare.sim.claims.cases import Case, cases
from bellmare.sim.claims.findings import SEEDS, document, run_all, setups
from bellmare.sim.claims.verdict import PUBLISHED, Claim
from bellmare.sim.jobs import processors
from bellmare.sim.subjects import SEED_MAX, SEEDS_MAX, Asked, UsageError

WIDTH = 200
"""Columns of the tables; conditions are long."""


def seeds_of(asked: Asked) -> range:
    """Raises ``UsageError`` for options that the claims cannot take: their conditions are theirs."""
    given = {
        "--scenario": asked.scenario,
        "--trace": asked.trace,
        "--traces": asked.traces,
        "--fleet": asked.fleet,
        "--policy": asked.policy,
        "--html": asked.html,
    }
    for flag, value in given.items():
        if value not in (None, ""):
            raise UsageError(f"{flag}: the claims have conditions of their own; only --seeds, --first-seed and --json")
    seeds = SEEDS if asked.seeds is None else asked.seeds
    if not 1 <= seeds <= SEEDS_MAX:
        raise UsageError(f"--seeds {seeds}: between 1 and {SEEDS_MAX}")
    if not 0 <= asked.first_seed <= SEED_MAX:
        raise UsageError(f"--first-seed {asked.first_seed}: between 0 and {SEED_MAX}")
    return range(asked.first_seed, asked.first_seed + seeds)


def run_claims(asked: Asked, *, command: str, tried: Sequence[Case] | None = None) -> None:
    """Run and print; ``tried``: other cases than all. Raises ``UsageError``."""
    seeds, chosen = seeds_of(asked), cases() if tried is None else tried
    wanted = setups(chosen, seeds)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(f"{len(wanted)} runs", total=len(wanted))
        results = run_all(wanted, asked.jobs or processors(), lambda: progress.advance(task))
    found = document(chosen, results, seeds=seeds, command=command)
    if asked.as_json:
        sys.stdout.write(msgspec.json.encode(found).decode() + "\n")
        return
    out = Console(file=sys.stdout)
    if not out.is_terminal:
        out.width = max(out.width, WIDTH)
    out.print(tables(found))


def tables(found: dict[str, Any]) -> Group:
    """One table for each claim, with its verdict."""
    parts: list[Table | Text] = []
    for claim, verdict in found["verdicts"].items():
        published = PUBLISHED[Claim(claim)]
        table = Table(title=f"{published.text}: {verdict}", title_justify="left", title_style="bold")
        for title in ("measured", "conditions", "before", "after"):
            table.add_column(title, overflow="fold")
        for title in (f"from\n{published.unit}", f"to\n{published.unit}", "change\n%", "holds"):
            table.add_column(title, justify="right")
        for row in found["claims"]:
            if row["claim"] == claim:
                table.add_row(*_cells(row, published.unit), style="bold" if row["stated"] else "")
        parts.append(table)
    parts.append(Text(f"Bold: the published conditions, as far as they are known. {found['command']}"))
    return Group(*parts)


def _cells(row: dict[str, Any], unit: str) -> tuple[str, ...]:
    figures = (row[f"ours_from_{unit}"], row[f"ours_to_{unit}"])
    change = row["ours_change_percent"]
    return (
        row["measured"],
        row["conditions"],
        row["before"],
        row["after"],
        *("-" if figure is None else f"{figure:.2f}" for figure in figures),
        "-" if change is None else f"{change:+.0f}",
        "yes" if row["holds"] else "no",
    )
