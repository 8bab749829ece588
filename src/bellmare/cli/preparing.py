"""`bellmare prepare`: says to a running gateway which models will be asked for, as a client's interface would."""

import json
import os
import sys

from bellmare.cli.asking import ask
from bellmare.cli.serving import DEFAULT_FILE, EXIT_SETTINGS, fail, read_settings
from bellmare.settings.quantities import parse_duration

GATEWAY_URL = "http://127.0.0.1:11435"


def gateway_url() -> str:
    """Where the gateway of this folder and environment listens."""
    if not DEFAULT_FILE.exists() and "BELLMARE_LISTEN" not in os.environ:
        return GATEWAY_URL
    listen = read_settings(None).listen
    return f"http://{listen}" if listen.port else GATEWAY_URL


def ask_prepare(url: str, models: list[str], *, within: str, ttl: str, as_json: bool) -> None:
    """Give the hint and tell what is known of each model. Nothing is waited for: `bellmare load` does that."""
    body: dict[str, object] = {"models": models, "in_ms": _ms("--in", within)}
    if ttl:
        body["ttl_ms"] = _ms("--ttl", ttl)
    answer = ask(url or gateway_url(), "/api/prepare", body, flag="--url")
    if as_json:
        sys.stdout.write(json.dumps(answer) + "\n")
        return
    for row in answer["models"]:
        sys.stdout.write(f"{row['model']}: {row['state']}\n")


def _ms(flag: str, value: str) -> float:
    try:
        return parse_duration(value) / 1000
    except ValueError as error:
        fail(f"{flag}: {error}", EXIT_SETTINGS)
