"""What budgets must answer: reservations that fit beside what is used and what others have reserved, reports that count
once, resets, and that a release wakes somebody whom it helps."""

from __future__ import annotations

from typing import Any

from ffcore import limits
from tests.simulation.ledger import Amounts, Budget, Reservation, amounts_of
from tests.simulation.model import Expected, No, Say
from tests.simulation.records import Partition
from tests.simulation.rules_mail import MailRules

Standing = tuple[str, set[str]]


def nonzero(some: Amounts) -> Amounts:
    return {dim: amount for dim, amount in some.items() if amount}


class BudgetRules(MailRules):
    def budget(self, p: Partition, id: str) -> Budget | None:
        """A budget, in the period it is in by now: whoever looks first after a reset was due does it."""
        b = p.budgets.get(id[id.index("}") + 2 :])
        if b is not None and b.every and b.next <= p.now:
            self._begin_anew(p, b)
        return b

    def _begin_anew(self, p: Partition, b: Budget) -> None:
        b.reports.clear()
        b.period += 1
        self._next_reset(p, b)
        self.freed(p, b)

    def _next_reset(self, p: Partition, b: Budget) -> None:
        """Counted from the creation: a late reset moves nothing."""
        b.next = b.created + ((p.now - b.created) // b.every + 1) * b.every if b.every else 0
        self.timer(p, "reset", b.uuid, b.next or None)

    # ---- making, changing, looking

    def call_create_budget(self, p: Partition, a: Any) -> Expected:
        if a.budget_id[a.budget_id.index("}") + 2 :] in p.budgets:
            return Say("already_satisfied", {"budget_id": a.budget_id})
        b = Budget(a.budget_id, p.now)
        p.budgets[b.uuid] = b
        b.mode, b.every, b.dims = a.enforcement_mode, a.reset_interval_ms, set(a.dimensions)
        b.hard = nonzero(dict(zip(a.dimensions, map(float, a.hard_limits), strict=True)))
        b.soft = nonzero(dict(zip(a.dimensions, map(float, a.soft_limits), strict=True)))
        self._next_reset(p, b)
        return Say("created", {"budget_id": a.budget_id})

    def _status(self, p: Partition, b: Budget) -> dict[str, Any]:
        """`p.now` may be past a reset that nobody has done: readers see the new period all the same."""
        over = bool(b.every) and b.next <= p.now
        return {
            "usage": {dim: 0 if over else b.used(dim) for dim in b.dims}, "hard_limits": b.hard, "soft_limits": b.soft,
            "reservations": len(b.reservations), "period": b.period + over, "enforcement_mode": b.mode,
            "breach_count": b.breaches, "soft_breach_count": b.soft_breaches,
        }  # fmt: skip

    def _shows(self, p: Partition, b: Budget, got: Any) -> str | None:
        wanted = self._status(p, b)
        wrong = {name: getattr(got, name) for name, value in wanted.items() if getattr(got, name) != value}
        reserved = nonzero({dim: b.reserved(dim) for dim in b.dims})
        if nonzero(got.reserved) != reserved:
            wrong["reserved"], wanted["reserved"] = got.reserved, reserved
        return f"{b.id} shows {wrong}, should be { ({name: wanted[name] for name in wrong}) }" if wrong else None

    def call_read_budget(self, p: Partition, a: Any) -> Expected:
        b = p.budgets.get(a.budget_id[a.budget_id.index("}") + 2 :])
        if b is None:
            return No("budget_not_found")
        return Say("budget", {"budget_id": a.budget_id}, lambda got: self._shows(p, b, got))

    def call_list_budgets(self, p: Partition, a: Any) -> Expected:
        some = [p.budgets[uuid] for uuid in sorted(p.budgets)][: a.limit]

        def shows(got: Any) -> str | None:
            if [row.budget_id for row in got.budgets] != [b.id for b in some]:
                return f"lists {[row.budget_id for row in got.budgets]}, should be {[b.id for b in some]}"
            shown = (self._shows(p, b, row) for b, row in zip(some, got.budgets, strict=True))
            return next((why for why in shown if why), None)

        return Say("budgets", {}, shows)

    def call_change_budget(self, p: Partition, a: Any) -> Expected:
        b = self.budget(p, a.budget_id)
        if b is None:
            return No("budget_not_found")
        for which in ("hard_limits", "soft_limits"):
            if which in a.changes:
                given = amounts_of(a.changes[which])
                b.dims |= set(given)
                if which == "soft_limits":
                    b.soft = nonzero(given)
                elif nonzero(given) != b.hard:
                    b.hard = nonzero(given)
                    self.freed(p, b)
        if int(a.changes.get("reset_interval_ms", b.every)) != b.every:
            b.every = int(a.changes["reset_interval_ms"])
            self._next_reset(p, b)
        b.mode = a.changes.get("enforcement_mode", b.mode)
        self.left_to_ticker(p, b)
        return Say("changed", {}, lambda got: self._shows(p, b, got.budget))

    def call_raise_budget(self, p: Partition, a: Any) -> Expected:
        b = self.budget(p, a.budget_id)
        if b is None:
            return No("budget_not_found")
        more = amounts_of(a.amounts)
        if any(dim not in b.hard for dim in more):
            self.left_to_ticker(p, b)
            return No("invalid_input")
        replayed = b.keys.get(("raise", a.key), -1) > p.now
        if not replayed:
            b.keys["raise", a.key] = p.now + 365 * 24 * 3_600_000
            b.hard = {dim: limit + more.get(dim, 0) for dim, limit in b.hard.items()}
            self.freed(p, b)
        self.left_to_ticker(p, b)
        return Say("raised", {"hard_limits": b.hard, "replayed": replayed})

    def call_reset_budget(self, p: Partition, a: Any) -> Expected:
        b = self.budget(p, a.budget_id)
        if b is None:
            return No("budget_not_found")
        b.reports.clear()
        b.period += 1
        self._next_reset(p, b)
        self.freed(p, b)
        self.left_to_ticker(p, b)
        return Say("reset", {"next_reset_at": b.next})

    def call_delete_budget(self, p: Partition, a: Any) -> Expected:
        b = self.budget(p, a.budget_id)
        if b is None:
            return No("budget_not_found")
        del p.budgets[b.uuid]
        p.refused_ever |= set(b.waiting)  # they may be told, once
        p.to_wake.pop(b.uuid, None)
        self.timer(p, "reset", b.uuid, None)
        self.timer(p, "wake", b.uuid, None)
        return Say("deleted")

    def call_top_spenders(self, p: Partition, a: Any) -> Expected:
        b = p.budgets.get(a.budget_id[a.budget_id.index("}") + 2 :])
        if b is None:
            return No("budget_not_found")
        over = bool(b.every) and b.next <= p.now
        by_whom: dict[str, Amounts] = {}
        for id, spent in [] if over else b.reports:
            mine = by_whom.setdefault(id, {})
            for dim, amount in spent.items():
                mine[dim] = mine.get(dim, 0.0) + amount
        rest = by_whom.pop("-", {})

        def shows(got: Any) -> str | None:
            told = {row.execution_id: row.amounts for row in got.spenders}
            right = got.rest == rest and all(by_whom.get(id) == spent for id, spent in told.items())
            return None if right and len(told) == min(a.limit, len(by_whom)) else f"tells {got}, should be {by_whom}"

        return Say("spenders", {}, shows)

    # ---- waking those who wait

    def freed(self, p: Partition, b: Budget) -> None:
        b.freed = True

    def left_to_ticker(self, p: Partition, b: Budget) -> None:
        """A call that tells nobody: if something was freed, the ticker does."""
        if b.freed and b.waits:
            self.timer(p, "wake", b.uuid, p.now)
        b.freed = False

    def wake_all(self, p: Partition) -> None:
        """At the end of a call that hands on what it owes: of those who wait and fit now, somebody is woken."""
        for b in p.budgets.values():
            if b.freed:
                b.freed = False
                # Who was told a moment ago has yet to ask.
                told = {who for who, at in b.told.items() if abs(p.now - at) < 1_000}
                live = {who: wanted for who, (until, wanted, _) in b.waiting.items() if until >= p.now}
                fit = {who for who, wanted in live.items() if self._fits(b, wanted)}
                fit = set() if fit & told else fit
                b.waits = any(until >= p.now for until, _, _ in b.waiting.values())
                if fit:
                    p.to_wake[b.uuid] = fit

    @staticmethod
    def _fits(b: Budget, wanted: Amounts) -> bool:
        """Besides what it asks for, only what is used up counts: reservations come to an end."""
        if any(b.used(dim) >= limit for dim, limit in b.hard.items()):
            return False
        limited = {dim: amount for dim, amount in wanted.items() if dim in b.hard}
        return all(b.used(dim) + b.reserved(dim) + amount <= b.hard[dim] for dim, amount in limited.items())

    def budget_woken(self, p: Partition, b: Budget, target: str, adm: str, gen: int, allow: int) -> str | None:
        """What is wrong with a wake: it names somebody who waits and whom it helps, and a release after his refusal."""
        waits = b.waiting.get((target, adm))
        if waits is None and (target, adm) in p.refused_ever:
            return None
        if waits is None or not self._fits(b, waits[1]):
            return f"a wake for {target} {adm}, whom {b.id} cannot help"
        if gen < waits[2] or not 1 <= allow <= 1_000:
            return f"a wake of {b.id} says gen {gen}, allow {allow}; the refusal named gen {waits[2]}"
        # From now on it is kept for as long as it takes to ask again.
        b.told[target, adm] = p.now
        b.waiting[target, adm] = (p.now + 2 * limits.HALT_MS, *waits[1:])
        p.to_wake.pop(b.uuid, None)
        return None

    def due_wake(self, p: Partition, uuid: str) -> None:
        b = self.budget(p, f"{p.key}:{uuid}")
        if b is not None:
            b.freed = True
            self.wake_all(p)

    def due_reset(self, p: Partition, uuid: str) -> None:
        b = self.budget(p, f"{p.key}:{uuid}")
        if b is not None and b.every:
            self.timer(p, "reset", uuid, b.next)
        self.wake_all(p)

    # ---- reserve

    def call_reserve_many(self, p: Partition, a: Any) -> Expected:
        wanted = [self._room_for(p, row) for row in a.items]
        for row in a.items:
            b = p.budgets.get(row.budget_id[row.budget_id.index("}") + 2 :])
            if b is not None:
                self.left_to_ticker(p, b)

        def check(got: Any) -> str | None:
            for row, one, (word, dims, noted) in zip(a.items, got.items, wanted, strict=True):
                if one.state != word or (dims and one.dimension not in dims):
                    return f"{row} is answered {one}, should be {word} {dims}"
                b = p.budgets.get(row.budget_id[row.budget_id.index("}") + 2 :])
                if noted and b is not None:
                    until, mine, _ = b.waiting[row.partition, row.adm]
                    b.waiting[row.partition, row.adm] = (until, mine, one.gen)
            return None

        return Say("reserved_many", {}, check)

    def _room_for(self, p: Partition, row: Any) -> tuple[str, set[str], bool]:
        """The word, dimensions of which one must be named, and whether he waits from now on."""
        b = self.budget(p, row.budget_id)
        if b is None:
            return "not_found", set(), False
        held = b.reservations.get(row.execution_id)
        if held is not None and held.epoch >= row.epoch:
            return ("granted" if held.epoch == row.epoch else "refused"), set(), False
        if held is not None:
            self._release(p, b, row.execution_id)
        asked = amounts_of(row.amounts)
        why = b.why_not(asked)
        if why is not None:
            noted = why[0] == "refused" and bool(row.partition and row.adm)
            if noted:
                mine = {dim: amount for dim, amount in asked.items() if dim in b.dims}
                b.waiting[row.partition, row.adm] = (p.now + 2 * limits.HALT_MS, nonzero(mine), 0)
                b.waits = True
            return why[0], why[1], noted
        mine = nonzero({dim: amount for dim, amount in asked.items() if dim in b.dims})
        if mine:
            until = min(max(row.until_ms, p.now + 1_000), p.now + limits.LEASE_TTL_MAX_MS)
            b.reservations[row.execution_id] = Reservation(row.epoch, until, mine)
            self.timer(p, "res", f"{b.uuid} {row.execution_id}", until)
        return "granted", set(), False

    def _release(self, p: Partition, b: Budget, execution_id: str) -> None:
        del b.reservations[execution_id]
        self.timer(p, "res", f"{b.uuid} {execution_id}", None)
        self.freed(p, b)

    def settle_budget(self, p: Partition, uuid: str, execution_id: str, epoch: int) -> None:
        b = self.budget(p, f"{p.key}:{uuid}")
        r = b.reservations.get(execution_id) if b else None
        if b is not None and r is not None and r.epoch <= epoch:
            self._release(p, b, execution_id)

    def due_res(self, p: Partition, name: str) -> None:
        """Past its lease: its execution's partition is asked whether it is still held."""
        uuid, execution_id = name.split(" ")
        b = self.budget(p, f"{p.key}:{uuid}")
        r = b.reservations.get(execution_id) if b else None
        if b is not None and r is not None:
            if r.until > p.now:
                self.timer(p, "res", name, r.until)
            else:
                self.timer(p, "res", name, p.now + limits.RESERVATION_MS)
                home = execution_id[: execution_id.index("}") + 1]
                self.wake(p, home, "verify", f"{p.key} b {uuid} - {execution_id} {r.epoch}")
        self.wake_all(p)

    def budget_verified(self, p: Partition, uuid: str, execution_id: str, epoch: int, held: bool) -> None:
        b = self.budget(p, f"{p.key}:{uuid}")
        r = b.reservations.get(execution_id) if b else None
        if b is None or r is None or r.epoch != epoch:
            return
        if not held:
            self._release(p, b, execution_id)
            return
        r.until = p.now + limits.RESERVATION_MS
        self.timer(p, "res", f"{uuid} {execution_id}", r.until)

    # ---- spend

    def spend(self, p: Partition, b: Budget, who: str, epoch: int, key: str, spent: Amounts) -> Standing:
        """How the budget stands in what was spent: word and dimensions of which one must be named."""
        mine = nonzero({dim: amount for dim, amount in spent.items() if dim in b.dims})
        if self._reported(p, b, who, key):
            word, dims = b.standing(set(spent))
            return ("already", set()) if word == "ok" else (word, dims)
        if not mine:
            return b.standing(set(mine) if spent else b.dims)
        over = {dim for dim in mine if dim in b.hard and b.used(dim) + mine[dim] > b.hard[dim]}
        if over:
            b.breaches += 1
            if b.mode == "refuse":
                return "hard", over
        for dim, amount in mine.items():
            if dim in b.soft and b.used(dim) <= b.soft[dim] < b.used(dim) + amount:
                b.soft_breaches += 1
        b.reports.append((who, mine))
        r = b.reservations.get(who)
        if r is not None and r.epoch == epoch:
            r.left = {dim: max(0.0, left - mine.get(dim, 0.0)) for dim, left in r.left.items()}
        if key:
            b.keys[who, key] = p.now + limits.REPORT_KEYS_MS
        return b.standing(set(mine))

    @staticmethod
    def _reported(p: Partition, b: Budget, who: str, key: str) -> bool:
        return bool(key) and b.keys.get((who, key), -1) > p.now

    def call_spend_many(self, p: Partition, a: Any) -> Expected:
        wanted: list[Standing] = []
        for row in a.items:
            b = self.budget(p, row.budget_id)
            if b is None:
                wanted.append(("error", {"budget_not_found"}))
            else:
                spent = amounts_of(row.amounts)
                wanted.append(self.spend(p, b, row.execution_id, row.epoch, row.key, spent))
                self.left_to_ticker(p, b)

        def check(got: Any) -> str | None:
            for row, one, (word, dims) in zip(a.items, got.items, wanted, strict=True):
                if one.state != word or (dims and one.dimension not in dims):
                    return f"{row} is answered {one}, should be {word} {dims}"
            return None

        return Say("spent_many", {}, check)

    def call_report_usage_and_check(self, p: Partition, a: Any) -> Expected:
        b = self.budget(p, a.at)
        if b is None:
            return No("budget_not_found")
        b.dims |= set(a.dimensions)
        given = dict(zip(a.dimensions, map(float, a.deltas), strict=True))
        breached, again = b.breaches, self._reported(p, b, "-", a.dedup_key or "")
        word, dims = self.spend(p, b, "-", 0, a.dedup_key or "", given)
        self.left_to_ticker(p, b)
        if again:
            return Say("already_applied")
        if word == "ok":
            return Say("ok")

        def names(got: Any) -> str | None:
            return None if got.dimension in dims else f"names {got.dimension}, should be one of {dims}"

        applied = {"applied": b.mode == "record" or b.breaches == breached} if word == "hard" else {}
        return Say(f"{word}_breach", applied, names)

    def mail_spend(self, p: Partition, body: list[str], source: str) -> None:
        uuid, execution_id, epoch, key, amounts = body
        b = self.budget(p, f"{p.key}:{uuid}")
        if b is not None:
            self.spend(p, b, execution_id, int(epoch), key, amounts_of(amounts))
