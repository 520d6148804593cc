"""What the backend makes of requests about whole flows: chunks of a graph, pages of members, looks while it waits.

`Staging` stands for the store's side of a submit, and does no more than keep count of the chunks.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

import ffcore.contracts as c
from ffbackend_valkey import composed_flow
from ffbackend_valkey.backend import bindings_of
from ffbackend_valkey.library import library
from ffcore import limits
from ffcore.args import Args
from ffcore.errors import EngineBug, InvalidArgument, NotFound, Rejected, StoreFull, Unavailable, rejection
from ffcore.flows import unkeyed_member_id
from ffcore.ids import ExecutionId, FlowId, LaneId, Namespace, TimestampMs

FLOW = FlowId("{fp:3}:018f1234-5678-7abc-9def-0123456789ab")
DEFAULT = Namespace("default")


def node(place: int, *upstreams: int, **changes: Any) -> c.FlowNode:
    fields: dict[str, Any] = {
        "execution_id": unkeyed_member_id(FLOW, place), "digest": bytes(16), "payload": b"{}",
        "upstreams": [(up, "success_only") for up in upstreams], **changes,
    }  # fmt: skip
    return c.FlowNode(**fields)


def asked(nodes: list[c.FlowNode], plans_n: int = 1, **changes: Any) -> c.SubmitFlowArgs:
    plans = [c.FlowPlan(execution_kind=f"t{n}", lane_id="default") for n in range(plans_n)]
    return c.SubmitFlowArgs(flow_id=FLOW, namespace=DEFAULT, plans=plans, nodes=nodes, **changes)


class Staging:
    """Takes chunks in their order, once each. `meanwhile` is called with each request before it is looked at, and may
    raise what the caller shall meet."""

    def __init__(self, meanwhile: Callable[[Args[Any]], None] = lambda args: None) -> None:
        self.sent: list[Args[Any]] = []
        self.kept: list[c.SubmitFlowWireArgs] = []
        self.meanwhile = meanwhile

    async def __call__(self, args: Args[Any], /) -> Any:
        self.sent.append(args)
        self.meanwhile(args)
        if isinstance(args, c.AbortFlowArgs):
            self.kept = []
            return c.FlowAborted()
        assert isinstance(args, c.SubmitFlowWireArgs)
        if self.kept and self.kept[-1].last:
            return c.FlowDuplicate(FLOW, "running")
        if args.chunk > len(self.kept) + 1:
            raise rejection("stale_graph_revision", str(len(self.kept) + 1))
        if args.chunk == len(self.kept) + 1:
            self.kept.append(args)
        if self.kept[-1].last:
            return c.FlowSubmitted(FLOW, "running", sum(len(one.nodes) for one in self.kept))
        return c.FlowStaged(len(self.kept) + 1)

    @property
    def chunks(self) -> list[int]:
        return [args.chunk for args in self.sent if isinstance(args, c.SubmitFlowWireArgs)]


CHAIN = [node(0), *(node(place, place - 1) for place in range(1, 250))]


# ---- chunks --------------------------------------------------------------------------------------------


async def test_a_small_graph_is_one_call() -> None:
    store = Staging()
    answer = await composed_flow.submit(asked([node(0), node(1, 0)], name="nightly", tags={"shop.tenant": "t1"}), store)
    assert answer == c.FlowSubmitted(FLOW, "running", 2)
    (one,) = store.kept
    assert (one.chunk, one.last, one.node_total, one.edge_total, one.name) == (1, True, 2, 1, "nightly")
    assert [(row.plan, row.group, row.edges) for row in one.nodes] == [(1, "A", ""), (1, "A", "1s")]
    assert len(one.digest) == 16 and one.tags == {"shop.tenant": "t1"}


async def test_what_is_sent_is_what_the_library_takes() -> None:
    store = Staging()
    await composed_flow.submit(asked([node(0), node(1, 0, payload=None, tags=b"1:a1:b", label="x")]), store)
    (one,) = store.kept
    words = bindings_of(library())[type(one)].request(one)
    assert words[:3] == ("FCALL", "ff_submit_flow", 2)
    assert words[-10:] == (one.nodes[1].execution_id, 1, bytes(16), b"", b"", b"=1:a1:b", "=x", b"", "A", "1s")
    plan = msgspec.json.decode(next(word for word in words if isinstance(word, bytes) and word.startswith(b"[{")))
    assert plan == [{
        "execution_kind": "t0", "lane_id": "default", "version": 1, "priority": 0, "policy": None,
        "payload_encoding": None, "delay_until": None, "execution_deadline_at": None,
    }]  # fmt: skip


async def test_a_large_graph_goes_one_chunk_after_another_and_the_last_one_says_so() -> None:
    store = Staging()
    await composed_flow.submit(asked(CHAIN), store)
    assert [len(one.nodes) for one in store.kept] == [limits.FLOW_CHUNK_N, limits.FLOW_CHUNK_N, 50]
    assert [one.last for one in store.kept] == [False, False, True]
    assert {(one.node_total, one.edge_total, one.digest) for one in store.kept} == {(250, 249, store.kept[0].digest)}
    assert store.kept[2].nodes[0].edges == "200s"


async def test_no_chunk_has_more_edges_bytes_or_plans_than_a_call_may() -> None:
    wide = [node(n) for n in range(20)] + [node(20 + n, *range(20)) for n in range(120)]
    heavy = [node(n, payload=bytes(limits.BATCH_BYTES // 2 - 1)) for n in range(3)]
    heaviest = [node(n, payload=bytes(limits.PAYLOAD_BYTES), tags=bytes(9)) for n in range(2)]
    varied = [node(n, plan=n % 130) for n in range(150)]
    for nodes, parts in ((wide, [70, 50, 20]), (heavy, [2, 1]), (heaviest, [1, 1]), (varied, [64, 64, 22])):
        store = Staging()
        await composed_flow.submit(asked(nodes, plans_n=130), store)
        assert [len(one.nodes) for one in store.kept] == parts
        for one in store.kept:
            assert sum(len(row.edges.split(",")) for row in one.nodes if row.edges) <= limits.FLOW_CHUNK_EDGES_N
            assert len(one.plans) <= limits.FLOW_PLANS_N
    named = [one.plans[row.plan - 1].execution_kind for one in store.kept for row in one.nodes]
    assert named == [f"t{n % 130}" for n in range(150)]


async def test_a_graph_that_is_wrong_is_refused_before_anything_is_sent() -> None:
    store = Staging()
    with pytest.raises(InvalidArgument, match="goes in a circle"):
        await composed_flow.submit(asked([node(0, 1), node(1, 0)]), store)
    assert not store.sent


async def test_a_digest_of_the_callers_own_is_used() -> None:
    store = Staging()
    await composed_flow.submit(asked([node(0)], digest=b"d" * 16), store)
    assert store.kept[0].digest == b"d" * 16


# ---- again, and refused --------------------------------------------------------------------------------


async def test_a_graph_that_stands_is_a_duplicate() -> None:
    store = Staging()
    await composed_flow.submit(asked(CHAIN), store)
    assert await composed_flow.submit(asked(CHAIN), store) == c.FlowDuplicate(FLOW, "running")
    assert store.chunks == [1, 2, 3, 1]


async def test_who_was_cut_off_goes_on_where_it_was() -> None:
    """A lost connection leaves what there is: sending the graph again asks which chunk is next."""

    def cut(args: Args[Any]) -> None:
        if isinstance(args, c.SubmitFlowWireArgs) and args.last and len(store.sent) == 3:
            raise Unavailable("the connection was lost", may_have_applied=False)

    store = Staging(cut)
    with pytest.raises(Unavailable):
        await composed_flow.submit(asked(CHAIN), store)
    assert not any(isinstance(args, c.AbortFlowArgs) for args in store.sent)
    assert isinstance(await composed_flow.submit(asked(CHAIN), store), c.FlowSubmitted)
    assert store.chunks == [1, 2, 3, 1, 3]


async def test_a_graph_that_was_removed_meanwhile_is_begun_again() -> None:
    def remove(args: Args[Any]) -> None:
        if len(store.sent) == 3:
            store.kept = []

    store = Staging(remove)
    assert isinstance(await composed_flow.submit(asked(CHAIN), store), c.FlowSubmitted)
    assert store.chunks == [1, 2, 3, 1, 2, 3]


async def test_two_who_send_the_same_graph_help_each_other() -> None:
    def help_out(args: Args[Any]) -> None:
        if len(store.sent) == 2:
            store.kept.append(other.kept[1])

    store, other = Staging(help_out), Staging()
    await composed_flow.submit(asked(CHAIN), other)
    assert isinstance(await composed_flow.submit(asked(CHAIN), store), c.FlowSubmitted)
    assert store.chunks == [1, 2, 3]


@pytest.mark.parametrize("lost", [None, rejection("purging"), Unavailable("gone", may_have_applied=True)])
async def test_a_refusal_of_a_later_chunk_gives_up_what_was_sent(lost: Exception | None) -> None:
    refused = rejection("payload_too_large", "9")

    def refuse(args: Args[Any]) -> None:
        if isinstance(args, c.AbortFlowArgs) and lost is not None:
            raise lost
        if len(store.sent) == 2:
            raise refused

    store = Staging(refuse)
    with pytest.raises(Rejected) as caught:
        await composed_flow.submit(asked(CHAIN), store)
    assert caught.value is refused
    last = store.sent[-1]
    assert isinstance(last, c.AbortFlowArgs) and last.flow_id == FLOW and len(last.digest) == 16


async def test_a_refusal_of_the_first_chunk_leaves_nothing_to_give_up() -> None:
    def refuse(args: Args[Any]) -> None:
        raise rejection("idempotency_conflict")

    store = Staging(refuse)
    with pytest.raises(Rejected):
        await composed_flow.submit(asked(CHAIN), store)
    assert store.chunks == [1] and len(store.sent) == 1


async def test_a_full_store_keeps_what_it_has_for_who_has_patience() -> None:
    def refuse(args: Args[Any]) -> None:
        if len(store.sent) == 2:
            raise rejection("store_full", "100")

    store = Staging(refuse)
    with pytest.raises(StoreFull):
        await composed_flow.submit(asked(CHAIN), store)
    await composed_flow.submit(asked(CHAIN), store)
    assert store.chunks == [1, 2, 1, 2, 3]


@pytest.mark.parametrize("answer", [c.FlowStaged(0), c.FlowStaged(9), c.FlowStaged(1)])
async def test_a_store_that_asks_for_what_there_is_not_is_a_bug(answer: c.FlowStaged) -> None:
    async def call(args: Args[Any], /) -> Any:
        return answer

    with pytest.raises(EngineBug, match="was answered by a call for"):
        await composed_flow.submit(asked(CHAIN), call)


async def test_a_stale_chunk_without_a_number_is_passed_on() -> None:
    def refuse(args: Args[Any]) -> None:
        raise rejection("stale_graph_revision", "what")

    with pytest.raises(Rejected, match="what"):
        await composed_flow.submit(asked(CHAIN), Staging(refuse))


# ---- describe ------------------------------------------------------------------------------------------


def info(state: str = "live", public: str = "running", **counts: int) -> c.FlowInfo:
    return c.FlowInfo(
        flow_id=FLOW, flow_kind="etl", namespace=DEFAULT, name="nightly", state=state, public_flow_state=public,
        graph_revision=3, node_count=4, edge_count=2, created_at=TimestampMs(1), last_mutation_at=TimestampMs(2),
        ended_at=None, cancelled_at=None, cancel_reason=None, cancellation_policy=None, resolving=0, payload_bytes=8,
        counts=counts, tags={"shop.tenant": "t1"},
    )  # fmt: skip


def member(number: int, state: str = "blocked", group: str = "", *, started: bool = False) -> c.Member:
    return c.Member(number, unkeyed_member_id(FLOW, number), "send", LaneId("default"), state, "", "", started, "",
                    group, [])  # fmt: skip


class Answers:
    """Answers requests of a kind with the next thing of its list, the last one for ever."""

    def __init__(self, **given: list[Any]) -> None:
        self.given, self.sent = given, list[Args[Any]]()

    async def __call__(self, args: Args[Any], /) -> Any:
        self.sent.append(args)
        answers = self.given[type(args).__name__.removesuffix("Args")]
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


async def test_a_description_has_the_groups_of_all_pages() -> None:
    store = Answers(ReadFlow=[info()], ReadMembers=[
        c.MembersPage([member(1), member(2, group="A 0 - 3 1 1 1 0 0 i")], 2),
        c.MembersPage([], 3),
        c.MembersPage([member(4, group="Q 2 l 4 1 1 0 0 1 p")], 0),
    ])  # fmt: skip
    found = await composed_flow.describe(c.DescribeFlowArgs(flow_id=FLOW), store)
    assert (found.flow_id, found.node_count, found.tags, found.status) == (FLOW, 4, {"shop.tenant": "t1"}, "active")
    assert [args.after for args in store.sent if isinstance(args, c.ReadMembersArgs)] == [0, 2, 3]
    assert found.edge_groups == [
        c.EdgeGroupSnapshot(unkeyed_member_id(FLOW, 2), c.EdgeAllOf(), 3, 1, 1, 0, 1, c.EdgeGroupState.IMPOSSIBLE),
        c.EdgeGroupSnapshot(unkeyed_member_id(FLOW, 4), c.EdgeQuorum(2, c.OnSatisfied.LET_RUN), 4, 1, 0, 0, 2,
                            c.EdgeGroupState.PENDING, 1),
    ]  # fmt: skip


# ---- cancel --------------------------------------------------------------------------------------------

ONE, TWO, THREE = (unkeyed_member_id(FLOW, n) for n in (1, 2, 3))
MEMBERS: list[ExecutionId] = [ONE, TWO, THREE]


def cancelling(policy: str = "cancel_all", wait: c.CancelFlowWait | None = None) -> c.CancelFlowArgs:
    return c.CancelFlowArgs(
        flow_id=FLOW, reason="why", cancellation_policy=c.CancelFlowPolicy(policy), wait=wait or c.NoWait()
    )


def begun(policy: str = "cancel_all") -> list[Any]:
    return [c.FlowCancelBegun(policy, MEMBERS, 3)]


async def test_a_cancel_that_has_members_still_to_end_is_scheduled() -> None:
    store = Answers(CancelFlowWire=begun(), ReadFlow=[info(active=1, cancelled=3)])
    assert await composed_flow.cancel(cancelling(), store) == c.CancellationScheduled("cancel_all", 4, MEMBERS)
    store = Answers(CancelFlowWire=begun(), ReadFlow=[info(cancelled=4)])
    assert await composed_flow.cancel(cancelling(), store) == c.FlowCancelled("cancel_all", MEMBERS)
    store = Answers(CancelFlowWire=begun("cancel_pending"), ReadFlow=[info(active=1, cancelled=3)])
    found = await composed_flow.cancel(cancelling("cancel_pending"), store)
    assert found == c.FlowCancelled("cancel_pending", MEMBERS)


async def test_a_cancel_of_the_flow_alone_ends_nobody() -> None:
    store = Answers(CancelFlowWire=begun("flow_only"))
    found = await composed_flow.cancel(cancelling("flow_only", c.WaitIndefinite()), store)
    assert found == c.FlowCancelled("flow_only", MEMBERS)


async def test_a_flow_cancelled_before_answers_what_was_decided_then() -> None:
    first = c.FlowAlreadyTerminal("cancel_all", "first", MEMBERS)
    store = Answers(CancelFlowWire=[first], ReadFlow=[info(cancelled=4)])
    assert await composed_flow.cancel(cancelling("flow_only"), store) == c.FlowCancelled("cancel_all", MEMBERS)
    store = Answers(CancelFlowWire=[first], ReadFlow=[rejection("flow_not_found")])
    assert await composed_flow.cancel(cancelling(), store) == c.FlowCancelled("cancel_all", MEMBERS)


async def test_a_flow_that_ended_otherwise_is_not_cancelled() -> None:
    store = Answers(CancelFlowWire=[c.FlowAlreadyTerminal(None, None, MEMBERS)])
    with pytest.raises(Rejected) as caught:
        await composed_flow.cancel(cancelling(), store)
    assert caught.value.code == "flow_already_terminal" and FLOW in str(caught.value)


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Time that passes only when somebody waits."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(composed_flow.asyncio, "sleep", sleep)
    monkeypatch.setattr(composed_flow.time, "monotonic", lambda: sum(slept))
    return slept


async def test_who_waits_looks_ever_less_often_until_all_have_ended(pauses: list[float]) -> None:
    looks = [info(active=n) for n in (3, 3, 2, 2, 1, 1, 1, 1, 0)]
    store = Answers(CancelFlowWire=begun(), ReadFlow=looks)
    found = await composed_flow.cancel(cancelling(wait=c.WaitIndefinite()), store)
    assert found == c.FlowCancelled("cancel_all", MEMBERS)
    assert pauses == [0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.25, 0.25]


async def test_members_that_are_late_are_listed(pauses: list[float]) -> None:
    page = c.MembersPage([member(1, "cancelled"), member(2, "active", started=True), member(3, "suspended")], 0)
    store = Answers(CancelFlowWire=begun(), ReadFlow=[info(active=1, suspended=1)], ReadMembers=[page])
    found = await composed_flow.cancel(cancelling(wait=c.WaitTimeout(1_000)), store)
    assert found == c.PartiallyCancelled("cancel_all", MEMBERS, [TWO, THREE])
    assert 0.7 < sum(pauses) <= 1.0


async def test_a_cancel_of_the_pending_does_not_wait_for_one_that_has_begun(pauses: list[float]) -> None:
    """Delayed may be the first attempt or the next one: only the members themselves tell."""
    pages = [
        c.MembersPage([member(1, "delayed", started=True), member(2, "blocked")], 0),
        c.MembersPage([member(1, "delayed", started=True), member(2, "cancelled")], 0),
    ]
    looks = [info(delayed=1, blocked=1), info(delayed=1, blocked=1), info(delayed=1), info(delayed=1)]
    store = Answers(CancelFlowWire=begun("cancel_pending"), ReadFlow=looks, ReadMembers=pages)
    found = await composed_flow.cancel(cancelling("cancel_pending", c.WaitIndefinite()), store)
    assert found == c.FlowCancelled("cancel_pending", MEMBERS)
    assert len(pauses) == 3


async def test_a_flow_that_is_purged_while_somebody_waits_has_ended(pauses: list[float]) -> None:
    gone = rejection("flow_not_found", "purged")
    assert isinstance(gone, NotFound)
    store = Answers(CancelFlowWire=begun(), ReadFlow=[info(active=1)], ReadMembers=[gone])
    found = await composed_flow.cancel(cancelling(wait=c.WaitTimeout(0)), store)
    assert found == c.FlowCancelled("cancel_all", MEMBERS)
    store = Answers(CancelFlowWire=begun(), ReadFlow=[info(active=1), gone])
    found = await composed_flow.cancel(cancelling(wait=c.WaitIndefinite()), store)
    assert found == c.FlowCancelled("cancel_all", MEMBERS)
