"""A job this worker holds: its lease on this worker's own clock, and how far its handler has come.

The rule: a lease counts from the moment its request was sent, so the worker never believes in a lease that the
store has already ended. Fields are plain and slotted, because one of these is made for every job.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from ffcore.contracts.batch import ClaimedJob
from ffcore.contracts.lease import LeaseFence

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from ffsdk.context import Context
    from ffsdk.slots import Part

Why = Literal["lost", "cancel", "timeout", "stop"]
"""Why a handler is stopped: `lost` reports nothing, the others report when the handler has ended."""

WAITING, RUNNING, ENDED = range(3)
"""In the buffer; with its handler; its outcome is on its way to the store."""


class Held:
    """One leased job. The renewal thread reads `deadline` and `renew_at` and may set `why` to "lost"; everything
    else belongs to the event loop's thread."""

    __slots__ = (
        "clock_ms",
        "ctx",
        "deadline",
        "job",
        "kill",
        "lease_s",
        "part",
        "renew_at",
        "runner",
        "stage",
        "suspended",
        "timeout_at",
        "timer",
        "why",
    )

    def __init__(
        self,
        job: ClaimedJob,
        part: Part,
        deadline: float,
        renew_at: float,
        timeout_at: float,
        lease_s: float = 0.0,
        clock_ms: float = 0.0,
    ) -> None:
        self.job, self.part = job, part
        self.deadline, self.renew_at, self.timeout_at = deadline, renew_at, timeout_at
        """Seconds of the worker's clock: end of the lease, next renewal, end of the attempt (0.0: never)."""
        self.lease_s, self.clock_ms = lease_s, clock_ms
        """How long the lease was when it was claimed, and by how much the store's clock is ahead of the worker's."""
        self.stage = WAITING
        self.why: Why | None = None
        self.suspended = False
        """The store has the job back, suspended: whatever its handler still does or says concerns nobody."""
        self.runner: asyncio.Task[Any] | None = None
        """The task to cancel; None while the handler is in a thread or a child process."""
        self.kill: Callable[[], None] | None = None
        """Ends the child process that runs the handler."""
        self.ctx: Context | None = None
        self.timer: asyncio.TimerHandle | None = None

    @property
    def fence(self) -> str:
        job = self.job
        return f"{job.lease_id} {job.lease_epoch} {job.attempt_id}"

    @property
    def lease(self) -> LeaseFence:
        job = self.job
        return LeaseFence(job.lease_id, job.lease_epoch, job.attempt_id)

    def __repr__(self) -> str:
        return f"<{self.job.task} {self.job.execution_id} attempt {self.job.attempt_index}>"
