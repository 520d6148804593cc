"""One connection that listens on sharded channels; the rule: a hint may be lost, a loss is never silent.

Messages published while the connection is away are gone, so after every reconnect the `on_gap` callbacks run,
when all channels are subscribed again: whoever listens polls once and has missed nothing.

In a cluster a channel's slot may move away from this server. Then `on_evicted` gets the channel, which this
subscriber has forgotten; without it the connection is dropped and made anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import copy
from collections.abc import Callable, Sequence
from typing import Final

from ffbackend_valkey.connection import CONNECT_TIMEOUT_S, Link, Reply, backoff, open_link
from ffbackend_valkey.url import Target
from ffcore.errors import EngineError, Unavailable

PING_EVERY_S: Final = 5.0
_PINGS_UNANSWERED: Final = 2
"""A dead connection is dropped at the third tick at the latest: 15 s."""

Listener = Callable[[str, bytes], None]


class Subscriber:
    """One server, one event loop. Connects with the first `subscribe` and stays connected until `close`."""

    def __init__(
        self, target: Target, *, role: str = "subscriber", connect_timeout: float = CONNECT_TIMEOUT_S,
        ping_every: float = PING_EVERY_S, on_evicted: Callable[[str], None] | None = None,
    ) -> None:
        self.target = target
        self._on_evicted = on_evicted
        self._role = role
        self._connect_timeout = connect_timeout
        self._ping_every = ping_every
        self._loop = asyncio.get_running_loop()
        self._listeners: dict[str, list[Listener]] = {}
        self._gaps: list[Callable[[], None]] = []
        self._link: Link | None = None
        self._confirmed: dict[str, asyncio.Future[Reply]] = {}
        """Per channel, what the server said on this link to SSUBSCRIBE, or will say."""
        self._asked: dict[asyncio.Future[Reply], tuple[bytes, bytes]] = {}
        """What a reply in flight must say. Confirmations are pushes, but come in the order of the requests."""
        self._awaiting_link: list[asyncio.Future[Link]] = []
        self._why: EngineError | None = None
        self._keeper: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def connected(self) -> bool:
        return self._link is not None

    async def subscribe(self, channel: str, listener: Listener) -> None:
        """Call `listener(channel, data)` in the loop for each message. Returns when the server has confirmed: what
        is published after that arrives, or a gap is reported. A channel may have several listeners."""
        if self._closed:
            raise _closed()
        self._listeners.setdefault(channel, []).append(listener)
        if self._keeper is None:
            self._keeper = self._loop.create_task(self._keep(), name=f"ff subscriber {self.target.display}")
        try:
            async with asyncio.timeout(self._connect_timeout):
                await self._confirmation(channel)
        except TimeoutError:
            self._leave(channel, listener)
            why = self._why or Unavailable(f"{self.target.display} did not confirm the subscription in time")
            raise copy.copy(why) from None
        except BaseException:
            self._leave(channel, listener)
            raise

    async def unsubscribe(self, channel: str, listener: Listener | None = None) -> None:
        """Remove one listener, or all. The last one out waits for the server to confirm."""
        left = self._leave(channel, listener)
        if left is not None:
            with contextlib.suppress(Unavailable, TimeoutError):  # without the connection there is no subscription
                async with asyncio.timeout(self._connect_timeout):
                    await asyncio.shield(left)

    async def confirmed(self, channel: str) -> None:
        """Wait until the server has confirmed a channel that is listened to. Unavailable if it refuses."""
        async with asyncio.timeout(self._connect_timeout):
            await self._confirmation(channel)

    def on_gap(self, callback: Callable[[], None]) -> None:
        """Call this after every reconnect, when messages may have been missed."""
        self._gaps.append(callback)

    def off_gap(self, callback: Callable[[], None]) -> None:
        """Forget a gap callback; unknown ones are ignored."""
        with contextlib.suppress(ValueError):
            self._gaps.remove(callback)

    def forget(self, channel: str) -> None:
        """Stop listening to a channel without waiting for the server: it is not the channel's any more."""
        self._leave(channel, None)

    @property
    def channels(self) -> list[str]:
        return list(self._listeners)

    async def close(self) -> None:
        """Hang up; nobody is called afterwards."""
        self._closed = True
        self._listeners.clear()
        self._gaps.clear()
        if self._keeper is not None:
            self._keeper.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._keeper
        link, self._link = self._link, None
        if link is not None:
            link.kill("the subscriber was closed")
            await link.gone
        self._tell_waiting(_closed())

    # ---------------------------------------------------------------------------------------------- asking

    async def _confirmation(self, channel: str) -> None:
        while True:
            link = self._link or await self._next_link()
            confirmed = self._confirmed.get(channel)
            if confirmed is None:
                confirmed = self._confirmed[channel] = self._ask(link, "SSUBSCRIBE", channel)
            try:
                await asyncio.shield(confirmed)
                return
            except Unavailable:
                if self._closed or not link.dead:  # a refusal (MOVED, say), not a lost connection
                    self._confirmed.pop(channel, None)
                    raise

    def _ask(self, link: Link, verb: str, channel: str) -> asyncio.Future[Reply]:
        reply = link.ask(verb, channel)
        self._asked[reply] = (verb.lower().encode(), channel.encode())
        reply.add_done_callback(self._answered)
        return reply

    def _answered(self, reply: asyncio.Future[Reply]) -> None:
        self._asked.pop(reply, None)
        if not reply.cancelled():
            reply.exception()  # nobody may be waiting any more; then it is no news

    def _leave(self, channel: str, listener: Listener | None) -> asyncio.Future[Reply] | None:
        listeners = self._listeners.get(channel)
        if listeners is None:
            return None
        if listener is None:
            listeners.clear()
        elif listener in listeners:
            listeners.remove(listener)
        if listeners:
            return None
        del self._listeners[channel]
        if self._confirmed.pop(channel, None) is None or self._link is None:
            return None
        return self._ask(self._link, "SUNSUBSCRIBE", channel)

    def _next_link(self) -> asyncio.Future[Link]:
        waiting: asyncio.Future[Link] = self._loop.create_future()
        self._awaiting_link.append(waiting)
        return waiting

    def _tell_waiting(self, news: Link | EngineError) -> None:
        waiting, self._awaiting_link = self._awaiting_link, []
        for one in waiting:
            if one.done():
                continue
            if isinstance(news, Link):
                one.set_result(news)
            else:
                one.set_exception(copy.copy(news))

    # ----------------------------------------------------------------------------------------- the connection

    async def _keep(self) -> None:
        """Connect, subscribe to everything, watch, and again."""
        attempts, seen_before = 0, False
        while True:
            try:
                link = await self._connect()
            except EngineError as why:
                self._why = why
                if not isinstance(why, Unavailable):  # a wrong password: no use in waiting for the timeout
                    self._tell_waiting(why)
                await asyncio.sleep(backoff(attempts))
                attempts += 1
                continue
            self._link, self._why = link, None
            self._tell_waiting(link)
            if seen_before:
                for callback in tuple(self._gaps):
                    self._guard(callback)
            seen_before = True
            if await self._watch(link):
                attempts = 0
            else:
                await asyncio.sleep(backoff(attempts))  # it accepts and hangs up
                attempts += 1

    async def _connect(self) -> Link:
        link = await open_link(self.target, role=self._role, resp=3, connect_timeout=self._connect_timeout)
        link.on_push = lambda push: self._pushed(link, push)
        link.on_lost = self._lost
        self._confirmed = {}
        try:
            for channel in self._listeners:
                self._confirmed[channel] = self._ask(link, "SSUBSCRIBE", channel)
            asked = dict(self._confirmed)  # some may be left before the server has answered
            async with asyncio.timeout(self._connect_timeout):
                results = await asyncio.gather(
                    *(asyncio.shield(one) for one in asked.values()), return_exceptions=True
                )  # fmt: skip
            self._sort_out(list(asked), results)
            for channel in asked.keys() - self._listeners.keys():
                self._ask(link, "SUNSUBSCRIBE", channel)
        except TimeoutError:
            link.kill("the server did not confirm the subscriptions in time")
            raise Unavailable(f"{self.target.display} did not confirm the subscriptions in time") from None
        except BaseException:
            link.kill("the server did not confirm the subscriptions")
            raise
        if link.dead:
            raise Unavailable(f"{self.target.display} hung up")
        return link

    def _sort_out(self, channels: list[str], results: Sequence[object]) -> None:
        """Give up the channels that live elsewhere by now; any other refusal is the connection's."""
        for result in results:
            moved = isinstance(result, EngineError) and result.code == "moved" and self._on_evicted is not None
            if isinstance(result, BaseException) and not moved:
                raise result
        for channel, result in zip(channels, results, strict=True):
            if isinstance(result, EngineError):
                self._evict(channel)

    def _evict(self, channel: str) -> None:
        self._listeners.pop(channel, None)
        self._confirmed.pop(channel, None)
        if self._on_evicted is not None:
            self._guard(self._on_evicted, channel)

    async def _watch(self, link: Link) -> bool:
        """Return when the link is lost: whether it had ever answered a ping or a subscription."""
        pings: list[asyncio.Future[Reply]] = []
        while not (await asyncio.wait([link.gone], timeout=self._ping_every))[0]:
            pings = [ping for ping in pings if not ping.done()]
            if len(pings) >= _PINGS_UNANSWERED:
                link.kill("the server stopped answering")
                break
            ping = link.ask("PING")
            ping.add_done_callback(self._answered)
            pings.append(ping)
        return link.answered_any

    def _lost(self, link: Link) -> None:
        if self._link is link:
            self._link = None
            self._confirmed = {}

    def _pushed(self, link: Link, push: list[Reply]) -> None:
        kind = push[0]
        if kind == b"smessage":
            channel, data = push[1].decode(), push[2]
            for listener in tuple(self._listeners.get(channel, ())):
                self._guard(listener, channel, data)
            return
        head = link.waiting[0] if link.waiting else None
        if head is not None and self._asked.get(head) == (kind, push[1]):
            link.waiting.popleft()
            if not head.done():
                head.set_result(push)
        elif kind == b"sunsubscribe" and push[1].decode() in self._listeners:
            # The slot moved away.
            if self._on_evicted is not None:
                self._evict(push[1].decode())
            else:  # reconnecting subscribes again where it can and reports the gap
                link.kill("the server ended a subscription")

    def _guard(self, callback: Callable[..., None], *args: object) -> None:
        """A listener that raises must not take the connection down; the loop's handler gets to see it."""
        try:
            callback(*args)
        except Exception as exc:
            self._loop.call_exception_handler({"message": "a subscriber's callback failed", "exception": exc})


def _closed() -> Unavailable:
    return Unavailable("the subscriber is closed", code="closed", may_have_applied=False)
