"""Making flows: what went wrong once, or left its user without a hint."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

import ffsdk as ff
from ffbackend_valkey import composed_flow
from ffcore.args import Args
from ffcore.backend import StoreConfig
from ffcore.contracts.graph import FlowDuplicate, FlowStaged, FlowSubmitted, SubmitFlowArgs, SubmitFlowWireArgs
from ffsdk.client import Client
from ffsdk.flow import Flow
from ffsdk.submit import Submitter

app = ff.App("memory://found-flows-unit")


class Page(ff.Payload):
    url: str
    tenant: str = "t0"


@app.task(fairness="payload.tenant")
async def scrape(page: Page) -> int:
    return len(page.url)


@app.task
async def add_up(sizes: list[int]) -> int:
    return sum(sizes)


class Rig:
    """As much of a client as a flow needs, with a store that takes every graph."""

    namespace = "default"

    def __init__(self) -> None:
        self.config, self.grouped = StoreConfig(fp=4), True
        self.backend, self.sent = self, list[Any]()
        self.answer: Any = None
        self.submitter = Submitter(cast("Any", self), "default", "accepted", app.tasks, lambda: 1_000)

    async def call(self, args: Args[Any]) -> Any:
        self.sent.append(args)
        if isinstance(args, SubmitFlowArgs):
            return self.answer or FlowSubmitted(args.flow_id, "open", len(args.nodes))
        return SimpleNamespace(items=[SimpleNamespace(descriptor=scrape.descriptor())])  # published tasks

    def flow(self, key: str | None = None, **options: Any) -> Flow:
        return Client.flow(cast("Any", self), "found", key, **options)


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
async def flow(rig: Rig) -> AsyncIterator[Flow]:
    made = rig.flow()
    await made.__aenter__()
    yield made


# ---- what is sent is what was said when it was added -------------------------------------------------------


def required_by(policy: str | bytes | None) -> Any:
    assert policy is not None
    return msgspec.json.decode(policy)["routing_requirements"]["required_capabilities"]


async def test_requirements_that_can_be_read_once_are_kept(rig: Rig) -> None:
    async with rig.flow() as flow:
        flow.add(scrape, Page("a"), requires=(token for token in ["gpu"]))
    [graph] = rig.sent
    assert required_by(graph.plans[0].policy) == ["gpu"]
    plan = await rig.submitter.plan(scrape, {"requires": (token for token in ["gpu"])})
    assert required_by(plan.shared.policy) == ["gpu"]


async def test_a_mapping_or_payload_that_changes_after_the_add_changes_nothing(rig: Rig) -> None:
    tags, page = dict[str, str](), Page("a")
    async with rig.flow() as flow:
        for n in range(2):
            tags["shop.n"] = page.tenant = str(n)
            flow.add(scrape, page, tags=tags)
            flow.add("scrape", page, lane="default")
    graph = next(args for args in rig.sent if isinstance(args, SubmitFlowArgs))
    assert [node.tags for node in graph.nodes[::2]] == [b"6:shop.n1:0", b"6:shop.n1:1"]
    assert [node.fairness_key for node in graph.nodes] == ["0", "0", "1", "1"]


async def test_a_flow_without_a_key_is_always_new(rig: Rig) -> None:
    """Its id is nobody else's: a duplicate is what an earlier try has made, whose answer was lost."""
    flow = rig.flow()
    rig.answer = FlowDuplicate(flow.id, "running")
    async with flow:
        node = flow.add(scrape, Page("a"))
    assert flow.created and node.created
    keyed = rig.flow("k")
    async with keyed:
        node = keyed.add(scrape, Page("a"))
    assert not keyed.created and not node.created


async def test_a_large_graph_lets_the_loop_do_other_things(rig: Rig) -> None:
    turns = 0

    async def others() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0)
            turns += 1

    async def staged(args: Any) -> Any:
        assert isinstance(args, SubmitFlowWireArgs)
        return FlowSubmitted(args.flow_id, "open", 1) if args.last else FlowStaged(args.chunk + 1)

    busy = asyncio.ensure_future(others())
    flow = rig.flow()
    async with flow:
        for n in range(5_000):
            flow.add(add_up, [n])
    assert turns >= 5
    turns = 0
    await composed_flow.submit(rig.sent[0], cast("Any", staged))
    assert turns >= 10
    busy.cancel()


# ---- what is refused, and how ------------------------------------------------------------------------------


def test_a_node_is_no_payload_and_the_error_says_what_to_do(flow: Flow) -> None:
    node: Any = flow.add(scrape, Page("a"))
    payloads: list[Any] = [node, [node], {"sizes": [node]}]
    for payload in payloads:
        with pytest.raises(ff.InvalidArgument, match="after="):
            flow.add(add_up, payload)
        with pytest.raises(ff.InvalidArgument, match="after="):
            flow.add("by-name", payload)


def test_a_set_has_no_order_to_keep(flow: Flow) -> None:
    """The order of the inputs would be another one in each process, and the graph another one under its key."""
    nodes = {flow.add(scrape, Page("a")), flow.add(scrape, Page("b"))}
    with pytest.raises(ff.InvalidArgument, match="order"):
        flow.add(add_up, after=nodes)
    for join in (ff.all_of, ff.any_of):
        with pytest.raises(ff.InvalidArgument, match="order"):
            join(nodes)


def test_a_list_in_a_list_is_told_to_be_flat(flow: Flow) -> None:
    node = flow.add(scrape, Page("a"))
    with pytest.raises(ff.InvalidArgument, match="one flat list"):
        flow.add(add_up, after=cast("Any", [[node]]))


def test_a_quorum_has_its_number_first(flow: Flow) -> None:
    nodes = [flow.add(scrape, Page("a")), flow.add(scrape, Page("b"))]
    for arguments in ((nodes, 2), (*nodes, 2), (nodes,), (2.0, nodes)):
        with pytest.raises(ff.InvalidArgument, match="number comes first"):
            ff.quorum(*cast("Any", arguments))


def test_what_follows_a_failure_needs_something_that_can_fail(flow: Flow) -> None:
    """It would run at once, and tell of a failure that has not been."""
    with pytest.raises(ff.InvalidArgument, match="on='failure'"):
        flow.add(scrape, Page("a"), on="failure")
    with pytest.raises(ff.InvalidArgument, match="on='failure'"):
        flow.add(scrape, Page("a"), after=[], on="failure")
    flow.add(scrape, Page("a"), after=[], on="always")


def test_an_unknown_option_is_answered_with_those_there_are(flow: Flow) -> None:
    with pytest.raises(ff.InvalidArgument, match=r"no option depends_on: use delay, .*priority"):
        flow.add(scrape, Page("a"), **cast("Any", {"depends_on": []}))


def test_durability_is_checked_where_it_is_given(rig: Rig) -> None:
    with pytest.raises(ff.InvalidArgument, match="durability 'sometimes'"):
        rig.flow(durability="sometimes")


async def test_a_reason_is_text(rig: Rig) -> None:
    handle = Flow(cast("Any", rig), rig.flow().id)
    with pytest.raises(ff.InvalidArgument, match="reason is None"):
        await handle.cancel(cast("Any", None))
    assert rig.sent == []
