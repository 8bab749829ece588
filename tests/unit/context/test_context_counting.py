"""Vocabularies as they come over the wire, what is not claimed, what is learned, and work beside the loop."""

from __future__ import annotations

import asyncio
import random

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bellmare.context import vocabulary as vocabularies
from bellmare.context.aside import Aside, GivenUp
from bellmare.context.counter import Counter
from bellmare.context.counting import Count, Method
from bellmare.context.encoders import NOWHERE, Unclaimed, encoder_of
from bellmare.context.learned import KEPT_MAX, Added, Lessons, Ratio, rough_tokens
from bellmare.context.library import Identity, Library, Unavailable
from bellmare.context.measuring import Memory, estimated
from bellmare.context.templates import Template, template_of
from bellmare.context.vocabulary import Shown, Vocabulary, decode_shown
from bellmare.protocols.errors import BadAnswer
from bellmare.protocols.ollama import ChatRequest, GenerateRequest, Message, ToolCall, ToolCallFunction
from bellmare.runtime.tasks import Tasks
from engine_vocabularies import byte_pairs, sentence_pieces, spaced_pairs, tokenizer_keys, word_pieces

CHATML = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
VOCABULARIES = (byte_pairs("llama-bpe"), spaced_pairs(), sentence_pieces(), word_pieces())


def shown_body(vocabulary: Vocabulary, template: str = CHATML, system: str = "") -> bytes:
    info = {"general.architecture": "llama", **tokenizer_keys(vocabulary)}
    return msgspec.json.encode({"template": template, "system": system, "model_info": info})


# ---------------------------------------------------------------------- the wire


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=lambda one: one.model)
def test_a_vocabulary_arrives_as_it_was_whatever_the_slices(vocabulary, monkeypatch):
    for size in (3, 50, 1 << 20):
        monkeypatch.setattr(vocabularies, "SLICE_BYTES", size)
        found = decode_shown(shown_body(vocabulary)).vocabulary
        assert found is not None
        assert found == msgspec.structs.replace(vocabulary, pre=vocabulary.pre or "")


@pytest.mark.slow
@given(st.lists(st.text(max_size=6), min_size=1, max_size=60), st.integers(1, 40))
def test_any_tokens_survive_any_slicing(tokens, size):
    """Commas and quotes within tokens look like the places between them."""
    old, vocabularies.SLICE_BYTES = vocabularies.SLICE_BYTES, size
    try:
        body = msgspec.json.encode({"model_info": {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": tokens}})
        found = decode_shown(body).vocabulary
    finally:
        vocabularies.SLICE_BYTES = old
    assert found is not None
    assert found.tokens == tokens


@pytest.mark.slow
@given(st.binary(max_size=300) | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(msgspec.json.encode))
def test_garbage_is_a_bad_answer(body):
    try:
        decode_shown(body)
    except BadAnswer:
        pass


@pytest.mark.parametrize("bad", [{"tokens": 1}, {"tokens": ["a", 1]}, {"model": 7}, {"tokens": {}}, {"scores": ["a"]}])
def test_a_vocabulary_of_the_wrong_kind_is_a_bad_answer(bad):
    keys = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"]}
    info = keys | {f"tokenizer.ggml.{key}": value for key, value in bad.items()}
    with pytest.raises(BadAnswer):
        decode_shown(msgspec.json.encode({"model_info": info}))


def test_a_model_without_a_vocabulary_still_has_a_template():
    shown = decode_shown(msgspec.json.encode({"template": CHATML, "system": "be kind", "model_info": None}))
    assert (shown.template, shown.system, shown.vocabulary) == (CHATML, "be kind", None)


# ---------------------------------------------------------------------- what is claimed


@pytest.mark.parametrize(
    "vocabulary",
    [
        Vocabulary(model="t5", tokens=["a"]),
        Vocabulary(model="rwkv", tokens=["a"]),
        byte_pairs("a pattern of next year"),
        Vocabulary(model="gpt2", pre="gpt-2", tokens=["<s>", "</s>"]),
        Vocabulary(model="llama", tokens=["<s>", "</s>"], scores=[0.0, 0.0]),
        msgspec.structs.replace(sentence_pieces(), scores=[]),
        msgspec.structs.replace(sentence_pieces(), architecture="phi3"),
        Vocabulary(model="bert", tokens=["[CLS]"]),
    ],
    ids=lambda one: f"{one.model} {one.pre}"[:20],
)
def test_what_would_not_be_exact_is_not_claimed(vocabulary):
    with pytest.raises(Unclaimed):
        encoder_of(vocabulary)


@pytest.mark.parametrize("vocabulary", VOCABULARIES, ids=lambda one: one.model)
def test_a_long_text_is_counted_in_steps_to_the_same_number(vocabulary, monkeypatch):
    encoder = encoder_of(vocabulary)
    words = ["the", "dogs", "don't", "12345", "\u65e5\u672c", "x~y", "<|im_end|>", "\n", "caf\u00e9.\n\n", "\t"]
    rng = random.Random(1)
    text = " ".join(rng.choice(words) for _ in range(3_000))
    steps = list(encoder.counting(text))
    assert len(steps) > 5 or encoder.boundary is NOWHERE
    monkeypatch.setattr("bellmare.context.encoders.STEP_CHARS", 1 << 30)
    assert list(encoder.counting(text)) == [sum(steps)]


@pytest.mark.slow
@given(st.text(max_size=300))
def test_no_text_has_more_tokens_than_bytes(text):
    """What lets most requests pass uncounted. SentencePiece may put a space before."""
    for encoder in ENCODERS:
        size = len(text.encode("utf-8", "replace"))
        assert encoder.count(text) <= size + text.count("\u2581") + 1


ENCODERS = [encoder_of(one) for one in VOCABULARIES]


# ---------------------------------------------------------------------- templates


@pytest.mark.parametrize(
    ("text", "family"),
    [
        (CHATML, "chatml"),
        ("{{ .System }}<|start_header_id|>user<|end_header_id|>\n\n{{ .Prompt }}<|eot_id|>", "llama3"),
        ("<start_of_turn>user\n{{ .Prompt }}<end_of_turn>", "gemma"),
        ("<|im_start|>user<|im_sep|>{{ .Prompt }}<|im_end|>", "phi4"),
        ("[INST] {{ .Prompt }} [/INST]", "mistral"),
        ("<|user|>\n{{ .Prompt }}<|end|>", "phi3"),
        ("### Instruction: {{ .Prompt }}", ""),
    ],
)
def test_families_are_known_by_their_marks(text, family):
    template = template_of(Shown(text))
    assert (template.family.name, template.known) == (family, bool(family))


def test_the_system_message_that_is_said_by_default_is_counted_where_there_is_none():
    jinja = (
        "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
        "You are kind<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content']}}"
    )
    for template in (template_of(Shown(jinja)), template_of(Shown(CHATML, "You are kind"))):
        assert template.default_system == "You are kind"
        assert template.opening(ChatRequest(messages=[Message(role="user", content="a")])).count("You are kind") == 1
        assert template.opening(ChatRequest(messages=[Message(role="system", content="a")])) == ""


def test_calls_are_part_of_their_message():
    call = ToolCall(ToolCallFunction("weather", {"city": "Ulm"}))
    text = Template(template_of(Shown(CHATML)).family, known=True, trims=False).message(
        Message(role="assistant", content="x", tool_calls=[call])
    )
    assert '{"name":"weather","arguments":{"city":"Ulm"}}' in text
    assert text.startswith("<|im_start|>assistant\nx")


# ---------------------------------------------------------------------- learning


def test_what_a_template_adds_is_learned_though_a_third_of_the_lessons_is_wrong():
    added = Added()
    rng = random.Random(1)
    for step in range(60):
        messages = rng.randrange(1, 40)
        missing = 17 + 3 * messages
        added.learn(messages, missing if step % 3 else rng.randrange(1_000))
    assert abs(added.tokens(10) - 47) <= 1
    assert len(added.observed) == KEPT_MAX


def test_one_observation_is_enough_for_what_is_fixed():
    added = Added()
    added.learn(3, 12)
    assert added.tokens(3) == added.tokens(30) == 12


def test_a_ratio_is_learned_with_its_spread():
    ratio = Ratio()
    rng = random.Random(2)
    first = ratio.margin
    for _ in range(100):
        ratio.learn(1_000.0, round(1_700 * rng.uniform(0.98, 1.02)))
    assert 1.65 < ratio.mean < 1.75
    assert ratio.margin < first
    steady = ratio.margin
    for _ in range(20):
        ratio.learn(1_000.0, round(rng.choice([900, 2_600])))
    assert ratio.margin > 3 * steady


@pytest.mark.slow
@given(st.text(max_size=200), st.integers(0, 4))
def test_estimates_are_finite_and_their_parts_add_up(text, count):
    request = ChatRequest(messages=[Message(role="user", content=text)] * count)
    for one in (request, GenerateRequest(prompt=text, raw=True), GenerateRequest(prompt=text, system=text)):
        found = estimated(one, Lessons())
        assert found.tokens == found.fixed + sum(found.messages)
        assert found.lowest <= found.tokens
        assert found.method is Method.learned
    assert rough_tokens(text) <= len(text.encode("utf-8", "replace")) + 1


def test_a_tokeniser_that_was_wrong_twice_counts_as_an_estimate():
    lessons = Lessons()
    lessons.errors.extend([0.0, 0.3, 0.0])
    assert lessons.exact
    lessons.errors.append(0.03)
    assert not lessons.exact


def test_remembered_counts_are_bounded():
    memory = Memory(10)
    for key in range(30):
        memory.keep(str(key).encode(), key)
        memory.get(b"20")
    assert len(memory) == 10
    assert memory.get(b"20") == 20
    assert memory.get(b"5") is None


# ---------------------------------------------------------------------- the fleet's vocabularies


class Fleet:
    """A ``library.Source``."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.body = shown_body(vocabulary)
        self.asked: list[bool] = []
        self.digest = "d1"
        self.fails = False
        self.gate = asyncio.Event()
        self.gate.set()

    def identity(self, name: str) -> Identity | None:
        return Identity("blob", self.digest) if name != "nobody" else None

    async def show(self, name: str, *, verbose: bool, timeout_s: float) -> bytes:
        self.asked.append(verbose)
        await self.gate.wait()
        if self.fails:
            raise Unavailable("it is away")
        return self.body


@pytest.fixture
async def fleet():
    source = Fleet(byte_pairs("llama-bpe"))
    errors: list[object] = []
    tasks = Tasks(lambda name, error: errors.append((name, error)))
    counter = Counter(Library(source, tasks))
    yield source, counter
    counter.close()
    await tasks.close()
    assert errors == []


async def count(counter: Counter, name: str = "m", text: str = "hello " * 400) -> Count:
    future: asyncio.Future[Count] = asyncio.get_running_loop().create_future()
    counter.count(name, ChatRequest(messages=[Message(role="user", content=text)]), future.set_result)
    async with asyncio.timeout(10):
        return await future


async def test_a_vocabulary_is_asked_for_once_however_many_want_it(fleet):
    source, counter = fleet
    counts = await asyncio.gather(*(count(counter) for _ in range(20)))
    assert len({one.tokens for one in counts}) == 1
    assert {one.method for one in counts} == {Method.exact}
    assert source.asked == [True]


async def test_another_name_over_the_same_blob_needs_only_its_template(fleet):
    source, counter = fleet
    await count(counter)
    assert (await count(counter, "other")).method is Method.exact
    assert source.asked == [True, False]


async def test_a_replaced_model_is_asked_for_again(fleet):
    source, counter = fleet
    await count(counter)
    source.digest = "d2"
    await count(counter)
    assert len(source.asked) == 2


async def test_a_worker_that_does_not_tell_is_left_alone_for_a_while(fleet, monkeypatch):
    source, counter = fleet
    source.fails = True
    assert (await count(counter)).method is Method.learned
    assert (await count(counter)).method is Method.learned
    assert (source.asked, counter.library.failures) == ([True], 1)
    reading = counter.library.reading("m")
    assert reading is not None
    reading.retry_s, source.fails = 0.0, False
    assert (await count(counter)).method is Method.exact


@pytest.mark.slow
async def test_a_hostile_vocabulary_is_not_claimed_and_asked_for_once(fleet):
    source, counter = fleet
    vocabulary = byte_pairs("llama-bpe")
    chain = [("<" + "x" * length) for length in range(1, 5_000)]
    tokens = [*vocabulary.tokens, *chain]
    kinds = [*vocabulary.kinds, *[3] * len(chain)]
    source.body = shown_body(msgspec.structs.replace(vocabulary, tokens=tokens, kinds=kinds))
    for _ in range(3):
        assert (await count(counter)).method is Method.learned
    assert source.asked == [True]
    reading = counter.library.reading("m")
    assert reading is not None
    assert "special tokens" in reading.unclaimed


async def test_who_waits_too_long_for_a_vocabulary_gets_an_estimate(fleet, monkeypatch):
    source, counter = fleet
    monkeypatch.setattr("bellmare.context.counter.VOCABULARY_WAIT_S", 0.01)
    source.gate.clear()
    assert (await count(counter)).method is Method.learned
    source.gate.set()


async def test_a_name_that_nobody_stores_is_estimated_and_asks_nobody(fleet):
    source, counter = fleet
    assert (await count(counter, "nobody")).method is Method.learned
    assert source.asked == []


async def test_a_cancelled_count_calls_nobody_and_leaves_nothing(fleet):
    _, counter = fleet
    await count(counter)
    called: list[Count] = []
    text = " ".join(str(number) for number in range(200_000))
    waiting = counter.count("m", ChatRequest(messages=[Message(role="user", content=text)]), called.append)
    assert waiting is not None
    await asyncio.sleep(0.01)
    waiting.cancel()
    assert counter.waiting == 0
    await asyncio.sleep(0.05)
    assert called == []
    assert (await count(counter, text="after")).method is Method.exact


async def test_more_counts_than_may_wait_are_estimated():
    source = Fleet(byte_pairs("llama-bpe"))
    tasks = Tasks(lambda *_: None)
    counter = Counter(Library(source, tasks), waiting_max=2)
    await count(counter)
    counts = await asyncio.gather(*(count(counter, text=f"{number} " + "word " * 20_000) for number in range(8)))
    methods = [one.method for one in counts]
    assert methods.count(Method.exact) == 2
    assert counter.overloads == 6
    counter.close()
    await tasks.close()


async def test_a_count_past_its_time_is_estimated(fleet, monkeypatch):
    _, counter = fleet
    await count(counter)
    monkeypatch.setattr("bellmare.context.counter.COUNT_TIMEOUT_S", 0.0)
    assert (await count(counter, text="new " * 20_000)).method is Method.learned
    assert counter.late == 1


async def test_a_growing_chat_costs_its_new_turns_only(fleet):
    _, counter = fleet
    await count(counter)
    messages = [Message(role="user", content=f"turn {turn} " + "words and more " * 50) for turn in range(30)]
    first = len(counter._memory)
    for length in (29, 30):
        future: asyncio.Future[Count] = asyncio.get_running_loop().create_future()
        counter.count("m", ChatRequest(messages=messages[:length]), future.set_result)
        await future
        assert len(counter._memory) - first <= length + 1


@pytest.mark.slow
async def test_the_loop_goes_on_while_a_million_characters_are_counted(fleet):
    _, counter = fleet
    await count(counter)
    turns = 0
    counting = asyncio.get_running_loop().create_task(count(counter, text="never seen before, " * 50_000))
    while not counting.done():
        await asyncio.sleep(0)
        turns += 1
    assert (await counting).tokens > 100_000
    assert turns > 100


async def test_a_job_ends_once_with_its_result_or_what_it_raised():
    aside: Aside[int] = Aside("test", waiting_max=3)
    ended: list[object] = []

    def fails(_: object) -> int:
        raise ValueError("no")

    def slow(job) -> int:  # type: ignore[no-untyped-def]
        while True:
            job.pause()

    assert aside.begin(lambda _: 7, ended.append, timeout_s=5) is not None
    assert aside.begin(fails, ended.append, timeout_s=5) is not None
    assert aside.begin(slow, ended.append, timeout_s=0.05) is not None
    assert aside.begin(lambda _: 8, ended.append, timeout_s=5) is None, "too many wait"
    async with asyncio.timeout(5):
        while aside.waiting:
            await asyncio.sleep(0.01)
    assert ended[0] == 7
    assert isinstance(ended[1], ValueError)
    assert isinstance(ended[2], GivenUp)
    aside.shut()
