"""The one door to a terminal state: an open saga turns every end into a claim for its compensations.

Nothing of the library opens a saga yet; the flag is written here by hand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import ffcore.contracts as c
from tests.lua.engine import OPERATOR, P0, TTL, Engine, cancel, retries

Ending = Callable[[Engine, c.ClaimedJob], Awaitable[Any]]


async def out_of_time(engine: Engine, job: c.ClaimedJob) -> None:
    await engine.pass_time(60_000)


ENDINGS: dict[str, tuple[Ending, str]] = {
    "fail": (lambda e, job: e.fail(job, "fatal"), "failed"),
    "cancel": (lambda e, job: e.call(cancel(job.execution_id, source=OPERATOR)), "cancelled"),
    "deadline": (out_of_time, "expired"),
}


async def saga(engine: Engine, **options: Any) -> c.ClaimedJob:
    job = await engine.running(**options)
    await engine.command("HSET", f"ff:{P0}:x:{job.execution_id[-36:]}", "sg", "1", "x", "1")
    return job


@pytest.mark.parametrize("how", ENDINGS)
async def test_an_end_with_an_open_saga_is_claimable_for_its_compensations_first(engine: Engine, how: str) -> None:
    end, outcome = ENDINGS[how]
    job = await saga(engine, execution_deadline_at=engine.now + 50_000)
    await end(engine, job)
    fields = (await engine.read(job.execution_id)).fields
    assert (fields["state"], fields["next"], fields["pending_outcome"]) == ("ready", "compensation", outcome)
    assert not [name for name in await engine.timers() if job.execution_id[-36:] in name], "nothing hurries it"
    await engine.call(c.HoldArgs(partition=P0, what="task:send", reason="stop"))
    await engine.advance(120_000)  # past the deadline, and held: compensations start all the same
    told = await engine.call(cancel(job.execution_id))
    assert isinstance(told, c.CancelRequested), "what undoes is not called off"
    (again,) = await engine.claim()
    assert (again.attempt_type, again.attempt_index) == ("compensation", 1)
    await engine.complete(again, b"ignored")
    ended = await engine.read(job.execution_id, parts="result")
    assert ended.fields["state"] == outcome
    assert "result" not in ended.fields and "result_kept" not in ended.fields


async def test_compensations_count_their_own_retries(engine: Engine) -> None:
    job = await saga(engine, policy=retries(1))
    await engine.fail(job)
    await engine.tick()
    (second,) = await engine.claim()
    await engine.fail(second)
    (third,) = await engine.claim()
    assert third.attempt_type == "compensation"
    await engine.fail(third)
    await engine.tick()
    fields = (await engine.read(job.execution_id)).fields
    assert (fields["state"], fields["retries"]) == ("ready", "1"), "it has a retry of its own"
    (fourth,) = await engine.claim()
    await engine.fail(fourth)
    assert await engine.state(job.execution_id) == "failed"


async def test_a_compensation_whose_worker_dies_is_claimed_again(engine: Engine) -> None:
    job = await saga(engine)
    await engine.fail(job, "fatal")
    await engine.claim()
    await engine.pass_time(TTL + 1_000)
    (again,) = await engine.claim(n=900)
    await engine.complete(again)
    assert await engine.state(job.execution_id) == "failed"


async def test_the_report_that_ended_it_may_be_sent_again_while_compensations_wait(engine: Engine) -> None:
    """The reply may be lost here too: whoever reported must not be told that somebody else has the lease."""
    job = await saga(engine)
    await engine.fail(job, "fatal")
    assert (await engine.fail(job, "fatal")).replayed
    assert (await engine.read(job.execution_id)).fields["ended_by"] == "fail"
