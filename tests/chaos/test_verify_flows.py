"""The judge of flows: stories of a flow, each with something in it to which it must object."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from ffcore.contracts.flow import FlowInfo
from ffcore.contracts.reads import ExecutionOutcome
from ffcore.flows import member_id
from ffcore.ids import ExecutionId, Namespace, TimestampMs
from tests.chaos.feed import Feed, Move, Turn
from tests.chaos.graphs import CANCELLED, SHAPES, Graph, Node, graphs, name_of
from tests.chaos.ledger import Evidence, Run
from tests.chaos.submitter import Orders
from tests.chaos.tasks import merged_of, result_of
from tests.chaos.test_verify import Told
from tests.chaos.verify_flows import Flow

ORDERS = Orders(url="", jobs=4_500, per_s=30.0, seed=1, poison_each=650, lease_s=2.0)
RACE = Graph(n=10, shape="race", nodes=(
    Node(n=10, task="work"), Node(n=11, task="work"), Node(n=12, task="merge", after=(0, 1), need=1, cancels=True),
))  # fmt: skip
PAIR = Graph(n=20, shape="diamond", cancel="cancel_pending", nodes=(
    Node(n=20, task="work"), Node(n=21, task="refused"), Node(n=22, task="work", after=(0, 1)),
    Node(n=23, task="merge", after=(0, 1), on="always"), Node(n=24, task="work", after=(1,), on="failure"),
))  # fmt: skip
FAMILY = Graph(n=30, shape="family", nodes=(Node(n=30, task="parent", children=("work", "refused")),))


class Story:
    """What the store says of a flow, and what the workers say of it."""

    def __init__(self, graph: Graph, state: str = "completed", policy: str | None = None) -> None:
        self.graph, self.id = graph, graph.flow_id(1)
        self.feed, self.evidence = Feed(Told("active")), Evidence()  # type: ignore[arg-type]
        self.stored: dict[str, ExecutionOutcome] = {}
        self.feed.flows[self.id] = [Turn("-", "created", "-", 1), Turn("running", state, "ended", 99)]
        self.state, self.policy, self._place = state, policy, 1

    def execution(self, n: int) -> ExecutionId:
        return member_id(self.id, name_of(n))

    def _move(self, n: int, was: str, now: str, epoch: int = 0) -> None:
        self._place += 1
        moves = self.feed.moves[self.execution(n)]
        moves.append(Move(self._place, was, now, epoch, "0", "w" if now == "active" else "-", "-", self._place))

    def made(self, *numbers: int) -> Story:
        for n in numbers:
            self._move(n, "-", "blocked")
        return self

    def begins(self, n: int, inputs: Any = ...) -> Story:
        self._move(n, "ready", "active", n)
        self.evidence.runs[self.execution(n), n] = Run(n, self.execution(n), n, self._place, 0)
        if inputs is not ...:
            self.evidence.inputs[self.execution(n), n] = msgspec.json.encode(inputs)
        return self

    def ends(self, n: int, state: str = "completed", result: Any = ...) -> Story:
        one, ran = self.execution(n), (self.execution(n), n) in self.evidence.runs
        if ran and state == "completed":
            self.evidence.runs[one, n] = self.evidence.runs[one, n]._replace(end_ms=self._place)
        self._move(n, "active" if ran else "blocked", state, n if ran else 0)
        if result is ...:
            given = self.evidence.inputs.get((one, n))
            result = result_of(n, n) if given is None else merged_of(given, n)
        self.stored[one] = ExecutionOutcome(
            execution_id=one, state=state, result=msgspec.json.encode(result) if state == "completed" else b"",
            result_encoding="", reason="", category="", traceback="", attempts=1, has_result=state == "completed",
        )  # fmt: skip
        return self

    def runs(self, n: int, state: str = "completed", inputs: Any = ..., result: Any = ...) -> Story:
        return self.begins(n, inputs).ends(n, state, result)

    def cancelled(self) -> Story:
        self._place += 1
        self.feed.flows[self.id].insert(1, Turn("running", "cancelled", "cancel_pending", self._place))
        self.policy, self.state = "cancel_pending", "cancelled"
        self.evidence.halts[self.graph.n] = "scheduled"
        return self

    def sorts(self, counts: Mapping[str, int] | None = None, state: str = "ended") -> set[str]:
        ended = Counter(one.state for one in self.stored.values()) if counts is None else counts
        info = FlowInfo(
            flow_id=self.id, flow_kind="", namespace=Namespace("default"), name="", state=state,
            public_flow_state=self.state, graph_revision=1, node_count=len(self.feed.moves), edge_count=0,
            created_at=TimestampMs(1), last_mutation_at=TimestampMs(1), ended_at=TimestampMs(9), cancelled_at=None,
            cancel_reason=None, cancellation_policy=self.policy,
            resolving=0, payload_bytes=0, counts=dict(ended), tags={},
        )  # fmt: skip
        flow = Flow(self.graph, self.id, info, self.stored, self.feed, self.evidence)
        return {sort for sort, _, _ in flow.wrong()}


def race() -> Story:
    return Story(RACE).made(10, 11, 12).begins(10).begins(11)


def pair() -> Story:
    """Its failure is provided for by the last one, but not for who needs both."""
    story = Story(PAIR).made(20, 21, 22, 23, 24).runs(20).runs(21, "failed").ends(22, "skipped")
    return story.runs(23, inputs=[result_of(20, 20), None])


def family(told: Any = ...) -> Story:
    story = Story(FAMILY).made(30).begins(30).made(31, 32).runs(31).runs(32, "failed")
    return story.ends(30, result=[*result_of(30, 30), [result_of(31, 31), "failed"] if told is ... else told])


def test_flows_that_went_well_are_not_objected_to() -> None:
    assert race().ends(10).ends(11, "cancelled").runs(12, inputs=[result_of(10, 10)]).sorts() == set()
    assert race().ends(10).ends(11).runs(12, inputs=[result_of(10, 10)]).sorts() == set(), "it was too late to cancel"
    assert pair().runs(24).sorts() == set()
    assert family().sorts() == set()
    halted = Story(PAIR).made(20, 21, 22, 23, 24).begins(20).cancelled().ends(20)
    for n in (21, 22, 23, 24):
        halted.ends(n, "cancelled")
    assert halted.sorts() == set()


def test_who_begins_before_those_it_depends_on_have_ended_is_noticed() -> None:
    assert race().begins(12, [result_of(10, 10)]).ends(10).ends(11, "cancelled").ends(12).sorts() == {"order"}
    assert "order" in pair().begins(22).runs(24).sorts(), "it was skipped"
    late = Story(RACE).made(10, 11, 12).runs(10).runs(11).runs(12, inputs=[result_of(10, 10)])
    assert late.sorts() == {"order"}, "nobody needed the second one when it began"
    assert "order" in Story(PAIR).made(20, 21, 22, 23, 24).cancelled().runs(20).sorts(), "its flow was cancelled"


def test_a_member_that_could_not_end_so_is_noticed() -> None:
    assert race().ends(10, "cancelled").ends(11).runs(12, inputs=[result_of(11, 11)]).sorts() == set()
    assert "outcome" in pair().runs(24, "failed").sorts() & pair().ends(24, "cancelled").sorts()
    assert "order" in pair().ends(24, "skipped").sorts(), "its upstream failed, and that is what it is for"
    assert "outcome" in pair().ends(24, "expired").sorts(), "it has no deadline"
    kept = Story(PAIR).made(20, 21, 22, 23, 24).begins(20).cancelled().ends(20, "cancelled")
    assert "outcome" in kept.sorts(), "it had begun, and only those that had not are cancelled"


def test_a_member_that_never_ends_or_ends_twice_is_noticed() -> None:
    assert "lost" in pair().sorts() and pair().runs(24).sorts(state="live") == {"lost"}
    twice = pair().runs(24)
    twice.ends(24)
    assert twice.sorts() == {"duplicated"}
    told = pair().runs(24)
    told.evidence.by_state[told.execution(24)] = {24, 25}
    assert told.sorts() == {"duplicated"}


@pytest.mark.parametrize("inputs", [[], [result_of(11, 11)], [result_of(10, 10), result_of(11, 11)], None])
def test_inputs_are_what_made_it_true(inputs: Any) -> None:
    assert race().ends(10).ends(11, "cancelled").runs(12, inputs=inputs).sorts() == {"input"}


def test_inputs_of_all_have_their_places() -> None:
    story = Story(PAIR).made(20, 21, 22, 23, 24).runs(20).runs(21, "failed").ends(22, "skipped")
    assert story.runs(23, inputs=[None, result_of(20, 20)]).runs(24).sorts() == {"input"}


def test_a_result_that_is_not_that_of_its_lease_is_noticed() -> None:
    assert pair().runs(24, result=result_of(24, 23)).sorts() == {"result"}
    assert pair().ends(24).sorts() >= {"result"}, "no handler ran"


def test_a_flow_that_came_to_something_else_is_noticed() -> None:
    wrong = pair().runs(24)
    wrong.state = "failed"
    assert wrong.sorts() == {"flow"}
    assert pair().runs(24).sorts(counts={"completed": 5}) == {"flow"}
    stopped = pair().runs(24)
    stopped.policy, stopped.state = "cancel_all", "cancelled"
    assert stopped.sorts() == {"flow"}, "nobody asked for that"
    again = pair().runs(24)
    again.feed.flows[again.id].append(Turn("completed", "completed", "ended", 100))
    assert again.sorts() == {"flow"}


def test_a_join_that_failed_fails_the_flow_and_one_that_was_not_needed_does_not() -> None:
    nested = Graph(n=40, shape="graph", nodes=(
        Node(n=40, task="refused"), Node(n=41, task="work"), Node(n=42, task="merge", after=(0,), need=1),
        Node(n=43, task="merge", after=(1, 2), need=1, cancels=True),
    ))  # fmt: skip
    made = Story(nested).made(40, 41, 42, 43).begins(40).runs(41).ends(42, "cancelled").ends(40, "failed")
    assert made.runs(43, inputs=[result_of(41, 41)]).sorts() == set()
    missed = Story(nested).made(40, 41, 42, 43).runs(40, "failed").ends(42, "skipped").runs(41)
    assert missed.runs(43, inputs=[result_of(41, 41)]).sorts() == {"flow"}, "it met too many failures"
    missed.state = "failed"
    assert missed.sorts() == set()


def test_children_are_made_once_and_waited_for() -> None:
    again = family()
    again.feed.moves[again.execution(31)].append(Move(50, "-", "ready", 0, "0", "-", "-", 50))
    assert again.sorts() == {"duplicated"}
    assert family([result_of(31, 31), None]).sorts() == {"result"}
    early = Story(FAMILY).made(30).begins(30).made(31, 32).runs(31)
    early.ends(30, result=[*result_of(30, 30), [result_of(31, 31), "failed"]]).runs(32, "failed")
    assert early.sorts() == {"order"}
    gone = Story(FAMILY).made(30).begins(30).made(31).runs(31)
    assert "lost" in gone.ends(30, result=[*result_of(30, 30), [result_of(31, 31), "unknown"]]).sorts()


def test_flows_are_drawn_from_the_seed_and_take_a_third_of_the_jobs() -> None:
    every = list(graphs(ORDERS))
    flows = [one for one in every if isinstance(one, Graph)]
    assert every == list(graphs(ORDERS)) != list(graphs(msgspec.structs.replace(ORDERS, seed=2)))
    numbers = [n for one in every for n in (one.numbers if isinstance(one, Graph) else (one,))]
    assert numbers == list(range(ORDERS.jobs))
    assert ORDERS.jobs / 4 < sum(len(flow.numbers) for flow in flows) < ORDERS.jobs / 2
    assert {flow.shape for flow in flows} == set(SHAPES)
    assert len(flows) * CANCELLED / 2 < sum(bool(flow.cancel) for flow in flows) < len(flows) * CANCELLED * 2
    for flow in flows:
        assert all(up < place for place, node in enumerate(flow.nodes) for up in node.after)
        assert all(node.after or node.task != "merge" for node in flow.nodes)
