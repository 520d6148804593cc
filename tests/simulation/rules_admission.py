"""What executions that must be admitted do to queues: each admission set waits in a queue of its own, a set that was
refused is halted, a release lets some of it ask again, and whatever ends a lease is owed to those who admitted it."""

from __future__ import annotations

import hashlib
from typing import Any

from ffcore import limits
from tests.simulation.ledger import Halt, Line, lines_of
from tests.simulation.model import Expected, No, Say
from tests.simulation.records import QUEUED, Execution, Lane, Partition
from tests.simulation.rules_mail import MailRules

TRIAL_N, TRIAL_MS = 16, 100
LAST = (1 << 20, 0)
"""Behind every place."""
Place = tuple[int, int]


def set_of(lines: list[Line]) -> str | None:
    """The admission set: budgets and quotas, whatever is estimated and whatever is done about a refusal."""
    some = [line for line in lines if line.kind in "bq"]
    parts = sorted(f"b {line.id}" if line.kind == "b" else f"q {line.id} {line.key}" for line in some)
    return hashlib.sha1("\n".join(parts).encode()).hexdigest()[:12] if parts else None


def lane_set(lane: Lane) -> str:
    """What all jobs of a lane with a quota are halted under."""
    assert lane.quota is not None
    return f"lane:{lane.quota[lane.quota.index('}') + 2 :]}"


class AdmissionRules(MailRules):
    # ---- creation

    def admit(self, x: Execution, text: str | None) -> None:
        lines = lines_of(text)
        for budget_id in x.policy.budget_ids or ():
            if not any(line.id == budget_id for line in lines):
                lines.append(Line(f"b {budget_id} hold -"))
        x.lines, x.adm = lines, set_of(lines)
        scopes = [line.rest[0] for line in lines if line.kind == "u"]
        x.unique = scopes[0][0] if scopes and scopes[0] in ("queued", "active") else None

    def asked(self, x: Execution) -> str | None:
        """What a claim tells of it."""
        if x.adm is None and x.lane_quota is None:
            return None
        out = [line.text for line in x.lines] if x.adm else []
        if x.lane_quota:
            out.append(f"q {x.lane_quota} hold - lane")
        return "\n".join(out)

    # ---- rings: sets with ready jobs, by the place of their first or one before it

    def ring_of(self, p: Partition, lane: Lane, cap: str, shut: bool = False) -> dict[str, Place]:
        return p.rings.setdefault((lane.no, cap, shut), {})

    def enter_class(self, p: Partition, x: Execution) -> bool:
        """It has come into its queue; whether claims look there."""
        assert x.adm is not None
        shut = x.adm in self.ring_of(p, x.lane, x.cap, True)
        p.ring_pending.append((x.lane, x.cap, shut, x.adm, x.place[:2]))
        return not shut

    def write_rings(self, p: Partition) -> None:
        for lane, cap, shut, adm, place in p.ring_pending:
            ring = self.ring_of(p, lane, cap, shut)
            ring[adm] = min(place, ring.get(adm, place))
        p.ring_pending.clear()

    def is_halted(self, p: Partition, adm: str) -> bool:
        halt = p.halts.get(adm)
        return halt is not None and halt.until > p.now and halt.allow <= 0

    def _first(self, lane: Lane, cap: str, adm: str, taken: set[str]) -> Execution | None:
        queue = [x for x in lane.ready.values() if (x.cap, x.adm) == (cap, adm) and x.uuid not in taken]
        return min(queue, key=lambda x: x.place, default=None)

    def ring_head(self, p: Partition, lane: Lane, cap: str, taken: set[str]) -> Execution | None:
        """The first job of the first set that may start; sets in front of it are put where they belong."""
        ring = self.ring_of(p, lane, cap)
        while ring:
            adm = min(ring, key=lambda name: (ring[name], name))
            first = self._first(lane, cap, adm, taken)
            if first is None:
                del ring[adm]
            elif self.is_halted(p, adm):
                self._shut_out(p, lane, cap, adm, first.place[:2])
            elif first.place[:2] <= ring[adm]:
                return first
            else:
                ring[adm] = first.place[:2]
        return None

    def _shut_out(self, p: Partition, lane: Lane, cap: str, adm: str, place: Place) -> None:
        self.ring_of(p, lane, cap).pop(adm, None)
        shut = self.ring_of(p, lane, cap, True)
        shut[adm] = min(place, shut.get(adm, place))
        halt = p.halts[adm]
        if (lane.no, cap) not in halt.places:
            halt.places.append((lane.no, cap))
            self.timer(p, "halt", adm, halt.until)

    def _head(self, p: Partition, lane: Lane, cap: str, ring: bool, taken: set[str]) -> Execution | None:
        if ring:
            return self.ring_head(p, lane, cap, taken)
        plain = [x for x in lane.ready.values() if (x.cap, x.adm) == (cap, None) and x.uuid not in taken]
        return min(plain, key=lambda x: x.place, default=None)

    def pop(self, p: Partition, lane: Lane, caps: list[str], want: int) -> list[Execution]:
        """Jobs of a lane in claim order, out of plain queues and of those of admission sets."""
        taken: set[str] = set()
        heads: list[tuple[str, bool]] = [("-", False), ("-", True)]
        for cap in caps:
            heads += [(cap, False)] if any((x.cap, x.adm) == (cap, None) for x in lane.ready.values()) else []
            heads += [(cap, True)] if self.ring_of(p, lane, cap) else []
        got: list[Execution] = []
        # A head is looked at again when something was taken there: a set that stands under two capability sets may be
        # let start once more than it was allowed.
        seen: dict[tuple[str, bool], Execution | None] = {}
        while len(got) < want:
            best: tuple[str, bool] | None = None
            for head in heads:
                if head not in seen:
                    seen[head] = self._head(p, lane, *head, taken)
                first, lowest = seen[head], seen[best] if best is not None else None
                if first is not None and (lowest is None or first.place[:2] < lowest.place[:2]):
                    best = head
            x = seen.pop(best) if best is not None else None
            if x is None:
                break
            taken.add(x.uuid)
            got.append(x)
            if x.adm is not None:
                self.take(p, x.adm)
        return got

    # ---- halts

    def take(self, p: Partition, adm: str) -> None:
        halt = p.halts.get(adm)
        if halt is None or halt.until <= p.now or halt.allow <= 0:
            return
        halt.allow -= 1
        if halt.allow == 0:
            halt.passed, halt.until = True, min(halt.until, p.now + TRIAL_MS)
        self.timer(p, "halt", adm, halt.until)

    def give_back(self, p: Partition, adm: str) -> None:
        halt = p.halts.get(adm)
        if halt is not None and halt.until > p.now:
            halt.allow += 1
            self.timer(p, "halt", adm, halt.until)

    def stop(
        self, p: Partition, adm: str, until: int, kind: str, uuid: str, lane: Lane, cap: str
    ) -> None:  # fmt: skip
        """A halt for another reason that lasts longer stays, unless a release of that has let this job ask."""
        self.write_rings(p)
        halt = p.halts.get(adm)
        if halt is None or halt.resource == uuid or halt.until <= until or halt.allow > 0 or halt.passed:
            places = halt.places if halt is not None else []
            halt = p.halts[adm] = Halt(until, uuid, kind)
            halt.places = places
        self.timer(p, "halt", adm, halt.until)
        if halt.kind != "l":
            self._shut_out(p, lane, cap, adm, self.ring_of(p, lane, cap).get(adm, LAST))
        elif (lane.no, "-") not in halt.places:
            halt.places.append((lane.no, "-"))

    def _open(self, p: Partition, adm: str, halt: Halt, allow: int) -> None:
        """Places it was taken out of get it back, and workers are rung wherever some of it are ready."""
        by_no = {lane.no: lane for lane in p.lanes.values()}
        if halt.kind == "l":
            for no, _ in halt.places:
                if no in by_no:
                    self.ring(p, by_no[no], "-", min(allow, limits.HEADS_N))
            return
        self.write_rings(p)
        for no, cap in halt.places:
            lane = by_no.get(no)
            if lane is None:
                continue
            place = self.ring_of(p, lane, cap, True).pop(adm, None)
            if place is not None:
                ring = self.ring_of(p, lane, cap)
                ring[adm] = min(place, ring.get(adm, place))
            written = [x for x in lane.ready.values() if (x.cap, x.adm) == (cap, adm) and x.uuid not in p.unflushed]
            gone = [was for was in p.unflushed.values() if was and was[:2] == (no, f"{cap}.{adm}")]
            n = min(allow, len(written) + len(gone), limits.HEADS_N)
            if n:
                self.ring(p, lane, cap, n)

    def due_halt(self, p: Partition, adm: str) -> None:
        """A few ask, and when none of them was refused, all may."""
        halt = p.halts.get(adm)
        if halt is None:
            return
        if halt.until > p.now:
            self.timer(p, "halt", adm, halt.until)
            return
        self._open(p, adm, halt, TRIAL_N)
        if halt.passed:
            del p.halts[adm]
            return
        halt.allow, halt.passed, halt.until = TRIAL_N, True, p.now + TRIAL_MS
        self.timer(p, "halt", adm, halt.until)

    def mail_unhalt(self, p: Partition, body: list[str], source: str) -> None:
        adm, uuid, gen, allow = body
        seen = p.releases_seen.get(uuid, (-1, 0))[0]
        p.releases_seen[uuid] = (max(seen, int(gen)), p.now)
        p.reap.setdefault(f"halts:{uuid}", p.now + 2 * limits.HALT_MS)
        halt = p.halts.get(adm)
        if halt is None or halt.resource != uuid or halt.until <= p.now:
            return
        self._open(p, adm, halt, int(allow) + 1)
        halt.allow, halt.passed = int(allow) + 1, False
        self.timer(p, "halt", adm, halt.until)

    def reap_halts(self, p: Partition, uuid: str, limit: int) -> int:
        old_at = p.releases_seen.get(uuid, (-1, 0))[1] + 2 * limits.HALT_MS
        if old_at > p.now:
            self.reap_later(p, f"halts:{uuid}", old_at)
        else:
            p.releases_seen.pop(uuid, None)
        return 1

    # ---- what is owed when a lease ends

    def lease_ends(self, p: Partition, x: Execution) -> None:
        """One row for each that admitted it. `undo`: it has not begun, so its start counts for nothing."""
        undo = "1" if x.undo else "0"
        for line in x.lines if x.adm else []:
            if line.kind in "bq":
                body = f"{line.kind} {line.uuid} {line.key} {x.id} {x.epoch} {undo}"
                self.owe(p, line.partition, "settle", body)
        if x.lane_quota:
            line = Line(f"q {x.lane_quota} hold -")
            self.owe(p, line.partition, "settle", f"q {line.uuid} - {x.id} {x.epoch} {undo}")
            x.lane_quota = None
        x.undo = False

    def frees_key(self, p: Partition, x: Execution) -> None:
        (line,) = [line for line in x.lines if line.kind == "u"]
        x.unique = None
        self.owe(p, line.partition, "free", f"{line.uuid} {x.id}")

    def mail_verify(self, p: Partition, body: list[str], source: str) -> None:
        """Whether an execution still holds what it took, for whoever gave it."""
        back, kind, uuid, key, execution_id, epoch = body
        x = self.find(p, execution_id)
        if kind == "u":
            name = execution_id[execution_id.index("}") + 2 :]
            if key in ("queued", "active"):
                # An execution that was there before has nothing to do with the key.
                holds = x is not None and x.unique is not None and any(line.uuid == uuid for line in x.lines)
            else:
                holds = x is not None or name in p.tombs.get(name[-3:], {})
        else:
            holds = x is not None and x.state == "active" and str(x.epoch) == epoch
        self.wake(p, back, "verified", f"{kind} {uuid} {key} {execution_id} {epoch} {int(holds)}")

    def mail_runs(self, p: Partition, body: list[str], source: str) -> None:
        back, kind, uuid, key, execution_id, _ = body
        x = self.find(p, execution_id)
        runs = x is not None and x.state == "active"
        self.wake(p, back, "verified", f"{kind} {uuid} {key} {execution_id} 0 {int(runs)}")

    # ---- what was not admitted goes back

    def call_refuse_many(self, p: Partition, a: Any) -> Expected:
        items: list[tuple[str, str]] = []
        for row in a.items:
            x = self.find(p, row.execution_id)
            refusal = self.check(p, x, row.fence, "unclaim")
            if refusal == "replay":
                assert x is not None
                items.append(("replayed", x.state))
            elif refusal:
                items.append(("error", refusal))
            else:
                assert x is not None
                if not self.cancelled_instead(p, x, "unclaim"):
                    self._refuse(p, x, row)
                items.append(("refused", x.state))
        return Say("refused_many", {"items": items})

    def _refuse(self, p: Partition, x: Execution, row: Any) -> None:
        uuid = row.resource[row.resource.index("}") + 2 :]
        passed = row.gen != 0 and p.releases_seen.get(uuid, (-1, 0))[0] >= row.gen
        if row.halt and not passed:
            until = min(max(row.until_ms, p.now + 1), p.now + 24 * 3_600_000)
            if row.kind == "l" or row.resource == x.lane_quota:
                self.stop(p, f"lane:{uuid}", until, "l", uuid, x.lane, "-")
            elif x.adm is not None:
                self.stop(p, x.adm, until, row.kind, uuid, x.lane, x.cap)
        x.undo = not row.ran
        self.unclaim(p, x, "refused")

    def call_explain(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        ready = len(x.lane.ready) if x.state in QUEUED else 0
        admission = "\n".join(line.text for line in x.lines)
        return Say("explained", {"now_ms": p.now, "state": x.state, "admission": admission}, lambda got: (
            None if got.ready == ready or not ready else f"counts {got.ready} in line, should be {ready}"))  # fmt: skip

    # ---- what claims ask

    def popped(self, p: Partition, lane: Lane, caps: list[str], want: int) -> list[Execution]:
        """Up to so many jobs of a lane, in claim order. They are gone from their queues: whoever asks leases them."""
        if any(x.adm is not None for x in lane.ready.values()):
            some = self.pop(p, lane, caps, want)
        else:
            some = self.line(lane, ["-", *caps])[:want]
        self.serve(lane, some)
        return some

    def lane_room(self, p: Partition, lane: Lane, want: int) -> int:
        """How many may start by the lane's own quota: none while it is halted, some while a release is used up."""
        halt = p.halts.get(lane_set(lane)) if lane.quota else None
        return want if halt is None or halt.until <= p.now else min(want, halt.allow)

    def takes_place(self, p: Partition, x: Execution) -> None:
        if x.lane.quota:
            x.lane_quota = x.lane.quota
            self.take(p, lane_set(x.lane))

    def any_ready(self, p: Partition, lane: Lane, cap: str) -> bool:
        if any((x.cap, x.adm) == (cap, None) for x in lane.ready.values()):
            return True
        classed = any(x.adm is not None for x in lane.ready.values())
        return classed and self.ring_head(p, lane, cap, set()) is not None

    def is_shut(self, p: Partition, x: Execution) -> bool:
        return x.adm is not None and x.adm in self.ring_of(p, x.lane, x.cap, True)
