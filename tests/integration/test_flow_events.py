"""What a subscription tells of flows: the flow as a whole, and which flow the job is of that has ended."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import ffsdk as ff
from ffcore import flows
from ffcore.contracts.flow import CancelFlowArgs, CancelFlowPolicy
from ffsdk.client import Client
from tests.integration.worker_app import ONCE, working


class Wanted(ff.Payload):
    fails: bool = False


@pytest.fixture
def family(app: ff.App, lane: str) -> Any:
    """A task whose jobs spawn one child each and wait for it."""

    @app.task(lane=lane, retry=ONCE)
    async def leaf(wanted: Wanted) -> int:
        if wanted.fails:
            raise ff.Fatal("no paper")
        return 1

    @app.task(lane=lane, retry=ONCE)
    async def parent(wanted: Wanted, ctx: ff.Context) -> int:
        return await (await ctx.spawn(leaf, wanted, key="only")).result()

    return parent


async def taken(client: Client, kind: Any, n: int, **options: Any) -> list[ff.Event]:
    """The first so many events of a kind that the feed still has."""
    options.setdefault("namespace", client.namespace)
    async with asyncio.timeout(10), client.subscribe(kind, after="-", **options) as events:
        return [await anext(events) for _ in range(n)]


async def test_a_flow_is_heard_of_when_it_begins_and_when_it_has_ended(app: ff.App, family: Any) -> None:
    async with app.client() as client, working(app):
        well, badly = [await client.submit(family, Wanted(fails)) for fails in (False, True)]
        assert await well.result(timeout=10) == 1
        assert isinstance(await badly.outcome(timeout=10), ff.Failed)
        events = await taken(client, "flow", 4)
        for job, end in ((well, "completed"), (badly, "failed")):
            flow_id = flows.implicit_flow(job.id)
            mine = [event for event in events if event.flow_id == flow_id]
            assert [(event.from_state, event.to_state) for event in mine] == [(None, "created"), ("running", end)]
            assert all(e.kind == "flow" and (e.execution_id, e.lane, e.attempt) == (None, None, None) for e in mine)


async def test_a_completion_names_the_flow_and_its_reason_is_as_it_was(app: ff.App, family: Any, lane: str) -> None:
    async with app.client() as client, working(app):
        job = await client.submit(family, Wanted(True))
        await job.outcome(timeout=10)
        child, parent = await taken(client, "completion", 2, lanes=[lane])
        flow_id = flows.implicit_flow(job.id)
        assert (parent.execution_id, parent.flow_id) == (job.id, flow_id)
        assert (child.execution_id, child.flow_id) == (flows.member_id(flow_id, "only"), flow_id)
        assert "flow=" not in child.detail + parent.detail
        alone = await client.submit("leaf", Wanted())
        await alone.result(timeout=10)
        [*_, last] = await taken(client, "completion", 3, lanes=[lane])
        assert (last.execution_id, last.flow_id) == (alone.id, None)


async def test_flows_are_filtered_by_namespace_and_tags_and_have_no_lane(app: ff.App, family: Any, url: str) -> None:
    async with app.client() as client, working(app):
        job = await client.submit(family, Wanted())
        await job.result(timeout=10)
        events = await taken(client, "flow", 2)
        assert {event.flow_id for event in events} == {flows.implicit_flow(job.id)}, "others' flows are left out"
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await anext(client.subscribe("flow", after="-", tags={"shop.tenant": "t1"}))
        with pytest.raises(ff.InvalidArgument, match="a flow is in no lane"):
            client.subscribe("flow", lanes=["mail"])


async def test_a_cancelled_flow_is_heard_of_and_a_cursor_goes_on_behind_any_of_its_events(
    app: ff.App, lane: str
) -> None:
    @app.task(lane=lane)
    async def waits(_: None, ctx: ff.Context) -> None:
        await (await ctx.spawn("waits", None, delay=3600)).result()

    async with app.client() as client, working(app):
        job = await client.submit("waits")
        [begun] = await taken(client, "flow", 1)
        assert begun.to_state == "created" and begun.flow_id == flows.implicit_flow(job.id)
        await client.backend.call(CancelFlowArgs(
            flow_id=flows.implicit_flow(job.id), reason="enough", cancellation_policy=CancelFlowPolicy.CANCEL_ALL
        ))  # fmt: skip
        assert isinstance(await job.outcome(timeout=10), ff.Cancelled)
        async with asyncio.timeout(10), client.subscribe("flow", after=begun.cursor) as events:
            cancelled = await anext(events)
        assert (cancelled.flow_id, cancelled.to_state) == (begun.flow_id, "cancelled")
