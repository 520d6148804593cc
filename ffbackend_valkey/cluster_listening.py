"""Sharded channels of a cluster: each is heard at the node that serves its slot, and followed when that changes.

The rule of `subscriber.py` holds for the whole: a hint may be lost while a channel is between two nodes, and then every
`on_gap` callback runs once it is heard again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from ffbackend_valkey.cluster_calls import ClusterCalls
from ffbackend_valkey.cluster_slots import Address, read_redirect, slot_of_key
from ffbackend_valkey.connection import CONNECT_TIMEOUT_S, backoff
from ffbackend_valkey.subscriber import Listener, Subscriber
from ffbackend_valkey.url import Target
from ffcore.errors import EngineError, Unavailable

NODE_CONNECT_S: Final = 1.0
"""How long one node may take to confirm; then the slots are looked up again."""


class ClusterListening:
    """Listens wherever the channels live. Knows the nodes from the calls' map of the slots."""

    def __init__(self, target: Target, calls: ClusterCalls, *, patience: float = CONNECT_TIMEOUT_S) -> None:
        self._target, self._calls, self._patience = target, calls, patience
        self._subscribers: dict[Address, Subscriber] = {}
        self._listeners: dict[str, list[Listener]] = {}
        self._at: dict[str, Address] = {}
        """Where a channel is heard, or is being asked for."""
        self._following: dict[str, asyncio.Task[None]] = {}
        self._gaps: list[Callable[[], None]] = []
        self._closing: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._closed = False
        calls.slots.on_change(self._changed)

    async def subscribe(self, channel: str, listener: Listener) -> None:
        """As `Subscriber.subscribe`: returns when the node that serves the channel has confirmed."""
        if self._closed:
            raise _closed()
        listeners = self._listeners.setdefault(channel, [])
        listeners.append(listener)
        try:
            if len(listeners) == 1:
                await self._place(channel, self._loop.time() + self._patience)
            else:
                await self._settled(channel)
        except BaseException:
            await self.unsubscribe(channel, listener)
            raise

    async def unsubscribe(self, channel: str, listener: Listener | None = None) -> None:
        """Remove one listener, or all."""
        listeners = self._listeners.get(channel, [])
        if listener is None:
            listeners.clear()
        elif listener in listeners:
            listeners.remove(listener)
        if listeners or channel not in self._listeners:
            return
        del self._listeners[channel]
        task = self._following.pop(channel, None)
        if task is not None:
            task.cancel()
        address = self._at.pop(channel, None)
        subscriber = self._subscribers.get(address) if address is not None else None
        if subscriber is not None:
            await subscriber.unsubscribe(channel)

    def on_gap(self, callback: Callable[[], None]) -> None:
        self._gaps.append(callback)

    def off_gap(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(ValueError):
            self._gaps.remove(callback)

    async def close(self) -> None:
        """Hang up everywhere; nobody is called afterwards."""
        self._closed = True
        self._listeners.clear()
        self._gaps.clear()
        tasks = [*self._following.values(), *self._closing]
        for task in self._following.values():
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.gather(*(subscriber.close() for subscriber in self._subscribers.values()))

    # ---- placing

    async def _place(self, channel: str, give_up: float | None) -> None:
        """Subscribe at the node that serves the channel, wherever that is by then; None: for as long as it takes."""
        attempts = 0
        while True:
            address = self._calls.slots.owner(slot_of_key(channel))
            failed: EngineError = Unavailable(f"no node of the cluster serves {channel} now", code="clusterdown")
            if address is not None:
                self._at[channel] = address
                try:
                    await self._subscriber(address).subscribe(channel, self._deliver)
                    return
                except Unavailable as why:
                    failed = why
            if self._closed or failed.code == "closed" or (give_up is not None and self._loop.time() > give_up):
                raise failed
            found = read_redirect(failed.detail, address) if failed.code == "moved" else None
            if found is not None and attempts < 3:
                self._calls.note_moved(*found)
            else:
                self._calls.refresh()
                await asyncio.sleep(backoff(attempts))
            attempts += 1

    async def _settled(self, channel: str) -> None:
        """Until a channel that others listen to is heard."""
        give_up = self._loop.time() + self._patience
        while channel in self._listeners:
            task, address = self._following.get(channel), self._at.get(channel)
            subscriber = self._subscribers.get(address) if address is not None else None
            if task is None and subscriber is not None and channel in subscriber.channels:
                with contextlib.suppress(Unavailable, TimeoutError):
                    await subscriber.confirmed(channel)
                    return
            if self._loop.time() > give_up:
                raise Unavailable(f"no node confirmed the subscription of {channel} in time")
            await asyncio.sleep(0.02)

    def _subscriber(self, address: Address) -> Subscriber:
        subscriber = self._subscribers.get(address)
        if subscriber is None:
            subscriber = self._subscribers[address] = Subscriber(
                self._target.node(*address), connect_timeout=NODE_CONNECT_S, on_evicted=self._follow
            )
            subscriber.on_gap(self._gap)
        return subscriber

    def _deliver(self, channel: str, data: bytes) -> None:
        for listener in tuple(self._listeners.get(channel, ())):
            try:
                listener(channel, data)
            except Exception as exc:
                self._loop.call_exception_handler({"message": "a subscriber's callback failed", "exception": exc})

    def _gap(self) -> None:
        for callback in tuple(self._gaps):
            callback()

    # ---- following

    def _changed(self) -> None:
        """Follow the channels whose slot has moved; hang up on nodes that serve none any more."""
        owner = self._calls.slots.owner
        for channel, address in list(self._at.items()):
            new = owner(slot_of_key(channel))
            if new is not None and new != address and channel not in self._following:
                subscriber = self._subscribers.get(address)
                if subscriber is not None and channel in subscriber.channels:
                    subscriber.forget(channel)
                    self._follow(channel)
        primaries = set(self._calls.slots.primaries)
        for address in [one for one in self._subscribers if one not in primaries]:
            subscriber = self._subscribers[address]
            if not subscriber.channels:
                del self._subscribers[address]
                task = self._loop.create_task(subscriber.close())
                self._closing.add(task)
                task.add_done_callback(self._closing.discard)

    def _follow(self, channel: str) -> None:
        if self._closed or channel not in self._listeners or channel in self._following:
            return
        task = self._loop.create_task(self._place(channel, None), name=f"ff follow {channel}")
        self._following[channel] = task
        task.add_done_callback(lambda done: self._followed(channel, done))

    def _followed(self, channel: str, task: asyncio.Task[Any]) -> None:
        if self._following.get(channel) is task:
            del self._following[channel]
        if task.cancelled():
            return
        failed = task.exception()
        if failed is not None and not self._closed:
            self._loop.call_exception_handler({"message": f"{channel} cannot be heard any more", "exception": failed})
        elif not self._following:
            self._gap()  # what was published while channels were between two nodes is gone


def _closed() -> Unavailable:
    return Unavailable("the subscriber is closed", code="closed", may_have_applied=False)
