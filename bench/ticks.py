"""What a tick costs with no timers, and with a million set for later.

The rule: forced ticks, microseconds from INFO commandstats, both in turns on one server.
"""

from __future__ import annotations

import time

from bench.harness import Row, Server, Size, interleave, row, server
from ffbackend_valkey.backend import bindings_of
from ffbackend_valkey.library import assemble
from ffcore.contracts.upkeep import TickArgs
from ffcore.ids import PartitionKey

TICKS = 500


def cost(own: Server, key: str) -> float:
    """Microseconds of one tick of a partition."""
    own.db.config_resetstat()
    pipeline = own.db.pipeline(transaction=False)
    args = TickArgs(partitions=[PartitionKey(key)], ticker="bench", force=True)
    request = bindings_of(assemble())[TickArgs].request(args)
    for _ in range(TICKS):
        pipeline.execute_command(*request)
    pipeline.execute()
    return own.stats()["fcall"]["usec"] / TICKS


def run(size: Size) -> list[Row]:
    timers = size(1_000_000, 100_000)
    with server(partitions=2) as own:
        later = int(time.time() * 1000) + 3_600_000
        for at in range(0, timers, 5000):
            numbers = range(at, min(at + 5000, timers))
            members = {f"delay:{n:08x}-0000-7000-8000-000000000000": later + n for n in numbers}
            own.db.zadd("ff:{fp:1}:timers", members)  # type: ignore[arg-type]
        ways = {"a tick, no timers": "{fp:0}", f"a tick, {timers:,} timers set": "{fp:1}"}
        found = interleave(size(9, 3), {what: lambda k=key: cost(own, k) for what, key in ways.items()})
    return [row(what, samples, "us/call") for what, samples in found.items()]
