"""Firing: what whoever ticked a partition does about the schedules that tick answered as due.

The rule: nothing here remembers anything. A run is made by the store, only while the instant it is for is still the one
that is next, so two that fire at once, or one that dies between the tick and this, make no run twice and leave none
out.
"""

from __future__ import annotations

import logging
from typing import Final, NamedTuple

from ffcore import limits
from ffcore.backend import Backend
from ffcore.contracts.schedule import FireSchedulesArgs, Firing
from ffcore.contracts.upkeep import TickedPartition
from ffcore.errors import StoreFull
from ffcore.schedules import firings

log = logging.getLogger("flowfabric.ticker")

_NOT_OURS: Final = ("moved", "gone")


class Fired(NamedTuple):
    done: int
    """Schedules that moved on, or were put off."""
    next_at_ms: int | None
    """When the next one of the partition is due, by the store's clock; None: unknown, or never."""


async def fire(backend: Backend, ticked: TickedPartition) -> Fired:
    """Fire the schedules that are due in a partition, in one call. What the store refuses stays due."""
    most = max(1, limits.FIRES_N // len(ticked.schedules))
    rows: list[Firing] = []
    for one in ticked.schedules:
        made = firings(one.schedule_id, one.spec, one.due_ms, ticked.now_ms, most)
        if made[0].label == "-":
            log.warning("schedule %s cannot be read by this program and stays due: %s", one.schedule_id, one.spec)
        rows += made
    try:
        answer = await backend.call(FireSchedulesArgs(partition=ticked.partition, items=rows))
    except StoreFull as full:
        log.warning("%d schedules of %s stay due: %s", len(ticked.schedules), ticked.partition, full)
        return Fired(0, None)
    for row, item in zip(rows, answer.items, strict=True):
        if item.state == "error":
            log.warning("schedule %s stays due at %s: %s", row.schedule_id, row.label, item.detail)
    done = sum(item.state not in _NOT_OURS for item in answer.items)
    return Fired(done, answer.next_at_ms or None)
