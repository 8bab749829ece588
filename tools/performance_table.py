"""The figures of docs/performance.md as Markdown, out of what `bellmare bench proxy --json` said: give the file."""

import json
import sys
from pathlib import Path
from typing import Any

_REQUESTS = (
    ("CPU us/request", "cpu_us_per_request"),
    ("requests/s seen", "requests_per_s"),
    ("per core", "requests_per_s_per_core"),
    ("added us p50", "added_p50_us"),
    ("p99", "added_p99_us"),
    ("bytes/idle connection", "bytes_per_idle_connection"),
    ("/stream", "bytes_per_stream"),
    ("/stalled reader", "bytes_per_stalled_reader"),
    ("freed in 100 ms", "freed_within_100_ms"),
    ("waited for core, %", "waited_percent"),
    ("errors", "errors"),
)
_STREAMS = (
    ("CPU us/chunk", "cpu_us_per_chunk"),
    ("without its request", "cpu_us_per_chunk_without_request"),
    ("chunks/s delivered", "chunks_per_s"),
    ("chunks per read", "chunks_per_read"),
    ("added us p50", "added_chunk_p50_us"),
    ("p90", "added_chunk_p90_us"),
    ("first byte, added us", "added_first_byte_us"),
)


def number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 1000 or value == int(value) else f"{value:g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def figures(report: dict[str, Any]) -> str:
    """Everything from the machine to the goals."""
    machine, rows = report["machine"], report["rows"]
    parts = [
        f"{machine['cores']} cores ({machine['machine']}), Linux {machine['kernel']}, Python {machine['python']}, "
        f"{report['plan']['rounds']} rounds.\n",
        table(
            ["proxy", *(title for title, _ in _REQUESTS)],
            [[f"{r['proxy']} {r['version']}".strip(), *(number(r[key]) for _, key in _REQUESTS)] for r in rows],
        ),
    ]
    streams = [
        [rate, row["proxy"], *(number(row["streams"][rate][key]) for _, key in _STREAMS)]
        for rate in rows[0]["streams"]
        for row in rows
    ]
    parts.append(table(["offered/s", "proxy", *(title for title, _ in _STREAMS)], streams))
    words = {True: "yes", False: "**no**", None: "-"}
    goals = [[g["name"], g["wanted"], number(g["value"]), words[g["met"]]] for g in report["goals"]]
    parts.append(table(["goal", "wanted", "value", "met"], goals))
    parts += [f"Notice: {notice}.\n" for notice in report["notices"]]
    return "\n".join(parts)


if __name__ == "__main__":
    print(figures(json.loads(Path(sys.argv[1]).read_text())), end="")
