"""`ctx.sync`: the durable calls of a context for `def` handlers, which run in a thread and cannot await.

The rule: a step's function runs in the handler's own thread, with whatever the handler has opened there; everything
else is done in the worker's loop, and the handler waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, Unpack, cast, overload

from ffcore.errors import InvalidArgument
from ffsdk.durable import inside
from ffsdk.times import Duration

if TYPE_CHECKING:
    from ffcore.admission import Amount
    from ffsdk.children import Children, SpawnOptions
    from ffsdk.conditions import Condition
    from ffsdk.context import Context
    from ffsdk.gates import Gate
    from ffsdk.inputs import Upstream
    from ffsdk.outcomes import Outcome
    from ffsdk.signals import Signal
    from ffsdk.spending import Spent
    from ffsdk.steps import Begun
    from ffsdk.sync import Job
    from ffsdk.task import Task

P = TypeVar("P")
R = TypeVar("R")
OnTimeout = Literal["fail", "cancel", "expire", "resume", "escalate"]


class Blocking:
    """The twin of `Context`: the same calls, names and meanings."""

    __slots__ = ("_ctx",)

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        """Run a call of the context in the worker's loop and wait for it: ``ctx.sync.run(gate.wait(timeout=60))``."""
        try:
            loop = self._ctx.durable.host.loop
        except BaseException:
            work.close()
            raise
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not None:
            work.close()
            raise InvalidArgument("ctx.sync blocks, and an event loop runs here: await the same call of ctx instead")
        return asyncio.run_coroutine_threadsafe(work, loop).result()

    @overload
    def step(
        self, name: str, fn: Callable[..., Coroutine[Any, Any, R]], /, *args: Any, at_most_once: bool = ...,
        digest: Any = ..., **kwargs: Any,
    ) -> R: ...  # fmt: skip
    @overload
    def step(self, name: str, fn: Task[Any, R], /, *args: Any, at_most_once: bool = ..., digest: Any = ...) -> R: ...
    @overload
    def step(
        self, name: str, fn: Callable[..., R], /, *args: Any, at_most_once: bool = ..., digest: Any = ...,
        **kwargs: Any,
    ) -> R: ...  # fmt: skip

    def step(
        self, name: str, fn: Any, /, *args: Any, at_most_once: bool = False, digest: Any = None, **kwargs: Any
    ) -> Any:
        """As `ctx.step`. A `def` function runs here, in the handler's thread; an async one in the worker's loop."""
        from ffsdk import steps

        ctx, loop = self._ctx, self._ctx.durable.host.loop
        steps.check_name(name)
        if steps.plan_of(fn, name, ctx).shape.is_async:
            return self.run(steps.step(ctx, name, fn, args, kwargs, at_most_once, digest))
        flight = contextlib.ExitStack()

        async def begin() -> tuple[Begun | None, Any]:
            flight.enter_context(ctx.durable.in_flight(name))
            return await steps.begin(ctx, name, fn, args, kwargs, at_most_once, digest)

        try:
            begun, recorded = self.run(begin())
            if begun is None:
                return recorded
            token = inside.set(begun.info)
            try:
                value = begun.plan.fn(*args, **kwargs)
                if inspect.isawaitable(value):
                    value = self.run(_awaited(value))
            except Exception as failed:
                begun.info.over = True
                self.run(begun.failed(failed))
                raise
            finally:
                begun.info.over = True
                inside.reset(token)
            return self.run(begun.succeeded(value))
        finally:
            with contextlib.suppress(RuntimeError):  # the loop is closed: so is the worker
                loop.call_soon_threadsafe(flight.close)

    def sleep(self, duration: Duration) -> None:
        """As `ctx.sleep`."""
        from ffsdk import steps

        self.run(steps.sleep(self._ctx, duration))

    @overload
    def gate(self, name: str, type: type[R], names: str | Iterable[str] | None = None) -> Gate[R]: ...
    @overload
    def gate(self, name: str, type: Any = Any, names: str | Iterable[str] | None = None) -> Gate[Any]: ...

    def gate(self, name: str, type: Any = Any, names: str | Iterable[str] | None = None) -> Gate[Any]:
        """As `ctx.gate`. Wait at it with `ctx.sync.wait(gate)`, or ``ctx.sync.run(gate.wait(...))`` for its value."""
        from ffsdk import gates

        return self.run(gates.open_gate(self._ctx, name, type, names))

    def upstreams(self) -> list[Upstream]:
        """As `ctx.upstreams`."""
        from ffsdk import inputs

        return self.run(inputs.upstreams(self._ctx))

    @overload
    def spawn(
        self, task: Task[None, R], payload: None = None, *, key: str | None = None, **options: Unpack[SpawnOptions]
    ) -> Job[R]: ...
    @overload
    def spawn(
        self, task: Task[P, R], payload: P, *, key: str | None = None, **options: Unpack[SpawnOptions]
    ) -> Job[R]: ...
    @overload
    def spawn(
        self, task: str, payload: Any = None, *, key: str | None = None, **options: Unpack[SpawnOptions]
    ) -> Job[Any]: ...

    def spawn(
        self, task: Task[Any, Any] | str, payload: Any = None, *, key: str | None = None,
        **options: Unpack[SpawnOptions],
    ) -> Job[Any]:  # fmt: skip
        """As `ctx.spawn`; the child's calls block as well: ``total = ctx.sync.spawn(count, name).result()``."""
        from ffsdk import children
        from ffsdk.sync import Job

        child = self.run(children.spawn(self._ctx, task, payload, key, options))
        return Job(child, cast("Any", self))  # what it needs of its loop is `run`

    @overload
    def wait(self, *children: Job[Any] | Children | Sequence[Job[Any]]) -> list[Outcome[Any] | None]: ...
    @overload
    def wait(
        self, *conditions: Condition | Iterable[Condition], timeout: Duration | None = None,
        on_timeout: OnTimeout = "fail",
    ) -> list[Signal]: ...  # fmt: skip

    def wait(self, *conditions: Any, timeout: Duration | None = None, on_timeout: OnTimeout = "fail") -> Any:
        """As `ctx.wait`."""
        from ffsdk import children, gates

        join = children.joined(conditions)
        if join is not None:
            return self.run(children.wait(self._ctx, join, timeout))
        return self.run(gates.wait(self._ctx, conditions, timeout, on_timeout))

    def emit(
        self, value: Any, type: str = "token", mode: Literal["append", "best_effort"] = "append", *,
        spend: Mapping[str, Amount] | None = None,
    ) -> None:  # fmt: skip
        """As `ctx.emit`."""
        from ffsdk import streams

        self.run(streams.emit(self._ctx, value, type, mode, spend))

    def spend(self, **amounts: Amount) -> Spent:
        """As `ctx.spend`."""
        from ffsdk.context import Told

        said = self._ctx.spend(**amounts)
        if not isinstance(said, Told):
            raise InvalidArgument("ctx.sync blocks, and an event loop runs here: await the same call of ctx instead")
        spent: Spent = said.value
        return spent

    def summary(self, patch: Mapping[str, Any]) -> dict[str, Any]:
        """As `ctx.summary`."""
        from ffsdk import streams

        return self.run(streams.summary(self._ctx, patch))

    def progress(self, pct: int, message: str = "") -> None:
        """As `ctx.progress`."""
        self._ctx.progress(pct, message)


async def _awaited(value: Awaitable[R]) -> R:
    """For a function that is no coroutine function and returns a coroutine."""
    return await value
