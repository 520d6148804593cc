"""Many jobs: pages over all partitions, and bulk changes that first say what they would do.

A listing is a walk, not a snapshot: a job that moves meanwhile may be seen twice or missed. Bulk calls collect the
ids first and then change exactly those.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

from ffcore import checks, ids
from ffcore.args import Args
from ffcore.errors import EngineError, InvalidArgument, Rejected
from ffcore.ids import ExecutionId, LaneId, PartitionKey, TimestampMs
from ffcore.states import PublicState
from ffsdk import times
from ffsdk.fanout import ask_all
from ffsdk.views import Bulk

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.contracts.operator import ListedLanes
    from ffcore.contracts.reads import ListedExecution
    from ffsdk.client import Client

PAGE_N = 200
BATCH_N = 100
"""Bulk changes of one turn: bounded, so that a purge of a million does not starve the workers."""
IDS_N = 1_000
"""Ids a purge reports; it may remove any number."""
TERMINAL = tuple(state for state in PublicState if state.is_terminal)
LIVE = tuple(state for state in PublicState if not state.is_terminal)

States = str | Sequence[str] | None
Tag = tuple[str, str] | None


def states_of(given: States, default: Sequence[PublicState] = ()) -> tuple[PublicState, ...]:
    """Public states as a user names them: one word, several, or None for the default."""
    if given is None:
        return tuple(default)
    words: list[Any] = list(given) if isinstance(given, list | tuple | set | frozenset) else [given]
    known = {state.value for state in PublicState}
    for word in words:
        if not isinstance(word, str) or word not in known:
            raise InvalidArgument(f"state {checks.shown(word)}: use one of {', '.join(sorted(known))}")
    return tuple(PublicState(word) for word in words)


def tag_text(tag: Tag) -> str | None:
    if tag is None:
        return None
    if isinstance(tag, str) or len(tag) != 2:
        raise InvalidArgument(f"tag is {tag!r:.60}: use a pair, as in ('shop.tenant', 't1')")
    checks.tags({tag[0]: tag[1]})
    return f"{tag[0]}={tag[1]}"


def partitions_of(client: Client) -> list[PartitionKey]:
    return client.backend.config.keys()


def public_state(row: ListedExecution) -> PublicState:
    """What people call the state of a listed execution."""
    from ffcore.states import vector

    return vector(row.state, row.reason or None, row.next or None, row.started).public_state


async def walk(
    backend: Backend,
    states: Sequence[PublicState] = (),
    *,
    lane: str | None = None,
    tag: str | None = None,
    namespace: str | None = None,
    task: str | None = None,
    limit: int | None = None,
    limit_each: int | None = None,
) -> AsyncIterator[ListedExecution]:
    """Rows of all partitions, one after the other; newest first within a lane and state. `limit` counts all of them,
    `limit_each` those of a partition, for a listing that is sorted afterwards: no partition hides another's."""
    from ffcore.contracts.reads import ListExecutionsArgs
    from ffcore.views import LISTED

    checks.whole(limit, "limit", 1)
    stored = sorted({word for state in states for word in LISTED[state]})
    if states and not stored:
        return
    lane_id = None if lane is None else LaneId(ids.check_name(lane, "lane"))
    wanted = frozenset(states)
    for partition in backend.config.keys("fp"):
        cursor: str | None = None
        left = min((n for n in (limit, limit_each) if n is not None), default=None)
        while left is None or left > 0:
            page = await backend.call(ListExecutionsArgs(
                partition=partition, lane_id=lane_id, states=stored, tag=tag, namespace=namespace, cursor=cursor,
                limit=PAGE_N if left is None else min(PAGE_N, left),
            ))  # fmt: skip
            for row in page.items:
                if (wanted and public_state(row) not in wanted) or (task is not None and row.task != task):
                    continue
                yield row
                if left is not None:
                    left -= 1
                if limit is not None:
                    limit -= 1
                if left == 0:
                    break
            cursor = page.cursor
            if not cursor:
                break
        if limit == 0:
            return


async def change(
    client: Client, rows: AsyncIterator[ListedExecution], make: Callable[[ExecutionId], Args[Any]], dry_run: bool
) -> Bulk:
    """Collect, then change each; a job that moved on meanwhile is reported, not an error."""
    found = list(dict.fromkeys([row.execution_id async for row in rows]))
    if dry_run:
        return Bulk(dry_run=True, count=len(found), ids=[*found])
    done, refused = 0, dict[str, str]()
    for at in range(0, len(found), BATCH_N):
        batch = found[at : at + BATCH_N]
        for execution_id, answer in zip(batch, await client.backend.call_all([make(i) for i in batch]), strict=True):
            if isinstance(answer, Rejected):
                refused[execution_id] = answer.code
            elif isinstance(answer, EngineError):
                raise answer  # the store is away: what is done is done, and calling again goes on from there
            else:
                done += 1
    return Bulk(dry_run=False, count=len(found), ids=[*found], done=done, refused=refused)


async def purge(client: Client, states: Sequence[PublicState], lane: str | None, before_ms: int, dry_run: bool) -> Bulk:
    """Forget what has ended before a time; in every partition, a bounded number per call."""
    from ffcore.contracts.upkeep import PurgeArgs

    backend, count, done = client.backend, 0, 0
    kept: list[str] = []
    lanes = [lane] if lane is not None else await lane_names(client)
    for name in lanes:
        for state in states:
            for partition in partitions_of(client):
                while True:
                    gone = await backend.call(PurgeArgs(
                        partition=partition, lane_id=name, outcome=state.value, before_ms=TimestampMs(before_ms),
                        limit=PAGE_N, dry_run=dry_run,
                    ))  # fmt: skip
                    kept += gone.execution_ids[: IDS_N - len(kept)]
                    count += gone.remaining if dry_run else len(gone.execution_ids)
                    done += 0 if dry_run else len(gone.execution_ids)
                    if dry_run or not gone.execution_ids or gone.remaining == 0:
                        break
    return Bulk(dry_run=dry_run, count=count, ids=kept, done=done)


async def lane_names(client: Client) -> list[str]:
    """Every lane any partition knows. Raises what kept a partition from answering."""
    names: set[str] = set()
    after: str | None = None
    while True:
        reached, failed = await ask_all(client.backend, _page_of_lanes(after))
        for error in failed.values():
            raise error
        for page in reached.values():
            names.update(row.lane_id for row in page.lanes)
        cursors = [page.cursor for page in reached.values() if page.cursor]
        if not cursors:
            return sorted(names)
        after = min(cursors)


def _page_of_lanes(after: str | None) -> Callable[[PartitionKey], Args[ListedLanes]]:
    from ffcore.contracts.operator import ListLanesArgs

    return lambda partition: ListLanesArgs(partition=partition, after=after, limit=1000)


def before(older_than: times.Duration | None, now_ms: int) -> int:
    return now_ms if older_than is None else now_ms - times.span_ms(older_than, "older_than")
