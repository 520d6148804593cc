"""Children: an execution that runs makes another one, as a step of its journal. This engine's own."""

from __future__ import annotations

import msgspec

from ffcore import checks, ids, limits
from ffcore.args import Args, Outcome
from ffcore.contracts.batch import Fence
from ffcore.errors import InvalidArgument
from ffcore.ids import ExecutionId, FlowId, LaneId, Namespace, TimestampMs


class Spawned(Outcome, tag="spawned"):
    child_id: ExecutionId
    created: bool
    """False: an execution of this id was there, and is its child now."""
    lease_expires_at: TimestampMs = TimestampMs(0)
    cancel_until: int = 0
    """Until when a requested cancel waits for this attempt; 0: none is requested."""


class SpawnReplayed(Outcome, tag="replayed"):
    """The step stands already, with this entry: its value is the child's id."""

    entry: bytes
    lease_expires_at: TimestampMs = TimestampMs(0)
    cancel_until: int = 0


class SpawnArgs(Args[Spawned | SpawnReplayed]):
    """Create a child in the parent's flow, record it as a step and renew the lease, in one call.

    A parent that is no member becomes one: of its implicit flow (`ffcore.flows.implicit_flow`), which this creates.
    """

    execution_id: ExecutionId
    """The parent."""
    fence: Fence
    step: str
    """The step's key (`ffcore.steps.step_key`)."""
    step_name: str
    task_version: int
    """The version of the parent's task that runs."""
    lease_ttl_ms: int = 0
    """Renew for so long from now; 0: leave the lease alone."""
    flow_id: FlowId
    child_id: ExecutionId
    namespace: Namespace
    lane_id: LaneId
    execution_kind: str
    version: int = 1
    input_payload: bytes
    payload_encoding: str | None = None
    priority: int = 0
    creator_identity: str = ""
    tags: dict[str, str] = msgspec.field(default_factory=dict[str, str])
    policy: bytes | None = None
    """JSON of an ExecutionPolicy."""
    delay_until: int | None = None
    execution_deadline_at: int | None = None
    digest: bytes
    fairness_key: str | None = None
    label: str | None = None
    abandon: bool = False
    """It goes on when the parent is cancelled."""
    admission: str | None = None
    """As in `NewExecution`."""

    def __post_init__(self) -> None:
        ids.check_together(self.execution_id, self.flow_id, self.child_id)
        ids.check_name(self.namespace, "namespace")
        ids.check_name(self.lane_id, "lane")
        ids.check_name(self.execution_kind, "task")
        checks.size(self.input_payload, "input_payload", limits.PAYLOAD_BYTES)
        checks.text(self.payload_encoding, "payload_encoding", limits.NAME_BYTES)
        checks.priority(self.priority)
        checks.size(self.creator_identity, "creator_identity", limits.KEY_BYTES, code="invalid_input")
        checks.tags(self.tags)
        checks.whole(self.delay_until, "delay_until")
        checks.whole(self.execution_deadline_at, "execution_deadline_at")
        checks.whole(self.version, "version", 0, checks.U32_MAX)
        checks.whole(self.task_version, "task_version", 0, checks.U32_MAX)
        checks.whole(self.lease_ttl_ms, "lease_ttl_ms", 0, limits.LEASE_TTL_MAX_MS)
        checks.text(self.fairness_key, "fairness_key")
        checks.size(self.label, "label", limits.KEY_BYTES, code="invalid_input")
        checks.size(self.admission, "admission", limits.ADMISSION_BYTES, code="invalid_input")
        if len(self.digest) != 16:
            raise InvalidArgument(f"digest has {len(self.digest)} bytes, not 16")
