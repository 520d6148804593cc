"""Children over retries, crashes, new runs and replays of their parent: each is made once, and each is found again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ffsdk as ff
from ffcore import flows
from ffcore.contracts.flow import ReadFlowArgs
from ffcore.contracts.reads import ReadExecutionArgs
from ffcore.contracts.spawn import SpawnArgs
from ffcore.errors import rejection
from ffcore.ids import ExecutionId
from ffsdk.forwarding import Forwarding
from ffsdk.testing import Engine
from tests.integration.worker_app import ONCE, SOON, working

# ---- retries, crashes, new runs --------------------------------------------------------------------------


async def test_a_retry_finds_the_same_children(app: ff.App, lane: str) -> None:
    made = list[str]()

    @app.task(lane=lane)
    async def leaf(n: int) -> int:
        made.append(str(n))
        return n

    @app.task(lane=lane, retry=SOON)
    async def parent(_: None, ctx: ff.Context) -> int:
        jobs = await asyncio.gather(*(ctx.spawn(leaf, n) for n in (1, 1, 2)))
        if ctx.attempt < 2:
            raise ValueError("try again")
        return sum([await job.result() for job in jobs])

    async with app.client() as client, working(app):
        assert await (await client.submit(parent)).result(timeout=10) == 4
    assert sorted(made) == ["1", "1", "2"]


async def test_a_new_run_spawns_anew_unless_keys_are_given(app: ff.App, lane: str) -> None:
    made = list[int]()

    @app.task(lane=lane)
    async def leaf(n: int) -> int:
        made.append(n)
        return n

    @app.task(lane=lane)
    async def parent(left: int, ctx: ff.Context) -> int:
        kept, fresh = await ctx.spawn(leaf, 1, key="kept"), await ctx.spawn(leaf, 2)
        await ctx.wait(kept, fresh)
        if left:
            raise ff.ContinueAs(left - 1)
        return 3

    async with app.client() as client, working(app):
        assert await (await client.submit(parent, 2)).result(timeout=10) == 3
    assert sorted(made) == [1, 2, 2, 2]


async def test_a_key_that_stands_for_another_request_is_a_conflict(app: ff.App, lane: str) -> None:
    @app.task(lane=lane)
    async def leaf(n: int) -> int:
        return n

    @app.task(lane=lane, retry=ONCE)
    async def parent(_: None, ctx: ff.Context) -> str:
        first = await ctx.spawn(leaf, 1, key="same")
        with pytest.raises(ff.IdempotencyConflict):
            await ctx.spawn(leaf, 2, key="same")
        again = await ctx.spawn(leaf, 1, key="same")
        assert first == again
        return "told apart"

    async with app.client() as client, working(app):
        assert await (await client.submit(parent)).result(timeout=10) == "told apart"


async def test_a_handler_that_spawns_something_else_the_next_time_is_stopped(app: ff.App, lane: str) -> None:
    @app.task(lane=lane)
    async def leaf(n: int) -> int:
        return n

    @app.task(lane=lane, retry=SOON)
    async def parent(_: None, ctx: ff.Context) -> int:
        job = await ctx.spawn(leaf, ctx.attempt)
        if not ctx.attempt:
            raise ValueError("again")
        return await job.result()

    async with app.client() as client, working(app):
        outcome = await (await client.submit(parent)).outcome(timeout=20)
        assert isinstance(outcome, ff.Failed) and outcome.category == "step_conflict"


async def test_a_crash_at_any_call_changes_neither_the_sum_nor_how_often_children_run_to_their_end() -> None:
    app = ff.App()
    ended = list[int]()

    @app.task
    async def square(n: int, ctx: ff.Context) -> int:
        ended.append(await ctx.step("count", count, n))
        return n * n

    @app.task
    async def total(numbers: list[int], ctx: ff.Context) -> int:
        jobs = [await ctx.spawn(square, n) for n in numbers]
        return sum(await asyncio.gather(*(job.result() for job in jobs)))

    async def count(n: int) -> int:
        return n

    async def sums(eng: Engine) -> None:
        ended.clear()
        job = await eng.client.submit(total, [1, 2, 3])
        assert await job.result() == 14
        flow = await eng.client.backend.call(ReadFlowArgs(flow_id=flows.implicit_flow(job.id)))
        assert (flow.node_count, flow.counts["completed"], flow.public_flow_state) == (4, 4, "completed")
        steps = await job.steps()
        assert [step.kind for step in steps] == ["spawn"] * 3
        for step in steps:
            stored = await eng.client.backend.call(ReadExecutionArgs(execution_id=ExecutionId(step.child or "")))
            assert stored.fields["state"] == "completed"

    report = await Engine(app).crash_everywhere(sums)
    assert "ff_spawn" in report.functions and "ff_move_to_waiting_children" in report.functions


async def test_a_crash_at_any_call_changes_no_choice_a_handler_has_made() -> None:
    """Which of its children had ended is recorded: what follows from it is done alike in every run."""
    app = ff.App()
    told = list[str]()

    @app.task
    async def provider(seconds: int, ctx: ff.Context) -> int:
        await ctx.sleep(seconds)
        return seconds

    async def tell(winners: list[int]) -> None:
        told.append(str(winners))

    @app.task
    async def race(_: None, ctx: ff.Context) -> list[int]:
        jobs = [await ctx.spawn(provider, seconds) for seconds in (60, 10)]
        outcomes = await ctx.wait(ff.any_of(jobs))
        winners = [n for n, outcome in enumerate(outcomes) if outcome is not None]
        await ctx.step("tell", tell, winners)
        await ctx.wait(jobs)
        return winners

    async def runs(eng: Engine) -> None:
        told.clear()
        job = await eng.client.submit(race)
        winners = await job.result()
        assert set(told) == {str(winners)}, "the step was never asked for with another choice"

    await Engine(app).crash_everywhere(runs, limit=150)


# ---- the store and the lease -----------------------------------------------------------------------------


async def test_a_full_store_is_asked_again_under_the_same_lease() -> None:
    """A handler that fails would be retried, and every retry would meet the full store again."""
    app, refused = ff.App(), list[float]()

    @app.task
    async def leaf(n: int) -> int:
        return n

    @app.task(retry=ONCE)
    async def parent(_: None, ctx: ff.Context) -> list[int]:
        host, fence = ctx.durable.host, ctx.fence
        real = host.backend

        class Full(Forwarding):
            async def call(self, args: Any) -> Any:
                if isinstance(args, SpawnArgs) and len(refused) < 3:
                    refused.append(host.clock())
                    raise rejection("store_full", "1000", asked="spawn", about=args.execution_id)
                return await real.call(args)

        host.backend = Full(real)
        try:
            job = await ctx.spawn(leaf, 4)
        finally:
            host.backend = real
        assert ctx.fence == fence and job.created
        return [await job.result(), ctx.attempt]

    async with Engine(app) as eng:
        job = await eng.client.submit(parent)
        assert await job.result() == [4, 0]
    first, second, third = refused
    assert third - second >= 1 <= second - first, "with the pause the store advises"


async def test_a_cancel_ends_a_parent_that_waits_for_room_in_the_store() -> None:
    app = ff.App()

    @app.task
    async def parent(_: None, ctx: ff.Context) -> None:
        host = ctx.durable.host
        real = host.backend

        class Full(Forwarding):
            async def call(self, args: Any) -> Any:
                if isinstance(args, SpawnArgs):
                    raise rejection("store_full", "1000", asked="spawn", about=args.execution_id)
                return await real.call(args)

        host.backend = Full(real)
        try:
            await ctx.spawn("parent", None)
        finally:
            host.backend = real

    async with Engine(app) as eng:
        job = await eng.client.submit(parent)
        await eng.advance(seconds=90)
        assert (await job.status()).state == "active", "for as long as it takes: the lease is renewed meanwhile"
        await job.cancel("enough")
        assert isinstance(await job.outcome(), ff.Cancelled)


async def test_time_spent_waiting_for_children_is_not_the_attempts() -> None:
    app = ff.App()

    @app.task
    async def slow(_: None, ctx: ff.Context) -> int:
        await ctx.sleep(3600)
        return 5

    @app.task(timeout=60)
    async def parent(_: None, ctx: ff.Context) -> int:
        return await (await ctx.spawn(slow)).result() + ctx.attempt

    async with Engine(app) as eng:
        job = await eng.client.submit(parent)
        await eng.advance(seconds=600)
        status, told = await job.status(), await job.explain()
        assert (status.state, status.lease, status.attempt) == ("waiting_children", None, 0)
        [reason] = told.reasons
        assert reason.code == "waiting_for_children" and "(suspended)" in reason.detail, "the child sleeps"
        assert await job.result() == 5


async def test_a_replay_that_goes_on_finds_its_children_and_a_fresh_one_makes_others() -> None:
    app, made = ff.App(), list[int]()

    @app.task
    async def leaf(n: int) -> int:
        made.append(n)
        return n

    @app.task(retry=ONCE)
    async def parent(_: None, ctx: ff.Context) -> int:
        found = await (await ctx.spawn(leaf, 6)).result()
        if len(made) < 2:
            raise ff.Fatal("once more")
        return found

    async with Engine(app) as eng:
        job = await eng.client.submit(parent)
        assert isinstance(await job.outcome(), ff.Failed)
        await job.replay(mode="resume")
        assert isinstance(await job.outcome(), ff.Failed) and made == [6]
        await job.replay(mode="fresh")
        assert await job.result() == 6 and made == [6, 6]


async def test_a_child_that_is_replayed_while_its_parent_waits_is_heard_as_it_ends_then() -> None:
    app, go = ff.App(), list[str]()

    @app.task(retry=ONCE)
    async def flaky(_: None) -> str:
        if not go:
            raise ff.Fatal("not yet")
        return "mended"

    @app.task
    async def slow(_: None, ctx: ff.Context) -> str:
        await ctx.sleep(60)
        return "slow"

    @app.task
    async def parent(_: None, ctx: ff.Context) -> list[str]:
        jobs = [await ctx.spawn(flaky, key="flaky"), await ctx.spawn(slow, key="slow")]
        return [str(outcome.value) for outcome in await ctx.wait(jobs) if isinstance(outcome, ff.Completed)]

    async with Engine(app, auto=False) as eng:
        job = await eng.client.submit(parent)
        await eng.advance(seconds=30)
        assert (await job.status()).state == "waiting_children"
        go.append("now")
        child = eng.client.job(flows.member_id(flows.implicit_flow(job.id), "flaky"), flaky)
        await child.replay()
        assert await eng.run_until(job) == ff.Completed(["mended", "slow"])


async def test_a_parent_that_is_paused_while_it_waits_hears_of_its_children_once_it_is_resumed() -> None:
    app = ff.App()

    @app.task
    async def slow(_: None, ctx: ff.Context) -> int:
        await ctx.sleep(60)
        return 7

    @app.task
    async def parent(_: None, ctx: ff.Context) -> int:
        return await (await ctx.spawn(slow)).result()

    async with Engine(app, auto=False) as eng:
        job = await eng.client.submit(parent)
        await eng.advance(seconds=10)
        await job.pause("lunch")
        await eng.advance(seconds=100)
        assert (await job.status()).blocking_reason == "paused_by_operator"
        await job.resume()
        assert await eng.run_until(job) == ff.Completed(7)


async def test_a_parent_resumed_from_a_pause_before_its_children_have_ended_waits_on() -> None:
    app = ff.App()

    @app.task
    async def slow(_: None, ctx: ff.Context) -> int:
        await ctx.sleep(600)
        return 7

    @app.task
    async def parent(_: None, ctx: ff.Context) -> int:
        return await (await ctx.spawn(slow)).result()

    async with Engine(app, auto=False) as eng:
        job = await eng.client.submit(parent)
        await eng.advance(seconds=10)
        await job.pause("lunch")
        await job.resume()
        await eng.advance(seconds=10)
        assert (await job.status()).state == "waiting_children"
        assert await eng.run_until(job) == ff.Completed(7)
