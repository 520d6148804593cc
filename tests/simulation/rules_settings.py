"""What changing and applying settings must answer: one revision for the whole store, copied to each partition."""

from __future__ import annotations

from typing import Any

from ffcore import limits
from tests.simulation.between import Rules
from tests.simulation.model import Expected, No, Say, digest_of
from tests.simulation.records import Lane, Partition
from tests.simulation.rules_queue import unpacked

DEFAULTS: dict[str, dict[str, str]] = {
    "lane": {"aged_s": "0", "age_ms": str(limits.RETENTION_AGE_MS), "bytes": "0", "count": "0", "max_bytes": "0",
             "max_count": "0", "quota": "", "state": "active"},
    "weights": {},
    "store": {"gate_bytes": "0", "gate_pct": str(limits.GATE_PCT)},
}
PARTITIONS_N = 2
"""Bounds of a whole store are shared by its partitions, rounded up."""


class SettingsRules(Rules):
    def call_put_settings(self, p: Partition, a: Any) -> Expected:
        kind = DEFAULTS[a.name.partition(":")[0]]
        known = p.settings.get(a.name)
        values = {**(known[2] if known else kind), **unpacked(a.changes)}
        if a.name.startswith("weights:"):
            values = {key: weight for key, weight in values.items() if weight not in ("", "1")}
        if known and known[2] == values:
            return Say("settings", {"name": a.name, "revision": known[0], "changed_at": known[1], "values": values,
                                    "changed": False})  # fmt: skip
        if a.expected_revision is not None and a.expected_revision != (known[0] if known else 0):
            return No("revision_conflict")
        p.reached += 1
        p.settings[a.name] = (p.reached, p.now, values)
        return Say("settings", {"name": a.name, "revision": p.reached, "changed_at": p.now, "values": values,
                                "changed": True})  # fmt: skip

    def call_list_settings(self, p: Partition, a: Any) -> Expected:
        rows = [(name, *row) for name, row in p.settings.items() if a.name in (None, name)]
        rows = [row for row in rows if row[1] > a.after_revision]
        rows.sort(key=lambda row: row[1])
        return Say("settings_page", {"records": rows[: a.limit], "revision": p.reached})

    def call_apply_settings(self, p: Partition, a: Any) -> Expected:
        changed = False
        if a.revision > p.reached:
            kind, _, name = a.name.partition(":")
            values = {**DEFAULTS[kind], **unpacked(a.values)}
            if kind == "lane":
                changed = self._apply_lane(p, a.revision, name, values)
            elif kind == "weights":
                changed = self._apply_weights(p, a.revision, name, values)
            else:
                changed, p.gate_revision = a.revision > p.gate_revision, max(a.revision, p.gate_revision)
            if a.since <= p.reached:
                p.reached = a.revision
        return Say("settings_applied", {"changed": changed, "reached": p.reached})

    def _apply_lane(self, p: Partition, revision: int, name: str, values: dict[str, str]) -> bool:
        lane = p.lanes.get(name)
        if lane is None:
            if values == DEFAULTS["lane"]:
                return False
            lane = self.lane(p, name)
        if revision <= lane.applied:
            return False
        lane.applied = revision
        if lane.state != values["state"]:
            lane.state = values["state"]
            self.note(p, "o")
            if lane.starts:
                self.ring(p, lane, "-", limits.HEADS_N)
        if (lane.quota or "") != values["quota"]:
            lane.quota = values["quota"] or None
            self.ring(p, lane, "-", limits.HEADS_N)
        self._order(lane, int(values["aged_s"]) or None)
        share = [-(-int(values[what]) // PARTITIONS_N) for what in ("count", "bytes")]
        retention = (int(values["age_ms"]), *share)
        if retention != lane.retention:
            lane.retention = retention  # type: ignore[assignment]
            if retention[2] > 0 and lane.bytes is None:
                lane.bytes = 0
            p.reap[f"lane:{lane.no}"] = p.now
        return True

    def _apply_weights(self, p: Partition, revision: int, name: str, values: dict[str, str]) -> bool:
        if name not in p.lanes and not values:
            return False
        lane = self.lane(p, name)
        if revision <= lane.weighed:
            return False
        lane.weighed = revision
        lane.weights = {digest_of(key): float(weight) for key, weight in values.items()}
        return True

    @staticmethod
    def _order(lane: Lane, aged: int | None) -> None:
        """Runs set an age before the lane's first job and leave it: ordering anew what waits is for its own tests."""
        if aged != lane.aged:
            assert not lane.ready, "a simulation ages empty lanes only"
            lane.aged = aged
