"""Workers: what they can serve, and how they ask for work."""

from __future__ import annotations

from datetime import timedelta

import msgspec

from ffcore import checks
from ffcore.args import Args, Outcome
from ffcore.contracts.scheduling import ClaimGrant
from ffcore.errors import InvalidArgument
from ffcore.ids import LaneId, PartitionKey, WorkerId, WorkerInstanceId


class CapabilitySet(msgspec.Struct, frozen=True):
    tokens: list[str] = []

    def __post_init__(self) -> None:
        checks.capabilities(self.tokens)

    @property
    def wire(self) -> str:
        """Sorted and without repeats, so that equal sets give equal text."""
        return ",".join(sorted(set(self.tokens)))

    def covers(self, required: frozenset[str]) -> bool:
        return required <= set(self.tokens)


class ClaimPolicy(msgspec.Struct, frozen=True, kw_only=True):
    """How a worker claims. `max_wait` None: do not wait for work."""

    max_wait: timedelta | None = None
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    lease_ttl_ms: int

    def __post_init__(self) -> None:
        checks.lease_ttl_ms(self.lease_ttl_ms)
        if self.max_wait is not None and self.max_wait < timedelta(0):
            raise InvalidArgument(f"max_wait is {self.max_wait}: it cannot be negative")


class NoWork(Outcome, tag="no_work"):
    pass


class WorkerGranted(Outcome, tag="granted"):
    grant: ClaimGrant


ClaimForWorkerOutcome = NoWork | WorkerGranted


class ClaimForWorkerArgs(Args[ClaimForWorkerOutcome]):
    """Pick one ready execution of a lane that this worker can serve, and reserve it."""

    lane_id: LaneId
    worker_id: WorkerId
    worker_instance_id: WorkerInstanceId
    worker_capabilities: frozenset[str] = frozenset()
    grant_ttl_ms: int
    at: PartitionKey

    def __post_init__(self) -> None:
        checks.capabilities(self.worker_capabilities)
        checks.grant_ttl_ms(self.grant_ttl_ms)
