"""Conversations in the templates of each family, against the engine: its template, its tokens."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import msgspec
import pytest

from bellmare.context.encoders import encoder_of
from bellmare.context.learned import Lessons
from bellmare.context.measuring import Measuring, Memory, Yardstick
from bellmare.context.templates import template_of
from bellmare.context.vocabulary import Shown
from bellmare.http.client import Upstream
from bellmare.protocols.ollama import ChatRequest, Message
from bellmare.workers.embedded.process import EngineArguments, EngineProcess
from engine_vocabularies import byte_pairs, write_vocabulary

pytestmark = [pytest.mark.engine, pytest.mark.slow]

ASKING = "{% if add_generation_prompt %}"
FAMILIES = {
    "chatml": (
        ("<|im_start|>", "<|im_end|>"),
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>'"
        " + '\n' }}{% endfor %}" + ASKING + "{{ '<|im_start|>assistant\n' }}{% endif %}",
    ),
    "llama3": (
        ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
        "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] +"
        " '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}{{ content }}{% endfor %}"
        + ASKING
        + "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}",
    ),
    "gemma": (
        ("<start_of_turn>", "<end_of_turn>"),
        "{% for message in messages %}{% if message['role'] == 'assistant' %}{% set role = 'model' %}{% else %}"
        "{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '\n' + message['content'] | trim"
        " + '<end_of_turn>\n' }}{% endfor %}" + ASKING + "{{ '<start_of_turn>model\n' }}{% endif %}",
    ),
    "phi3": (
        ("<|user|>", "<|assistant|>", "<|system|>", "<|end|>"),
        "{% for message in messages %}{{ '<|' + message['role'] + '|>\n' + message['content'] + '<|end|>\n' }}"
        "{% endfor %}" + ASKING + "{{ '<|assistant|>\n' }}{% endif %}{# <|user|> #}",
    ),
    "phi4": (
        ("<|im_start|>", "<|im_sep|>", "<|im_end|>"),
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '<|im_sep|>' + message['content']"
        " + '<|im_end|>' }}{% endfor %}" + ASKING + "{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}",
    ),
    "granite": (
        ("<|start_of_role|>", "<|end_of_role|>", "<|end_of_text|>"),
        "{% for message in messages %}{{ '<|start_of_role|>' + message['role'] + '<|end_of_role|>' + message['content']"
        " + '<|end_of_text|>\n' }}{% endfor %}"
        + ASKING
        + "{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}",
    ),
    "deepseek": (
        ("<\uff5cUser\uff5c>", "<\uff5cAssistant\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>"),
        "{% for message in messages %}{% if message['role'] == 'user' %}{{ '<\uff5cUser\uff5c>' + message['content'] }}"
        "{% elif message['role'] == 'assistant' %}{{ '<\uff5cAssistant\uff5c>' + message['content']"
        " + '<\uff5cend\u2581of\u2581sentence\uff5c>' }}{% else %}{{ message['content'] }}{% endif %}{% endfor %}"
        + ASKING
        + "{{ '<\uff5cAssistant\uff5c>' }}{% endif %}",
    ),
}
CHATS = (
    [("user", "The quick brown fox")],
    [("user", " spaces around \n"), ("assistant", "\nyes "), ("user", "don't \u65e5\u672c 12345")],
    [(("user", "assistant")[turn % 2], f"turn {turn} of many") for turn in range(15)],
)


@pytest.mark.parametrize("family", FAMILIES)
async def test_a_conversation_has_the_engines_tokens(family: str, tmp_path: Path):
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the extra `embedded` is not installed")
    controls, text = FAMILIES[family]
    vocabulary = msgspec.structs.replace(byte_pairs("qwen2", controls=("<s>", *controls)), add_bos=True)
    path = write_vocabulary(tmp_path / "v.gguf", vocabulary, chat_template=text)
    template = template_of(Shown(text))
    assert template.family.name == family
    yardstick = Yardstick(encoder_of(vocabulary), template, 1, Lessons())
    engine = await EngineProcess.start(EngineArguments(path, 128, parallel=1, threads=1), timeout_s=60)
    upstream = Upstream(engine.host, engine.port, base_path=engine.base_path)

    async def ask(route: str, body: object) -> dict:
        answer = await upstream.fetch("POST", route, body=msgspec.json.encode(body), timeout_s=20)
        return msgspec.json.decode(answer.body)  # type: ignore[no-any-return]

    try:
        for chat in CHATS:
            messages = [{"role": role, "content": content} for role, content in chat]
            prompt = (await ask("/apply-template", {"messages": messages}))["prompt"]
            said = {"content": prompt, "add_special": True, "parse_special": True}
            theirs = len((await ask("/tokenize", said))["tokens"])
            request = ChatRequest(messages=[Message(role=role, content=content) for role, content in chat])
            assert Measuring(yardstick, Memory(), lambda: None).measure(request).tokens == theirs, prompt
    finally:
        await upstream.close()
        await engine.stop(grace_s=1)
