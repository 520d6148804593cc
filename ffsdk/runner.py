"""Running handlers: a fixed set of long-lived tasks that take jobs from a buffer.

No task is made per job. What a handler leaves behind (context variables, a pending cancel) must not reach the next
job, so a runner that was changed by a job retires and another takes its place.
"""

from __future__ import annotations

import asyncio
import contextvars
import logging
import time
import types
from collections import deque
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import TYPE_CHECKING, Any, Final, Protocol, cast

import msgspec

from ffcore.errors import InvalidArgument
from ffsdk.context import Context
from ffsdk.errors import ContinueAs
from ffsdk.held import RUNNING, Held
from ffsdk.isolation import Encoded

if TYPE_CHECKING:
    from ffcore.contracts.batch import Inputs
    from ffsdk.inputs import Taken
    from ffsdk.isolation import Isolated
    from ffsdk.task import Task

log = logging.getLogger("flowfabric.worker")

SLICE_S: Final = 0.0005
"""A runner lets the loop do something else after this much work, also if its handlers never wait."""
SHORT_S: Final = 0.05
"""Handlers shorter than this on average are worth a buffer: their worker would starve for a round trip."""
BUFFER_S: Final = 0.01
BUFFER_N: Final = 32
"""A buffer of very short jobs may hold this many seconds of work, up to this many jobs: fuller calls cost the store
less per job, and 10 ms is less than another worker would need to notice."""
STUCK_S: Final = 1.0
"""A buffer from which nothing was taken for this long, a hundred times what it was filled for, is given back: handlers
have become long, and another worker may be idle."""
EVEN: Final = 0.1
"""Weight of the newest duration in the running mean."""


class Outcomes(Protocol):
    """Where the outcomes of handlers go. None of these waits."""

    def context_of(self, held: Held, task: Task[Any, Any]) -> Context: ...
    def completed(self, held: Held, result: bytes | None) -> None: ...
    def failed(self, held: Held, error: BaseException) -> None: ...
    def continued(self, held: Held, payload: bytes) -> None: ...
    def unfit(self, held: Held, error: InvalidArgument, category: str) -> None: ...
    async def pin(self, held: Held, task: Task[Any, Any]) -> bool: ...
    async def inputs(self, held: Held) -> Taken | None: ...
    def unknown(self, held: Held) -> None: ...
    def stopped(self, held: Held) -> None: ...
    def arm(self, held: Held) -> None: ...


class Runners:
    """At most `concurrency` handlers at a time. Methods belong to the event loop's thread."""

    def __init__(
        self,
        outcomes: Outcomes,
        isolated: Isolated,
        tasks: Mapping[str, Task[Any, Any]],
        concurrency: int,
        prefetch: int | None,
    ) -> None:
        """prefetch: jobs to hold beyond those that run; None: as many as `concurrency` while handlers are short."""
        self._outcomes, self._isolated, self._tasks_known = outcomes, isolated, tasks
        self._concurrency, self._prefetch = concurrency, prefetch
        self._loop = asyncio.get_running_loop()
        self._baseline = contextvars.copy_context()
        self.buffer: deque[Held] = deque()
        self._idle: list[asyncio.Future[None]] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._coming = 0
        """Runners that will look at the buffer in the next turn of the loop: nobody else need be woken for it."""
        self._moved = 0.0
        """When a job was last taken from the buffer, or put into an empty one."""
        self._checking: asyncio.TimerHandle | None = None
        self._closing = False
        self.mean_s: float | None = None
        """Running mean of how long handlers take; None until one has ended."""
        self.running_n = 0
        self._unwinding_n = 0
        """Handlers of suspended jobs that have not ended: their slots are free, their runners not yet."""
        self.on_rest: Callable[[], None] | None = None
        """Called whenever no handler runs any more; for a worker that stops."""
        self.on_ended: Callable[[], None] | None = None
        """Called whenever a handler has ended, while there are jobs that wait to be admitted."""

    def load(self) -> int:
        """Jobs in the buffer or with a handler."""
        return len(self.buffer) + self.running_n

    def room(self) -> int:
        """How many more jobs would start soon: as many as there are free slots, and while handlers are short as many
        again, which would wait no longer for a slot than for the store."""
        soon = self._concurrency
        if self.mean_s is not None and self.mean_s < SHORT_S:
            soon = min(2 * soon, self.capacity())
        return soon - self.load()

    @property
    def keeps(self) -> bool:
        """Whoever asks for a `prefetch` of his own wants jobs held, however long they wait."""
        return self._prefetch is not None

    def slow(self) -> None:
        """What was taken in advance does not move: until a handler has ended, nothing is any more."""
        self.mean_s = max(self.mean_s or 0.0, SHORT_S)

    def capacity(self) -> int:
        """How many jobs the worker may hold unfinished."""
        extra = self._prefetch
        if extra is None:
            mean = self.mean_s
            extra = 0
            if mean is not None and mean < SHORT_S:
                extra = max(self._concurrency, min(BUFFER_N, int(self._concurrency * BUFFER_S / (mean + 1e-9))))
        return self._concurrency + extra

    def add(self, jobs: list[Held]) -> None:
        """Run these. One runner is woken; it wakes the others if its handler waits for something."""
        if not self.buffer:
            self._moved = self._loop.time()
        self.buffer.extend(jobs)
        if self._checking is None and self._prefetch is None:
            self._checking = self._loop.call_later(STUCK_S, self._check)
        if not self._coming:
            self._wake(1)

    def take_back(self) -> list[Held]:
        """Jobs that have not started, which now never will."""
        jobs = list(self.buffer)
        self.buffer.clear()
        return jobs

    def _check(self) -> None:
        """Give the buffer back if it does not move. Nobody who asked for a `prefetch` of his own gets this."""
        self._checking = None
        if not self.buffer or self._closing:
            return
        left_s = self._moved + STUCK_S - self._loop.time()
        if left_s > 0:
            self._checking = self._loop.call_later(left_s, self._check)
            return
        self.slow()
        stuck = self.take_back()
        log.info("%d jobs that have not started are given back: no handler has ended for %g s", len(stuck), STUCK_S)
        for held in stuck:
            held.why = held.why or "stop"
            self._outcomes.stopped(held)

    def drop(self, held: Held) -> bool:
        """Take one job out of the buffer; False if it is not there."""
        try:
            self.buffer.remove(held)
        except ValueError:
            return False
        return True

    def leave(self, held: Held) -> None:
        """The slot of a running handler is free from now on; the handler itself is unwound in its own time."""
        self._ended_one()
        self._unwinding_n += 1
        self._isolated.spare(self._unwinding_n)
        # It mostly is in this turn already, and its runner goes on with the buffer.
        self._loop.call_soon(self._make_up)

    def _make_up(self) -> None:
        if self._unwinding_n and len(self.buffer) > self._coming:
            self._wake(1)

    def _ended_one(self) -> None:
        self.running_n -= 1
        if self.on_ended is not None:
            self.on_ended()
        if self.on_rest is not None and self.running_n == 0:
            self.on_rest()

    async def close(self) -> None:
        """End the runners; handlers still running are cancelled and report nothing."""
        self._closing = True
        if self._checking is not None:
            self._checking.cancel()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            # A handler that refuses to be cancelled must not keep the worker from ending.
            await asyncio.wait(self._tasks, timeout=1.0)

    def _wake(self, n: int) -> None:
        idle = self._idle
        while n > 0 and idle:
            waiter = idle.pop()
            if not waiter.done():
                waiter.set_result(None)
                self._coming += 1
                n -= 1
        while n > 0 and len(self._tasks) - self._unwinding_n < self._concurrency and not self._closing:
            # Not the caller's context: that may be a handler's.
            task = self._loop.create_task(self._run(), context=self._baseline.copy())
            self._tasks.add(task)
            task.add_done_callback(self._retired)
            self._coming += 1
            n -= 1

    def _retired(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (broken := task.exception()) is not None:
            self._loop.call_exception_handler({"message": "a worker's runner broke", "exception": broken, "task": task})
        if len(self.buffer) > self._coming and not self._closing:
            self._wake(len(self.buffer) - self._coming)

    async def _run(self) -> None:
        buffer, tasks, outcomes, clock = self.buffer, self._tasks_known, self._outcomes, time.monotonic
        loop_time = self._loop.time
        me: asyncio.Task[Any] = asyncio.current_task()  # type: ignore[assignment]
        baseline = self._baseline
        spent = 0.0
        self._coming -= 1
        while not self._closing:
            if not buffer:
                waiter: asyncio.Future[None] = self._loop.create_future()
                self._idle.append(waiter)
                await waiter
                self._coming -= 1
                spent = 0.0
                continue
            held = buffer.popleft()
            if held.why is not None:
                outcomes.stopped(held)
                continue
            task = tasks.get(held.job.task)
            if task is None:
                outcomes.unknown(held)
                continue
            job = held.job
            same = task.version == job.version
            inputs = None
            # A run that began again (ContinueAs) has a payload of its own.
            if job.inputs is not None and not job.payload and (inputs := await self._inputs(held, job.inputs)) is None:
                continue
            try:
                payload = task.decode(job.payload) if inputs is None else _fit(held, task, inputs)
            except InvalidArgument as unfit:
                if same:
                    outcomes.unfit(held, unfit, "invalid_payload")
                else:
                    outcomes.unknown(held)  # the version it was submitted for can read it
                continue
            if not same and not await self._pin(held, task):
                continue
            ctx = None
            if task.takes_ctx:
                held.ctx = ctx = outcomes.context_of(held, task)
            held.stage = RUNNING
            self.running_n += 1
            if held.timeout_at:
                outcomes.arm(held)
            self._moved = loop_time()
            began = clock()
            try:
                if task.is_async and task.options.isolation != "process":
                    held.runner = me
                    result = await self._drive(task.fn(*task.arguments(payload, ctx)))
                else:
                    self._let_others()
                    result = await self._isolated.run(held, task, payload)
            except asyncio.CancelledError as stopped:
                if self._closing:
                    raise  # the worker has left without this handler: its lease ends by itself
                if held.suspended:
                    pass
                elif held.why is None:
                    outcomes.failed(held, stopped)
                else:
                    outcomes.stopped(held)
            except BaseException as raised:
                self._raised(held, task, raised)
            else:
                if held.job.journal is not None and held.job.journal.total and not held.suspended:
                    # Something is recorded. From here on nothing but its report can stop it.
                    held.runner = None
                    await (ctx or outcomes.context_of(held, task)).durable.tell_unclaimed()
                if not held.suspended:
                    self._report(held, task, result)
            ended = clock()
            held.runner = None
            if held.suspended:
                self._unwinding_n -= 1
                self._isolated.spare(self._unwinding_n)
            else:
                self._ended_one()
            if ctx is not None:
                ctx.ended()
            took = ended - began
            self.mean_s = took if self.mean_s is None else self.mean_s + EVEN * (took - self.mean_s)
            spent += took
            if held.timer is not None:
                held.timer.cancel()
                held.timer = None
            surplus = len(self._tasks) - self._unwinding_n > self._concurrency
            if me.cancelling() or surplus or contextvars.copy_context() != baseline:
                return  # `_retired` starts another in its place
            if spent > SLICE_S:
                spent = 0.0
                self._coming += 1
                await asyncio.sleep(0)
                self._coming -= 1

    async def _pin(self, held: Held, task: Task[Any, Any]) -> bool:
        """Whether a job submitted for another version of its task may be run. It counts as running meanwhile."""
        self._let_others()
        self.running_n += 1
        try:
            return await self._outcomes.pin(held, task)
        finally:
            self.running_n -= 1

    async def _inputs(self, held: Held, inputs: Inputs) -> Taken | None:
        """What the upstreams of a job returned, read where it did not come with the claim; None: it will not run. It
        counts as running meanwhile."""
        from ffsdk.inputs import taken

        if inputs.complete:
            return taken(inputs)
        self._let_others()
        self.running_n += 1
        try:
            return await self._outcomes.inputs(held)
        finally:
            self.running_n -= 1

    def _let_others(self) -> None:
        """This runner is going to wait: others go on with the buffer."""
        if len(self.buffer) > self._coming:
            self._wake(len(self.buffer) - self._coming)

    def _raised(self, held: Held, task: Task[Any, Any], raised: BaseException) -> None:
        """What a handler raised. Of a suspended job it says nothing, whatever became of `Suspended` on its way."""
        if held.suspended:
            return
        again = _again(raised)
        if again is not None:
            try:
                payload = again.payload
                raw = (payload.raw or b"") if type(payload) is Encoded else task.encode_payload(payload)
            except InvalidArgument as unfit:
                self._outcomes.unfit(held, unfit, "invalid_payload")
            else:
                self._outcomes.continued(held, raw)
        elif isinstance(raised, KeyboardInterrupt | GeneratorExit):
            raise raised
        else:
            self._outcomes.failed(held, raised)

    def _report(self, held: Held, task: Task[Any, Any], result: Any) -> None:
        if held.why == "lost":
            self._outcomes.stopped(held)
            return
        try:
            raw = result.raw if type(result) is Encoded else task.encode_result(result)
        except InvalidArgument as unfit:
            self._outcomes.unfit(
                held, unfit, "result_too_large" if unfit.code == "payload_too_large" else "invalid_result"
            )
        else:
            self._outcomes.completed(held, raw)

    @types.coroutine
    def _drive(self, coro: Coroutine[Any, Any, Any]) -> Generator[Any, Any, Any]:
        """Await a handler. The first time it waits for something, other runners go on with the buffer; a handler
        that never waits costs no wake-up at all."""
        try:
            waits_for = coro.send(None)
        except StopIteration as returned:
            return returned.value
        self._let_others()
        while True:
            try:
                value = yield waits_for
            except GeneratorExit:
                coro.close()
                raise
            except BaseException as thrown:
                try:
                    waits_for = coro.throw(thrown)
                except StopIteration as returned:
                    return returned.value
            else:
                try:
                    waits_for = coro.send(value)
                except StopIteration as returned:
                    return returned.value


def _fit(held: Held, task: Task[Any, Any], inputs: Taken) -> Any:
    """The payload made of a job's inputs; its job has it from then on, for a handler in a child process."""
    from ffsdk.inputs import fit

    raw, payload = fit(task, inputs)
    held.job = msgspec.structs.replace(held.job, payload=raw, inputs=None)
    return payload


def _again(raised: BaseException) -> ContinueAs | None:
    """The wish for a new run, also where a TaskGroup has wrapped it."""
    if isinstance(raised, ContinueAs):
        return raised
    if isinstance(raised, BaseExceptionGroup):
        inner: tuple[BaseException, ...] = cast("BaseExceptionGroup[BaseException]", raised).exceptions
        found = [_again(one) for one in inner]
        return found[0] if all(found) else None
    return None
