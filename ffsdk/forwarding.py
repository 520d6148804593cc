"""A Backend in front of another one: what a wrapper does not say differently goes through unchanged.

So a wrapper that traces, records or injects faults is one method long, and knows nothing of methods that come later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeVar

from ffcore.args import Args
from ffcore.backend import settled
from ffcore.errors import EngineError
from ffcore.operations import Operations

if TYPE_CHECKING:
    from ffcore.backend import Backend, BlockingCalls, StoreConfig, Subscription
    from ffcore.ids import ExecutionId, PartitionKey

R = TypeVar("R")


class Forwarding(Operations):
    """Wraps a Backend. Batches go call by call, so that `call` sees each."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    @property
    def config(self) -> StoreConfig:
        return self._backend.config

    @property
    def url(self) -> str:
        return self._backend.url

    @property
    def grouped(self) -> bool:
        return self._backend.grouped

    async def call(self, args: Args[R]) -> R:
        return await self._backend.call(args)

    async def call_all(self, batch: Sequence[Args[R]]) -> list[R | EngineError]:
        return settled(await asyncio.gather(*(self.call(args) for args in batch), return_exceptions=True))

    async def subscribe(
        self, channels: Sequence[str], on_message: Callable[[str, bytes], None],
        on_gap: Callable[[], None] | None = None,
    ) -> Subscription:  # fmt: skip
        return await self._backend.subscribe(channels, on_message, on_gap)

    def worker_channel(self, partition: PartitionKey, name: str) -> str:
        return self._backend.worker_channel(partition, name)

    def client_channel(self, partition: PartitionKey, name: str) -> str:
        return self._backend.client_channel(partition, name)

    def ticker_channel(self, partition: PartitionKey) -> str:
        return self._backend.ticker_channel(partition)

    def stream_channel(self, execution_id: ExecutionId) -> str:
        return self._backend.stream_channel(execution_id)

    def blocking(self) -> BlockingCalls:
        return self._backend.blocking()

    async def close(self) -> None:
        await self._backend.close()
