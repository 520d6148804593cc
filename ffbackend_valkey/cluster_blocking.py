"""Calls of a thread to a cluster: one plain connection per primary, opened when it is first needed.

Nothing is shared with the event loop. A call is sent at most once where it might have run; a refusal that says where
to go (MOVED, ASK) is followed. A node that did not let itself be reached is not tried again for a moment, so that
its partitions do not hold up those of the others.
"""

from __future__ import annotations

import random
import threading
import time
from typing import Final

from ffbackend_valkey.blocking import BlockingConnection
from ffbackend_valkey.cluster_slots import Address, SlotMap, key_of, read_redirect, read_slots, slot_of_key
from ffbackend_valkey.connection import Reply, Word
from ffbackend_valkey.url import Target
from ffcore.errors import Unavailable

CONNECT_S: Final = 1.0
TIMEOUT_S: Final = 3.0
"""For an answer; leases are renewed at a third of their length, so one node's silence must not take that long."""
SHUN_S: Final = 1.0
HOPS_N: Final = 4
LOOK_S: Final = 0.2
"""Between two looks at the slots."""


class ClusterBlocking:
    """Thread-safe; callers take turns."""

    def __init__(self, target: Target, *, role: str = "renewal", timeout: float = TIMEOUT_S) -> None:
        self._target, self._role, self._timeout = target, role, timeout
        self._slots = SlotMap(target.nodes)
        self._nodes: dict[Address, BlockingConnection] = {}
        self._shunned: dict[Address, float] = {}
        self._looked_at = 0.0
        self._lock = threading.Lock()
        self._closed = False

    def call(self, *command: Word) -> Reply:
        """Send one command with a key to its node and wait for the raw reply."""
        with self._lock:
            if self._closed:
                raise Unavailable("the connection is closed", code="closed", may_have_applied=False)
            asking: Address | None = None
            for hop in range(HOPS_N):
                address = asking or self._owner(command)
                node = self._node(address)
                try:
                    if asking is not None:
                        node.call("ASKING")
                    return node.call(*command)
                except Unavailable as failed:
                    asking = None
                    if failed.code not in ("moved", "ask") or hop == HOPS_N - 1:
                        self._failed(address, failed)
                        raise
                    found = read_redirect(failed.detail, address)
                    if found is None:
                        raise
                    if failed.code == "ask":
                        asking = found[1]
                    else:
                        self._slots.moved(*found)
            raise AssertionError("unreachable")

    def close(self) -> None:
        """Hang up everywhere; waits for a call under way."""
        with self._lock:
            self._closed = True
            for node in self._nodes.values():
                node.close()

    def _owner(self, command: tuple[Word, ...]) -> Address:
        key = key_of(command)
        if not self._slots.primaries:
            self._look()
        if key is None:
            return random.choice(self._slots.primaries)
        owner = self._slots.owner(slot_of_key(key))
        if owner is None or self._shunned.get(owner, 0.0) > time.monotonic():
            self._look()
            owner = self._slots.owner(slot_of_key(key))
        if owner is None or self._shunned.get(owner, 0.0) > time.monotonic():
            where = "no node" if owner is None else f"{owner[0]}:{owner[1]}, which does not answer,"
            raise Unavailable(f"{where} serves {key!r} now", code="clusterdown", may_have_applied=False)
        return owner

    def _node(self, address: Address) -> BlockingConnection:
        node = self._nodes.get(address)
        if node is None:
            node = self._nodes[address] = BlockingConnection(
                self._target.node(*address), role=self._role, timeout=self._timeout, connect_timeout=CONNECT_S
            )
        return node

    def _failed(self, address: Address, failed: Unavailable) -> None:
        """Look for whoever took over from a node that cannot be reached."""
        if failed.code == "unavailable":
            self._shunned[address] = time.monotonic() + SHUN_S
        self._look()

    def _look(self) -> None:
        """Learn the slots from any node that answers; at most every LOOK_S."""
        now = time.monotonic()
        if self._slots.primaries and now < self._looked_at + LOOK_S:
            return
        self._looked_at = now
        known = self._slots.known
        random.shuffle(known)
        last = Unavailable(f"no node of {self._target.display} answers", may_have_applied=False)
        for address in known:
            if self._slots.primaries and self._shunned.get(address, 0.0) > now:
                continue
            try:
                ranges = read_slots(self._node(address).call("CLUSTER", "SLOTS"), address)
            except Unavailable as why:
                last = why
                self._shunned[address] = time.monotonic() + SHUN_S
                continue
            if ranges:
                self._slots.adopt(ranges)
                return
        if not self._slots.primaries:
            last.may_have_applied = False  # only slots were asked for
            raise last
