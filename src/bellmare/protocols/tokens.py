"""Guesses of token counts. For wait estimates only: never for context limits, never for bills."""

_BYTES_PER_TOKEN = 4
_TOKENS_PER_IMAGE = 768
"""What Ollama's own truncation counts for an image (ollama.md 5)."""


def estimate_prompt_tokens(text_bytes: int, images: int = 0) -> int:
    """Tokens of a prompt of ``text_bytes`` of UTF-8 and ``images`` images.

    Up to 4.2 times too low on code, emoji and CJK (ecosystem.md 0, measured), so it orders waits and guards nothing.
    """
    assert text_bytes >= 0 and images >= 0
    return -(-text_bytes // _BYTES_PER_TOKEN) + images * _TOKENS_PER_IMAGE
