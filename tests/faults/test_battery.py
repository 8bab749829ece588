"""B14 to B29: whatever a client sends, each request gets one answer, and no worker reads a byte that is not ours."""

from __future__ import annotations

import asyncio

import pytest
from battery import COUNT, GROUPS, MARK, NEXT, Case
from raw_client import exchange, split_answers

pytestmark = pytest.mark.slow


def verdict(case: Case, raw: bytes) -> str:
    """What is wrong with the answers to a case; empty if nothing."""
    try:
        answers = split_answers(raw, head_only=case.head_only)
    except (AssertionError, KeyError, ValueError) as error:
        return f"not answers: {error}: {raw[:300]!r}"
    said = [answer.status for answer in answers]
    wanted = case.answers if case.ends else case.answers + 1
    if not said or said[0] not in case.statuses:
        return f"{said} instead of {case.statuses}"
    if case.answers == 2:
        return "" if said[1] == 400 and len(said) == 2 else f"{said}: the surplus is no request"
    if len(said) != wanted:
        return f"{said} instead of {wanted} answers"
    if case.ends and answers[0].headers.get("connection") != "close":
        return "it closes without saying so"
    if 405 in said[:1] and "allow" not in answers[0].headers:
        return "405 without Allow"
    if not case.ends and said[1] != 200:
        return f"what followed got {said[1]}"
    return ""


def test_the_battery_is_wide():
    assert COUNT >= 400
    assert all(len(group) >= 10 for group in GROUPS.values())


@pytest.mark.parametrize("group", GROUPS)
async def test_b14_to_b29_one_answer_for_each_request_and_nothing_smuggled(group, recorded, gateway):
    worker = await recorded()
    running = await gateway(worker.port)
    assert (await running.chat()).status == 200
    wrong = {}
    for name, case in GROUPS[group].items():
        if problem := verdict(case, await exchange(running.port, case.data + NEXT)):
            wrong[name] = problem
    assert wrong == {}
    await running.settled()
    assert all(MARK not in stream for stream in worker.streams)
    assert len(worker.requests()) > 0
    assert running.driver.requests == 0


async def test_every_group_leaves_the_listener_serving(recorded, gateway):
    """All cases at once, each on its own connection: none disturbs another."""
    worker = await recorded()
    running = await gateway(worker.port)
    everything = [(name, case) for group in GROUPS.values() for name, case in group.items()]
    raws = await asyncio.gather(*(exchange(running.port, case.data + NEXT) for _, case in everything))
    wrong = {
        name: problem for (name, case), raw in zip(everything, raws, strict=True) if (problem := verdict(case, raw))
    }
    assert wrong == {}
    assert (await running.chat()).status == 200
    assert all(MARK not in stream for stream in worker.streams)
    worker.requests()
