"""Unique keys: one execution holds a key, and nobody else is created with it meanwhile. This engine's own.

A key is taken before the create, by the id the execution is going to have. What ends the hold follows from the scope:
the start (`queued`) or the end (`active`) of the execution, the end of a window, or nothing (`forever`). A key whose
execution was never created is free again within two minutes.
"""

from __future__ import annotations

from typing import Final

from ffcore import checks
from ffcore.args import Args, Outcome
from ffcore.errors import InvalidArgument
from ffcore.ids import ExecutionId, TimestampMs

SCOPES: Final = ("queued", "active", "window", "forever")


class UniqueTaken(Outcome, tag="taken"):
    fresh: bool
    """False: this execution held it already, by an earlier call. Who took it anew and then finds that the execution
    existed before gives it back (`DropUniqueArgs`)."""
    until_ms: TimestampMs
    """Of scope `window`: when it is free again. 0: no time frees it."""


class UniqueHeld(Outcome, tag="held"):
    """By another execution; nothing has changed."""

    execution_id: ExecutionId
    scope: str
    until_ms: TimestampMs


class TakeUniqueArgs(Args[UniqueTaken | UniqueHeld]):
    unique_id: str
    """``{q:K}:<uuid>``, made from the key (`ffcore.ids.keyed_id`)."""
    execution_id: ExecutionId
    scope: str
    window_ms: int = 0
    """For scope `window`, from the first time it is taken."""
    instead_of: ExecutionId | None = None
    """Take it over from this holder, which the caller has cancelled."""

    def __post_init__(self) -> None:
        if self.scope not in SCOPES:
            raise InvalidArgument(f"scope is {checks.shown(self.scope)}: use one of {', '.join(SCOPES)}")
        checks.span_ms(self.window_ms, "window_ms")


class UniqueDropped(Outcome, tag="dropped"):
    pass


class UniqueNotHeld(Outcome, tag="not_held"):
    """By this execution; nothing has changed."""


class DropUniqueArgs(Args[UniqueDropped | UniqueNotHeld]):
    """Give a key back, whatever its scope."""

    unique_id: str
    execution_id: ExecutionId


class UniqueFree(Outcome, tag="free"):
    pass


class ReadUniqueArgs(Args[UniqueHeld | UniqueFree]):
    unique_id: str
