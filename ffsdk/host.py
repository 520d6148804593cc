"""The worker as the contexts of its handlers see it: its store, its clock, its threads, and whom to tell what."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import TYPE_CHECKING, Any, Final

from ffcore.contracts.attempt import UpdateProgressArgs
from ffsdk.context import Context, Done, Told
from ffsdk.durable import Durable
from ffsdk.isolation import Threads
from ffsdk.renewal import interval
from ffsdk.spending import Spending, Spent

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ffcore.admission import Amount
    from ffcore.backend import Backend
    from ffsdk.client import Client
    from ffsdk.held import Held
    from ffsdk.task import Task

STEP_THREADS_N: Final = 64
"""Steps that are plain functions run in threads of their own, so that they never wait for handlers to end."""


class Host:
    """One per worker (`ffsdk.context.Home`)."""

    __slots__ = (
        "_client", "_tasks", "_threads", "backend", "cancel", "clock", "lease_ms", "leave", "loop", "lose", "nudge",
        "owes", "spending", "tasks",
    )  # fmt: skip

    def __init__(
        self,
        backend: Backend,
        *,
        clock: Callable[[], float],
        lease_ms: int,
        lose: Callable[[Held, str], None],
        cancel: Callable[[Held], None],
        leave: Callable[[Held], None],
        nudge: Callable[[], None],
        owes: Callable[[Held], None],
        client: Client,
        tasks: Mapping[str, Task[Any, Any]],
    ) -> None:
        """lose(held, why): the lease is lost. cancel(held): a cancel is requested. leave(held): the job is suspended.
        nudge(): a lease is to be renewed now. owes(held): a call has left something for other partitions. client: not
        open yet. tasks: what the worker's app has declared."""
        self.backend, self.clock, self.lease_ms = backend, clock, lease_ms
        self.lose, self.cancel, self.leave, self.nudge = lose, cancel, leave, nudge
        self.owes, self.spending = owes, Spending(backend)
        self.loop = asyncio.get_running_loop()
        self._client, self.tasks = client, tasks
        self._threads: Threads | None = None
        self._tasks: set[asyncio.Task[Any]] = set()

    # ---- ffsdk.context.Home

    def durable(self, ctx: Context, held: Held | None) -> Durable:
        assert held is not None
        return Durable(self, ctx, held)

    def tell(self, held: Held | None, durable: Durable | None, pct: int, message: str) -> Awaitable[None]:
        """`ctx.progress`, from a handler in the loop or in a thread beside it."""
        assert held is not None
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self.loop:
            asyncio.run_coroutine_threadsafe(self.send_progress(held, pct, message), self.loop).result()
            return Done()
        if durable is not None:
            if durable.within_step:
                durable.ride(pct, message)
                return Done()
            durable.check()
        return self.send_progress(held, pct, message)

    def spend(self, ctx: Context, held: Held | None, given: Mapping[str, Amount]) -> Awaitable[Spent]:
        """`ctx.spend`, from a handler in the loop or in a thread beside it."""
        assert held is not None
        work = self.spending.spend(ctx, held, given)
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is self.loop:
            return work
        return Told(asyncio.run_coroutine_threadsafe(work, self.loop).result())

    async def send_progress(self, held: Held, pct: int, message: str) -> None:
        job = held.job
        await self.backend.call(
            UpdateProgressArgs(
                execution_id=job.execution_id,
                lease_id=job.lease_id,
                lease_epoch=job.lease_epoch,
                attempt_id=job.attempt_id,
                progress_pct=pct,
                progress_message=message or None,
            )
        )

    # ---- for Durable

    def extend(self, held: Held, expires_at_ms: int, sent: float) -> None:
        """A call sent at `sent` has renewed a lease: the renewal thread need not. The store's clock may have jumped
        since the claim, so the lease is never believed to be longer from now than it was then."""
        if not held.lease_s:
            return
        deadline = min((expires_at_ms - held.clock_ms) / 1000, sent + held.lease_s)
        if deadline > held.deadline:
            whole_s = max(held.lease_s, self.lease_ms / 1000) if held.timeout_at else held.lease_s
            held.deadline = deadline
            held.renew_at = max(held.renew_at, deadline - held.lease_s + interval(whole_s))

    def in_thread(self, call: Callable[[], Any]) -> asyncio.Future[Any]:
        """Run a step's function in a thread."""
        if self._threads is None:
            self._threads = Threads(STEP_THREADS_N)
        return self.loop.run_in_executor(self._threads, call)

    async def client(self) -> Client:
        """What handlers spawn with, and look at what they have spawned; opened when first used."""
        return await self._client.open()

    def spawn(self, coro: Coroutine[Any, Any, None]) -> None:
        task = self.loop.create_task(coro)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Threads end with the steps they run."""
        if self._threads is not None:
            self._threads.shutdown()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.spending.close()
        await self._client.close()
