"""What actors know of waitpoints and tokens, and how the calls around them are made."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import ffcore.contracts as c
from ffcore.conditions import compile_condition
from ffcore.contracts.condition import (
    AllOf,
    ByName,
    ByNames,
    Composite,
    Count,
    CountKind,
    OperatorOnly,
    ResumeCondition,
    Single,
    TimeoutOnly,
    Wildcard,
)
from tests.simulation.scene import Scene

NAMES = ["ok", "no", "late"]
SOURCES = ["dana", "eve", "kim"]
BEHAVIORS: list[Any] = ["auto_resume_with_timeout_signal"] * 3 + ["fail", "cancel", "expire", "escalate", "escalate"]
REASONS: list[Any] = ["waiting_for_signal", "waiting_for_signal", "waiting_for_approval", "paused_by_policy",
                      "step_boundary", "waiting_for_operator_review", "paused_by_budget"]  # fmt: skip
KIDS = ["k1", "k2", "k3"]


@dataclass(frozen=True)
class Gate:
    """A waitpoint somebody has opened, and the digest of its token."""

    execution_id: Any
    waitpoint_id: Any
    key: str
    kid: str
    digest: str


def fingerprint_of(kid: str, secret: str = "") -> str:
    return hashlib.sha256(f"{kid}{secret}".encode()).hexdigest()[:32]


def digest(*parts: str) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def new_gate(scene: Scene, execution_id: str, key: str) -> Gate:
    kid = scene.kid if scene.rng.random() < 0.97 else scene.rng.choice(KIDS)
    waitpoint_id: Any = scene.new_uuid()
    return Gate(execution_id, waitpoint_id, key, kid, digest(execution_id, waitpoint_id, key, kid))


def opening(scene: Scene, job: c.ClaimedJob, gate: Gate, step: str | None = None, name: str | None = None) -> Any:
    return c.CreatePendingWaitpointWireArgs(
        execution_id=job.execution_id, fence=scene.fence(job), waitpoint_id=gate.waitpoint_id, waitpoint_key=gate.key,
        expires_in_ms=scene.rng.choice([None, None, None, None, 300, 6_000]), kid=gate.kid, token_digest=gate.digest,
        step=step, step_name=name, version=1,
    )  # fmt: skip


def condition(scene: Scene, keys: list[str], depth: int = 1) -> ResumeCondition:
    """A tree over these waitpoints; now and then only an operator, or time, can say the word."""
    rng = scene.rng
    draw = rng.random()
    if not keys or draw < 0.04:
        return OperatorOnly()
    matcher: Any = rng.choice([Wildcard(), Wildcard(), ByName("ok"), ByNames(["ok", "late"])])
    if depth > 3 or draw < 0.2 + 0.15 * (depth > 1):
        return Single(rng.choice(keys), matcher)
    if draw < 0.65:
        among = rng.sample(keys, rng.randrange(1, len(keys) + 1))
        kind = rng.choice(list(CountKind))
        most = len(among) if kind is CountKind.DISTINCT_WAITPOINTS else 3
        return Composite(Count(rng.randrange(1, most + 1), kind, rng.choice([None, matcher]), among))
    members = [condition(scene, keys, depth + 1) for _ in range(rng.randrange(1, 4))]
    if rng.random() < 0.04:
        members.append(TimeoutOnly())
    return Composite(AllOf(members))


def waiting(scene: Scene, job: c.ClaimedJob, gates: list[Gate], step: str, name: str) -> c.WaitArgs:
    rng = scene.rng
    keys = [gate.key for gate in gates]
    timeout = rng.choice([None, None, 300, 3_000, 12_000])
    scene.asked += gates
    return c.WaitArgs(
        execution_id=job.execution_id, fence=scene.fence(job), suspension_id=scene.new_uuid(), step=step,
        step_name=name, version=job.version, condition=compile_condition(condition(scene, keys), keys),
        timeout_ms=timeout, timeout_behavior=rng.choice(BEHAVIORS), reason_code=rng.choice(REASONS),
        close_waitpoints=rng.random() < 0.7, waitpoints=[c.WaitedWaitpoint(gate.waitpoint_id) for gate in gates],
    )  # fmt: skip


def sleeping(scene: Scene, job: c.ClaimedJob, step: str, name: str) -> c.WaitArgs:
    return c.WaitArgs(
        execution_id=job.execution_id, fence=scene.fence(job), suspension_id=scene.new_uuid(), step=step,
        step_name=name, version=job.version, condition=compile_condition(TimeoutOnly(), []),
        timeout_ms=scene.rng.choice([0, 200, 2_500]), reason_code=c.SuspensionReasonCode.STEP_BOUNDARY,
        timeout_behavior=c.TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL, waitpoints=[],
    )  # fmt: skip


def suspending(scene: Scene, job: c.ClaimedJob, operator: bool = False) -> c.SuspendWireArgs:
    """The general form: waitpoints of its own, pending ones, policies, a key; by a worker or over its head."""
    rng, id = scene.rng, job.execution_id
    mine = [gate for gate in scene.gates[-40:] if gate.execution_id == id]
    gates = [new_gate(scene, id, f"own{i}") for i in range(rng.randrange(3))]
    rows = [c.SuspendWaitpoint(g.waitpoint_id, g.key, g.kid, g.digest, True) for g in gates]
    if mine and rng.random() < 0.6:
        gate = rng.choice([mine[0], *mine])
        gates.append(gate)
        key = rng.choice([gate.key, gate.key, "", "other"])
        rows.append(c.SuspendWaitpoint(gate.waitpoint_id, key, None, None, False))
    if mine and rng.random() < 0.05:
        gate = rng.choice(mine)
        if gate not in gates:
            gates.append(gate)
            rows.append(c.SuspendWaitpoint(gate.waitpoint_id, gate.key, gate.kid, gate.digest, True))
    scene.gates += gates
    scene.asked += gates
    keys = [f"w{i}" for i in range(len(gates))]
    timeout = rng.choice([None, None, 400, 9_000])
    index = job.attempt_index
    return c.SuspendWireArgs(
        execution_id=id, fence=None if operator or rng.random() < 0.03 else scene.fence(job),
        attempt_index=rng.choice([None, index, index, index + (rng.random() < 0.1)]),  # type: ignore[arg-type]
        suspension_id=scene.suspension_id(), condition=compile_condition(condition(scene, keys), keys),
        reason_code=rng.choice(REASONS), requested_by="operator" if operator else "worker",
        timeout_at=None if timeout is None else scene.ms + timeout,  # type: ignore[arg-type]
        timeout_behavior=rng.choice(BEHAVIORS), consume_matched_signals=rng.random() < 0.7,
        retain_signal_buffer_until_closed=rng.random() < 0.4, close_waitpoint_on_resume=rng.random() < 0.5,
        resume_delay_ms=rng.choice([None, None, 0, 600]), continuation_metadata_pointer=rng.choice([None, "page 7"]),
        idempotency_key=rng.choice([None, None, "once", "twice"]), waitpoints=rows,
    )  # fmt: skip


def sending(scene: Scene, gate: Gate) -> Any:
    """A signal to a gate; now and then with a token that opens another one, or nothing."""
    rng = scene.rng
    operator = rng.random() < 0.08
    token = gate.digest
    draw = rng.random()
    if draw < 0.04:
        token = rng.choice(scene.gates).digest
    elif draw < 0.07:
        token = digest("made up", str(rng.random()))
    elif draw < 0.08:
        token = ""
    id, waitpoint_id = gate.execution_id, gate.waitpoint_id
    draw = rng.random()
    if draw < 0.04:
        id = rng.choice([rng.choice(scene.gates).execution_id, scene.any_id(), scene.nobody()])
    elif draw < 0.05:
        waitpoint_id = rng.choice([rng.choice(scene.gates).waitpoint_id, scene.new_uuid()])
    make: Any = rng.choice([c.DeliverSignalWireArgs, c.DeliverSignalWireArgs, c.BufferSignalWireArgs])
    return make(
        execution_id=id, waitpoint_id=waitpoint_id, signal_id=scene.new_uuid(),
        signal_name=rng.choice(NAMES[: rng.choice([1, 3])]), signal_category="approval",
        source_type=rng.choice(["user", "user", "api"]), source_identity=rng.choice(SOURCES),
        payload=rng.choice([None, b"", b'{"by":1}']),
        payload_encoding=rng.choice([None, "json"]),
        correlation_id=rng.choice([None, "c1"]), idempotency_key=rng.choice([None, None, "click-1", "click-2"]),
        dedup_ttl_ms=rng.choice([None, None, 500, 0]), max_signals_per_execution=rng.choice([None, None, None, 6]),
        token_digest="" if operator else token, operator=operator,
    )  # fmt: skip
