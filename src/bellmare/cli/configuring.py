"""`bellmare config`: check a file, show what is in force and why, print the schema."""

import json
import os
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bellmare.cli.serving import read_settings
from bellmare.settings import SettingsError, load_settings, settings_schema
from bellmare.settings.describe import settings_rows


def check(path: Path) -> int:
    """0 and a word, or 2 and every problem."""
    try:
        load_settings(path, environment=os.environ, overrides={})
    except SettingsError as error:
        for problem in error.problems:
            sys.stderr.write(f"{problem}\n")
        return SettingsError.exit_status
    sys.stdout.write(f"{path}: all right\n")
    return 0


def show(path: Path | None) -> None:
    """Every setting, its value and its origin."""
    settings = read_settings(path)
    table = Table(box=None, header_style="bold", pad_edge=False)
    for column in ("SETTING", "VALUE", "FROM"):
        table.add_column(column)
    for row in settings_rows(settings):
        table.add_row(row.key, row.value, row.origin)
    Console().print(table)


def schema() -> None:
    """The schema as JSON."""
    sys.stdout.write(json.dumps(settings_schema(), indent=2) + "\n")
