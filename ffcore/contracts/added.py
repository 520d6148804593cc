"""What this engine adds to the seed's types, in one place; the parity test accepts exactly this.

Fields come after the seed's or have a default; variants come last in their union.
"""

from __future__ import annotations

from typing import Final

ADDED: Final[dict[str, frozenset[str]]] = {
    "CreateExecutionArgs": frozenset({"digest", "version", "fairness_key", "admission"}),
    "FailExecutionArgs": frozenset({"retry_after_ms", "failure_detail"}),
    "ReplayExecutionArgs": frozenset({"mode"}),
    "CancelExecutionArgs": frozenset({"grace_ms"}),
    "ExecutionPolicy": frozenset({"lease_ms"}),
    # Operations whose struct does not say where the record lives: the seed passes it beside the struct.
    "ClaimForWorkerArgs": frozenset({"at"}),
    "SuspendArgs": frozenset({"at", "fence"}),
    "ResolveDependencyArgs": frozenset({"at"}),
    "CloseWaitpointArgs": frozenset({"at"}),
    "CreatePendingWaitpointArgs": frozenset({"step", "step_name", "version"}),
    "WaitpointCreated": frozenset({"kid", "replayed"}),
    # A duplicate answers what the first one was answered; an operator needs no token.
    "SignalDuplicate": frozenset({"effect"}),
    "DeliverSignalArgs": frozenset({"operator"}),
    # How many open waitpoints the grace of a rotation will cut off.
    "Rotated": frozenset({"open_waitpoints"}),
    "Noop": frozenset({"open_waitpoints"}),
    "ReportUsageArgs": frozenset({"at"}),
    "ReportUsageAdminArgs": frozenset({"at"}),
    "CheckAdmissionArgs": frozenset({"at"}),
    "CreateQuotaPolicyArgs": frozenset({"name", "namespace"}),
    "ReleaseAdmissionArgs": frozenset({"at"}),
    "RotateWaitpointHmacSecretArgs": frozenset({"at"}),
    "SeedWaitpointHmacSecretArgs": frozenset({"at"}),
    "ListWaitpointHmacKidsArgs": frozenset({"at"}),
    # What a lease holder reports may be sent again; the answer says that it was.
    "Completed": frozenset({"replayed"}),
    "RetryScheduled": frozenset({"replayed"}),
    "TerminalFailed": frozenset({"replayed"}),
    "Suspended": frozenset({"replayed"}),
    "SuspensionAlreadySatisfied": frozenset({"replayed"}),
    # A breaching report is recorded (D13); `applied` says so.
    "HardBreach": frozenset({"applied"}),
    # A budget has a name, and says what is reserved of it.
    "CreateBudgetArgs": frozenset({"name", "namespace"}),
    "BudgetStatus": frozenset({
        "name", "namespace", "on_hard_limit", "on_soft_limit", "reset_interval_ms", "reserved", "reservations",
        "period", "waiting",
    }),
    # An append may be repeated and need not be kept for long; payloads of frames are bytes, and bound an answer.
    "AppendFrameArgs": frozenset({"mode", "op"}),
    "Appended": frozenset({"replayed"}),
    "StreamFrame": frozenset({"payload"}),
    "StreamFrames": frozenset({"more"}),
    "ReadFramesArgs": frozenset({"visibility"}),
    # The seed passes the wait beside the struct, and moves to wait for all children only.
    "CancelFlowArgs": frozenset({"wait"}),
    "EdgeGroupSnapshot": frozenset({"cancelled_count"}),
    "MoveToWaitingChildrenArgs": frozenset({"children", "need"}),
}
"""Class name -> fields."""

ADDED_VARIANTS: Final[dict[str, frozenset[str]]] = {
    "CancelExecutionResult": frozenset({"cancel_requested", "already_terminal"}),
    "MoveToWaitingChildrenResult": frozenset({"already_satisfied"}),
    "ExpireExecutionResult": frozenset({"retry_scheduled"}),
    "AttemptType": frozenset({"compensation"}),
    "SignalMatcher": frozenset({"by_names"}),
}
"""Union or enum name -> tags."""
