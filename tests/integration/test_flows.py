"""Flows as wholes: submitted once, found again, cancelled, replayed, awaited, on both kinds of store."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

import ffsdk as ff
from ffsdk import waiters
from ffsdk.task import Task
from ffsdk.testing import Engine
from tests.integration.flow_run import ONCE, STORES, Run, name_of


@pytest.fixture(params=STORES)
def run(request: pytest.FixtureRequest) -> Run:
    return Run.of(request)


# ---- the whole ---------------------------------------------------------------------------------------------


async def test_the_same_graph_under_the_same_key_is_the_same_flow(run: Run) -> None:
    began = Counter[str]()

    @run.task
    async def work(name: str) -> str:
        began[name] += 1
        return name

    async with run.engine() as eng:
        client = eng.client

        async def make(*names: str) -> ff.Flow:
            async with client.flow("nightly", "2026-11-21") as flow:
                last: list[Any] = []
                for name in names:
                    last = [flow.add(work, name, after=last, delay=0.01)]
            return flow

        first, again = await make("a", "b"), await make("a", "b")
        assert (first.created, again.created) == (True, False) and first == again
        assert (await again.outcome(10)).state == "completed"
        assert (await make("a", "b")).created is False, "also once it has ended"
        with pytest.raises(ff.IdempotencyConflict):
            await make("a", "c")
        assert began == {"a": 1, "b": 1}


async def test_a_block_left_by_an_error_leaves_nothing(run: Run) -> None:
    @run.task
    async def work() -> None: ...

    async with run.engine() as eng:
        with pytest.raises(ZeroDivisionError):
            async with eng.client.flow("broken", "k") as flow:
                flow.add(work)
                raise ZeroDivisionError
        with pytest.raises(ff.NotFound):
            await eng.client.flow_by_id(flow.id).status()
        with pytest.raises(ff.NotFound):
            await eng.client.flow_by_id(flow.id).outcome(10)
        assert [job async for job in eng.client.jobs()] == []


async def test_a_graph_of_several_chunks_starts_as_one(run: Run) -> None:
    @run.task
    async def work(n: int) -> int:
        return n

    @run.task
    async def last(ns: list[int]) -> int:
        return sum(ns)

    async with run.engine() as eng:
        async with eng.client.flow("large") as flow:
            rows = [flow.add(work, n) for n in range(450)]
            sums = [flow.add(last, after=rows[at : at + 90]) for at in range(0, 450, 90)]
            total = flow.add(last, after=sums)
        assert await total.result(60) == sum(range(450))
        members = [member async for member in flow.nodes()]
        assert [member.number for member in members] == list(range(1, 457))
        assert len(members[-1].edges) == 5 and members[-1].group == "all_of"
        assert (await flow.outcome(10)).counts["completed"] == 456


async def test_a_node_by_name_and_one_with_options_of_its_own(run: Run) -> None:
    @run.task
    async def plain(n: int) -> int:
        return n

    @run.task
    async def tagged(n: int, ctx: ff.Context) -> list[Any]:
        return [n, dict(ctx.tags)]

    del plain, tagged
    async with run.engine() as eng:
        async with eng.client.flow("by-name", tags={"shop.tenant": "t1"}) as flow:
            first = flow.add("plain", 7, delay=1)
            second = flow.add("tagged", after=first, tags={"a.b": "c"}, priority=9, deadline=600)
        assert await second.result(20) == [7, {"a.b": "c"}]
        status = await second.status()
        assert (status.priority, status.deadline_at is not None, status.lane) == (9, True, run.lane)
        assert await flow.set_tags({"shop.place": "x"}) == 2
        assert (await flow.status()).tags == {"shop.tenant": "t1", "shop.place": "x"}
        with pytest.raises(ff.Rejected) as unknown:
            async with eng.client.flow("unknown") as other:
                other.add("nowhere", 1)
        assert unknown.value.code == "unknown_task"


async def test_flows_are_found_by_id_and_by_state(run: Run) -> None:
    @run.task(retry=ONCE)
    async def work(good: bool) -> None:
        if not good:
            raise ff.Fatal("bad")

    async with run.engine() as eng:
        flows: list[ff.Flow] = []
        for good in (True, True, False):
            async with eng.client.flow(f"good {good}") as flow:
                flow.add(work, good)
            await flow.outcome(10)
            flows.append(flow)
        found = [flow async for flow in eng.client.flows()]
        assert {flow.id for flow in found} == {flow.id for flow in flows}
        assert {flow.name for flow in found} == {"good True", "good False"}
        assert all(flow.info is not None and flow.info.ended for flow in found)
        assert [flow async for flow in eng.client.flows("failed")] == flows[2:]
        assert len([flow async for flow in eng.client.flows("completed", 1)]) == 1
        assert [flow async for flow in eng.client.flows("active")] == []
        handle = eng.client.flow_by_id(flows[0].id)
        assert (await handle.outcome(10)).state == "completed" and not handle.created
        with pytest.raises(ff.InvalidArgument, match="use one of"):
            [flow async for flow in eng.client.flows("waiting")]


# ---- cancelling and replaying ------------------------------------------------------------------------------


async def test_a_cancelled_flow_has_ended_when_its_last_job_has(run: Run) -> None:
    began = asyncio.Event()

    @run.task
    async def slow() -> None:
        began.set()
        await asyncio.sleep(3_600)

    @run.task
    async def after() -> None: ...

    async with run.engine() as eng:
        async with eng.client.flow("cancelled") as flow:
            running = flow.add(slow)
            waiting = flow.add(after, after=running)
        async with asyncio.timeout(10):
            await began.wait()
        with pytest.raises(TimeoutError):
            await flow.outcome(0)
        assert await flow.cancel("enough") == "scheduled"
        outcome = await flow.outcome(30)
        assert (outcome.state, outcome.counts["cancelled"]) == ("cancelled", 2)
        assert (await flow.status()).cancel_reason == "enough"
        for job in (running, waiting):
            assert isinstance(await job.outcome(10), ff.Cancelled)
        with pytest.raises(ff.Rejected) as refused:
            await flow.replay()
        assert refused.value.code == "flow_already_terminal"


async def test_cancelling_what_is_pending_lets_the_rest_finish(run: Run) -> None:
    began, go_on = asyncio.Event(), asyncio.Event()

    @run.task
    async def slow() -> str:
        began.set()
        await go_on.wait()
        return "finished"

    @run.task
    async def after(_: str) -> None: ...

    async with run.engine() as eng:
        async with eng.client.flow("pending") as flow:
            running = flow.add(slow)
            waiting = flow.add(after, after=running)
        async with asyncio.timeout(10):
            await began.wait()
        await flow.cancel("enough", policy="cancel_pending")
        assert isinstance(await waiting.outcome(10), ff.Cancelled)
        go_on.set()
        assert await running.result(10) == "finished"
        assert (await flow.outcome(10)).state == "cancelled"


async def test_cancelling_waits_if_asked_to(run: Run) -> None:
    @run.task
    async def later() -> None: ...

    async with run.engine() as eng:
        async with eng.client.flow("waits") as flow:
            for _ in range(3):
                flow.add(later, delay=3_600)
        assert await flow.cancel("enough", wait=True) == "cancelled"
        assert (await flow.outcome(10)).counts["cancelled"] == 3
        async with eng.client.flow("ended") as ended:
            ended.add(later)
        await ended.outcome(10)
        assert await ended.cancel() == "already_ended"


async def test_a_replay_reopens_what_was_skipped(run: Run) -> None:
    broken, ran = True, Counter[str]()

    @run.task(retry=ONCE)
    async def load(name: str) -> str:
        ran[name] += 1
        if name == "bad" and broken:
            raise ff.Fatal("down")
        return name

    @run.task
    async def merge(names: list[str]) -> str:
        return "+".join(names)

    async with run.engine() as eng:
        async with eng.client.flow("again") as flow:
            loads = [flow.add(load, name) for name in ("good", "bad")]
            merged = flow.add(merge, after=loads)
        outcome = await flow.outcome(10)
        assert (outcome.state, outcome.counts["failed"], outcome.counts["skipped"]) == ("failed", 1, 1)
        broken = False
        done = await flow.replay()
        assert (done.ids, done.done, done.refused) == ([loads[1].id], 1, {})
        assert await merged.result(10) == "good+bad"
        assert (await flow.outcome(10)).state == "completed"
        assert ran == {"good": 1, "bad": 2}
        assert (await flow.replay()).ids == []


async def test_who_waits_for_a_flow_is_told(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the store's message: without it this would wait for a poll that never comes."""
    monkeypatch.setattr(waiters, "POLL_S", 1e6)
    go_on = asyncio.Event()

    @run.task
    async def slow() -> None:
        await go_on.wait()

    async with run.engine() as eng:
        async with eng.client.flow("told") as flow:
            flow.add(slow)
        waiting = [asyncio.ensure_future(flow.outcome()) for _ in range(3)]
        await asyncio.sleep(0.05)
        go_on.set()
        async with asyncio.timeout(10):
            assert {outcome.state for outcome in await asyncio.gather(*waiting)} == {"completed"}


# ---- crashes, and the blocking twin ------------------------------------------------------------------------


async def test_wherever_a_worker_dies_the_flow_comes_to_its_end() -> None:
    app = ff.App()

    @app.task
    async def part(n: int) -> int:
        return n

    @app.task
    async def total(found: list[int], ctx: ff.Context) -> int:
        assert [one.value for one in await ctx.upstreams()] == found
        return sum(found)

    async def once(eng: Engine) -> None:
        async with eng.client.flow("crashes") as flow:
            parts = [flow.add(part, n) for n in (1, 2)]
            sums = flow.add(total, after=parts)
            flow.add(part, after=sums)
        outcome = await flow.outcome(3_600)
        assert (outcome.state, outcome.counts["completed"]) == ("completed", 4)
        assert await sums.result() == 3

    report = await Engine(app).crash_everywhere(once)
    assert "ff_read_upstreams" in report.functions


def test_the_blocking_client_makes_flows_alike(url: str, request: pytest.FixtureRequest) -> None:
    name = name_of(request)
    app = ff.App(url, namespace=name)

    @app.task(lane=name)
    async def part(n: int) -> int:
        return n

    @app.task(lane=name)
    async def total(found: list[int]) -> int:
        return sum(found)

    with ff.sync.Client(app=app) as client:
        with client.flow("blocking", "k") as flow:
            parts = [flow.add(part, n, key=f"{n}") for n in (1, 2, 3)]
            sums = flow.add(total, after=parts)
            best = flow.add(total, after=ff.quorum(2, parts, on_satisfied="let_run"))
            with pytest.raises(ff.InvalidArgument, match="not submitted yet"):
                sums.result()
        worker = ff.sync.Client(app=app)
        worker._loop.run(_served(app, name, flow.async_))  # pyright: ignore[reportPrivateUsage]
        worker.close()
        assert sums.result(10) == 6 and best.result(10) >= 3
        assert flow.outcome(10).state == "completed"
        assert [member.key for member in flow.nodes(edges=False)][:3] == ["1", "2", "3"]
        assert [found.id for found in client.flows()] == [flow.id]
        assert client.flow_by_id(flow.id) == flow and flow.job("2", part).result() == 2
        assert flow.describe().node_count == 5 and flow.status().edge_count == 6
        assert (flow.cancel(), flow.replay().count, flow.set_tags({"a.b": "c"})) == ("already_ended", 0, 1)
        with pytest.raises(ZeroDivisionError), client.flow("broken") as broken:
            broken.add(part, 1)
            raise ZeroDivisionError


async def _served(app: ff.App, lane: str, flow: ff.Flow) -> None:
    """Run a worker until the flow has ended."""
    worker = app.worker(lanes=[lane])
    running = asyncio.ensure_future(worker.run())
    async with app.client() as client:
        await client.flow_by_id(flow.id).outcome(20)
    await worker.stop()
    await running


async def _types(flow: ff.Flow, client: ff.sync.Client, part: Task[int, int], total: Task[list[int], int]) -> None:
    """Never run: checked by mypy and pyright with the rest."""
    with client.flow("typed") as made:
        node: ff.sync.Node[int] = made.add(part, 1)
        sums: ff.sync.Node[int] = made.add(total, after=[node])
        made.add(total, after=ff.any_of(node, sums, on_satisfied="let_run"), on="always")
    value: int = sums.result()
    _ = value, flow
