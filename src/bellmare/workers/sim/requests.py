"""Bodies as Ollama reads them: keys without regard to case, the last of equal ones wins, unknown ones ignored
(reliability.md F6).
"""

import base64
import re
from typing import Any

import msgspec

from bellmare.protocols.errors import InvalidRequest
from bellmare.protocols.names import canonical_name, local_name
from bellmare.protocols.ollama_fields import check_think
from bellmare.twin.messages import RunnerOptions
from bellmare.workers.sim.durations import keep_alive_us
from bellmare.workers.sim.text import count_tokens
from bellmare.workers.sim.vocabulary import COUNTED_CHARS_MAX, Vocabulary

_INTEGERS = (
    "num_ctx",
    "num_batch",
    "num_gpu",
    "main_gpu",
    "num_thread",
    "draft_num_predict",
    "num_keep",
    "num_predict",
    "seed",
    "top_k",
    "repeat_last_n",
)
_FLOATS = (
    "top_p",
    "min_p",
    "typical_p",
    "temperature",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_STRINGS = ("model", "name", "prompt", "suffix", "system", "template")
_LISTS = ("messages", "tools", "images", "context")
_EMBEDDING = frozenset({"model", "keep_alive", "options"})
_GENERATION = _EMBEDDING | {
    "stream",
    "format",
    "think",
    "truncate",
    "shift",
    "logprobs",
    "top_logprobs",
    "_debug_render_only",
}
CHAT_FIELDS = _GENERATION | {"messages", "tools"}
GENERATE_FIELDS = _GENERATION | {"prompt", "suffix", "system", "template", "context", "raw", "images"}
EMBED_FIELDS = _EMBEDDING | {"input", "truncate", "dimensions"}
EMBEDDINGS_FIELDS = _EMBEDDING | {"prompt"}
SHOW_FIELDS = frozenset({"model", "name", "system", "template", "verbose", "options"})
_FLAGS = ("stream", "raw", "truncate", "shift", "logprobs", "_debug_render_only", "verbose")
_INT64 = 1 << 63
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
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
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
        return canonical_name(local_name(self.asked_name))

    def check_types(self, known: frozenset[str]) -> None:
        """What Go's decoder says before anything else is looked at; it ignores all but the ``known`` fields."""
        self._fields = {key: value for key, value in self._fields.items() if key in known}
        for key in _STRINGS:
            self.text(key)
        for key in _LISTS:
            self.rows(key)
        for key in _FLAGS:
            self.flag(key, default=None)
        for key in ("top_logprobs", "dimensions"):
            value = self._fields.get(key)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
                raise InvalidRequest(f"json: cannot unmarshal into Go struct field .{key} of type int")
        options = self._fields.get("options")
        if options is not None and not isinstance(options, dict):
            raise InvalidRequest("json: cannot unmarshal into Go struct field .options of type map[string]interface {}")
        if any(isinstance(token, bool) or not isinstance(token, int) for token in self.rows("context")):
            raise InvalidRequest("json: cannot unmarshal into Go struct field .context of type int")
        check_think(self._fields.get("think"))
        _ = self.keep_alive_us
        messages = [_message(row) for row in self.rows("messages")]
        self._fields["messages"] = messages
        for image in [*self.rows("images"), *(image for row in messages for image in row.get("images") or ())]:
            _check_base64(image)
        for tool in self.rows("tools"):
            if tool is not None and not isinstance(tool, dict):
                raise InvalidRequest("json: cannot unmarshal into Go struct field .tools of type api.Tool")

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
        for key, value in found.items():
            if value is not None:
                _check_option(key, value)
        return {
            key: _go_int(value) if key in _INTEGERS and value is not None else value for key, value in found.items()
        }


def _check_option(key: str, value: Any) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    wanted = ""
    if key in _INTEGERS and not number:
        wanted = "of type integer"
    elif key in _FLOATS and not number:
        wanted = "of type float32"
    elif key == "use_mmap" and not isinstance(value, bool):
        wanted = "of type boolean"
    elif key == "stop" and not isinstance(value, list):
        wanted = "of type array"
    elif key == "stop" and not all(isinstance(item, str) for item in value):
        wanted = "of an array of strings"
    if wanted:
        raise InvalidRequest(f'option "{key}" must be {wanted}', status=500)


def _go_int(value: float) -> int:
    """A float as an int64, as x86 makes it of one that is out of range."""
    return int(value) if -_INT64 <= value < _INT64 else -_INT64


def _message(row: Any) -> dict[str, Any]:
    if row is None:
        return {}
    if not isinstance(row, dict):
        raise InvalidRequest("json: cannot unmarshal into Go struct field .messages of type api.Message")
    for call in row.get("tool_calls") or ():
        arguments = ((call or {}).get("function") or {}).get("arguments")
        if arguments is not None and not isinstance(arguments, dict):
            raise InvalidRequest(
                "json: cannot unmarshal into Go struct field .arguments of type map[string]interface {}"
            )
    return row


def _check_base64(image: Any) -> None:
    if image is None:
        return
    if not isinstance(image, str):
        raise InvalidRequest("json: cannot unmarshal into Go struct field .images of type []uint8")
    try:
        base64.b64decode(image, validate=True)
    except ValueError:
        odd = re.search(r"[^A-Za-z0-9+/=]", image)
        at = odd.start() if odd is not None else len(image) - len(image) % 4
        raise InvalidRequest(f"illegal base64 data at input byte {at}") from None


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
