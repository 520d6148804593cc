"""What schedules must answer: which instant is next, one run for each that is fired, and what comes to none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from ffcore import limits
from tests.simulation.between import Rules
from tests.simulation.model import Expected, No, Say, policy_of
from tests.simulation.records import Partition


class Schedule:
    def __init__(self, id: str, now: int) -> None:
        self.id, self.uuid, self.created = id, id[id.index("}") + 2 :], now
        self.state = "active"
        self.due = 0
        """The instant that is next."""
        self.at: int | None = None
        """When that is acted on."""
        self.revision = self.fires = self.refused = self.last = 0
        self.refusal = self.last_id = self.digest = self.spec = ""
        self.ended_at = 0
        self.what: Any = None
        """The call that said what it submits."""
        self.fired: set[int] = set()
        """Instants that had a run, by firing."""


class ScheduleRules(Rules):
    def _schedule(self, p: Partition, id: str) -> Schedule | None:
        found: Schedule | None = p.schedules.get(id[id.index("}") + 2 :])
        return found

    def _place(self, p: Partition, s: Schedule, at: int) -> None:
        s.at = at if s.state == "active" else None
        if s.at is not None:
            self.soon(p, s.at)
        if s.state == "ended":
            self.reap_later(p, f"schedule:{s.uuid}", p.now + limits.RETENTION_AGE_MS)

    def call_put_schedule(self, p: Partition, a: Any) -> Expected:
        s = self._schedule(p, a.schedule_id)
        if s is not None and s.digest == a.digest:
            return Say("schedule_put", {"what": "unchanged", "revision": s.revision, "state": s.state})
        if (s.revision if s else 0) != a.expected_revision:
            return No("revision_conflict")
        keep = s is not None and a.keep_due
        was = s
        if s is None:
            s = p.schedules[a.schedule_id[a.schedule_id.index("}") + 2 :]] = Schedule(a.schedule_id, p.now)
            s.state = "paused" if a.paused else "active"
        if not keep:
            if a.due_ms == 0:
                s.state = "ended"
            elif s.state == "ended":
                s.state = "active"
            s.due = a.due_ms
        s.spec, s.digest, s.what, s.refused, s.refusal = a.spec, a.digest, a, 0, ""
        s.revision += 1
        if s.state != "ended":
            s.ended_at = 0
        elif not s.ended_at:
            s.ended_at = p.now
        if not keep or s.state != "active":
            self._place(p, s, a.at_ms)
        word = "created" if was is None else "updated"
        return Say("schedule_put", {"what": word, "revision": s.revision, "state": s.state})

    def call_pause_schedule(self, p: Partition, a: Any) -> Expected:
        s = self._schedule(p, a.schedule_id)
        if s is None:
            return No("schedule_not_found")
        changed = s.state == "active"
        if changed:
            s.state, s.revision = "paused", s.revision + 1
            self._place(p, s, 0)
        return Say("schedule_changed", {"changed": changed, "state": s.state, "revision": s.revision})

    def call_resume_schedule(self, p: Partition, a: Any) -> Expected:
        s = self._schedule(p, a.schedule_id)
        if s is None:
            return No("schedule_not_found")
        changed = s.state == "paused"
        if changed:
            if s.revision != a.expected_revision:
                return No("revision_conflict")
            s.state, s.due, s.revision = "active" if a.due_ms else "ended", a.due_ms, s.revision + 1
            s.ended_at = 0 if a.due_ms else p.now
            self._place(p, s, a.at_ms)
        return Say("schedule_changed", {"changed": changed, "state": s.state, "revision": s.revision})

    def call_remove_schedule(self, p: Partition, a: Any) -> Expected:
        s = p.schedules.pop(a.schedule_id[a.schedule_id.index("}") + 2 :], None)
        if s is not None:
            p.reap.pop(f"schedule:{s.uuid}", None)
        return Say("schedule_removed", {"was_there": s is not None})

    def reap_schedule(self, p: Partition, uuid: str, limit: int) -> int:
        s = p.schedules.get(uuid)
        if s is not None and s.state == "ended":
            if s.ended_at + limits.RETENTION_AGE_MS <= p.now:
                del p.schedules[uuid]
            else:
                self.reap_later(p, f"schedule:{uuid}", s.ended_at + limits.RETENTION_AGE_MS)
        return 1

    # ---- runs

    def _run(self, p: Partition, s: Schedule, id: str, label: str) -> tuple[str, str]:
        if id[id.index("}") + 2 :] in p.records:
            return "duplicate", ""
        what = s.what
        if self.is_closed(p, what.lane_id):
            return "error", "lane_closed"
        deadline = None if what.deadline_ms is None else p.now + what.deadline_ms
        a = SimpleNamespace(
            lane_id=what.lane_id, execution_kind=what.execution_kind, priority=what.priority, version=what.version,
            namespace=what.namespace, execution_deadline_at=deadline, delay_until=None,
        )  # fmt: skip
        row = SimpleNamespace(
            execution_id=id, digest=s.digest.encode(), fairness_key=what.fairness_key, admission=what.admission
        )
        tags = {"schedule.name": what.name, "schedule.due": label}
        self.create_member(p, a, row, what.payload, policy_of(what.policy), tags)
        return "created", ""

    def call_fire_schedules(self, p: Partition, a: Any) -> Expected:
        items = [self._fire(p, row) for row in a.items]
        ats = [s.at for s in p.schedules.values() if s.at is not None]
        return Say("fired_many", {"items": items, "next_at_ms": min(ats, default=0)})

    def _fire(self, p: Partition, row: Any) -> tuple[str, str]:
        s = self._schedule(p, row.schedule_id)
        if s is None:
            return "gone", ""
        if s.state != "active" or s.due != row.due_ms:
            return "moved", ""
        if row.next_ms == row.due_ms:
            s.at = row.next_at_ms
            return "put_off", ""
        word, code = "passed", ""
        if row.execution_id is not None:
            word, code = self._run(p, s, row.execution_id, row.label)
        if word == "error":
            s.refused, s.refusal = s.refused + 1, code
            s.at = p.now + min(60_000, limits.FULL_RETRY_MS * 2 ** min(s.refused - 1, 10))
            return word, code
        if word == "created":
            assert row.instant_ms not in s.fired, f"{s.id} has fired {row.instant_ms} before"
            s.fired.add(row.instant_ms)
        if row.execution_id is not None:
            s.fires, s.last = s.fires + 1, row.instant_ms
            s.last_id = row.execution_id
        s.due, s.refused, s.refusal = row.next_ms, 0, ""
        s.at = row.next_at_ms
        if row.next_ms == 0:
            s.state, s.ended_at, s.at = "ended", p.now, None
            self.reap_later(p, f"schedule:{s.uuid}", p.now + limits.RETENTION_AGE_MS)
        return "fired" if word == "created" else word, code

    def call_run_schedule(self, p: Partition, a: Any) -> Expected:
        s = self._schedule(p, a.schedule_id)
        if s is None:
            return No("schedule_not_found")
        return Say("schedule_run", {"items": [self._run(p, s, row.execution_id, row.label) for row in a.items]})

    # ---- what is due, and looking at it

    def due_schedules(self, p: Partition) -> list[tuple[str, int, str]]:
        due = [s for s in p.schedules.values() if s.at is not None and s.at <= p.now]
        due.sort(key=lambda s: (s.at, s.uuid))
        return [(s.id, s.due, s.spec) for s in due]

    @staticmethod
    def _row(s: Schedule) -> dict[str, Any]:
        return {
            "schedule_id": s.id, "state": s.state, "spec": s.spec, "due_ms": s.due, "at_ms": s.at or 0,
            "fires": s.fires, "last_ms": s.last, "last_execution_id": s.last_id, "created_at": s.created,
            "revision": s.revision, "refused": s.refused, "refusal": s.refusal,
        }  # fmt: skip

    def call_read_schedule(self, p: Partition, a: Any) -> Expected:
        s = self._schedule(p, a.schedule_id)
        return No("schedule_not_found") if s is None else Say("schedule", {"row": self._row(s), "now_ms": p.now})

    def call_list_schedules(self, p: Partition, a: Any) -> Expected:
        rows = [self._row(p.schedules[uuid]) for uuid in sorted(p.schedules)]
        return Say("schedules_page", {"schedules": rows[: a.limit]})
