"""Stores a simulation runs on: one process, one connection, every reply and every message in a fixed order.

A `Wire` sends plain commands and waits for them; what is published on subscribed channels during a command arrives
with its reply (RESP3 pushes), so that even bells are repeatable. `ValkeyPlace` starts the server of the embedded
wheel (or another program) in a directory of its own, on a socket, and can kill and restart it; `MemoryPlace` is
memory://. Virtual time is one key, read by the swapped `shared/clock.lua` (`virtual_library`).
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import itertools
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import hiredis

from ffbackend_valkey import keeper
from ffbackend_valkey.connection import FunctionMissing, pack
from ffbackend_valkey.library import Library, assemble, lua_root
from ffbackend_valkey.memory import MemoryServer, _Socket
from ffcore.errors import EngineError

CLOCK_KEY = "ff:test:clock"
_PR_SET_PDEATHSIG = 1
MISSING = "ERR Function not found"
Word = str | bytes | int | float
Command = Sequence[Word]
_names = itertools.count()


def virtual_library(replace: Mapping[str, str] | None = None) -> Library:
    """The library with its one door for time reading a key; `replace` swaps further files (mutants)."""
    texts = dict(replace or {})
    source = texts.get("shared/clock.lua") or (lua_root() / "shared/clock.lua").read_text()
    real = 'redis.call("TIME")'
    if source.count(real) != 1:
        raise ValueError("shared/clock.lua should read the time in one place")
    texts["shared/clock.lua"] = source.replace(
        real, f'(function() local ms = tonumber(redis.call("GET", "{CLOCK_KEY}")) '
        "return { math.floor(ms / 1000), ms % 1000 * 1000 } end)()"
    )  # fmt: skip
    return assemble(replace=texts)


TIGHT = {"STEPS_N": 7, "STEPS_BYTES": 2_000, "JOURNAL_HEAD_BYTES": 300, "WAITPOINTS_N": 3}
"""Bounds that no run would meet as they are."""


_tight: dict[str, tuple[Library, dict[str, int]]] = {}


def tightened(library: Library) -> tuple[Library, dict[str, int]]:
    """The library under bounds that runs meet, and all its bounds by name."""
    if library.sha in _tight:
        return _tight[library.sha]
    line = next(line for line in library.source.splitlines() if line.startswith("local LIMITS = "))
    bounds = {name: int(value) for name, value in re.findall(r"(\w+) = (-?\d+)", line)} | TIGHT
    tight = "local LIMITS = { " + ", ".join(f"{name} = {value}" for name, value in bounds.items()) + " }"
    tighter = library._replace(source=library.source.replace(line, tight), sha=f"{library.sha} tight")
    return _tight.setdefault(library.sha, (tighter, bounds))


class Refused(Exception):
    """An error reply: never an answer of a function, which refuses with data."""


class Wire(Protocol):
    pushed: list[tuple[str, str]]
    """Channel and text of what was published since the last look."""

    def pipe(self, commands: Sequence[Command]) -> list[Any]:
        """Replies in order; an error reply stands in its place as a Refused."""
        ...

    def close(self) -> None: ...


def one(wire: Wire, *command: Word) -> Any:
    """Send one command; an error reply is raised."""
    (reply,) = wire.pipe([command])
    if isinstance(reply, Refused):
        raise reply
    return reply


# ---- a server behind a socket ------------------------------------------------------------------------


class SocketWire:
    def __init__(self, path: str) -> None:
        self.pushed: list[tuple[str, str]] = []
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(30)
        self._socket.connect(path)
        self._reader: Any = hiredis.Reader()  # type: ignore[attr-defined]
        one(self, "HELLO", 3)

    def pipe(self, commands: Sequence[Command]) -> list[Any]:
        self._socket.sendall(b"".join([pack(tuple(command)) for command in commands]))
        replies: list[Any] = []
        while True:
            # Pushes of the last command may follow its reply in the same read: look before giving up the turn.
            got = self._reader.gets()
            if got is False:
                if len(replies) == len(commands):
                    return replies
                data = self._socket.recv(1 << 16)
                if not data:
                    raise ConnectionError("the server hung up")
                self._reader.feed(data)
            elif type(got) is hiredis.PushNotification:  # type: ignore[attr-defined]
                if got[0] == b"smessage":
                    self.pushed.append((got[1].decode(), got[2].decode()))
            elif isinstance(got, hiredis.ReplyError):  # type: ignore[attr-defined]
                replies.append(Refused(str(got)))
            else:
                replies.append(got)

    def subscribe(self, channels: Sequence[str]) -> None:
        """Each channel's confirmation is a push; a PING behind them makes sure that they are in place."""
        self._socket.sendall(pack(("SSUBSCRIBE", *channels)))
        one(self, "PING")

    def close(self) -> None:
        self._socket.close()


def _die_with_parent() -> None:
    """In the child, before it becomes the server: a run that is killed leaves no server behind (Linux)."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class ValkeyPlace:
    """A server of our own. `durable`: an append-only file written on every command, so that it may be killed."""

    def __init__(self, *, program: str | None = None, durable: bool = False) -> None:
        self.name = Path(program).name if program else "valkey"
        self.loaded = ""
        """Digest of the library it holds."""
        self._program = program or str(keeper.server_path())
        self.durable = durable
        self._dir = tempfile.mkdtemp(prefix="ffsim")
        self._path = os.path.join(self._dir, "s")
        self._process = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        words = [self._program, "--port", "0", "--unixsocket", self._path, "--dir", self._dir, "--save", ""]
        words += ["--appendonly", "yes" if self.durable else "no", "--appendfsync", "always"]
        words += ["--daemonize", "no", "--maxmemory-policy", "noeviction", "--proto-max-bulk-len", "64mb"]
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path)
        with open(os.path.join(self._dir, "log"), "ab") as log:
            process = subprocess.Popen(
                words, stdout=log, stderr=log, stdin=subprocess.DEVNULL, preexec_fn=_die_with_parent
            )  # fmt: skip
        give_up = time.monotonic() + 20
        while True:
            with contextlib.suppress(OSError, ConnectionError, Refused):
                wire = SocketWire(self._path)
                one(wire, "PING")  # refused while it reads its file
                wire.close()
                return process
            if process.poll() is not None or time.monotonic() > give_up:
                raise RuntimeError(Path(self._dir, "log").read_text(errors="replace")[-2000:])
            time.sleep(0.005)

    def open(self) -> SocketWire:
        return SocketWire(self._path)

    def restart(self) -> None:
        """Kill the server and start it on its file."""
        if not self.durable:
            raise ValueError("this server keeps nothing: a restart would lose the run")
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()
        self._process = self._start()

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        shutil.rmtree(self._dir, ignore_errors=True)


# ---- memory:// -----------------------------------------------------------------------------------------


class MemoryWire:
    def __init__(self, server: MemoryServer) -> None:
        self.pushed: list[tuple[str, str]] = []
        self._link = server.blocking()
        self._ear = _Socket(server, self._heard)

    def _heard(self, message: Any) -> None:
        if isinstance(message, list) and message[0] == b"smessage":
            self.pushed.append((message[1].decode(), message[2].decode()))

    def pipe(self, commands: Sequence[Command]) -> list[Any]:
        replies: list[Any] = []
        for command in commands:
            try:
                replies.append(self._link.call(*command))
            except FunctionMissing:
                replies.append(Refused(MISSING))
            except EngineError as refused:
                replies.append(Refused(str(refused)))
        return replies

    def subscribe(self, channels: Sequence[str]) -> None:
        for channel in channels:
            self._ear.run([b"SSUBSCRIBE", channel.encode()])

    def close(self) -> None:
        self._ear.run([b"SUNSUBSCRIBE"])
        self._ear.close()
        self._link.close()


class MemoryPlace:
    """An empty store of this process under a name nobody else has."""

    name = "memory"
    durable = False

    def __init__(self) -> None:
        self.loaded = ""
        self._key = f"simulation-{os.getpid()}-{next(_names)}"
        self._server = MemoryServer.get(self._key)

    def open(self) -> MemoryWire:
        return MemoryWire(self._server)

    def restart(self) -> None:
        raise ValueError("memory:// ends with its process")

    def close(self) -> None:
        MemoryServer.discard(self._key)


Place = ValkeyPlace | MemoryPlace


@contextlib.contextmanager
def place(kind: str = "valkey") -> Iterator[Place]:
    """``valkey``, ``durable`` (Valkey that may be killed), ``memory``, or the path of another server program."""
    if kind == "memory":
        here: Place = MemoryPlace()
    else:
        here = ValkeyPlace(program=kind if "/" in kind else None, durable=kind == "durable")
    try:
        yield here
    finally:
        here.close()


# ---- the whole keyspace --------------------------------------------------------------------------------


def _pairs(raw: Any) -> list[tuple[Any, Any]]:
    if isinstance(raw, dict):
        return list(raw.items())
    if raw and isinstance(raw[0], list):
        return [(one[0], one[1]) for one in raw]
    return list(zip(raw[::2], raw[1::2], strict=True))


def dump(wire: Wire, but: Sequence[str] = (CLOCK_KEY,)) -> list[str]:
    """Every key with its type, expiry and contents, one line each, in one order on every server."""
    names = sorted(key.decode() for key in one(wire, "KEYS", "*") if key.decode() not in but)
    lines: list[str] = []
    kinds = wire.pipe([("TYPE", name) for name in names])
    ends = wire.pipe([("PTTL", name) for name in names])
    reads: dict[str, tuple[str, ...]] = {
        "hash": ("HGETALL", "{}"), "zset": ("ZRANGE", "{}", "0", "-1", "WITHSCORES"),
        "list": ("LRANGE", "{}", "0", "-1"),
        "stream": ("XRANGE", "{}", "-", "+"), "string": ("GET", "{}"), "set": ("SMEMBERS", "{}"),
    }  # fmt: skip
    words = [kind if isinstance(kind, str) else kind.decode() for kind in kinds]
    values = wire.pipe([[part.format(name) if part == "{}" else part for part in reads[word]]
                        for name, word in zip(names, words, strict=True)])  # fmt: skip
    for name, word, end, value in zip(names, words, ends, values, strict=True):
        if word == "hash":
            shown: Any = sorted(_pairs(value))
        elif word == "zset":
            shown = sorted((member, f"{float(score):.0f}") for member, score in _pairs(value))
        elif word == "set":
            shown = sorted(value)
        else:
            shown = value
        lines.append(f"{name} {word} {end} {shown!r}")
    return lines


def fingerprint(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
