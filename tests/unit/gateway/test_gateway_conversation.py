"""One conversation between core, worker and client, byte by byte: every way to end, exactly once."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from bellmare.core.config import CoreConfig
from bellmare.core.decisions import Observe
from bellmare.core.engine import Engine
from bellmare.core.events import LoadedModel, StoredModel, WorkerAdded, WorkerKind, WorkerObserved
from bellmare.core.units import Bytes, InstantUs, ModelId, RequestId, WorkerId
from bellmare.gateway.conversation import Conversation, GatewayTimeouts
from bellmare.gateway.errands import native, openai
from bellmare.http.call import UpstreamFailure, UpstreamFailureKind
from bellmare.http.messages import Request
from bellmare.runtime.clock import Clock
from bellmare.runtime.driver import Driver

WORKERS = (WorkerId("w1"), WorkerId("w2"))
SECRET = "/models/blobs/sha256-ab earlier: request of alice"


class Client:
    """What an exchange of the HTTP server does, as the bytes and statuses that a client would see."""

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.body = b""
        self.started = self.finished = self.disconnected = False
        self.listener: Any = None
        self.request = Request("POST", "/api/chat", headers=[], peer="")
        self.chunked = True

    def respond(self, status: int, headers: Any, body: bytes) -> None:
        assert not self.started, "answered twice"
        self.start(status, headers)
        self.write(body)
        self.finish()

    def start(self, status: int, headers: Any) -> None:
        assert not self.started, "begun twice"
        if isinstance(headers, bytes):
            headers = [tuple(line.split(b": ", 1)) for line in headers.removesuffix(b"\r\n").split(b"\r\n")]
        self.status, self.headers, self.started = status, dict(headers), True

    def write(self, data: bytes) -> None:
        assert self.started
        assert not self.finished, "written after the end"
        self.body += data

    def passer(self) -> Any:
        return self._pass_on

    def _pass_on(self, chunk: bytes) -> None:
        size, _, rest = chunk.partition(b"\r\n")
        assert rest.endswith(b"\r\n")
        assert int(size, 16) == len(rest) - 2
        self.write(rest[:-2])

    def finish(self) -> None:
        assert not self.finished, "ended twice"
        self.finished = True


class Worker:
    """An upstream that is told by the test what to answer."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.aborted = 0

    def send(self, method: str, path: str, **request: Any) -> Worker:
        self.calls.append({"path": path, "body": json.loads(request["body"])})
        self.receiver = request["receiver"]
        return self

    def abort(self) -> None:
        self.aborted += 1

    def pause(self) -> None: ...

    def resume(self) -> None: ...

    def answers(self, *chunks: bytes, status: int = 200, end: bool = True) -> None:
        self.receiver.on_response(status, [])
        for chunk in chunks:
            self.receiver.on_data(chunk)
        if end:
            self.receiver.on_end()

    def breaks(self, kind: UpstreamFailureKind = UpstreamFailureKind.reset) -> None:
        self.receiver.on_failure(UpstreamFailure(kind, SECRET, True))


class Desk:
    """A gateway of two workers on which ``m:latest`` is resident."""

    def __init__(self, workers: int = 1) -> None:
        self.driver = Driver(Engine(CoreConfig()), Clock())
        self.timeouts = GatewayTimeouts()
        self.workers = {name: Worker() for name in WORKERS[:workers]}
        self.accounted: list[Conversation] = []
        self.reported: list[BaseException] = []
        self.driver.on(Observe, lambda decision: None)
        stored = StoredModel(name="m:latest", model=ModelId("sha256:m"), digest="d", weights_bytes=Bytes(10**9))
        loaded = LoadedModel(name="m:latest", model=ModelId("sha256:m"), bytes=Bytes(10**9), num_ctx=8192, pinned=True)
        for name in self.workers:
            self.driver.feed(WorkerAdded(worker=name, kind=WorkerKind.sim, capacity_bytes=Bytes(10**10), parallel=4))
            now = InstantUs(self.driver.clock.now_us() + 1)
            self.driver.feed(WorkerObserved(worker=name, started_us=now, loaded=(loaded,), stored=(stored,)))

    def upstream(self, worker: WorkerId) -> Any:
        return self.workers.get(worker)

    def known_names(self) -> list[str]:
        return ["m:latest"]

    def account(self, conversation: Conversation) -> None:
        self.accounted.append(conversation)

    def again(self, conversation: Conversation) -> RequestId:
        return RequestId(f"{conversation.request}-again")

    def report(self, what: str, error: BaseException) -> None:
        self.reported.append(error)

    @property
    def busy(self) -> int:
        state = self.driver.engine.fleet.state
        return sum(len(runner.in_flight) for worker in state.workers.values() for runner in worker.runners.values())


def talk(desk: Desk, parse: Any = native.chat, **fields: Any) -> tuple[Client, Conversation, Worker]:
    """Begin a conversation; it is at a worker when this returns."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    client = Client()
    errand = parse(json.dumps(body).encode())
    conversation = Conversation(
        desk, client, errand, request=RequestId("r1"), public_id="r1", arrived_us=desk.driver.clock.now_us()
    )  # type: ignore[arg-type]
    conversation.begin(InstantUs(2**60))
    assert conversation.dispatched is not None
    return client, conversation, desk.workers[conversation.dispatched.worker]


def token(text: str) -> bytes:
    return json.dumps({"model": "m", "message": {"role": "assistant", "content": text}, "done": False}).encode() + b"\n"


FINAL = b'{"model":"m","message":{"role":"assistant","content":""},"done":true,"done_reason":"stop","eval_count":1}\n'


def over(desk: Desk, outcome: str) -> Conversation:
    """The conversation ended once, and left nothing."""
    (conversation,) = desk.accounted
    assert conversation.outcome == outcome
    assert desk.driver.requests == 0
    assert desk.busy == 0
    assert desk.driver.engine.check() == []
    return conversation


async def test_a_whole_stream_is_passed_on_line_by_line() -> None:
    desk = Desk()
    client, _, worker = talk(desk)
    worker.answers(token("a")[:9], token("a")[9:], token("b") + FINAL)
    assert client.status == 200
    assert client.body == token("a") + token("b") + FINAL
    assert client.finished
    assert over(desk, "completed").dispatched is not None


async def test_the_worker_is_asked_in_the_runners_own_shape() -> None:
    desk = Desk()
    _, _, worker = talk(desk, options={"num_ctx": 99, "num_gpu": 1, "temperature": 0}, keep_alive=0, shift=False)
    (call,) = worker.calls
    assert call["body"]["options"] == {"num_ctx": 8192, "temperature": 0}
    assert "keep_alive" not in call["body"]
    assert "shift" not in call["body"]


async def test_a_break_before_the_first_byte_is_served_elsewhere() -> None:
    desk = Desk(workers=2)
    client, conversation, first = talk(desk)
    first.breaks()
    (other,) = [worker for worker in desk.workers.values() if worker is not first]
    other.answers(token("a") + FINAL)
    assert client.status == 200
    assert conversation.attempts == 2
    over(desk, "completed")


async def test_a_break_after_the_first_byte_is_one_error_frame_and_never_retried() -> None:
    desk = Desk(workers=2)
    client, _, worker = talk(desk)
    worker.answers(token("a") + b'{"half', end=False)
    worker.breaks()
    lines = client.body.splitlines()
    assert lines[0] + b"\n" == token("a")
    assert set(json.loads(lines[1])) == {"error"}
    assert len(lines) == 2
    assert client.finished
    assert over(desk, "failed").attempts == 1


@pytest.mark.parametrize("parse", [native.chat, openai.chat_completions])
@pytest.mark.parametrize("kind", [UpstreamFailureKind.reset, UpstreamFailureKind.stalled])
async def test_an_answer_that_is_whole_is_complete_however_the_connection_ends(
    parse: Any, kind: UpstreamFailureKind
) -> None:
    desk = Desk()
    client, _, worker = talk(desk, parse, stream=True)
    worker.answers(token("a") + FINAL, end=False)
    worker.breaks(kind)
    assert b"error" not in client.body
    assert client.finished
    over(desk, "completed")
    assert desk.driver.engine.fleet.state.workers[WORKERS[0]].leaving == {}


async def test_a_silent_end_is_told() -> None:
    desk = Desk()
    client, _, worker = talk(desk)
    worker.answers(token("a"))
    assert b'"error"' in client.body.splitlines()[-1]
    over(desk, "failed")


async def test_tool_arguments_that_are_no_utf8_end_the_request_like_any_other() -> None:
    desk = Desk()
    client, _, worker = talk(desk, openai.chat_completions, stream=False)
    call = b'{"function":{"name":"f","arguments":{"x":"\xff"}}}'
    worker.answers(FINAL.replace(b'"content":""', b'"content":"","tool_calls":[' + call + b"]").strip())
    assert client.finished
    assert len(desk.accounted) == 1
    assert desk.driver.requests == 0


async def test_a_bug_in_a_codec_ends_the_request_and_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk()
    client, conversation, worker = talk(desk)
    assert conversation.translator is not None
    monkeypatch.setattr(type(conversation.translator), "feed", lambda self, data: 1 / 0)
    for _ in range(CoreConfig().attempts_max):
        worker.answers(token("a"), end=False)
    assert client.status == 502
    assert [type(error) for error in desk.reported] == [ZeroDivisionError] * CoreConfig().attempts_max
    over(desk, "failed")


@pytest.mark.parametrize("status", [500, 501, 507])
async def test_a_workers_own_words_reach_the_log_and_not_the_tenant(status: int) -> None:
    desk = Desk()
    client, _, worker = talk(desk, stream=False)
    worker.answers(json.dumps({"error": SECRET}).encode(), status=status)
    assert client.status == status
    assert b"alice" not in client.body
    assert SECRET in over(desk, "failed").detail


async def test_an_error_of_the_request_itself_is_told_in_full() -> None:
    desk = Desk()
    client, _, worker = talk(desk)
    worker.answers(b'{"error":"\\"m\\" does not support thinking"}', status=400)
    assert client.status == 400
    assert json.loads(client.body)["error"] == '"m" does not support thinking'
    over(desk, "failed")


@pytest.mark.parametrize(
    ("said", "told", "crashed"),
    [
        (SECRET, "the model's worker failed", False),
        (f"unexpected EOF {SECRET}", "an error was encountered while running the model: unexpected EOF", True),
    ],
)
async def test_an_error_line_amid_a_stream_is_told_in_our_words(said: str, told: str, crashed: bool) -> None:
    """Only a dead runner is unloaded: others go on being served by one that refused a single request."""
    desk = Desk()
    client, _, worker = talk(desk)
    error = {"error": f"an error was encountered while running the model: {said}"}
    worker.answers(token("a") + json.dumps(error).encode() + b"\n")
    last = json.loads(client.body.splitlines()[-1])
    assert last == {"error": told}
    over(desk, "failed")
    assert bool(desk.driver.engine.fleet.state.operations) is crashed


async def test_a_crash_before_the_first_byte_is_tried_again_and_its_runner_leaves() -> None:
    desk = Desk(workers=2)
    client, _, first = talk(desk)
    first.answers(b'{"error":"llama-server process has terminated: signal killed"}', status=500)
    (other,) = [worker for worker in desk.workers.values() if worker is not first]
    other.answers(token("a") + FINAL)
    assert client.status == 200
    over(desk, "completed")
    leaving = [worker.operation for worker in desk.driver.engine.fleet.state.workers.values() if worker.operation]
    assert len(leaving) == 1


async def test_a_client_that_leaves_frees_the_worker_at_once() -> None:
    desk = Desk()
    client, conversation, worker = talk(desk)
    worker.answers(token("a"), end=False)
    client.disconnected = True
    conversation.on_disconnect()
    assert worker.aborted == 1
    assert over(desk, "cancelled").status == 499


@pytest.mark.parametrize("begun", [False, True])
async def test_a_shutdown_tells_every_client(begun: bool) -> None:
    desk = Desk()
    client, conversation, worker = talk(desk)
    if begun:
        worker.answers(token("a"), end=False)
    conversation.shut()
    conversation.shut()
    assert client.finished
    assert client.status == (200 if begun else 503)
    assert "shutting down" in json.loads(client.body.splitlines()[-1])["error"]
    assert worker.aborted == 1
    over(desk, "cancelled")


def converse(desk: Desk, errand: Any) -> tuple[Client, Conversation]:
    client = Client()
    conversation = Conversation(
        desk, client, errand, request=RequestId("r1"), public_id="r1", arrived_us=desk.driver.clock.now_us()
    )  # type: ignore[arg-type]
    conversation.begin(InstantUs(2**60))
    return client, conversation


def with_fallbacks(*fallbacks: str) -> Any:
    errand = native.chat(b'{"model":"gone","messages":[{"role":"user","content":"hi"}],"stream":false}')
    return msgspec.structs.replace(errand, fallbacks=fallbacks)


async def test_a_model_that_cannot_be_had_is_answered_by_its_first_fallback_that_can() -> None:
    desk = Desk()
    client, conversation = converse(desk, with_fallbacks("gone-too:latest", "m:latest"))
    worker = desk.workers[WORKERS[0]]
    assert worker.calls[-1]["body"]["model"] == "m:latest"
    worker.answers(b'{"model":"m:latest","message":{"content":"hello"},"done":true}')
    assert conversation.ended
    assert conversation.outcome == "completed"
    assert client.status == 200
    assert json.loads(client.body)["model"] == "gone", "answers repeat what the client asked for"
    assert client.headers[b"x-bellmare-model"] == b"m:latest"
    assert desk.busy == 0


async def test_without_any_that_can_the_refusal_is_about_the_model_that_was_asked_for() -> None:
    desk = Desk()
    client, conversation = converse(desk, with_fallbacks("gone-too:latest"))
    assert (client.status, conversation.outcome, conversation.refusal) == (404, "refused", "unknown_model")
    assert b"'gone' not found" in client.body
    assert len(desk.accounted) == 1
