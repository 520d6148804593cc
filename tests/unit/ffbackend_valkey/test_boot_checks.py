"""The checks at connect: what may lose work is refused, what may lose its last second is said once."""

from __future__ import annotations

import asyncio
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from ffbackend_valkey.stores import check_server, connect
from ffcore.errors import EngineError, Incompatible, Unavailable

DURABLE = {"maxmemory-policy": "noeviction", "appendonly": "yes", "appendfsync": "always", "maxmemory": "1000"}
DENIED = Incompatible("NOPERM no CONFIG for you")


class Server:
    """Answers what `check_server` asks."""

    url = "valkey://fake"

    def __init__(
        self, settings: dict[str, str] | EngineError, version: str = "7.2.11", ahead_s: float = 0.0
    ) -> None:  # fmt: skip
        self._settings, self._version, self._ahead_s = settings, version, ahead_s

    async def command(self, *words: Any) -> Any:
        if words[0] == "INFO":
            return f"# Server\r\nredis_version:{self._version}\r\n".encode()
        if words[0] == "TIME":
            now = time.time() + self._ahead_s
            return [str(int(now)).encode(), str(int(now % 1 * 1e6)).encode()]
        if isinstance(self._settings, EngineError):
            raise self._settings
        return [text.encode() for pair in self._settings.items() for text in pair]


async def warnings_of(server: Server, durability: str = "accepted") -> list[str]:
    return await check_server(server, durability)  # type: ignore[arg-type]


async def test_a_local_server_that_opens_after_its_opener_was_cancelled_is_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Else it would be kept for as long as this process lives."""
    asked, opens, closed = threading.Event(), threading.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Opened:
        def close(self) -> None:
            loop.call_soon_threadsafe(closed.set)

    def open_slowly(directory: Path) -> Opened:
        asked.set()
        opens.wait(10)
        return Opened()

    monkeypatch.setattr("ffbackend_valkey.embedded.open_embedded", open_slowly)
    connecting = asyncio.create_task(connect("embedded://nowhere"))
    await asyncio.to_thread(asked.wait, 10)
    connecting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await connecting
    opens.set()
    async with asyncio.timeout(5):
        await closed.wait()


async def test_a_durable_server_is_taken_without_a_word() -> None:
    assert await warnings_of(Server(DURABLE), "fsync") == []


@pytest.mark.parametrize(
    ("changed", "word"),
    [({"appendonly": "no"}, "appendonly"), ({"appendfsync": "everysec"}, "everysec"), ({"maxmemory": "0"}, "maxmem")],
)
async def test_what_may_lose_the_last_second_is_said(changed: dict[str, str], word: str) -> None:
    (said,) = await warnings_of(Server(DURABLE | changed))
    assert word in said


@pytest.mark.parametrize("ahead_s", [-90.0, 90.0])
async def test_a_clock_that_is_off_is_said(ahead_s: float) -> None:
    (said,) = await warnings_of(Server(DURABLE, ahead_s=ahead_s))
    assert "clock" in said and ("90.0" in said or "89.9" in said)


async def test_a_server_that_hides_its_settings_is_taken_with_a_warning() -> None:
    (said,) = await warnings_of(Server(DENIED))
    assert "maxmemory-policy" in said and "CONFIG" in said


async def test_fsync_is_not_promised_by_a_server_that_hides_its_settings() -> None:
    with pytest.raises(Incompatible, match="CONFIG"):
        await warnings_of(Server(DENIED), "fsync")


async def test_a_connection_lost_while_the_settings_are_asked_for_hides_nothing() -> None:
    with pytest.raises(Unavailable, match="lost"):
        await warnings_of(Server(Unavailable("lost")))


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
async def test_a_server_that_may_drop_jobs_is_refused(policy: str) -> None:
    with pytest.raises(Incompatible, match="noeviction"):
        await warnings_of(Server(DURABLE | {"maxmemory-policy": policy}))


async def test_a_server_without_functions_is_refused() -> None:
    with pytest.raises(Incompatible, match="Functions"):
        await warnings_of(Server(DURABLE, version="6.2.14"))


@pytest.mark.parametrize("changed", [{"appendonly": "no"}, {"appendfsync": "everysec"}])
async def test_fsync_is_promised_only_where_the_server_keeps_it(changed: dict[str, str]) -> None:
    with pytest.raises(Incompatible, match="appendfsync always"):
        await warnings_of(Server(DURABLE | changed), "fsync")
