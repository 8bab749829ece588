"""Commands that ask a running gateway's admin API: tables for people, JSON for scripts."""

import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bellmare.cli.discovery import DIRECT
from bellmare.cli.serving import DEFAULT_FILE, fail, read_settings
from bellmare.cli.sizes import size_text, span_text

ADMIN_URL = "http://127.0.0.1:11436"
TIMEOUT_S = 10.0
POLL_S = 0.2
WAIT_MAX_S = 900.0
EXIT_NO_GATEWAY = 5
EXIT_REFUSED = 1
RELOAD_TIMEOUT_S = 60.0
"""New workers are waited for 15 s, and another reload may be under way."""
RESTART_TIMEOUT_S = 240.0
"""The sum of what each phase of a hand-over may take."""
LIFECYCLE_TEXTS = {
    "changed": "hold now",
    "restart": "hold after the next restart",
    "added": "workers added",
    "removed": "workers removed",
}
STATE_COLOURS = {"resident": "green", "loading": "cyan", "draining": "yellow", "unloading": "yellow"}


def admin_url() -> str:
    """Where the gateway of this folder and environment has its admin API."""
    if not DEFAULT_FILE.exists() and "BELLMARE_ADMIN" not in os.environ:
        return ADMIN_URL
    admin = read_settings(None).admin
    if admin is None:
        fail("the settings here say `admin: off`; name another gateway with --admin-url", 2)
    return f"http://{admin}" if admin.port else ADMIN_URL


def ask(
    url: str,
    path: str,
    body: dict[str, Any] | None = None,
    *,
    flag: str = "--admin-url",
    timeout_s: float = TIMEOUT_S,
) -> Any:  # tidy: one call with all that may differ
    """One call; ends the process with a clear text if nobody answers. Refusals (409) come back as their body."""
    url = url or admin_url()
    if not url.startswith(("http://", "https://")):
        fail(f"{flag} must begin with http://, not {url!r}", 2)
    data = json.dumps(body).encode() if body is not None else None
    request = urllib.request.Request(url.rstrip("/") + path, data=data, headers={"content-type": "application/json"})  # noqa: S310 - checked above
    try:
        with DIRECT.open(request, timeout=timeout_s) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        text = error.read().decode(errors="replace")
        if error.code == 409:
            return json.loads(text)
        fail(f"{url}{path} answered {error.code}: {text[:300]}", EXIT_REFUSED)
    except (urllib.error.URLError, OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        fail(f"no gateway answers at {url} ({reason}); start one with `bellmare up`", EXIT_NO_GATEWAY)


def _show(rows: Any, *, as_json: bool, table: Callable[[Any], Table], empty: str) -> None:
    if as_json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    console = Console()
    console.print(table(rows) if rows else empty)


def show_ps(url: str, *, as_json: bool) -> None:
    _show(ask(url, "/api/v1/ps"), as_json=as_json, table=_ps_table, empty="nothing is loaded")


def _table(*columns: str, right: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
    for column in columns:
        table.add_column(column, justify="right" if column in right else "left", overflow="fold")
    return table


def _ps_table(rows: list[dict[str, Any]]) -> Table:
    table = _table("MODEL", "WORKER", "STATE", "MEMORY", "CONTEXT", "BUSY", "IDLE", right=("MEMORY", "CONTEXT", "BUSY"))
    for row in rows:
        state = Text(row["residency"], STATE_COLOURS.get(row["residency"], ""))
        if row["wanted_by"]:
            state.append(f" for {row['wanted_by']}", "dim")
        busy = f"{row['busy']}/{row['slots']}" + (f" +{row['zombies']}" if row["zombies"] else "")
        idle = "" if row["busy"] else span_text(row["idle_s"])
        memory = size_text(row["bytes"])
        table.add_row(row["model"], row["worker"], state, memory, str(row["num_ctx"]), busy, idle)
    return table


def show_models(url: str, *, as_json: bool) -> None:
    _show(ask(url, "/api/v1/models"), as_json=as_json, table=_models_table, empty="no worker stores a model yet")


def _models_table(rows: list[dict[str, Any]]) -> Table:
    columns = ("MODEL", "SIZE", "CONTEXT", "STORED ON", "READY ON", "WAITING", "LOAD")
    table = _table(*columns, right=("SIZE", "CONTEXT", "STORED ON", "WAITING", "LOAD"))
    for row in rows:
        name = Text(row["model"])
        if row["drift"]:
            name.append(f" ({row['drift']} workers hold another version)", "yellow")
        load = span_text(row["load_s"]) if row["load_s"] else ""
        size, ready = size_text(row["weights_bytes"]), ", ".join(row["resident"])
        contexts = ", ".join(str(context) for context in row["contexts"])
        table.add_row(name, size, contexts, str(row["workers"]), ready, str(row["waiting"]), load)
    return table


def show_workers(url: str, *, as_json: bool) -> None:
    _show(ask(url, "/api/v1/workers"), as_json=as_json, table=_workers_table, empty="no workers")


def _workers_table(rows: list[dict[str, Any]]) -> Table:
    columns = ("WORKER", "HEALTH", "LOADED", "USED", "FREE", "MEMORY", "BUSY", "DOING")
    table = _table(*columns, right=("LOADED", "USED", "FREE", "MEMORY", "BUSY"))
    for row in rows:
        health = Text("healthy", "green") if row["healthy"] else Text(row["reason"], "red")
        memory = size_text(row["capacity_bytes"]) + ("" if row["capacity_known"] else "?")
        used = size_text(row["resident_bytes"] + row["reserved_bytes"])
        free, busy = size_text(row["free_bytes"]), f"{row['busy']}/{row['slots']}"
        table.add_row(row["worker"], health, str(row["models"]), used, free, memory, busy, row["operation"])
    return table


def show_queue(url: str, *, as_json: bool) -> None:
    """Those that wait, the next for each model first."""
    answer = ask(url, "/api/v1/queue")
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
        return
    console = Console()
    rows = answer["rows"]
    if not rows:
        console.print("nobody waits")
        return
    console.print(_queue_table(sorted(rows, key=lambda row: (row["model"], row["position"]))))
    if answer["waiting"] > len(rows):
        console.print(f"and {answer['waiting'] - len(rows)} more")


def _queue_table(rows: list[dict[str, Any]]) -> Table:
    columns = ("MODEL", "TURN", "IN ABOUT", "WAITED", "LEFT", "PRIORITY", "TENANT", "WAITS FOR", "REQUEST")
    table = _table(*columns, right=("TURN", "IN ABOUT", "WAITED", "LEFT"))
    for row in rows:
        spans = (span_text(row[name]) for name in ("eta_s", "age_s", "left_s"))
        who = (row["priority"], row["tenant"], row["waits_for"], row["request"])
        table.add_row(row["model"], str(row["position"]), *spans, *who)
    return table


def show_shadows(url: str, *, as_json: bool) -> None:
    """The fleet beside its shadows, and what was saved against stock Ollama."""
    report = ask(url, "/api/v1/shadows")
    if as_json:
        sys.stdout.write(json.dumps(report, indent=2) + "\n")
        return
    console = Console()
    console.print(_shadows_table(report))
    if not report["shadows"]:
        console.print("shadows are off; set `shadows: true`")
        return
    console.print(
        f"saved against stock Ollama, lately: {report['cold_starts_saved']:.1f} cold starts, "
        f"{span_text(max(0.0, report['load_seconds_saved']))} of loading; "
        f"regret {100 * report['regret_ratio']:.1f} %; policy changed {report['switches']} times"
    )


def _shadows_table(report: dict[str, Any]) -> Table:
    columns = ("POLICY", "COLD STARTS", "LOADS", "LOADING", "LATELY COLD", "LATELY LOADING")
    table = _table(*columns, right=columns[1:])
    for row in (report["fleet"], *report["shadows"]):
        name = Text(row["policy"])
        if row["policy"] == report["policy"]:
            name.append(" (in use)", "green")
        counts = (str(row["cold_starts"]), str(row["loads"]), f"{row['load_seconds']:.0f} s")
        lately = (f"{row['recent_cold_starts']:.1f}", f"{row['recent_load_seconds']:.1f} s")
        table.add_row(name, *counts, *lately)
    return table


def show_explain(url: str, subject: str, *, as_json: bool) -> None:
    answer = ask(url, f"/api/v1/explain/{urllib.parse.quote(subject, safe='/:')}")
    if as_json:
        sys.stdout.write(json.dumps(answer, indent=2) + "\n")
    elif answer["lines"]:
        sys.stdout.write("\n".join(answer["lines"]) + "\n")
    else:
        fail(f"nothing is remembered about '{subject}'", EXIT_REFUSED)


def ask_load(url: str, model: str, *, worker: str | None, wait: bool, as_json: bool) -> None:
    """Ask for a load and, unless told otherwise, wait until a worker shows it ready."""
    answer = ask(url, "/api/v1/load", {"model": model, "worker": worker})
    if answer["accepted"] and wait:
        _wait(url, model, answer["workers"], done=lambda states: bool(states) and set(states) == {"resident"})
    _tell(answer, model, as_json=as_json, done=f"ready on {', '.join(answer['workers'])}" if wait else "")


def ask_unload(url: str, model: str, *, worker: str | None, wait: bool, as_json: bool) -> None:
    """Ask for an unload and, unless told otherwise, wait until it is gone."""
    answer = ask(url, "/api/v1/unload", {"model": model, "worker": worker})
    if answer["accepted"] and wait:
        _wait(url, model, answer["workers"], done=lambda states: not states)
    _tell(answer, model, as_json=as_json, done=f"gone from {', '.join(answer['workers'])}" if wait else "")


def ask_reload(url: str, *, force: bool, as_json: bool) -> None:
    """Have the settings read again and say what holds now; status 1 if they were refused."""
    answer = ask(url, "/api/v1/reload", {"force": force}, timeout_s=RELOAD_TIMEOUT_S)
    if as_json:
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        said = [answer["text"], *answer["problems"]]
        for key, text in LIFECYCLE_TEXTS.items():
            said += [f"{text}: {', '.join(answer[key])}"] if answer[key] else []
        (sys.stdout if answer["accepted"] else sys.stderr).write("\n".join(said) + "\n")
    if not answer["accepted"]:
        raise SystemExit(EXIT_REFUSED)


def ask_restart(url: str, *, as_json: bool) -> None:
    """Have a new process take over and wait until it has; status 1 if the old one goes on."""
    answer = ask(url, "/api/v1/restart", {}, timeout_s=RESTART_TIMEOUT_S)
    if as_json:
        sys.stdout.write(json.dumps(answer) + "\n")
    else:
        (sys.stdout if answer["accepted"] else sys.stderr).write(answer["text"] + "\n")
    if not answer["accepted"]:
        raise SystemExit(EXIT_REFUSED)


def _wait(url: str, model: str, workers: list[str], *, done: Callable[[list[str]], bool]) -> None:
    """Poll until the model's states on ``workers`` are as wanted; a load that vanished is a failure."""
    name = model if ":" in model.rpartition("/")[2] else f"{model}:latest"
    deadline = time.monotonic() + WAIT_MAX_S
    seen = False
    with Console(stderr=True).status(f"waiting for {name}"):
        while time.monotonic() < deadline:
            rows = ask(url, "/api/v1/ps")
            states = [r["residency"] for r in rows if r["model"] == name.lower() and r["worker"] in workers]
            if done(states):
                return
            if seen and not states:
                fail(f"{name} vanished while it was awaited; see `bellmare explain {name}`", EXIT_REFUSED)
            seen = seen or bool(states)
            time.sleep(POLL_S)
    fail(f"{name} was not there after {WAIT_MAX_S:.0f} s; see `bellmare explain {name}`", EXIT_REFUSED)


def _tell(answer: dict[str, Any], model: str, *, as_json: bool, done: str) -> None:
    if as_json:
        sys.stdout.write(json.dumps(answer) + "\n")
    elif answer["accepted"]:
        sys.stdout.write(f"{model}: {done or answer['text']}\n")
    else:
        sys.stderr.write(f"bellmare: {model}: {answer['text']}\n")
    if not answer["accepted"]:
        raise SystemExit(EXIT_REFUSED)
