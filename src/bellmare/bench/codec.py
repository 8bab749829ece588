"""What the codecs cost: from a request's body to an errand to a worker's bytes, and from an answer to a client's bytes.

No sockets, no core: what is left of a request's time besides. Each figure is the quietest of several rounds.
"""

import argparse
import json
import sys
import timeit
from collections.abc import Callable

import msgspec

from bellmare.gateway.errands import anthropic, native, openai
from bellmare.gateway.errands.errand import Errand, Stamp
from bellmare.gateway.translate import Native, Plain
from bellmare.protocols.ollama import encode_for_worker

ROUNDS = 7
RUNS_MAX = 400_000
"""In all rounds a response's stream then keeps 14 million characters, which is less than it may."""

_MODEL = "llama3.2:3b"
_OPTIONS = {"temperature": 0.7, "top_p": 0.9, "num_predict": 128, "seed": 1, "stop": ["\n\n"]}
_MESSAGES = [
    {"role": "system", "content": "You are a helpful assistant."},
    {"role": "user", "content": "word " * 156},
]
_HEAD = f'{{"model":"{_MODEL}","created_at":"2026-01-01T00:00:00.123456789Z",'
_END = (
    '"done":true,"done_reason":"stop","total_duration":123456789,"load_duration":1234567,"prompt_eval_count":200,'
    '"prompt_eval_duration":12345678,"eval_count":25,"eval_duration":123456789}\n'
)
TEXT_TOKEN = f'{_HEAD}"response":" word","done":false}}\n'.encode()
"""As ``TOKEN``, of /api/generate."""
TOKEN = f'{_HEAD}"message":{{"role":"assistant","content":" word"}},"done":false}}\n'.encode()
"""One line of a streamed answer."""
WHOLE = f'{_HEAD}"message":{{"role":"assistant","content":"{"word " * 25}"}},{_END}'.encode()
"""An answer that is not streamed, about 400 bytes."""
_STAMP = Stamp(public_id="1a2b3c-1", created_s=1_767_225_600, model=_MODEL, asked=_MODEL)


class Figure(msgspec.Struct, frozen=True):
    """One codec."""

    name: str
    us: float
    """Microseconds of one run."""
    bytes: int
    """That go in."""


def _written(fields: dict[str, object], *, blanks: bool = False) -> bytes:
    return json.dumps(fields, separators=(", ", ": ") if blanks else (",", ":")).encode()


def bodies() -> dict[str, tuple[Callable[[bytes], Errand], bytes]]:
    """The requests that are measured, by name: their parser and their body."""
    chat = {"model": _MODEL, "messages": _MESSAGES, "stream": False, "options": _OPTIONS}
    generate = {"model": _MODEL, "prompt": "word " * 175, "stream": False, "options": _OPTIONS}
    text = {"model": _MODEL, "prompt": "word " * 175, "max_tokens": 128}
    completions = {"model": _MODEL, "messages": _MESSAGES, "stream": True, "temperature": 0.7, "max_tokens": 128}
    messages = {"model": _MODEL, "system": _MESSAGES[0]["content"], "messages": _MESSAGES[1:], "stream": True}
    return {
        "chat": (native.chat, _written(chat)),
        "chat, with blanks": (native.chat, _written(chat, blanks=True)),
        "chat, unknown field": (native.chat, _written({**chat, "x": "y"})),
        "generate": (native.generate, _written(generate)),
        "chat/completions": (openai.chat_completions, _written(completions)),
        "completions": (openai.completions, _written({**text, "stream": True, "temperature": 0.7})),
        "responses": (openai.responses, _written({"model": _MODEL, "input": _MESSAGES, "stream": True})),
        "messages": (anthropic.messages, _written({**messages, "temperature": 0.7, "max_tokens": 128})),
    }


def _plain() -> bytes:
    plain = Plain()
    plain.feed(WHOLE)
    return plain.end()


def _answering(errand: Errand) -> Callable[[], object]:
    def answer() -> bytes:
        body = errand.translator(_STAMP)
        body.feed(WHOLE)
        return body.end()

    return answer


def _parsing(parse: Callable[[bytes], Errand], body: bytes) -> Callable[[], object]:
    return lambda: parse(body)


def _feeding(errand: Errand, token: bytes) -> Callable[[], object]:
    """A token of a stream that has begun; a response's whole text is kept, as it is in a long answer."""
    events = errand.translator(_STAMP)
    events.feed(token)
    return lambda: events.feed(token)


def _encoding(errand: Errand) -> Callable[[], object]:
    return lambda: encode_for_worker(errand.native, model=errand.asked, num_ctx=8192)


def cases() -> dict[str, tuple[Callable[[], object], int]]:
    """What is run, by name, with the bytes that go in."""
    found: dict[str, tuple[Callable[[], object], int]] = {}
    requests = bodies()
    for name, (parse, body) in requests.items():
        found[f"parse {name}"] = (_parsing(parse, body), len(body))
    for name in ("chat", "generate", "chat/completions", "messages"):
        parse, body = requests[name]
        found[f"for the worker {name}"] = (_encoding(parse(body)), len(body))
    lines = Native()
    found["token, native"] = (lambda: lines.feed(TOKEN), len(TOKEN))
    for name, token in (
        ("chat/completions", TOKEN),
        ("completions", TEXT_TOKEN),
        ("responses", TOKEN),
        ("messages", TOKEN),
    ):
        parse, body = requests[name]
        found[f"token, {name}"] = (_feeding(parse(body), token), len(token))
    found["last line, native"] = (lambda: Native().feed(WHOLE), len(WHOLE))
    found["answer, native"] = (_plain, len(WHOLE))
    for name in ("chat/completions", "responses", "messages"):
        parse, body = requests[name]
        unstreamed = parse(body.replace(b'"stream":true', b'"stream":false'))
        found[f"answer, {name}"] = (_answering(unstreamed), len(WHOLE))
    return found


def measure(runs: int) -> list[Figure]:
    """Each case, ``runs`` times in each of ``ROUNDS`` rounds."""
    assert 1 <= runs <= RUNS_MAX
    figures = []
    for name, (run, size) in cases().items():
        best_s = min(timeit.repeat(run, number=runs, repeat=ROUNDS))
        figures.append(Figure(name=name, us=round(best_s / runs * 1e6, 2), bytes=size))
    return figures


def table(figures: list[Figure]) -> str:
    """For people."""
    lines = [f"{'codec':<32}{'bytes':>8}{'us':>9}"]
    lines += [f"{figure.name:<32}{figure.bytes:>8}{figure.us:>9.2f}" for figure in figures]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bellmare.bench.codec", description=__doc__)
    parser.add_argument("--runs", type=int, default=5_000, help="of each codec in each round")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    chosen = parser.parse_args(arguments)
    if not 1 <= chosen.runs <= RUNS_MAX:
        parser.error(f"--runs must be between 1 and {RUNS_MAX}")
    figures = measure(chosen.runs)
    if chosen.json:
        sys.stdout.write(msgspec.json.encode({"codecs": figures}).decode() + "\n")
    else:
        sys.stdout.write(table(figures) + "\n")


if __name__ == "__main__":
    main()
