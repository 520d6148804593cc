"""ff_wait, ff_resume_execution, ff_expire_suspension, ff_observe_signals, ff_list_suspended: an execution
waits without a lease, and the same attempt goes on."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.ids import LaneId, TimestampMs, WaitpointId, uuid_of
from tests.lua.engine import (
    OPERATOR,
    P0,
    Engine,
    cancel,
    completion,
    missing,
    retries,
    timeouts,
)
from tests.lua.test_grant import claim, issue
from tests.lua.test_grant import resume as claim_resumed
from tests.lua.waits import (
    expire,
    gate,
    gates,
    observed,
    resume,
    resumed,
    send,
    serial_uuid,
    signal,
    single,
    suspended,
    suspending,
    waiting,
)

EITHER = c.Composite(c.count(1, c.CountKind.DISTINCT_WAITPOINTS, None, ["a", "b"]))
BOTH = c.all_of_waitpoints(["a", "b"])
TWO_SOURCES = c.Composite(c.count(2, c.CountKind.DISTINCT_SOURCES, None, ["a"]))
MINUTE = 60_000


async def waited(engine: Engine, id: Any, step: str = "ab.01.0") -> c.Waited:
    """What the journal says a wait ended with."""
    page = await engine.call(c.ReadJournalArgs(execution_id=id, from_seq=1, limit=100))
    (entry,) = [e for e in page.entries if e.startswith(step.encode())]
    head, _, rest = entry.partition(b":")
    name_n = int(head.split(b" ")[-1])
    assert head.split(b" ")[1:3] == [b"wait", b"ok"]
    return c.parse_wait(rest[name_n:])


async def holder(engine: Engine, **options: Any) -> c.ClaimedJob:
    return await engine.running(**options)


# ---- to wait, and to go on ---------------------------------------------------------------------------


async def test_a_wait_gives_the_lease_up_and_goes_on_with_the_signal(engine: Engine) -> None:
    job, at = await suspended(engine, single("a", "ok"), "a")
    assert await engine.state(job.execution_id) == "suspended"
    assert await engine.claim() == []
    assert await send(engine, job.execution_id, at["a"], "other") == "signal_ignored_matcher_failed"
    assert await send(engine, job.execution_id, at["a"], payload=b"yes") == "resume_condition_satisfied"
    again = await resumed(engine, job.execution_id)
    assert (again.attempt_index, again.attempt_id) == (job.attempt_index, job.attempt_id)
    assert again.lease_epoch > job.lease_epoch
    seen = await observed(engine, job.execution_id)
    assert (seen.why, [s.payload for s in seen.signals]) == ("signal", [b"yes"])
    assert await waited(engine, job.execution_id) == c.Waited("signal", TimestampMs(engine.now), seen.signals)


async def test_signals_come_back_in_order_of_arrival_with_all_they_said(engine: Engine) -> None:
    job, at = await suspended(engine, BOTH, "a", "b")
    assert await send(engine, job.execution_id, at["b"], "second", payload=b"\x00\xff", payload_encoding="raw",
                      correlation_id="c 1", idempotency_key="k") == "appended_to_waitpoint"  # fmt: skip
    part = await observed(engine, job.execution_id)
    assert (part.why, part.resumed_at, [s.name for s in part.signals]) == ("", 0, ["second"])
    await engine.advance(5)
    assert await send(engine, job.execution_id, at["a"], "first") == "resume_condition_satisfied"
    first, second = (await observed(engine, job.execution_id)).signals
    assert (first.waitpoint_id, first.payload, first.payload_encoding) == (at["b"], b"\x00\xff", "raw")
    assert (first.correlation_id, first.idempotency_key, first.accepted_at) == ("c 1", "k", engine.now - 5)
    assert (second.waitpoint_id, second.name, second.source_type, second.source_identity) == (
        at["a"], "first", "test", "dana")  # fmt: skip
    assert first.resume_signal.signal_name == "second" and first.resume_signal.payload == b"\x00\xff"
    pages = [await observed(engine, job.execution_id, skip=skip, limit=1) for skip in (0, 1)]
    assert ([p.signals for p in pages], [p.next for p in pages]) == ([[first], [second]], [1, 0])


async def test_signals_that_came_before_count_in_their_order(engine: Engine) -> None:
    job = await holder(engine)
    at = await gates(engine, job, "a", "b")
    assert await send(engine, job.execution_id, at["b"], "early") == "appended_to_waitpoint"
    answer = await engine.call(waiting(job, BOTH, at))
    assert isinstance(answer, c.WaitSuspended) and answer.until == 0
    assert await send(engine, job.execution_id, at["a"], "late") == "resume_condition_satisfied"
    assert [s.name for s in (await waited(engine, job.execution_id)).signals] == ["early", "late"]
    await resumed(engine, job.execution_id)


async def test_what_has_come_already_keeps_the_lease(engine: Engine) -> None:
    job = await holder(engine)
    at = await gates(engine, job, "a", "b")
    for key in ("b", "a"):
        await send(engine, job.execution_id, at[key], key)
    for _ in range(2):  # a lost reply is asked for again
        answer = await engine.call(waiting(job, BOTH, at))
        assert isinstance(answer, c.WaitSatisfied)
        assert [s.name for s in c.parse_wait(answer.value).signals] == ["b", "a"]
    assert await engine.state(job.execution_id) == "active"
    assert (await observed(engine, job.execution_id)).why == "signal"
    await engine.refused("waitpoint_closed", signal(job.execution_id, at["a"]))
    await engine.complete(job)


async def test_a_wait_sent_again_answers_the_same(engine: Engine) -> None:
    job, at = await suspended(engine, single("a"), "a", timeout_ms=MINUTE)
    again = await engine.call(waiting(job, single("a"), at, timeout_ms=MINUTE))
    assert again == c.WaitSuspended(TimestampMs(engine.now + MINUTE))
    await send(engine, job.execution_id, at["a"])
    assert isinstance(await engine.call(waiting(job, single("a"), at)), c.WaitSuspended)
    after = await resumed(engine, job.execution_id)
    assert await engine.refused("stale_lease", waiting(job, single("a"), at))
    # The handler runs again from the top: its wait is answered by the journal.
    answer = await engine.call(waiting(after, single("a"), at))
    assert isinstance(answer, c.WaitSatisfied) and c.parse_wait(answer.value).why == "signal"


async def test_a_sleep_is_a_wait_that_time_ends(engine: Engine) -> None:
    told = c.TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL
    job, _ = await suspended(engine, timeout_ms=MINUTE, timeout_behavior=told)
    assert (await engine.timers())[f"suspension:{uuid_of(job.execution_id)}"] == engine.now + MINUTE
    await engine.advance(MINUTE - 1)
    assert await engine.claim() == []
    await engine.advance(1)
    await engine.tick()
    again = await resumed(engine, job.execution_id)
    assert await waited(engine, job.execution_id) == c.Waited("timeout", TimestampMs(engine.now), [])
    assert again.attempt_index == 0


async def test_the_attempts_time_stands_still_meanwhile_and_the_deadline_does_not(engine: Engine) -> None:
    policy = timeouts(attempt_timeout_ms=10_000, execution_deadline_ms=100_000)
    job = await holder(engine, policy=policy)
    at = await gates(engine, job, "a")
    await engine.advance(4_000)
    await engine.call(waiting(job, single("a"), at))
    await engine.pass_time(20_000)
    await send(engine, job.execution_id, at["a"])
    again = await resumed(engine, job.execution_id)
    assert again.attempt_deadline_at == engine.now + 6_000
    assert again.deadline_at == job.deadline_at


async def test_it_comes_back_to_its_place_in_line(engine: Engine) -> None:
    job, at = await suspended(engine, single("a"), "a")
    others = await engine.submit_many(2)
    await send(engine, job.execution_id, at["a"])
    assert [j.execution_id for j in await engine.claim(limit=3)] == [job.execution_id, *others]




async def test_the_two_step_claim_goes_on_with_the_same_attempt_and_what_is_left_of_its_time(engine: Engine) -> None:
    job = await holder(engine, policy=timeouts(attempt_timeout_ms=10_000))
    at = await gates(engine, job, "a")
    await engine.advance(4_000)
    await engine.call(waiting(job, single("a"), at))
    await engine.pass_time(60_000)
    await send(engine, job.execution_id, at["a"])
    await engine.call(issue(job.execution_id))
    await engine.refused("use_claim_resumed_execution", claim(job.execution_id, expected_attempt_index=1))
    again = (await engine.call(claim_resumed(job.execution_id))).execution
    assert (again.attempt_index, again.attempt_id) == (0, job.attempt_id)
    assert again.lease_expires_at == engine.now + 6_000
    assert again.handle.kind is c.HandleKind.RESUMED
    await engine.call(completion(job, fence=again.fence))


# ---- ff_wait -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fields", "detail"), [
    ({"step": "no key"}, "step"),
    ({"step_name": ""}, "name"),
    ({"version": 0}, "version"),
    ({"timeout_ms": -1}, "timeout_ms"),
    ({"suspension_id": ""}, "suspension_id"),
    ({"reason_code": "mood"}, "reason_code"),
    ({"timeout_behavior": "nap"}, "timeout_behavior"),
    ({"condition": b"{}"}, "condition"),
    ({"waitpoints": [c.WaitedWaitpoint(WaitpointId("x"))]}, "waitpoint_id"),
    ({"timeout_ms": None}, "timeout_only_without_deadline"),
])  # fmt: skip
async def test_wait_refuses_what_it_cannot_mean(engine: Engine, fields: dict[str, Any], detail: str) -> None:
    job = await holder(engine)
    assert detail in await engine.refused("invalid_input", waiting(job, timeout_ms=1_000), **fields)


async def test_wait_refuses_waitpoints_it_cannot_use(engine: Engine) -> None:
    job = await holder(engine)
    await engine.refused("waitpoint_not_found", waiting(job, single("a"), {"a": serial_uuid()}))
    at = await gate(engine, job, "a", expires_in_ms=1_000)
    await engine.advance(1_000)
    await engine.refused("pending_waitpoint_expired", waiting(job, single("a"), {"a": at}))
    await engine.tick()
    await engine.refused("waitpoint_not_pending", waiting(job, single("a"), {"a": at}))


async def test_wait_refuses_a_step_that_is_something_else(engine: Engine) -> None:
    job = await holder(engine)
    await gate(engine, job, "a", step="ab.01.0", step_name="wait")
    assert "gate" in await engine.refused("invalid_input", waiting(job, timeout_ms=1))


async def test_a_full_journal_takes_no_new_wait_and_the_end_of_one_that_began(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    job, at = await suspended(engine, single("a"), "a")
    key = f"ff:{P0}:j:{uuid_of(job.execution_id)}"
    await engine.command("HSET", key, "n", f"{limits.STEPS_N} 0")
    await engine.command("HSET", f"ff:{P0}:x:{uuid_of(job.execution_id)}", "jn", "0 1")
    assert await send(engine, job.execution_id, at["a"]) == "resume_condition_satisfied"
    after = await resumed(engine, job.execution_id)
    entry = await engine.command("HGET", key, limits.STEPS_N + 1)
    assert entry.startswith(b"ab.01.0 wait ok ")
    await engine.refused("journal_full", waiting(after, timeout_ms=1, step="ab.02.0"))
    await engine.command("HDEL", key, limits.STEPS_N + 1)
    await engine.command("HSET", key, 1, entry, "kab.01.0", 1, "n", f"1 {len(entry)}")


async def test_waitpoints_may_stay_open_for_the_next_wait(engine: Engine) -> None:
    job, at = await suspended(
        engine, single("a", "ok"), "a", close_waitpoints=False, timeout_ms=MINUTE,
        timeout_behavior=c.TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL,
    )  # fmt: skip
    assert await send(engine, job.execution_id, at["a"], "later") == "signal_ignored_matcher_failed"
    await engine.advance(MINUTE)
    await engine.tick()
    after = await resumed(engine, job.execution_id)
    answer = await engine.call(waiting(after, single("a", "later"), at, step="ab.01.1"))
    assert isinstance(answer, c.WaitSatisfied), answer
    assert [s.name for s in c.parse_wait(answer.value).signals] == ["later"]


async def test_gates_stay_open_after_a_timeout_the_handler_is_told_of(engine: Engine) -> None:
    job, at = await suspended(
        engine, single("a"), "a", timeout_ms=MINUTE, timeout_behavior=c.TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL,
    )  # fmt: skip
    await engine.pass_time(MINUTE)
    after = await resumed(engine, job.execution_id)
    assert await send(engine, job.execution_id, at["a"], "late") == "appended_to_waitpoint"
    answer = await engine.call(waiting(after, single("a"), at, step="ab.01.1"))
    assert isinstance(answer, c.WaitSatisfied)


async def test_signals_that_are_too_many_bytes_are_refused(engine: Engine) -> None:
    job, at = await suspended(engine, c.Composite(c.count(9_999, c.CountKind.DISTINCT_SIGNALS, None, ["a"])), "a")
    key = f"ff:{P0}:s:{uuid_of(job.execution_id)}"
    await engine.command("HSET", key, "m", f"0 {limits.MATCHED_BYTES}")
    await engine.refused("signal_limit_exceeded", signal(job.execution_id, at["a"]))
    await engine.command("HDEL", key, "m")


@pytest.mark.parametrize("how", ["wait", "suspend"])
async def test_early_signals_that_are_too_many_bytes_are_refused(engine: Engine, how: str) -> None:
    job = await holder(engine)
    at = await gates(engine, job, "a")
    big = b"x" * limits.SIGNAL_BYTES
    n = limits.MATCHED_BYTES // limits.SIGNAL_BYTES + 1
    for _ in range(n):
        await send(engine, job.execution_id, at["a"], payload=big)
    many = c.Composite(c.count(n + 1, c.CountKind.DISTINCT_SIGNALS, None, ["a"]))
    args: Any = waiting(job, many, at) if how == "wait" else suspending(job, many, pending=at)
    await engine.refused("signal_limit_exceeded", args)
    assert await engine.state(job.execution_id) == "active"


# ---- a cancel, a deadline, a crash meanwhile ---------------------------------------------------------


@pytest.mark.parametrize("how", ["wait", "suspend"])
async def test_a_requested_cancel_ends_it_instead(engine: Engine, how: str) -> None:
    job = await holder(engine)
    args: Any = (
        waiting(job, timeout_ms=1) if how == "wait" else suspending(job, single("a"), {"a": serial_uuid()})
    )  # fmt: skip
    await engine.call(cancel(job.execution_id))
    for _ in range(2):
        assert await engine.refused("terminal", args) == "cancelled"
    assert await engine.state(job.execution_id) == "cancelled"


async def test_what_ends_it_while_it_waits_closes_its_waitpoints(engine: Engine) -> None:
    job, at = await suspended(engine, BOTH, "a", "b", timeout_ms=MINUTE)
    await send(engine, job.execution_id, at["a"])
    await engine.call(cancel(job.execution_id, OPERATOR))
    assert await engine.state(job.execution_id) == "cancelled"
    assert f"suspension:{uuid_of(job.execution_id)}" not in await engine.timers()
    await engine.refused("waitpoint_closed", signal(job.execution_id, at["b"]))
    assert (await observed(engine, job.execution_id)).why == "ended"


async def test_a_deadline_does_not_wait(engine: Engine) -> None:
    job = await holder(engine, policy=timeouts(execution_deadline_ms=10_000))
    at = await gates(engine, job, "a")
    await engine.call(waiting(job, single("a"), at, timeout_ms=MINUTE))
    await engine.pass_time(10_000)
    assert await engine.state(job.execution_id) == "expired"


async def test_a_fresh_replay_has_never_waited(engine: Engine) -> None:
    job, at = await suspended(engine, single("a"), "a")
    await send(engine, job.execution_id, at["a"])
    await engine.complete(await resumed(engine, job.execution_id))
    await engine.call(c.ReplayExecutionArgs(execution_id=job.execution_id, mode="fresh"))
    assert (await observed(engine, job.execution_id)).suspension_id == ""


async def test_a_replay_that_resumes_waits_again_at_the_same_gate(engine: Engine) -> None:
    job, at = await suspended(engine, BOTH, "a", "b", timeout_ms=1_000)
    await send(engine, job.execution_id, at["b"])
    await engine.pass_time(1_000)
    assert await engine.state(job.execution_id) == "failed"
    await engine.call(c.ReplayExecutionArgs(execution_id=job.execution_id, mode="resume"))
    (again,) = await engine.claim()
    await engine.call(waiting(again, single("a"), at))
    assert await send(engine, job.execution_id, at["a"]) == "resume_condition_satisfied"
    assert [s.waitpoint_id for s in (await waited(engine, job.execution_id)).signals] == [at["a"]]


async def test_what_is_purged_leaves_nothing_of_its_waits(engine: Engine) -> None:
    job, at = await suspended(engine, single("a"), "a", step="ab.01.7")
    await send(engine, job.execution_id, at["a"])
    await engine.complete(await resumed(engine, job.execution_id))
    await engine.advance(1)
    before = TimestampMs(engine.now)
    await engine.call(c.PurgeArgs(partition=P0, lane_id=LaneId("mail"), outcome="completed", before_ms=before))
    left = [key for key in await engine.command("KEYS", "*") if uuid_of(job.execution_id).encode() in key]
    assert left == []


async def test_what_is_owed_is_not_kept_from_starting_by_a_wait(engine: Engine) -> None:
    job, at = await suspended(engine, single("a"), "a", timeout_ms=1_000)
    await engine.command("HSET", f"ff:{P0}:x:{uuid_of(job.execution_id)}", "sg", "1", "x", "1")
    await engine.advance(1_000)
    await engine.tick()
    (undo,) = await engine.claim()
    assert undo.attempt_type == "compensation"
    await engine.refused("waitpoint_closed", signal(job.execution_id, at["a"]))
    await engine.complete(undo)
    assert await engine.state(job.execution_id) == "failed"


# ---- time ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("behavior", "state"), [("fail", "failed"), ("cancel", "cancelled"), ("expire", "expired")])
async def test_a_timeout_ends_it_as_it_says(engine: Engine, behavior: str, state: str) -> None:
    job, at = await suspended(engine, single("a"), "a", timeout_ms=MINUTE, timeout_behavior=c.TimeoutBehavior(behavior))
    await engine.advance(MINUTE - 1)
    assert await engine.call(expire(job.execution_id)) == c.AlreadySatisfied("not_yet_due")
    await engine.advance(1)
    assert await engine.call(expire(job.execution_id)) == c.SuspensionExpired(behavior)
    assert await engine.state(job.execution_id) == state
    assert await engine.call(expire(job.execution_id)) == c.AlreadySatisfied("not_suspended")
    await engine.refused("waitpoint_closed", signal(job.execution_id, at["a"]))
    texts = (await engine.read(job.execution_id)).texts
    assert texts.get("category", "suspension_timeout") == "suspension_timeout"
    assert "in time" in texts.get("reason", texts.get("cancel_reason", ""))


async def test_a_failed_timeout_is_not_retried(engine: Engine) -> None:
    job = await holder(engine, policy=retries(3))
    at = await gates(engine, job, "a")
    await engine.call(waiting(job, single("a"), at, timeout_ms=1_000))
    await engine.pass_time(1_000)
    assert await engine.state(job.execution_id) == "failed"


async def test_there_may_be_nothing_to_expire(engine: Engine) -> None:
    assert await engine.call(expire(missing())) == c.AlreadySatisfied("execution_not_found")
    job, _ = await suspended(engine, single("a"), "a")
    assert await engine.call(expire(job.execution_id)) == c.AlreadySatisfied("no_timeout")


async def test_escalation_gives_an_operator_as_long_again(engine: Engine) -> None:
    wait = {"timeout_ms": MINUTE, "timeout_behavior": c.TimeoutBehavior.ESCALATE}
    job, at = await suspended(engine, single("a"), "a", **wait)
    other, _ = await suspended(engine, single("a"), "a", **wait)
    await engine.pass_time(MINUTE)
    for id in (job.execution_id, other.execution_id):
        fields = (await engine.read(id)).fields
        assert (fields["state"], fields["reason"]) == ("suspended", "paused_by_operator")
    assert await send(engine, job.execution_id, at["a"]) == "signal_ignored_not_in_condition"
    history = await engine.call(c.ExecutionHistoryArgs(execution_id=job.execution_id, limit=100))
    assert "escalated" in [entry.text.split(" ", 7)[-1] for entry in history.entries]
    await engine.call(resume(job.execution_id))
    assert (await waited(engine, job.execution_id)).why == "operator"
    await engine.pass_time(MINUTE)
    assert await engine.state(other.execution_id) == "failed"
    assert await engine.state(job.execution_id) == "ready"


async def test_a_resume_delay_of_the_policy_is_kept(engine: Engine) -> None:
    job = await holder(engine)
    at = {"a": serial_uuid()}
    await engine.call(suspending(job, single("a"), at, resume_delay_ms=5_000))
    await send(engine, job.execution_id, at["a"])
    fields = (await engine.read(job.execution_id)).fields
    assert (fields["state"], fields["reason"]) == ("delayed", "waiting_for_resume_delay")
    assert fields["due"] == str(engine.now + 5_000)
    await engine.pass_time(5_000)
    await resumed(engine, job.execution_id)


# ---- views -----------------------------------------------------------------------------------------------


async def test_observe_refuses_what_is_not_there(engine: Engine) -> None:
    await engine.refused("execution_not_found", c.ObserveSignalsArgs(execution_id=missing()))
    id = await engine.submit()
    assert (await observed(engine, id)).signals == []
    await engine.refused("invalid_input", c.ObserveSignalsArgs(execution_id=id, skip=-1))
    await engine.refused("invalid_input", c.ObserveSignalsArgs(execution_id=id, limit=0))


async def test_what_is_suspended_is_listed_by_lane_and_age(engine: Engine) -> None:
    jobs: list[Any] = []
    for n in range(3):
        job, _ = await suspended(engine, single("a"), "a", timeout_ms=MINUTE + n)
        jobs.append(job.execution_id)
        await engine.advance(10)
    other = await engine.running(lane_id="other")
    by_operator: dict[str, Any] = {"requested_by": "operator", "reason_code": "manual_pause", "fence": None}
    await engine.call(suspending(other, c.OperatorOnly(), **by_operator))
    await engine.call(c.PauseExecutionArgs(execution_id=jobs[1], reason="look"))
    rows: list[c.SuspendedRow] = []
    cursor: str | None = None
    while cursor != "":
        page = await engine.call(c.ListSuspendedArgs(partition=P0, limit=2, cursor=cursor))
        rows += page.rows
        cursor = page.next_cursor
    assert [row.execution_id for row in rows] == [*jobs, other.execution_id]
    assert [row.since for row in rows] == [engine.now - 30 + 10 * n for n in range(4)]
    assert [row.timeout_at for row in rows] == [row.since + MINUTE + n for n, row in enumerate(rows[:3])] + [0]
    assert [row.paused for row in rows] == [False, True, False, False]
    last = rows[3]
    assert (last.lane_id, last.reason, last.reason_code, last.requested_by, last.waitpoints_n) == (
        "other", "paused_by_operator", "manual_pause", "operator", 0)  # fmt: skip
    only = await engine.call(c.ListSuspendedArgs(partition=P0, lane_id=LaneId("other")))
    assert [row.execution_id for row in only.rows] == [other.execution_id]
    assert (await engine.call(c.ListSuspendedArgs(partition=P0, lane_id=LaneId("none")))).rows == []
    await engine.refused("invalid_input", c.ListSuspendedArgs(partition=P0), limit=0)
    await engine.refused("invalid_offset", c.ListSuspendedArgs(partition=P0), cursor="here")
