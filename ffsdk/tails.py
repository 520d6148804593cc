"""The readers of streams of one client: how they hear that there is more, and what they read together.

All of them share the client's connections. Messages are hints: every POLL_S all readers look again.
"""

from __future__ import annotations

import asyncio
import re
from typing import TYPE_CHECKING, Any, Final

from ffcore.contracts.stream import ReadStreamArgs, StreamPage
from ffcore.errors import EngineError, Unavailable, alike

if TYPE_CHECKING:
    from ffcore.backend import Backend, Subscription
    from ffcore.ids import ExecutionId
    from ffsdk.pace import Pace

POLL_S: Final = 1.5
PAGE_N: Final = 500
_ID: Final = re.compile(r"\d+-\d+")


class Ear:
    """One reader: rung when there may be more."""

    __slots__ = ("channel", "read_to", "rung")

    def __init__(self, channel: str) -> None:
        self.channel, self.rung = channel, asyncio.Event()
        self.read_to = "-"
        """How far it has read: a message of something older says nothing new."""

    def ring(self, _: Any = None) -> None:
        self.rung.set()

    def hear(self, message: str) -> None:
        if not _ID.fullmatch(message) or not _ID.fullmatch(self.read_to) or _order(message) > _order(self.read_to):
            self.rung.set()


def _order(entry_id: str) -> tuple[int, int]:
    ms, _, n = entry_id.partition("-")
    return int(ms), int(n)


class Tails:
    """The readers of one client: one subscription per execution that is read, all on the client's own connection."""

    def __init__(self, backend: Backend, pace: Pace) -> None:
        self._backend, self._pace = backend, pace
        self._ears: dict[str, set[Ear]] = {}
        self._subscriptions: dict[str, asyncio.Task[Subscription]] = {}
        self._poller: asyncio.Task[None] | None = None
        self._asked: dict[tuple[ExecutionId, str], asyncio.Task[StreamPage]] = {}
        """Reads that leave at the end of this turn of the loop."""

    async def read(self, execution_id: ExecutionId, after: str) -> StreamPage:
        """What is behind a place. Readers of one stream are rung together, and those at one place share a read."""
        key = (execution_id, after)
        asked = self._asked.get(key)
        if asked is None:
            args = ReadStreamArgs(execution_id=execution_id, after=after, limit=PAGE_N)
            asked = self._asked[key] = asyncio.ensure_future(self._backend.call(args))
            asked.add_done_callback(_seen)
            # Later ones ask anew: what rang them may have come after this read.
            asyncio.get_running_loop().call_soon(self._asked.pop, key, None)
        try:
            return await asyncio.shield(asked)
        except EngineError as failed:
            raise alike(failed) from failed.__cause__

    async def listen(self, execution_id: ExecutionId) -> Ear:
        """A reader that hears from now on. While the channel cannot be heard, it is rung by the poll."""
        channel = self._backend.stream_channel(execution_id)
        ear = Ear(channel)
        self._ears.setdefault(channel, set()).add(ear)
        if self._poller is None:
            self._poller = asyncio.get_running_loop().create_task(self._poll())
        try:
            await asyncio.shield(self._listening(channel))
        except EngineError as deaf:
            if not isinstance(deaf, Unavailable) or deaf.code == "closed":
                await self.leave(ear)
                raise
        except BaseException:
            await self.leave(ear)
            raise
        return ear

    async def leave(self, ear: Ear) -> None:
        ears = self._ears.get(ear.channel)
        if ears is None:
            return
        ears.discard(ear)
        if not ears:
            del self._ears[ear.channel]
            await _closed(self._subscriptions.pop(ear.channel, None))
        if not self._ears and self._poller is not None:
            self._poller.cancel()
            self._poller = None

    async def close(self) -> None:
        """Wake every reader: its next call says that the client is closed."""
        tasks, ears = list(self._subscriptions.values()), self._ears
        self._subscriptions, self._ears = {}, {}
        if self._poller is not None:
            self._poller.cancel()
            self._poller = None
        for some in ears.values():
            for ear in some:
                ear.ring()
        await asyncio.gather(*(_closed(task) for task in tasks))

    def _listening(self, channel: str) -> asyncio.Task[Subscription]:
        """The subscription to a channel, or the attempt at one; begun anew if the last one failed."""
        task = self._subscriptions.get(channel)
        if task is None or (task.done() and (task.cancelled() or task.exception() is not None)):
            opening = self._backend.subscribe([channel], self._heard, self._ring_all)
            task = self._subscriptions[channel] = asyncio.ensure_future(opening)
        return task

    def _heard(self, channel: str, data: bytes) -> None:
        for ear in self._ears.get(channel, ()):
            ear.hear(data.decode(errors="replace"))

    def _ring_all(self) -> None:
        for ears in self._ears.values():
            for ear in ears:
                ear.ring()

    async def _poll(self) -> None:
        while True:
            await self._pace.pause(POLL_S)
            for channel in list(self._ears):
                self._listening(channel).add_done_callback(_seen)
            self._ring_all()


async def _closed(task: asyncio.Task[Subscription] | None) -> None:
    if task is None:
        return
    if not task.done():
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    if not task.cancelled() and task.exception() is None:
        await task.result().close()


def _seen(task: asyncio.Task[Any]) -> None:
    if not task.cancelled():
        task.exception()
