"""ff_hold, ff_release, ff_list_holds: the kill switch by task and by tag."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import P0, START_MS, Engine, cancel, revoke


def hold(what: str = "task:send") -> c.HoldArgs:
    return c.HoldArgs(partition=P0, what=what, reason="bad release")


def release(what: str = "task:send") -> c.ReleaseArgs:
    return c.ReleaseArgs(partition=P0, what=what)


async def drained(engine: Engine, n: int = 200) -> list[Any]:
    """Claim until there is nothing more."""
    got: list[Any] = []
    while True:
        answer = await engine.call(engine.claiming(n))
        got += [job.execution_id for job in answer.jobs]
        if not answer.again and not answer.jobs:
            return got


async def test_held_work_does_not_start_and_everything_else_does(engine: Engine) -> None:
    held = [await engine.submit(tags={"shop.tenant": "acme"}), await engine.submit(execution_kind="scan")]
    free = [await engine.submit(), await engine.submit(tags={"shop.tenant": "other"})]
    assert await engine.call(hold("tag:shop.tenant=acme")) == c.Held()
    assert await engine.call(hold("task:scan")) == c.Held()
    assert await engine.call(hold("task:scan")) == c.AlreadyHeld()
    assert await drained(engine) == free
    assert {(await engine.read(id)).fields["reason"] for id in held} == {"paused_by_operator"}
    listed = (await engine.call(c.ListHoldsArgs(partition=P0))).items
    assert [(h.what, h.reason) for h in listed] == [
        ("tag:shop.tenant=acme", "bad release"),
        ("task:scan", "bad release"),
    ]


async def test_a_claim_skips_a_bounded_number_of_held_jobs_and_says_again(engine: Engine) -> None:
    await engine.submit_many(20)
    free = await engine.submit(execution_kind="scan")
    await engine.call(hold())
    answer = await engine.call(engine.claiming(1))
    assert (answer.jobs, answer.again) == ([], True)
    answer = await engine.call(engine.claiming(30))
    assert answer.again
    assert await drained(engine) == [free]


async def test_a_release_lets_them_go_at_their_old_places(engine: Engine) -> None:
    ids = await engine.submit_many(3)
    await engine.call(hold())
    assert await drained(engine) == []
    later = await engine.submit(execution_kind="scan")
    assert await engine.call(release()) == c.ReleasedHold()
    assert await engine.call(release()) == c.NotHeld()
    await engine.tick()
    assert [job.execution_id for job in await engine.claim(9)] == [*ids, later]


async def test_what_two_holds_keep_stays_until_both_are_gone(engine: Engine) -> None:
    id = await engine.submit(tags={"a.b": "c"})
    await engine.call(hold())
    await engine.call(hold("tag:a.b=c"))
    await drained(engine)
    await engine.call(release())
    await engine.tick()
    assert await engine.state(id) == "blocked"
    await engine.call(release("tag:a.b=c"))
    await engine.tick()
    assert await engine.state(id) == "ready"


async def test_what_another_hold_keeps_does_not_hide_what_is_free(engine: Engine) -> None:
    """Hundreds that stay held may stand in front of those a release frees."""
    await engine.submit_many(limits.ROWS_N + 30)
    await engine.submit_many(limits.ROWS_N + 30, execution_kind="scan")
    await engine.call(hold())
    await engine.call(hold("task:scan"))
    await drained(engine)
    assert await engine.command("ZCARD", f"ff:{P0}:held") == 2 * limits.ROWS_N + 60
    await engine.call(release("task:scan"))
    for _ in range(10):
        await engine.advance(10)
        await engine.tick()
    assert not any(member.startswith("release") for member in await engine.timers())
    assert len(await drained(engine)) == limits.ROWS_N + 30
    await engine.call(release())
    for _ in range(10):
        await engine.tick()
    assert len(await drained(engine)) == limits.ROWS_N + 30
    assert not any(member.startswith("release") for member in await engine.timers())


async def test_an_interrupted_one_is_held_and_let_go_as_interrupted(engine: Engine) -> None:
    job = await engine.running()
    await engine.call(revoke(job.execution_id))
    await engine.call(hold())
    await drained(engine)
    assert await engine.state(job.execution_id) == "blocked"
    await engine.call(release())
    await engine.tick()
    assert await engine.state(job.execution_id) == "reclaimable"


async def test_an_operators_block_of_one_execution_is_not_released_with_a_hold(engine: Engine) -> None:
    one, two = await engine.submit_many(2)
    await engine.call(c.BlockExecutionArgs(execution_id=one, blocking_reason="paused_by_operator"))
    await engine.call(hold())
    await drained(engine)
    await engine.call(release())
    await engine.tick()
    assert [await engine.state(id) for id in (one, two)] == ["blocked", "ready"]


@pytest.mark.parametrize("end", ["cancel", "deadline", "unblock"])
async def test_what_ends_while_held_leaves_no_trace_among_the_held(engine: Engine, end: str) -> None:
    id = await engine.submit(execution_deadline_at=START_MS + 500)
    await engine.call(hold())
    await drained(engine)
    match end:
        case "cancel":
            await engine.call(cancel(id))
        case "deadline":
            await engine.pass_time(500)
        case _:
            await engine.call(c.UnblockExecutionArgs(execution_id=id))
    assert await engine.command("EXISTS", f"ff:{P0}:held") == 0


@pytest.mark.parametrize(
    "what", ["", "send", "task:", "task:a b", "tag:x=1", "tag:a.b", "task:" + "x" * 600, "lane:mail"]
)
async def test_only_tasks_and_tags_are_held(engine: Engine, what: str) -> None:
    await engine.refused("invalid_input", hold(what))
    await engine.refused("invalid_input", release(what))


async def test_the_number_of_holds_is_bounded(engine: Engine) -> None:
    for n in range(limits.HOLDS_N):
        await engine.call(hold(f"task:t{n}"))
    assert await engine.refused("too_many_names", hold("task:more")) == "holds"
    await engine.call(release("task:t0"))
    await engine.call(hold("task:more"))
