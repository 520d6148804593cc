"""Mail between partitions: what one owes to another, applied once however often it comes, and the wakes that answer it.

The model keeps no chain: a row is known if it was applied before. What a handler of a row does stands with its noun
(`rules_admission.py`, `rules_budgets.py`, `rules_quotas.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.simulation.between import Rules
from tests.simulation.model import Expected, No, Say
from tests.simulation.records import Partition

RETRY_MS = 1_000
KINDS = frozenset({"settle", "spend", "free", "verify", "runs", "verified", "unhalt"})


class MailRules(Rules):
    # ---- what is owed

    def owe(self, p: Partition, target: str, kind: str, body: str) -> None:
        """Numbers rise for each target, and are instants where that is higher."""
        before = p.posted.get(target, 0)
        number = max(before + 1, p.now)
        p.posted[target] = number
        row = f"{target}/{before}/{number}"
        p.outbox[row] = (target, kind, body)
        self.timer(p, "outbox", row, p.now + RETRY_MS)

    def wake(self, p: Partition, target: str, kind: str, body: str) -> None:
        """Told with the answer of this call, or never."""
        p.owed.append(("", target, kind, body))

    def due_outbox(self, p: Partition, row: str) -> None:
        kept = p.outbox.get(row)
        if kept is not None:
            p.owed.append((row, *kept))
            self.timer(p, "outbox", row, p.now + RETRY_MS if p.ticking else p.now)

    def call_read_outbox(self, p: Partition, a: Any) -> Expected:
        rows = [(row, *letter) for row, letter in p.outbox.items()]
        return Say("outbox", {}, lambda got: self._read(rows, got.rows, a.limit))

    @staticmethod
    def _read(owed: list[tuple[str, str, str, str]], rows: list[Any], limit: int) -> str | None:
        """Which of many it answers is left to the store; that they are owed is not."""
        told = [(row.row, row.target, row.kind, row.body) for row in rows]
        if len(told) != min(limit, len(owed)) or len(set(told)) < len(told) or not set(told) <= set(owed):
            return f"answers rows {told}, owed are {owed}"
        return None

    def call_ack_outbox(self, p: Partition, a: Any) -> Expected:
        gone = [row.row for row in a.items if p.outbox.pop(row.row, None) is not None]
        for row in a.items:
            self.timer(p, "outbox", row.row, None)
        return Say("acknowledged", {"count": len(gone)})

    # ---- what comes

    def call_deliver(self, p: Partition, a: Any) -> Expected:
        if any(row.row and not row.row.startswith(f"{p.key}/") for row in a.items):
            return No("invalid_input")
        known, left = 0, []
        p.owed = []
        for row in a.items:
            if row.row and (a.source, row.row) in p.applied:
                known += 1
            elif row.kind not in KINDS:
                left += [(row.row,)] if row.row else []
            else:
                handler: Callable[[Partition, list[str], str], None] = getattr(self, f"mail_{row.kind}")
                handler(p, row.body.split(" "), a.source)
                if row.row:
                    p.applied.add((a.source, row.row))
        self.wake_all(p)
        return Say("delivered", {"known": known, "left": left}, lambda got: self.heard_from(p, got.wakes))
