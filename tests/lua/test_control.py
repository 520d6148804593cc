"""ff_delay_execution, ff_unclaim, ff_expire_execution, ff_change_priority, ff_replay_execution and
ff_set_execution_tags: what changes an execution's course."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.policy import FixedBackoff
from ffcore.states import PublicState
from tests.lua.engine import (
    OPERATOR,
    P0,
    START_MS,
    Engine,
    cancel,
    completion,
    delay,
    failure,
    missing,
    progress,
    retries,
    revoke,
    timeouts,
    unclaim,
)  # fmt: skip

# ---- delay -------------------------------------------------------------------------------------------


async def test_a_delayed_attempt_goes_on_later_as_the_same_attempt(engine: Engine) -> None:
    job = await engine.running()
    assert await engine.call(delay(job, START_MS + 40)) == c.Delayed(job.execution_id, PublicState.DELAYED)
    assert await engine.call(delay(job, START_MS + 999)) == c.Delayed(job.execution_id, PublicState.DELAYED)
    await engine.advance(40)
    (again,) = await engine.claim()
    assert (again.attempt_index, again.attempt_id, again.attempt_type) == (0, job.attempt_id, "resumed")
    await engine.refused("stale_lease", delay(job, START_MS + 40))


async def test_a_delay_in_the_past_is_due_now_and_one_beyond_reason_is_refused(engine: Engine) -> None:
    job = await engine.running()
    for until in (-1, 2**52):
        assert await engine.refused("invalid_input", delay(job, 0), delay_until=until) == "delay_until"
    await engine.call(delay(job, 0))
    assert len(await engine.claim()) == 1


# ---- unclaim -----------------------------------------------------------------------------------------


async def test_a_claim_refused_by_admission_uses_nothing_up(engine: Engine) -> None:
    job = await engine.running(policy=retries(2))
    assert (await engine.call(unclaim(job, "refused"))).state == "ready"
    assert (await engine.call(unclaim(job, "refused"))).state == "ready", "the same again is answered the same"
    (again,) = await engine.claim()
    assert (again.attempt_index, again.attempt_type, again.crashes, again.retries) == (0, "initial", 0, 0)
    await engine.fail(again)
    (third,) = await engine.claim()
    await engine.call(unclaim(third, "refused"))
    (fourth,) = await engine.claim()
    assert (third.attempt_index, third.attempt_type) == (fourth.attempt_index, fourth.attempt_type) == (1, "retry")


async def test_an_earlier_answer_does_not_leak_into_a_later_lease(engine: Engine) -> None:
    """A claim after `refused` is a first attempt again; what ended the lease before must be forgotten with it."""
    job = await engine.running()
    await engine.call(unclaim(job, "refused"))
    (again,) = await engine.claim()
    await engine.call(revoke(job.execution_id))
    await engine.refused("lease_revoked", unclaim(again, "refused"))


async def test_a_task_no_worker_knows_waits_for_one_that_does(engine: Engine) -> None:
    job = await engine.running(version=2)
    assert (await engine.call(unclaim(job, "unknown_task"))).state == "blocked"
    assert (await engine.read(job.execution_id)).fields["reason"] == "waiting_for_capable_worker"
    announce = c.AnnounceTasksArgs(partition=P0, tasks=["send@1", "other@2"])
    assert await engine.call(announce) == c.Announced(0)
    assert await engine.call(announce, tasks=["send@2"]) == c.Announced(1)
    (again,) = await engine.claim()
    assert (again.attempt_index, again.attempt_type, again.crashes) == (0, "initial", 0)


async def test_a_task_nobody_ever_knows_fails_after_a_while(engine: Engine) -> None:
    job = await engine.running(policy=retries(9))
    await engine.call(unclaim(job, "unknown_task"))
    await engine.pass_time(limits.UNKNOWN_TASK_MS - 1)
    assert await engine.state(job.execution_id) == "blocked"
    await engine.pass_time(1)
    x = await engine.read(job.execution_id)
    assert (x.fields["state"], x.texts["category"]) == ("failed", "unknown_task")


@pytest.mark.parametrize("end", ["cancel", "unblock"])
async def test_what_leaves_the_unknown_leaves_no_trace_there(engine: Engine, end: str) -> None:
    job = await engine.running()
    await engine.call(unclaim(job, "unknown_task"))
    if end == "cancel":
        await engine.call(cancel(job.execution_id))
        await engine.call(c.PurgeArgs(partition=P0, lane_id="mail", outcome="cancelled", before_ms=engine.now))
    else:
        await engine.call(c.UnblockExecutionArgs(execution_id=job.execution_id))
    assert await engine.timers() == {}


async def test_giving_back_for_no_known_reason_is_refused(engine: Engine) -> None:
    job = await engine.running()
    assert await engine.refused("invalid_input", unclaim(job, "bored")) == "reason"


# ---- expire ------------------------------------------------------------------------------------------


async def test_a_deadline_ends_whatever_it_finds(engine: Engine) -> None:
    ids = [await engine.submit(execution_deadline_at=START_MS + 1_000) for _ in range(2)]
    ids.append(await engine.submit(execution_deadline_at=START_MS + 1_000, delay_until=START_MS + 10**6))
    (job,) = await engine.claim()
    ear = await engine.listen(engine.backend.worker_channel(P0, "w1"))
    await engine.pass_time(1_000)
    assert [await engine.state(id) for id in ids] == ["expired"] * 3
    assert await ear.heard() == [("w1", f"cancel {job.execution_id}")]
    await engine.refused("terminal", completion(job))


async def test_the_deadline_does_not_pause_and_a_delay_does_not_move_it(engine: Engine) -> None:
    job = await engine.running(policy=timeouts(execution_deadline_ms=1_000))
    await engine.call(delay(job, START_MS + 10**6))
    await engine.pass_time(1_000)
    assert await engine.state(job.execution_id) == "expired"


async def test_an_end_by_time_that_is_asked_for(engine: Engine) -> None:
    def expire(id: Any, why: str = "execution_deadline") -> c.ExpireExecutionArgs:
        return c.ExpireExecutionArgs(execution_id=id, expire_reason=why)

    await engine.refused("execution_not_found", expire(missing()))
    id = await engine.submit()
    assert await engine.refused("no_active_lease", expire(id, "attempt_timeout")) == "ready"
    for why in ("", "a\n", "x" * 65):
        assert await engine.refused("invalid_input", expire(id), expire_reason=why) == "expire_reason"
    assert await engine.call(expire(id)) == c.Expired(id)
    assert await engine.call(expire(id)) == c.AlreadyTerminal()
    job = await engine.running(policy=retries(1, backoff=FixedBackoff(delay_ms=7)))
    assert await engine.call(expire(job.execution_id, "attempt_timeout")) == c.RetryScheduled(START_MS + 7, 1)
    await engine.advance(7)
    (job,) = await engine.claim()
    assert await engine.call(expire(job.execution_id, "attempt_timeout")) == c.Expired(job.execution_id)
    assert (await engine.read(job.execution_id)).texts["category"] == "timeout"


# ---- priority ----------------------------------------------------------------------------------------


def reprioritise(id: Any, priority: int, lane: str = "mail") -> c.ChangePriorityArgs:
    return c.ChangePriorityArgs(execution_id=id, new_priority=priority, lane_id=lane)  # type: ignore[arg-type]


async def test_a_new_priority_moves_what_is_ready_and_keeps_its_turn(engine: Engine) -> None:
    one, two, three = await engine.submit_many(3)
    assert await engine.call(reprioritise(three, 5)) == c.Changed(three)
    await engine.call(reprioritise(two, 5))
    assert [job.execution_id for job in await engine.claim(3)] == [two, three, one]


async def test_a_new_priority_of_what_waits_takes_effect_when_it_is_ready(engine: Engine) -> None:
    late = await engine.submit(delay_until=START_MS + 5)
    first = await engine.submit()
    await engine.call(reprioritise(late, 5))
    await engine.call(reprioritise(late, 5))
    await engine.advance(5)
    await engine.tick()
    assert [job.execution_id for job in await engine.claim(2)] == [late, first]


async def test_a_priority_that_cannot_be_is_refused(engine: Engine) -> None:
    id = await engine.submit()
    await engine.refused("execution_not_found", reprioritise(missing(), 0))
    for priority in (-101, 101):
        assert await engine.refused("invalid_input", reprioritise(id, 0), new_priority=priority) == "new_priority"
    assert await engine.refused("invalid_input", reprioritise(id, 0, "other")) == "lane_id"
    await engine.call(reprioritise(id, 100, ""))
    await engine.call(cancel(id))
    assert await engine.refused("terminal", reprioritise(id, 0)) == "cancelled"


# ---- replay ------------------------------------------------------------------------------------------


async def test_a_replay_starts_clean_as_a_new_attempt_of_a_new_run(engine: Engine) -> None:
    policy = retries(1) | timeouts(execution_deadline_ms=100_000)
    job = await engine.running(policy=policy, tags={"a.b": "c"})
    await engine.call(progress(job, progress_pct=50, progress_message="half"))
    await engine.fail(job)
    (job,) = await engine.claim()
    await engine.fail(job)
    await engine.advance(500)
    replay = c.ReplayExecutionArgs(execution_id=job.execution_id)
    assert await engine.call(replay) == c.Replayed(PublicState.WAITING)
    x = await engine.read(job.execution_id, "attempts")
    assert x.texts == {} and x.tags == {"a.b": "c"}
    gone = {"retries", "crashes", "unseen", "hand_backs", "progress", "ended_by", "cancel_until", "result_kept"}
    assert not gone & set(x.fields)
    assert (x.fields["deadline_at"], x.fields["run"], x.fields["replays"]) == (str(engine.now + 100_000), "1", "1")
    assert x.attempts[-1].endswith("ended_failure replayed")
    (again,) = await engine.claim()
    assert (again.attempt_index, again.attempt_type, again.run, again.retries) == (2, "replay", 1, 0)
    assert isinstance(await engine.fail(again), c.RetryScheduled), "its retries are its own"


@pytest.mark.parametrize("result", [b"short", b"x" * 5_000])
async def test_a_replay_forgets_the_result(engine: Engine, result: bytes) -> None:
    job = await engine.running()
    await engine.complete(job, result)
    await engine.call(c.ReplayExecutionArgs(execution_id=job.execution_id, mode="fresh"))
    x = await engine.read(job.execution_id, "result,attempts")
    assert x.result == b"" and x.attempts[-1].endswith("ended_success replayed")
    (again,) = await engine.claim()
    await engine.complete(again, None)
    (outcome,) = (await engine.call(c.ReadOutcomesArgs(partition=P0, items=[c.ExecutionRef(job.execution_id)]))).items
    assert not outcome.has_result


async def test_a_replay_logs_no_attempt_that_was_logged_when_its_lease_ended(engine: Engine) -> None:
    job = await engine.running(policy=retries(1, backoff=FixedBackoff(delay_ms=5_000)))
    await engine.fail(job)
    await engine.call(cancel(job.execution_id))
    await engine.call(c.ReplayExecutionArgs(execution_id=job.execution_id))
    (logged,) = (await engine.read(job.execution_id, "attempts")).attempts
    assert logged.startswith("0 ") and logged.endswith("ended_failure error")


async def test_replays_are_counted_and_bounded(engine: Engine) -> None:
    job = await engine.running(policy={"max_replay_count": 1})
    replay = c.ReplayExecutionArgs(execution_id=job.execution_id)
    assert await engine.refused("execution_not_terminal", replay) == "active"
    await engine.call(cancel(job.execution_id, "operator_override"))
    assert await engine.refused("invalid_input", replay, mode="again") == "mode is resume or fresh"
    await engine.call(replay)
    await engine.call(cancel(job.execution_id))
    assert await engine.refused("max_replays_exhausted", replay) == "1"
    await engine.refused("execution_not_found", c.ReplayExecutionArgs(execution_id=missing()))


async def test_a_late_replay_of_a_purged_one_says_that_it_was_purged(engine: Engine) -> None:
    id = engine.new_id(key="k")
    await engine.submit(id=id)
    await engine.call(cancel(id))
    await engine.call(c.PurgeArgs(partition=P0, lane_id="mail", outcome="cancelled", before_ms=engine.now))
    assert await engine.refused("execution_not_found", c.ReplayExecutionArgs(execution_id=id)) == "purged"
    assert await engine.refused("execution_not_found", c.ReadExecutionArgs(execution_id=id)) == "purged"


async def test_a_never_started_execution_is_replayed_as_its_first_attempt(engine: Engine) -> None:
    id = await engine.submit()
    await engine.call(cancel(id))
    await engine.call(c.ReplayExecutionArgs(execution_id=id))
    (job,) = await engine.claim()
    assert (job.attempt_index, job.attempt_type) == (0, "replay")


# ---- tags --------------------------------------------------------------------------------------------


async def test_tags_are_set_changed_and_removed(engine: Engine) -> None:
    id = await engine.submit(tags={"a.x": "1", "a.y": "2"})
    assert await engine.call(
        c.SetExecutionTagsArgs(execution_id=id, tags={"a.x": "9", "a.y": "", "a.z": 'q"\\\n'})
    ) == c.TagsOk(2)
    assert (await engine.read(id)).tags == {"a.x": "9", "a.z": 'q"\\\n'}
    assert await engine.call(c.SetExecutionTagsArgs(execution_id=id, tags={})) == c.TagsOk(2)


async def test_bad_tags_are_refused_and_nothing_is_written(engine: Engine) -> None:
    id = await engine.submit()
    setting = c.SetExecutionTagsArgs(execution_id=id, tags={"a.ok": "1"})
    await engine.refused("execution_not_found", c.SetExecutionTagsArgs(execution_id=missing(), tags={}))
    assert await engine.refused("invalid_tag_key", setting, tags={"a.ok": "1", "BAD": "v"}) == "BAD"
    for tags in ({"a.b": "x" * 257}, {f"a.{n}": "v" for n in range(65)}, b"3:a.b", b"9:a.b", b"a.b", b"-1:"):
        await engine.refused("invalid_input", setting, tags=tags)
    assert (await engine.read(id)).tags == {}


async def test_a_failure_by_an_operator_without_a_fence_counts_as_any_other(engine: Engine) -> None:
    job = await engine.running(policy=retries(1))
    failed = failure(job, fence=None, source=OPERATOR)
    assert isinstance(await engine.call(failed), c.RetryScheduled)
