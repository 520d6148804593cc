"""What a running job emits: its handler appends frames and keeps a summary up to date, anybody reads both.

A stream goes over all attempts of a job. Its cursor says where a reader is and which attempt he was told of last, so
that he is told once when a later one takes over.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, cast

import msgspec

from ffcore import checks, limits
from ffcore.admission import Amount
from ffcore.contracts.stream import ReadSummaryArgs, StreamCursor, SummaryDocument, TailFrame, WriteSummaryArgs
from ffcore.errors import Conflict, Incompatible, InvalidArgument, StaleLease, Suspended, Unavailable
from ffcore.ids import ExecutionId
from ffcore.merge import merge_patch
from ffsdk import payload as payloads
from ffsdk.emitter import Mode, emitter_of
from ffsdk.times import from_ms

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffsdk.client import Client
    from ffsdk.context import Context
    from ffsdk.durable import Durable

MODES: Final = ("append", "best_effort")
BYTES: Final = "bytes"
"""The encoding of frames that were emitted as bytes; all others are JSON."""
SUPERSEDED: Final = "superseded"
GAP: Final = "gap"
OURS: Final = (SUPERSEDED, GAP)
_CURSOR: Final = re.compile(r"(?:(\d{1,9}):)?(start|end|\d{1,15}(?:-\d{1,15})?)")


class Frame(msgspec.Struct, frozen=True, kw_only=True):
    """One frame of a job's stream.

    Two types were emitted by nobody. `superseded`: a later attempt (`attempt`, also its `value`) has taken over, and
    whatever earlier attempts emitted will be emitted anew, or not at all. `gap`: the stream holds no more than the
    newest frames of an attempt, and the reader comes from before them: some that he has not seen are gone. `value` is
    how many the attempt has lost altogether. Frames with mode "best_effort" go without a word.
    """

    type: str
    value: Any
    """Bytes if it was emitted as bytes, else the JSON value."""
    cursor: str
    """Pass it as ``job.stream(after=...)`` to go on behind this frame."""
    attempt: int
    mode: Mode
    at: datetime | None
    """When it was stored; None for `superseded` and `gap`."""


# ---- emitting ------------------------------------------------------------------------------------------


async def emit(
    ctx: Context, value: Any, type: str = "token", mode: Mode = "append", spend: Mapping[str, Amount] | None = None
) -> None:
    """Append a frame to the stream of the attempt; see `ffsdk.context.Context.emit`."""
    if mode not in MODES:
        raise InvalidArgument(f"mode is {checks.shown(mode)}: use append or best_effort")
    raw, encoding = encoded(value, type)
    durable = _holding(ctx)
    durable.hear_breach()
    told = None
    if spend is not None:
        spending, held = durable.host.spending, durable.held
        charges = await spending.charges(held, spend)
        if mode == "best_effort":
            durable.spent(charges, folds=True)
        else:
            told = [(charge, spending.put(held, charge, folds=True)) for charge in charges]
    frame = emitter_of(durable.host.backend).put(
        ExecutionId(ctx.execution_id), durable.fence_text, type, mode, raw, encoding
    )
    try:
        await frame
    except StaleLease:
        _holding(ctx)  # suspended meanwhile: the handler is being unwound
        raise
    if told:
        await durable.host.spending.heard([(charge, await said) for charge, said in told])


def encoded(value: Any, type: str) -> tuple[bytes, str | None]:
    """A frame's bytes, and what they are: None for JSON. InvalidArgument for a value or a type that cannot be one."""
    checks.text("" if type is None else type, "type", limits.NAME_BYTES)  # pyright: ignore[reportUnnecessaryComparison]
    if type in OURS:
        raise InvalidArgument(f"frames of type {type!r} are the engine's own: use another word")
    if isinstance(value, bytes | bytearray | memoryview):
        raw = bytes(cast("bytes", value))
        checks.size(raw, "the frame", limits.FRAME_BYTES)
        return raw, BYTES
    return payloads.encode(value, "the frame", limits.FRAME_BYTES), None


def _holding(ctx: Context) -> Durable:
    """What the handler has in common, while the job is its own."""
    durable = ctx.durable
    if durable.gone:
        raise Suspended("the job is suspended; the handler runs again when it goes on")
    if durable.held.why == "lost":
        raise StaleLease("the job is no longer this handler's: stop, report nothing", code="stale_lease")
    return durable


# ---- the summary -----------------------------------------------------------------------------------------


async def summary(ctx: Context, patch: Mapping[str, Any]) -> dict[str, Any]:
    """Apply a JSON merge patch to the job's summary; see `ffsdk.context.Context.summary`."""
    if not isinstance(patch, Mapping):
        raise InvalidArgument(f"the patch is {checks.shown(patch)}: use a mapping of fields; None removes one")
    plain: Any = _plain.decode(payloads.encode(patch, "the patch", limits.SUMMARY_BYTES))
    durable, execution_id = _holding(ctx), ExecutionId(ctx.execution_id)
    backend = durable.host.backend
    while True:
        found = (await backend.call(ReadSummaryArgs(execution_id=execution_id))).summary
        merged: dict[str, Any] = merge_patch(_document(found), plain)
        raw = payloads.encode(merged, "the summary", limits.SUMMARY_BYTES)
        version = found.version if found is not None else 0
        try:
            await backend.call(WriteSummaryArgs(
                execution_id=execution_id, fence=durable.fence, document_json=raw, expected_version=version,
            ))  # fmt: skip
        except Conflict:
            continue  # another call of this handler was first; of those that run together, one gets through each time
        except StaleLease:
            _holding(ctx)
            raise
        return merged


async def read_summary(backend: Backend, execution_id: ExecutionId) -> dict[str, Any]:
    """The document; empty when nothing was written yet. Raises NotFound."""
    return _document((await backend.call(ReadSummaryArgs(execution_id=execution_id))).summary)


def _document(found: SummaryDocument | None) -> dict[str, Any]:
    document: dict[str, Any] = _plain.decode(found.document_json) if found is not None else {}
    return document


_plain: msgspec.json.Decoder[Any] = msgspec.json.Decoder()


# ---- reading -------------------------------------------------------------------------------------------


def parse_cursor(text: str | None) -> tuple[int | None, str]:
    """The attempt a reader is at (None: none yet) and the place in the store's words."""
    if text is None:
        return None, "-"
    match = _CURSOR.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        raise InvalidArgument(
            f"cursor {checks.shown(text, 80)}: pass the .cursor of a frame, an entry id, 'start' or 'end'"
        )
    attempt, place = match.groups()
    return None if attempt is None else int(attempt), StreamCursor.parse(place).to_wire()


async def follow(client: Client, execution_id: ExecutionId, after: str | None) -> AsyncGenerator[Frame, None]:
    """The frames of a job behind a cursor, as they come, until the job has ended."""
    attempt, place = parse_cursor(after)
    tails = client.tails  # the client may be closed before this is
    ear, ended, may_wait = await tails.listen(execution_id), None, True
    try:
        while True:
            ear.rung.clear()
            try:
                page = await tails.read(execution_id, place)
            except Unavailable as away:
                if away.code == "closed":
                    raise
                await ear.rung.wait()
                continue
            if attempt is None and page.at_attempt >= 0:
                attempt = page.at_attempt
            gone = {gap.before: gap.dropped for gap in page.gaps}
            for row in page.frames:
                if attempt is not None and row.attempt_index > attempt:
                    yield _superseded(row.attempt_index, place)
                if row.id in gone:
                    yield _of_ours(GAP, gone[row.id], row.attempt_index, place)
                attempt, place = row.attempt_index, row.id
                yield _frame(row)
            place = ear.read_to = page.cursor
            if page.more:
                continue
            if attempt is not None and page.attempt_index > attempt:
                attempt = page.attempt_index
                yield _superseded(attempt, place)
            if page.state:
                return
            if ended is None and may_wait:
                # A job that has not emitted anything has no reader to ring: its end is heard of as by any who waits.
                ended = asyncio.ensure_future(client.waiters.wait(execution_id))
                ended.add_done_callback(ear.ring)
            if ended is not None and ended.done():
                failed = ended.exception()
                if isinstance(failed, Incompatible):
                    may_wait = False  # waiting registers with the store, and this user may only read: the poll looks
                elif failed is not None:
                    raise failed
                ended = None  # if not that: it has ended and was replayed since
            await ear.rung.wait()
    finally:
        if ended is not None:
            ended.cancel()
        await tails.leave(ear)


def _superseded(attempt: int, place: str) -> Frame:
    return _of_ours(SUPERSEDED, attempt, attempt, place)


def _of_ours(type: str, value: int, attempt: int, place: str) -> Frame:
    cursor = f"{attempt}:{'0-0' if place == '-' else place}"
    return Frame(type=type, value=value, cursor=cursor, attempt=attempt, mode="append", at=None)


def _frame(row: TailFrame) -> Frame:
    value: Any = row.payload
    if row.encoding != BYTES:
        try:
            value = _plain.decode(row.payload)
        except (msgspec.DecodeError, RecursionError):
            pass  # a frame of another hand, which said nothing of its encoding: as it is
    return Frame(
        type=row.frame_type, value=value, cursor=f"{row.attempt_index}:{row.id}", attempt=row.attempt_index,
        mode="best_effort" if row.best_effort else "append", at=from_ms(int(row.id.partition("-")[0])),
    )  # fmt: skip
