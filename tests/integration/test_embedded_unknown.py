"""embedded://DIR: a server whose keeper was killed before it could tell anybody where it is."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffbackend_valkey import keeper
from ffbackend_valkey.embedded import open_embedded
from tests.integration.test_embedded import LINGER_S, ROOT, gone, heir_of, running, until


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory whose server has ended when the test has."""
    monkeypatch.setenv(keeper.LINGER, str(LINGER_S))
    yield (path := tmp_path / "store")
    until(lambda: gone(path))


KILLED_BEFORE_IT_COULD_TELL = """
import os, signal, sys
from ffbackend_valkey import keeper
publish, first, told = keeper.Keeper._publish, os.getpid(), []
def killed(self, published):
    told.append(published)
    if os.getpid() == first and len(told) == int(sys.argv[2]):
        os.kill(first, signal.SIGKILL)
    publish(self, published)
keeper.Keeper._publish = killed
keeper.main([sys.argv[1]])
"""
"""A keeper that is killed when it has started its server for the n-th time and has told nobody where it is."""


def servers_of(directory: Path) -> list[int]:
    """Pids of the servers that write to a directory."""
    found: list[int] = []
    for path in Path("/proc").iterdir():
        try:
            if path.name.isdigit() and (path / "cwd").samefile(directory / "data") and running(int(path.name)):
                found.append(int(path.name))
        except OSError:  # it has ended, or is not ours
            continue
    return found


def killed_keeper(directory: Path, start_n: int) -> subprocess.Popen[bytes]:
    directory.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-c", KILLED_BEFORE_IT_COULD_TELL, str(directory), str(start_n)],
        env={**os.environ, "PYTHONPATH": str(ROOT)}, start_new_session=True,
    )  # fmt: skip


def test_an_heir_ends_a_server_it_was_not_told_of_before_it_starts_another(directory: Path) -> None:
    """Two servers on the same files would destroy them."""
    directory.mkdir()
    with (directory / "users.lock").open("w") as using:
        fcntl.flock(using, fcntl.LOCK_SH)
        process = killed_keeper(directory, 2)
        before: keeper.Published = until(lambda: keeper.read_endpoint(directory))
        until(lambda: heir_of(before))
        os.kill(before.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        fresh = until(lambda: (new := keeper.read_endpoint(directory)) and new.pid != before.pid and new)
        assert keeper.answers(fresh.socket) and servers_of(directory) == [fresh.pid]


def test_an_opener_ends_a_server_that_was_never_told_of(directory: Path) -> None:
    process = killed_keeper(directory, 1)
    assert process.wait() == -signal.SIGKILL
    [unknown] = servers_of(directory)
    with open_embedded(directory) as endpoint:
        assert servers_of(directory) == [endpoint.pid] and endpoint.pid != unknown
