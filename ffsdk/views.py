"""What users see when they ask: a job's status, why it does not run, a lane's numbers, what a bulk call did."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from ffcore.states import LifecyclePhase, PublicState
from ffsdk.times import from_ms

if TYPE_CHECKING:
    from ffcore.contracts.reads import ListedExecution, StoredExecution


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """What the handler last said with `ctx.progress`."""

    pct: int
    message: str = ""


class Lease(msgspec.Struct, frozen=True, kw_only=True):
    """Who runs it now, and until when without renewing."""

    worker: str
    epoch: int
    expires_at: datetime | None


class Waitpoint(msgspec.Struct, frozen=True, kw_only=True):
    """A gate of a job, as anybody may see it: nothing here opens it."""

    waitpoint_id: str
    gate: str
    """Its name; one opened again under the same name in a loop has ``#2`` and so on behind it."""
    state: str
    """`pending`: nothing waits at it yet, signals are kept. `active`: the job waits at it. `closed`."""
    names: list[str]
    """Signals that count; empty: any."""
    created_at: datetime | None
    activated_at: datetime | None
    expires_at: datetime | None
    kid: str
    """The secret its token was made with."""
    fingerprint: str
    """Tells tokens apart in logs."""


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a job's journal."""

    seq: int
    name: str
    kind: str
    """step, sleep, gate, wait or spawn."""
    status: str
    """`ok` and `fatal` are what it came to; `intent`: it began and must not run twice; `error`: it failed, and is tried
    again."""
    at: datetime | None
    attempt: int
    tries: int
    """How often it failed so far."""
    reason: str
    """Why it failed last."""
    recovery: str
    """What becomes of it when the handler runs again."""
    child: str | None = None
    """Id of the job that a spawn made."""


class JobStatus(msgspec.Struct, frozen=True, kw_only=True):
    """One read of a job, consistent in itself. Instants are UTC by the store's clock."""

    execution_id: str
    task: str
    lane: str
    state: PublicState
    attempt: int
    """Index of the latest attempt, from 0."""
    attempts: int
    """How many were started."""
    crashes: int
    """Leases that ran out because a worker died; `attempts` counts them too."""
    progress: Progress | None
    lease: Lease | None
    blocking_reason: str | None
    blocking_detail: str | None
    waitpoints: list[Waitpoint]
    """Its open gates."""
    created_at: datetime | None
    started_at: datetime | None
    completed_at: datetime | None
    due_at: datetime | None
    """When a delayed job becomes ready."""
    deadline_at: datetime | None
    cancel_requested: bool
    priority: int
    namespace: str
    run: int
    """0 for the first run; each replay adds one."""
    tags: dict[str, str]


class Reason(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that keeps a job from running; `until` if it ends by itself."""

    code: str
    detail: str = ""
    until: datetime | None = None


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """Why a job does not run. If it is `runnable`, a worker could take it now; the reason says what it waits for."""

    runnable: bool
    reasons: list[Reason]
    recovery: str | None = None
    """What the next claim does with what was recorded; None while nothing is."""


class JobInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What a listing says of a job without another read."""

    task: str
    lane: str
    state: PublicState
    priority: int
    attempts: int
    worker: str
    namespace: str
    created_at: datetime | None
    completed_at: datetime | None


class LaneHalt(msgspec.Struct, frozen=True, kw_only=True):
    """Jobs of a lane that wait in line for a budget or a quota."""

    kind: Literal["budget", "quota"]
    detail: str
    jobs: int
    until: datetime | None
    """When it is asked again at the latest; sooner if something is freed."""


class LaneStats(msgspec.Struct, frozen=True, kw_only=True):
    """A lane over all partitions reached."""

    state: str
    """active, paused, draining, disabled; `mixed` while partitions disagree."""
    depth: dict[str, int]
    """Jobs by public state; `waiting` includes the held ones."""
    oldest_age: float
    """Seconds since the creation of the job first in line; 0 if none waits."""
    rate_in: float
    """Jobs created per second over the last seconds."""
    rate_out: float
    """Jobs ended per second over the last seconds."""
    held: int
    """Of the waiting ones, how many something keeps from starting: a hold, a budget, a quota, no worker that knows
    their task."""
    halts: list[LaneHalt]
    """Of these, what waits for budgets and quotas; most jobs first."""
    idle_workers: int
    not_reached: dict[str, str]
    """Partitions that did not answer, and why."""


class FanOut(msgspec.Struct, frozen=True, kw_only=True):
    """A change that goes to every partition. What was not reached still has the old state: call again. (What has a
    `revision` gets there by itself as soon as a worker or an engine looks after that partition.)"""

    reached: list[str]
    not_reached: dict[str, str]
    revision: int | None = None
    """Of the record that was changed, where there is one: a lane's settings, the store's."""

    @property
    def complete(self) -> bool:
        return not self.not_reached


class Bulk(msgspec.Struct, frozen=True, kw_only=True):
    """What a bulk call would do (`dry_run`) or did."""

    dry_run: bool
    count: int
    """Jobs that matched."""
    ids: list[str]
    """Those jobs; of a purge the first ones only."""
    done: int = 0
    refused: dict[str, str] = {}
    """Jobs that matched and were not changed, with the code: they moved on meanwhile, mostly."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of a subscription; pass `cursor` as `after=` to go on behind it."""

    kind: Literal["completion", "lease", "signal", "operator", "flow"]
    cursor: str
    at: datetime | None
    execution_id: str | None
    """None for an operator's action on a lane or a hold, and for a flow as a whole."""
    lane: str | None
    from_state: str | None
    to_state: str | None
    """Public states; equal where only the lease changed. Of a flow: created, completed, failed, cancelled, reopened,
    purged."""
    attempt: int | None
    worker: str | None
    detail: str
    signal: str | None = None
    """The name of the signal; this and the next two only for `signal` events."""
    effect: str | None = None
    """What became of it, such as ``resume_condition_satisfied`` or ``appended_to_waitpoint``."""
    waitpoint_id: str | None = None
    flow_id: str | None = None
    """Of the flow; for `completion` events, the one whose member has ended."""


# ---- from the store's answers --------------------------------------------------------------------------


def status_of(stored: StoredExecution, waitpoints: list[Waitpoint]) -> JobStatus:
    from ffcore import views

    f, state = stored.fields, views.state_of(stored)
    lease = progress = None
    if state.lifecycle_phase is LifecyclePhase.ACTIVE:
        lease = Lease(
            worker=stored.worker_instance_id, epoch=views.number(stored, "lease_epoch"),
            expires_at=from_ms(views.lease_expires_at(stored)),
        )  # fmt: skip
    if "progress" in f or "progress" in stored.texts:
        progress = Progress(pct=views.number(stored, "progress"), message=stored.texts.get("progress", ""))
    reason = state.blocking_reason.value
    return JobStatus(
        execution_id=stored.execution_id, task=f["task"], lane=stored.lane_id, state=state.public_state,
        attempt=views.number(stored, "attempt"), attempts=views.attempts_n(stored),
        crashes=views.number(stored, "crashes"), progress=progress, lease=lease,
        blocking_reason=None if reason == "none" else reason, blocking_detail=views.blocking_detail(stored) or None,
        waitpoints=waitpoints, created_at=from_ms(f.get("created_at")), started_at=from_ms(f.get("started_at")),
        completed_at=from_ms(f.get("ended_at")), due_at=from_ms(views.due_at(stored)),
        deadline_at=from_ms(f.get("deadline_at")), cancel_requested="cancel_until" in f,
        priority=views.number(stored, "priority"), namespace=f.get("namespace", "default"),
        run=views.number(stored, "run"), tags=stored.tags,
    )  # fmt: skip


def info_of(row: ListedExecution) -> JobInfo:
    from ffcore.states import vector

    return JobInfo(
        task=row.task, lane=row.lane_id, priority=row.priority, attempts=row.attempts, worker=row.worker_instance_id,
        state=vector(row.state, row.reason or None, row.next or None, row.started).public_state,
        namespace=row.namespace, created_at=from_ms(row.created_at), completed_at=from_ms(row.ended_at),
    )  # fmt: skip
