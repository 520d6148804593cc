"""The seven state dimensions, and how they follow from the three words the store keeps.

The store keeps `state` (a key of `STATES`), `reason` (only for delayed, blocked and suspended) and `next`
(how the next claim continues); everything else is derived here, so the dimensions can never contradict each other.
`lua/shared/state.lua` holds the legal moves; this table holds what each state looks like from outside.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Final, NamedTuple

import msgspec

from ffcore.errors import EngineBug


class LifecyclePhase(StrEnum):
    SUBMITTED = "submitted"
    RUNNABLE = "runnable"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    TERMINAL = "terminal"


class OwnershipState(StrEnum):
    UNOWNED = "unowned"
    LEASED = "leased"
    LEASE_EXPIRED_RECLAIMABLE = "lease_expired_reclaimable"
    LEASE_REVOKED = "lease_revoked"


class EligibilityState(StrEnum):
    ELIGIBLE_NOW = "eligible_now"
    NOT_ELIGIBLE_UNTIL_TIME = "not_eligible_until_time"
    BLOCKED_BY_DEPENDENCIES = "blocked_by_dependencies"
    BLOCKED_BY_BUDGET = "blocked_by_budget"
    BLOCKED_BY_QUOTA = "blocked_by_quota"
    BLOCKED_BY_ROUTE = "blocked_by_route"
    BLOCKED_BY_LANE_STATE = "blocked_by_lane_state"
    BLOCKED_BY_OPERATOR = "blocked_by_operator"
    NOT_APPLICABLE = "not_applicable"


class BlockingReason(StrEnum):
    NONE = "none"
    WAITING_FOR_WORKER = "waiting_for_worker"
    WAITING_FOR_RETRY_BACKOFF = "waiting_for_retry_backoff"
    WAITING_FOR_RESUME_DELAY = "waiting_for_resume_delay"
    WAITING_FOR_DELAY = "waiting_for_delay"
    WAITING_FOR_SIGNAL = "waiting_for_signal"
    WAITING_FOR_APPROVAL = "waiting_for_approval"
    WAITING_FOR_CALLBACK = "waiting_for_callback"
    WAITING_FOR_TOOL_RESULT = "waiting_for_tool_result"
    WAITING_FOR_CHILDREN = "waiting_for_children"
    WAITING_FOR_BUDGET = "waiting_for_budget"
    WAITING_FOR_QUOTA = "waiting_for_quota"
    WAITING_FOR_CAPABLE_WORKER = "waiting_for_capable_worker"
    WAITING_FOR_LOCALITY_MATCH = "waiting_for_locality_match"
    PAUSED_BY_OPERATOR = "paused_by_operator"
    PAUSED_BY_POLICY = "paused_by_policy"
    PAUSED_BY_FLOW_CANCEL = "paused_by_flow_cancel"


class TerminalOutcome(StrEnum):
    NONE = "none"
    SUCCESS = "success"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SKIPPED = "skipped"


class AttemptState(StrEnum):
    NONE = "none"
    PENDING_FIRST_ATTEMPT = "pending_first_attempt"
    RUNNING_ATTEMPT = "running_attempt"
    ATTEMPT_INTERRUPTED = "attempt_interrupted"
    PENDING_RETRY_ATTEMPT = "pending_retry_attempt"
    PENDING_REPLAY_ATTEMPT = "pending_replay_attempt"
    ATTEMPT_TERMINAL = "attempt_terminal"


class PublicState(StrEnum):
    WAITING = "waiting"
    DELAYED = "delayed"
    RATE_LIMITED = "rate_limited"
    WAITING_CHILDREN = "waiting_children"
    ACTIVE = "active"
    SUSPENDED = "suspended"
    RESUMABLE = "resumable"
    """In the seed's alphabet; this engine answers `waiting` or `delayed` after a resume."""
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    SKIPPED = "skipped"

    @property
    def is_terminal(self) -> bool:
        return self in _TERMINAL


_TERMINAL: Final = frozenset({
    PublicState.COMPLETED, PublicState.FAILED, PublicState.CANCELLED, PublicState.EXPIRED, PublicState.SKIPPED,
})


class StateVector(msgspec.Struct, frozen=True, kw_only=True):
    lifecycle_phase: LifecyclePhase
    ownership_state: OwnershipState
    eligibility_state: EligibilityState
    blocking_reason: BlockingReason
    terminal_outcome: TerminalOutcome
    attempt_state: AttemptState
    public_state: PublicState


class Row(NamedTuple):
    """What one stored state looks like. None: decided by the word named in the comment."""

    phase: LifecyclePhase
    ownership: OwnershipState
    eligibility: EligibilityState | None  # reason
    reason: BlockingReason | None  # the stored reason
    outcome: TerminalOutcome
    attempt: AttemptState | None  # next; for a terminal state, whether it ever started
    public: PublicState | None  # reason


def _terminal(outcome: TerminalOutcome, public: PublicState) -> Row:
    return Row(
        LifecyclePhase.TERMINAL, OwnershipState.UNOWNED, EligibilityState.NOT_APPLICABLE, BlockingReason.NONE,
        outcome, None, public,
    )


def _claimable(ownership: OwnershipState, attempt: AttemptState | None) -> Row:
    return Row(
        LifecyclePhase.RUNNABLE, ownership, EligibilityState.ELIGIBLE_NOW, BlockingReason.WAITING_FOR_WORKER,
        TerminalOutcome.NONE, attempt, PublicState.WAITING,
    )


STATES: Final[dict[str, Row]] = {
    "ready": _claimable(OwnershipState.UNOWNED, None),
    "reclaimable": _claimable(OwnershipState.LEASE_EXPIRED_RECLAIMABLE, AttemptState.ATTEMPT_INTERRUPTED),
    "revoked": _claimable(OwnershipState.LEASE_REVOKED, AttemptState.ATTEMPT_INTERRUPTED),
    "granted": _claimable(OwnershipState.UNOWNED, None),
    "delayed": Row(
        LifecyclePhase.RUNNABLE, OwnershipState.UNOWNED, EligibilityState.NOT_ELIGIBLE_UNTIL_TIME, None,
        TerminalOutcome.NONE, None, PublicState.DELAYED,
    ),
    "blocked": Row(
        LifecyclePhase.RUNNABLE, OwnershipState.UNOWNED, None, None, TerminalOutcome.NONE, None, None,
    ),
    "active": Row(
        LifecyclePhase.ACTIVE, OwnershipState.LEASED, EligibilityState.NOT_APPLICABLE, BlockingReason.NONE,
        TerminalOutcome.NONE, AttemptState.RUNNING_ATTEMPT, PublicState.ACTIVE,
    ),
    "suspended": Row(
        LifecyclePhase.SUSPENDED, OwnershipState.UNOWNED, EligibilityState.NOT_APPLICABLE, None,
        TerminalOutcome.NONE, AttemptState.ATTEMPT_INTERRUPTED, PublicState.SUSPENDED,
    ),
    "completed": _terminal(TerminalOutcome.SUCCESS, PublicState.COMPLETED),
    "failed": _terminal(TerminalOutcome.FAILED, PublicState.FAILED),
    "cancelled": _terminal(TerminalOutcome.CANCELLED, PublicState.CANCELLED),
    "expired": _terminal(TerminalOutcome.EXPIRED, PublicState.EXPIRED),
    "skipped": _terminal(TerminalOutcome.SKIPPED, PublicState.SKIPPED),
}

_BLOCKED: Final[dict[BlockingReason, tuple[EligibilityState, PublicState]]] = {
    BlockingReason.WAITING_FOR_CHILDREN: (EligibilityState.BLOCKED_BY_DEPENDENCIES, PublicState.WAITING_CHILDREN),
    BlockingReason.WAITING_FOR_BUDGET: (EligibilityState.BLOCKED_BY_BUDGET, PublicState.RATE_LIMITED),
    BlockingReason.WAITING_FOR_QUOTA: (EligibilityState.BLOCKED_BY_QUOTA, PublicState.RATE_LIMITED),
    BlockingReason.WAITING_FOR_CAPABLE_WORKER: (EligibilityState.BLOCKED_BY_ROUTE, PublicState.WAITING),
    BlockingReason.WAITING_FOR_LOCALITY_MATCH: (EligibilityState.BLOCKED_BY_ROUTE, PublicState.WAITING),
    BlockingReason.PAUSED_BY_POLICY: (EligibilityState.BLOCKED_BY_LANE_STATE, PublicState.WAITING),
    BlockingReason.PAUSED_BY_OPERATOR: (EligibilityState.BLOCKED_BY_OPERATOR, PublicState.WAITING),
    BlockingReason.PAUSED_BY_FLOW_CANCEL: (EligibilityState.BLOCKED_BY_OPERATOR, PublicState.WAITING),
}

REASONS: Final[dict[str, frozenset[BlockingReason]]] = {
    "delayed": frozenset({
        BlockingReason.WAITING_FOR_RETRY_BACKOFF, BlockingReason.WAITING_FOR_RESUME_DELAY,
        BlockingReason.WAITING_FOR_DELAY,
    }),
    "blocked": frozenset(_BLOCKED),
    "suspended": frozenset({
        BlockingReason.WAITING_FOR_SIGNAL, BlockingReason.WAITING_FOR_APPROVAL, BlockingReason.WAITING_FOR_CALLBACK,
        BlockingReason.WAITING_FOR_TOOL_RESULT, BlockingReason.WAITING_FOR_BUDGET, BlockingReason.PAUSED_BY_OPERATOR,
        BlockingReason.PAUSED_BY_POLICY,
    }),
}
"""The reasons each state may carry; the other states carry none."""

NEXT: Final[dict[str, AttemptState]] = {
    "initial": AttemptState.PENDING_FIRST_ATTEMPT,
    "retry": AttemptState.PENDING_RETRY_ATTEMPT,
    "replay": AttemptState.PENDING_REPLAY_ATTEMPT,
    "reclaim": AttemptState.ATTEMPT_INTERRUPTED,
    "resumed": AttemptState.ATTEMPT_INTERRUPTED,
    "compensation": AttemptState.ATTEMPT_INTERRUPTED,
}


def _attempt(state: str, row: Row, next_: str | None, started: bool) -> AttemptState:
    if row.attempt is not None:
        return row.attempt
    if row.phase is LifecyclePhase.TERMINAL:
        return AttemptState.ATTEMPT_TERMINAL if started else AttemptState.NONE
    if next_ not in NEXT:
        raise EngineBug(f"state {state!r} has next {next_!r}; known are {', '.join(NEXT)}")
    return NEXT[next_]


def vector(state: str, reason: str | None, next: str | None, started: bool) -> StateVector:
    """All seven dimensions of a record. A word this version does not know is an EngineBug, never a guess."""
    row = STATES.get(state)
    if row is None:
        raise EngineBug(f"unknown state {state!r}; known are {', '.join(STATES)}")
    allowed = REASONS.get(state, frozenset())
    if (reason or None) not in (allowed or {None}):
        raise EngineBug(f"state {state!r} cannot have reason {reason!r}")
    why = row.reason if row.reason is not None else BlockingReason(reason or "")
    eligibility, public = row.eligibility, row.public
    if eligibility is None or public is None:
        eligibility, public = _BLOCKED[why]
    return StateVector(
        lifecycle_phase=row.phase, ownership_state=row.ownership, eligibility_state=eligibility, blocking_reason=why,
        terminal_outcome=row.outcome, attempt_state=_attempt(state, row, next, started), public_state=public,
    )


_BY_OUTCOME: Final[dict[TerminalOutcome, PublicState]] = {
    TerminalOutcome.SUCCESS: PublicState.COMPLETED,
    TerminalOutcome.FAILED: PublicState.FAILED,
    TerminalOutcome.CANCELLED: PublicState.CANCELLED,
    TerminalOutcome.EXPIRED: PublicState.EXPIRED,
    TerminalOutcome.SKIPPED: PublicState.SKIPPED,
    TerminalOutcome.NONE: PublicState.FAILED,  # a terminal record without an outcome is corrupt: never call it done
}

_BY_ELIGIBILITY: Final[dict[EligibilityState, PublicState]] = {
    EligibilityState.NOT_ELIGIBLE_UNTIL_TIME: PublicState.DELAYED,
    EligibilityState.BLOCKED_BY_DEPENDENCIES: PublicState.WAITING_CHILDREN,
    EligibilityState.BLOCKED_BY_BUDGET: PublicState.RATE_LIMITED,
    EligibilityState.BLOCKED_BY_QUOTA: PublicState.RATE_LIMITED,
}


def derive_public(phase: LifecyclePhase, eligibility: EligibilityState, outcome: TerminalOutcome) -> PublicState:
    """The public state as the seed derives it from the other dimensions; the table above must agree."""
    match phase:
        case LifecyclePhase.TERMINAL:
            return _BY_OUTCOME[outcome]
        case LifecyclePhase.SUSPENDED:
            return PublicState.SUSPENDED
        case LifecyclePhase.ACTIVE:
            return PublicState.ACTIVE
        case LifecyclePhase.RUNNABLE:
            return _BY_ELIGIBILITY.get(eligibility, PublicState.WAITING)
        case LifecyclePhase.SUBMITTED:
            return PublicState.WAITING
