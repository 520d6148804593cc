"""What a stored record looks like to the contracts: snapshot, info, context; pure functions of one read.

The store keeps three words and some numbers (`StoredExecution`); everything a caller is shown follows from
them here, so no reader interprets a record on its own.
"""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ffcore.contracts.reads import StoredExecution
from ffcore.contracts.views import AttemptSummary, ExecutionContext, ExecutionInfo, ExecutionSnapshot, LeaseSummary
from ffcore.ids import AttemptId, AttemptIndex, FlowId, LeaseEpoch, LeaseId, Namespace, TimestampMs, WorkerInstanceId
from ffcore.states import (
    BlockingReason,
    EligibilityState,
    LifecyclePhase,
    PublicState,
    StateVector,
    vector,
)

LISTED: dict[PublicState, tuple[str, ...]] = {
    PublicState.WAITING: ("ready", "granted", "blocked"),
    PublicState.DELAYED: ("delayed",),
    PublicState.RATE_LIMITED: ("blocked",),
    PublicState.WAITING_CHILDREN: ("blocked",),
    PublicState.ACTIVE: ("active",),
    PublicState.SUSPENDED: ("suspended",),
    PublicState.RESUMABLE: (),
    PublicState.COMPLETED: ("completed",),
    PublicState.FAILED: ("failed",),
    PublicState.CANCELLED: ("cancelled",),
    PublicState.EXPIRED: ("expired",),
    PublicState.SKIPPED: ("skipped",),
}
"""Stored states in which executions of a public state are found; `blocked` ones differ by their reason."""


def number(stored: StoredExecution, *names: str) -> int:
    """The first field of these that is set, as a number; 0 for none."""
    for name in names:
        if text := stored.fields.get(name):
            return int(text)
    return 0


def state_of(stored: StoredExecution) -> StateVector:
    """All seven dimensions. A job in line whose queue is halted waits for a budget or a quota: its record does not say
    so, the read adds it."""
    f = stored.fields
    found = vector(f["state"], f.get("reason"), f.get("next"), "started_at" in f)
    halt = halt_of(stored)
    if halt is None:
        return found
    budget = halt.kind == "b"
    return msgspec.structs.replace(
        found, public_state=PublicState.RATE_LIMITED,
        eligibility_state=EligibilityState.BLOCKED_BY_BUDGET if budget else EligibilityState.BLOCKED_BY_QUOTA,
        blocking_reason=BlockingReason.WAITING_FOR_BUDGET if budget else BlockingReason.WAITING_FOR_QUOTA,
    )  # fmt: skip


class Halt(NamedTuple):
    """Why the queue a job stands in may not start anything now."""

    kind: str
    """``b``: a budget; anything else: a quota."""
    resource: str
    """The uuid of its id."""
    until_ms: int
    detail: str


def halt_of(stored: StoredExecution) -> Halt | None:
    text = stored.fields.get("halt")
    if not text:
        return None
    kind, resource, until, *detail = text.split(" ", 3)
    return Halt(kind, resource, int(until), detail[0] if detail else "")


def due_at(stored: StoredExecution) -> int:
    """When a delayed execution becomes ready; 0 for any other."""
    return number(stored, "due", "at") if stored.fields["state"] == "delayed" else 0


def lease_expires_at(stored: StoredExecution) -> int:
    """When the lease of an active execution runs out; 0 for any other."""
    return number(stored, "lease_expires_at", "at") if stored.fields["state"] == "active" else 0


def attempts_n(stored: StoredExecution) -> int:
    """Attempts started so far."""
    return int(stored.fields["attempt"]) + 1 if "attempt" in stored.fields else 0


def blocking_detail(stored: StoredExecution) -> str:
    """Free text beside the blocking reason; empty while nothing blocks."""
    halt = halt_of(stored)
    if halt is not None:
        return halt.detail
    return stored.texts.get("blocking", "") if stored.fields["state"] == "blocked" else ""


def snapshot(stored: StoredExecution) -> ExecutionSnapshot:
    f, state = stored.fields, state_of(stored)
    attempt = lease = None
    if attempts_n(stored):
        index = AttemptIndex(int(f["attempt"]))
        attempt = AttemptSummary(AttemptId(f.get("attempt_id") or f.get("lease_id", "")), index)
        if state.lifecycle_phase is LifecyclePhase.ACTIVE:
            lease = LeaseSummary(
                LeaseEpoch(number(stored, "lease_epoch")), WorkerInstanceId(stored.worker_instance_id),
                TimestampMs(lease_expires_at(stored)), LeaseId(f.get("lease_id", "")), index,
            )  # fmt: skip
    reason = state.blocking_reason.value
    return ExecutionSnapshot(
        execution_id=stored.execution_id, flow_id=FlowId(f["flow"]) if "flow" in f else None, lane_id=stored.lane_id,
        namespace=Namespace(f.get("namespace", "default")), public_state=state.public_state,
        blocking_reason=None if reason == "none" else reason, blocking_detail=blocking_detail(stored) or None,
        current_attempt=attempt, current_lease=lease, current_waitpoint=None,
        created_at=TimestampMs(number(stored, "created_at")), last_mutation_at=TimestampMs(last_mutation_at(stored)),
        total_attempt_count=attempts_n(stored), tags=stored.tags,
    )  # fmt: skip


def last_mutation_at(stored: StoredExecution) -> int:
    """The latest instant the record itself tells of."""
    return max(number(stored, n) for n in ("created_at", "started_at", "attempt_started_at", "moved_at", "ended_at"))


def info(stored: StoredExecution) -> ExecutionInfo:
    f, state = stored.fields, state_of(stored)
    return ExecutionInfo(
        execution_id=stored.execution_id, namespace=f.get("namespace", "default"), lane_id=stored.lane_id,
        priority=number(stored, "priority"), execution_kind=f["task"], state_vector=state,
        public_state=state.public_state, created_at=f["created_at"], started_at=f.get("started_at"),
        completed_at=f.get("ended_at"), current_attempt_index=number(stored, "attempt"), flow_id=f.get("flow"),
        blocking_detail=blocking_detail(stored),
    )  # fmt: skip


def context(stored: StoredExecution) -> ExecutionContext:
    """Needs a read with `parts="payload"`."""
    return ExecutionContext(input_payload=stored.payload, execution_kind=stored.fields["task"], tags=stored.tags)
