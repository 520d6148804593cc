"""What quotas and unique keys must answer: starts within a window, places that are given back, and who holds a key.

Windows and places are lists that are counted anew each time. Whom a release wakes is left to the engine; that it wakes
one whom it helps is not.
"""

from __future__ import annotations

import hashlib
from typing import Any

import ffcore.contracts as c
from ffcore import limits
from tests.simulation.ledger import Place, Quota, Unique
from tests.simulation.model import Expected, No, Say
from tests.simulation.records import Partition
from tests.simulation.rules_budgets import BudgetRules

FREE_N = 1_000


def digest(key: str) -> str:
    return "-" if key == "-" else hashlib.sha1(key.encode()).hexdigest()[:20]


class QuotaRules(BudgetRules):
    def quota(self, p: Partition, id: str) -> Quota | None:
        return p.quotas.get(id[id.index("}") + 2 :])

    # ---- making, changing, looking

    def call_create_quota_policy(self, p: Partition, a: Any) -> Expected:
        if self.quota(p, a.quota_policy_id) is not None:
            return Say("already_satisfied", {"quota_policy_id": a.quota_policy_id})
        q = Quota(a.quota_policy_id, p.now)
        p.quotas[q.uuid] = q
        q.window_ms, q.rate, q.most = a.window_seconds * 1_000, a.max_requests_per_window, a.max_concurrent
        return Say("created", {"quota_policy_id": a.quota_policy_id})

    def call_change_quota(self, p: Partition, a: Any) -> Expected:
        q = self.quota(p, a.quota_policy_id)
        if q is None:
            return No("quota_policy_not_found")
        q.window_ms = q.window_ms if a.window_seconds is None else a.window_seconds * 1_000
        q.rate = q.rate if a.max_requests_per_window is None else a.max_requests_per_window
        q.most = q.most if a.max_concurrent is None else a.max_concurrent
        fields = {"max_requests_per_window": q.rate, "max_concurrent": q.most}
        return Say("changed", fields | {"window_seconds": q.window_ms // 1_000})

    def call_delete_quota(self, p: Partition, a: Any) -> Expected:
        q = p.quotas.pop(a.quota_policy_id[a.quota_policy_id.index("}") + 2 :], None)
        if q is None:
            return No("quota_policy_not_found")
        p.to_wake.pop(q.uuid, None)
        return Say("deleted")

    def call_read_quota(self, p: Partition, a: Any) -> Expected:
        q = self.quota(p, a.quota_policy_id)
        if q is None:
            return No("quota_policy_not_found")
        key = a.key or "-"
        return Say("quota", {
            "window_seconds": q.window_ms // 1_000, "max_requests_per_window": q.rate, "max_concurrent": q.most,
            "in_window": len(q.recent(key, p.now)) if q.rate else 0, "active": len(q.running(key)),
            "next_free_ms": q.wait(key, p.now, q.window_ms, q.rate),
        })  # fmt: skip

    def call_list_quotas(self, p: Partition, a: Any) -> Expected:
        rows = [
            {"quota_policy_id": q.id, "max_requests_per_window": q.rate, "max_concurrent": q.most}
            for _, q in sorted(p.quotas.items())
        ]
        return Say("quotas_page", {"quotas": rows[: a.limit]})

    # ---- places and starts

    def call_admit_many(self, p: Partition, a: Any) -> Expected:
        now = p.now

        def check(got: Any) -> str | None:
            for row, one in zip(a.items, got.items, strict=True):
                wrong = self._admit(p, row, one, now)
                if wrong:
                    return f"{row} is answered {one}, {wrong}"
            return None

        return Say("admitted_many", {}, check)

    def _admit(self, p: Partition, row: Any, one: Any, now: int) -> str | None:
        """What is wrong with an answer; or it is taken over."""
        q = self.quota(p, row.quota_policy_id)
        if q is None:
            return None if one.state == "not_found" else "the quota is not there"
        place = q.running(row.key).get(row.execution_id)
        mine = [at for at, who, epoch in q.starts.get(row.key, []) if (who, epoch) == (row.execution_id, row.epoch)]
        known = place is not None and place.epoch == row.epoch
        if one.state == "already" and mine and not known and max(mine) <= now - q.window_ms:
            return None  # it has left the window, and was not taken out of it yet
        if known or (mine and max(mine) > now - q.window_ms and q.rate):
            return None if one.state == "already" else "it was admitted under this lease before"
        q.latest = max(q.latest, now)
        wait = q.wait(row.key, now, q.window_ms, q.rate)
        if one.state != "rate":
            wait = q.wait(row.key, now, q.window_ms, q.rate, kept=True)
        if place is not None and place.epoch > row.epoch:
            word = "concurrency"
        elif wait:
            word = "rate"
        elif q.most and place is None and len(q.running(row.key)) >= q.most:
            word = "concurrency"
        else:
            word = "admitted"
        if one.state != word or (word == "rate" and one.retry_after_ms != wait):
            return f"should be {word}, {wait}"
        if word == "admitted":
            self._admitted(p, q, row.key, row.execution_id, row.epoch, row.until_ms, bool(q.most), now)
        elif row.adm and not (place is not None and place.epoch > row.epoch):
            until = now + (wait if word == "rate" else limits.HALT_MS + 1_000)
            q.waiting[row.key, row.partition, row.adm] = (until, one.gen, word)
            p.refused_ever.add((row.partition, row.adm))
        return None

    def _admitted(
        self, p: Partition, q: Quota, key: str, id: str, epoch: int, until: int, with_place: bool, now: int
    ) -> None:  # fmt: skip
        if q.rate:
            q.starts.setdefault(key, []).append((now, id, epoch))
        if with_place:
            q.running(key)[id] = Place(epoch)
            due = min(max(until, now), now + limits.LEASE_TTL_MAX_MS)
            self.timer(p, "place", f"{q.uuid} {digest(key)} {id}", due)

    def release(self, p: Partition, q: Quota, key: str, id: str, epoch: int, undo: bool) -> bool:
        place = q.running(key).get(id)
        gone = place is not None and place.epoch <= epoch
        if gone:
            del q.running(key)[id]
            self.timer(p, "place", f"{q.uuid} {digest(key)} {id}", None)
        q.latest = max(q.latest, p.now)
        back = [one for one in q.starts.get(key, []) if undo and one[1:] == (id, epoch)]
        counted = any(one in q.kept(key) for one in back)
        for one in back:
            q.starts[key].remove(one)
        return gone or counted

    def settle_quota(self, p: Partition, uuid: str, key: str, id: str, epoch: int, undo: bool) -> None:
        q = p.quotas.get(uuid)
        if q is None:
            self._release_gone(p, uuid, key, id, epoch)
        elif self.release(p, q, key, id, epoch, undo):
            self._wake(p, q, key)

    def _release_gone(self, p: Partition, uuid: str, key: str, id: str, epoch: int) -> None:
        self.timer(p, "place", f"{uuid} {digest(key)} {id}", None)

    def _wake(self, p: Partition, q: Quota, key: str) -> None:
        """Something of it is free: who was refused a place hears of it, one at least. Once: then he asks again."""
        q.latest = max(q.latest, p.now)
        free = q.most - len(q.running(key)) if q.most else FREE_N
        if q.wait(key, p.now, q.window_ms, q.rate):
            return
        fit = {
            (target, adm) for (k, target, adm), (until, _, word) in q.waiting.items()
            if k == key and word == "concurrency" and until > p.now
        }  # fmt: skip
        if free > 0 and fit:
            p.to_wake[q.uuid] = fit

    def quota_woken(self, p: Partition, uuid: str, target: str, adm: str, gen: int, allow: int) -> str | None:
        q = p.quotas.get(uuid)
        if allow > FREE_N:
            # The limits are others, or it is gone: all who were refused are told once, and ask again.
            for who in [who for who in q.waiting if who[1:] == (target, adm)] if q else []:
                del q.waiting[who]
            p.to_wake.pop(uuid, None)
            return None if (target, adm) in p.refused_ever else f"a wake for {target} {adm}, which nobody refused"
        if q is None and (target, adm) in p.refused_ever:
            return None
        named = [entry for (_, t, s), entry in q.waiting.items() if (t, s) == (target, adm)] if q else []
        if not named or allow < 1 or gen < min(entry[1] for entry in named):
            return f"a wake of {uuid} for {target} {adm}, gen {gen}, allow {allow}; refused were {named}"
        for who in [who for who in q.waiting if who[1:] == (target, adm)] if q else []:
            del q.waiting[who]
        p.to_wake.pop(uuid, None)
        return None

    def call_check_admission_and_record(self, p: Partition, a: Any) -> Expected:
        q = self.quota(p, a.at)
        if q is None:
            return No("quota_policy_not_found")
        window = a.window_seconds * 1_000
        if a.rate_limit > 0 and (q.rate == 0 or window > q.window_ms):
            return No("invalid_quota_spec")
        if a.execution_id in q.running("-"):
            return Say("already_admitted")
        now, most = p.now, min(one for one in (q.most, a.concurrency_cap, 1 << 60) if one)
        q.latest = max(q.latest, now)

        def check(got: Any) -> str | None:
            least, wait = (
                max(q.wait("-", now, q.window_ms, q.rate, kept=kept), q.wait("-", now, window, a.rate_limit, kept=kept))
                for kept in (True, False)
            )
            if isinstance(got, c.RateExceeded):
                right = least <= got.retry_after_ms <= wait + (a.jitter_ms or 0) and wait > 0
                return None if right else f"{got}, should wait {least} to {wait}"
            full = len(q.running("-")) >= most
            if least or full != isinstance(got, c.ConcurrencyExceeded) or isinstance(got, c.AlreadyAdmitted):
                return f"{got}, should wait {least}, places taken: {q.running('-')}"
            if not full:
                self._admitted(p, q, "-", a.execution_id, 0, now + limits.RESERVATION_MS, True, now)
            return None

        return Say("*", {}, check)

    def call_release_admission(self, p: Partition, a: Any) -> Expected:
        q = self.quota(p, a.at)
        if q is None:
            self._release_gone(p, a.at[a.at.index("}") + 2 :], "-", a.execution_id, 0)
        elif self.release(p, q, "-", a.execution_id, 1 << 60, False):
            self.timer(p, "freed", f"{q.uuid} -", p.now)
        return Say("released")

    def due_freed(self, p: Partition, name: str) -> None:
        q = p.quotas.get(name.split(" ")[0])
        if q is not None:
            self._wake(p, q, "-")

    def due_place(self, p: Partition, name: str) -> None:
        uuid, subject, id = name.split(" ")
        q = p.quotas.get(uuid)
        for key, places in q.places.items() if q else ():
            if digest(key) == subject and id in places:
                self.timer(p, "place", name, p.now + limits.RESERVATION_MS)
                home = id[: id.index("}") + 1]
                # One that was taken without a lease is kept for as long as the execution runs.
                kind = "verify" if places[id].epoch else "runs"
                self.wake(p, home, kind, f"{p.key} q {uuid} {key} {id} {places[id].epoch}")

    # ---- mail

    def mail_settle(self, p: Partition, body: list[str], source: str) -> None:
        kind, uuid, key, execution_id, epoch, undo = body
        if kind == "b":
            self.settle_budget(p, uuid, execution_id, int(epoch))
        else:
            self.settle_quota(p, uuid, key, execution_id, int(epoch), undo == "1")

    def mail_verified(self, p: Partition, body: list[str], source: str) -> None:
        kind, uuid, key, execution_id, epoch, held = body
        if kind == "b":
            self.budget_verified(p, uuid, execution_id, int(epoch), held == "1")
        elif kind == "q":
            q = p.quotas.get(uuid)
            place = q.running(key).get(execution_id) if q else None
            if q is not None and held == "0" and place is not None and place.epoch == int(epoch):
                self.release(p, q, key, execution_id, int(epoch), False)
                self._wake(p, q, key)
        else:
            u = self._holder(p, uuid)
            if u is not None and u.holder == execution_id and u.taken == int(epoch):
                if held == "0":
                    self._let_go(p, uuid)
                else:
                    u.seen = True
                    self.timer(p, "unique", uuid, None)

    # ---- unique keys

    def _holder(self, p: Partition, uuid: str) -> Unique | None:
        u = p.uniques.get(uuid)
        return None if u is None or (u.until and u.until <= p.now) else u

    def _let_go(self, p: Partition, uuid: str) -> None:
        p.uniques.pop(uuid, None)
        self.timer(p, "unique", uuid, None)

    def call_take_unique(self, p: Partition, a: Any) -> Expected:
        uuid = a.unique_id[a.unique_id.index("}") + 2 :]
        u = self._holder(p, uuid)
        if u is not None and u.holder == a.execution_id:
            return Say("taken", {"fresh": False, "until_ms": u.until})
        if u is not None and u.holder != a.instead_of:
            return Say("held", {"execution_id": u.holder, "scope": u.scope, "until_ms": u.until})
        until = p.now + a.window_ms if a.scope == "window" else 0
        p.uniques[uuid] = Unique(a.execution_id, a.scope, p.now, until)
        self.timer(p, "unique", uuid, p.now + limits.RESERVATION_MS)
        return Say("taken", {"fresh": True, "until_ms": until})

    def call_drop_unique(self, p: Partition, a: Any) -> Expected:
        uuid = a.unique_id[a.unique_id.index("}") + 2 :]
        u = self._holder(p, uuid)
        if u is None or u.holder != a.execution_id:
            return Say("not_held")
        self._let_go(p, uuid)
        return Say("dropped")

    def call_read_unique(self, p: Partition, a: Any) -> Expected:
        u = self._holder(p, a.unique_id[a.unique_id.index("}") + 2 :])
        if u is None:
            return Say("free")
        return Say("held", {"execution_id": u.holder, "scope": u.scope, "until_ms": u.until})

    def mail_free(self, p: Partition, body: list[str], source: str) -> None:
        uuid, execution_id = body
        u = self._holder(p, uuid)
        if u is not None and u.holder == execution_id:
            self._let_go(p, uuid)

    def due_unique(self, p: Partition, uuid: str) -> None:
        u = self._holder(p, uuid)
        if u is None:
            self._let_go(p, uuid)
        elif not u.seen:
            self.timer(p, "unique", uuid, p.now + limits.RESERVATION_MS)
            home = u.holder[: u.holder.index("}") + 1]
            self.wake(p, home, "verify", f"{p.key} u {uuid} {u.scope} {u.holder} {u.taken}")

    # ---- wakes

    def heard_from(self, p: Partition, rows: list[Any]) -> str | None:
        """Rows a call has answered: what is owed and what is asked, all of it; wakes that help whom they are for."""
        told = [(getattr(row, "row", ""), row.target, row.kind, row.body) for row in rows]
        for _, target, kind, body in told:
            if kind == "unhalt":
                adm, uuid, gen, allow = body.split(" ")
                b = p.budgets.get(uuid)
                wrong = (self.budget_woken(p, b, target, adm, int(gen), int(allow)) if b is not None
                         else self.quota_woken(p, uuid, target, adm, int(gen), int(allow)))  # fmt: skip
                if wrong:
                    return wrong
        others = [row for row in told if row[2] != "unhalt"]
        if others != p.owed:
            return f"tells {others}, should tell {p.owed}"
        if p.to_wake:
            left, p.to_wake = p.to_wake, {}
            return f"wakes none of those whom a release helps: {left}"
        return None
