"""Rules of the load generator: what it never does to a server, to itself, and to the truth."""

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import msgspec
import pytest

from bellmare.bench.answers import Answer, Dialect
from bellmare.bench.load import (
    PROBLEMS_MAX,
    USERS_MAX,
    Popularity,
    Reservoir,
    Traffic,
    TrafficConfig,
    TrafficReport,
    retry_after_s,
)
from bellmare.http.messages import Refusal, Request
from bellmare.http.server import Exchange, Server, listen
from bellmare.runtime.clock import Clock

NATIVE = (
    b'{"model":"m","message":{"role":"assistant","content":"a"},"done":false}\n'
    b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"prompt_eval_count":3,"eval_count":2}\n'
)
OPENAI = (
    b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":""}}]}\n\n'
    b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n'
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n'
    b"data: [DONE]\n\n"
)
EMBED = b'{"model":"m","embeddings":[[1.0]],"prompt_eval_count":3}'
WHOLE = {"/api/chat": NATIVE, "/v1/chat/completions": OPENAI, "/api/embed": EMBED}

Script = Callable[[Exchange], None]


class Scripted:
    """A server that does to each request what ``script`` says, and counts how many it holds at once."""

    def __init__(self, script: Script) -> None:
        self.script = script
        self.bodies: list[dict[str, Any]] = []
        self.paths: list[str] = []

    def on_head(self, request: Request) -> Refusal | int:
        return 1 << 20

    def on_request(self, exchange: Exchange) -> None:
        self.bodies.append(msgspec.json.decode(exchange.request.body))
        self.paths.append(exchange.request.path)
        self.script(exchange)

    def on_bad_request(self, status: int, reason: str, target: str) -> Refusal:
        raise AssertionError(reason)


def answer_whole(exchange: Exchange) -> None:
    exchange.respond(200, [(b"x-bellmare-cache", b"hit")], WHOLE[exchange.request.path])


def never(exchange: Exchange) -> None:
    """Hold the request."""


@pytest.fixture
async def serve() -> AsyncIterator[Callable[[Script], Awaitable[tuple[Scripted, str]]]]:
    servers: list[Server] = []

    async def start(script: Script) -> tuple[Scripted, str]:
        app = Scripted(script)
        servers.append(await listen(app, "127.0.0.1", 0))
        return app, f"http://127.0.0.1:{servers[-1].port}"

    yield start
    for server in servers:
        await server.close(0)


Serve = Callable[[Script], Awaitable[tuple[Scripted, str]]]


def config(**changes: Any) -> TrafficConfig:
    return TrafficConfig(**{"models": ("m",), "users": 2, **changes})


def accounted(report: TrafficReport) -> int:
    return report.completed + report.refused + report.failed + report.cut + report.in_flight


# ---------------------------------------------------------------------- draws


def test_popularity_follows_zipf() -> None:
    popularity, rng = Popularity(4, skew=1.0), random.Random(1)
    counts = [0] * 4
    for _ in range(40_000):
        counts[popularity.draw(rng)] += 1
    expected = [40_000 / (rank + 1) / (1 + 1 / 2 + 1 / 3 + 1 / 4) for rank in range(4)]
    assert all(abs(count - share) < 0.05 * share for count, share in zip(counts, expected, strict=True))


def test_without_skew_all_are_equally_popular() -> None:
    popularity, rng = Popularity(3, skew=0.0), random.Random(1)
    counts = [0] * 3
    for _ in range(9_000):
        counts[popularity.draw(rng)] += 1
    assert all(2_800 < count < 3_200 for count in counts)


async def test_a_user_keeps_to_a_model_for_a_while(serve: Serve) -> None:
    app, url = await serve(answer_whole)
    wanted = config(models=("a", "b", "c"), users=1, session_requests=10.0, skew=0.0)
    await Traffic(url, wanted).run(requests=300)
    asked = [body["model"] for body in app.bodies]
    turns = sum(before != after for before, after in itertools.pairwise(asked))
    assert set(asked) == {"a", "b", "c"}
    assert 8 <= turns <= 40  # 30 sessions, of which a third draws the same model again


async def test_the_same_seed_asks_the_same(serve: Serve) -> None:
    app, url = await serve(answer_whole)
    for _ in range(2):
        await Traffic(url, config(models=("a", "b"), users=1, seed=7)).run(requests=20)
    await Traffic(url, config(models=("a", "b"), users=1, seed=8)).run(requests=20)
    assert app.bodies[:20] == app.bodies[20:40] != app.bodies[40:]


# ---------------------------------------------------------------------- quantiles


def test_quantiles_are_those_of_the_values_while_they_fit() -> None:
    reservoir = Reservoir()
    for value in random.Random(3).sample(range(1, 1001), 1000):
        reservoir.add(value)
    assert reservoir.quantiles(0.0, 0.5, 0.95, 1.0) == [1, 500, 950, 1000]
    assert reservoir.summary().p99_ms == 990


def test_no_values_give_zeros() -> None:
    assert Reservoir().quantiles(0.5, 0.95) == [0.0, 0.0]


def test_the_reservoir_is_bounded_and_fair() -> None:
    reservoir = Reservoir(samples_max=500, seed=2)
    for value in range(20_000):
        reservoir.add(value)
    assert len(reservoir) == 500
    assert (reservoir.count, reservoir.largest) == (20_000, 19_999)
    assert reservoir.quantiles(0.5)[0] == pytest.approx(10_000, rel=0.15)


# ---------------------------------------------------------------------- where it may go, and how much


@pytest.mark.parametrize("url", ["http://example.com", "http://192.168.1.9:11434", "gpu-box:11434"])
async def test_others_servers_are_refused_unless_asked_for(url: str) -> None:
    with pytest.raises(ValueError, match="not this machine"):
        Traffic(url, config())
    Traffic(url, config(), allow_remote=True)


async def test_only_plain_http() -> None:
    with pytest.raises(ValueError, match="http"):
        Traffic("https://127.0.0.1:1", config())


@pytest.mark.parametrize(
    "changes",
    [
        {"users": 0},
        {"users": USERS_MAX + 1},
        {"rate_per_s": 1e9},
        {"rate_per_s": float("nan")},
        {"retries_max": 11},
        {"models": ()},
        {"embedding_models": ("other",)},
    ],
)
async def test_what_is_out_of_bounds_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        Traffic("http://127.0.0.1:1", config(**changes))


async def test_a_closed_loop_never_has_more_in_flight_than_users(serve: Serve) -> None:
    held: list[Exchange] = []
    most = 0

    def hold(exchange: Exchange) -> None:
        nonlocal most
        held.append(exchange)
        most = max(most, len(held))
        asyncio.get_running_loop().call_later(0.001, lambda: answer_whole(held.pop(0)))

    _, url = await serve(hold)
    report = await Traffic(url, config(users=3)).run(requests=60)
    assert (report.completed, most) == (60, 3)


async def test_an_open_loop_skips_what_would_pass_its_bound(serve: Serve) -> None:
    app, url = await serve(never)
    traffic = Traffic(url, config(rate_per_s=5_000.0, in_flight_max=4))
    report = await traffic.run(requests=50, grace_s=0.01)
    assert (report.cut, report.skipped, len(app.bodies)) == (4, 46, 4)


async def test_an_open_loop_keeps_its_rate(serve: Serve) -> None:
    _, url = await serve(answer_whole)
    report = await Traffic(url, config(rate_per_s=2_000.0)).run(requests=200)
    assert report.completed == 200
    assert 0.05 < report.seconds < 1.0


# ---------------------------------------------------------------------- answers


async def test_every_dialect_is_understood(serve: Serve) -> None:
    app, url = await serve(answer_whole)
    wanted = config(models=("m", "e"), embedding_models=("e",), skew=0.0, session_requests=1.0, openai_share=0.5)
    report = await Traffic(url, wanted).run(requests=60)
    assert set(app.paths) == set(WHOLE)
    assert (report.completed, report.by_status, report.by_cache) == (60, {"200": 60}, {"hit": 60})
    chats = sum(path != "/api/embed" for path in app.paths)
    assert (report.output_tokens, report.prompt_tokens) == (2 * chats, 3 * 60)
    assert (report.first_token.count, report.total.count) == (chats, 60)


async def test_lengths_stay_within_four_means(serve: Serve) -> None:
    app, url = await serve(answer_whole)
    await Traffic(url, config(prompt_tokens=5, output_tokens=10, openai_share=0.0)).run(requests=200)
    lengths = [body["options"]["num_predict"] for body in app.bodies]
    words = [len(body["messages"][0]["content"].split()) for body in app.bodies]
    assert min(lengths) >= 1 and max(lengths) <= 40 and 7 < sum(lengths) / 200 < 13
    assert min(words) >= 1 and max(words) <= 20


def test_a_role_without_text_is_no_first_token() -> None:
    answer = Answer(Dialect.openai, Clock())
    answer.on_response(200, [])
    first, rest = OPENAI.split(b"\n\n", 1)
    answer.on_data(first + b"\n\n")
    assert answer.first_token_us < 0
    answer.on_data(rest)
    answer.on_end()
    assert answer.first_token_us > 0
    assert (answer.broke, answer.output_tokens) == ("", 2)


@pytest.mark.parametrize(
    ("dialect", "body"),
    [
        (Dialect.native, NATIVE[: NATIVE.index(b"\n") + 1]),
        (Dialect.native, NATIVE[:-1]),
        (Dialect.native, b""),
        (Dialect.native, b'{"error":"out of memory"}\n'),
        (Dialect.openai, OPENAI.replace(b"data: [DONE]\n\n", b"")),
        (Dialect.openai, OPENAI.replace(b"[DONE]", b'{"error":{"message":"gone"}}')),
        (Dialect.native, b"x" * (2 << 20)),
    ],
)
def test_an_answer_that_merely_stops_is_a_failure(dialect: Dialect, body: bytes) -> None:
    answer = Answer(dialect, Clock())
    answer.on_response(200, [])
    answer.on_data(body)
    answer.on_end()
    assert answer.broke
    assert answer.problem


async def test_failures_are_counted_and_their_texts_bounded(serve: Serve) -> None:
    count = 0

    def fail(exchange: Exchange) -> None:
        nonlocal count
        count += 1
        exchange.respond(500, [], b'{"error":"broken %d"}' % count)

    _, url = await serve(fail)
    report = await Traffic(url, config(rate_per_s=5_000.0)).run(requests=20)
    assert (report.failed, report.by_status) == (20, {"500": 20})
    assert len(report.problems) == PROBLEMS_MAX
    assert "broken" in report.problems[0]


async def test_a_dead_server_is_not_asked_without_pause(unused_port: int) -> None:
    report = await Traffic(f"http://127.0.0.1:{unused_port}", config(users=1)).run(seconds=0.1)
    assert (report.failed, report.by_status) == (1, {"refused": 1})


async def test_a_silent_server_meets_the_timeout(serve: Serve) -> None:
    _, url = await serve(never)
    report = await Traffic(url, config(users=1, request_timeout_s=0.02)).run(requests=1)
    assert (report.failed, report.by_status) == (1, {"timeout": 1})


# ---------------------------------------------------------------------- refusals


def refused(status: int, **headers: str) -> Answer:
    answer = Answer(Dialect.native, Clock())
    answer.on_response(status, [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()])
    answer.on_end()
    return answer


def test_retry_after_is_read_as_clients_read_it() -> None:
    assert retry_after_s(refused(429, retry_after="3")) == 3.0
    assert retry_after_s(refused(503, retry_after="3", retry_after_ms="1500")) == 1.5
    assert retry_after_s(refused(429)) is None
    assert retry_after_s(refused(429, retry_after="Wed, 21 Oct 2015 07:28:00 GMT")) is None
    assert retry_after_s(refused(429, retry_after="3", x_should_retry="false")) is None
    assert retry_after_s(refused(500, retry_after="3")) is None


@pytest.mark.parametrize("retries", [0, 3])
async def test_a_retry_after_is_respected_a_bounded_number_of_times(serve: Serve, retries: int) -> None:
    app, url = await serve(lambda exchange: exchange.respond(429, [(b"retry-after-ms", b"1")], b"{}"))
    report = await Traffic(url, config(users=1, retries_max=retries)).run(requests=2, grace_s=5.0)
    # The last question stops the run, and a stopped run waits for no retry.
    assert (report.refused, report.failed) == (2, 0)
    assert len(app.bodies) == 2 + retries
    assert report.retried == retries


async def test_a_refused_question_may_succeed_later(serve: Serve) -> None:
    answers = iter([429, 200, 200])

    def script(exchange: Exchange) -> None:
        if next(answers) == 429:
            exchange.respond(429, [(b"retry-after-ms", b"5")], b"{}")
        else:
            answer_whole(exchange)

    _, url = await serve(script)
    report = await Traffic(url, config(users=1, openai_share=0.0)).run(requests=2)
    assert (report.completed, report.refused, report.retried) == (2, 0, 1)
    assert report.by_status == {"200": 2, "429": 1}
    assert report.first_token.max_ms >= 5.0  # what a user felt, the wait included


async def test_a_longer_retry_after_than_its_bound_is_not_waited_for(serve: Serve) -> None:
    app, url = await serve(lambda exchange: exchange.respond(503, [(b"retry-after", b"30")], b"{}"))
    report = await Traffic(url, config(users=1, retry_after_max_s=10.0)).run(requests=3)
    assert (report.refused, len(app.bodies), report.retried) == (3, 3, 0)


# ---------------------------------------------------------------------- the end


async def test_stop_lets_answers_under_way_end_within_the_grace(serve: Serve) -> None:
    held: list[Exchange] = []
    _, url = await serve(held.append)
    traffic = Traffic(url, config(users=1))

    async def end() -> None:
        while not held:
            await asyncio.sleep(0)
        traffic.stop()
        traffic.stop()
        answer_whole(held[0])

    report, _ = await asyncio.gather(traffic.run(grace_s=5.0), end())
    assert (report.completed, report.cut) == (1, 0)


async def test_what_outlasts_the_grace_is_cut_and_no_failure(serve: Serve) -> None:
    app, url = await serve(never)
    report = await Traffic(url, config(users=5)).run(seconds=0.02, grace_s=0.01)
    assert (report.cut, report.failed, report.in_flight) == (5, 0, 0)
    assert accounted(report) == len(app.bodies) == 5


async def test_users_begin_one_after_another(serve: Serve) -> None:
    app, url = await serve(never)
    report = await Traffic(url, config(users=10, ramp_s=1_000.0)).run(seconds=0.02, grace_s=0.0)
    assert len(app.bodies) == report.cut == 1


async def test_cancelling_a_run_leaves_nothing(serve: Serve) -> None:
    app, url = await serve(never)
    before = asyncio.all_tasks()
    traffic = Traffic(url, config(users=5))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await traffic.run()
    assert len(app.bodies) == 5
    assert traffic.report().in_flight == 0
    assert asyncio.all_tasks() == before
