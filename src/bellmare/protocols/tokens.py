"""Guesses of token counts. For wait estimates only: never for context limits, never for bills."""

import msgspec

from bellmare.protocols.ollama_requests import ChatRequest

_BYTES_PER_TOKEN = 4
_TOKENS_PER_IMAGE = 768
"""What Ollama's own truncation counts for an image (ollama.md 5)."""

_encode = msgspec.json.Encoder().encode


def estimate_chat_tokens(request: ChatRequest) -> int:
    """As :func:`estimate_prompt_tokens`, of all that a chat's template makes a prompt of."""
    messages = request.messages or []
    images = sum(len(message.images or ()) for message in messages)
    parts: list[object] = [(message.content, message.thinking, message.tool_calls) for message in messages]
    return estimate_prompt_tokens(sum(len(_encode(part)) for part in (*parts, request.tools)), images)


def estimate_prompt_tokens(text_bytes: int, images: int = 0) -> int:
    """Tokens of a prompt of ``text_bytes`` of UTF-8 and ``images`` images.

    Up to 4.2 times too low on code, emoji and CJK (ecosystem.md 0, measured), so it orders waits and guards nothing.
    """
    assert text_bytes >= 0 and images >= 0
    return -(-text_bytes // _BYTES_PER_TOKEN) + images * _TOKENS_PER_IMAGE
