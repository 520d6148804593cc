"""Waitpoints: the places where signals for an execution arrive, opened before or while it suspends.

A waitpoint is addressed with a token; views show only the token's kid and fingerprint, never the token.
"""

from __future__ import annotations

from typing import ClassVar, NewType

import msgspec

from ffcore import checks, ids, limits
from ffcore.args import Args, Outcome, Row, veiled
from ffcore.contracts.lease import LeaseFence
from ffcore.errors import InvalidArgument
from ffcore.ids import (
    AttemptId,
    AttemptIndex,
    ExecutionId,
    LeaseEpoch,
    LeaseId,
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


@veiled("hmac_token")
class PendingWaitpoint(msgspec.Struct, frozen=True, kw_only=True):
    """Opened, but nothing suspends on it yet; signals that arrive are kept."""

    waitpoint_id: WaitpointId
    hmac_token: WaitpointHmac


# ---- open and close ----------------------------------------------------------------------------------


@veiled("waitpoint_token")
class WaitpointCreated(Outcome, tag="created"):
    waitpoint_id: WaitpointId
    waitpoint_key: str
    waitpoint_token: WaitpointToken
    """Empty when it was opened before and the ring no longer has the secret of its kid: waiting there still works."""
    kid: str = ""
    replayed: bool = False
    """It was there already: by its step, or because the call was sent again."""


CreatePendingWaitpointResult = WaitpointCreated


class CreatePendingWaitpointArgs(Args[CreatePendingWaitpointResult]):
    """Open a waitpoint before anyone is told of it, so that an early signal is kept.

    With a step key the journal records it in the same call (kind ``gate``; value: waitpoint id, waitpoint key and kid,
    as `ffcore.tokens.GateRecord` packs them); sent again with a key that stands there, the recorded waitpoint is the
    answer.
    """

    COMPOSED: ClassVar[bool] = True

    execution_id: ExecutionId
    lease_id: LeaseId
    lease_epoch: LeaseEpoch
    attempt_index: AttemptIndex
    attempt_id: AttemptId
    waitpoint_id: WaitpointId
    waitpoint_key: str
    expires_in_ms: int
    """It closes by itself if nothing has waited there by then."""
    step: str | None = None
    step_name: str | None = None
    version: int = 1
    """The version of the task that runs, for a journal that begins with this entry."""

    def __post_init__(self) -> None:
        check_waitpoint_key(self.waitpoint_key)
        checks.span_ms(self.expires_in_ms, "expires_in_ms", 1)
        checks.text(self.step_name, "step_name", limits.NAME_BYTES)
        if (self.step is None) != (self.step_name is None):
            raise InvalidArgument("step and step_name belong together: give both, or neither")


class WaitpointOpened(Outcome, tag="created"):
    """What the store answers: it knows the kid, not the token."""

    waitpoint_id: WaitpointId
    waitpoint_key: str
    kid: str
    replayed: bool


class CreatePendingWaitpointWireArgs(Args[WaitpointOpened]):
    """What a CreatePendingWaitpointArgs becomes: kid and digest in place of a token. Without them no token opens it."""

    FUNCTION: ClassVar[str] = "ff_create_pending_waitpoint"
    WIRE: ClassVar[bool] = True

    execution_id: ExecutionId
    fence: LeaseFence
    waitpoint_id: WaitpointId
    waitpoint_key: str
    expires_in_ms: int | None = None
    kid: str | None = None
    token_digest: str | None = None
    step: str | None = None
    step_name: str | None = None
    version: int = 1


class Closed(Outcome, tag="closed"):
    pass


CloseWaitpointResult = Closed


class CloseWaitpointArgs(Args[CloseWaitpointResult]):
    """Close a waitpoint; later signals with new keys are refused. One that is closed already stays as it is. A
    suspension that waits there goes on waiting: for its other waitpoints, its timeout, an operator."""

    waitpoint_id: WaitpointId
    reason: str
    at: ExecutionId

    def __post_init__(self) -> None:
        ids.check_id(self.at)
        checks.text(self.reason, "reason", limits.NAME_BYTES)


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
    """The open waitpoints of an execution, by id; nothing in the answer opens one."""

    execution_id: ExecutionId
    after: WaitpointId | None = None
    limit: int | None = None
    """None: `limits.PAGE_N`."""

    def __post_init__(self) -> None:
        ids.check_id(self.execution_id)
        checks.page(self.limit)
