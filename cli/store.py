"""From the settings of a command to an open store, and the reads several verbs share.

The rule: one command opens one backend, in one event loop, and closes it whatever happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ffcore import ids, limits
from ffcore.args import Args
from ffcore.contracts.operator import LaneCounts, LaneStatsArgs, ListedLane, ListLanesArgs
from ffcore.contracts.reads import ExecutionHistoryArgs, HistoryEntry, ListedExecution
from ffcore.errors import EngineError, NotFound
from ffcore.ids import ExecutionId, LaneId, PartitionKey
from ffsdk.fanout import ask_all
from ffsdk.listing import states_of, walk

from .options import Settings

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffsdk.client import Client
    from ffsdk.views import FanOut

R = TypeVar("R")
T = TypeVar("T")


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run one command's coroutine. The store's warnings belong to `ff doctor`, not into every answer."""
    logging.getLogger("flowfabric.store").setLevel(logging.ERROR)
    return asyncio.run(work)


@contextlib.asynccontextmanager
async def opened(settings: Settings, verb: str | None = None) -> AsyncGenerator[Backend]:
    """The store the settings name. Raises as `ffsdk.connect.open_backend`."""
    from ffsdk.connect import open_backend

    backend = await open_backend(settings.store_url(), verb=verb)
    try:
        yield backend
    finally:
        await backend.close()


@contextlib.asynccontextmanager
async def client_of(settings: Settings) -> AsyncGenerator[Client]:
    """A client of that store, in the namespace given."""
    from ffsdk.app import App

    async with App(url=settings.store_url(), namespace=settings.namespace or "default").client() as client:
        yield client


def report(settings: Settings, told: FanOut, record: dict[str, Any], said: str) -> None:
    """Say which partitions heard of a change. Those that did not hear of it from whoever ticks them: exit code 5."""
    import click

    out = settings.out()
    if out.json:
        out.line({**record, "revision": told.revision, "reached": len(told.reached), "not_reached": told.not_reached})
    elif told.complete:
        out.say(f"{said} in all partitions.")
    else:
        late = ", ".join(told.not_reached)
        out.say(f"{said} in {len(told.reached)} partitions; {late} will hear of it from whoever ticks.")
    if not told.complete:
        click.get_current_context().exit(5)


def execution_id(text: str, backend: Backend) -> ExecutionId:
    """An id as typed, checked against the store."""
    return ExecutionId(ids.check_id(text, partitions=backend.config.fp))


async def everywhere(
    backend: Backend, ask: Callable[[PartitionKey], Args[R]], family: str = "fp"
) -> dict[PartitionKey, R]:
    """One call to each partition; the first failure is raised after all have answered."""
    answers, not_reached = await ask_all(backend, ask, family)
    for failed in not_reached.values():
        raise failed
    return answers


async def in_chunks(backend: Backend, batch: Sequence[Args[R]], told: Callable[[int], None]) -> list[R | EngineError]:
    """Many calls, a bounded number in flight; `told` hears how many are done."""
    out: list[R | EngineError] = []
    for start in range(0, len(batch), limits.ROWS_N):
        out += await backend.call_all(batch[start : start + limits.ROWS_N])
        told(len(out) - start)
    return out


def executions(
    backend: Backend,
    *,
    states: Iterable[str] = (),
    lane: str | None = None,
    tag: str | None = None,
    namespace: str | None = None,
    task: str | None = None,
    limit: int | None = None,
) -> AsyncIterator[ListedExecution]:
    """Executions that match, partition by partition; `limit` counts per partition, so that none hides another's."""
    wanted = states_of(list(states))
    return walk(backend, wanted, lane=lane, tag=tag, namespace=namespace, task=task, limit_each=limit)


async def transitions(backend: Backend, execution_id: ExecutionId, limit: int) -> list[HistoryEntry]:
    """The first so many of an execution's transitions, as far as the feed still holds them."""
    found: list[HistoryEntry] = []
    after: str | None = None
    while len(found) < limit:
        page = await backend.call(
            ExecutionHistoryArgs(execution_id=execution_id, after=after, limit=limit - len(found))
        )
        found, after = found + page.entries, page.cursor
        if not page.more:
            break
    return found[:limit]


async def lane_names(backend: Backend) -> dict[str, set[str]]:
    """All lanes, and their states (several while partitions disagree)."""
    found: dict[str, set[str]] = {}
    for partition in backend.config.keys("fp"):
        after: str | None = None
        while True:
            page = await backend.call(ListLanesArgs(partition=partition, after=after, limit=limits.PAGE_MAX_N))
            rows: list[ListedLane] = page.lanes
            for row in rows:
                found.setdefault(row.lane_id, set()).add(row.state)
            after = page.cursor
            if not after:
                break
    return dict(sorted(found.items()))


DEPTHS = ("waiting", "delayed", "active", "suspended", "completed", "failed", "cancelled", "expired", "skipped")
"""States of a lane's jobs, as its numbers show them. `waiting` includes those that something blocks (`held`)."""
WAITING = ("ready", "granted", "blocked")
"""The stored words for it."""


async def lane_records(backend: Backend) -> list[dict[str, Any]]:
    """The numbers of all lanes; one that is forgotten while we look is left out."""
    found: list[dict[str, Any]] = []
    for name in await lane_names(backend):
        with contextlib.suppress(NotFound):
            found.append(await lane_record(backend, name))
    return found


async def lane_record(backend: Backend, name: str) -> dict[str, Any]:
    """A lane's numbers over all partitions. NotFound if no partition knows it."""
    answers, failures = await ask_all(backend, lambda p: LaneStatsArgs(partition=p, lane_id=LaneId(name)))
    for failed in failures.values():
        if not isinstance(failed, NotFound):
            raise failed
    if not answers:
        raise NotFound(f"there is no lane {name}: a lane exists from its first job on", code="lane_not_found")
    counts: list[LaneCounts] = list(answers.values())
    depth: dict[str, int] = dict.fromkeys(DEPTHS, 0)
    for one in counts:
        for word, n in one.counts.items():
            depth["waiting" if word in WAITING else word] += n
    oldest = [one.oldest_created_at for one in counts if one.oldest_created_at]
    states = {one.state for one in counts}
    return {
        "lane": name,
        "state": states.pop() if len(states) == 1 else "mixed",
        **depth,
        "held": sum(one.counts.get("blocked", 0) + one.held for one in counts),
        "oldest_age_s": round(max(0, counts[0].now_ms - min(oldest)) / 1000, 3) if oldest else 0.0,
        "idle_workers": max(one.parked for one in counts),
    }
