"""Where handlers that are not coroutines run: threads, and child processes that can be killed.

A thread cannot be stopped: it counts as busy until its handler returns, and `ctx.cancelled` asks it to. A child
process runs one job at a time and is reused; it is killed when its job is cancelled, timed out or lost.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import functools
import importlib
import multiprocessing
import os
import queue
import signal
import threading
import traceback
import typing
from collections.abc import Awaitable, Callable, Mapping
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ffcore import limits
from ffcore.contracts.lease import LeaseFence
from ffcore.errors import BudgetExceeded, EngineError, InvalidArgument, JournalFull
from ffsdk.context import Context, Done, Told
from ffsdk.errors import ContinueAs, Failure, Fatal, RetryAfter

if TYPE_CHECKING:
    from ffcore.admission import Amount
    from ffsdk.durable import Durable
    from ffsdk.held import Held
    from ffsdk.spending import Spent
    from ffsdk.task import Task

_IDLE_CHILDREN: Final = 4
"""Children kept for the next job; more are ended when their job is done."""


class Killed(Exception):
    """The child process of a handler was killed by its worker."""


class Encoded:
    """A result that is JSON already."""

    __slots__ = ("raw",)

    def __init__(self, raw: bytes | None) -> None:
        self.raw = raw


class RemoteFailure(Exception):
    """A handler failed in its child process: what the child said about it."""

    def __init__(
        self, reason: str, category: str, detail: str, retry_after_ms: int | None, final: bool, budget_id: str = ""
    ) -> None:
        """budget_id: it says no more than that this budget is used up."""
        self.reason, self.category, self.detail = reason, category, detail
        self.retry_after_ms, self.final, self.budget_id = retry_after_ms, final, budget_id
        super().__init__(reason)


class Threads(concurrent.futures.Executor):
    """At most `most` threads, started when needed. Daemons: a handler that never returns must not keep the process."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._queue: queue.SimpleQueue[tuple[concurrent.futures.Future[Any], Callable[[], Any]] | None] = (
            queue.SimpleQueue()
        )
        self._threads: list[threading.Thread] = []
        self._free = threading.Semaphore(0)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()
        self._queue.put((future, lambda: fn(*args, **kwargs)))
        if not self._free.acquire(blocking=False) and len(self._threads) < self._most:
            thread = threading.Thread(target=self._work, name=f"ff-handler-{len(self._threads)}", daemon=True)
            self._threads.append(thread)
            thread.start()
        return future

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            future, call = item
            if future.set_running_or_notify_cancel():
                try:
                    result = call()
                except StopIteration as stop:  # a future cannot carry it
                    future.set_exception(RuntimeError(f"the handler raised StopIteration: {stop}"))
                except BaseException as failed:
                    future.set_exception(failed)
                else:
                    future.set_result(result)
            del item, future, call
            self._free.release()

    def allow(self, most: int) -> None:
        """Another number of threads from now on; those there are stay."""
        self._most = most

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let the threads end when they are done; waits for nobody."""
        for _ in self._threads:
            self._queue.put(None)


class Isolated:
    """Runs the handlers of one worker that do not run in its loop."""

    def __init__(self, concurrency: int) -> None:
        self._threads, self._concurrency = Threads(concurrency), concurrency
        self._idle: list[Child] = []
        self._children: set[Child] = set()
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._closed = False

    async def run(self, held: Held, task: Task[Any, Any], payload: Any) -> Any:
        """The handler's result, or what it raised. Not to be cancelled: see `held.kill` and `ctx.cancelled`."""
        if task.options.isolation == "process":
            return await self._loop.run_in_executor(self._threads, self._in_child, held, task)
        context = contextvars.copy_context()
        call = functools.partial(context.run, task.fn, *task.arguments(payload, held.ctx))
        return await self._loop.run_in_executor(self._threads, call)

    def spare(self, n: int) -> None:
        """So many threads are busy with handlers whose slots are free already."""
        self._threads.allow(self._concurrency + n)

    def close(self) -> None:
        """End the children; threads end with their handlers."""
        self._closed = True
        with self._lock:
            children, self._idle = list(self._children), []
        for child in children:
            child.kill()
        self._threads.shutdown()

    def _in_child(self, held: Held, task: Task[Any, Any]) -> Encoded:
        with self._lock:
            child = self._idle.pop() if self._idle else None
        if child is None:
            child = Child()
            with self._lock:
                self._children.add(child)
        held.kill = child.kill
        if held.why is not None or self._closed:
            child.kill()
        try:
            result = child.run(held, task)
        finally:
            held.kill = None
            with self._lock:
                keep = child.alive and len(self._idle) < _IDLE_CHILDREN and not self._closed
                if keep:
                    self._idle.append(child)
                else:
                    self._children.discard(child)
            if not keep:
                child.kill()
        return result


def check_importable(task: Task[Any, Any]) -> None:
    """Refuse a task that a child process could not find by its name."""
    name = getattr(task.fn, "__qualname__", "")
    if not name or "<" in name:
        raise InvalidArgument(
            f"task {task.name} has isolation='process', but its function {name or task.fn!r} is not at the top of "
            f"a module, where a child process could import it: move it there, or use isolation='thread'"
        )


# ---- parent's side -------------------------------------------------------------------------------------


class _Run(msgspec.Struct, array_like=True, tag="run"):
    module: str
    name: str
    payload: bytes
    execution_id: str
    attempt: int
    fence: str
    tags: list[str]
    deadline_ms: int


class _Ack(msgspec.Struct, array_like=True, tag="ack"):
    error: str


class _Progress(msgspec.Struct, array_like=True, tag="progress"):
    pct: int
    message: str


class _Spend(msgspec.Struct, array_like=True, tag="spend"):
    amounts: dict[str, str]


class _Spent(msgspec.Struct, array_like=True, tag="spent"):
    usage: dict[str, int | float]
    soft: list[str]
    error: str = ""
    code: str = ""
    breach: tuple[str, str, float, float] | None = None
    """Budget, dimension, usage and limit, where a hard limit is passed."""


class _Result(msgspec.Struct, array_like=True, tag="result"):
    raw: bytes | None


class _Again(msgspec.Struct, array_like=True, tag="again"):
    """The handler begins a new run, with this payload."""

    raw: bytes


class _Failed(msgspec.Struct, array_like=True, tag="failed"):
    reason: str
    category: str
    detail: str
    retry_after_ms: int | None
    final: bool
    budget_id: str = ""


_to_child: Final = msgspec.msgpack.Decoder(_Run | _Ack | _Spent)
_from_child: Final = msgspec.msgpack.Decoder(_Progress | _Spend | _Result | _Again | _Failed)


class Child:
    """One child process. `run` blocks its thread; `kill` may be called from any."""

    def __init__(self) -> None:
        spawn = multiprocessing.get_context("spawn")
        self._ours, theirs = spawn.Pipe()
        self._process = spawn.Process(target=child_main, args=(theirs,), name="ff-child", daemon=True)
        self._process.start()
        theirs.close()
        self._killed = False

    @property
    def alive(self) -> bool:
        return not self._killed and self._process.is_alive()

    def kill(self) -> None:
        """End it now; harmless when repeated."""
        self._killed = True
        self._process.kill()

    def run(self, held: Held, task: Task[Any, Any]) -> Encoded:
        job, fn = held.job, task.fn
        ends = [at for at in (job.deadline_at, job.attempt_deadline_at) if at]
        try:
            self._send(
                _Run(
                    fn.__module__,
                    getattr(fn, "__qualname__", ""),
                    job.payload,
                    job.execution_id,
                    job.attempt_index,
                    held.fence,
                    job.tags,
                    min(ends, default=0),
                )
            )
            while True:
                said: _Progress | _Spend | _Result | _Again | _Failed = _from_child.decode(self._ours.recv_bytes())
                match said:
                    case _Progress():
                        self._send(_Ack(self._tell(held, said)))
                    case _Spend():
                        self._send(self._spend(held, said))
                    case _Result():
                        return Encoded(said.raw)
                    case _Again():
                        raise ContinueAs(Encoded(said.raw))
                    case _Failed():
                        raise RemoteFailure(
                            said.reason, said.category, said.detail, said.retry_after_ms, said.final, said.budget_id
                        )
        except (EOFError, OSError) as gone:
            if self._killed:
                raise Killed("the child process was killed") from gone
            self._process.join(1.0)
            self.kill()
            raise Failure(
                f"the child process of the handler ended with code {self._process.exitcode}", category="crashed"
            ) from None

    def _send(self, message: msgspec.Struct) -> None:
        self._ours.send_bytes(msgspec.msgpack.encode(message))

    def _tell(self, held: Held, said: _Progress) -> str:
        if held.ctx is None:
            return ""
        try:
            held.ctx.progress(said.pct, said.message)
        except EngineError as refused:
            return str(refused)
        return ""


    def _spend(self, held: Held, said: _Spend) -> _Spent:
        assert held.ctx is not None  # it is its context that asks
        try:
            # In this thread, so it waits for the worker's loop and has its answer when it returns.
            spent: Any = held.ctx.spend(**said.amounts)  # type: ignore[arg-type]
        except BudgetExceeded as over:
            breach = (over.budget_id, over.dimension, over.usage, over.limit)
            return _Spent({}, [], str(over), over.code, breach)
        except EngineError as refused:
            return _Spent({}, [], str(refused), refused.code)
        return _Spent(spent.value.usage, spent.value.soft)


# ---- child's side --------------------------------------------------------------------------------------


class Unsupported(Fatal):
    """A handler in a child process asked for what only a handler in the worker's own process has."""


class _ChildContext(Context):
    """Facts, progress and spending; the rest of the context needs the worker's process."""

    __slots__ = ()

    @property
    def state(self) -> Any:
        raise Unsupported("ctx.state is not there with isolation='process': open what the handler needs in the handler")

    @state.setter
    def state(self, value: Any) -> None:
        pass


class _ChildHome:
    """What a context in a child process is connected to (`ffsdk.context.Home`): the pipe, and nothing durable."""

    def __init__(self, pipe: Connection, inbox: queue.SimpleQueue[_Run | _Ack | _Spent]) -> None:
        self._pipe, self._inbox = pipe, inbox

    def tell(self, held: Held | None, durable: Durable | None, pct: int, message: str) -> Awaitable[None]:
        self._pipe.send_bytes(msgspec.msgpack.encode(_Progress(pct, message)))
        answer = self._inbox.get()
        if isinstance(answer, _Ack) and answer.error:
            raise EngineError(answer.error)
        return Done()

    def spend(self, ctx: Context, held: Held | None, given: Mapping[str, Amount]) -> Awaitable[Spent]:
        from ffcore.admission import amounts
        from ffsdk.spending import Spent

        self._pipe.send_bytes(msgspec.msgpack.encode(_Spend(amounts(given, "spend"))))
        said = self._inbox.get()
        assert isinstance(said, _Spent)
        if said.breach is not None:
            over = BudgetExceeded(said.error, code=said.code)
            over.budget_id, over.dimension, over.usage, over.limit = said.breach
            raise over
        if said.error:
            raise (InvalidArgument if said.code == InvalidArgument.code else EngineError)(said.error, code=said.code)
        return Told(Spent(usage=said.usage, soft=said.soft))

    def durable(self, ctx: Context, held: Held | None) -> Durable:
        raise Unsupported(
            "steps, sleeps, gates, frames, upstreams and children need the worker's own process, and this handler runs "
            "in a child of it: leave isolation='process' out, or do the part that needs a process in a task of its own",
            category="unsupported",
        )


def child_main(pipe: Connection) -> None:
    """Run jobs until the worker hangs up. A worker that dies takes its children along, whatever they are doing."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the worker decides what it means
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    inbox: queue.SimpleQueue[_Run | _Ack | _Spent] = queue.SimpleQueue()

    def listen() -> None:
        while True:
            try:
                inbox.put(_to_child.decode(pipe.recv_bytes()))
            except (EOFError, OSError):
                os._exit(0)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        job = inbox.get()
        if isinstance(job, _Run):
            pipe.send_bytes(msgspec.msgpack.encode(_perform(job, pipe, inbox)))


def _perform(job: _Run, pipe: Connection, inbox: queue.SimpleQueue[_Run | _Ack | _Spent]) -> msgspec.Struct:
    task: Task[Any, Any] | None = None
    try:
        task = find_task(job.module, job.name)
        try:
            payload = task.decode(job.payload)
        except InvalidArgument as unfit:
            return _unfit(unfit, "invalid_payload")
        ctx = _ChildContext(
            execution_id=job.execution_id,
            attempt=job.attempt,
            fence=LeaseFence.parse(job.fence),
            tags=job.tags,
            deadline_ms=job.deadline_ms,
            state=None,
            task=task,
            home=_ChildHome(pipe, inbox),
        )
        result = task.fn(*task.arguments(payload, ctx))
        if task.is_async:
            result = asyncio.run(result)
    except ContinueAs as again:
        assert task is not None  # who raises it is the task's function
        try:
            return _Again(task.encode_payload(again.payload))
        except InvalidArgument as unfit:
            return _unfit(unfit, "invalid_payload")
    except (Exception, SystemExit) as failed:
        reason, category, detail, retry_after_ms, final = explain(failed)
        return _Failed(reason, category, detail, retry_after_ms, final, getattr(failed, "budget_id", ""))
    try:
        return _Result(task.encode_result(result))
    except InvalidArgument as unfit:
        return _unfit(unfit, "result_too_large" if unfit.code == "payload_too_large" else "invalid_result")


def _unfit(error: InvalidArgument, category: str) -> _Failed:
    return _Failed(shorten(str(error)), category, "", None, True)


def find_task(module: str, name: str) -> Task[Any, Any]:
    """The task whose function stands under this name; the decorator has put the task in its place."""
    from ffsdk.task import Task

    # The worker's main module is imported under another name in a child.
    found: Any = importlib.import_module("__mp_main__" if module == "__main__" else module)
    for part in name.split("."):
        found = getattr(found, part)
    task: Task[Any, Any] = found
    if not isinstance(typing.cast("object", found), Task):
        raise Fatal(f"{module}.{name} is not a task in the child process; declare it at the top of its module")
    return task


def explain(failed: BaseException) -> tuple[str, str, str, int | None, bool]:
    """Reason, category, traceback, delay wished for, and whether it is final: what a failure report says."""
    if isinstance(failed, RemoteFailure):
        return failed.reason, failed.category, failed.detail, failed.retry_after_ms, failed.final
    detail = _traceback(failed)
    if isinstance(failed, Failure):
        after = failed.delay_ms if isinstance(failed, RetryAfter) else None
        return shorten(failed.reason), failed.category, detail, after, isinstance(failed, Fatal)
    if isinstance(failed, JournalFull):
        return shorten(str(failed)), failed.code, detail, None, True  # and stays full, however often it is tried
    return shorten(said_of(failed)), "error", detail, None, False


def said_of(failed: BaseException) -> str:
    """An exception's class, and what it says if it can say it."""
    name = type(failed).__name__
    try:
        said = str(failed)
    except Exception as mute:
        said = f"(its text cannot be made: {type(mute).__name__})"
    return f"{name}: {said}" if said else name


def shorten(text: str, most: int = limits.REASON_BYTES) -> str:
    """The text within a number of bytes; what is too long loses its middle."""
    raw = text.encode(errors="replace")
    if len(raw) <= most:
        return raw.decode()
    half = (most - 16) // 2
    return raw[:half].decode(errors="ignore") + " [...] " + raw[-half:].decode(errors="ignore")


def _traceback(failed: BaseException) -> str:
    """The handler's traceback without the frames of the worker around it."""
    trace = failed.__traceback__
    here = os.path.dirname(__file__)
    while (
        trace is not None and trace.tb_next is not None and os.path.dirname(trace.tb_frame.f_code.co_filename) == here
    ):
        trace = trace.tb_next
    return shorten("".join(traceback.format_exception(type(failed), failed, trace)))
