"""A proxy in front of one node that hands the replication stream on late and everything else at once. It runs in a
thread of its own, so that helpers which block the test's loop do not hold it up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import Any


class LaggingProxy:
    """Listens on `port` for the server at `upstream`. `forget` drops what is under way, and whoever comes after."""

    def __init__(self, port: int, upstream: int, lag_s: float) -> None:
        self.port, self._upstream, self._lag_s = port, upstream, lag_s
        self._loop = asyncio.new_event_loop()
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, name=f"lag {port}", daemon=True)
        self._thread.start()
        self._run(self._listen())

    def forget(self) -> None:
        self._run(self._drop())

    def stop(self) -> None:
        self.forget()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, coro: Any) -> None:
        asyncio.run_coroutine_threadsafe(coro, self._loop).result(10)

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def _drop(self) -> None:
        if self._server is not None:
            self._server.close()
        for writer in self._writers:
            writer.transport.abort()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._writers.add(writer)
        server: asyncio.StreamWriter | None = None
        try:
            with contextlib.suppress(OSError):
                from_server, server = await asyncio.open_connection("127.0.0.1", self._upstream)
                self._writers.add(server)
                lags = asyncio.Event()
                ways = [
                    asyncio.ensure_future(self._requests(reader, server, lags)),
                    asyncio.ensure_future(self._replies(from_server, writer, lags)),
                ]
                try:
                    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for way in ways:
                        way.cancel()
                    await asyncio.gather(*ways, return_exceptions=True)
        finally:
            for one in (writer, server):
                if one is not None:
                    one.transport.abort()
                    self._writers.discard(one)
            self._tasks.discard(task)

    async def _requests(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, lags: asyncio.Event) -> None:
        while data := await reader.read(65536):
            if b"PSYNC" in data:
                lags.set()
            to.write(data)

    async def _replies(self, reader: asyncio.StreamReader, to: asyncio.StreamWriter, lags: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        while data := await reader.read(65536):
            if lags.is_set():
                loop.call_later(self._lag_s, _hand_on, to, data)
            else:
                to.write(data)


def _hand_on(to: asyncio.StreamWriter, data: bytes) -> None:
    if not to.is_closing():
        to.write(data)
