"""Lanes: named queues; one exists from its first execution on."""

from __future__ import annotations

from enum import StrEnum

from ffcore.args import Outcome
from ffcore.ids import LaneId


class LaneState(StrEnum):
    ACTIVE = "active"
    PAUSED = "paused"
    """Takes new work, hands none out."""
    DRAINING = "draining"
    """Hands out, takes none."""
    DISABLED = "disabled"


class ListLanesPage(Outcome, tag="lanes"):
    """Sorted by name; `next_cursor` is the last of a page that has a successor, None on the final one."""

    lanes: list[LaneId]
    next_cursor: LaneId | None = None
