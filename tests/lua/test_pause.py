"""ff_pause_execution, and what takes it back: what is paused does not start, wherever it comes from."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.ids import uuid_of
from ffcore.policy import FixedBackoff
from ffcore.states import PublicState
from tests.lua.engine import OPERATOR, P0, TTL, Engine, cancel, delay, missing, retries, revoke, unclaim
from tests.lua.test_block import block
from tests.lua.test_grant import GRANT_TTL, issue
from tests.lua.waits import resume, resumed, send, single, suspended

MINUTE = 60_000


async def pause(engine: Engine, id: Any) -> str:
    answer = await engine.call(c.PauseExecutionArgs(execution_id=id, reason="look at it first"))
    match answer:
        case c.Paused():
            return "paused"
        case c.PausePending():
            return "pause_pending"
        case c.AlreadyPaused():
            return "already_paused"


async def why(engine: Engine, id: Any) -> tuple[str, str]:
    fields = (await engine.read(id)).fields
    return fields["state"], fields.get("reason", "")


STOPPED = ("blocked", "paused_by_operator")


async def test_a_ready_one_stops_at_once_and_keeps_its_place(engine: Engine) -> None:
    ids = await engine.submit_many(3)
    assert await pause(engine, ids[0]) == "paused"
    assert await pause(engine, ids[0]) == "already_paused"
    assert await why(engine, ids[0]) == STOPPED
    assert (await engine.read(ids[0])).texts["blocking"] == "look at it first"
    (second,) = await engine.claim()
    assert second.execution_id == ids[1]
    assert await engine.call(resume(ids[0])) == c.Resumed(PublicState.WAITING)
    assert [job.execution_id for job in await engine.claim(limit=3)] == [ids[0], ids[2]]
    await engine.refused("execution_not_suspended", resume(ids[0]))


@pytest.mark.parametrize("ahead", [True, False], ids=["still ahead", "long past"])
async def test_a_delayed_one_remembers_until_when(engine: Engine, ahead: bool) -> None:
    due = engine.now + MINUTE
    id = await engine.submit(delay_until=due)
    later = await engine.submit()
    assert await pause(engine, id) == "paused"
    assert await why(engine, id) == STOPPED
    assert f"delay:{uuid_of(id)}" not in await engine.timers()
    await engine.pass_time(MINUTE - 1 if ahead else MINUTE)
    await engine.call(resume(id))
    if ahead:
        assert await why(engine, id) == ("delayed", "waiting_for_delay")
        assert (await engine.timers())[f"delay:{uuid_of(id)}"] == due
        await engine.pass_time(1)
    # It takes its turn when it becomes eligible, as without a pause.
    assert [job.execution_id for job in await engine.claim(limit=2)] == [later, id]


async def test_a_retry_that_waits_is_paused_and_goes_on_waiting(engine: Engine) -> None:
    job = await engine.running(policy=retries(1, backoff=FixedBackoff(delay_ms=MINUTE)))
    await engine.fail(job)
    assert await pause(engine, job.execution_id) == "paused"
    await engine.call(resume(job.execution_id))
    assert await why(engine, job.execution_id) == ("delayed", "waiting_for_retry_backoff")
    await pause(engine, job.execution_id)
    await engine.pass_time(MINUTE)
    await engine.call(resume(job.execution_id, 5_000))
    assert await why(engine, job.execution_id) == ("delayed", "waiting_for_retry_backoff")
    await engine.pass_time(5_000)
    (again,) = await engine.claim()
    assert (again.attempt_index, again.attempt_type) == (1, "retry")


async def test_a_resume_may_be_delayed(engine: Engine) -> None:
    id = await engine.submit()
    await pause(engine, id)
    assert await engine.call(resume(id, 5_000)) == c.Resumed(PublicState.DELAYED)
    assert await why(engine, id) == ("delayed", "waiting_for_resume_delay")
    await engine.pass_time(5_000)
    assert await engine.state(id) == "ready"


@pytest.mark.parametrize("how", ["expired", "revoked", "handed back", "refused", "delayed", "failed"])
async def test_one_that_runs_stops_when_its_lease_ends(engine: Engine, how: str) -> None:
    job = await engine.running(policy=retries(3))
    id = job.execution_id
    assert await pause(engine, id) == "pause_pending"
    assert await pause(engine, id) == "already_paused"
    assert await engine.state(id) == "active"
    match how:
        case "expired":
            await engine.pass_time(TTL)
        case "revoked":
            await engine.call(revoke(id))
        case "handed back":
            await engine.call(unclaim(job))
        case "refused":
            await engine.call(unclaim(job, "refused"))
        case "delayed":
            await engine.call(delay(job, engine.now))
        case _:
            await engine.fail(job)
    assert await why(engine, id) == STOPPED
    assert await engine.claim() == []
    await engine.call(resume(id))
    (again,) = await engine.claim()
    assert again.execution_id == id


@pytest.mark.parametrize("how", ["complete", "fail", "cancel"])
async def test_one_that_runs_may_still_end(engine: Engine, how: str) -> None:
    job = await engine.running()
    await pause(engine, job.execution_id)
    if how == "complete":
        await engine.complete(job)
    elif how == "fail":
        await engine.fail(job, "fatal")
    else:
        await engine.call(cancel(job.execution_id, OPERATOR))
    fields = (await engine.read(job.execution_id)).fields
    assert "paused" not in fields
    await engine.call(c.ReplayExecutionArgs(execution_id=job.execution_id, mode="resume"))
    assert await engine.state(job.execution_id) == "ready"


async def test_a_pause_is_taken_back_before_it_took_effect(engine: Engine) -> None:
    job = await engine.running()
    await pause(engine, job.execution_id)
    assert await engine.call(resume(job.execution_id)) == c.Resumed(PublicState.ACTIVE)
    await engine.call(unclaim(job))
    assert await engine.state(job.execution_id) == "ready"


async def test_a_granted_one_stops_when_its_grant_lapses(engine: Engine) -> None:
    id = await engine.submit()
    await engine.call(issue(id))
    assert await pause(engine, id) == "pause_pending"
    await engine.pass_time(GRANT_TTL)
    assert await why(engine, id) == STOPPED
    await engine.call(resume(id))
    assert await engine.state(id) == "ready"


@pytest.mark.parametrize("how", ["reclaimable", "revoked"])
async def test_one_that_waits_to_be_taken_over_stops_at_once(engine: Engine, how: str) -> None:
    job = await engine.running()
    if how == "revoked":
        await engine.call(revoke(job.execution_id))
    else:
        await engine.pass_time(TTL)
    assert await engine.state(job.execution_id) == how
    assert await pause(engine, job.execution_id) == "paused"
    await engine.call(resume(job.execution_id))
    (again,) = await engine.claim()
    assert (again.attempt_index, again.attempt_type) == (1, "reclaim")


async def test_one_that_is_suspended_waits_on_and_stops_when_it_would_go_on(engine: Engine) -> None:
    job, at = await suspended(engine, single("a"), "a")
    assert await pause(engine, job.execution_id) == "paused"
    assert await engine.state(job.execution_id) == "suspended"
    assert await send(engine, job.execution_id, at["a"]) == "resume_condition_satisfied"
    assert await why(engine, job.execution_id) == STOPPED
    assert await engine.call(resume(job.execution_id)) == c.Resumed(PublicState.WAITING)
    await resumed(engine, job.execution_id)


@pytest.mark.parametrize("first", ["pause", "unknown"])
async def test_no_time_runs_out_for_a_paused_one_whose_task_nobody_knows(engine: Engine, first: str) -> None:
    """Somebody stopped it to look at it: it must not fail for want of a worker that is not to run it."""
    job = await engine.running()
    if first == "pause":
        assert await pause(engine, job.execution_id) == "pause_pending"
        await engine.call(unclaim(job, "unknown_task"))
    else:
        await engine.call(unclaim(job, "unknown_task"))
        assert await pause(engine, job.execution_id) == "paused"
    assert await why(engine, job.execution_id) == STOPPED
    assert await engine.timers() == {}
    await engine.pass_time(limits.UNKNOWN_TASK_MS + 1)
    assert await engine.call(c.AnnounceTasksArgs(partition=P0, tasks=["send@1"])) == c.Announced(0)
    assert await why(engine, job.execution_id) == STOPPED
    await engine.call(resume(job.execution_id))
    (again,) = await engine.claim()
    assert (again.attempt_index, again.attempt_type) == (0, "initial")
    await engine.call(unclaim(again, "unknown_task"))
    await engine.pass_time(limits.UNKNOWN_TASK_MS)
    assert await engine.state(job.execution_id) == "failed"


async def test_a_paused_one_that_a_scheduler_has_blocked_stays_blocked_for_that(engine: Engine) -> None:
    id = await engine.submit()
    await engine.call(block(id, "waiting_for_capable_worker"))
    assert await pause(engine, id) == "paused"
    await engine.call(resume(id))
    assert await why(engine, id) == ("blocked", "waiting_for_capable_worker")


async def test_taking_a_pause_back_does_not_end_a_wait(engine: Engine) -> None:
    job, at = await suspended(engine, single("a"), "a")
    await pause(engine, job.execution_id)
    assert await engine.call(resume(job.execution_id)) == c.Resumed(PublicState.SUSPENDED)
    await send(engine, job.execution_id, at["a"])
    assert await engine.state(job.execution_id) == "ready"


async def test_a_hold_and_a_pause_are_two_things(engine: Engine) -> None:
    await engine.call(c.HoldArgs(partition=P0, what="task:send", reason="provider down"))
    first, second = await engine.submit_many(2)
    assert await engine.claim(limit=2) == []
    assert await pause(engine, first) == "paused"
    assert await pause(engine, second) == "paused"
    await engine.call(resume(second))
    assert await why(engine, second) == STOPPED  # the hold keeps it
    await engine.call(c.ReleaseArgs(partition=P0, what="task:send"))
    await engine.tick()
    assert await why(engine, first) == STOPPED
    assert await engine.state(second) == "ready"
    await engine.call(resume(first))
    assert [job.execution_id for job in await engine.claim(limit=2)] == [first, second]


async def test_whoever_unblocks_it_takes_the_pause_back(engine: Engine) -> None:
    id = await engine.submit()
    await pause(engine, id)
    await engine.call(c.UnblockExecutionArgs(execution_id=id))
    assert await engine.state(id) == "ready"
    await engine.refused("execution_not_suspended", resume(id))


async def test_pause_refuses_what_cannot_be_paused(engine: Engine) -> None:
    await engine.refused("execution_not_found", c.PauseExecutionArgs(execution_id=missing(), reason=""))
    job = await engine.running()
    await engine.complete(job)
    await engine.refused("terminal", c.PauseExecutionArgs(execution_id=job.execution_id, reason=""))


async def test_what_undoes_is_not_paused(engine: Engine) -> None:
    owing, flagged = await engine.running(), await engine.running()
    for job in (owing, flagged):
        await engine.command("HSET", f"ff:{P0}:x:{uuid_of(job.execution_id)}", "sg", "1", "x", "1")
    await pause(engine, flagged.execution_id)
    for job in (owing, flagged):
        await engine.fail(job, "fatal")
    await engine.refused("execution_not_eligible", c.PauseExecutionArgs(execution_id=owing.execution_id, reason=""))
    undo = await engine.claim(limit=2)
    assert {job.attempt_type for job in undo} == {"compensation"} and len(undo) == 2
    for job in undo:
        await engine.complete(job)


async def test_a_paused_one_is_listed_and_explained_as_such(engine: Engine) -> None:
    id = await engine.submit()
    await engine.advance(7)
    await pause(engine, id)
    page = await engine.call(c.ListExecutionsArgs(partition=P0, states=["blocked"]))
    assert [row.execution_id for row in page.items] == [id]
