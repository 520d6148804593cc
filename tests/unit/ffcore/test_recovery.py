"""The recovery decision follows from what is recorded and from how the execution ended, and from nothing else."""

from __future__ import annotations

import itertools

import pytest

from ffcore.recovery import Finalization, Level, RecoveryDecision, decide, finalization, of_execution, of_step, plan
from ffcore.steps import JournalEntry

SCRATCH, RESUME = RecoveryDecision.REEXECUTE_FROM_SCRATCH, RecoveryDecision.RESUME_FROM_EVIDENCE_BOUNDARY
REUSE, PRESERVE = RecoveryDecision.REUSE_FINALIZED, RecoveryDecision.PRESERVE_TERMINAL
LIVE = ["ready", "waiting", "active", "delayed", "blocked", "suspended", "reclaimable", "resumable"]
ENDS = {
    "completed": Finalization.FINALIZED, "failed": Finalization.REJECTED, "cancelled": Finalization.ABORTED,
    "skipped": Finalization.ABORTED, "expired": Finalization.TIMED_OUT,
}  # fmt: skip


def entry(status: str, seq: int = 1, kind: str = "step") -> JournalEntry:
    return JournalEntry(seq, f"a.b.{seq}", kind, status, 1, 0, f"s{seq}", b"")


@pytest.mark.parametrize(
    ("status", "decision"), [("intent", SCRATCH), ("error", SCRATCH), ("ok", RESUME), ("fatal", PRESERVE)]
)
@pytest.mark.parametrize("kind", ["step", "sleep", "gate", "wait", "spawn"])
def test_a_step_is_run_again_only_while_no_outcome_is_recorded(
    status: str, kind: str, decision: RecoveryDecision
) -> None:
    assert of_step(entry(status, kind=kind)) is decision


@pytest.mark.parametrize("state", LIVE)
def test_a_live_execution_goes_on_behind_what_is_recorded(state: str) -> None:
    assert of_execution(state, []) is SCRATCH
    assert of_execution(state, [entry("intent"), entry("error", 2)]) is SCRATCH
    assert of_execution(state, [entry("ok"), entry("intent", 2)]) is RESUME
    assert of_execution(state, [entry("fatal")]) is RESUME, "the handler has not ended: it may go on from the failure"


@pytest.mark.parametrize("state", ENDS)
def test_what_has_ended_stays_as_it_ended(state: str) -> None:
    for entries in ([], [entry("ok")], [entry("intent")]):
        assert of_execution(state, entries) is (REUSE if state == "completed" else PRESERVE)
    assert finalization(state) is ENDS[state]


def test_time_that_ran_out_is_told_from_other_failures() -> None:
    assert finalization("failed", "timeout") is finalization("failed", "suspension_timeout") is Finalization.TIMED_OUT
    assert finalization("failed", "error") is Finalization.REJECTED
    assert finalization("active", "timeout") is None, "an attempt that ran out of time is tried again"


def test_the_rule_is_that_of_durable_recovery() -> None:
    """An end decides; without one, evidence does."""
    for level, ended in itertools.product(Level, [None, *Finalization]):
        want = (
            REUSE if ended is Finalization.FINALIZED
            else PRESERVE if ended is not None
            else SCRATCH if level is Level.NONE
            else RESUME
        )  # fmt: skip
        assert decide(level, ended) is want


def test_a_plan_shows_the_boundary_and_each_step() -> None:
    got = plan("active", [entry("ok"), entry("error", 2), entry("ok", 3), entry("intent", 4)])
    assert (got.decision, got.finalization, got.boundary) == (RESUME, None, 3)
    assert [(s.seq, s.level, s.decision) for s in got.steps] == [
        (1, Level.SOFT_SAFE, RESUME), (2, Level.NONE, SCRATCH), (3, Level.SOFT_SAFE, RESUME), (4, Level.NONE, SCRATCH),
    ]  # fmt: skip
    done = plan("failed", [entry("fatal")], "timeout")
    assert (done.decision, done.finalization, done.boundary) == (PRESERVE, Finalization.TIMED_OUT, 1)
    assert plan("ready", []).boundary == 0
