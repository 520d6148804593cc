"""The end of a run with admission: an honest post office, and whether anything is left reserved, taken or held.

Nothing leaks beyond its lease: when all executions have ended, all mail was delivered and whoever is past its time was
asked after, budgets have no reservation, quotas no place, and no key is held for the start or the life of an execution.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ffcore.contracts as c
from ffcore import limits
from tests.simulation.violation import Violation
from tests.simulation.world import BP, FP, QP

if TYPE_CHECKING:
    from tests.simulation.run import Simulation

MAIL = [*FP, BP, QP]
ROUNDS_N = 6


def post(sim: Simulation) -> None:
    """Bring everything that is owed, and the wakes that answer it."""
    for source in MAIL:
        for _ in range(20):
            rows = sim._ask(c.ReadOutboxArgs(partition=source, limit=200)).rows
            if not rows:
                break
            _bring(sim, source, rows)
            sim._ask(c.AckOutboxArgs(partition=source, items=[c.OutboxRef(row.row) for row in rows]))
        else:
            raise Violation("liveness", f"what {source} owes does not become less")


def _bring(sim: Simulation, source: Any, rows: list[Any], depth: int = 0) -> None:
    bags: dict[Any, list[c.Letter]] = {}
    for row in rows:
        bags.setdefault(row.target, []).append(c.Letter(getattr(row, "row", ""), row.kind, row.body))
    for target, letters in bags.items():
        wakes = sim._ask(c.DeliverArgs(partition=target, source=source, items=letters)).wakes
        if wakes and depth < ROUNDS_N:
            _bring(sim, target, wakes, depth + 1)


def tick(sim: Simulation) -> None:
    answer = sim._ask(c.TickArgs(partitions=[BP, QP], ticker="drain", force=True, limit=800))
    for row in answer.partitions:
        _bring(sim, row.partition, [one for one in row.owed if not one.row])


def quiet(sim: Simulation) -> None:
    """No schedule makes anything any more."""
    for p in FP:
        for row in sim._ask(c.ListSchedulesArgs(partition=p)).schedules:
            sim._ask(c.RemoveScheduleArgs(schedule_id=row.schedule_id))


def no_leaks(sim: Simulation) -> None:
    """After twice the time in which whoever is silent is asked after."""
    for _ in range(3):
        sim.scene.ms += limits.RESERVATION_MS + 1_000
        tick(sim)
        post(sim)
    left: list[str] = []
    for b in sim._ask(c.ListBudgetsArgs(partition=BP)).budgets:
        if b.reservations or any(b.reserved.values()):
            left.append(f"{b.budget_id} has {b.reservations} reservations, {b.reserved}")
    model = sim.world.model
    for q in model.partitions[QP].quotas.values():
        for key in q.places:
            read = sim._ask(c.ReadQuotaArgs(quota_policy_id=q.id, key=key))  # type: ignore[arg-type]
            if read.active:
                left.append(f"{q.id} {key} has {read.active} places taken")
    for uuid in model.partitions[QP].uniques:
        read = sim._ask(c.ReadUniqueArgs(unique_id=f"{QP}:{uuid}"))
        if isinstance(read, c.UniqueHeld) and read.scope in ("queued", "active"):
            left.append(f"key {uuid} is held by {read.execution_id}, for as long as it is {read.scope}")
    if left:
        raise Violation("leak", "; ".join(left))
