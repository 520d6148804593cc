"""The tutorial, part 3: looking at jobs and steering many of them."""

from __future__ import annotations

import asyncio

import pytest

import ffsdk as ff
from ffsdk.testing import Engine

app = ff.App()


@app.task(lane="mail")
async def send(to: str, ctx: ff.Context) -> str:
    await ctx.progress(50, "half way")
    await asyncio.sleep(10)
    return to


@app.task(lane="mail")
async def bounce(to: str) -> None:
    raise ff.Fatal("no such person")


@app.task(lane="heavy", requires={"gpu"})
async def train(n: int) -> int:
    return n


async def test_a_status_tells_how_far_a_job_has_come() -> None:
    async with Engine(app, auto=False) as eng:
        job = await eng.client.submit(send, "dana")
        await eng.advance(seconds=5)
        status = await job.status()
        assert (status.state, status.attempts) == ("active", 1)
        assert status.progress == ff.Progress(pct=50, message="half way")
        assert status.lease is not None and status.completed_at is None


async def test_explain_says_why_a_job_does_not_run() -> None:
    async with Engine(app) as eng:
        delayed = await eng.client.submit(send, "dana", delay=60)
        needy = await eng.client.submit(train, 1)
        assert [reason.code for reason in (await delayed.explain()).reasons] == ["waiting_for_delay"]
        [lacking] = (await needy.explain()).reasons
        assert lacking.code == "no_capable_worker" and "gpu" in lacking.detail


async def test_a_worker_with_the_capability_takes_the_job() -> None:
    async with Engine(app, capabilities={"gpu"}) as eng:
        assert await (await eng.client.submit(train, 4)).result() == 4


async def test_jobs_are_listed_by_state_lane_and_tag() -> None:
    async with Engine(app) as eng:
        client = eng.client
        tagged = await client.submit(send, "dana", delay=60, tags={"crm.team": "red"})
        await client.submit(send, "eli", delay=60)
        gone = await client.submit(bounce, "nobody")
        await gone.outcome()
        assert {job async for job in client.jobs(tag=("crm.team", "red"))} == {tagged}
        assert [job async for job in client.jobs(state="failed", lane="mail")] == [gone]
        assert len([job async for job in client.jobs(lane="mail")]) == 3
        assert len([job async for job in client.jobs(limit=2)]) == 2


async def test_many_jobs_are_cancelled_after_a_look_at_them() -> None:
    """Destructive calls that touch many say first what they would do."""
    async with Engine(app) as eng:
        jobs = [await eng.client.submit(send, name, delay=60) for name in ("dana", "eli")]
        preview = await eng.client.cancel_many(state="delayed", lane="mail", dry_run=True)
        assert preview.count == 2 and set(preview.ids) == {job.id for job in jobs} and preview.done == 0
        assert (await eng.client.cancel_many(state="delayed", lane="mail")).done == 2
        assert [await job.outcome() for job in jobs] == [ff.Cancelled(), ff.Cancelled()]


async def test_a_bulk_call_without_a_filter_is_refused() -> None:
    async with Engine(app) as eng:
        with pytest.raises(ff.InvalidArgument, match="every job"):
            await eng.client.cancel_many()


async def test_failed_jobs_are_run_again_together() -> None:
    async with Engine(app) as eng:
        jobs = await eng.client.submit_many(bounce, ["a", "b", "c"])
        for job in jobs:
            await job.outcome()
        assert (await eng.client.replay_many(lane="mail")).done == 3
        assert [(await job.status()).run for job in jobs] == [1, 1, 1]


async def test_ended_jobs_are_forgotten_on_demand() -> None:
    async with Engine(app) as eng:
        job = await eng.client.submit(bounce, "nobody")
        await job.outcome()
        assert (await eng.client.purge_many(lane="mail", dry_run=True)).count == 1
        assert (await eng.client.purge_many(lane="mail")).done == 1
        with pytest.raises(ff.NotFound):
            await job.status()


async def test_a_paused_lane_takes_work_and_starts_none() -> None:
    async with Engine(app, auto=False) as eng:
        lane = eng.client.lane("mail")
        assert (await lane.pause()).complete
        job = await eng.client.submit(send, "dana")
        await eng.advance(seconds=60)
        assert [reason.code for reason in (await job.explain()).reasons] == ["lane_paused"]
        assert (await lane.stats()).depth["waiting"] == 1
        await lane.resume()
        assert await eng.run_until(job) == ff.Completed("dana")


async def test_a_draining_lane_takes_no_new_work() -> None:
    async with Engine(app) as eng:
        await eng.client.lane("mail").drain()
        with pytest.raises(ff.WrongState) as refused:
            await eng.client.submit(send, "dana")
        assert refused.value.code == "lane_closed"


async def test_a_hold_keeps_one_task_from_starting() -> None:
    """The provider is down: hold its task, let the rest go on."""
    async with Engine(app, auto=False) as eng:
        await eng.client.hold(task="bounce", reason="provider down")
        held = await eng.client.submit(bounce, "dana")
        free = await eng.client.submit(send, "eli")
        assert await eng.run_until(free) == ff.Completed("eli")
        assert "held" in [reason.code for reason in (await held.explain()).reasons]
        await eng.client.release(task="bounce")
        assert isinstance(await eng.run_until(held), ff.Failed)


async def test_a_subscription_follows_what_ends_and_can_be_resumed() -> None:
    async with Engine(app) as eng:
        async with eng.client.subscribe("completion", lanes=["mail"]) as events:
            first = await eng.client.submit(bounce, "a")
            event = await anext(events)
            assert (event.execution_id, event.from_state, event.to_state) == (first.id, "active", "failed")
        second = await eng.client.submit(bounce, "b")
        await second.outcome()
        resumed = eng.client.subscribe("completion", after=event.cursor)
        assert (await anext(resumed)).execution_id == second.id
