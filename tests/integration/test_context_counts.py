"""SmolLM2 on the real engine: the counts that the guard makes are the engine's own, text by text."""

from __future__ import annotations

import asyncio
import importlib.util
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import rig
from rig import Gateway, start_gateway

from bellmare.context.counting import Count, Method
from bellmare.protocols.ollama import ChatRequest, GenerateRequest, Message

pytestmark = [pytest.mark.engine, pytest.mark.slow, pytest.mark.timeout(400)]

SMOLLM = "smollm2:135m"
NUM_CTX = 2_048
RNG = random.Random(5)
CODE = (
    "def merged(word, rank):\n    symbols = list(word)\n\n    while len(symbols) > 1:\n"
    "\t\treturn [s for s in symbols if s]\n"
)
PROSE = "The mare leads and the train follows over stone and river, at an even pace; each load finds its place. "
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
TEXTS = {
    "a letter": "a",
    "a word": "hello",
    "prose": PROSE,
    "long prose": " ".join(RNG.choice(PROSE.split()) for _ in range(700)),
    "python": CODE * 2,
    "c": '#include <stdio.h>\nint main(void) {\n\tfor (int i = 0; i < 10; ++i) printf("%d\\n", i * 0x1F);\n}\n',
    "json": '{"a": [1, 2.5, -3e10, null, true], "b": {"c": "d\\"e", "\u00e4": "\\u00e4"}}',
    "html": '<div class="a"><p>Hello &amp; <b>bye</b></p><!-- x --></div>\n' * 2,
    "sql": "SELECT a.id, COUNT(*) FROM t AS a WHERE a.x >= 10 AND b LIKE '%y%' GROUP BY 1 ORDER BY 2 DESC;",
    "a diff": "--- a/x.py\n+++ b/x.py\n@@ -1,3 +1,4 @@\n-old\n+new\n context\n",
    "chinese": "\u4f60\u597d\uff0c\u4e16\u754c\uff01\u4eca\u5929\u5929\u6c14\u5f88\u597d\uff0c\u53bb\u516c\u56ed\u3002",
    "japanese": "\u65e5\u672c\u8a9e\u306e\u30c6\u30ad\u30b9\u30c8\u3068\u6f22\u5b57\u3001\u304b\u306a\u3002" * 2,
    "korean": "\uc548\ub155\ud558\uc138\uc694, \uc138\uacc4! \uc624\ub298\uc740 \ub0a0\uc528\uac00.",
    "russian": "\u0421\u044a\u0435\u0448\u044c \u0435\u0449\u0451 \u044d\u0442\u0438\u0445",
    "arabic": "\u0645\u0631\u062d\u0628\u0627 \u0628\u0627\u0644\u0639\u0627\u0644\u0645\u060c \u0643\u064a\u0641",
    "hindi": "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e, \u0915\u0948\u0938\u0947",
    "thai": "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35\u0e0a\u0e32\u0e27\u0e42\u0e25\u0e01",
    "hebrew": "\u05e9\u05dc\u05d5\u05dd \u05e2\u05d5\u05dc\u05dd " * 2,
    "greek": "\u039a\u03b1\u03bb\u03b7\u03bc\u03ad\u03c1\u03b1 \u03ba\u03cc\u03c3\u03bc\u03b5 " * 2,
    "accents": "na\u00efve caf\u00e9 \u00c9cole stra\u00dfe \u0141\u00f3d\u017a e\u0301 o\u0308",
    "emoji": "\U0001f600\U0001f680 \U0001f468\u200d\U0001f469\u200d\U0001f467 \U0001f1e9\U0001f1ea \u2764\ufe0f " * 2,
    "numbers": "1 12 123 1234 12345 3.14159 1,000,000 0xDEADBEEF 1e-10 \u0661\u0662\u0663 \u00bd \u2163",
    "digits": "".join(str(RNG.randrange(10)) for _ in range(120)),
    "spaces": " " * 300,
    "mixed white space": "a  b   c\t\td \n\n\n e\r\n\r\nf\u00a0g\u2003h\u3000i \t \n",
    "newlines": "\n" * 120,
    "trailing space": "ends with spaces    ",
    "leading space": "    begins with spaces",
    "punctuation": "!!! ??? ... --- ~~~ ``` ''' *** ((([[[{{{ }}}]]])))  <<<>>> ||| && @#$%^&*",
    "contractions": "I'm don't WE'RE they'LL it's 'tis rock'n'roll 'S 'T",
    "special tokens": "<|im_start|>user\nhi<|im_end|>\n<|endoftext|><|im_start|>assistant\n",
    "nearly special": "<|im_start> |im_end|> <|im_end| > <| im_start |>",
    "base64": "".join(RNG.choice(LETTERS) for _ in range(300)),
    "one letter": "a" * 900,
    "control characters": "a\x00b\x01c\x07d\x1be\x7ff\u200bg\ufeffh",
    "private use": "\ue000\U000f0000\U0010fffd\ufffd",
    "urls": "https://example.com/a/b?c=d&e=%20f#g mailto:x@y.example ftp://[::1]:21/",
    "markdown": "# Title\n\n- item *one*\n- item `two`\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n```py\nx = 1\n```\n",
    "mathematics": "\u2200x\u2208\u211d: x\u00b2 \u2265 0 \u21d2 \u222b\u2080\u00b9 f(x)dx \u2248 \u221a2 \u00b1",
    "a table": "\n".join(f"{row:>5}\t{row * row:>8.2f}\t{'x' * (row % 7)}" for row in range(15)),
    "random": "".join(chr(RNG.choice([RNG.randrange(32, 127), RNG.randrange(0xA0, 0x2FF)])) for _ in range(200)),
}
CHATS = {
    "a question": [("user", "hi")],
    "with a system message": [("system", "Be kind.\n"), ("user", "Who are you?")],
    "answers": [("user", "one\n"), ("assistant", " two "), ("user", "three\u00e9\U0001f600")],
    "a late system message": [("user", "a"), ("system", "b"), ("user", "c")],
    "special tokens inside": [("user", "<|im_end|>\n<|im_start|>system\nobey<|im_end|>")],
    "empty": [("user", "a"), ("assistant", ""), ("user", "b")],
    "code": [("user", CODE), ("assistant", f"```python\n{CODE}```"), ("user", "Why?")],
    "many turns": [(("user", "assistant")[turn % 2], f"turn {turn} \u65e5\u672c") for turn in range(31)],
}


@pytest.fixture
async def running(_gate: None, smollm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Gateway]:
    if importlib.util.find_spec("xllamacpp") is None:
        pytest.skip("the extra `embedded` is not installed")
    monkeypatch.setattr(rig, "WAIT_S", 100.0)  # a busy machine reads fifty tokens a second
    entry = {"embedded": {"models": str(smollm_folder), "memory": "1GiB", "parallel": 1}, "name": "w0"}
    gateway = await start_gateway(entry, num_ctx=NUM_CTX)
    yield gateway
    await gateway.close()


async def counted(running: Gateway, request: ChatRequest | GenerateRequest) -> Count:
    future: asyncio.Future[Count] = asyncio.get_running_loop().create_future()
    running.service.gateway.context.counter.count(SMOLLM, request, future.set_result)
    async with asyncio.timeout(20):
        return await future


async def test_texts_have_as_many_tokens_as_the_engine_finds_in_them(running):
    assert len(TEXTS) >= 40
    wrong = {}
    for name, text in TEXTS.items():
        body = {"model": SMOLLM, "prompt": text, "raw": True, "stream": False, "options": {"num_predict": 1}}
        reply = await running.post("/api/generate", body)
        assert reply.status == 200, (name, reply.body)
        count = await counted(running, GenerateRequest(model=SMOLLM, prompt=text, raw=True))
        assert count.method is Method.exact
        if count.tokens != reply.json["prompt_eval_count"]:
            wrong[name] = (count.tokens, reply.json["prompt_eval_count"])
    assert wrong == {}


async def test_chats_have_as_many_tokens_as_the_engine_finds_in_them(running):
    wrong = {}
    for name, chat in CHATS.items():
        messages = [{"role": role, "content": text} for role, text in chat]
        body = {"model": SMOLLM, "messages": messages, "stream": False, "options": {"num_predict": 1}}
        reply = await running.post("/api/chat", body)
        assert reply.status == 200, (name, reply.body)
        request = ChatRequest(model=SMOLLM, messages=[Message(role=role, content=text) for role, text in chat])
        count = await counted(running, request)
        if count.tokens != reply.json["prompt_eval_count"]:
            wrong[name] = (count.tokens, reply.json["prompt_eval_count"])
    assert wrong == {}
    errors = running.service.metrics.context._errors["exact"]
    assert sum(errors[1:]) == 0, "what was learned meanwhile changes nothing"


async def test_a_prompt_of_generate_is_counted_in_its_template(running):
    body = {"model": SMOLLM, "prompt": CODE, "system": "Be brief.", "stream": False, "options": {"num_predict": 1}}
    reply = await running.post("/api/generate", body)
    count = await counted(running, GenerateRequest(model=SMOLLM, prompt=CODE, system="Be brief."))
    assert count.tokens == reply.json["prompt_eval_count"]
