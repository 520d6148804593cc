"""The context of a handler: facts about its job, and what it may tell the engine while it runs.

The rule: everything a handler tells carries its fence, so a handler that has lost its job can change nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any

from ffcore.contracts.attempt import UpdateProgressArgs
from ffcore.contracts.lease import LeaseFence
from ffcore.errors import InvalidArgument
from ffcore.wire import pairs_to_dict
from ffsdk.times import from_ms

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffsdk.held import Held
    from ffsdk.task import Task

Tell = Callable[[int, str], Awaitable[None]]


class Context:
    """What a handler gets as its second argument.

    execution_id   the job's id
    attempt        index of this attempt, from 0
    fence          lease id, lease epoch and attempt id; `fence.lease_epoch` rises with every lease of the job, so
                   a system that remembers the highest one seen can refuse a worker that has lost the job
    tags           the job's tags
    deadline       when this attempt will be ended (aware, UTC): the earlier of its timeout and the job's deadline
    state          what the app's lifespan yielded
    cancelled      True once the handler should stop: cancelled, timed out, lease lost, worker stopping. An async
                   handler is cancelled by asyncio as well; a handler in a thread has to look here
    task           the task that runs
    """

    __slots__ = (
        "_deadline_ms",
        "_flat_tags",
        "_tags",
        "_tell",
        "attempt",
        "cancelled",
        "execution_id",
        "fence",
        "state",
        "task",
    )

    def __init__(
        self,
        *,
        execution_id: str,
        attempt: int,
        fence: LeaseFence,
        tags: list[str],
        deadline_ms: int,
        state: Any,
        task: Task[Any, Any],
        tell: Tell,
    ) -> None:
        self.execution_id, self.attempt, self.fence = execution_id, attempt, fence
        self.state, self.task, self.cancelled = state, task, False
        self._flat_tags, self._tags, self._deadline_ms, self._tell = tags, None, deadline_ms, tell

    _tags: Mapping[str, str] | None

    @classmethod
    def of(cls, held: Held, task: Task[Any, Any], state: Any, tell: Tell) -> Context:
        """The context of a job that was just claimed."""
        job = held.job
        ends = [at for at in (job.deadline_at, job.attempt_deadline_at) if at]
        return cls(
            execution_id=job.execution_id,
            attempt=job.attempt_index,
            fence=held.lease,
            tags=job.tags,
            deadline_ms=min(ends, default=0),
            state=state,
            task=task,
            tell=tell,
        )

    @property
    def tags(self) -> Mapping[str, str]:
        if self._tags is None:
            self._tags = pairs_to_dict(self._flat_tags)
        return self._tags

    @property
    def deadline(self) -> datetime | None:
        return from_ms(self._deadline_ms)

    def progress(self, pct: int, message: str = "") -> Awaitable[None]:
        """Say how far the job has come, 0 to 100; for people, never for decisions.

        ``await`` it in an async handler. In a `def` handler just call it: it has taken effect when it returns.
        Raises StaleLease if the job is no longer this handler's, Unavailable if the store does not answer.
        """
        if isinstance(pct, bool) or not isinstance(pct, int | float) or not 0 <= pct <= 100:
            raise InvalidArgument(f"progress is {pct!r:.40}: use a number from 0 to 100")
        return self._tell(int(pct), message)


class Done:
    """An awaitable that has nothing left to do."""

    def __await__(self) -> Any:
        return
        yield


def teller(backend: Backend, held: Held, loop: asyncio.AbstractEventLoop) -> Tell:
    """`ctx.progress` for a handler in the loop, or in a thread beside it."""
    job = held.job

    async def send(pct: int, message: str) -> None:
        await backend.call(
            UpdateProgressArgs(
                execution_id=job.execution_id,
                lease_id=job.lease_id,
                lease_epoch=job.lease_epoch,
                attempt_id=job.attempt_id,
                progress_pct=pct,
                progress_message=message or None,
            )
        )

    def tell(pct: int, message: str) -> Awaitable[None]:
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is loop:
            return send(pct, message)
        asyncio.run_coroutine_threadsafe(send(pct, message), loop).result()
        return Done()

    return tell
