"""ff_await: clients are told of an end once, and never miss one."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import P0, Engine, cancel, missing, retries


def waiting(ids: list[Any], client: str = "c1") -> c.AwaitArgs:
    return c.AwaitArgs(partition=P0, client=client, items=[c.ExecutionRef(id) for id in ids])


def uuid(id: str) -> str:
    return id.partition(":")[2].partition(":")[2]


async def listening(engine: Engine, *clients: str) -> Any:
    return await engine.listen(*[engine.backend.client_channel(P0, client) for client in clients])


async def test_a_client_reads_the_states_and_is_told_of_the_ends(engine: Engine) -> None:
    done, running, ready = await engine.running(), await engine.running(), await engine.submit()
    await engine.complete(done)
    ear = await listening(engine, "c1")
    refs = [done.execution_id, running.execution_id, ready, missing(), "{fp:1}:00000000-0000-7000-8000-000000000000"]
    assert (await engine.call(waiting(refs))).states == ["completed", "active", "ready", "unknown", "unknown"]
    await engine.complete(running)
    await engine.call(cancel(ready))
    assert await ear.heard() == [
        ("c1", f"{uuid(running.execution_id)} completed"), ("c1", f"{uuid(ready)} cancelled"),
    ]  # fmt: skip


async def test_ends_of_one_call_come_as_one_message(engine: Engine) -> None:
    ids = [await engine.submit(execution_deadline_at=engine.now + 5) for _ in range(3)]
    ear = await listening(engine, "c1")
    await engine.call(waiting(ids))
    await engine.advance(5)
    await engine.tick()
    ((_, text),) = await ear.heard()
    assert sorted(text.split("\n")) == sorted(f"{uuid(id)} expired" for id in ids)


async def test_every_client_is_told_once_however_often_it_asked(engine: Engine) -> None:
    job = await engine.running()
    ear = await listening(engine, "c1", "c2", "c3")
    for client in ("c1", "c2", "c3", "c2", "c1"):
        await engine.call(waiting([job.execution_id], client))
    await engine.complete(job)
    assert sorted(await ear.heard()) == [(name, f"{uuid(job.execution_id)} completed") for name in ("c1", "c2", "c3")]


async def test_a_client_beside_the_first_moves_up_and_is_still_told_once(engine: Engine) -> None:
    """When the first registration has lapsed, a client from beside it takes its place; both places must not tell."""
    job = await engine.running(policy={"lease_ms": 10**6})
    ear = await listening(engine, "c1", "c2")
    await engine.call(waiting([job.execution_id], "c1"))
    await engine.advance(30_000)
    await engine.call(waiting([job.execution_id], "c2"))
    await engine.advance(limits.WAITER_MS - 20_000)
    await engine.call(waiting([job.execution_id], "c2"))
    await engine.complete(job)
    assert await ear.heard() == [("c2", f"{uuid(job.execution_id)} completed")]


async def test_a_registration_lapses_and_is_renewed_by_asking_again(engine: Engine) -> None:
    one, two = await engine.running(policy={"lease_ms": 10**6}), await engine.running(policy={"lease_ms": 10**6})
    ear = await listening(engine, "c1", "c2")
    for client in ("c1", "c2"):
        await engine.call(waiting([one.execution_id, two.execution_id], client))
    await engine.pass_time(limits.WAITER_MS - 1)
    for client in ("c1", "c2"):
        await engine.call(waiting([two.execution_id], client))
    await engine.pass_time(2_000)
    await engine.complete(one)
    await engine.complete(two)
    assert sorted(await ear.heard()) == [(name, f"{uuid(two.execution_id)} completed") for name in ("c1", "c2")]
    assert await engine.command("KEYS", "*:w:*") == []


async def test_a_retry_is_not_an_end(engine: Engine) -> None:
    job = await engine.running(policy=retries(1))
    ear = await listening(engine, "c1")
    await engine.call(waiting([job.execution_id]))
    await engine.fail(job)
    assert await ear.heard() == []


@pytest.mark.parametrize("client", ["", "a b", "x" * 41])
async def test_a_client_name_that_cannot_be_a_channel_is_refused(engine: Engine, client: str) -> None:
    assert await engine.refused("invalid_input", waiting([await engine.submit()], client)) == "client"


async def test_waiters_of_what_is_purged_leave_nothing(engine: Engine) -> None:
    job = await engine.running()
    for client in ("c1", "c2"):
        await engine.call(waiting([job.execution_id], client))
    await engine.complete(job)
    await engine.call(c.PurgeArgs(partition=P0, lane_id="mail", outcome="completed", before_ms=engine.now))
    await engine.pass_time(limits.WAITER_MS + 2_000)
    assert await engine.command("KEYS", "*:w:*") == []
