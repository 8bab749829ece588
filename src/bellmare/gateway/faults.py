"""What a worker's error answer means: the request's own error, or a dead runner."""

STATUS_LEFT = 499
"""In logs and metrics only: the client left before its answer."""

_CRASH_BEGINNINGS = (
    "llama-server process has terminated",
    "llama runner process has terminated",
    "llama runner process no longer running",
    "model runner has unexpectedly stopped",
    "an error was encountered while running the model: unexpected EOF",
    "an error was encountered while running the model: EOF",
    "an error was encountered while running the model: read tcp",
    "an error was encountered while running the model: write tcp",
    "timed out waiting for llama-server",
)
"""How Ollama's own texts for a dead runner begin (ollama.md 1.6). Only beginnings count: further on a text may quote
errors of other requests (ollama.md 12). Whatever else ends an answer with "an error was encountered" is that
request's own trouble: its runner goes on serving others."""


_HARMLESS = frozenset(
    {
        "This server does not support embeddings. Start it with `--embeddings`",
        "unable to load full model on GPU",
    }
)
"""Ollama's texts with 5xx that are the same for everybody, so that a client may look for them (ollama.md 1.6)."""

THINKS_NOT = "does not support thinking"
"""How Ollama's refusal of ``think`` ends, for a model without that capability (ollama.md 1.4)."""
FAILED_TEXT = "the model's worker failed"
BROKEN_TEXT = "the model's worker failed before the answer was complete"


def public_text(status: int, text: str) -> str:
    """What a tenant may read of a worker's error text.

    Errors of the request itself (4xx) are passed on. Of others only a known beginning: the rest may quote paths of the
    worker and requests of other tenants (ollama.md 12); the log has it all.
    """
    if 400 <= status < 500 or text in _HARMLESS:
        return text
    return next((beginning for beginning in _CRASH_BEGINNINGS if text.startswith(beginning)), FAILED_TEXT)


def status_within(text: str) -> int:
    """The status that an error inside a 200 would have had, by Ollama's own words (ollama.md 1.6)."""
    if text.startswith("server busy"):
        return 503
    return 404 if text.startswith("model ") and " not found" in text else 500


def is_crash(status: int, text: str) -> bool:
    """Whether an error answer says that the runner died, so that another may serve the request."""
    return status == 500 and text.startswith(_CRASH_BEGINNINGS)
