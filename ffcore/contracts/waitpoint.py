"""Waitpoints: the places where signals for an execution arrive, opened before or while it suspends.

A waitpoint is addressed with a token; views show only the token's kid and fingerprint, never the token.
"""

from __future__ import annotations

from typing import NewType

import msgspec

from ffcore import checks, ids
from ffcore.args import Args, Outcome, Row
from ffcore.errors import InvalidArgument
from ffcore.ids import (
    AttemptId,
    AttemptIndex,
    ExecutionId,
    LeaseEpoch,
    LeaseId,
    PartitionKey,
    TimestampMs,
    WaitpointId,
    WaitpointToken,
)

WaitpointHmac = NewType("WaitpointHmac", WaitpointToken)


def check_waitpoint_key(value: str, what: str = "waitpoint_key") -> None:
    try:
        checks.text(value, what)
    except InvalidArgument as exc:
        raise InvalidArgument(str(exc), code="invalid_waitpoint_key") from None


class PendingWaitpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Opened, but nothing suspends on it yet; signals that arrive are kept."""

    waitpoint_id: WaitpointId
    hmac_token: WaitpointHmac


# ---- open and close ----------------------------------------------------------------------------------


class WaitpointCreated(Outcome, tag="created"):
    waitpoint_id: WaitpointId
    waitpoint_key: str
    waitpoint_token: WaitpointToken


CreatePendingWaitpointResult = WaitpointCreated


class CreatePendingWaitpointArgs(Args[CreatePendingWaitpointResult]):
    """Open a waitpoint before anyone is told of it, so that an early signal is kept."""

    execution_id: ExecutionId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_index: AttemptIndex
    attempt_id: AttemptId
    waitpoint_id: WaitpointId
    waitpoint_key: str
    expires_in_ms: int

    def __post_init__(self) -> None:
        check_waitpoint_key(self.waitpoint_key)
        checks.span_ms(self.expires_in_ms, "expires_in_ms", 1)


class Closed(Outcome, tag="closed"):
    pass


CloseWaitpointResult = Closed


class CloseWaitpointArgs(Args[CloseWaitpointResult]):
    waitpoint_id: WaitpointId
    reason: str
    at: PartitionKey


# ---- views -------------------------------------------------------------------------------------------


class PendingWaitpointInfo(Row):
    waitpoint_id: WaitpointId
    waitpoint_key: str
    state: str
    """pending, active or closed."""
    required_signal_names: list[str]
    """Empty: any signal counts."""
    created_at: TimestampMs
    activated_at: TimestampMs | None
    expires_at: TimestampMs | None
    execution_id: ExecutionId
    token_kid: str
    token_fingerprint: str
    """16 hex digits; tells tokens apart in logs, opens nothing."""


class ListPendingWaitpointsResult(Outcome, tag="waitpoints"):
    entries: list[PendingWaitpointInfo]
    next_cursor: WaitpointId | None = None


class ListPendingWaitpointsArgs(Args[ListPendingWaitpointsResult]):
    execution_id: ExecutionId
    after: WaitpointId | None = None
    limit: int | None = None
    """None: `limits.PAGE_N`."""

    def __post_init__(self) -> None:
        ids.check_id(self.execution_id)
        checks.page(self.limit)
