"""What stands exactly at a bound is taken: the other side of every test that something past it is refused."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import (
    P0,
    START_MS,
    W0,
    Engine,
    cancel,
    completion,
    delay,
    failure,
    progress,
    renewal,
    retries,
    wire,
)  # fmt: skip
from tests.lua.test_claim import finishing, needs
from tests.lua.test_control import reprioritise
from tests.lua.test_grant import claim, issue, resume
from tests.lua.test_retention import purging

FAR = START_MS + limits.SPAN_MAX_MS


@pytest.mark.parametrize(
    "given",
    [
        {"priority": limits.PRIORITY_MIN}, {"priority": limits.PRIORITY_MAX}, {"delay_until": 0}, {"delay_until": FAR},
        {"policy": {"priority": limits.PRIORITY_MIN}}, {"policy": {"priority": limits.PRIORITY_MAX}},
        {"execution_deadline_at": FAR}, {"execution_deadline_at": 0}, {"version": 1}, {"version": 1_000_000_000},
        {"creator_identity": "x" * limits.KEY_BYTES}, {"payload_encoding": "x" * limits.NAME_BYTES},
        {"execution_kind": "x" * limits.NAME_BYTES}, {"input_payload": b"x" * limits.PAYLOAD_BYTES},
        {"policy": needs(*(f"t{n}" for n in range(limits.CAPABILITIES_N)))},
        {"policy": needs("x" * limits.CAPABILITIES_BYTES)},
        {"tags": {f"a.b{n}": "x" * limits.TAG_VALUE_BYTES for n in range(limits.TAGS_N)}},
    ],
    ids=lambda given: "-".join(given),
)  # fmt: skip
async def test_a_submit_at_a_bound_is_taken(engine: Engine, given: dict[str, Any]) -> None:
    assert isinstance(await engine.call(engine.creation(**given)), c.Created)


async def test_a_row_of_many_at_the_bound_is_taken(engine: Engine) -> None:
    row = c.NewExecution(engine.new_id(), b"d" * 16, b"x" * limits.PAYLOAD_BYTES)
    given: dict[str, Any] = {"namespace": "default", "lane_id": "mail", "execution_kind": "send"}
    (item,) = (await engine.call(c.CreateManyArgs(partition=P0, items=[row], **given))).items
    assert item.state == "created"


@pytest.mark.parametrize("ttl_ms", [limits.LEASE_TTL_MIN_MS, limits.LEASE_TTL_MAX_MS])
async def test_a_lease_of_the_shortest_and_of_the_longest_kind(engine: Engine, ttl_ms: int) -> None:
    await engine.submit()
    name = "w" * limits.WORKER_INSTANCE_BYTES
    (job,) = await engine.claim(limits.ROWS_N, lease_ttl_ms=ttl_ms, worker_instance_id=name)
    assert job.lease_expires_at == engine.now + ttl_ms
    assert (await engine.call(renewal(job, ttl_ms))).expires_at == engine.now + ttl_ms


async def test_a_claim_of_nothing_takes_nothing(engine: Engine) -> None:
    await engine.submit()
    assert await engine.claim(0) == []


async def test_results_at_the_bound_are_kept(engine: Engine) -> None:
    result = b"x" * limits.RESULT_BYTES
    one, other = await engine.running(), await engine.running()
    await engine.complete(one, result)
    rows = [c.Completion(other.execution_id, wire(other), result)]
    done = await engine.call(finishing([], engine.claiming(0), items=rows))
    assert [item.state for item in done.items] == ["completed"]
    assert (await engine.read(other.execution_id, "result")).result == result


async def test_a_short_result_stands_in_the_record_up_to_its_bound(engine: Engine) -> None:
    for n, beside in ((limits.SHORT_RESULT_BYTES, 0), (limits.SHORT_RESULT_BYTES + 1, 1)):
        job = await engine.running()
        await engine.call(completion(job, result_payload=b"x" * n))
        assert len(await engine.command("KEYS", f"ff:{P0}:r:*")) == beside


@pytest.mark.parametrize("wish_ms", [0, limits.SPAN_MAX_MS])
async def test_a_failure_says_as_much_as_it_may(engine: Engine, wish_ms: int) -> None:
    job = await engine.running(policy=retries(1))
    answer = await engine.call(failure(job, failure_category="c" * 64, retry_after_ms=wish_ms))
    assert answer == c.RetryScheduled(engine.now + wish_ms, 1, False)


@pytest.mark.parametrize("pct", [0, 100])
async def test_progress_from_nothing_to_all(engine: Engine, pct: int) -> None:
    job = await engine.running()
    assert await engine.call(progress(job, progress_pct=pct)) == c.Updated()
    assert (await engine.read(job.execution_id)).fields["progress"] == str(pct)


@pytest.mark.parametrize("grace_ms", [0, limits.SPAN_MAX_MS])
async def test_a_cancel_may_wait_as_long_as_anything(engine: Engine, grace_ms: int) -> None:
    job = await engine.running()
    asked = await engine.call(cancel(job.execution_id, grace_ms=grace_ms))
    assert isinstance(asked, c.CancelRequested)
    assert (await engine.timers())[f"cancel_grace:{job.execution_id.rpartition(':')[2]}"] == engine.now + grace_ms


async def test_the_furthest_delay_the_longest_reason_and_the_outermost_priorities(engine: Engine) -> None:
    job = await engine.running()
    assert isinstance(await engine.call(delay(job, FAR)), c.Delayed)
    id = await engine.submit()
    for priority in (limits.PRIORITY_MIN, limits.PRIORITY_MAX):
        await engine.call(reprioritise(id, priority))
        assert (await engine.read(id)).fields["priority"] == str(priority)
    assert isinstance(await engine.call(c.ExpireExecutionArgs(execution_id=id, expire_reason="r" * 64)), c.Expired)


@pytest.mark.parametrize("ttl_ms", [1, limits.GRANT_TTL_MAX_MS])
async def test_a_grant_and_its_claim_at_their_bounds(engine: Engine, ttl_ms: int) -> None:
    worker = "k" * 48
    for lease_ttl_ms in (limits.LEASE_TTL_MIN_MS, limits.LEASE_TTL_MAX_MS):
        id = await engine.submit()
        tokens = frozenset(f"t{n}" for n in range(limits.CAPABILITIES_N))
        await engine.call(issue(id, worker_id=worker, grant_ttl_ms=ttl_ms, worker_capabilities=tokens))
        taken = await engine.call(
            claim(
                id, worker_id=worker, lease_id="l" * limits.LEASE_ID_BYTES, attempt_id="a" * limits.LEASE_ID_BYTES,
                lease_ttl_ms=lease_ttl_ms, attempt_timeout_ms=limits.SPAN_MAX_MS, execution_deadline_at=FAR,
            )
        )  # fmt: skip
        assert taken.execution.lease_expires_at == engine.now + lease_ttl_ms


async def test_what_is_left_of_an_attempt_at_its_bounds(engine: Engine) -> None:
    for left_ms in (0, limits.SPAN_MAX_MS):
        job = await engine.running()
        await engine.call(delay(job, engine.now))
        await engine.tick()
        await engine.call(issue(job.execution_id))
        answer = await engine.call(resume(job.execution_id, remaining_attempt_timeout_ms=left_ms))
        assert isinstance(answer, c.ResumedClaimed)


async def test_a_worker_says_as_much_as_it_may(engine: Engine) -> None:
    for info, ttl_ms in ((b"x" * (16 << 10), limits.LEASE_TTL_MAX_MS), (b"", 0)):
        args = c.RegisterWorkerArgs(partition=W0, worker_instance_id="w1", info=info, ttl_ms=ttl_ms)  # type: ignore[arg-type]
        assert isinstance(await engine.call(args), c.Registered)


@pytest.mark.parametrize("limit", [1, limits.PAGE_MAX_N])
async def test_the_smallest_and_the_largest_piece(engine: Engine, limit: int) -> None:
    await engine.submit()
    assert (await engine.call(purging(limit=limit))).execution_ids == []
    assert (await engine.tick(limit=limit)).mine
