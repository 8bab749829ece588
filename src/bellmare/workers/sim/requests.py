"""Bodies as Ollama reads them: keys without regard to case, the last of equal ones wins, unknown ones ignored
(reliability.md F6).
"""

from typing import Any

import msgspec

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.names import canonical_name
from bellmare.twin.messages import RunnerOptions
from bellmare.workers.sim.durations import keep_alive_us
from bellmare.workers.sim.text import count_tokens
from bellmare.workers.sim.vocabulary import COUNTED_CHARS_MAX, Vocabulary

_INTEGERS = ("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "draft_num_predict", "num_predict", "seed")
_IMAGE_TOKENS = 768
_MESSAGE_TOKENS = 4
"""Template around each message."""


class Body:
    """One decoded request body."""

    def __init__(self, raw: bytes) -> None:
        if not raw.strip():
            raise InvalidRequest("missing request body")
        try:
            found = msgspec.json.decode(raw)
        except msgspec.DecodeError as error:
            raise InvalidRequest(str(error)) from None
        if not isinstance(found, dict):
            raise InvalidRequest("json: cannot unmarshal into Go value")
        self._fields = {key.casefold(): value for key, value in found.items()}

    def get(self, key: str) -> Any:
        """The value under ``key``, or None."""
        return self._fields.get(key)

    def text(self, key: str) -> str:
        """A string; absent and null are empty."""
        value = self._fields.get(key)
        if value is not None and not isinstance(value, str):
            raise InvalidRequest(f"json: cannot unmarshal into Go struct field .{key} of type string")
        return value or ""

    def rows(self, key: str) -> list[Any]:
        """A list; absent and null are empty."""
        value = self._fields.get(key)
        if value is not None and not isinstance(value, list):
            raise InvalidRequest(f"json: cannot unmarshal into Go struct field .{key} of type []")
        return value or []

    def flag(self, key: str, *, default: bool | None) -> bool | None:
        """A bool."""
        value = self._fields.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise InvalidRequest(f"json: cannot unmarshal into Go struct field .{key} of type bool")
        return value

    @property
    def asked_name(self) -> str:
        """The model as written; some clients still send ``name``."""
        return self.text("model") or self.text("name")

    @property
    def name(self) -> str:
        """The model's canonical name."""
        return canonical_name(self.asked_name)

    @property
    def keep_alive_us(self) -> int | None:
        return keep_alive_us(self._fields.get("keep_alive"))

    @property
    def stream(self) -> bool:
        return self.flag("stream", default=True) is not False

    def options(self) -> dict[str, Any]:
        """``options`` with checked types; 500 for a wrong one, as stock (ollama.md 1.4)."""
        found = self._fields.get("options")
        if found is None:
            return {}
        if not isinstance(found, dict):
            raise InvalidRequest("json: cannot unmarshal into Go struct field .options of type map[string]interface {}")
        for key in _INTEGERS:
            value = found.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int | float)):
                raise InvalidRequest(f'option "{key}" must be of type integer', status=500)
        return {key: int(value) if key in _INTEGERS and value is not None else value for key, value in found.items()}


def runner_options(options: dict[str, Any]) -> RunnerOptions:
    """The part of ``options`` that makes the runner's shape."""
    num_gpu, main_gpu, num_thread = (options.get(key) for key in ("num_gpu", "main_gpu", "num_thread"))
    return RunnerOptions(
        num_ctx=options.get("num_ctx"),
        num_batch=options.get("num_batch"),
        num_gpu=-1 if num_gpu is None else num_gpu,
        main_gpu=main_gpu or 0,
        use_mmap=options.get("use_mmap"),
        num_thread=num_thread or 0,
        draft_num_predict=options.get("draft_num_predict"),
    )


def content_text(content: object) -> str:
    """A message's text; OpenAI's lists of parts are joined."""
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content if isinstance(content, str) else ""


def counted(counter: Vocabulary, text: str, images: int = 0) -> int:
    """Tokens of a rendered prompt by a real vocabulary."""
    part = text[:COUNTED_CHARS_MAX]
    tokens = counter.count(part)
    return tokens * len(text) // max(1, len(part)) + _IMAGE_TOKENS * images


def messages_text(messages: list[Any]) -> tuple[str, int]:
    """All the words of a conversation, and how many tokens they are taken for."""
    texts, tokens = [], 0
    for message in messages:
        if not isinstance(message, dict):
            raise InvalidRequest("json: cannot unmarshal into Go struct field .messages of type api.Message")
        text = content_text(message.get("content"))
        texts.append(text)
        tokens += count_tokens(text) + _MESSAGE_TOKENS + _IMAGE_TOKENS * len(message.get("images") or ())
    return "\n".join(texts), tokens


def prompt_tokens(body: Body) -> int:
    """Tokens of /api/generate."""
    return (
        count_tokens(body.text("system") + body.text("prompt"))
        + len(body.rows("context"))
        + _IMAGE_TOKENS * len(body.rows("images"))
    )
