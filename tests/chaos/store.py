"""The server of a chaos run: a Valkey of the run's own that answers when its disk has the write, and the disk.

It is started, killed and started again on the same socket and data by its process id; nothing here outlives `close`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Final

from ffbackend_valkey.keeper import server_path
from tests.chaos.tasks import DIRECTORY

BUSY_MS: Final = 200
"""After which a running function makes the server refuse everybody else: the default of five seconds, in short."""
START_S: Final = 60.0
REWRITE: Final = "16mb"
"""The AOF is written anew from this size on: kills meet that too, and long runs restart in a second."""
DISK_MB: Final = 768


class Disk:
    """Where the AOF lies: a tmpfs that can really be filled, or, where none can be mounted, a limit on file sizes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m,mode=700", "ff-chaos", str(path)]
        try:
            self.mounted = subprocess.run(mount, capture_output=True, timeout=10).returncode == 0
        except (OSError, subprocess.TimeoutExpired):
            self.mounted = False

    @property
    def kind(self) -> str:
        return "tmpfs" if self.mounted else "a limit on file sizes (no tmpfs could be mounted)"

    def fill(self, pid: int) -> None:
        """Leave no room for the server's next write."""
        if not self.mounted:
            used = max((file.stat().st_size for file in self.path.rglob("*.aof")), default=0)
            resource.prlimit(pid, resource.RLIMIT_FSIZE, (used, resource.RLIM_INFINITY))
            return
        file = os.open(self.path / "filler", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            for size in (1 << 20, 1 << 12, 1 << 9):
                with contextlib.suppress(OSError):
                    while True:
                        os.write(file, b"\0" * size)
        finally:
            os.close(file)

    def free(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            (self.path / "filler").unlink()

    def close(self) -> None:
        if self.mounted:
            subprocess.run(["umount", "-l", str(self.path)], capture_output=True, timeout=10)
            self.mounted = False


class Server:
    """One Valkey process at a time, at one unix socket."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.disk = Disk(directory / "data")
        self.socket = str(directory / "s")
        self.process: subprocess.Popen[bytes] | None = None
        self.starts_n = 0
        self._log = (directory / "server.log").open("ab")

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def spawn(self) -> None:
        """Start the process; `answering` says when it has read its data."""
        self.process = subprocess.Popen(
            [
                str(server_path()), "--port", "0", "--unixsocket", self.socket, "--dir", str(self.disk.path),
                "--save", "", "--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction",
                "--busy-reply-threshold", str(BUSY_MS), "--auto-aof-rewrite-min-size", REWRITE,
            ],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log, start_new_session=True,
            env={**os.environ, DIRECTORY: str(self.directory)},
            # A write beyond the limit on file sizes must fail, not kill: Python's own setting is handed down.
            restore_signals=False,
        )  # fmt: skip
        self.starts_n += 1

    async def start(self) -> None:
        """Until it answers. A server that ends instead (a full disk) raises."""
        self.spawn()
        give_up = time.monotonic() + START_S
        while self.ask("PING") != b"+PONG":
            if not self.alive:
                raise RuntimeError(f"the server ended with code {self.process and self.process.returncode}")
            if time.monotonic() > give_up:
                raise RuntimeError(f"the server did not answer in {START_S} s")
            await asyncio.sleep(0.01)

    def kill(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    async def ended(self, within: float) -> bool:
        """Whether the process ends by itself."""
        give_up = time.monotonic() + within
        while self.alive:
            if time.monotonic() > give_up:
                return False
            await asyncio.sleep(0.01)
        return True

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGCONT)

    def ask(self, *words: str, timeout: float = 1.0) -> bytes:
        """One command on a connection of its own; the first line of the answer, empty where there is none."""
        packed = f"*{len(words)}\r\n" + "".join(f"${len(w.encode())}\r\n{w}\r\n" for w in words)
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout)
            connection.connect(self.socket)
            connection.sendall(packed.encode())
            return connection.recv(65536).split(b"\r\n")[0]
        return b""

    def used_memory(self) -> int:
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(1.0)
            connection.connect(self.socket)
            connection.sendall(b"INFO memory\r\n")
            for line in connection.recv(65536).split(b"\r\n"):
                if line.startswith(b"used_memory:"):
                    return int(line.partition(b":")[2])
        return 0

    def close(self) -> None:
        if self.alive:
            self.resume()
            self.kill()
        self._log.close()
        self.disk.close()
