"""Contracts refuse what cannot be meant when they are built, and survive the way through JSON."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from ffcore import contracts as c
from ffcore import limits
from ffcore.errors import InvalidArgument
from ffcore.ids import (
    AttemptId,
    AttemptIndex,
    BudgetId,
    EdgeId,
    ExecutionId,
    FlowId,
    LaneId,
    LeaseEpoch,
    LeaseId,
    Namespace,
    PartitionKey,
    QuotaPolicyId,
    SignalId,
    TimestampMs,
    WaitpointId,
    WaitpointToken,
    WorkerId,
    WorkerInstanceId,
)
from ffcore.policy import ExecutionPolicy
from ffcore.states import PublicState

UUID = "018f0000-0000-7000-8000-000000000000"
ONE = ExecutionId("{fp:3}:" + UUID)
OTHER = ExecutionId("{fp:3}:018f0000-0000-7000-8000-000000000001")
FLOW = FlowId("{fp:3}:018f0000-0000-7000-8000-00000000000f")
AT = PartitionKey("{fp:3}")
FENCE = c.LeaseFence(LeaseId("w.0.1.0"), LeaseEpoch(7), AttemptId("w.0.1.0"))
WORKER, INSTANCE, LANE = WorkerId("w"), WorkerInstanceId("w-1"), LaneId("default")


def create(**changes: Any) -> c.CreateExecutionArgs:
    fields: dict[str, Any] = {
        "execution_id": ONE, "namespace": Namespace("test"), "lane_id": LANE, "execution_kind": "llm_call",
        "input_payload": b"hello", "payload_encoding": "json", "creator_identity": "test-user", "digest": bytes(16),
        **changes,
    }
    return c.CreateExecutionArgs(**fields)


def claim_for_worker(**changes: Any) -> c.ClaimForWorkerArgs:
    fields: dict[str, Any] = {
        "lane_id": LANE, "worker_id": WORKER, "worker_instance_id": INSTANCE, "grant_ttl_ms": 1_000, "at": AT,
        **changes,
    }
    return c.ClaimForWorkerArgs(**fields)


def through_json(value: Any, wanted: Any) -> Any:
    return msgspec.json.decode(msgspec.json.encode(value, enc_hook=c.enc_hook), type=wanted, dec_hook=c.dec_hook)


# ---- through JSON ------------------------------------------------------------------------------------


def test_create_execution_args_serde() -> None:
    args = create(tags={"shop.tenant": "t1"}, policy=ExecutionPolicy(), partition_id=3, now=TimestampMs(5))
    assert through_json(args, c.CreateExecutionArgs) == args


def test_claim_result_serde() -> None:
    claimed = c.Claimed(c.ClaimedExecution(
        ONE, LeaseId("l"), LeaseEpoch(1), AttemptIndex(0), AttemptId("a"), c.AttemptType.INITIAL, TimestampMs(1_000),
        c.STUB_FRESH,
    ))
    assert through_json(claimed, c.ClaimExecutionResult) == claimed


def test_a_claim_answered_without_a_handle_has_the_stub() -> None:
    text = f'["claimed",["{ONE}","l",1,0,"a","retry",1000]]'
    assert msgspec.json.decode(text, type=c.Claimed).execution.handle == c.STUB_FRESH


def test_sources_travel_as_plain_words() -> None:
    args = c.CancelExecutionArgs(execution_id=ONE, reason="r", source=c.CancelSource.OPERATOR_OVERRIDE)
    assert msgspec.json.decode(msgspec.json.encode(args, enc_hook=c.enc_hook))["source"] == "operator_override"
    assert through_json(args, c.CancelExecutionArgs).source == c.CancelSource.OPERATOR_OVERRIDE


def test_one_union_tells_its_variants_apart_by_their_tag() -> None:
    revoked = c.Revoked(LeaseId("l"), LeaseEpoch(3))
    assert msgspec.json.encode(revoked) == b'["revoked","l",3]'
    assert through_json(revoked, c.RevokeLeaseResult) == revoked
    assert msgspec.json.decode(b'["already_satisfied","gone"]', type=c.RevokeLeaseResult) == c.AlreadySatisfied("gone")


# ---- create ------------------------------------------------------------------------------------------


def test_create_takes_the_boundary_of_every_limit() -> None:
    for priority in (-100, 0, 100):
        assert create(priority=priority).priority == priority
    create(input_payload=bytes(limits.PAYLOAD_BYTES))
    create(tags={f"n.k{i}": "v" * limits.TAG_VALUE_BYTES for i in range(limits.TAGS_N)})
    create(namespace="n" * 128, lane_id="l" * 128, execution_kind="k" * 128)
    assert {"now", "partition_id", "idempotency_key"} == create(partition_id=3).OFF_WIRE


@pytest.mark.parametrize(("changes", "code"), [
    ({"priority": 101}, "invalid_input"),
    ({"priority": -101}, "invalid_input"),
    ({"priority": True}, "invalid_input"),
    ({"input_payload": bytes(limits.PAYLOAD_BYTES + 1)}, "payload_too_large"),
    ({"execution_id": UUID}, "invalid_input"),
    ({"execution_id": "{b:1}:" + UUID}, "invalid_input"),
    ({"execution_id": "{fp:1}:" + UUID + "}"}, "invalid_input"),
    ({"partition_id": 4}, "invalid_input"),
    ({"namespace": ""}, "invalid_input"),
    ({"lane_id": "a b"}, "invalid_input"),
    ({"lane_id": "{a}"}, "invalid_input"),
    ({"execution_kind": "k" * 129}, "invalid_input"),
    ({"tags": {f"n.k{i}": "" for i in range(limits.TAGS_N + 1)}}, "invalid_input"),
    ({"tags": {"n.k": "v" * 257}}, "invalid_input"),
    ({"tags": {"n.k": "\ud800"}}, "invalid_input"),
    ({"delay_until": -1}, "invalid_input"),
    ({"execution_deadline_at": 2**53}, "invalid_input"),
    ({"digest": b"short"}, "invalid_input"),
    ({"version": -1}, "invalid_input"),
    ({"fairness_key": ""}, "invalid_input"),
    ({"fairness_key": "a\nb"}, "invalid_input"),
    ({"idempotency_key": "k" * 513}, "invalid_input"),
])
def test_create_refuses_what_is_out_of_bounds(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        create(**changes)
    assert caught.value.code == code


@pytest.mark.parametrize("key", [
    "tenant", "Shop.tenant", "1shop.tenant", ".tenant", "shop.", "shop tenant.x", "shop.a b", "",
])
def test_a_tag_key_needs_a_namespace(key: str) -> None:
    for build in (lambda: create(tags={key: "v"}),
                  lambda: c.SetExecutionTagsArgs(execution_id=ONE, tags={key: "v"}),
                  lambda: c.SetFlowTagsArgs(flow_id=FLOW, tags={key: "v"})):
        with pytest.raises(InvalidArgument, match=r"shop\.tenant") as caught:
            build()
        assert caught.value.code == "invalid_tag_key"


def test_the_policys_priority_and_delay_hold_when_the_call_has_none() -> None:
    policy = ExecutionPolicy(priority=7, delay_until=TimestampMs(99))
    assert (create(policy=policy).priority, create(policy=policy).delay_until) == (7, 99)
    assert create(policy=policy, priority=7).priority == 7
    with pytest.raises(InvalidArgument, match="give it once"):
        create(policy=policy, priority=8)


def test_a_default_map_is_not_shared_between_requests() -> None:
    create().tags["x"] = "y"
    assert create().tags == {}


# ---- fences, handles, sources ------------------------------------------------------------------------


def test_a_fence_is_one_line_and_back() -> None:
    assert FENCE.wire == "w.0.1.0 7 w.0.1.0"
    assert c.LeaseFence.parse(FENCE.wire) == FENCE


@pytest.mark.parametrize("text", ["", "a 1", "a 1 b c", "a x b", "a -1 b", " 1 b", "a ٣ b", "l" * 65 + " 1 a"])
def test_a_malformed_fence_is_refused(text: str) -> None:
    with pytest.raises(InvalidArgument):
        c.LeaseFence.parse(text)


def test_a_handle_carries_the_execution_and_its_fence() -> None:
    handle = c.Handle.of(c.HandleKind.FRESH, ONE, FENCE)
    assert (handle.execution_id, handle.fence) == (ONE, FENCE)
    assert through_json(handle, c.Handle) == handle
    with pytest.raises(InvalidArgument, match="names no attempt"):
        _ = c.STUB_FRESH.fence
    with pytest.raises(InvalidArgument, match="not made by this engine"):
        _ = c.Handle(c.BackendTag.POSTGRES, c.HandleKind.FRESH, handle.opaque).execution_id


def test_a_custom_source_is_any_other_text() -> None:
    mine = c.CancelSource.custom("billing")
    assert mine.is_custom and mine.wire == "billing" and c.CancelSource.parse("billing") == mine
    assert not c.CancelSource.LEASE_HOLDER.is_custom
    for text in ("operator_override", "", "a\nb", "x" * 129):
        with pytest.raises(InvalidArgument):
            c.CancelSource.custom(text)


def test_a_cancel_carries_its_whole_fence_or_none() -> None:
    c.CancelExecutionArgs(execution_id=ONE, reason="r")
    c.CancelExecutionArgs(execution_id=ONE, reason="r", lease_id=FENCE.lease_id, lease_epoch=FENCE.lease_epoch,
                          attempt_id=FENCE.attempt_id)
    with pytest.raises(InvalidArgument, match="all or none") as caught:
        c.CancelExecutionArgs(execution_id=ONE, reason="r", lease_id=FENCE.lease_id)
    assert caught.value.code == "partial_fence_triple"


def test_a_worker_without_a_fence_is_not_an_operator() -> None:
    """The default source must not open what only an operator may do."""
    args = c.CompleteExecutionArgs(execution_id=ONE, attempt_index=AttemptIndex(0))
    assert args.source == c.CancelSource.LEASE_HOLDER


# ---- capabilities ------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [
    frozenset(), frozenset({"gpu", "torch>=2.3", "größe"}), frozenset(f"t{i}" for i in range(256)),
    frozenset({"x" * 4096}),
])
def test_capability_tokens_up_to_the_limits_are_taken(tokens: frozenset[str]) -> None:
    assert claim_for_worker(worker_capabilities=tokens).worker_capabilities == tokens


@pytest.mark.parametrize("tokens", [
    frozenset({""}), frozenset({"a,b"}), frozenset({"a b"}), frozenset({"a\tb"}), frozenset({"a\x7f"}),
    frozenset({"\0"}), frozenset(f"t{i}" for i in range(257)), frozenset({"x" * 4097}),
    frozenset({"x" * 2048, "y" * 2048}),
])
def test_capability_tokens_that_do_not_travel_are_refused(tokens: frozenset[str]) -> None:
    with pytest.raises(InvalidArgument) as caught:
        claim_for_worker(worker_capabilities=tokens)
    assert caught.value.code == "invalid_capabilities"


def test_a_capability_set_reads_the_same_however_it_was_written() -> None:
    assert c.CapabilitySet(["b", "a", "b"]).wire == c.CapabilitySet(["a", "b"]).wire == "a,b"
    assert c.CapabilitySet(["a", "b"]).covers(frozenset({"a"}))
    assert not c.CapabilitySet(["a"]).covers(frozenset({"a", "b"}))


# ---- small enums and views ---------------------------------------------------------------------------


def test_words_of_a_newer_version_read_as_the_cautious_one() -> None:
    assert [c.EdgeGroupState.from_literal(w) for w in ("satisfied", "impossible", "cancelled", "pending", "new")] == [
        "satisfied", "impossible", "cancelled", "pending", "pending",
    ]
    words = ("open", "running", "blocked", "completed", "failed", "cancelled", "active", "new")
    assert [c.FlowStatus.from_public_flow_state(w).value for w in words] == [
        "active", "active", "active", "completed", "failed", "cancelled", "unknown", "unknown",
    ]


def test_edge_policies_keep_the_seeds_json() -> None:
    for policy, word in ((c.EdgeAllOf(), "all_of"), (c.EdgeAnyOf(), "any_of"), (c.EdgeQuorum(2), "quorum")):
        assert policy.variant_str() == word
        assert through_json(policy, c.EdgeDependencyPolicy) == policy
    assert msgspec.json.decode(msgspec.json.encode(c.EdgeQuorum(2, c.OnSatisfied.LET_RUN))) == {
        "kind": "quorum", "k": 2, "on_satisfied": "let_run",
    }


def test_a_direction_knows_its_subject() -> None:
    assert c.Outgoing(ONE).subject == c.Incoming(ONE).subject == ONE


def test_usage_counts_every_dimension() -> None:
    usage = c.UsageDimensions(input_tokens=3, wall_ms=4, custom={"usd_micro": 5})
    assert usage.flat() == {"input_tokens": 3, "wall_ms": 4, "usd_micro": 5}


def test_a_partition_is_its_key() -> None:
    families = c.PartitionFamily
    for family, key in ((families.FLOW, "{fp:3}"), (families.BUDGET, "{b:3}"), (families.QUOTA, "{q:3}")):
        assert c.Partition(family, 3).key == key
        assert c.Partition.parse(key) == c.Partition(family, 3)
    assert c.Partition.parse(c.Partition(c.PartitionFamily.EXECUTION, 3).key).family is c.PartitionFamily.FLOW
    grant = c.ClaimGrant(ONE, AT, "g", 5)
    assert grant.partition == c.Partition(c.PartitionFamily.FLOW, 3)
    for bad in ("", "fp:3", "{x:3}", "{fp:}", "{w:0}", "{fp:65536}"):
        with pytest.raises(InvalidArgument):
            c.Partition.parse(bad)


def test_a_rotation_lists_the_partitions_that_failed() -> None:
    failed = c.RotateWaitpointHmacSecretAllEntry(1, c.RotateFailed("unavailable", "down"))
    result = c.RotateWaitpointHmacSecretAllResult([
        c.RotateWaitpointHmacSecretAllEntry(0, c.Rotated(None, "k2", 0)), failed,
    ])
    assert result.failed == [failed]
    assert through_json(result, c.RotateWaitpointHmacSecretAllResult) == result


# ---- refusals of the others --------------------------------------------------------------------------

SECRET = "00" * 32


def frame(**changes: Any) -> c.AppendFrameArgs:
    fields: dict[str, Any] = {
        "execution_id": ONE, "attempt_index": AttemptIndex(0), "lease_id": FENCE.lease_id,
        "lease_epoch": FENCE.lease_epoch, "attempt_id": FENCE.attempt_id, "frame_type": "token",
        "timestamp": TimestampMs(0), "payload": b"", **changes,
    }
    return c.AppendFrameArgs(**fields)


def budget(**changes: Any) -> c.CreateBudgetArgs:
    fields: dict[str, Any] = {
        "budget_id": BudgetId("{b:0}:" + UUID), "scope_type": "team", "scope_id": "a", "enforcement_mode": "strict",
        "on_hard_limit": "hold", "on_soft_limit": "warn", "reset_interval_ms": 0, "dimensions": ["tokens"],
        "hard_limits": [10], "soft_limits": [5], **changes,
    }
    return c.CreateBudgetArgs(**fields)


def signal(**changes: Any) -> c.DeliverSignalArgs:
    fields: dict[str, Any] = {
        "execution_id": ONE, "waitpoint_id": WaitpointId("w"), "signal_id": SignalId("s"), "signal_name": "approved",
        "signal_category": "external", "source_type": "web", "source_identity": "dana", "target_scope": "waitpoint",
        "waitpoint_token": WaitpointToken(""), **changes,
    }
    return c.DeliverSignalArgs(**fields)


def edge(**changes: Any) -> c.StageDependencyEdgeArgs:
    fields: dict[str, Any] = {
        "flow_id": FLOW, "edge_id": EdgeId("e"), "upstream_execution_id": ONE, "downstream_execution_id": OTHER,
        "expected_graph_revision": 0, **changes,
    }
    return c.StageDependencyEdgeArgs(**fields)


def renew(**changes: Any) -> c.RenewLeaseArgs:
    fields: dict[str, Any] = {
        "execution_id": ONE, "attempt_index": AttemptIndex(0), "fence": FENCE, "lease_ttl_ms": 30_000, **changes,
    }
    return c.RenewLeaseArgs(**fields)


def fail(**changes: Any) -> c.FailExecutionArgs:
    fields: dict[str, Any] = {
        "execution_id": ONE, "fence": FENCE, "attempt_index": AttemptIndex(0), "failure_reason": "",
        "failure_category": "error", **changes,
    }
    return c.FailExecutionArgs(**fields)


def admission(**changes: Any) -> c.CheckAdmissionArgs:
    fields: dict[str, Any] = {
        "execution_id": ONE, "window_seconds": 60, "rate_limit": 1, "concurrency_cap": 0,
        "at": QuotaPolicyId("{q:0}:" + UUID), **changes,
    }
    return c.CheckAdmissionArgs(**fields)


def test_the_defaults_of_the_seed_are_kept() -> None:
    assert renew().lease_history_grace_ms == 60_000
    assert edge().dependency_kind == "success_only"
    assert c.ResumeExecutionArgs(execution_id=ONE).trigger_type == "signal"
    assert c.FailExecutionArgs(execution_id=ONE, attempt_index=AttemptIndex(0), failure_reason="r",
                               failure_category="error").retry_policy_json == ""
    assert c.ReplayExecutionArgs(execution_id=ONE).mode == "resume"
    assert (c.STREAM_READ_HARD_CAP, c.MAX_COMPOSITE_DEPTH) == (10_000, 4)
    config = c.BestEffortLiveConfig(ttl_ms=1)
    assert (config.maxlen_floor, config.maxlen_ceiling, config.ema_alpha) == (64, 16_384, 0.2)


def test_an_empty_token_is_for_the_store_to_refuse() -> None:
    """So that every way of having no right token is answered alike."""
    assert signal().waitpoint_token == ""


SOUND: list[Callable[[], object]] = [
    lambda: frame(payload=bytes(limits.FRAME_BYTES), retention_maxlen=0),
    lambda: budget(dimensions=[], hard_limits=[], soft_limits=[]),
    lambda: signal(payload=bytes(limits.SIGNAL_BYTES)),
    lambda: renew(lease_ttl_ms=limits.LEASE_TTL_MIN_MS),
    lambda: renew(lease_ttl_ms=limits.LEASE_TTL_MAX_MS, fence=None),
    lambda: fail(retry_after_ms=0, failure_detail="d" * limits.REASON_BYTES),
    lambda: claim_for_worker(grant_ttl_ms=limits.GRANT_TTL_MAX_MS),
    lambda: c.SeedWaitpointHmacSecretArgs(kid="k-1_A", secret_hex=SECRET, at=AT),
    lambda: c.RotateWaitpointHmacSecretArgs(new_kid="k", new_secret_hex=SECRET, grace_ms=0, at=AT),
    lambda: c.ListPendingWaitpointsArgs(execution_id=ONE, limit=1_000),
    lambda: c.UpdateProgressArgs(execution_id=ONE, lease_id=FENCE.lease_id, lease_epoch=FENCE.lease_epoch,
                                 attempt_id=FENCE.attempt_id, progress_pct=100),
    lambda: c.BlockExecutionArgs(execution_id=ONE, blocking_reason="waiting_for_quota"),
    lambda: c.AddExecutionToFlowArgs(flow_id=FLOW, execution_id=ONE),
]


@pytest.mark.parametrize("build", SOUND)
def test_what_is_just_within_bounds_is_taken(build: Callable[[], object]) -> None:
    assert build() is not None


UNSOUND: list[tuple[Callable[[], object], str]] = [
    (lambda: frame(payload=bytes(limits.FRAME_BYTES + 1)), "payload_too_large"),
    (lambda: frame(payload=b"ab", max_payload_bytes=1), "payload_too_large"),
    (lambda: frame(max_payload_bytes=limits.FRAME_BYTES + 1), "invalid_input"),
    (lambda: frame(frame_type=""), "invalid_input"),
    (lambda: frame(retention_maxlen=-1), "invalid_input"),
    (lambda: budget(hard_limits=[]), "invalid_input"),
    (lambda: budget(soft_limits=[-1]), "invalid_input"),
    (lambda: budget(dimensions=["a", "a"], hard_limits=[1, 1], soft_limits=[1, 1]), "invalid_input"),
    (lambda: budget(reset_interval_ms=-1), "invalid_input"),
    (lambda: c.ReportUsageArgs(dimensions=["a"], deltas=[-1], at=BudgetId("b")), "invalid_input"),
    (lambda: c.ReportUsageAdminArgs(dimensions=["a"], deltas=[], at=BudgetId("b")), "invalid_input"),
    (lambda: c.UsageDimensions(custom={"x": -1}), "invalid_input"),
    (lambda: admission(window_seconds=-1), "invalid_quota_spec"),
    (lambda: c.CreateQuotaPolicyArgs(quota_policy_id=QuotaPolicyId("q"), window_seconds=1, max_requests_per_window=-1,
                                     max_concurrent=0), "invalid_quota_spec"),
    (lambda: signal(payload=bytes(limits.SIGNAL_BYTES + 1)), "payload_too_large"),
    (lambda: signal(signal_name=""), "invalid_input"),
    (lambda: signal(resume_delay_ms=-1), "invalid_input"),
    (lambda: edge(downstream_execution_id=ONE), "self_referencing_edge"),
    (lambda: edge(expected_graph_revision=-1), "invalid_input"),
    (lambda: c.EdgeQuorum(0), "invalid_input"),
    (lambda: c.ResolveDependencyArgs(edge_id=EdgeId("e"), upstream_outcome="completed", at=ONE), "invalid_input"),
    (lambda: c.AddExecutionToFlowArgs(flow_id=FLOW, execution_id=ExecutionId("{fp:4}:" + UUID)), "invalid_input"),
    (lambda: c.CancelFlowArgs(flow_id=FLOW, reason="r", cancellation_policy="all"), "invalid_input"),  # type: ignore[arg-type]
    (lambda: renew(lease_ttl_ms=limits.LEASE_TTL_MIN_MS - 1), "invalid_input"),
    (lambda: renew(lease_ttl_ms=limits.LEASE_TTL_MAX_MS + 1), "invalid_input"),
    (lambda: fail(failure_category=""), "invalid_input"),
    (lambda: fail(failure_category="two words"), "invalid_input"),
    (lambda: fail(retry_after_ms=-1), "invalid_input"),
    (lambda: fail(failure_reason="r" * (limits.REASON_BYTES + 1)), "invalid_input"),
    (lambda: claim_for_worker(grant_ttl_ms=0), "invalid_input"),
    (lambda: claim_for_worker(grant_ttl_ms=limits.GRANT_TTL_MAX_MS + 1), "invalid_input"),
    (lambda: c.ChangePriorityArgs(execution_id=ONE, new_priority=101, lane_id=LANE), "invalid_input"),
    (lambda: c.ReplayExecutionArgs(execution_id=ONE, mode="again"), "invalid_input"),  # type: ignore[arg-type]
    (lambda: c.ExpireExecutionArgs(execution_id=ONE, expire_reason=""), "invalid_input"),
    (lambda: c.ResumeExecutionArgs(execution_id=ONE, trigger_type="magic"), "invalid_input"),
    (lambda: c.BlockExecutionArgs(execution_id=ONE, blocking_reason="waiting_for_signal"), "invalid_blocking_reason"),
    (lambda: c.UnblockExecutionArgs(execution_id=ONE, expected_blocking_reason="why"), "invalid_blocking_reason"),
    (lambda: c.ScanEligibleArgs(lane_id=LANE, partition=AT, limit=0), "invalid_input"),
    (lambda: c.ListPendingWaitpointsArgs(execution_id=ONE, limit=1_001), "invalid_input"),
    (lambda: c.SeedWaitpointHmacSecretArgs(kid="k:1", secret_hex=SECRET, at=AT), "invalid_kid"),
    (lambda: c.SeedWaitpointHmacSecretArgs(kid="", secret_hex=SECRET, at=AT), "invalid_kid"),
    (lambda: c.SeedWaitpointHmacSecretArgs(kid="k" * 33, secret_hex=SECRET, at=AT), "invalid_kid"),
    (lambda: c.SeedWaitpointHmacSecretArgs(kid="k", secret_hex="xyz", at=AT), "invalid_secret_hex"),
    (lambda: c.SeedWaitpointHmacSecretArgs(kid="k", secret_hex="00" * 15, at=AT), "invalid_secret_hex"),
    (lambda: c.RotateWaitpointHmacSecretAllArgs(new_kid="k", new_secret_hex=SECRET + "0", grace_ms=0),
     "invalid_secret_hex"),
    (lambda: c.RotateWaitpointHmacSecretArgs(new_kid="k", new_secret_hex=SECRET, grace_ms=-1, at=AT),
     "invalid_grace_ms"),
    (lambda: c.BestEffortLiveConfig(ttl_ms=1, maxlen_floor=10, maxlen_ceiling=9), "invalid_input"),
    (lambda: c.BestEffortLiveConfig(ttl_ms=1, ema_alpha=0.0), "invalid_input"),
    (lambda: c.WaitTimeout(-1), "invalid_input"),
]


@pytest.mark.parametrize(("build", "code"), UNSOUND)
def test_what_is_just_out_of_bounds_is_refused(build: Callable[[], object], code: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        build()
    assert caught.value.code == code


def test_a_refused_secret_is_not_shown() -> None:
    with pytest.raises(InvalidArgument) as caught:
        c.SeedWaitpointHmacSecretArgs(kid="k", secret_hex="deadbeef", at=AT)
    assert "deadbeef" not in str(caught.value)


def test_every_public_state_is_a_word_of_json() -> None:
    assert msgspec.json.encode(c.Replayed(PublicState.WAITING)) == b'["replayed","waiting"]'
