"""Calls to a cluster: one multiplexed connection per primary, each call to the node that serves its key.

The rule: a call goes out once, and what is refused before it ran may go out again. Where to is said by the refusal
(MOVED, ASK: `again`) or found out by asking any node for the slots.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable
from typing import Any, Final

from ffbackend_valkey.cluster_slots import (
    Address,
    SlotMap,
    goes_everywhere,
    key_of,
    read_redirect,
    read_slots,
    slot_of_key,
)
from ffbackend_valkey.confirm import Confirming
from ffbackend_valkey.connection import Reply, Word, open_link
from ffbackend_valkey.multiplexer import Multiplexer
from ffbackend_valkey.url import Target
from ffcore.errors import EngineBug, EngineError, Incompatible, Unavailable

log = logging.getLogger("flowfabric.cluster")

NODE_CONNECT_S: Final = 2.0
"""How long a call may wait for the connection to one node; the call's own patience is longer than that."""
ASK_S: Final = 1.0
"""A node that has not told the slots by then is not asked further."""
WATCH_S: Final = 0.25
"""Between two looks at the connections; the slots are asked for when something is wrong with one."""
CALM_N: Final = 40
"""While nothing is wrong, every so many looks: nodes come and go without hurting anybody."""
LEAVE_S: Final = 1.0
"""A node that serves nothing any more may still answer what is in flight for so long."""
LEAVE_LOOKS_N: Final = 50


class ClusterCalls:
    """One cluster, one event loop. Use `open`; every method belongs to the loop's thread."""

    def __init__(self, target: Target, *, timeout: float = 30.0) -> None:
        self.target, self._timeout = target, timeout
        self.slots = SlotMap(target.nodes)
        self.slots.on_change(self._changed)
        self._nodes: dict[Address, Multiplexer] = {}
        self._confirming: dict[Address, Confirming] = {}
        self._routes: dict[Word, Multiplexer] = {}
        self._loop = asyncio.get_running_loop()
        self._refreshing: asyncio.Task[None] | None = None
        self._watching: asyncio.Task[None] | None = None
        self._leaving: set[asyncio.Task[None]] = set()
        self._closed = False

    @classmethod
    async def open(cls, target: Target, *, timeout: float = 30.0) -> ClusterCalls:
        """Learn the slots from the first of the URL's nodes that answers, or raise why none did."""
        self = cls(target, timeout=timeout)
        seeds = list(target.nodes)
        random.shuffle(seeds)
        failed: EngineError | None = None
        for seed in seeds:
            try:
                await self._learn_from(seed)
                break
            except Unavailable as why:
                failed = why
        else:
            assert failed is not None
            raise failed
        for address in self.slots.primaries:
            self.node(address)
        self._watching = self._loop.create_task(self._watch(), name=f"ff cluster {target.display}")
        return self

    # ---- calls

    def call(self, *command: Word) -> asyncio.Future[Reply]:
        """Send one command to the node that serves its key, or any node if it has none."""
        if command[0] == "FCALL" or command[0] == "FCALL_RO":
            node = self._routes.get(command[3]) if command[2] else None
            if node is not None:
                return node.call(*command)
        try:
            node = self._find(command)
        except EngineError as nobody:
            return _failed(nobody)
        return node.call(*command)

    @property
    def confirming(self) -> ClusterConfirming:
        """The same nodes, with answers that wait for a replica."""
        return ClusterConfirming(self)

    def confirming_at(self, command: tuple[Word, ...]) -> Confirming:
        """The connection that confirms writes of the node which serves a command's key."""
        address = self._address(command)
        if self._closed:
            raise _closed()
        confirming = self._confirming.get(address)
        if confirming is None:
            confirming = self._confirming[address] = Confirming(self.target.node(*address))
        return confirming

    async def everywhere(self, *command: Word) -> list[Reply]:
        """Send a command without a key to every primary; answers in their order."""
        return list(await asyncio.gather(*(self.node(address).call(*command) for address in self.slots.primaries)))

    def again(
        self, failed: EngineError, command: tuple[Word, ...], send: Callable[..., asyncio.Future[Reply]]
    ) -> Awaitable[Reply] | None:
        """Follow a refusal to where it leads; None if it leads nowhere: wait, then `send` again."""
        if failed.code in ("moved", "ask"):
            key = key_of(command)
            asked = self.slots.owner(slot_of_key(key)) if key is not None else None
            found = read_redirect(failed.detail, asked)
            if found is not None and failed.code == "ask":
                return self.node(found[1]).call_asking(*command)
            if found is not None:
                self.note_moved(*found)
                return send(*command)
        self.refresh()
        return None

    def note_moved(self, slot: int, address: Address) -> None:
        """A node said who serves a slot."""
        self.slots.moved(slot, address)
        self.refresh()

    def away(self, key: Word) -> bool:
        """Whether the node of a key is known not to let itself be reached."""
        owner = self.slots.owner(slot_of_key(key))
        node = self._nodes.get(owner) if owner is not None else None
        return owner is None or (node is not None and node.away)

    def node(self, address: Address) -> Multiplexer:
        """The connection to one node."""
        node = self._nodes.get(address)
        if node is None:
            if self._closed:
                raise _closed()
            node = Multiplexer(self.target.node(*address), timeout=self._timeout, connect_timeout=NODE_CONNECT_S)
            node.start()
            self._nodes[address] = node
        return node

    def _find(self, command: tuple[Word, ...]) -> Multiplexer:
        key = key_of(command)
        if key is None:
            return self.node(self._any(command))
        node = self.node(self._owner(key))
        if command[0] == "FCALL" or command[0] == "FCALL_RO":
            self._routes[key] = node  # keys of calls are partition headers: a bounded set
        return node

    def _address(self, command: tuple[Word, ...]) -> Address:
        key = key_of(command)
        return self._any(command) if key is None else self._owner(key)

    def _owner(self, key: Word) -> Address:
        slot = slot_of_key(key)
        owner = self.slots.owner(slot)
        if owner is None:
            self.refresh()
            raise Unavailable(f"no node of the cluster serves slot {slot} now", code="clusterdown")
        return owner

    def _any(self, command: tuple[Word, ...]) -> Address:
        if goes_everywhere(command):
            raise EngineBug(f"{command[0]!r} concerns every primary: use `everywhere`")
        primaries = self.slots.primaries
        up = [address for address in primaries if (node := self._nodes.get(address)) and node.connected]
        if not primaries:
            self.refresh()
            raise Unavailable("no node of the cluster serves anything now", code="clusterdown")
        return random.choice(up or primaries)

    # ---- the slots

    def refresh(self) -> None:
        """Ask for the slots soon, unless that is under way."""
        if not self._closed and (self._refreshing is None or self._refreshing.done()):
            self._refreshing = self._loop.create_task(self._refresh())

    async def refreshed(self) -> None:
        """Ask for the slots, and wait for the answer, or for nobody having one."""
        self.refresh()
        if self._refreshing is not None:
            await asyncio.shield(self._refreshing)

    async def _refresh(self) -> None:
        """Whoever answers first is believed: what it does not know yet, a refusal or the next look will tell."""
        known = self.slots.known
        random.shuffle(known)
        known.sort(key=lambda address: not self._idle(address))
        for address in known:
            try:
                await self._learn_from(address)
                return
            except EngineError as why:
                log.debug("%s:%d does not tell the slots: %s", *address, why)

    def _idle(self, address: Address) -> bool:
        node = self._nodes.get(address)
        return node is not None and node.connected and not node.in_flight

    async def _learn_from(self, address: Address) -> None:
        node = self._nodes.get(address)
        try:
            async with asyncio.timeout(ASK_S):
                if node is not None and node.connected:
                    raw = await node.call("CLUSTER", "SLOTS")
                else:
                    link = await open_link(self.target.node(*address), role="slots", connect_timeout=ASK_S)
                    try:
                        raw = await link.ask("CLUSTER", "SLOTS")
                    finally:
                        link.kill("asked what was to be asked")
        except TimeoutError:
            raise Unavailable(f"{address[0]}:{address[1]} does not answer") from None
        except EngineBug as refused:
            if "cluster support disabled" not in str(refused):
                raise
            alone = self.target.node(*address).display
            raise Incompatible(f"{address[0]}:{address[1]} is not a node of a cluster: use {alone}") from refused
        ranges = read_slots(raw, address)
        if not ranges:
            raise Unavailable(f"{address[0]}:{address[1]} knows of no slots: is the cluster made?", code="clusterdown")
        self.slots.adopt(ranges)

    def _changed(self) -> None:
        """Forget the routes, and take leave of nodes that serve nothing any more."""
        self._routes.clear()
        primaries = set(self.slots.primaries)
        for address in (self._nodes.keys() | self._confirming.keys()) - primaries:
            left = _leave(self._nodes.pop(address, None), self._confirming.pop(address, None))
            task = self._loop.create_task(left, name=f"ff leave {address[0]}:{address[1]}")
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    async def _watch(self) -> None:
        """Ask for the slots whenever a connection is down or its server stands still, and now and then anyway."""
        seen: dict[Address, tuple[Multiplexer, int]] = {}
        looks = 0
        while True:
            await asyncio.sleep(WATCH_S * random.uniform(0.8, 1.2))
            looks += 1
            wrong = looks % CALM_N == 0
            for address, node in self._nodes.items():
                mark = (node, node.answered)
                wrong = wrong or not node.connected or (node.in_flight > 0 and seen.get(address) == mark)
                seen[address] = mark
            if wrong:
                await self.refreshed()

    # ---- end

    async def close(self) -> None:
        """Hang up everywhere; see `Multiplexer.close`."""
        self._closed = True
        tasks = [task for task in (self._watching, self._refreshing, *self._leaving) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        ends: list[Any] = [node.close() for node in self._nodes.values()]
        ends += [confirming.close() for confirming in self._confirming.values()]
        await asyncio.gather(*ends)
        self._routes.clear()


class ClusterConfirming:
    """Writes to a cluster that count once a replica has them. Its connections are the calls' to open and close."""

    def __init__(self, calls: ClusterCalls) -> None:
        self._calls = calls

    def call(self, *command: Word) -> asyncio.Future[Reply]:
        try:
            confirming = self._calls.confirming_at(command)
        except EngineError as nobody:
            return _failed(nobody)
        return confirming.call(*command)

    async def close(self) -> None:
        return None


def _failed(why: EngineError) -> asyncio.Future[Reply]:
    failed: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    failed.set_exception(why)
    return failed


def _closed() -> Unavailable:
    return Unavailable("the connection is closed", code="closed", may_have_applied=False)


async def _leave(node: Multiplexer | None, confirming: Confirming | None) -> None:
    """Fail what has not left, let what is in flight be answered for a moment, then hang up."""
    both = [one for one in (node, confirming) if one is not None]
    for one in both:
        gone = f"{one.target.display} serves nothing any more"
        one.turn_away(Unavailable(gone, code="moved_away", may_have_applied=False))
    try:
        for _ in range(LEAVE_LOOKS_N):
            if not any(one.in_flight for one in both):
                break
            await asyncio.sleep(LEAVE_S / LEAVE_LOOKS_N)
    finally:
        if node is not None:
            node.hang_up("the node serves nothing any more")
        for one in both:
            await one.close()
