"""ff_complete_execution, ff_fail_execution, ff_update_progress, and the order of refusals a worker meets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.policy import ExponentialBackoff, FixedBackoff
from ffcore.states import PublicState
from tests.lua.engine import (
    OPERATOR,
    START_MS,
    TTL,
    Engine,
    cancel,
    completion,
    delay,
    failure,
    fence,
    missing,
    progress,
    renewal,
    retries,
    revoke,
    timeouts,
    unclaim,
)  # fmt: skip

Call = Callable[[c.ClaimedJob], Any]
HELD: dict[str, Call] = {
    "complete": completion,
    "fail": failure,
    "progress": progress,
    "delay": lambda job: delay(job, START_MS + 10**6),
    "unclaim": unclaim,
    "renew": renewal,
}
"""Every call that a lease holder makes."""


@pytest.fixture(params=HELD)
def held(request: pytest.FixtureRequest) -> Call:
    return HELD[request.param]


# ---- the order of refusals ---------------------------------------------------------------------------


async def test_a_call_for_a_record_that_is_gone_is_told_so(engine: Engine, held: Call) -> None:
    job = await engine.running()
    await engine.complete(job)
    await engine.call(
        c.PurgeArgs(partition=job_partition(job), lane_id="mail", outcome="completed", before_ms=engine.now)
    )
    await engine.refused("execution_not_found", held(job))


def job_partition(job: c.ClaimedJob) -> Any:
    return job.execution_id[: job.execution_id.index("}") + 1]


async def test_after_the_end_a_worker_hears_how_it_ended(engine: Engine, held: Call) -> None:
    job = await engine.running()
    await engine.call(cancel(job.execution_id, "operator_override"))
    assert await engine.refused("terminal", held(job)) == "cancelled"


@pytest.mark.parametrize("part", ["lease_id", "lease_epoch", "attempt_id"])
async def test_each_part_of_the_fence_counts(engine: Engine, held: Call, part: str) -> None:
    """An epoch alone is not enough: a failover that lost writes can hand the same epoch out twice."""
    import msgspec

    job = await engine.running()
    wrong = 1 if part == "lease_epoch" else "w9.s0.0.0"
    await engine.refused("stale_lease", held(msgspec.structs.replace(job, **{part: wrong})))
    assert await engine.state(job.execution_id) == "active"


async def test_a_worker_whose_job_was_requeued_is_stale(engine: Engine, held: Call) -> None:
    job = await engine.running()
    await engine.advance(TTL)
    await engine.tick()
    await engine.refused("stale_lease", held(job))
    (again,) = await engine.claim(worker_instance_id="w2")
    await engine.refused("stale_lease", held(job))
    await engine.call(completion(again))


async def test_a_revoked_worker_hears_that_it_was_revoked(engine: Engine, held: Call) -> None:
    job = await engine.running()
    await engine.call(revoke(job.execution_id))
    await engine.refused("lease_revoked", held(job))


async def test_an_expired_lease_is_refused_before_anybody_sweeps_it(engine: Engine, held: Call) -> None:
    job = await engine.running()
    await engine.advance(TTL)
    assert await engine.refused("lease_expired", held(job)) == str(START_MS + TTL)
    await engine.at(START_MS + TTL - 1)
    await engine.call(held(job))


@pytest.mark.parametrize("make", [completion, failure, lambda job, **o: delay(job, START_MS, **o), renewal])
async def test_without_a_fence_only_an_operator_acts(engine: Engine, make: Any) -> None:
    job = await engine.running()
    await engine.refused("fence_required", make(job, fence=None))
    assert await engine.state(job.execution_id) == "active"


@pytest.mark.parametrize("make", [completion, failure, lambda job, **o: delay(job, START_MS, **o)])
async def test_an_operator_acts_without_a_fence_on_what_runs(engine: Engine, make: Any) -> None:
    job = await engine.running()
    await engine.call(make(job, fence=None, source=OPERATOR))
    assert await engine.state(job.execution_id) != "active"
    waiting = await engine.submit()
    here = {"execution_id": waiting}
    assert await engine.refused("no_active_lease", make(job, fence=None, source=OPERATOR), **here) == "ready"
    await engine.call(cancel(waiting))
    assert await engine.refused("terminal", make(job, fence=None, source=OPERATOR), **here) == "cancelled"
    await engine.refused("execution_not_found", make(job, fence=None, source=OPERATOR), execution_id=missing())


async def test_a_renewal_of_what_is_gone_without_a_fence_is_not_found(engine: Engine) -> None:
    job = await engine.running()
    await engine.refused("execution_not_found", renewal(job, fence=None), execution_id=missing())


# ---- complete ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("result", [None, b"", b"\x00\xff", b"x" * limits.SHORT_RESULT_BYTES, b"x" * 5_000])
async def test_a_result_is_kept_byte_for_byte(engine: Engine, result: bytes | None) -> None:
    job = await engine.running()
    done = await engine.call(completion(job, result_payload=result, result_encoding="json"))
    assert done == c.Completed(job.execution_id, PublicState.COMPLETED, False)
    (outcome,) = (
        await engine.call(c.ReadOutcomesArgs(partition=job_partition(job), items=[c.ExecutionRef(job.execution_id)]))
    ).items
    assert (outcome.result, outcome.has_result, outcome.result_encoding) == (result or b"", result is not None, "json")
    assert (await engine.read(job.execution_id, "result")).result == (result or b"")


async def test_completing_twice_under_one_fence_answers_the_first_outcome(engine: Engine) -> None:
    """The reply may be lost after the write; the second call must neither fail nor change the result."""
    job = await engine.running()
    await engine.complete(job, b"first")
    again = await engine.call(completion(job, result_payload=b"second"))
    assert again == c.Completed(job.execution_id, PublicState.COMPLETED, True)
    assert (await engine.read(job.execution_id, "result")).result == b"first"
    assert await engine.refused("terminal", failure(job)) == "completed"


async def test_a_replayed_answer_writes_so_that_a_wait_for_replicas_means_something(engine: Engine) -> None:
    job = await engine.running()
    await engine.complete(job)
    await engine.complete(job)
    header = await engine.call(c.ReadHeaderArgs(partition=job_partition(job)))
    assert header.fields["replays"] == "1"


@pytest.mark.parametrize("encoding", ["", "two words", "x" * 200])
async def test_an_encoding_that_is_no_name_is_refused_and_the_lease_kept(engine: Engine, encoding: str) -> None:
    job = await engine.running()
    await engine.refused("invalid_input", completion(job), result_encoding=encoding)
    await engine.complete(job)


async def test_a_result_that_is_too_large_is_refused_and_the_lease_kept(engine: Engine) -> None:
    job = await engine.running()
    await engine.refused("payload_too_large", completion(job), result_payload=b"x" * (limits.RESULT_BYTES + 1))
    assert await engine.state(job.execution_id) == "active"


# ---- fail --------------------------------------------------------------------------------------------


async def test_a_failure_without_a_retry_policy_is_final(engine: Engine) -> None:
    job = await engine.running()
    assert await engine.fail(job, "boom", failure_detail="line 7") == c.TerminalFailed(False)
    x = await engine.read(job.execution_id)
    assert (x.texts["reason"], x.texts["category"], x.texts["traceback"]) == ("it broke", "boom", "line 7")
    assert await engine.fail(job, "boom") == c.TerminalFailed(True)


async def test_a_retry_waits_for_its_backoff_and_is_a_new_attempt(engine: Engine) -> None:
    job = await engine.running(policy=retries(2, backoff=FixedBackoff(delay_ms=700)))
    assert await engine.fail(job) == c.RetryScheduled(START_MS + 700, 1, False)
    assert await engine.fail(job) == c.RetryScheduled(START_MS + 700, 1, True)
    await engine.advance(699)
    assert await engine.claim() == []
    await engine.advance(1)
    (job,) = await engine.claim()
    assert (job.attempt_index, job.attempt_type, job.retries, job.crashes) == (1, "retry", 1, 0)
    await engine.fail(job)
    await engine.advance(700)
    (job,) = await engine.claim()
    assert await engine.fail(job) == c.TerminalFailed(False)
    x = await engine.read(job.execution_id, "attempts")
    assert [row.split()[0] + " " + " ".join(row.split()[-2:]) for row in x.attempts] == [
        "0 ended_failure error", "1 ended_failure error",
    ]  # fmt: skip


async def test_a_wish_for_the_delay_beats_the_backoff_not_the_count(engine: Engine) -> None:
    job = await engine.running(policy=retries(1, backoff=FixedBackoff(delay_ms=700)))
    assert (await engine.fail(job, retry_after_ms=5)).delay_until == START_MS + 5
    await engine.advance(5)
    (job,) = await engine.claim()
    assert await engine.fail(job, retry_after_ms=5) == c.TerminalFailed(False)


async def test_only_listed_categories_are_retried(engine: Engine) -> None:
    policy = retries(3, retryable_categories=["net", "timeout"])
    one, two = await engine.running(policy=policy), await engine.running(policy=policy)
    assert isinstance(await engine.fail(one, "net"), c.RetryScheduled)
    assert await engine.fail(two, "error") == c.TerminalFailed(False)


@pytest.mark.parametrize("category", ["fatal", "permanent", "invalid_payload", "unknown_task", "poisoned", "cancelled"])
async def test_some_categories_are_never_retried(engine: Engine, category: str) -> None:
    job = await engine.running(policy=retries(3))
    assert await engine.fail(job, category) == c.TerminalFailed(False)


async def test_the_call_may_bring_a_retry_policy_of_its_own(engine: Engine) -> None:
    job = await engine.running()
    mine = '{"max_retries":1,"backoff":{"type":"fixed","delay_ms":9},"retryable_categories":[]}'
    assert await engine.fail(job, retry_policy_json=mine) == c.RetryScheduled(START_MS + 9, 1, False)


@pytest.mark.parametrize("text", ["{", "7", '{"max_retries":"x"}', '{"retry_policy":{"max_retries":"x"}}'])
async def test_a_retry_policy_that_cannot_be_read_is_refused(engine: Engine, text: str) -> None:
    job = await engine.running()
    await engine.refused("invalid_policy_json", failure(job, retry_policy_json=text))


async def test_bad_input_to_fail_is_refused_and_the_lease_kept(engine: Engine) -> None:
    job = await engine.running()
    await engine.refused("unsupported_policy", failure(job, next_attempt_policy_json="{}"))
    for field, value in [("failure_category", ""), ("failure_category", "a b"), ("failure_category", "x" * 65),
                         ("retry_after_ms", -1), ("retry_after_ms", limits.SPAN_MAX_MS + 1)]:  # fmt: skip
        assert await engine.refused("invalid_input", failure(job), **{field: value}) == field
    assert await engine.state(job.execution_id) == "active"


async def test_long_reasons_are_cut_at_their_bound(engine: Engine) -> None:
    job = await engine.running()
    long = "x" * (limits.REASON_BYTES + 5)
    await engine.call(failure(job), failure_reason=long, failure_detail=long)
    x = await engine.read(job.execution_id)
    assert len(x.texts["reason"]) == len(x.texts["traceback"]) == limits.REASON_BYTES


@pytest.mark.parametrize("jitter", [False, True])
async def test_an_exponential_backoff_grows_to_its_bound_and_jitter_takes_up_to_half(
    engine: Engine, jitter: bool
) -> None:
    backoff = ExponentialBackoff(initial_delay_ms=100, max_delay_ms=1_000, multiplier=2.0, jitter=jitter)
    job = await engine.running(policy=retries(6, backoff=backoff))
    delays = []
    for _ in range(6):
        delays.append((await engine.fail(job)).delay_until - engine.now)
        await engine.advance(delays[-1])
        (job,) = await engine.claim()
    full = [100, 200, 400, 800, 1_000, 1_000]
    if jitter:
        assert all(whole // 2 <= got <= whole for got, whole in zip(delays, full, strict=True)) and delays != full
    else:
        assert delays == full


async def test_jitter_is_drawn_from_the_id_and_the_retry(engine: Engine) -> None:
    """Two executions never march in step, and the same one always waits the same: simulations repeat."""
    backoff = ExponentialBackoff(initial_delay_ms=1_000_000, max_delay_ms=1_000_000, jitter=True)
    id, got = "{fp:0}:00000000-0000-7000-8000-00000000aaaa", []
    for _ in range(2):
        await engine.fresh()
        job = await engine.running(id=id, policy=retries(1, backoff=backoff))
        other = await engine.running(policy=retries(1, backoff=backoff))
        got.append((await engine.fail(job)).delay_until)
        assert (await engine.fail(other)).delay_until != got[-1]
    assert got[0] == got[1]


async def test_a_huge_number_of_retries_does_not_overflow(engine: Engine) -> None:
    backoff = ExponentialBackoff(initial_delay_ms=1_000, max_delay_ms=5_000, multiplier=1_000.0)
    job = await engine.running(policy=retries(4_000_000_000, backoff=backoff))
    await engine.fail(job, retry_after_ms=0)
    await engine.command("HSET", f"ff:{{fp:0}}:x:{job.execution_id[7:]}", "rt", 3_000_000)
    (job,) = await engine.claim()
    assert (await engine.fail(job)).delay_until == engine.now + 5_000


# ---- progress ----------------------------------------------------------------------------------------


async def test_progress_is_stored_for_people(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(progress(job, progress_pct=40, progress_message="on its way"))
    await engine.call(progress(job, progress_message="nearly"))
    x = await engine.read(job.execution_id)
    assert (x.fields["progress"], x.texts["progress"]) == ("40", "nearly")


@pytest.mark.parametrize("pct", [-1, 101])
async def test_progress_beyond_its_range_is_refused(engine: Engine, pct: int) -> None:
    job = await engine.running()
    assert await engine.refused("invalid_input", progress(job), progress_pct=pct) == "progress_pct"


# ---- the attempt's timeout ---------------------------------------------------------------------------


async def test_an_attempt_that_runs_out_of_time_is_a_failure_that_may_be_retried(engine: Engine) -> None:
    job = await engine.running(policy=timeouts(attempt_timeout_ms=1_000) | retries(1, backoff=FixedBackoff(delay_ms=5)))
    assert job.lease_expires_at == job.attempt_deadline_at == START_MS + 1_000
    renewed = await engine.call(renewal(job))
    assert renewed.expires_at == START_MS + 1_000, "a renewal cannot outlive the attempt"
    await engine.advance(1_000)
    await engine.tick()
    assert await engine.state(job.execution_id) == "delayed"
    await engine.advance(5)
    await engine.tick()
    (job,) = await engine.claim()
    assert (job.attempt_type, job.attempt_index, job.crashes) == ("retry", 1, 0)
    await engine.advance(1_000)
    await engine.tick()
    x = await engine.read(job.execution_id)
    assert (x.fields["state"], x.texts["category"]) == ("failed", "timeout")


async def test_the_timeout_of_an_attempt_stands_still_while_its_lease_is_given_up(engine: Engine) -> None:
    job = await engine.running(policy=timeouts(attempt_timeout_ms=1_000))
    await engine.advance(400)
    await engine.call(delay(job, engine.now + 50_000))
    await engine.pass_time(50_000)
    (job,) = await engine.claim()
    assert (job.attempt_index, job.attempt_deadline_at) == (0, engine.now + 600)
    await engine.call(unclaim(job, "refused"))
    (job,) = await engine.claim()
    assert job.attempt_deadline_at == engine.now + 600, (
        "a claim that did not start takes nothing off, and loses nothing"
    )


async def test_the_fence_of_a_job_is_one_string_of_three_words(engine: Engine) -> None:
    job = await engine.running()
    assert fence(job).wire.split() == [job.lease_id, str(job.lease_epoch), job.attempt_id]
