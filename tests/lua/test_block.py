"""ff_block_route, ff_block_execution, ff_unblock_execution, ff_scan_eligible."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore.states import REASONS
from tests.lua.engine import P0, START_MS, TTL, Engine, cancel, missing, revoke
from tests.lua.test_claim import needs


def block(id: Any, reason: str = "paused_by_operator", detail: str | None = None) -> c.BlockExecutionArgs:
    return c.BlockExecutionArgs(execution_id=id, blocking_reason=reason, blocking_detail=detail)


def unblock(id: Any, expected: str | None = None) -> c.UnblockExecutionArgs:
    return c.UnblockExecutionArgs(execution_id=id, expected_blocking_reason=expected)


def route(id: Any, reason: str = "waiting_for_locality_match") -> c.BlockRouteArgs:
    return c.BlockRouteArgs(
        execution_id=id, lane_id="mail", partition=P0, reason_code=reason, reason_detail="no worker in eu"
    )


@pytest.mark.parametrize("reason", sorted(REASONS["blocked"]))
async def test_every_reason_of_the_contract_blocks_and_lets_go_again(engine: Engine, reason: str) -> None:
    one, two = await engine.submit_many(2)
    assert await engine.call(block(one, reason, "why")) == c.Blocked()
    assert await engine.call(block(one, reason)) == c.Blocked(), "the same again is answered"
    x = await engine.read(one)
    assert (x.fields["state"], x.fields["reason"], x.texts["blocking"]) == ("blocked", reason, "why")
    assert [job.execution_id for job in await engine.claim(2)] == [two]
    assert await engine.call(unblock(one, reason)) == c.Unblocked()
    assert [job.execution_id for job in await engine.claim(2)] == [one]


async def test_an_unblocked_execution_is_back_at_its_place(engine: Engine) -> None:
    one, two = await engine.submit_many(2)
    await engine.call(block(one))
    await engine.call(unblock(one))
    assert [job.execution_id for job in await engine.claim(2)] == [one, two]


async def test_an_interrupted_execution_stays_interrupted_through_a_block(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(revoke(job.execution_id))
    await engine.call(block(job.execution_id))
    await engine.call(unblock(job.execution_id))
    assert await engine.state(job.execution_id) == "reclaimable"
    (again,) = await engine.claim()
    assert again.attempt_type == "reclaim"


async def test_only_what_waits_for_a_worker_is_blocked(engine: Engine) -> None:
    await engine.refused("execution_not_found", block(missing()))
    job = await engine.running()
    assert await engine.refused("execution_not_eligible", block(job.execution_id)) == "active"
    await engine.call(cancel(job.execution_id, "operator_override"))
    assert await engine.refused("terminal", block(job.execution_id)) == "cancelled"
    id = await engine.submit()
    assert await engine.refused("invalid_blocking_reason", block(id), blocking_reason="moonphase") == "moonphase"
    await engine.call(block(id))
    assert await engine.refused("execution_not_eligible", block(id, "waiting_for_quota")) == "blocked"


async def test_an_old_release_does_not_undo_a_new_block(engine: Engine) -> None:
    id = await engine.submit()
    assert await engine.refused("not_blocked", unblock(id)) == "ready"
    await engine.refused("execution_not_found", unblock(missing()))
    await engine.call(block(id, "waiting_for_budget"))
    assert await engine.refused("invalid_blocking_reason", unblock(id, "waiting_for_quota")) == "waiting_for_budget"
    assert await engine.state(id) == "blocked"


async def test_a_route_block_answers_what_it_could_not_do(engine: Engine) -> None:
    id = await engine.submit()
    assert await engine.call(route(missing())) == c.LuaRejected("execution_not_found")
    assert await engine.call(route(id), reason_code="nonsense") == c.LuaRejected("invalid_blocking_reason")
    assert await engine.call(route(id)) == c.RouteBlocked(id)
    assert await engine.call(route(id)) == c.LuaRejected("execution_not_eligible")


async def test_a_blocked_execution_ends_by_deadline_and_by_cancel(engine: Engine) -> None:
    """And leaves nothing behind in the lists of what is blocked."""
    one = await engine.submit(execution_deadline_at=START_MS + 100)
    two = await engine.submit()
    await engine.call(block(one, "waiting_for_capable_worker"))
    await engine.call(block(two))
    await engine.advance(100)
    await engine.tick()
    await engine.call(cancel(two))
    assert [await engine.state(id) for id in (one, two)] == ["expired", "cancelled"]


async def test_a_scan_shows_what_would_be_claimed_in_that_order_and_takes_nothing(engine: Engine) -> None:
    low, high = await engine.submit(priority=-1), await engine.submit(priority=1)
    picky = await engine.submit(policy=needs("gpu"))
    await engine.submit(delay_until=START_MS + 9)
    scan = c.ScanEligibleArgs(lane_id="mail", partition=P0, limit=10)
    assert (await engine.call(scan)).execution_ids == [high, picky, low]
    assert (await engine.call(scan, limit=2)).execution_ids == [high, picky]
    assert (await engine.call(scan, lane_id="none")).execution_ids == []
    assert len(await engine.claim(3)) == 2


@pytest.mark.parametrize("limit", [0, 1_001])
async def test_a_scan_is_bounded(engine: Engine, limit: int) -> None:
    scan = c.ScanEligibleArgs(lane_id="mail", partition=P0, limit=10)
    assert await engine.refused("invalid_input", scan, limit=limit) == "limit"


async def test_a_reclaimable_one_is_eligible(engine: Engine) -> None:
    job = await engine.running()
    await engine.pass_time(TTL)
    scan = c.ScanEligibleArgs(lane_id="mail", partition=P0, limit=10)
    assert (await engine.call(scan)).execution_ids == [job.execution_id]
