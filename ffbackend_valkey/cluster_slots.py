"""Which node of a cluster serves which slot, as far as this process knows; no I/O.

The rule: knowledge may be old, and that is harmless. A node that does not serve a slot refuses before it runs
anything, and its refusal says who does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final, NamedTuple

from ffbackend_valkey.connection import Word
from ffcore.ids import crc16

SLOTS: Final = 16384

Address = tuple[str, int]
"""Host and port of one node."""


class Range(NamedTuple):
    """Slots that one primary serves."""

    first: int
    last: int
    primary: Address
    replicas: tuple[Address, ...]


class SlotMap:
    """The nodes by slot. `on_change` callbacks run in the caller's thread after the map has become another."""

    def __init__(self, seeds: Iterable[Address]) -> None:
        self.seeds = tuple(seeds)
        self._owners: list[Address | None] = [None] * SLOTS
        self._ranges: tuple[Range, ...] = ()
        self._listeners: list[Callable[[], None]] = []

    def owner(self, slot: int) -> Address | None:
        """None: nobody serves it, or we do not know who."""
        return self._owners[slot]

    @property
    def primaries(self) -> list[Address]:
        """Nodes that serve slots, in the order of their first slot."""
        return [address for address in dict.fromkeys(self._owners) if address is not None]

    @property
    def known(self) -> list[Address]:
        """Every node ever heard of in the present map, primaries first, then replicas, then the URL's."""
        replicas = [address for row in self._ranges for address in row.replicas]
        return list(dict.fromkeys((*self.primaries, *replicas, *self.seeds)))

    def replicas_of(self, primary: Address) -> set[Address]:
        return {address for row in self._ranges if row.primary == primary for address in row.replicas}

    def adopt(self, ranges: Iterable[Range]) -> None:
        """Take over what a node says of all slots."""
        self._ranges = tuple(ranges)
        owners: list[Address | None] = [None] * SLOTS
        for row in self._ranges:
            owners[row.first : row.last + 1] = [row.primary] * (row.last + 1 - row.first)
        if owners != self._owners:
            self._owners = owners
            self._tell()

    def moved(self, slot: int, address: Address) -> None:
        """Take over what a refusal said of one slot."""
        if self._owners[slot] != address:
            self._owners[slot] = address
            self._tell()

    def on_change(self, callback: Callable[[], None]) -> None:
        self._listeners.append(callback)

    def _tell(self) -> None:
        for callback in tuple(self._listeners):
            callback()


def read_slots(raw: Any, asked: Address) -> list[Range]:
    """The answer to CLUSTER SLOTS. A node that gives no host of its own is reached as the one that was asked is."""
    found: list[Range] = []
    for row in raw:
        nodes = [at for at in (_address(node, asked) for node in row[2:]) if at is not None]
        if nodes and _address(row[2], asked) is not None:
            found.append(Range(int(row[0]), int(row[1]), nodes[0], tuple(nodes[1:])))
    return found


def _address(node: list[Any], asked: Address) -> Address | None:
    host = (node[0] or b"").decode()
    if host == "?":  # the node does not know its own name: nobody can be sent there
        return None
    return host or asked[0], int(node[1])


def read_redirect(text: str, asked: Address | None) -> tuple[int, Address] | None:
    """Slot and node of `MOVED 3999 host:port` or `ASK ...`; None if the text names no node."""
    words = text.split()
    if len(words) < 3 or not words[1].isdigit() or ":" not in words[2]:
        return None
    host, _, port = words[2].rpartition(":")
    if not host and asked is not None:
        host = asked[0]
    if not host or not port.isdigit() or int(words[1]) >= SLOTS:
        return None
    return int(words[1]), (host.strip("[]"), int(port))


def slot_of_key(key: Word) -> int:
    """The slot of a key or a sharded channel: of what stands between the first braces, if anything does."""
    raw = key if isinstance(key, bytes) else str(key).encode()
    start = raw.find(b"{")
    if start >= 0:
        end = raw.find(b"}", start + 1)
        if end > start + 1:
            raw = raw[start + 1 : end]
    return crc16(raw) % SLOTS


EVERYWHERE: Final = frozenset({"FLUSHALL", "FLUSHDB", "FUNCTION LOAD", "FUNCTION FLUSH", "FUNCTION DELETE",
                               "FUNCTION RESTORE", "CONFIG SET", "CONFIG RESETSTAT"})  # fmt: skip
"""Commands without a key that concern every primary."""
_KEYLESS: Final = frozenset("""
    PING TIME INFO COMMAND CLUSTER CONFIG FUNCTION DEBUG ACL CLIENT LATENCY SLOWLOG LASTSAVE SCAN ROLE
    FLUSHALL FLUSHDB DBSIZE LOLWUT ECHO SCRIPT PUBSUB
""".split())
_SECOND: Final = frozenset({"OBJECT", "MEMORY", "XINFO", "XGROUP", "BITOP"})
_COUNTED: Final = frozenset({"FCALL", "FCALL_RO", "EVAL", "EVALSHA", "EVAL_RO", "EVALSHA_RO"})


def goes_everywhere(command: tuple[Word, ...]) -> bool:
    """Whether a command without a key concerns every primary rather than any one of them."""
    name = str(command[0]).upper()
    return name in EVERYWHERE or (len(command) > 1 and f"{name} {str(command[1]).upper()}" in EVERYWHERE)


def key_of(command: tuple[Word, ...]) -> Word | None:
    """The key that routes a command; None: any node may answer it."""
    name = str(command[0]).upper()
    if name in _COUNTED:
        return command[3] if len(command) > 3 and int(command[2]) else None
    if name in _KEYLESS or len(command) < 2:
        return None
    if name in ("XREAD", "XREADGROUP"):
        words = [str(word).upper() for word in command]
        return command[words.index("STREAMS") + 1]
    return command[2 if name in _SECOND and len(command) > 2 else 1]
