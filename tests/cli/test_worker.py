"""`ff worker list`: who is alive, and who died."""

from __future__ import annotations

import asyncio

from ffbackend_valkey.stores import connect
from ffcore.contracts.roster import RegisterWorkerArgs
from ffcore.ids import WorkerInstanceId, partition_key
from tests.cli.conftest import FF


def register(url: str, name: str, ttl_ms: int, info: bytes = b"{}") -> None:
    async def tell() -> None:
        backend = await connect(url)
        try:
            await backend.call(
                RegisterWorkerArgs(
                    partition=partition_key(0, "w"),
                    worker_instance_id=WorkerInstanceId(name),
                    info=info,
                    ttl_ms=ttl_ms,
                )
            )
            await asyncio.sleep(0.05)
        finally:
            await backend.close()

    asyncio.run(tell())


def test_workers_are_listed_alive_or_dead(ff: FF, store: str) -> None:
    register(store, "w-alive", 60_000, b'{"host": "h1", "pid": 7, "lanes": ["mail"], "capabilities": ["gpu"]}')
    register(store, "w-dead", 1)
    [alive] = [row for row in ff("worker", "list", "--json").records if row["worker"].startswith("w-")]
    assert (alive["worker"], alive["host"], alive["pid"], alive["lanes"], alive["capabilities"], alive["dead"]) == (
        "w-alive", "h1", 7, ["mail"], ["gpu"], False,
    )  # fmt: skip
    assert alive["seen_at"] < alive["alive_until"]
    [dead] = [row for row in ff("worker", "list", "--dead", "--json").records if row["worker"].startswith("w-")]
    assert (dead["worker"], dead["host"], dead["dead"]) == ("w-dead", None, True)
    assert "w-dead" in ff("worker", "list", "--dead").out
    assert "w-dead" not in ff("worker", "list").out


def test_what_a_worker_says_of_itself_need_not_be_readable(ff: FF, store: str) -> None:
    register(store, "w-cut", 60_000, b'{"host": ')
    assert [row["lanes"] for row in ff("worker", "list", "--json").records if row["worker"] == "w-cut"] == [[]]
