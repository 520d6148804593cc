"""Children: handlers that spawn jobs and wait for them without a slot."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ffsdk as ff
from ffcore import flows
from ffcore.contracts.flow import AddExecutionToFlowArgs, CreateFlowArgs, ReadFlowArgs
from ffcore.contracts.spawn import SpawnArgs
from ffcore.ids import FlowId, Namespace, partition_of, uuid7, uuid_of
from ffsdk.testing import Engine
from tests.integration.test_gates import comes_to
from tests.integration.worker_app import ONCE, SOON, working


class Tree(ff.Payload):
    depth: int
    name: str = "root"


async def until_it_waits(job: ff.Job[Any]) -> ff.JobStatus:
    return await comes_to(job, "waiting_children")


# ---- the idea --------------------------------------------------------------------------------------------


async def test_a_parent_waits_for_its_children_without_a_slot(app: ff.App, lane: str) -> None:
    """One slot serves the parent and all of its children; the parent runs twice, not once for each of them."""
    runs = list[str]()

    @app.task(lane=lane)
    async def square(n: int) -> int:
        runs.append(f"square {n}")
        return n * n

    @app.task(lane=lane)
    async def total(numbers: list[int], ctx: ff.Context) -> int:
        runs.append("total")
        jobs = [await ctx.spawn(square, n) for n in numbers]
        return sum(await asyncio.gather(*(job.result() for job in jobs)))

    async with app.client() as client, working(app, concurrency=1):
        job = await client.submit(total, [1, 2, 3])
        assert await job.result(timeout=10) == 14
    assert sorted(runs) == ["square 1", "square 2", "square 3", "total", "total"]


async def test_children_are_members_of_their_parents_flow_and_steps_of_its_journal(app: ff.App, lane: str) -> None:
    @app.task(lane=lane)
    async def leaf(n: int) -> int:
        return n

    @app.task(lane=lane)
    async def parent(_: None, ctx: ff.Context) -> list[str]:
        first = await ctx.spawn(leaf, 1, key="first", tags={"shop.tenant": "t1"})
        second = await ctx.spawn("leaf", 2)
        assert first.created or ctx.attempt
        await ctx.wait(first, second)
        return [first.id, second.id]

    async with app.client() as client, working(app):
        job = await client.submit(parent)
        first, second = await job.result(timeout=10)
        flow_id = flows.implicit_flow(job.id)
        assert first == flows.member_id(flow_id, "first") and uuid_of(second)[14] == "5"
        steps = await job.steps()
        assert [(step.kind, step.name, step.child, step.recovery) for step in steps] == [
            ("spawn", "leaf", first, "resume_from_evidence_boundary"),
            ("spawn", "leaf", second, "resume_from_evidence_boundary"),
        ]
        flow = await client.backend.call(ReadFlowArgs(flow_id=flow_id))
        assert (flow.node_count, flow.edge_count, flow.public_flow_state) == (3, 2, "completed")
        child = await client.job(first).status()
        assert (child.tags, child.task, child.namespace) == ({"shop.tenant": "t1"}, "leaf", app.namespace)


async def test_a_child_of_a_child_is_in_the_same_flow_and_the_whole_tree_needs_one_slot(app: ff.App, lane: str) -> None:
    @app.task(lane=lane)
    async def grow(tree: Tree, ctx: ff.Context) -> int:
        if not tree.depth:
            return 1
        twigs = [await ctx.spawn(grow, Tree(tree.depth - 1, f"{tree.name}.{n}")) for n in range(2)]
        return 1 + sum([await twig.result() for twig in twigs])

    async with app.client() as client, working(app, concurrency=1):
        job = await client.submit(grow, Tree(3))
        assert await job.result(timeout=30) == 15
        flow = await client.backend.call(ReadFlowArgs(flow_id=flows.implicit_flow(job.id)))
        assert (flow.node_count, flow.edge_count, flow.public_flow_state) == (15, 14, "completed")


async def test_a_node_of_a_flow_spawns_into_it_and_the_flow_ends_with_the_last_of_them(app: ff.App, lane: str) -> None:
    go = asyncio.Event()

    @app.task(lane=lane)
    async def slow(n: int) -> int:
        await go.wait()
        return n

    @app.task(lane=lane)
    async def starts(n: int, ctx: ff.Context) -> int:
        await ctx.spawn(slow, n, key="slow")
        return n + 1

    @app.task(lane=lane)
    async def after(n: int) -> int:
        return n * 10

    async with app.client() as client, working(app):
        async with client.flow("family") as flow:
            last = flow.add(after, after=flow.add(starts, 1))
        assert await last.result(timeout=10) == 20, "a child holds up who awaits it, not who follows its parent"
        info = await client.backend.call(ReadFlowArgs(flow_id=flow.id))
        assert (info.node_count, info.public_flow_state, info.unfinished) == (3, "running", 1)
        go.set()
        assert await client.job(flows.member_id(flow.id, "slow"), slow).result(timeout=10) == 1
        assert (await client.backend.call(ReadFlowArgs(flow_id=flow.id))).public_flow_state == "completed"


async def test_a_parent_that_is_put_into_a_flow_while_it_runs_spawns_into_that(app: ff.App, lane: str) -> None:
    go = asyncio.Event()

    @app.task(lane=lane)
    async def leaf(n: int) -> int:
        return n

    @app.task(lane=lane)
    async def parent(_: None, ctx: ff.Context) -> str:
        await go.wait()
        job = await ctx.spawn(leaf, 1, key="only")
        await job.result()
        return job.id

    async with app.client() as client, working(app):
        job = await client.submit(parent)
        await comes_to(job, "active")
        flow_id = FlowId(f"{partition_of(job.id)}:{uuid7()}")
        for args in (
            CreateFlowArgs(flow_id=flow_id, flow_kind="order", namespace=Namespace(app.namespace)),
            AddExecutionToFlowArgs(flow_id=flow_id, execution_id=job.id),
        ):
            await client.backend.call(args)
        go.set()
        assert await job.result(timeout=10) == flows.member_id(flow_id, "only")


# ---- how children end ------------------------------------------------------------------------------------


async def test_a_child_that_fails_raises_where_it_is_awaited_and_nowhere_else(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, retry=ONCE)
    async def fails(text: str) -> int:
        raise ff.Fatal(text, category="out_of_paper")

    @app.task(lane=lane, retry=ONCE)
    async def careful(_: None, ctx: ff.Context) -> list[str]:
        job, unheard = await ctx.spawn(fails, "no paper"), await ctx.spawn(fails, "never asked")
        outcome = await job.outcome()
        assert isinstance(outcome, ff.Failed)
        with pytest.raises(ff.JobFailed) as told:
            await job.result()
        await ctx.wait(unheard)
        return [outcome.reason, outcome.category, told.value.category]

    @app.task(lane=lane, retry=ONCE)
    async def careless(_: None, ctx: ff.Context) -> int:
        return await (await ctx.spawn(fails, "no paper")).result()

    async with app.client() as client, working(app):
        assert await (await client.submit(careful)).result(timeout=10) == ["no paper", "out_of_paper", "out_of_paper"]
        job = await client.submit(careless)
        with pytest.raises(ff.JobFailed, match=r"JobFailed: .*no paper"):
            await job.result(timeout=10)


async def test_the_outcomes_of_children_are_of_their_tasks_type(app: ff.App, lane: str) -> None:
    @app.task(lane=lane)
    async def plant(name: str) -> Tree:
        return Tree(3, name)

    @app.task(lane=lane)
    async def garden(_: None, ctx: ff.Context) -> str:
        typed, named = await ctx.spawn(plant, "oak"), await ctx.spawn("plant", "elm")
        one, other = await typed.result(), await named.result()
        assert isinstance(one, Tree) and isinstance(other, Tree)
        return one.name + other.name

    async with app.client() as client, working(app):
        assert await (await client.submit(garden)).result(timeout=10) == "oakelm"


async def test_a_parent_that_awaits_no_child_ends_and_they_go_on(app: ff.App, lane: str) -> None:
    go = asyncio.Event()

    @app.task(lane=lane)
    async def slow(n: int) -> int:
        await go.wait()
        return n

    @app.task(lane=lane)
    async def starts(_: None, ctx: ff.Context) -> str:
        return (await ctx.spawn(slow, 7)).id

    async with app.client() as client, working(app):
        child = client.job(await (await client.submit(starts)).result(timeout=10), slow)
        await comes_to(child, "active")
        go.set()
        assert await child.result(timeout=10) == 7


async def test_the_first_of_several_is_enough_and_a_handler_that_runs_again_decides_by_the_same_one(
    app: ff.App, lane: str
) -> None:
    go, tries = asyncio.Event(), list[list[str | None]]()

    @app.task(lane=lane)
    async def provider(name: str) -> str:
        if name != "fast":
            await go.wait()
        return name

    @app.task(lane=lane, retry=SOON)
    async def race(_: None, ctx: ff.Context) -> str:
        jobs = [await ctx.spawn(provider, name, key=name) for name in ("slow", "fast", "slower")]
        outcomes = await ctx.wait(ff.any_of(jobs))
        tries.append([one.value if isinstance(one, ff.Completed) else None for one in outcomes])
        if len(tries) == 1:
            go.set()
            await ctx.wait(ff.all_of(jobs))
            raise ValueError("again, now that all of them have ended")
        await jobs[0].cancel("not needed")
        return str(tries[-1])

    async with app.client() as client, working(app):
        job = await client.submit(race)
        assert await job.result(timeout=10) == "[None, 'fast', None]"
    assert set(map(str, tries)) == {"[None, 'fast', None]"}


async def test_a_quorum_goes_on_with_as_many_as_it_takes(app: ff.App, lane: str) -> None:
    go = asyncio.Event()

    @app.task(lane=lane)
    async def replica(n: int) -> int:
        if n > 2:
            await go.wait()
        return n

    @app.task(lane=lane)
    async def read(_: None, ctx: ff.Context) -> int:
        jobs = await asyncio.gather(*(ctx.spawn(replica, n) for n in range(1, 6)))
        outcomes = await ctx.wait(ff.quorum(2, jobs))
        for job, outcome in zip(jobs, outcomes, strict=True):
            if outcome is None:
                await job.cancel("enough")
                assert (await job.status()).cancel_requested or (await job.status()).state == "cancelled"
        return sum(one.value for one in outcomes if isinstance(one, ff.Completed))

    async with app.client() as client, working(app):
        assert await (await client.submit(read)).result(timeout=10) == 3
        go.set()


# ---- cancel ----------------------------------------------------------------------------------------------


async def test_a_cancelled_parent_takes_its_children_along_but_for_those_it_abandoned(app: ff.App, lane: str) -> None:
    go = asyncio.Event()

    @app.task(lane=lane)
    async def slow(n: int) -> int:
        await go.wait()
        return n

    @app.task(lane=lane)
    async def parent(_: None, ctx: ff.Context) -> None:
        mine = await ctx.spawn(slow, 1, key="mine")
        await ctx.spawn(slow, 2, key="free", abandon=True)
        await mine.result()

    async with app.client() as client, working(app):
        job = await client.submit(parent)
        await until_it_waits(job)
        flow_id = flows.implicit_flow(job.id)
        mine, free = (client.job(flows.member_id(flow_id, key), slow) for key in ("mine", "free"))
        await comes_to(mine, "active")
        assert await job.cancel("changed my mind") == "cancelled"
        assert isinstance(await mine.outcome(timeout=10), ff.Cancelled)
        go.set()
        assert await free.result(timeout=10) == 2


# ---- beside other waits ----------------------------------------------------------------------------------


async def test_a_sleep_beside_a_wait_bounds_it() -> None:
    app = ff.App()

    @app.task
    async def slow(_: None, ctx: ff.Context) -> None:
        await ctx.sleep(3600)

    @app.task
    async def impatient(_: None, ctx: ff.Context) -> str:
        job = await ctx.spawn(slow)
        waits = [asyncio.ensure_future(one) for one in (ctx.sleep(60), job.outcome())]
        done, _pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for one in waits:
            one.cancel()
        if waits[1] in done:
            return "in time"
        await job.cancel("too slow")
        return "too slow"

    async with Engine(app) as eng:
        began = eng.now
        job = await eng.client.submit(impatient)
        assert await job.result() == "too slow"
        assert 60 <= (eng.now - began).total_seconds() < 120


async def test_pipelines_in_a_gather_wait_together() -> None:
    app = ff.App()

    @app.task
    async def stage(n: int) -> int:
        return n + 1

    @app.task
    async def pipelines(n: int, ctx: ff.Context) -> list[int]:
        async def one(value: int) -> int:
            for _ in range(3):
                value = await (await ctx.spawn(stage, value)).result()
            return value

        return await asyncio.gather(*(one(at * 10) for at in range(n)))

    async with Engine(app) as eng:
        job = await eng.client.submit(pipelines, 4)
        assert await job.result() == [3, 13, 23, 33]
        assert eng.engine_calls.count("ff_move_to_waiting_children") < 12, "fewer waits than children"


async def test_spawns_of_a_gather_overlap(app: ff.App, lane: str) -> None:
    """A fan-out of a thousand must not be a thousand round trips one after another."""
    flying, most = 0, 0

    @app.task(lane=lane)
    async def leaf(n: int) -> int:
        return n

    @app.task(lane=lane)
    async def parent(n: int, ctx: ff.Context) -> int:
        nonlocal flying, most
        backend = ctx.durable.host.backend
        call = backend.call

        async def counted(args: Any) -> Any:
            nonlocal flying, most
            if not isinstance(args, SpawnArgs):
                return await call(args)
            flying += 1
            most = max(most, flying)
            try:
                return await call(args)
            finally:
                flying -= 1

        backend.call = counted  # type: ignore[method-assign]
        try:
            jobs = await asyncio.gather(*(ctx.spawn(leaf, at) for at in range(n)))
        finally:
            backend.call = call  # type: ignore[method-assign]
        return sum(await asyncio.gather(*(job.result() for job in jobs)))

    async with app.client() as client, working(app, concurrency=64):
        assert await (await client.submit(parent, 300)).result(timeout=60) == 300 * 299 // 2
    assert most > 100


# ---- threads ---------------------------------------------------------------------------------------------


async def test_a_handler_in_a_thread_spawns_and_waits_as_well(app: ff.App, lane: str) -> None:
    @app.task(lane=lane, retry=ONCE)
    async def leaf(n: int) -> int:
        if n > 2:
            raise ff.Fatal("too large")
        return n

    @app.task(lane=lane, retry=ONCE)
    def parent(_: None, ctx: ff.Context) -> list[Any]:
        jobs = [ctx.sync.spawn(leaf, n) for n in (1, 2, 3)]
        first, second, third = ctx.sync.wait(ff.all_of(jobs))
        assert isinstance(first, ff.Completed) and isinstance(third, ff.Failed) and second is not None
        assert ctx.sync.wait(jobs[0]) == [first]
        return [jobs[0].result(), jobs[1].outcome() == second, third.reason, jobs[1].status().state.value]

    async with app.client() as client, working(app):
        assert await (await client.submit(parent)).result(timeout=10) == [1, True, "too large", "completed"]


async def test_what_cannot_be_spawned_is_refused_where_it_is_asked_for(app: ff.App, lane: str) -> None:
    @app.task(lane=lane)
    async def leaf(n: int) -> int:
        return n

    @app.task(lane=lane, retry=ONCE)
    async def parent(_: None, ctx: ff.Context) -> list[str]:
        said = list[str]()
        asked: list[Any] = [
            lambda: ctx.spawn(leaf, "one"),  # type: ignore[arg-type]
            lambda: ctx.spawn("nobody has it", 1),
            lambda: ctx.spawn("unknown_here", 1),
            lambda: ctx.spawn(leaf, 1, colour="red"),  # type: ignore[call-arg]
            lambda: ctx.spawn(leaf, 1, delay=1, at=None, priority=1000),
            lambda: ctx.step("within", lambda: None),
        ]
        for ask in asked[:-1]:
            with pytest.raises(ff.EngineError) as refused:
                await ask()
            said.append(refused.value.code)

        async def inside() -> None:
            await ctx.spawn(leaf, 1)

        with pytest.raises(ff.InvalidArgument, match="within the step"):
            await ctx.step("within", inside)
        return said

    async with app.client() as client, working(app):
        said = await (await client.submit(parent)).result(timeout=10)
        assert said == ["invalid_payload", "invalid_input", "unknown_task", "invalid_input", "invalid_input"]
