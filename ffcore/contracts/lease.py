"""Leases: who owns a running attempt, and until when.

A worker proves ownership with its fence: lease id, epoch and attempt id together. The epoch never falls,
so whoever carries an old one has already lost the execution.
"""

from __future__ import annotations

from typing import ClassVar, Self

import msgspec

from ffcore import checks, limits
from ffcore.args import Args, Outcome
from ffcore.contracts.text import Text
from ffcore.errors import InvalidArgument
from ffcore.ids import (
    AttemptId,
    AttemptIndex,
    ExecutionId,
    LeaseEpoch,
    LeaseId,
    TimestampMs,
    WorkerInstanceId,
)


class LeaseFence(msgspec.Struct, frozen=True):
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_id: AttemptId

    def __post_init__(self) -> None:
        for value, what in ((self.lease_id, "lease_id"), (self.attempt_id, "attempt_id")):
            checks.text(value, what, limits.LEASE_ID_BYTES)
            if " " in value:
                raise InvalidArgument(f"{what} {value!r:.80} holds a space")
        checks.whole(self.lease_epoch, "lease_epoch")

    @property
    def wire(self) -> str:
        return f"{self.lease_id} {self.lease_epoch} {self.attempt_id}"

    @classmethod
    def parse(cls, text: str) -> Self:
        parts = text.split(" ")
        if len(parts) != 3 or not (parts[1].isascii() and parts[1].isdigit()):
            raise InvalidArgument(f"fence {text!r:.100}: expected lease_id, lease_epoch and attempt_id")
        return cls(LeaseId(parts[0]), LeaseEpoch(int(parts[1])), AttemptId(parts[2]))


class CancelSource(Text):
    """On whose behalf a call is made. Only an operator's call may leave the fence out."""

    __slots__ = ()

    OPERATOR_OVERRIDE: ClassVar[CancelSource]
    LEASE_HOLDER: ClassVar[CancelSource]
    FLOW_CASCADE: ClassVar[CancelSource]
    SYSTEM_TIMEOUT: ClassVar[CancelSource]

    @classmethod
    def parse(cls, text: str) -> Self:
        checks.text(text, "source", limits.NAME_BYTES)
        return cls(text)

    @classmethod
    def custom(cls, text: str) -> Self:
        """A source of the caller's own; it carries no right that the four known ones carry."""
        if text in _KNOWN_SOURCES:
            raise InvalidArgument(f"source {text!r} is one of the engine's own: use CancelSource.parse")
        return cls.parse(text)

    @property
    def is_custom(self) -> bool:
        return self not in _KNOWN_SOURCES


CancelSource.OPERATOR_OVERRIDE = CancelSource("operator_override")
CancelSource.LEASE_HOLDER = CancelSource("lease_holder")
CancelSource.FLOW_CASCADE = CancelSource("flow_cascade")
CancelSource.SYSTEM_TIMEOUT = CancelSource("system_timeout")
_KNOWN_SOURCES = frozenset({
    CancelSource.OPERATOR_OVERRIDE, CancelSource.LEASE_HOLDER, CancelSource.FLOW_CASCADE, CancelSource.SYSTEM_TIMEOUT,
})


class AlreadySatisfied(Outcome, tag="already_satisfied"):
    """Nothing to do; reason says why."""

    reason: str


# ---- renew -------------------------------------------------------------------------------------------


class LeaseRenewal(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker keeps of a renewal."""

    expires_at_ms: int
    lease_epoch: LeaseEpoch


class Renewed(Outcome, tag="renewed"):
    expires_at: TimestampMs


RenewLeaseResult = Renewed


class RenewLeaseArgs(Args[RenewLeaseResult]):
    """Extend a lease its owner still holds."""

    execution_id: ExecutionId
    attempt_index: AttemptIndex
    fence: LeaseFence | None
    """Required; None is refused `fence_required`: no operator renews."""
    lease_ttl_ms: int
    lease_history_grace_ms: int = 60_000
    """The seed's grace before a lapsed lease's key goes; here the lease lives in the execution's record."""

    def __post_init__(self) -> None:
        checks.lease_ttl_ms(self.lease_ttl_ms)
        checks.span_ms(self.lease_history_grace_ms, "lease_history_grace_ms")


# ---- expire ------------------------------------------------------------------------------------------


class MarkedExpired(Outcome, tag="marked_expired"):
    pass


MarkLeaseExpiredResult = MarkedExpired | AlreadySatisfied


class MarkLeaseExpiredArgs(Args[MarkLeaseExpiredResult]):
    """End a lease whose time is over; harmless when it is not."""

    execution_id: ExecutionId


# ---- revoke ------------------------------------------------------------------------------------------


class Revoked(Outcome, tag="revoked"):
    lease_id: LeaseId
    lease_epoch: LeaseEpoch


RevokeLeaseResult = Revoked | AlreadySatisfied


class RevokeLeaseArgs(Args[RevokeLeaseResult]):
    """Take a lease away from a worker that should no longer hold it."""

    execution_id: ExecutionId
    expected_lease_id: LeaseId | None = None
    """Revoke only this lease; None or empty: whichever there is."""
    worker_instance_id: WorkerInstanceId
    reason: str

    def __post_init__(self) -> None:
        checks.size(self.reason, "reason", limits.REASON_BYTES, code="invalid_input")
