"""What a crash at this moment would lead to: for each recorded step, and for the execution.

Computed from the journal and the state alone, by the rule of durable recovery: an operation whose outcome is final
keeps it, one that has left evidence goes on from there, and one that has left none runs from its beginning.

    entry                         level      decision
    intent, error                 none       reexecute_from_scratch: no outcome is recorded; what was begun is done
                                             again (a step that must not run twice raises StepInterrupted instead)
    ok                            soft_safe  resume_from_evidence_boundary: it is not run again, the handler goes on
                                             (spawn: with the child it made, which goes on by itself)
    fatal                         -          preserve_terminal: the failure is the step's outcome (rejected)
    state of the execution
    completed                     finalized  reuse_finalized
    failed                        -          preserve_terminal (rejected; timed_out where time ended it)
    cancelled, skipped            -          preserve_terminal (aborted)
    expired                       -          preserve_terminal (timed_out)

An execution that has not ended goes on from its last recorded step, if there is one.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import Final

import msgspec

from ffcore.steps import JournalEntry


class RecoveryDecision(enum.StrEnum):
    """What is done with an operation after a crash."""

    REEXECUTE_FROM_SCRATCH = "reexecute_from_scratch"
    RESUME_FROM_EVIDENCE_BOUNDARY = "resume_from_evidence_boundary"
    REUSE_FINALIZED = "reuse_finalized"
    PRESERVE_TERMINAL = "preserve_terminal"


class Level(enum.StrEnum):
    """How far the store vouches for an operation."""

    NONE = "none"
    SOFT_SAFE = "soft_safe"
    FINALIZED = "finalized"


class Finalization(enum.StrEnum):
    """How an operation ended for good."""

    FINALIZED = "finalized"
    ABORTED = "aborted"
    REJECTED = "rejected"
    TIMED_OUT = "timed_out"


_ENDS: Final = {
    "completed": Finalization.FINALIZED, "failed": Finalization.REJECTED, "cancelled": Finalization.ABORTED,
    "skipped": Finalization.ABORTED, "expired": Finalization.TIMED_OUT,
}  # fmt: skip
_OUT_OF_TIME: Final = frozenset({"timeout", "suspension_timeout"})
"""Categories of a failure that time brought about."""


def finalization(state: str, category: str = "") -> Finalization | None:
    """How an execution in this state has ended; None while it has not. `category` is that of its failure."""
    if state == "failed" and category in _OUT_OF_TIME:
        return Finalization.TIMED_OUT
    return _ENDS.get(state)


def decide(level: Level, ended: Finalization | None) -> RecoveryDecision:
    """The rule itself."""
    if ended is Finalization.FINALIZED:
        return RecoveryDecision.REUSE_FINALIZED
    if ended is not None:
        return RecoveryDecision.PRESERVE_TERMINAL
    if level is Level.NONE:
        return RecoveryDecision.REEXECUTE_FROM_SCRATCH
    return RecoveryDecision.RESUME_FROM_EVIDENCE_BOUNDARY


def level_of(entry: JournalEntry) -> Level:
    return Level.SOFT_SAFE if entry.final else Level.NONE


def of_step(entry: JournalEntry) -> RecoveryDecision:
    """What a crash now would do with a recorded step."""
    return decide(level_of(entry), Finalization.REJECTED if entry.status == "fatal" else None)


def of_execution(state: str, entries: Sequence[JournalEntry], category: str = "") -> RecoveryDecision:
    """What a crash now would do with the execution: `state` as stored or shown, `entries` what it has recorded."""
    level = Level.SOFT_SAFE if any(entry.final for entry in entries) else Level.NONE
    return decide(level, finalization(state, category))


class StepPlan(msgspec.Struct, frozen=True):
    seq: int
    name: str
    kind: str
    level: Level
    decision: RecoveryDecision


class RecoveryPlan(msgspec.Struct, frozen=True):
    """The decisions for one execution, for people."""

    decision: RecoveryDecision
    finalization: Finalization | None
    """How it ended; None: it has not."""
    boundary: int
    """Number of the last step that has an outcome, in the order in which they began; 0: none."""
    steps: list[StepPlan]


def plan(state: str, entries: Sequence[JournalEntry], category: str = "") -> RecoveryPlan:
    """All decisions at once."""
    return RecoveryPlan(
        of_execution(state, entries, category),
        finalization(state, category),
        max((entry.seq for entry in entries if entry.final), default=0),
        [StepPlan(e.seq, e.name, e.kind, level_of(e), of_step(e)) for e in entries],
    )
