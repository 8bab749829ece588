"""The words that all of OpenAI's codecs use. Decides nothing about a stream."""

from typing import Any

from bellmare.protocols.native_answers import NativeAnswer, NativeCall

SYSTEM_FINGERPRINT = "fp_ollama"
DONE = b"data: [DONE]\n\n"


def call_id(call: NativeCall, *, index: int, public_id: str) -> str:
    """OpenAI gives each call an id, to which the tool's result refers; where Ollama gave none it is made up."""
    return call.id or f"call_{public_id}_{index}"


def finish_reason(done_reason: str, *, tool_calls: bool) -> str:
    """As Ollama: a cut answer is one whatever else is in it. A closed runner's empty reason is no word of OpenAI's."""
    if done_reason == "length":
        return "length"
    return "tool_calls" if tool_calls else done_reason or "stop"


def usage(answer: NativeAnswer) -> dict[str, Any]:
    """What was counted; the cached part if the worker tells it."""
    prompt, output, cached = answer.prompt_eval_count, answer.eval_count, answer.prompt_eval_cached_count
    details = {} if cached is None else {"prompt_tokens_details": {"cached_tokens": cached}}
    return {"prompt_tokens": prompt, **details, "completion_tokens": output, "total_tokens": prompt + output}
