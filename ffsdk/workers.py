"""Workers as the roster knows them: who is alive, who died within the last hour, and what each said of itself."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from ffsdk.times import from_ms

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.contracts.roster import ListedWorker
    from ffcore.ids import PartitionKey

PAGE_N = 100
WORKERS_N = 10_000
"""Of one partition, so many at most."""


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """One worker process."""

    worker: str
    """Its instance, as leases and events name it."""
    name: str
    host: str
    pid: int | None
    lanes: list[str]
    concurrency: int | None
    capabilities: list[str]
    tasks: list[str]
    """What it can run, as ``name@version``; empty where it has too many to say."""
    dead: bool
    """It gave no sign of life in time, and did not say that it leaves."""
    seen_at: datetime | None
    """Its last sign of life."""
    alive_until: datetime | None
    """Without another one it counts as dead from here on."""


async def workers(backend: Backend, dead: bool = False) -> list[WorkerInfo]:
    """Those that are alive, or with `dead` those that died within the last hour; by name."""
    found: list[WorkerInfo] = []
    for partition in backend.config.keys("w"):
        found += [_info(row, dead) for row in await roster(backend, partition, WORKERS_N, dead)]
    return sorted(found, key=lambda one: one.worker)


async def roster(backend: Backend, partition: PartitionKey, most: int, dead: bool = False) -> list[ListedWorker]:
    """Rows of one partition's roster, about `most` of them."""
    from ffcore.contracts.roster import ListWorkersArgs

    found: list[ListedWorker] = []
    after: str | None = None
    while len(found) < most:
        page = await backend.call(ListWorkersArgs(partition=partition, after=after, limit=PAGE_N, dead=dead))
        found += page.items
        after = page.cursor
        if not after:
            break
    return found


def said(row: ListedWorker) -> dict[str, Any]:
    """What a worker says of itself; nothing where that is no JSON object: that it is alive is still worth a line."""
    try:
        return msgspec.json.decode(row.info, type=dict[str, Any]) if row.info else {}
    except msgspec.DecodeError:
        return {}


def _info(row: ListedWorker, dead: bool) -> WorkerInfo:
    info = said(row)
    return WorkerInfo(
        worker=row.worker_instance_id, name=str(info.get("name") or ""), host=str(info.get("host") or ""),
        pid=info.get("pid"), lanes=list(info.get("lanes") or ()), concurrency=info.get("concurrency"),
        capabilities=list(info.get("capabilities") or ()), tasks=list(info.get("tasks") or ()), dead=dead,
        seen_at=from_ms(row.seen_at), alive_until=from_ms(row.alive_until),
    )  # fmt: skip
