"""The Backend trait: one verb, and little else.

Users of the engine hold a `Backend`; rooms above it never see keys, commands or connections. A wrapper
that traces, retries, records or injects faults is one method long.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Protocol, TypeVar

import msgspec

from ffcore.args import Args
from ffcore.errors import EngineError
from ffcore.ids import ExecutionId, PartitionKey

R = TypeVar("R")


class StoreConfig(msgspec.Struct, frozen=True, kw_only=True):
    """What `ff init` fixed for good: how many partitions each family has."""

    fp: int
    b: int = 1
    q: int = 1
    w: int = 1

    def keys(self, family: str = "fp") -> list[PartitionKey]:
        """All partition keys of a family, in order."""
        return [PartitionKey(f"{{{family}:{n}}}") for n in range(getattr(self, family))]


def settled(results: Sequence[R | BaseException]) -> list[R | EngineError]:
    """Answers of calls that each succeed or fail on their own. What is no refusal (a bug, a cancellation) is raised."""
    out: list[R | EngineError] = []
    for result in results:
        if isinstance(result, BaseException) and not isinstance(result, EngineError):
            raise result
        out.append(result)
    return out


class Subscription(Protocol):
    """Messages of one channel set. Hints, never truth: a message may be lost, so always poll as well."""

    async def close(self) -> None: ...


class BlockingCalls(Protocol):
    """A plain connection of its own for a thread (lease renewal): no event loop involved."""

    def call(self, args: Args[R]) -> R: ...
    def close(self) -> None: ...


class Backend(Protocol):
    """What the engine's callers need. All methods may raise EngineError; none retries silently unless
    repeating is harmless (reads, keyed and fenced calls)."""

    @property
    def config(self) -> StoreConfig: ...
    @property
    def url(self) -> str: ...
    @property
    def grouped(self) -> bool:
        """Whether one call may name several partitions (a standalone server)."""
        ...

    async def call(self, args: Args[R]) -> R:
        """One atomic transition. Raises Rejected, Unavailable, EngineBug."""
        ...

    async def call_all(self, batch: Sequence[Args[R]]) -> list[R | EngineError]:
        """Many transitions in one turn of the loop; each succeeds or fails on its own."""
        ...

    async def subscribe(self, channels: Sequence[str], on_message: Callable[[str, bytes], None],
                        on_gap: Callable[[], None] | None = None) -> Subscription:
        """Call `on_message(channel, data)` for each message, in the loop; `on_gap` after a reconnect,
        when messages may have been missed. Channel names come from `worker_channel` and its like."""
        ...

    def worker_channel(self, partition: PartitionKey, name: str) -> str: ...
    def client_channel(self, partition: PartitionKey, name: str) -> str: ...
    def ticker_channel(self, partition: PartitionKey) -> str: ...
    def stream_channel(self, execution_id: ExecutionId) -> str:
        """Where readers of an execution's frames hear that there are more, or that its state changed."""
        ...

    def blocking(self) -> BlockingCalls:
        """A connection for the renewal thread; opens on first use."""
        ...

    async def close(self) -> None:
        """Fail what is in flight with Unavailable, close the connections."""
        ...


Tail = AsyncIterator[bytes]
