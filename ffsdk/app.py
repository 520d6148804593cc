"""An App: the tasks of a program, where its store is, and what its handlers share.

Declaring opens nothing. The store is opened by the first client or worker of a running loop, shared by all of
that loop, and closed when the last one lets go.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import sys
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, overload

from ffcore import ids
from ffcore.errors import InvalidArgument
from ffsdk.connect import Durability, check_durability, open_backend
from ffsdk.pace import Pace
from ffsdk.retry import Retry
from ffsdk.task import Isolation, Task, TaskOptions, required
from ffsdk.times import Duration

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffsdk.admit import Budgets, Quotas
    from ffsdk.client import Client
    from ffsdk.context import Context
    from ffsdk.virtual import VirtualTime
    from ffsdk.worker import Worker

P = TypeVar("P")
R = TypeVar("R")
Lifespan = TypeVar("Lifespan", bound=Callable[[], Any])


class Declare(Protocol):
    """What `@app.task(...)` is applied to: ``f()``, ``f(payload)`` or ``f(payload, ctx)``; def or async def."""

    @overload
    def __call__(self, fn: Callable[[P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[[P, Context], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[[], Awaitable[R]], /) -> Task[None, R]: ...
    @overload
    def __call__(self, fn: Callable[[P], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[[P, Context], R], /) -> Task[P, R]: ...
    @overload
    def __call__(self, fn: Callable[[], R], /) -> Task[None, R]: ...


class _Shared:
    """One opened store of one loop, and how many use it."""

    def __init__(self, url: str | None) -> None:
        self.url, self.users = url, 0
        self.opening: asyncio.Task[Backend] | None = None
        self.pace, self.time = Pace(), None

    time: VirtualTime | None

    async def open(self, durability: str) -> Backend:
        backend = await open_backend(self.url, durability=durability)
        if backend.url.startswith("memory://"):
            from ffsdk.virtual import VirtualTime

            time = VirtualTime(backend)
            if await time.start():
                self.time, self.pace = time, time.pace
        return backend

    async def close(self) -> None:
        assert self.opening is not None
        if self.time is not None:
            await self.time.stop()
        await (await self.opening).close()


class App:
    """Tasks and a store. `url=None` means FF_URL; see `ffsdk.connect.resolve_url` for what follows without it."""

    def __init__(self, url: str | None = None, namespace: str = "default", durability: Durability = "accepted") -> None:
        ids.check_name(namespace, "namespace")
        check_durability(durability)
        self.url, self.namespace, self.durability = url, namespace, durability
        self.tasks: dict[str, Task[Any, Any]] = {}
        """Declared tasks by name."""
        self._resources: Callable[[], contextlib.AbstractAsyncContextManager[Any]] | None = None
        self._open: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Shared] = weakref.WeakKeyDictionary()
        self.through: Callable[[Backend], Backend] | None = None
        """What whoever opens the store sees it through; for `ffsdk.testing`, which counts calls and loses replies."""

    # ---- declaring

    @overload
    def task(self, fn: Callable[[P], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def task(self, fn: Callable[[P, Context], Awaitable[R]], /) -> Task[P, R]: ...
    @overload
    def task(self, fn: Callable[[], Awaitable[R]], /) -> Task[None, R]: ...
    @overload
    def task(self, fn: Callable[[P], R], /) -> Task[P, R]: ...
    @overload
    def task(self, fn: Callable[[P, Context], R], /) -> Task[P, R]: ...
    @overload
    def task(self, fn: Callable[[], R], /) -> Task[None, R]: ...
    @overload
    def task(
        self, fn: None = None, /, *, name: str | None = None, lane: str = "default", priority: int = 0,
        retry: Retry | None = None, timeout: Duration | None = None, deadline: Duration | None = None,
        lease: Duration | None = None, requires: Iterable[str] | None = None, budget: Budgets | None = None,
        quota: Quotas | None = None, fairness: str | None = None, isolation: Isolation = "auto", version: int = 1,
    ) -> Declare: ...  # fmt: skip

    def task(self, fn: Callable[..., Any] | None = None, /, **options: Any) -> Any:
        """Declare a task, as ``@app.task`` or ``@app.task(...)``.

        Options: name (default: the function's), lane, priority -100..100, retry, timeout (of an attempt), deadline
        (of the job), lease, requires (capability tokens), budget and quota (what its jobs are admitted by: names,
        `ff.Budget`, `ff.Quota`, one or several), fairness ("payload.tenant"), isolation, version. Spans are seconds
        or timedelta. Raises InvalidArgument for what could not work: options, types, a name that is
        taken.
        """
        # Where the decorator stands: annotations may name what is local there.
        localns = dict(sys._getframe(1).f_locals)  # pyright: ignore[reportPrivateUsage]

        def declare(fn: Callable[..., Any]) -> Task[Any, Any]:
            given = {key: value for key, value in options.items() if value is not None}
            given["requires"] = required(given.get("requires"))
            given.setdefault("name", getattr(fn, "__name__", ""))
            unknown = set(given) - set(TaskOptions.__struct_fields__)
            if unknown:
                known = ", ".join(TaskOptions.__struct_fields__)
                raise InvalidArgument(f"task option {', '.join(sorted(unknown))}: use {known}")
            task: Task[Any, Any] = Task(fn, TaskOptions(**given), localns)
            if task.name in self.tasks:
                raise InvalidArgument(f"task {task.name} is declared twice: give one of them another name=")
            self.tasks[task.name] = task
            return task

        return declare if fn is None else declare(fn)

    @overload
    def lifespan(self, fn: None = None, /) -> contextlib.AbstractAsyncContextManager[Any]: ...
    @overload
    def lifespan(self, fn: Lifespan, /) -> Lifespan: ...

    def lifespan(self, fn: Callable[[], Any] | None = None, /) -> Any:
        """Declare what handlers share: an async generator that opens it, yields it once and closes it after.

        Workers enter it when they start; `ctx.state` is what it yielded. Called without a function it answers that
        context manager, which yields an empty dict where nothing was declared.
        """
        if fn is None:
            nothing: dict[str, Any] = {}
            return self._resources() if self._resources is not None else contextlib.nullcontext(nothing)
        if self._resources is not None:
            raise InvalidArgument("the app has a lifespan already: open everything in one")
        if inspect.isasyncgenfunction(fn):
            self._resources = contextlib.asynccontextmanager(_generator(fn))
        elif inspect.isasyncgenfunction(getattr(fn, "__wrapped__", None)):
            self._resources = fn  # already @asynccontextmanager
        else:
            raise InvalidArgument("lifespan takes an async generator function: async def resources(): ...; yield {...}")
        return fn

    # ---- the store

    async def backend(self) -> Backend:
        """The store, opened once per running loop. Each call needs one `release`."""
        loop = asyncio.get_running_loop()
        shared = self._open.get(loop)
        if shared is None or shared.url != self.url:
            shared = self._open[loop] = _Shared(self.url)
            shared.opening = loop.create_task(shared.open(self.durability), name="open the store")
        assert shared.opening is not None
        shared.users += 1
        try:
            opened = await asyncio.shield(shared.opening)
            return opened if self.through is None else self.through(opened)
        except BaseException:
            shared.users -= 1
            if shared.opening.done() and self._open.get(loop) is shared:
                del self._open[loop]  # the next one tries again
            raise

    async def release(self) -> None:
        """Let go of what `backend` answered; the last one closes the connections."""
        loop = asyncio.get_running_loop()
        shared = self._open.get(loop)
        if shared is None:
            return
        shared.users -= 1
        if shared.users <= 0:
            del self._open[loop]
            await shared.close()

    @property
    def pace(self) -> Pace:
        """How clients and workers in the running loop wait between polls; fixed once the store is open."""
        shared = self._shared()
        return Pace() if shared is None else shared.pace

    @property
    def virtual_time(self) -> VirtualTime | None:
        """Of a memory:// store that is open in the running loop, for `ffsdk.testing`."""
        shared = self._shared()
        return None if shared is None else shared.time

    @property
    def in_use(self) -> bool:
        """Whether the store is open in the running loop."""
        return self._shared() is not None

    def _shared(self) -> _Shared | None:
        try:
            return self._open.get(asyncio.get_running_loop())
        except RuntimeError:
            return None

    # ---- using it

    def client(self) -> Client:
        """A client of this app's store: ``async with app.client() as client``."""
        from ffsdk.client import Client

        return Client(app=self)

    def worker(
        self,
        *,
        lanes: Sequence[str] | None = None,
        concurrency: int = 16,
        capabilities: Iterable[str] = (),
        **options: Any,
    ) -> Worker:
        """A worker for a running loop: ``await app.worker(...).run()``, `.stop()`; options: `ffsdk.worker.Worker`."""
        from ffsdk.worker import Worker

        return Worker(self, lanes=lanes, concurrency=concurrency, capabilities=capabilities, **options)

    def run_worker(
        self,
        *,
        lanes: Sequence[str] | None = None,
        concurrency: int = 16,
        capabilities: Iterable[str] = (),
        **options: Any,
    ) -> None:
        """Run a worker until SIGTERM or SIGINT, which drain it. Blocks."""
        self.worker(lanes=lanes, concurrency=concurrency, capabilities=capabilities, **options).run_blocking()


def _generator(fn: Callable[[], Any]) -> Callable[[], AsyncGenerator[Any, None]]:
    return fn
