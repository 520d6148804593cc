"""How many partitions: what a drain gains and what an idle claim costs, for the decision in docs/decisions/0011.

The rule: one server per count, all running at once, measured in turns.
"""

from __future__ import annotations

import contextlib
import time

from bench.backlog import drain
from bench.harness import Row, Server, Size, child, interleave, row, server
from ffbackend_valkey.backend import bindings_of
from ffbackend_valkey.library import assemble
from ffcore.contracts.batch import ClaimBatchArgs
from ffcore.contracts.upkeep import TickArgs
from ffcore.ids import partition_key

COUNTS = (1, 2, 4, 8, 16)
CALLS = 200


def idle_claim(own: Server, count: int) -> float:
    """Microseconds of the server for one claim that names every partition and finds nothing."""
    bindings = bindings_of(assemble())
    own.db.config_resetstat()
    pipeline = own.db.pipeline(transaction=False)
    for n in range(CALLS):
        args = ClaimBatchArgs(
            partitions=[partition_key(p, "fp") for p in range(count)], lanes=["idle"], capability_sets=[], limit=16,
            claim_id=f"bench.c.{time.time_ns() + n}", worker_id="w", worker_instance_id="bench", lease_ttl_ms=30_000,
            park="bench",
        )  # fmt: skip
        pipeline.execute_command(*bindings[ClaimBatchArgs].request(args))
    pipeline.execute()
    return own.stats()["fcall"]["usec"] / CALLS


def idle_tick(own: Server, count: int) -> float:
    """The same for a tick with nothing due."""
    own.db.config_resetstat()
    pipeline = own.db.pipeline(transaction=False)
    args = TickArgs(partitions=[partition_key(p, "fp") for p in range(count)], ticker="bench", force=True)
    for _ in range(CALLS):
        pipeline.execute_command(*bindings_of(assemble())[TickArgs].request(args))
    pipeline.execute()
    return own.stats()["fcall"]["usec"] / CALLS


def run(size: Size) -> list[Row]:
    jobs, rounds = size(8_000, 1_500), size(3, 1)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        servers = {count: stack.enter_context(server(partitions=count)) for count in COUNTS}

        def rate(count: int, flight: int) -> float:
            lane = f"lane-{time.time_ns()}"
            return float(child(drain, url=servers[count].url, jobs=jobs, flight=flight, lanes=[lane]))

        for flight in (16, 64):
            found = interleave(rounds, {f"{c}": lambda c=c, f=flight: rate(c, f) for c in COUNTS})
            rows += [row(f"drain, {flight} in flight, {c} partitions", rates, "jobs/s") for c, rates in found.items()]
        for what, measure in (("claim", idle_claim), ("tick", idle_tick)):
            found = interleave(size(9, 3), {f"{c}": lambda c=c, m=measure: m(servers[c], c) for c in COUNTS})
            rows += [row(f"idle {what} over {count} partitions", cost, "us/call") for count, cost in found.items()]
    return rows
