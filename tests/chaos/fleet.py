"""The processes of a chaos run: started, watched, signalled and ended by their ids, and by nothing else.

All of them carry the run's directory in their environment, so that what one leaves behind can be found: a worker that
is killed must take its handler processes along.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final

import msgspec

from tests.chaos.tasks import DIRECTORY

STOP_S: Final = 8.0
UNAVAILABLE: Final = 5
"""Exit status of `ff` where the store does not answer (docs/cli.md)."""
BOOT_S: Final = 12.0


class Member:
    """One place in the fleet: a program, and the process that runs it now."""

    def __init__(self, name: str, module: str, words: tuple[str, ...], log: Path) -> None:
        self.name, self.module, self.words, self.log = name, module, words, log
        self.process: subprocess.Popen[bytes] | None = None
        self.started = 0.0
        self.paused = False
        self.leaving = False
        """Somebody told it to end."""
        self.done = False
        """It has ended well, and is not started again."""

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    @property
    def age_s(self) -> float:
        return time.monotonic() - self.started


class Death(msgspec.Struct, frozen=True):
    """A worker that was killed, and when: what it held must come back."""

    instance: str
    """How its lease ids begin."""
    at_ms: int


class Fleet:
    def __init__(self, directory: Path, code: Path, environment: dict[str, str]) -> None:
        """code: the tree the processes run."""
        self._directory, self._code, self._mark = directory, code, str(directory)
        self._environment = {**os.environ, **environment, DIRECTORY: self._mark, "PYTHONPATH": str(code)}
        self.members: list[Member] = []
        self.unexpected: list[str] = []
        """Processes that ended and had no reason to."""
        self.boots_n = 0
        """Programs that found no store when they started."""
        self.poisoned_n = 0
        """Workers that a handler killed."""

    def add(self, name: str, module: str, *words: str) -> Member:
        member = Member(name, module, words, self._directory / f"{name}.log")
        self.members.append(member)
        self.start(member)
        return member

    def start(self, member: Member) -> None:
        with member.log.open("ab") as log:
            member.process = subprocess.Popen(
                [sys.executable, "-m", member.module, *member.words], cwd=self._code, env=self._environment,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        member.started, member.paused, member.leaving = time.monotonic(), False, False

    def those(self, prefix: str, *, least_s: float = 0.0) -> list[Member]:
        """Members of that kind that run, in order; none that is stopped or on its way out."""
        return [
            m for m in self.members
            if m.name.startswith(prefix) and m.alive and not m.paused and not m.leaving and m.age_s >= least_s
        ]  # fmt: skip

    def kill(self, member: Member) -> int:
        """SIGKILL; answers the process id it had."""
        assert member.process is not None
        pid = member.process.pid
        member.leaving = True
        member.process.kill()
        member.process.wait()
        return pid

    def signal(self, member: Member, number: int) -> None:
        assert member.process is not None
        with contextlib.suppress(ProcessLookupError):
            member.process.send_signal(number)

    def look(self) -> None:
        """Start again what has ended, and note what had no reason to."""
        for member in self.members:
            if member.done or member.process is None or (code := member.process.poll()) is None:
                continue
            if code == -signal.SIGKILL and member.name.startswith("risky") and not member.leaving:
                self.poisoned_n += 1
            elif member.name == "submitter" and code == 0:
                member.done = True
                continue
            elif code == UNAVAILABLE and member.age_s < BOOT_S:
                self.boots_n += 1  # the store was away while it started: its supervisor tries again
            elif not member.leaving:
                tail = member.log.read_text(errors="replace").strip().splitlines()[-1:]
                self.unexpected.append(f"{member.name} ({member.process.pid}) ended with {code}: {' '.join(tail)}")
            self.start(member)

    async def stop(self) -> None:
        """Ask everybody to end, then insist."""
        for member in self.members:
            if member.alive:
                member.leaving = True
                self.signal(member, signal.SIGCONT)
                self.signal(member, signal.SIGTERM)
        give_up = time.monotonic() + STOP_S
        while any(m.alive for m in self.members) and time.monotonic() < give_up:
            await asyncio.sleep(0.02)
        for member in self.members:
            if member.alive:
                self.unexpected.append(f"{member.name} did not end within {STOP_S:g} s of SIGTERM")
        self.close()

    def close(self) -> None:
        """End whatever is left of the members at once."""
        for member in self.members:
            if member.alive:
                self.kill(member)

    async def left_over(self, but: int, within: float = 5.0) -> list[int]:
        """Processes that outlived those that started them, after some time to notice; the server's id is left out.
        They are ended."""
        give_up = time.monotonic() + within
        while (left := [pid for pid in marked(self._mark) if pid != but]) and time.monotonic() < give_up:
            await asyncio.sleep(0.05)
        end(left)
        return left


def marked(mark: str) -> list[int]:
    """Processes of the run in that directory, started by it directly or not: those with FF_CHAOS_DIR in their
    environment, and the server, which writes its socket's path over its own."""
    wanted, served = f"{DIRECTORY}={mark}\0".encode(), f"unixsocket:{mark}/".encode()
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # It may be gone by now, be somebody else's, or be a zombie, which has no environment any more.
            with contextlib.suppress(OSError):
                if wanted in (entry / "environ").read_bytes() or served in (entry / "cmdline").read_bytes():
                    found.append(int(entry.name))
    return sorted(found)


def end(pids: list[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
