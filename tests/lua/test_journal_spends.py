"""What a step spends goes with its record: a row of the outbox for each budget, written once, and charged once."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore.contracts.mail import DeliverArgs, Letter
from ffcore.ids import BudgetId, PartitionKey
from ffengine.post import Post
from tests.lua.engine import P0, Engine, wire
from tests.lua.test_journal import key, step

BUDGET = BudgetId("{b:0}:00000000-0000-8000-8000-0000000000b0")
B0 = PartitionKey("{b:0}")


async def with_budget(engine: Engine) -> None:
    await engine.call(c.CreateBudgetArgs(
        budget_id=BUDGET, name="team", scope_type="namespace", scope_id="default", enforcement_mode="record",
        on_hard_limit="hold", on_soft_limit="warn", reset_interval_ms=0, dimensions=["tokens"], hard_limits=[1000],
        soft_limits=[0],
    ))  # fmt: skip


async def usage(engine: Engine) -> dict[str, Any]:
    return (await engine.call(c.ReadBudgetArgs(budget_id=BUDGET))).usage


def spends(job: c.ClaimedJob, amounts: str = "tokens=5", key: str = "") -> str:
    return f"{BUDGET} {key or f'{job.lease_epoch}.1'} {amounts}"


async def owed(engine: Engine) -> list[Any]:
    return (await engine.call(c.ReadOutboxArgs(partition=P0))).rows


async def test_what_a_step_has_spent_is_owed_to_the_budget_with_its_record(engine: Engine) -> None:
    await with_budget(engine)
    await engine.submit()
    (job,) = await engine.claim()
    await engine.call(step(job, spends=spends(job)))
    (row,) = await owed(engine)
    assert (row.target, row.kind) == (B0, "spend")
    assert row.body == f"{BUDGET[6:]} {job.execution_id} {job.lease_epoch} {job.lease_epoch}.1 tokens=5"
    assert await Post(engine.backend).empty(P0) == 1
    assert await usage(engine) == {"tokens": 5}
    assert await owed(engine) == []


async def test_a_record_that_is_sent_again_owes_nothing_more(engine: Engine) -> None:
    await with_budget(engine)
    await engine.submit()
    (job,) = await engine.claim()
    await engine.call(step(job, spends=spends(job)))
    again = await engine.call(step(job, spends=spends(job)))
    assert isinstance(again, c.StepReplayed)
    failed = step(job, "other", status="error", value=b"1 x", spends=spends(job, key="9.2"))
    await engine.call(failed)
    await engine.call(failed)
    assert len(await owed(engine)) == 2
    await Post(engine.backend).empty(P0)
    assert await usage(engine) == {"tokens": 10}


async def test_the_worker_that_also_tells_the_budget_itself_charges_once(engine: Engine) -> None:
    await with_budget(engine)
    await engine.submit()
    (job,) = await engine.claim()
    await engine.call(step(job, spends=spends(job)))
    row = c.SpendRow(BUDGET, job.execution_id, job.lease_epoch, f"{job.lease_epoch}.1", "tokens=5")
    told = await engine.call(c.SpendManyArgs(partition=B0, items=[row]))
    assert told.items[0].state == "ok"
    await Post(engine.backend).empty(P0)
    assert await usage(engine) == {"tokens": 5}


@pytest.mark.parametrize(
    "text",
    ["", "tokens=5", f"{BUDGET} tokens=5", "{q:0}:x 1.1 tokens=5", f"{BUDGET} a/b tokens=5", f"{BUDGET} 1.1 tokens =5",
     f"{BUDGET} {'k' * 65} tokens=5", "\n".join([f"{BUDGET} 1.1 tokens=5"] * 17), f"{BUDGET} 1.1 {'x' * 5000}=1"],
)  # fmt: skip
async def test_spending_that_cannot_be_read_refuses_the_record(engine: Engine, text: str) -> None:
    await engine.submit()
    (job,) = await engine.claim()
    args = c.RecordStepArgs(
        execution_id=job.execution_id, fence=wire(job), step=key(), name="charge", value=b"1", spends=text
    )
    assert await engine.refused("invalid_input", args) == "spends"
    assert await owed(engine) == []


async def test_spending_of_a_budget_that_is_gone_is_taken_for_nothing(engine: Engine) -> None:
    await engine.submit()
    (job,) = await engine.claim()
    letter = Letter(f"{B0}/0/1", "spend", f"{BUDGET[6:]} {job.execution_id} 1 1.1 tokens=5")
    answer = await engine.call(DeliverArgs(partition=B0, source=P0, items=[letter]))
    assert (answer.known, answer.left, answer.wakes) == (0, [], [])
