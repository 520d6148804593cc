"""What the blocking twins of `ffsdk.sync` are made of: a loop in a thread, and methods that run to their end there."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar

from ffcore.errors import InvalidArgument, Unavailable

R = TypeVar("R")
A = TypeVar("A")
S = ParamSpec("S")
TURNS_N = 10
"""Turns of the loop between the end of the client and that of the loop."""


class Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._gate, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._work, name="ff-sync", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            work.close()
            raise InvalidArgument("ff.sync blocks, and an event loop runs in this thread: use the async client here")
        with self._gate:
            if self._closed:
                work.close()
                raise Unavailable("the client is closed", code="closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            if self._closed:
                raise Unavailable("the client was closed meanwhile", code="closed") from None
            raise
        except BaseException:
            future.cancel()  # KeyboardInterrupt: nobody waits for it any more
            raise

    @property
    def alive(self) -> bool:
        return not self._closed

    def stop(self) -> None:
        """End the thread. What other threads wait for ends with Unavailable, code `closed`."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _work(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        for _ in range(TURNS_N):  # whoever has been told that the client is closed says so himself
            await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=1.0) if left else None
        await self._loop.shutdown_asyncgens()


class Facade(Generic[A]):
    """Something async and the loop it lives on."""

    def __init__(self, async_: A, loop: Loop) -> None:
        self.async_ = async_
        """The async twin. It belongs to the facade's own thread."""
        self._loop = loop

    def _iterate(self, made: AsyncIterator[R]) -> Iterator[R]:
        async def step() -> tuple[R, ...]:
            async for item in made:
                return (item,)
            return ()

        while found := self._loop.run(step()):
            yield found[0]


def blocking(method: Callable[Concatenate[A, S], Coroutine[Any, Any, R]]) -> Callable[Concatenate[Facade[A], S], R]:
    """The blocking form of an async method, with the same parameters."""

    def call(self: Facade[A], /, *args: S.args, **kwargs: S.kwargs) -> R:
        return self._loop.run(method(self.async_, *args, **kwargs))  # pyright: ignore[reportPrivateUsage]

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    call.__wrapped__ = method  # type: ignore[attr-defined]  # what inspect.signature and help() show
    return call
