"""Keys that one job at a time may hold: taken before the create, by the id the job is going to have.

The rule: take, create, and only then cancel whoever held the key before; what the store does not create gives the key
back to where it came from. So nothing is lost when a submit is refused, and a client that dies in between leaves a key
without a job for about a minute at most. A caller that is cancelled in between does not: what was begun goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Coroutine, Sequence, Set
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar
from weakref import WeakValueDictionary

from ffcore import ids, limits
from ffcore.backend import settled
from ffcore.errors import EngineError, InvalidArgument, NotFound, Rejected, Unavailable, rejection
from ffcore.ids import ExecutionId
from ffsdk.admit import Unique

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.contracts.unique import UniqueHeld

R = TypeVar("R")
TAKE_OVERS_N: Final = 32
"""Attempts to take a key over, while other processes do the same."""
LOOKS_S: Final = (0.0, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
"""Waits for the job that is the answer, while its client is creating it."""
_locks: Final[WeakValueDictionary[tuple[int, str], asyncio.Lock]] = WeakValueDictionary()
"""By backend and key: submits of one process take a key one after the other, in the order they came."""
_going_on: Final[set[asyncio.Future[Any]]] = set()


class Wanted(NamedTuple):
    """A key, and the job that is to hold it."""

    unique: Unique
    unique_id: str
    execution_id: ExecutionId

    @property
    def line(self) -> str:
        return f"u {self.unique_id} {self.unique.scope}"


class Got(NamedTuple):
    """It holds the key."""

    wanted: Wanted
    fresh: bool
    """False: it had held it before this call."""
    before: UniqueHeld | None
    """Who held it until now, and how."""
    until_ms: int = 0
    """Of scope `window`: when it is free again."""


async def to_its_end(work: Coroutine[Any, Any, R]) -> R:
    """What it answers. If the caller is cancelled it goes on all the same: half of it would leave a key that nobody
    holds, or two jobs where one was to replace the other."""
    task = asyncio.ensure_future(work)
    _going_on.add(task)
    task.add_done_callback(_is_over)
    return await asyncio.shield(task)


def _is_over(task: asyncio.Future[Any]) -> None:
    _going_on.discard(task)
    if not task.cancelled():
        task.exception()  # the caller has it, or is gone


async def take(backend: Backend, wanted: Wanted, ours: Set[ExecutionId] = frozenset()) -> Got | ExecutionId:
    """Take a key; or the job that holds it, where the action is to answer that. Raises Conflict, code `unique_held`.
    ours: jobs that the caller is going to create."""
    one_by_one = _locks.setdefault((id(backend), wanted.unique_id), asyncio.Lock())
    async with one_by_one:
        got = await _take(backend, wanted)
    if isinstance(got, Got):
        return got
    if wanted.unique.action == "existing":
        if got.scope in ("window", "forever"):
            return got.execution_id  # which may be forgotten by now, and holds the key all the same
        for wait_s in LOOKS_S:
            await asyncio.sleep(wait_s)
            if got.execution_id in ours or await _is_there(backend, got.execution_id):
                return got.execution_id
        # Nobody has created it, and by now it may be ours.
        async with one_by_one:
            again = await _take(backend, wanted)
        if isinstance(again, Got):
            return again
        got = again
    raise rejection("unique_held", got.execution_id, asked="submit")


async def _take(backend: Backend, wanted: Wanted) -> Got | UniqueHeld:
    from ffcore.contracts.unique import TakeUniqueArgs, UniqueTaken

    before: UniqueHeld | None = None
    for _ in range(TAKE_OVERS_N):
        answer = await backend.call(TakeUniqueArgs(
            unique_id=wanted.unique_id, execution_id=wanted.execution_id, scope=wanted.unique.scope,
            window_ms=wanted.unique.window_ms, instead_of=None if before is None else before.execution_id,
        ))  # fmt: skip
        if isinstance(answer, UniqueTaken):
            return Got(wanted, answer.fresh, before, answer.until_ms)
        if wanted.unique.action in ("reject", "existing"):
            if await _is_known(backend, wanted.execution_id):
                return Got(wanted, False, None)  # a repeat of a keyed submit: the store says so, or what differs
            return answer
        before = answer
    raise rejection("unique_held", "it changes hands all the time", asked="submit", about=wanted.unique_id)


async def created(backend: Backend, got: Got) -> None:
    """The job stands: whoever held the key before is cancelled. Raises Unavailable if the store does not answer."""
    if await _is_taken_over(backend, got):
        # Whoever has it now found no job to cancel.
        await _cancel(backend, got.wanted.execution_id, "replaced while it was submitted")
    if got.before is None:
        return
    old = got.before.execution_id
    try:
        await _cancel(backend, old, f"replaced by {got.wanted.execution_id}")
    except Unavailable as lost:
        raise Unavailable(
            f"{got.wanted.execution_id} was submitted, and {old}, which it replaces, may go on: {lost}",
            may_have_applied=True,
        ) from lost


async def _cancel(backend: Backend, execution_id: ExecutionId, reason: str) -> None:
    from ffcore.contracts.execution import CancelExecutionArgs
    from ffcore.contracts.lease import CancelSource

    with contextlib.suppress(NotFound):
        await backend.call(
            CancelExecutionArgs(execution_id=execution_id, reason=reason, source=CancelSource.custom("client"))
        )


async def _is_taken_over(backend: Backend, got: Got) -> bool:
    """Whether somebody else has taken the key between our take and our create. Once our job stands, he cancels it."""
    from ffcore.contracts.reads import ReadExecutionArgs
    from ffcore.contracts.unique import ReadUniqueArgs, UniqueHeld

    wanted = got.wanted
    with contextlib.suppress(EngineError):
        held = await backend.call(ReadUniqueArgs(unique_id=wanted.unique_id))
        if not isinstance(held, UniqueHeld) or held.execution_id == wanted.execution_id:
            return False
        if wanted.unique.scope == "forever":
            return True
        stored = await backend.call(ReadExecutionArgs(execution_id=wanted.execution_id))
        # Or it has let go of it itself, by its start, its end, or the end of its window.
        return stored.now_ms < got.until_ms if wanted.unique.scope == "window" else "unique" in stored.fields
    return False


async def not_created(backend: Backend, got: Got) -> None:
    """There is no new job: the key goes back to where it came from. If that fails it is free again in a minute."""
    if not got.fresh:
        return
    with contextlib.suppress(EngineError):
        if got.before is None:
            await _drop(backend, got.wanted.unique_id, got.wanted.execution_id)
        else:
            await _give_back(backend, got.wanted, got.before)


async def _drop(backend: Backend, unique_id: str, execution_id: ExecutionId) -> None:
    from ffcore.contracts.unique import DropUniqueArgs

    await backend.call(DropUniqueArgs(unique_id=unique_id, execution_id=execution_id))


async def _give_back(backend: Backend, wanted: Wanted, before: UniqueHeld) -> None:
    """To the job that had it, as that had it: unless it was to let go of it meanwhile, which nobody heard."""
    from ffcore.contracts.unique import TakeUniqueArgs

    left_ms = 0
    if before.scope == "window":
        left_ms = before.until_ms - await _now_ms(backend, before.execution_id)
        if left_ms <= 0:
            return await _drop(backend, wanted.unique_id, wanted.execution_id)
    await backend.call(TakeUniqueArgs(
        unique_id=wanted.unique_id, execution_id=before.execution_id, scope=before.scope, window_ms=left_ms,
        instead_of=wanted.execution_id,
    ))  # fmt: skip
    if before.scope in ("queued", "active") and await _has_let_go(backend, before.execution_id):
        await _drop(backend, wanted.unique_id, before.execution_id)


async def _now_ms(backend: Backend, execution_id: ExecutionId) -> int:
    """The clock of its partition."""
    from ffcore.contracts.reads import ReadExecutionArgs

    try:
        return (await backend.call(ReadExecutionArgs(execution_id=execution_id))).now_ms
    except NotFound:
        return time.time_ns() // 1_000_000


async def _has_let_go(backend: Backend, execution_id: ExecutionId) -> bool:
    """Whether a job has begun, or ended, as far as its key goes by that. One that is not there may be on its way."""
    from ffcore.contracts.reads import ReadExecutionArgs

    try:
        return "unique" not in (await backend.call(ReadExecutionArgs(execution_id=execution_id))).fields
    except NotFound as gone:
        return gone.detail == "purged"


async def _is_there(backend: Backend, execution_id: ExecutionId) -> bool:
    """Whether a job has been created, by whoever holds its key."""
    from ffcore.contracts.reads import ReadExecutionArgs

    try:
        await backend.call(ReadExecutionArgs(execution_id=execution_id))
    except NotFound as gone:
        return gone.detail == "purged"
    return True


async def settle(backend: Backend, got: Got, result: object) -> None:
    """What became of the create: True, False for one that was there, or the error."""
    if result is False and got.fresh:
        with contextlib.suppress(EngineError):
            result = await _is_ours(backend, got.wanted)
    if result is True:
        await created(backend, got)
    elif not getattr(result, "may_have_applied", False):
        await not_created(backend, got)


async def _is_ours(backend: Backend, wanted: Wanted) -> bool:
    """A job was there, and its key was free: whether the create was ours after all, and only its answer was lost."""
    from ffcore.contracts.reads import ReadExecutionArgs

    stored = await backend.call(ReadExecutionArgs(execution_id=wanted.execution_id))
    if wanted.line not in stored.texts.get("admission", "").split("\n"):
        return False
    match wanted.unique.scope:
        case "window":
            return stored.now_ms - int(stored.fields["created_at"]) < wanted.unique.window_ms
        case "forever":
            return True
        case _:
            return "unique" in stored.fields


async def holding(backend: Backend, wanted: Sequence[Wanted], create: Callable[[], Awaitable[bool]]) -> bool:
    """Take all of these keys, create, and settle; all of them or none. What `create` answers: whether that is new."""
    return await to_its_end(_holding(backend, wanted, create))


async def _holding(backend: Backend, wanted: Sequence[Wanted], create: Callable[[], Awaitable[bool]]) -> bool:
    found = await take_many(backend, wanted)
    got = [one for one in found if isinstance(one, Got)]
    try:
        refused = [one for one in found if isinstance(one, EngineError)]
        if refused:
            raise refused[0]
        result = await create()
    except EngineError as failed:
        await asyncio.gather(*(settle(backend, one, failed) for one in got))
        raise
    await asyncio.gather(*(settle(backend, one, result) for one in got))
    return result


async def take_many(backend: Backend, wanted: Sequence[Wanted]) -> list[Got | ExecutionId | EngineError]:
    """As `take` for each, in order; what was refused in its place."""
    found: list[Got | ExecutionId | EngineError] = []
    ours = {one.execution_id for one in wanted}
    for at in range(0, len(wanted), limits.ROWS_N):
        found += await gathered([take(backend, one, ours) for one in wanted[at : at + limits.ROWS_N]])
    return found


async def gathered(calls: Sequence[Awaitable[R]]) -> list[R | EngineError]:
    """What each answers, or why it was refused."""
    return settled(await asyncio.gather(*calls, return_exceptions=True))


def check_member(unique: Unique | None, asked: str) -> None:
    """Of a node of a flow, or a child: it cannot be another job, nor start later than it is told."""
    if unique is not None and unique.action not in ("reject", "replace"):
        raise InvalidArgument(f"{asked} makes a job of its own flow: use action 'reject' or 'replace'")


async def _is_known(backend: Backend, execution_id: ExecutionId) -> bool:
    """Whether a job with a key of its own was submitted before."""
    from ffcore.contracts.reads import ReadExecutionArgs

    if ids.uuid_of(execution_id)[14] == "7":
        return False  # minted for this submit
    try:
        await backend.call(ReadExecutionArgs(execution_id=execution_id))
    except NotFound as gone:
        return gone.detail == "purged"
    except Rejected:
        return False
    return True
