"""Making a flow, with a store that notes what it is sent: what a block collects, refuses, and submits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest

import ffsdk as ff
from ffcore.args import Args
from ffcore.backend import StoreConfig
from ffcore.contracts.dependency import EdgeAnyOf, EdgeQuorum, OnSatisfied
from ffcore.contracts.execution import ReplayExecutionArgs
from ffcore.contracts.flow import AwaitFlowArgs, CancelFlowArgs, Member, MemberEdge, MembersPage, ReadMembersArgs
from ffcore.contracts.graph import FlowDuplicate, FlowSubmitted, SubmitFlowArgs
from ffcore.errors import NotFound, rejection
from ffcore.flows import member_id, unkeyed_member_id
from ffcore.ids import ExecutionId, FlowId, LaneId
from ffcore.states import PublicState
from ffsdk import full
from ffsdk.client import Client
from ffsdk.draft import After
from ffsdk.flow import Flow
from ffsdk.flows import FlowMember, to_replay
from ffsdk.flows import MemberEdge as Edge
from ffsdk.submit import Submitter
from ffsdk.task import Task

app = ff.App("memory://flows-unit")
NOW = 1_000_000


class Page(ff.Payload):
    url: str


@app.task
async def scrape(url: str) -> Page:
    return Page(url)


@app.task(lane="digests", fairness="payload.url")
async def summarise(page: Page) -> str:
    return page.url


@app.task
async def merge(pages: list[Page]) -> str:
    return f"{len(pages)}"


@app.task
async def clean() -> None:
    return None


class Store:
    """Answers each request as it is told to; the first answers that are left, one by one."""

    grouped = True

    def __init__(self) -> None:
        self.config = StoreConfig(fp=4)
        self.sent: list[Args[Any]] = []
        self.answers: list[Any] = []

    async def call(self, args: Args[Any]) -> Any:
        self.sent.append(args)
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, Exception):
            raise answer
        if answer is None and isinstance(args, SubmitFlowArgs):
            return FlowSubmitted(args.flow_id, "open", len(args.nodes))
        return answer

    async def call_all(self, batch: list[Args[Any]]) -> list[Any]:
        self.sent += batch
        return [self.answers.pop(0) if self.answers else None for _ in batch]


class Rig:
    """As much of a client as a flow needs."""

    namespace = "default"

    def __init__(self) -> None:
        self.backend = Store()
        self.submitter = Submitter(cast("Any", self.backend), "default", "accepted", app.tasks, lambda: NOW)

    def flow(self, name: str = "nightly", key: str | None = None, **options: Any) -> Flow:
        return Client.flow(cast("Any", self), name, key, **options)

    @property
    def graph(self) -> SubmitFlowArgs:
        [args] = self.backend.sent
        assert isinstance(args, SubmitFlowArgs)
        return args


@pytest.fixture
def rig() -> Rig:
    return Rig()


@pytest.fixture
async def flow(rig: Rig) -> AsyncIterator[Flow]:
    """A flow within its block, given up at the end."""
    made = rig.flow()
    await made.__aenter__()
    yield made
    assert rig.backend.sent == [], "nothing is sent before the block is left"


# ---- what is sent


async def test_leaving_the_block_sends_the_whole_graph_in_one_call(rig: Rig) -> None:
    async with rig.flow("nightly", tags={"shop.tenant": "t1"}) as flow:
        pages = [flow.add(scrape, url, key=url) for url in ("a", "b")]
        digest = flow.add(merge, after=pages, priority=9)
        flow.add(clean, after=digest, on="always")
    sent = rig.graph
    assert (sent.flow_id, sent.name, sent.tags) == (flow.id, "nightly", {"shop.tenant": "t1"})
    assert [node.payload for node in sent.nodes] == [b'"a"', b'"b"', None, b"null"]
    assert [node.upstreams for node in sent.nodes] == [
        [], [], [(0, "success_only"), (1, "success_only")], [(2, "always")],
    ]  # fmt: skip
    assert [node.label for node in sent.nodes] == ["a", "b", None, None]
    assert [sent.plans[node.plan].execution_kind for node in sent.nodes] == ["scrape", "scrape", "merge", "clean"]
    assert len(sent.plans) == 3 and sent.plans[1].priority == 9, "two nodes alike share a plan"
    assert flow.created and digest.created


async def test_ids_follow_from_keys_and_places(rig: Rig) -> None:
    """So the same block makes the same graph, also in another process, and a graph may be sent again."""
    ids: list[list[str]] = []
    for _ in range(2):
        async with rig.flow("nightly", "2026-11-21") as flow:
            nodes = [flow.add(clean, key="first"), flow.add(clean)]
        ids.append([flow.id, *(node.id for node in nodes)])
    assert ids[0] == ids[1]
    flow_id = FlowId(ids[0][0])
    assert ids[0][1:] == [member_id(flow_id, "first"), unkeyed_member_id(flow_id, 1)]
    assert rig.flow().id != rig.flow().id, "without a key each block is a flow of its own"


async def test_a_key_that_was_used_before_answers_the_same_flow(rig: Rig) -> None:
    made = rig.flow("nightly", "k")
    rig.backend.answers = [FlowDuplicate(made.id, "running")]
    async with made as flow:
        node = flow.add(clean)
    assert not flow.created and not node.created


async def test_relative_times_of_a_flow_count_from_one_instant(rig: Rig) -> None:
    async with rig.flow() as flow:
        flow.add(clean, delay=5, deadline=60)
        flow.add(clean, delay=5, deadline=60, tags={"a.b": "c"})
        flow.add(scrape, "x", delay=5, deadline=60, lane="slow")
    plans = rig.graph.plans
    assert len(plans) == 2, "tags are each node's own"
    assert {(plan.delay_until, plan.execution_deadline_at) for plan in plans} == {(NOW + 5_000, NOW + 60_000)}
    assert plans[1].lane_id == "slow" and [bool(node.tags) for node in rig.graph.nodes] == [False, True, False]


async def test_joins_say_how_many_it_takes(rig: Rig) -> None:
    async with rig.flow() as flow:
        nodes = [flow.add(scrape, url) for url in "abc"]
        flow.add(merge, after=ff.any_of(*nodes))
        flow.add(merge, after=ff.quorum(2, nodes, on_satisfied="let_run"), on="failure")
        flow.add(merge, after=ff.all_of(nodes))
    policies = [node.policy for node in rig.graph.nodes[3:]]
    assert policies[:2] == [
        EdgeAnyOf(OnSatisfied.CANCEL_REMAINING), EdgeQuorum(k=2, on_satisfied=OnSatisfied.LET_RUN),
    ]  # fmt: skip
    assert policies[2].variant_str() == "all_of"
    assert {kind for _, kind in rig.graph.nodes[4].upstreams} == {"on_failure"}


async def test_the_fairness_key_is_the_payloads(rig: Rig) -> None:
    async with rig.flow() as flow:
        page = flow.add(scrape, "x")
        flow.add(summarise, Page("site"))
        flow.add(summarise, after=page)
    assert [node.fairness_key for node in rig.graph.nodes] == [None, "site", None]


async def test_a_block_left_by_an_error_submits_nothing(rig: Rig) -> None:
    with pytest.raises(ZeroDivisionError):
        async with rig.flow() as flow:
            node = flow.add(clean)
            raise ZeroDivisionError
    assert rig.backend.sent == []
    with pytest.raises(ff.InvalidArgument, match="given up by an error"):
        await node.result()
    with pytest.raises(ff.InvalidArgument, match="given up by an error"):
        await flow.outcome()
    with pytest.raises(ff.InvalidArgument, match="one `with"):
        flow.add(clean)


async def test_what_the_store_refuses_is_raised_where_the_block_ends(rig: Rig) -> None:
    rig.backend.answers = [rejection("idempotency_conflict", "", asked="submit_flow", about="x")]
    with pytest.raises(ff.IdempotencyConflict):
        async with rig.flow("nightly", "k") as flow:
            node = flow.add(clean)
    with pytest.raises(ff.InvalidArgument, match="was not submitted"):
        await node.status()


async def test_a_flow_whose_submit_was_not_answered_says_so(rig: Rig) -> None:
    rig.backend.answers = [ff.Unavailable("away", may_have_applied=True)]
    with pytest.raises(ff.Unavailable):
        async with rig.flow("nightly", "k") as flow:
            node = flow.add(clean)
    with pytest.raises(ff.InvalidArgument, match="nobody knows"):
        await node.status()


async def test_a_full_store_is_asked_again_with_patience(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    async def soon(seconds: float, deadline: float) -> bool:
        return True

    monkeypatch.setattr(full, "waited", soon)
    rig.backend.answers = [rejection("store_full", "1000", asked="submit_flow", about="x")]
    async with rig.flow(patience=5) as flow:
        flow.add(clean)
    assert len(rig.backend.sent) == 2 and flow.created


async def test_an_unknown_task_name_is_refused_when_the_block_ends(rig: Rig) -> None:
    rig.backend.answers = [SimpleNamespace(items=[])]  # published tasks of that name
    with pytest.raises(ff.EngineError, match="elsewhere") as refused:
        async with rig.flow() as flow:
            flow.add("elsewhere", 1)
    assert refused.value.code == "unknown_task"


# ---- what is refused at once


def test_a_node_cannot_be_asked_before_its_flow_is_submitted(flow: Flow) -> None:
    node = flow.add(clean)
    for ask in (node.result(), node.outcome(), node.status(), node.cancel(), node.replay(), node.explain()):
        with pytest.raises(ff.InvalidArgument, match="not submitted yet"):
            ask.send(None)
    for question in (flow.outcome(), flow.describe(), flow.cancel(), flow.replay(), flow.set_tags({})):
        with pytest.raises(ff.InvalidArgument, match="not submitted yet"):
            question.send(None)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"task": merge}, "neither payload nor upstreams"),
        ({"task": "by-name"}, "neither payload nor upstreams"),
        ({"task": scrape, "payload": 7}, "does not fit its type"),
        ({"task": scrape, "payload": object()}, "does not encode"),
        ({"task": 7}, "task is 7"),
        ({"task": clean, "key": "taken"}, "is taken"),
        ({"task": clean, "key": ""}, "key"),
        ({"task": clean, "on": "sometimes"}, "success, always, failure"),
        ({"task": clean, "on": ["always"]}, "success, always, failure"),
        ({"task": clean, "after": None}, "after is None"),
        ({"task": clean, "after": "first"}, "after is 'first'"),
        ({"task": clean, "after": [7]}, "which is no node"),
        ({"task": clean, "budget": "two words"}, "budget 'two words'"),
        ({"task": clean, "budget": ["b", "b"]}, "b is named twice"),
        ({"task": clean, "quota": 7}, "quota is 7"),
        ({"task": clean, "unique": "u"}, "ff.Unique"),
        ({"task": clean, "unique": ff.Unique("u", action="existing")}, "'reject' or 'replace'"),
        ({"task": clean, "durability": "fsync"}, "client.flow"),
        ({"task": clean, "patience": 5}, "client.flow"),
        ({"task": clean, "color": "red"}, "no option color"),
        ({"task": clean, "delay": 1, "at": datetime.now()}, "give one"),
        ({"task": clean, "at": datetime.now()}, "time zone"),
        ({"task": clean, "priority": 1_000}, "priority"),
        ({"task": clean, "requires": "gpu"}, "use a set"),
        ({"task": clean, "tags": {"tenant": "t1"}}, "tag key"),
        ({"task": clean, "lane": "a b"}, "lane"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_added(flow: Flow, arguments: dict[str, Any], said: str) -> None:
    flow.add(clean, key="taken")
    with pytest.raises(ff.InvalidArgument, match=said):
        flow.add(**arguments)


async def test_edges_stay_within_a_flow_and_are_one_between_two_nodes(rig: Rig, flow: Flow) -> None:
    node = flow.add(clean)
    with pytest.raises(ff.InvalidArgument, match="stands twice"):
        flow.add(clean, after=[node, node])
    other, twin = rig.flow("nightly", "k"), rig.flow("nightly", "k")
    await other.__aenter__()
    await twin.__aenter__()
    stranger = other.add(clean)
    with pytest.raises(ff.InvalidArgument, match="another flow"):
        flow.add(clean, after=stranger)
    with pytest.raises(ff.InvalidArgument, match="another block"):
        twin.add(clean, after=stranger)
    with pytest.raises(ff.InvalidArgument, match="put a task after it"):
        flow.add(clean, after=cast("After", [ff.any_of(node, flow.add(clean))]))


def test_a_node_after_too_many_is_refused(flow: Flow) -> None:
    nodes = [flow.add(clean) for _ in range(1_001)]
    with pytest.raises(ff.InvalidArgument) as refused:
        flow.add(clean, after=nodes)
    assert refused.value.code == "flow_too_large"


@pytest.mark.parametrize("name", ["", "\n", "x" * 129, None, 7])
def test_a_flow_needs_a_name(rig: Rig, name: Any) -> None:
    with pytest.raises(ff.InvalidArgument, match="name"):
        rig.flow(name)


def test_a_flow_refuses_what_a_submit_refuses(rig: Rig) -> None:
    with pytest.raises(ff.InvalidArgument, match="budget is"):
        rig.flow(budget=object())
    with pytest.raises(ff.InvalidArgument, match="tag key"):
        rig.flow(tags={"x": "y"})
    with pytest.raises(ff.InvalidArgument, match="key"):
        rig.flow("nightly", "")
    with pytest.raises(ff.InvalidArgument, match="patience"):
        rig.flow(patience=-1)


async def test_a_graph_is_made_in_one_block(rig: Rig) -> None:
    """Nodes added outside would be lost without a word."""
    flow = rig.flow()
    with pytest.raises(ff.InvalidArgument, match="added to"):
        flow.add(clean)
    async with flow:
        flow.add(clean)
        with pytest.raises(ff.InvalidArgument, match="entered"):
            await flow.__aenter__()
    with pytest.raises(ff.InvalidArgument, match="added to"):
        flow.add(clean)


# ---- the handle


async def test_a_handle_collects_nothing(rig: Rig) -> None:
    handle = Client.flow_by_id(cast("Any", rig), rig.flow().id)
    with pytest.raises(ff.InvalidArgument, match=r"client\.flow"):
        handle.add(clean)
    with pytest.raises(ff.InvalidArgument, match=r"client\.flow"):
        await handle.__aenter__()
    assert handle == Client.flow_by_id(cast("Any", rig), handle.id) and len({handle, handle}) == 1
    with pytest.raises(ff.InvalidArgument):
        Client.flow_by_id(cast("Any", rig), "nonsense")


async def test_cancelling_says_what_came_of_it(rig: Rig) -> None:
    from ffcore.contracts.flow import CancellationScheduled, FlowCancelled, PartiallyCancelled, WaitTimeout

    handle = Flow(cast("Any", rig), rig.flow().id)
    ended = rejection("flow_already_terminal", "", asked="cancel_flow", about="x")
    rig.backend.answers = [
        FlowCancelled("cancel_all", []), CancellationScheduled("cancel_all", 1, []),
        PartiallyCancelled("cancel_all", [], []), ended, NotFound("gone", code="flow_not_found"),
    ]  # fmt: skip
    said = [await handle.cancel("why", policy="cancel_pending", wait=5) for _ in range(4)]
    assert said == ["cancelled", "scheduled", "partially_cancelled", "already_ended"]
    first = rig.backend.sent[0]
    assert isinstance(first, CancelFlowArgs)
    assert first.wait == WaitTimeout(5_000) and first.cancellation_policy == "cancel_pending"
    with pytest.raises(NotFound):
        await handle.cancel()
    with pytest.raises(ff.InvalidArgument, match="cancel_all, cancel_pending"):
        await handle.cancel(policy=cast("Any", "hard"))
    with pytest.raises(ff.InvalidArgument, match="wait"):
        await handle.cancel(wait=-1)


def row(number: int, state: str, group: str = "", edges: list[MemberEdge] | None = None) -> Member:
    return Member(
        number, ExecutionId(f"{{fp:0}}:{number}"), "t", LaneId("l"), state, "", "", True, "", group, edges or []
    )


async def test_a_replay_answers_which_and_what_was_refused(rig: Rig) -> None:
    handle = Flow(cast("Any", rig), rig.flow().id)
    rig.backend.answers = [
        MembersPage([row(1, "failed"), row(2, "completed")], 2), MembersPage([row(3, "expired")], 0),
        None, rejection("deps_not_satisfied", "", asked="replay", about="x"),
    ]  # fmt: skip
    done = await handle.replay("fresh")
    assert (done.ids, done.done, done.refused) == (["{fp:0}:1", "{fp:0}:3"], 1, {"{fp:0}:3": "deps_not_satisfied"})
    reads, replays = rig.backend.sent[:2], rig.backend.sent[2:]
    assert [cast("ReadMembersArgs", args).after for args in reads] == [0, 2]
    assert [cast("ReplayExecutionArgs", args).mode for args in replays] == ["fresh", "fresh"]


async def test_a_flow_cancelled_as_a_whole_is_not_replayed(rig: Rig) -> None:
    handle = Flow(cast("Any", rig), rig.flow().id)
    refused = rejection("flow_already_terminal", "", asked="replay", about="x")
    rig.backend.answers = [MembersPage([row(1, "cancelled")], 0), refused]
    with pytest.raises(ff.EngineError) as told:
        await handle.replay()
    assert told.value.code == "flow_already_terminal"


def member(number: int, state: str, group_state: str = "", edges: list[Edge] | None = None) -> FlowMember:
    return FlowMember(
        id=f"{number}", key=None, task="t", lane="l", state=PublicState(state), number=number,
        group="any_of" if group_state else "", group_state=group_state, edges=edges or [],
    )  # fmt: skip


def test_what_nobody_misses_is_not_replayed() -> None:
    """Of a race, the losers: they were cancelled because there was a winner."""
    edges = [Edge(str(n), "success_only", "satisfied") for n in (1, 2)]
    race = [member(1, "completed"), member(2, "cancelled"), member(3, "cancelled")]
    assert to_replay([*race, member(4, "completed", "satisfied", edges)]) == ["3"], "nothing depends on the third"
    assert to_replay([*race, member(4, "skipped", "impossible", edges)]) == ["2", "3"]
    both = [member(4, "completed", "satisfied", edges), member(5, "skipped", "impossible", edges[1:])]
    assert to_replay([*race, *both]) == ["2", "3"], "one is content, the other not"
    child = [Edge("2", "child", "satisfied")]
    assert to_replay([*race, member(4, "failed", "", child)]) == ["2", "3", "4"]
    assert to_replay([*race, member(4, "completed", "", child)]) == ["3"]


async def test_waiting_for_a_flow_registers_by_its_id(rig: Rig) -> None:
    """The waiters of the client ask for flows one by one; see test_flow_waiting."""
    args = AwaitFlowArgs(flow_id=rig.flow().id, client="me")
    assert args.flow_id


# ---- types, as a user's checker sees them


async def _types(client: ff.Client, fetch: Task[str, Page], fold: Task[list[Page], int]) -> None:
    """Never run: checked by mypy and pyright with the rest."""
    async with client.flow("typed", key=None, budget=None) as flow:
        page: ff.Node[Page] = flow.add(fetch, "a", key="a", delay=1)
        pages: list[ff.Node[Page]] = [page]
        total: ff.Node[int] = flow.add(fold, after=pages)
        best: ff.Node[int] = flow.add(fold, after=ff.any_of(page, flow.add(fetch, "b")), on="always")
        flow.add(fold, [Page("x")], after=ff.quorum(1, pages, on_satisfied="let_run"))
        named: ff.Node[Any] = flow.add("by-name", after=total, on="failure")
        flow.add(clean, after=[total, page])
    value: int = await total.result()
    job: ff.Job[Page] = page
    outcome: ff.FlowOutcome = await flow.outcome(timeout=5)
    _ = value, job, outcome, best, named
