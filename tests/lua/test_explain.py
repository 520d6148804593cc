"""Why an execution does not run: what is told is what the next claim does, and telling it changes nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import admission, views
from ffcore.ids import BudgetId
from tests.lua import invariants
from tests.lua.engine import P0, START_MS, Engine, cancel, lane_told, missing, retries, wire
from tests.lua.test_claim import needs

BUDGET = BudgetId("{b:0}:00000000-0000-8000-8000-0000000000b1")
QUOTA = "{q:0}:00000000-0000-8000-8000-0000000000a1"
PAID = admission.BudgetLine(BUDGET, "hold", {"tokens": "5"}).text()


async def explained(engine: Engine, id: Any) -> c.Explained:
    """The answer; the store is as it was before."""
    before = await invariants.read_store(engine.command)
    found = await engine.call(c.ExplainArgs(execution_id=id))
    assert await invariants.read_store(engine.command) == before
    return found


async def codes(engine: Engine, id: Any) -> list[str]:
    return [verdict.code for verdict in (await explained(engine, id)).verdicts]


async def refused(engine: Engine, kind: str = "b", resource: str = BUDGET, **options: Any) -> Any:
    """A job that was claimed and not admitted: its queue, or its lane, is halted for ten seconds."""
    options = {"admission": PAID} | options if kind == "b" else options
    job = await engine.running(**options)
    row = c.Refusal(job.execution_id, wire(job), resource, kind, 1, engine.now + 10_000, "tokens 5 of 5")  # type: ignore[arg-type]
    answer = await engine.call(c.RefuseManyArgs(partition=P0, items=[row]))
    assert answer.items[0].state == "refused"
    return job.execution_id


async def ready(engine: Engine) -> Any:
    return await engine.submit()


async def paused(engine: Engine) -> Any:
    id = await engine.submit()
    await engine.call(lane_told(state="paused"))
    return id


async def disabled(engine: Engine) -> Any:
    id = await engine.submit()
    await engine.call(lane_told(state="disabled"))
    return id


async def draining(engine: Engine) -> Any:
    id = await engine.submit()
    await engine.call(lane_told(state="draining"))
    return id


async def held(engine: Engine) -> Any:
    id = await engine.submit(tags={"shop.tenant": "t1"})
    await engine.call(c.HoldArgs(partition=P0, what="tag:shop.tenant=t1", reason="unpaid"))
    return id


async def held_task(engine: Engine) -> Any:
    id = await engine.submit()
    await engine.call(c.HoldArgs(partition=P0, what="task:send", reason=""))
    return id


async def overdue(engine: Engine) -> Any:
    id = await engine.submit(execution_deadline_at=START_MS + 100)
    await engine.advance(100)
    return id


async def without_budget(engine: Engine) -> Any:
    return await refused(engine)


async def without_lane_quota(engine: Engine) -> Any:
    await engine.call(lane_told(quota=QUOTA))
    return await refused(engine, "l", QUOTA)


async def delayed(engine: Engine) -> Any:
    return await engine.submit(delay_until=START_MS + 1_000)


async def capable(engine: Engine) -> Any:
    return await engine.submit(policy=needs("gpu"))


SITUATIONS: list[tuple[Callable[[Engine], Awaitable[Any]], list[str], str]] = [
    (ready, [], "active"),
    (paused, ["lane_paused"], "ready"),
    (disabled, ["lane_disabled"], "ready"),
    (draining, [], "active"),
    (held, ["held"], "blocked"),
    (held_task, ["held"], "blocked"),
    (overdue, ["expired"], "expired"),
    (without_budget, ["waiting_for_budget"], "ready"),
    (without_lane_quota, ["waiting_for_quota"], "ready"),
    (delayed, [], "delayed"),
    (capable, [], "active"),
]


@pytest.mark.parametrize(("make", "why", "then"), SITUATIONS, ids=[make.__name__ for make, *_ in SITUATIONS])
async def test_what_is_told_is_what_the_next_claim_does(
    engine: Engine, make: Callable[[Engine], Awaitable[Any]], why: list[str], then: str
) -> None:
    id = await make(engine)
    assert await codes(engine, id) == why
    sets = [row.digest for row in (await engine.call(c.ListCapabilitySetsArgs(partition=P0, lanes=["mail"]))).sets]
    await engine.claim(capability_sets=sets)
    assert await engine.state(id) == then


async def test_of_a_cancelled_flow_nothing_more_starts(engine: Engine) -> None:
    flow = f"{P0}:{'0' * 8}-0000-7000-8000-00000000f10a"
    await engine.call(c.CreateFlowArgs(flow_id=flow, flow_kind="nightly", namespace="default"))  # type: ignore[arg-type]
    id, begun = await engine.submit(), await engine.submit(policy=retries(1))
    for one in (id, begun):
        await engine.call(c.AddExecutionToFlowArgs(flow_id=flow, execution_id=one))  # type: ignore[arg-type]
    assert await codes(engine, id) == []
    await engine.call(c.CancelFlowArgs(flow_id=flow, reason="no", cancellation_policy="flow_only"))  # type: ignore[arg-type]
    (verdict,) = (await explained(engine, id)).verdicts
    assert (verdict.code, verdict.detail) == ("flow_cancelled", "nothing more of its flow starts")
    assert await engine.claim(2) == []
    assert await engine.state(id) == "blocked"


async def test_a_halt_tells_what_it_waits_for_and_until_when(engine: Engine) -> None:
    id = await refused(engine)
    found = await explained(engine, id)
    assert found.verdicts == [
        c.Verdict("waiting_for_budget", "tokens 5 of 5", START_MS + 10_000, "b " + BUDGET.split(":")[-1])  # type: ignore[arg-type]
    ]
    assert (found.admission, found.lane_quota, found.state) == (PAID, "", "ready")
    stored = await engine.read(id)
    halt = views.halt_of(stored)
    assert halt == views.Halt("b", BUDGET.split(":")[-1], START_MS + 10_000, "tokens 5 of 5")
    state = views.state_of(stored)
    assert (state.public_state.value, state.blocking_reason.value, state.eligibility_state.value) == (
        "rate_limited", "waiting_for_budget", "blocked_by_budget",
    )  # fmt: skip
    assert views.blocking_detail(stored) == "tokens 5 of 5"


async def test_a_halt_of_the_lane_is_one_of_each_of_its_jobs(engine: Engine) -> None:
    await engine.call(lane_told(quota=QUOTA))
    await refused(engine, "l", QUOTA)
    plain, other = await engine.submit(), await engine.submit(lane_id="other")
    assert await codes(engine, plain) == ["waiting_for_quota"]
    assert views.state_of(await engine.read(plain)).blocking_reason.value == "waiting_for_quota"
    assert await codes(engine, other) == []
    await engine.call(lane_told(quota=""))
    assert await codes(engine, plain) == []
    assert len(await engine.claim(9)) == 2


async def test_a_lane_tells_what_of_it_is_halted(engine: Engine) -> None:
    await engine.submit_many(2)
    await engine.claim(2)
    await refused(engine)
    await engine.submit_many(3)
    await engine.submit(admission=PAID)
    counts = await engine.call(c.LaneStatsArgs(partition=P0, lane_id="mail"))  # type: ignore[arg-type]
    assert (counts.counts["ready"], counts.held) == (5, 2)
    (halt,) = counts.halts
    assert (halt.kind, halt.resource, halt.until, halt.detail, halt.jobs) == (
        "b", BUDGET.split(":")[-1], START_MS + 10_000, "tokens 5 of 5", 2,
    )  # fmt: skip
    assert counts.oldest_created_at == START_MS
    await engine.call(lane_told(quota=QUOTA))
    await refused(engine, "l", QUOTA, lane_id="mail", priority=50)
    counts = await engine.call(c.LaneStatsArgs(partition=P0, lane_id="mail"))  # type: ignore[arg-type]
    assert counts.held == counts.counts["ready"] == 6
    assert [(one.admission, one.kind, one.jobs) for one in counts.halts] == [("-", "l", 6)]


async def test_a_place_in_line_counts_what_comes_before_it(engine: Engine) -> None:
    ids = await engine.submit_many(3)
    urgent = await engine.submit(priority=9)
    capable = await engine.submit(policy=needs("gpu"), priority=20)
    for id, ahead in ((capable, 0), (urgent, 1), (ids[0], 2), (ids[2], 4)):
        found = await explained(engine, id)
        assert (found.ahead, found.ready) == (ahead, 5)


async def test_halted_queues_stand_before_nobody(engine: Engine) -> None:
    first = await refused(engine, priority=50)
    plain = await engine.submit()
    assert (await explained(engine, plain)).ahead == 0
    assert (await explained(engine, first)).ahead == 0


async def test_what_runs_waits_or_has_ended_is_not_in_line(engine: Engine) -> None:
    job = await engine.running()
    found = await explained(engine, job.execution_id)
    assert (found.state, found.verdicts, found.ahead, found.ready) == ("active", [], -1, 0)
    await engine.complete(job)
    assert (await explained(engine, job.execution_id)).state == "completed"
    id = await engine.submit(delay_until=START_MS + 5_000)
    assert (await explained(engine, id)).ahead == -1
    await engine.call(cancel(id))
    assert (await explained(engine, id)).state == "cancelled"


async def test_an_execution_nobody_knows_is_not_explained(engine: Engine) -> None:
    await engine.refused("execution_not_found", c.ExplainArgs(execution_id=missing()))
