"""What becomes of handlers: outcomes go to the store, those that must end are stopped, suspended ones are let go.

The rule: one outcome per lease. A lost lease and a suspended job have none here: whoever holds the job next reports it.
All methods belong to the event loop's thread, unless their name says otherwise.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from ffcore.contracts.journal import PinVersionArgs
from ffcore.errors import EngineError, InvalidArgument, Rejected
from ffsdk.asking import exceeded
from ffsdk.context import Context
from ffsdk.held import ENDED, RUNNING, WAITING, Held, Why
from ffsdk.isolation import Killed, explain
from ffsdk.slots import call_until_answered

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffsdk.admission import Admission
    from ffsdk.host import Host
    from ffsdk.inputs import Taken
    from ffsdk.reports import Reports
    from ffsdk.runner import Runners
    from ffsdk.slots import Slots
    from ffsdk.task import Task

log = logging.getLogger("flowfabric.worker")

UNWIND_S: Final = 5.0
"""How long the handler of a suspended job may take to be unwound: to close what it has opened, not more."""


class Handlers:
    """Those of one worker (`ffsdk.runner.Outcomes`)."""

    def __init__(
        self,
        held: dict[str, Held],
        *,
        backend: Backend,
        state: Any,
        clock: Callable[[], float],
    ) -> None:
        """held: the jobs of the worker, by lease id. state: what the app's lifespan yielded."""
        self._held, self._backend, self._state, self._clock = held, backend, state, clock
        self._loop = asyncio.get_running_loop()

    def connect(
        self, *, runners: Runners, slots: Slots, reports: Reports, host: Host, admission: Admission
    ) -> None:  # fmt: skip
        """The other parts of the worker, which know this one."""
        self._runners, self._slots, self._reports, self._host = runners, slots, reports, host
        self._admission = admission

    # ---- what the runners say (ffsdk.runner.Outcomes)

    def context_of(self, held: Held, task: Task[Any, Any]) -> Context:
        return Context.of(held, task, self._state, self._host)

    def arm(self, held: Held) -> None:
        held.timer = self._loop.call_later(max(0.0, held.timeout_at - self._clock()), self._timed_out, held)

    async def pin(self, held: Held, task: Task[Any, Any]) -> bool:
        """Take a job of another version of the task, if no code has begun it yet. Where another worker's has, it is
        handed to one that has that version."""
        job = held.job
        if job.journal is not None and not job.journal.unpinned:
            self.unknown(held)
            return False
        try:
            await call_until_answered(
                self._backend,
                PinVersionArgs(execution_id=job.execution_id, fence=held.fence, version=task.version),
            )
        except Rejected as refused:
            if refused.code == "version_pinned":
                self.unknown(held)
            else:
                self.lose(held, str(refused))
                self._slots.wake()
            return False
        except EngineError as broken:
            # Not to be kept, and renewed, without a handler: the report, or what becomes of it, ends that.
            log.error("%s cannot be begun: %s", held, broken)
            self.give_back(held)
            return False
        if held.why is not None:
            self.stopped(held)
            return False
        return True

    async def inputs(self, held: Held) -> Taken | None:
        """What the upstreams of a job returned, where that is too much to come with the claim. None: it is lost, or
        to be stopped."""
        from ffsdk.inputs import read

        try:
            found = await read(self._backend, held)
        except EngineError as broken:
            log.error("the inputs of %s cannot be read: %s", held, broken)
            self.give_back(held)
            return None
        if held.why is not None:
            self.stopped(held)
            return None
        return found

    def completed(self, held: Held, result: bytes | None) -> None:
        if held.stage == ENDED or held.why == "lost":
            self._drop(held)
        else:
            self._slots.complete(held, result)

    def continued(self, held: Held, payload: bytes) -> None:
        if held.stage == ENDED or held.why == "lost":
            self._drop(held)
        else:
            self._reports.continue_as(held, payload)

    def failed(self, held: Held, error: BaseException) -> None:
        if held.stage == ENDED or held.why == "lost":
            self._drop(held)
        elif held.job.admission and held.why is None and (over := exceeded(held, error)) is not None:
            held.stage = WAITING
            self._admission.again(held, over)
        elif (
            isinstance(error, Killed)
            or held.why == "cancel"
            or (held.why and isinstance(error, asyncio.CancelledError))
        ):
            self.stopped(held)
        else:
            reason, category, detail, retry_after_ms, final = explain(error)
            self._reports.fail(held, reason, category, detail, retry_after_ms, final)

    def unfit(self, held: Held, error: InvalidArgument, category: str) -> None:
        if held.stage == ENDED or held.why == "lost":
            self._drop(held)
        else:
            self._reports.fail(held, str(error), category, final=True)

    def unknown(self, held: Held) -> None:
        log.info("%s: this worker does not know version %d of the task", held, held.job.version)
        self._reports.give_back(held, "unknown_task")

    def stopped(self, held: Held) -> None:
        """A handler has ended because it was stopped, or has not started because of that."""
        if held.stage == ENDED or held.why == "lost":
            self._drop(held)
        elif held.why == "cancel":
            self._reports.cancel(held)
        elif held.why == "timeout":
            self._fail_timeout(held)
        elif held.why == "stop" and held.stage == WAITING:
            self.give_back(held)
        else:
            self._reports.give_back(held, "hand_back")

    def give_back(self, held: Held) -> None:
        """Give back a job that has not started."""
        self._reports.give_back(held, "refused")

    def _drop(self, held: Held) -> None:
        """No report: the lease is lost, or the report is on its way already."""
        if held.why == "lost":
            held.stage = ENDED
            self._held.pop(held.job.lease_id, None)
        self._admission.pump()
        self._slots.wake()

    # ---- what the store answered

    def settled(self, held: Held, code: str) -> None:
        self._held.pop(held.job.lease_id, None)
        if held.job.admission:
            self._gave_back(held)
        if code:
            # The lease was lost, or the job has ended meanwhile: somebody else's outcome stands.
            log.info("the result of %s was refused: %s", held, code)

    def forget(self, held: Held) -> None:
        self._held.pop(held.job.lease_id, None)
        if held.job.admission:
            self._gave_back(held)
        self._admission.pump()  # it may have left the buffer without a handler, whose end others wait for
        self._slots.wake()

    def _gave_back(self, held: Held) -> None:
        """With its lease the store has taken back what the job was admitted by: others may be waiting for that."""
        self._host.owes(held)
        self._admission.pump()

    def leave(self, held: Held) -> None:
        """The job is suspended: its slot is free, and its handler has nothing to report any more. It is being unwound;
        one that takes too long over it is cancelled."""
        if held.suspended or held.stage == ENDED:
            return
        ran = held.stage == RUNNING
        held.suspended, held.stage = True, ENDED
        self._held.pop(held.job.lease_id, None)
        if held.job.admission:
            self._gave_back(held)
        if not ran:  # it waits for a higher limit
            self._slots.wake()
            return
        if held.ctx is not None:
            held.ctx.cancelled = True
        if held.timer is not None:
            held.timer.cancel()
        held.timer = self._loop.call_later(UNWIND_S, self._still_there, held)
        self._runners.leave(held)
        self._slots.wake()

    def _still_there(self, held: Held) -> None:
        log.warning(
            "%s is suspended, and its handler goes on: it must not keep ff.Suspended back (a bare `except:`, "
            "a `finally` that waits)", held,
        )  # fmt: skip
        if held.runner is not None:
            held.runner.cancel()

    # ---- stopping

    def stop(self, held: Held, why: Why) -> None:
        """Let a handler end, or never begin."""
        if held.why is None or why == "lost":
            held.why = why
        if held.ctx is not None:
            held.ctx.cancelled = True
        if held.stage == WAITING:
            if self._runners.drop(held) or self._admission.drop(held):
                self.stopped(held)
        elif held.runner is not None:
            held.runner.cancel()
        elif held.kill is not None:
            held.kill()

    def _timed_out(self, held: Held) -> None:
        if held.stage != RUNNING or held.why is not None:
            return
        self.stop(held, "timeout")
        if held.runner is None and held.kill is None:
            # A thread cannot be stopped. It stays busy until it returns; the attempt is over now.
            self._fail_timeout(held)

    def _fail_timeout(self, held: Held) -> None:
        self._reports.fail(held, "the attempt ran out of time", "timeout")

    def cancel(self, held: Held) -> None:
        if held.stage != ENDED and held.why is None:
            self.stop(held, "cancel")

    def cancel_from_thread(self, held: Held) -> None:
        self._from_thread(self.cancel, held)

    def lose(self, held: Held, why: str) -> None:
        if held.stage == ENDED or self._held.get(held.job.lease_id) is not held:
            return
        log.warning("the lease of %s is lost: %s", held, why)
        del self._held[held.job.lease_id]
        self.stop(held, "lost")

    def lose_from_thread(self, held: Held, why: str) -> None:
        # At once, so that a handler which ends before the loop gets to it reports nothing.
        held.why = "lost"
        self._from_thread(self.lose, held, why)

    def _from_thread(self, call: Callable[..., None], *args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: so is the worker
            self._loop.call_soon_threadsafe(call, *args)
