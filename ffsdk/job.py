"""A job: a handle on one execution. It holds an id and a client, no state; every question asks the store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar

import msgspec

from ffcore import checks, ids, limits
from ffcore.ids import ExecutionId
from ffsdk import payload as payloads
from ffsdk import times
from ffsdk.outcomes import Cancelled, Completed, Expired, Failed, Outcome, Skipped, error_of
from ffsdk.views import Explanation, JobInfo, JobStatus, Step, status_of

if TYPE_CHECKING:
    from ffcore.contracts.reads import ExecutionOutcome, StoredExecution
    from ffcore.states import PublicState
    from ffsdk.client import Client
    from ffsdk.streams import Frame
    from ffsdk.task import Task

R_co = TypeVar("R_co", covariant=True)
Cancelling = Literal["cancelled", "requested", "already_ended"]
Pausing = Literal["paused", "pause_pending", "already_paused"]


class Job(Generic[R_co]):
    """One execution. Jobs with the same id are equal."""

    __slots__ = ("__weakref__", "_client", "_task", "created", "id", "info")  # a bulk submit makes very many

    def __init__(
        self, client: Client, execution_id: ExecutionId, task: Task[Any, R_co] | None = None, *, created: bool = False,
        info: JobInfo | None = None,
    ) -> None:  # fmt: skip
        self.id = execution_id
        self.created = created
        """Whether this submit made it; False when the key named one that existed, and for looked-up jobs."""
        self.info = info
        """What the listing said that this handle came from; None otherwise."""
        self._client, self._task = client, task

    @property
    def execution_id(self) -> ExecutionId:
        return self.id

    def __repr__(self) -> str:
        return f"<Job {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    # ---- how it ends

    async def outcome(self, timeout: times.Duration | None = None) -> Outcome[R_co]:
        """How it ended: Completed, Failed, Cancelled, Expired or Skipped. Waits, for ever without a timeout.

        Raises TimeoutError (the job goes on), NotFound, Unavailable, and InvalidArgument for a result that is not
        of the task's type.
        """
        if timeout is None:
            return outcome_of(await self._client.waiters.wait(self.id), self._task)
        async with asyncio.timeout(times.seconds(timeout, "timeout")):
            found = await self._client.waiters.wait(self.id)
        return outcome_of(found, self._task)

    async def result(self, timeout: times.Duration | None = None) -> R_co:
        """What the handler returned. Raises JobFailed, JobCancelled, JobExpired, JobSkipped, else as `outcome`."""
        outcome = await self.outcome(timeout)
        if isinstance(outcome, Completed):
            return outcome.value
        raise error_of(self.id, outcome)

    # ---- how it stands

    async def status(self) -> JobStatus:
        """State, attempts, lease, progress and times, in one consistent read; what holds a held job, and open gates, in
        others. Raises NotFound."""
        from ffsdk.explain import name_hold
        from ffsdk.recorded import waitpoints_of

        backend = self._client.backend
        stored = await name_hold(backend, await self._read())
        return status_of(stored, await waitpoints_of(backend, stored))

    async def explain(self) -> Explanation:
        """Why it does not run now: waits for which gates until when, sleeps, paused, delayed until, held, lane paused,
        no capable worker, running, ended; and what a claim would do with what was recorded."""
        from ffsdk.explain import explain

        return await explain(self._client.backend, await self._read())

    async def steps(self) -> list[Step]:
        """What its handler has recorded, in order, and what becomes of each when it runs again. Raises NotFound."""
        from ffsdk.recorded import steps_of

        return await steps_of(self._client.backend, await self._read())

    async def _read(self) -> StoredExecution:
        from ffcore.contracts.reads import ReadExecutionArgs

        return await self._client.backend.call(ReadExecutionArgs(execution_id=self.id))

    # ---- what it emits

    def stream(self, after: str | None = None) -> AsyncGenerator[Frame, None]:
        """What its handler emits, from the first frame kept on and as it comes; ends when the job has ended.

        ``async for frame in job.stream(): ...``. When a later attempt takes over, a frame of type ``superseded`` says
        so (`frame.attempt`): the earlier attempt's frames stand for nothing any more.

        after   the `cursor` of a frame, to go on behind it; "end": only what comes from now on

        Raises NotFound, InvalidArgument (no such cursor), Unavailable when the client closes; while the store is away
        it waits.
        """
        from ffsdk.streams import follow, parse_cursor

        parse_cursor(after)
        return follow(self._client, self.id, after)

    async def summary(self) -> dict[str, Any]:
        """The document its handler keeps up to date with `ctx.summary`; empty before the first. Raises NotFound."""
        from ffsdk.streams import read_summary

        return await read_summary(self._client.backend, self.id)

    # ---- changing its course

    async def cancel(self, reason: str = "", *, grace: times.Duration | None = None, force: bool = False) -> Cancelling:
        """Cancel it: at once if it does not run; else its worker is told and has `grace` (default 30 s) to end it,
        during which a completion still wins. `force` does not wait. Cancelling what has ended changes nothing."""
        from ffcore.contracts.execution import CancelExecutionArgs, CancelRequested
        from ffcore.contracts.execution import Cancelled as CancelledNow
        from ffcore.contracts.lease import CancelSource

        source = CancelSource.OPERATOR_OVERRIDE if force else CancelSource.custom("client")
        answer = await self._client.backend.call(CancelExecutionArgs(
            execution_id=self.id, reason=reason, source=source, grace_ms=times.optional_ms(grace, "grace"),
        ))  # fmt: skip
        match answer:
            case CancelledNow():
                return "cancelled"
            case CancelRequested():
                return "requested"
            case _:
                return "already_ended"

    async def pause(self, reason: str = "") -> Pausing:
        """Let it not run until `resume`: at once if it does not run ("paused"), else ("pause_pending") when its handler
        gives the lease up without an end: by a retry, a wait, a crash. What it waits for may come meanwhile. Raises
        Terminal if it has ended, and NotFound."""
        from ffcore.contracts.suspension import AlreadyPaused, PauseExecutionArgs, PausePending

        checks.size(reason, "reason", limits.REASON_BYTES, code="invalid_input")
        answer = await self._client.backend.call(PauseExecutionArgs(execution_id=self.id, reason=reason))
        match answer:
            case PausePending():
                return "pause_pending"
            case AlreadyPaused():
                return "already_paused"
            case _:
                return "paused"

    async def resume(self, delay: times.Duration = 0, *, force: bool = False) -> PublicState:
        """Let it go on: takes back a pause; else ends a wait for gates or time, as an operator (`gate.wait` then
        answers None), or, where it waits for `ff.operator()` among others, meets that part. Answers its state. Raises
        WrongState if there is nothing to resume, and NotFound.

        delay   seconds until it may be claimed
        force   end the wait as it stands, whoever else is waited for
        """
        from ffcore.contracts.suspension import ResumeExecutionArgs

        answer = await self._client.backend.call(ResumeExecutionArgs(
            execution_id=self.id, trigger_type="auto_resume" if force else "operator",
            resume_delay_ms=times.span_ms(delay, "delay"),
        ))  # fmt: skip
        return answer.public_state

    async def replay(self, mode: Literal["resume", "fresh"] = "resume") -> None:
        """Run it again, under the same id, after it has ended: `resume` keeps finished steps, `fresh` clears them.

        Raises WrongState (it has not ended, too many replays) and NotFound.
        """
        from ffcore.contracts.execution import ReplayExecutionArgs

        await self._client.backend.call(ReplayExecutionArgs(execution_id=self.id, mode=mode))


def outcome_of(found: ExecutionOutcome, task: Task[Any, R_co] | None) -> Outcome[R_co]:
    """An end as the store has it, its result in the task's type."""
    match found.state:
        case "completed":
            raw = found.result if found.has_result else None
            value: Any = task.decode_result(raw) if task is not None else _plain(raw)
            return Completed(value)
        case "failed":
            return Failed(
                reason=found.reason, category=found.category, attempts=found.attempts, traceback=found.traceback
            )
        case "cancelled":
            return Cancelled(reason=found.reason)
        case "expired":
            return Expired(reason=found.reason)
        case _:
            return Skipped(reason=found.reason)


_any = msgspec.json.Decoder()


def _plain(raw: bytes | None) -> Any:
    return payloads.decode(_any, raw, "the result") if raw else None


def check_id(execution_id: str, partitions_n: int) -> ExecutionId:
    checks.text(execution_id, "execution_id", limits.KEY_BYTES)
    return ExecutionId(ids.check_id(execution_id, partitions=partitions_n))
