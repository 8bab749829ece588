"""The report for people: one table of figures, one of goals."""

from typing import Any

from rich.console import Console
from rich.table import Table

from bellmare.bench.proxy.measures import Plan

_REQUESTS = (
    ("cpu_us_per_request", "CPU us/\nrequest"),
    ("requests_per_s", "requests/s\nseen"),
    ("requests_per_s_per_core", "requests/s\nper core"),
    ("added_p50_us", "added us\np50"),
    ("added_p99_us", "added us\np99"),
    ("waited_percent", "waited for\ncore, %"),
    ("requests_per_upstream_connection", "requests/upstream\nconnection"),
    ("errors", "errors"),
)
_CONNECTIONS = (
    ("bytes_per_idle_connection", "bytes/idle\nconnection"),
    ("bytes_per_stream", "bytes/\nstream"),
    ("bytes_per_stalled_reader", "bytes/stalled\nreader"),
    ("freed_within_100_ms", "freed in\n100 ms"),
    ("freed_max_ms", "freed\nmax ms"),
)
_STREAMS = (
    ("cpu_us_per_chunk", "CPU us/\nchunk"),
    ("cpu_us_per_chunk_without_request", "without its\nrequest"),
    ("chunks_per_s", "chunks/s\ndelivered"),
    ("chunks_per_read", "chunks\nper read"),
    ("added_chunk_p50_us", "added us\np50"),
    ("added_chunk_p90_us", "added us\np90"),
    ("added_first_byte_us", "first byte\nadded us"),
)


def show(report: dict[str, Any], plan: Plan, console: Console) -> None:
    """Print ``report`` as made by ``report.document``."""
    rows: list[dict[str, Any]] = report["rows"]
    console.print(_by_proxy("Requests", rows, columns=_REQUESTS))
    if "chunk" in plan.phases:
        console.print(_streams(rows))
    if {"memory", "disconnect"} & set(plan.phases):
        console.print(_by_proxy("Open, idle, stalled and leaving clients", rows, columns=_CONNECTIONS))
    console.print(_reuse(rows))
    console.print(_goals(report))


def _by_proxy(title: str, rows: list[dict[str, Any]], *, columns: tuple[tuple[str, str], ...]) -> Table:
    table = Table(title=title)
    table.add_column("proxy")
    shown = [(key, title) for key, title in columns if any(row[key] is not None for row in rows)]
    for _, title in shown:
        table.add_column(title, justify="right")
    for row in rows:
        table.add_row(f"{row['proxy']} {row['version']}", *(_number(row[key]) for key, _ in shown))
    return table


def _streams(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Streams")
    for title in ("chunks/s\noffered", "proxy"):
        table.add_column(title)
    for _, title in _STREAMS:
        table.add_column(title, justify="right")
    for rate in rows[0]["streams"]:
        for row in rows:
            table.add_row(rate, row["proxy"], *(_number(row["streams"][rate][key]) for key, _ in _STREAMS))
        table.add_section()
    return table


def _reuse(rows: list[dict[str, Any]]) -> Table:
    table = Table(title="Connections the upstream accepted (most in one round)")
    table.add_column("proxy")
    phases = list(dict.fromkeys(phase for row in rows for phase in row["upstream_connections"]))
    for phase in phases:
        table.add_column(phase, justify="right")
    for row in rows:
        table.add_row(row["proxy"], *(_number(row["upstream_connections"].get(phase)) for phase in phases))
    return table


def _goals(report: dict[str, Any]) -> Table:
    table = Table(title="Goals of bellmare")
    table.add_column("goal")
    for title in ("wanted", "value", "met"):
        table.add_column(title, justify="right")
    words = {True: "[green]yes[/]", False: "[red]no[/]", None: "-"}
    for goal in report["goals"]:
        table.add_row(goal["name"], goal["wanted"], _number(goal["value"]), words[goal["met"]])
    return table


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:g}"
