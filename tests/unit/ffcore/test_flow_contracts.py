"""Contracts of flows refuse what cannot be meant when they are built; a whole graph is `test_flows.py`'s."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ffcore import contracts as c
from ffcore import limits
from ffcore.errors import InvalidArgument
from ffcore.ids import (
    AttemptIndex,
    EdgeId,
    ExecutionId,
    FlowId,
    LaneId,
    Namespace,
    PartitionKey,
    TimestampMs,
)

UUID = "018f0000-0000-7000-8000-000000000000"
ONE = ExecutionId("{fp:3}:" + UUID)
OTHER = ExecutionId("{fp:3}:018f0000-0000-7000-8000-000000000001")
ELSEWHERE = ExecutionId("{fp:4}:" + UUID)
FLOW = FlowId("{fp:3}:018f0000-0000-7000-8000-00000000000f")
EDGE, AT = EdgeId("e-1"), PartitionKey("{fp:3}")


def submit(**changes: Any) -> c.SubmitFlowArgs:
    fields: dict[str, Any] = {"flow_id": FLOW, "namespace": "default", "plans": [], "nodes": [], **changes}
    return c.SubmitFlowArgs(**fields)


def plan(**changes: Any) -> c.FlowPlan:
    fields: dict[str, Any] = {"execution_kind": "send", "lane_id": "default", **changes}
    return c.FlowPlan(**fields)


def spawn(**changes: Any) -> c.SpawnArgs:
    fields: dict[str, Any] = {
        "execution_id": ONE, "fence": "l 1 a", "step": "0", "step_name": "spawn send", "task_version": 1,
        "flow_id": FLOW, "child_id": OTHER, "namespace": Namespace("default"), "lane_id": LaneId("default"),
        "execution_kind": "send", "input_payload": b"{}", "digest": bytes(16), **changes,
    }  # fmt: skip
    return c.SpawnArgs(**fields)


def waiting(**changes: Any) -> c.MoveToWaitingChildrenArgs:
    fields: dict[str, Any] = {"execution_id": ONE, "attempt_index": AttemptIndex(0), **changes}
    return c.MoveToWaitingChildrenArgs(**fields)


def stage(**changes: Any) -> c.StageDependencyEdgeArgs:
    fields: dict[str, Any] = {
        "flow_id": FLOW, "edge_id": EDGE, "upstream_execution_id": ONE, "downstream_execution_id": OTHER,
        "expected_graph_revision": 0, **changes,
    }  # fmt: skip
    return c.StageDependencyEdgeArgs(**fields)


def job(**changes: Any) -> c.ClaimedJob:
    fields: dict[str, Any] = dict.fromkeys(c.ClaimedJob.__struct_fields__, "")
    fields |= {"execution_id": ONE, **changes}
    return c.ClaimedJob(**fields)


SOUND: list[Callable[[], object]] = [
    submit,
    lambda: submit(name="n" * limits.KEY_BYTES, flow_kind="k" * limits.NAME_BYTES, digest=bytes(16)),
    lambda: plan(version=limits.VERSION_MAX, priority=100),
    spawn,
    lambda: spawn(label="l" * limits.KEY_BYTES, abandon=True, lease_ttl_ms=30_000),
    waiting,
    lambda: waiting(need=3),
    lambda: waiting(need=2, children=[c.Child(ONE), c.Child(OTHER)]),
    lambda: waiting(children=[c.Child(ONE)] * limits.ROWS_N),
    stage,
    lambda: stage(data_passing_ref="r" * limits.EDGE_REF_BYTES),
    lambda: c.ListEdgesArgs(flow_id=FLOW, execution_id=ONE, direction="incoming", limit=limits.PAGE_MAX_N),
    lambda: c.CancelFlowArgs(flow_id=FLOW, reason="", cancellation_policy=c.CancelFlowPolicy.CANCEL_ALL),
]


@pytest.mark.parametrize("build", SOUND)
def test_what_is_just_within_bounds_is_taken(build: Callable[[], object]) -> None:
    assert build() is not None


UNSOUND: list[tuple[Callable[[], object], str]] = [
    (lambda: submit(flow_id=UUID), "invalid_input"),
    (lambda: submit(namespace="a b"), "invalid_input"),
    (lambda: submit(name="n" * (limits.KEY_BYTES + 1)), "invalid_input"),
    (lambda: submit(digest=b"short"), "invalid_input"),
    (lambda: submit(tags={"tenant": "t"}), "invalid_tag_key"),
    (lambda: plan(execution_kind=""), "invalid_input"),
    (lambda: plan(version=0), "invalid_input"),
    (lambda: plan(priority=101), "invalid_input"),
    (lambda: plan(delay_until=-1), "invalid_input"),
    (lambda: spawn(child_id=ELSEWHERE), "invalid_input"),
    (lambda: spawn(flow_id=ELSEWHERE), "invalid_input"),
    (lambda: spawn(input_payload=bytes(limits.PAYLOAD_BYTES + 1)), "payload_too_large"),
    (lambda: spawn(digest=b""), "invalid_input"),
    (lambda: spawn(label="l" * (limits.KEY_BYTES + 1)), "invalid_input"),
    (lambda: spawn(lease_ttl_ms=-1), "invalid_input"),
    (lambda: waiting(need=-1), "invalid_input"),
    (lambda: waiting(need=2, children=[c.Child(ONE)]), "invalid_input"),
    (lambda: waiting(children=[c.Child(ONE)] * (limits.ROWS_N + 1)), "invalid_input"),
    (lambda: stage(edge_id=""), "invalid_input"),
    (lambda: stage(edge_id="two words"), "invalid_input"),
    (lambda: stage(downstream_execution_id=ELSEWHERE), "invalid_input"),
    (lambda: stage(downstream_execution_id=ONE), "self_referencing_edge"),
    (lambda: stage(data_passing_ref="r" * (limits.EDGE_REF_BYTES + 1)), "invalid_input"),
    (lambda: c.ApplyDependencyToChildArgs(flow_id=FLOW, edge_id=EDGE, upstream_execution_id=ONE,
                                          downstream_execution_id=OTHER, graph_revision=-1), "invalid_input"),
    (lambda: c.ResolveDependencyArgs(edge_id=EDGE, upstream_outcome="success", at=ExecutionId("x")), "invalid_input"),
    (lambda: c.DescribeEdgeArgs(flow_id=FLOW, edge_id=EdgeId("e\n")), "invalid_input"),
    (lambda: c.SetEdgeGroupPolicyArgs(flow_id=FLOW, downstream_execution_id=ELSEWHERE, policy=c.EdgeAllOf()),
     "invalid_input"),
    (lambda: c.ListEdgesArgs(flow_id=FLOW, execution_id=ONE, direction="both"), "invalid_input"),  # type: ignore[arg-type]
    (lambda: c.ListEdgesArgs(flow_id=FLOW, execution_id=ONE, direction="outgoing", limit=0), "invalid_input"),
    (lambda: c.ReadMembersArgs(flow_id=FLOW, after=-1), "invalid_input"),
    (lambda: c.ReadUpstreamsArgs(execution_id=ONE, limit=1_001), "invalid_input"),
    (lambda: c.ListFlowsArgs(partition=AT, limit=0), "invalid_input"),
    (lambda: c.CancelFlowArgs(flow_id=FlowId(UUID), reason="", cancellation_policy=c.CancelFlowPolicy.FLOW_ONLY),
     "invalid_input"),
]


@pytest.mark.parametrize(("build", "code"), UNSOUND)
def test_what_is_just_out_of_bounds_is_refused(build: Callable[[], object], code: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        build()
    assert caught.value.code == code


def test_a_wait_says_its_kind() -> None:
    words = {"no_wait": c.NoWait(), "wait_timeout": c.WaitTimeout(5), "wait_indefinite": c.WaitIndefinite()}
    for word, wait in words.items():
        text = msgspec.json.encode(wait)
        assert msgspec.json.decode(text)["type"] == word
        assert msgspec.json.decode(text, type=c.CancelFlowWait) == wait


def test_a_claimed_job_knows_its_flow() -> None:
    assert job(flow="-").flow_id is None
    assert job(flow=FLOW.removeprefix("{fp:3}:")).flow_id == FLOW


def test_members_that_have_not_ended_are_counted_together() -> None:
    info = c.FlowInfo(
        flow_id=FLOW, flow_kind="", namespace=Namespace("default"), name="", state="live", public_flow_state="running",
        graph_revision=1, node_count=9, edge_count=0, created_at=TimestampMs(0), last_mutation_at=TimestampMs(0),
        ended_at=None, cancelled_at=None, cancel_reason=None, cancellation_policy=None, resolving=0, payload_bytes=0,
        counts={"ready": 1, "active": 2, "suspended": 3, "completed": 3}, tags={},
    )  # fmt: skip
    assert info.unfinished == 6 and not info.ended
