"""What the rules of one chapter ask of those of another; each is written in the file that is named."""

from __future__ import annotations

from typing import Any

from tests.simulation.durable import Signal, Waitpoint
from tests.simulation.model import Base
from tests.simulation.records import Execution, Partition


class Rules(Base):
    def heard(self, x: Execution) -> None:
        """The holder has made itself heard: a lease that expires after this was its."""
        x.heard = x.epoch
        self.touched[x.id] = x

    # rules_worker.py
    def check(self, p: Partition, x: Execution | None, fence: str, operation: str | None = None) -> str | None:
        raise NotImplementedError

    # rules_queue.py
    def complete_item(self, p: Partition, row: Any) -> tuple[str, str]:
        raise NotImplementedError

    def held_by(self, p: Partition, x: Execution) -> bool:
        raise NotImplementedError

    # rules_steps.py
    def put_entry(
        self, p: Partition, x: Execution, key: str, kind: str, name: str, status: str, value: bytes, version: int
    ) -> Any:  # fmt: skip
        raise NotImplementedError

    def head(self, x: Execution) -> dict[str, Any] | None:
        raise NotImplementedError

    def begin_anew(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    def reopen(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    # rules_suspension.py
    def weigh(self, p: Partition, x: Execution, signal: Signal) -> tuple[str, bool]:
        raise NotImplementedError

    # rules_signals.py
    def unopenable(self, p: Partition, x: Execution, rows: list[Any]) -> str | None:
        raise NotImplementedError

    def open_waitpoint(self, p: Partition, x: Execution, row: Any, expires_in_ms: int | None) -> None:
        raise NotImplementedError

    def unusable(self, p: Partition, x: Execution, waitpoint_id: str) -> str | None:
        raise NotImplementedError

    def close_waitpoint(self, p: Partition, x: Execution, waitpoint: Waitpoint, reason: str) -> None:
        raise NotImplementedError

    def reopen_waitpoints(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    # rules_streams.py
    def append_frames(self, p: Partition, x: Execution, rows: list[Any]) -> None:
        raise NotImplementedError
