"""Bytes the server keeps per finished execution: keyed, two tags, a retry policy, run once.

The rule: what the user gave (payload and result) is subtracted, everything else is ours.
"""

from __future__ import annotations

import os
from typing import Any

import msgspec

from bench.functions import WORKER, fence
from bench.harness import Row, Server, Size, server
from ffbackend_valkey.backend import bindings_of
from ffbackend_valkey.library import assemble
from ffcore.args import Args
from ffcore.contracts.batch import ClaimBatchArgs, CompleteManyArgs, Completion, CreateManyArgs, NewExecution
from ffcore.ids import ExecutionId, PartitionKey, keyed_id, partition_of
from ffcore.policy import ExecutionPolicy, RetryPolicy
from ffcore.wire import pack_pairs

PARTITIONS = 4
PAYLOAD = b"x" * 4096
RESULT = b'"' + b"r" * 200 + b'"'
BATCH = 400


class Store:
    def __init__(self, own: Server) -> None:
        self.own, self.bindings, self.n = own, bindings_of(assemble()), 0
        self.policy = msgspec.json.encode(ExecutionPolicy(retry_policy=RetryPolicy()))

    def call(self, calls: list[Any]) -> list[Any]:
        pipeline = self.own.db.pipeline(transaction=False)
        for call in calls:
            pipeline.execute_command(*self.bindings[type(call)].request(call))
        return [self.bindings[type(call)].outcome(reply) for call, reply in zip(calls, pipeline.execute(), strict=True)]

    def claim_id(self) -> str:
        self.n += 1
        return f"bench.s1.{self.n}"

    def finish(self, result: bytes | None = RESULT) -> None:
        """Submit BATCH jobs and run them."""
        self.n += 1
        rows: dict[PartitionKey, list[NewExecution]] = {}
        for i in range(BATCH):
            execution_id = ExecutionId(keyed_id("execution", "default", f"order-{self.n}-{i}", PARTITIONS))
            tags = pack_pairs({"shop.tenant": f"t{i % 100}", "shop.order": f"order-{i}"})
            rows.setdefault(partition_of(execution_id), []).append(
                NewExecution(execution_id, os.urandom(16), PAYLOAD, None, tags)
            )
        creates: list[Args[Any]] = [
            CreateManyArgs(
                partition=key, namespace="default", lane_id="default", execution_kind="checkout", policy=self.policy,
                items=part,
            )
            for key, part in rows.items()
        ]  # fmt: skip
        self.call(creates)
        left = set(rows)
        while left:
            turn = sorted(left)
            claims = [ClaimBatchArgs(partitions=[k], limit=50, claim_id=self.claim_id(), **WORKER) for k in turn]
            done: list[Any] = []
            for key, claimed in zip(turn, self.call(claims), strict=True):
                if not claimed.jobs:
                    left.discard(key)
                    continue
                items = [Completion(j.execution_id, fence(j), result) for j in claimed.jobs]
                done.append(CompleteManyArgs(partition=key, limit=0, claim_id=self.claim_id(), items=items, **WORKER))
            self.call(done)

    def used(self) -> int:
        return int(self.own.db.info("memory")["used_memory"])


def one(jobs: int, result: bytes | None, what: str, target: str) -> list[Row]:
    with server(partitions=PARTITIONS) as own:
        store = Store(own)
        for _ in range(5):
            store.finish(result)  # until the event feeds and tables have their size
        before = store.used()
        for _ in range(jobs // BATCH):
            store.finish(result)
        jobs = jobs // BATCH * BATCH
        each = (store.used() - before) / jobs - len(PAYLOAD) - len(result or b"")
        rows = [Row(what, each, "bytes", target=target, note=f"over {jobs:,} executions, beyond payload and result")]
        if result is RESULT:
            rows += parts(own)
        return rows


def parts(own: Server) -> list[Row]:
    """Where it goes: MEMORY USAGE of one execution's keys, and a share of its partition's index."""
    core = next(own.db.scan_iter(match="*:x:*", count=1000))
    header, _, member = core.decode().partition(":x:")
    rows: list[Row] = []
    for letter, what in (("x", "record"), ("d", "tags"), ("p", "payload, bare"), ("r", "result, bare")):
        size = own.db.memory_usage(f"{header}:{letter}:{member}") or 0
        size -= {"p": len(PAYLOAD), "r": len(RESULT)}.get(letter, 0)
        rows.append(Row(f"  of it: {what}", size, "bytes"))
    index = f"{header}:i:1:completed"
    rows.append(Row("  of it: index of the lane", own.db.memory_usage(index, samples=0) / own.db.zcard(index), "bytes"))
    rows.append(Row("event feed of a partition, once", own.db.memory_usage(f"{header}:ev", samples=0) / 1024, "KiB"))
    return rows


def run(size: Size) -> list[Row]:
    jobs = size(100_000, 8_000)
    rows = one(jobs, RESULT, "finished execution, result of 202 bytes", "<= 1,000")
    return rows + one(size(20_000, 4_000), None, "finished execution, no result", "")
