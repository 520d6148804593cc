"""What a node of a flow gets from those before it: as its payload, where it was added without one, and on asking.

The rule: results are joined as the JSON they are, and decoded once, by the handler's own annotation. Where there is one
result, the annotation also decides whether it comes alone or as a list of one: lists of upstreams are made by loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from ffcore import limits
from ffcore.errors import InvalidArgument
from ffcore.states import STATES, PublicState
from ffsdk import payload as payloads
from ffsdk.slots import call_until_answered

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.contracts.batch import Inputs
    from ffcore.contracts.dependency import Upstream as Row
    from ffsdk.context import Context
    from ffsdk.held import Held
    from ffsdk.task import Task

JSON: Final = frozenset({"", "json", "application/json"})
"""Encodings of results that stand in a list as they are; of any other, the list has the bytes in base64."""
NULL: Final = b"null"
_any: Final = msgspec.json.Decoder()


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """A job that this one was waiting for."""

    id: str
    task: str
    key: str | None
    """Its name within the flow, where it has one."""
    state: PublicState
    """How it ended: completed, failed, cancelled, expired, skipped; something else where it still runs, as those may
    that were not waited for."""
    value: Any
    """What it returned, as builtins; None where it did not complete."""


class Taken(msgspec.Struct, frozen=True):
    """The inputs of a job, read: its payload in the making."""

    shape: str
    items: list[bytes]
    """JSON of each."""
    raw: bytes | None = None
    """The only one, where it is not JSON."""


def taken(inputs: Inputs) -> Taken:
    """What came with the claim."""
    return _taken(
        inputs.shape, [(item.encoding, item.result) if item is not None else ("", None) for item in inputs.items]
    )


async def read(backend: Backend, held: Held) -> Taken:
    """What the claim's answer had no room for, page by page: the results of those that made the job ready, in order."""
    inputs = held.job.inputs
    assert inputs is not None
    rows = [row for row in await _rows(backend, held) if row.kind != "c"]
    # Some did not count: then only those that completed are inputs. Where all were awaited each has its place.
    all_counted = all(row.edge_state == "S" for row in rows)
    return _taken(inputs.shape, [
        (row.encoding, row.result if row.has_result else None)
        for row in rows
        if row.edge_state == "S" and (all_counted or row.state == "completed" or row.has_result)
    ])  # fmt: skip


def fit(task: Task[Any, Any], inputs: Taken) -> tuple[bytes, Any]:
    """The payload as JSON, and as the task's handler gets it. Raises InvalidArgument, code `invalid_payload`."""
    if not task.takes_payload:
        return NULL, None  # it comes after others, and wants nothing of them
    alone = inputs.items[0] if inputs.items else NULL
    together = b"[" + b",".join(inputs.items) + b"]"
    first, second = (alone, together) if inputs.shape == "1" else (together, alone)
    if inputs.raw is not None and inputs.shape == "1" and task.payload_type is Any:
        return first, inputs.raw
    try:
        return first, task.decode(first)
    except InvalidArgument:
        if len(inputs.items) != 1:
            raise
        try:
            return second, task.decode(second)
        except InvalidArgument:
            pass
        raise


def _taken(shape: str, found: Sequence[tuple[str, bytes | None]]) -> Taken:
    items = [NULL if not raw else raw if encoding in JSON else msgspec.json.encode(raw) for encoding, raw in found]
    only = found[0] if len(found) == 1 else ("", None)
    return Taken(shape, items, only[1] if only[0] not in JSON else None)


async def _rows(backend: Backend, held: Held) -> list[Row]:
    from ffcore.contracts.dependency import ReadUpstreamsArgs

    found: list[Row] = []
    after = 0
    while True:
        args = ReadUpstreamsArgs(execution_id=held.job.execution_id, after=after, limit=limits.PAGE_MAX_N)
        page = await call_until_answered(backend, args)
        found += page.upstreams
        after = page.next
        if not after:
            return found


async def upstreams(ctx: Context) -> list[Upstream]:
    """See `ffsdk.context.Context.upstreams`."""
    durable = ctx.durable
    durable.check()
    if durable.held.job.flow_id is None:
        return []
    return [
        Upstream(
            id=row.execution_id, task=row.task, key=row.label or None, state=_state(row.state),
            value=_value(row) if row.has_result else None,
        )
        for row in await _rows(durable.host.backend, durable.held)
        if row.kind != "c"
    ]  # fmt: skip


def _value(row: Row) -> Any:
    if row.encoding not in JSON:
        return row.result
    return payloads.decode(_any, row.result, f"the result of {row.execution_id}") if row.result else None


def _state(stored: str) -> PublicState:
    """What people call the state; of one that is blocked, that it waits for others, which is what holds a member."""
    found = STATES[stored].public if stored in STATES else None
    return PublicState.WAITING_CHILDREN if found is None else found
