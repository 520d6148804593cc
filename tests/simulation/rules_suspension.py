"""What suspending, waiting, resuming, pausing and a timeout must answer, and what goes on with it.

A condition is judged anew from all signals there are; the engine counts as they come.
"""

from __future__ import annotations

from typing import Any

from tests.simulation.between import Rules
from tests.simulation.durable import (
    COUNTED,
    OPERATOR,
    SATISFIED,
    Nodes,
    Signal,
    Suspension,
    effect_of,
    holds,
    packed,
    parsed,
)
from tests.simulation.model import Expected, No, Say
from tests.simulation.records import QUEUED, Execution, Partition

SHOWN = {
    "waiting_for_operator_review": "paused_by_operator", "manual_pause": "paused_by_operator",
    "paused_by_budget": "waiting_for_budget", "step_boundary": "waiting_for_signal",
}  # fmt: skip
"""Reason codes that are shown as something else."""
PUBLIC = {"delayed": "delayed", "active": "active", "suspended": "suspended"}
ESCALATION_MIN_MS = 1_000


class SuspensionRules(Rules):
    # ---- begin

    @staticmethod
    def _early(x: Execution, nodes: Nodes, waitpoints: list[str]) -> tuple[list[Signal], bool]:
        """Of the signals kept so far, those that count, up to the one that is enough; and whether there was one."""
        offered: list[Signal] = []
        counted: list[Signal] = []
        for signal in x.d.kept:
            if signal.waitpoint_id in waitpoints:
                effect = effect_of(nodes, waitpoints, offered, signal)
                offered.append(signal)
                if effect in COUNTED:
                    counted.append(signal)
                if effect == SATISFIED:
                    return counted, True
        return counted, False

    def _begin(
        self, p: Partition, x: Execution, s: Suspension, early: tuple[list[Signal], bool], timeout_at: int | None,
        key: str | None,
    ) -> bytes | None:  # fmt: skip
        """Whether the kept signals were enough: what with."""
        d = x.d
        s.counted, satisfied = list(early[0]), early[1]
        s.outcome = "already_satisfied" if satisfied else "suspended"
        if key:
            d.answers[key] = (s.outcome, s.id, s.waitpoints, s.fence)
        d.suspension = s
        self.touched[x.id] = x
        if s.consume:
            self._use_up(x, s.counted)
        if satisfied:
            return self._over(p, x, s, "signal")
        s.span_ms = 0 if timeout_at is None else max(1, timeout_at - p.now)
        for i, id in enumerate(s.waitpoints, 1):
            waitpoint = d.waitpoints[id]
            waitpoint.state, waitpoint.index, waitpoint.activated_at = "active", i, p.now
        x.suspend_until = timeout_at
        if timeout_at is not None:
            self.timer(p, "suspension", x, timeout_at)
        x.reason, x.next = SHOWN.get(s.reason_code, s.reason_code), "resumed"
        x.left_ms, x.attempt_deadline, x.ended_by, x.unseen = self.left(p, x), None, "suspend", 0
        self.move(p, x, "suspended")
        return None

    @staticmethod
    def _use_up(x: Execution, signals: list[Signal]) -> None:
        used = {signal.seq for signal in signals}
        x.d.kept = [signal for signal in x.d.kept if signal.seq not in used]

    def _over(self, p: Partition, x: Execution, s: Suspension, why: str) -> bytes:
        """It waits no longer: what it goes on with, recorded if it was a step."""
        value = packed(why, p.now, *[text for signal in s.counted for text in signal.texts])
        s.why, s.over_at = why, p.now
        if s.step is not None:
            self.put_entry(p, x, s.step, "wait", s.step_name, "ok", value, s.version)
        for id in s.waitpoints:
            waitpoint = x.d.waitpoints[id]
            if s.close and (s.step is None or why != "timeout"):
                self.close_waitpoint(p, x, waitpoint, "resumed")
            elif waitpoint.state == "active":
                waitpoint.state, waitpoint.index, waitpoint.expires_at = "pending", None, None
                if not s.retain:
                    x.d.kept = [signal for signal in x.d.kept if signal.waitpoint_id != id]
        return value

    def _resume(self, p: Partition, x: Execution, why: str, delay_ms: int) -> None:
        s = x.d.suspension
        assert s is not None and x.state == "suspended" and not s.why, "a suspension ends once"
        self._over(p, x, s, why)
        if x.suspend_until is not None:
            self.timer(p, "suspension", x, None)
            x.suspend_until = None
        if delay_ms > 0:
            x.reason, x.at = "waiting_for_resume_delay", p.now + delay_ms
            self.move(p, x, "delayed")
            return
        x.reason = None
        if x.turn is None:
            x.turn = self.take_turn(p, x)
        self.move(p, x, "ready")

    # ---- suspend and wait

    def _wrong(self, p: Partition, a: Any, timeout_at: int | None) -> bool:
        nodes = parsed(a.condition)
        named = [node[2] for node in nodes if node[0] == "single"]
        named += [i for node in nodes if node[0] == "count" for i in node[5]]
        if max(named, default=0) > len(a.waitpoints) or len(a.waitpoints) > self.bounds["WAITPOINTS_N"]:
            return True
        if timeout_at is None and any(node[0] == "timeout_only" for node in nodes):
            return True
        return timeout_at is not None and timeout_at + self.bounds["TIMEOUT_PAST_MS"] < p.now

    def call_suspend(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        known = self._answered(x, a.suspension_id, a.idempotency_key or None)
        if known is not None:
            tag, id, waitpoints, fence = known
            bound = self._bound(x, waitpoints)
            return Say(tag, {"suspension_id": id, "waitpoints": bound, "fence": fence, "replayed": True})
        refusal = self._may_suspend(p, x, a)
        if refusal is None and self._wrong(p, a, a.timeout_at):
            refusal = "invalid_input"
        if refusal:
            return No(refusal)
        for row in a.waitpoints:
            if not row.fresh and (refusal := self.unusable(p, x, row.waitpoint_id)):
                return No(refusal)
        for row in a.waitpoints:
            there = x.d.waitpoints.get(row.waitpoint_id)
            if row.fresh and there is not None:
                return No("waitpoint_already_exists")
            if there is not None and row.waitpoint_key not in ("", there.key):
                return No("invalid_waitpoint_for_execution")
        fresh = [row for row in a.waitpoints if row.fresh]
        if refusal := self.unopenable(p, x, fresh):
            return No(refusal)
        s = Suspension(a.suspension_id, parsed(a.condition), [row.waitpoint_id for row in a.waitpoints], x.fence)
        s.behavior, s.reason_code, s.delay_ms = a.timeout_behavior, a.reason_code, a.resume_delay_ms or 0
        s.consume, s.close = a.consume_matched_signals, a.close_waitpoint_on_resume
        s.retain = a.retain_signal_buffer_until_closed
        early = self._early(x, s.nodes, s.waitpoints)
        if not early[1] and self.cancelled_instead(p, x, "suspend"):
            return No("terminal")
        for row in fresh:
            self.open_waitpoint(p, x, row, None)
        holder = "" if a.fence else x.worker
        self._begin(p, x, s, early, a.timeout_at, a.idempotency_key or None)
        if x.state != "active":
            self.tell(p, holder, f"revoked {x.id}")
        elif a.fence:
            self.heard(x)
        bound = self._bound(x, s.waitpoints)
        return Say(s.outcome, {"suspension_id": s.id, "waitpoints": bound, "fence": s.fence, "replayed": False})

    @staticmethod
    def _bound(x: Execution, ids: list[str]) -> list[Any]:
        known = [(id, x.d.waitpoints.get(id)) for id in ids]
        return [(id, w.key if w else "", (w.kid if w else "") or "") for id, w in known]

    @staticmethod
    def _answered(x: Execution, id: str, key: str | None) -> tuple[str, str, list[str], str] | None:
        if key is not None and key in x.d.answers:
            return x.d.answers[key]
        s = x.d.suspension
        return (s.outcome, s.id, s.waitpoints, s.fence) if s is not None and s.id == id else None

    def _may_suspend(self, p: Partition, x: Execution, a: Any) -> str | None:
        given = a.fence.wire if a.fence is not None else None
        if x.state == "suspended" and given in (None, x.fence):
            return "already_suspended"
        if given is not None:
            refusal = self.check(p, x, given)
        elif a.requested_by == "worker":
            refusal = "fence_required"
        elif x.terminal:
            refusal = "terminal"
        else:
            refusal = None if x.state == "active" else "no_active_lease"
        if refusal is None and a.attempt_index not in (None, x.attempt):
            return "invalid_lease_for_suspend"
        return refusal

    def call_wait(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.check(p, x, a.fence.wire, "suspend")
        if refusal == "replay":
            assert x is not None
            return No("terminal") if x.terminal else Say("suspended", {"until": x.suspend_until or 0})
        if refusal:
            return No(refusal)
        assert x is not None
        done = x.d.entries.get(a.step)
        if done is not None:
            if (done.kind, done.status) != ("wait", "ok"):
                return No("invalid_input")
            self.heard(x)
            return Say("already_satisfied", {"value": done.value})
        timeout_at = None if a.timeout_ms is None else p.now + a.timeout_ms
        if self._wrong(p, a, timeout_at):
            return No("invalid_input")
        if len(x.d.entries) + 1 > self.bounds["STEPS_N"] or x.d.bytes > self.bounds["STEPS_BYTES"]:
            return No("journal_full")
        for row in a.waitpoints:
            if refusal := self.unusable(p, x, row.waitpoint_id):
                return No(refusal)
        s = Suspension(a.suspension_id, parsed(a.condition), [row.waitpoint_id for row in a.waitpoints], x.fence)
        s.step, s.step_name, s.version = a.step, a.step_name, a.version
        s.behavior, s.reason_code, s.close, s.retain = a.timeout_behavior, a.reason_code, a.close_waitpoints, True
        early = self._early(x, s.nodes, s.waitpoints)
        if not early[1] and self.cancelled_instead(p, x, "suspend"):
            return No("terminal")
        value = self._begin(p, x, s, early, timeout_at, None)
        if value is not None:
            self.heard(x)
        else:
            return Say("suspended", {"until": timeout_at or 0})
        return Say("already_satisfied", {"value": value})

    # ---- a signal comes

    def weigh(self, p: Partition, x: Execution, signal: Signal) -> tuple[str, bool]:
        """What a signal does to the suspension it came for, and whether that has used it up."""
        s = x.d.suspension
        assert s is not None and not s.why
        before = sorted([*s.counted, *[kept for kept in x.d.kept if kept not in s.counted]], key=lambda one: one.seq)
        before = [one for one in before if one.waitpoint_id in s.waitpoints]
        effect = effect_of(s.nodes, s.waitpoints, before, signal, s.approved)
        if effect in COUNTED:
            s.counted.append(signal)
        if effect == SATISFIED:
            self._resume(p, x, "signal", s.delay_ms)
        return effect, effect in COUNTED and s.consume

    # ---- by an operator's hand

    def call_resume_execution(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        if x.terminal:
            return No("terminal")
        if x.paused is not None:
            self._unpause(p, x, a.resume_delay_ms)
        elif x.state == "suspended":
            self._approve(p, x, a.resume_delay_ms, a.trigger_type != "operator")
        else:
            return No("execution_not_suspended")
        return Say("resumed", {"public_state": PUBLIC.get(x.state, "waiting")})

    def _approve(self, p: Partition, x: Execution, delay_ms: int, forced: bool) -> None:
        s = x.d.suspension
        assert s is not None
        first, s.approved = not s.approved, True
        asks = any(node[0] == "operator_only" for node in s.nodes)
        if asks and not forced and not holds(s.nodes, s.waitpoints, s.counted, True):
            if first:
                self.note(p, f"{x.uuid} suspended suspended")
            return
        self._resume(p, x, "operator", delay_ms)

    def call_pause_execution(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        if x.terminal:
            return No("terminal")
        if x.paused is not None:
            return Say("already_paused")
        self.touched[x.id] = x
        x.paused = f"{p.now}"
        if x.state in QUEUED or x.state == "delayed" or x.uuid in p.unknown:
            if x.state == "delayed":
                x.paused += f" {x.reason} {x.at}"
            x.reason = "paused_by_operator"
            self.move(p, x, "blocked")
            return Say("paused")
        self.note(p, f"{x.uuid} {x.state} {x.state}")
        return Say("pause_pending" if x.state in ("active", "granted") else "paused")

    def _unpause(self, p: Partition, x: Execution, delay_ms: int) -> None:
        assert x.paused is not None
        _, _, rest = x.paused.partition(" ")
        reason, _, at = rest.partition(" ")
        x.paused = None
        self.touched[x.id] = x
        if (x.state, x.reason) != ("blocked", "paused_by_operator") or x.uuid in p.held:
            self.note(p, f"{x.uuid} {x.state} {x.state}")
            return
        due = max(int(at or "0"), p.now + delay_ms if delay_ms > 0 else 0)
        if due > p.now:
            x.reason = reason or ("waiting_for_retry_backoff" if x.next == "retry" else "waiting_for_resume_delay")
            x.at = due
            self.move(p, x, "delayed")
        elif at:
            x.reason, x.eligible_at = None, p.now
            x.turn = self.take_turn(p, x)
            self.move(p, x, "ready")
        else:
            x.reason = None
            self.requeue(p, x)

    # ---- time is over

    def due_suspension(self, p: Partition, uuid: str) -> None:
        x = p.records.get(uuid)
        if x and x.state == "suspended" and x.suspend_until is not None and x.suspend_until <= p.now:
            self._time_over(p, x)

    def _time_over(self, p: Partition, x: Execution) -> str:
        s = x.d.suspension
        assert s is not None
        behavior = s.behavior
        if behavior == "auto_resume_with_timeout_signal":
            self._resume(p, x, "timeout", 0)
        elif behavior == "escalate":
            s.nodes, s.behavior, s.delay_ms, s.approved = OPERATOR, "fail", 0, False
            x.reason, x.suspend_until = "paused_by_operator", p.now + max(ESCALATION_MIN_MS, s.span_ms)
            self.timer(p, "suspension", x, x.suspend_until)
            self.note(p, f"{x.uuid} suspended suspended")
            self.touched[x.id] = x
        else:
            word = {"cancel": "cancelled", "expire": "expired"}.get(behavior, "failed")
            x.category = "suspension_timeout"
            self.finish(p, x, word)
        return behavior

    def call_expire_suspension(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        reason = None
        if x is None:
            reason = "execution_not_found"
        elif x.state != "suspended":
            reason = "not_suspended"
        elif x.suspend_until is None:
            reason = "no_timeout"
        elif x.suspend_until > p.now:
            reason = "not_yet_due"
        if reason or x is None:
            return Say("already_satisfied", {"reason": reason})
        return Say("expired", {"behavior_applied": self._time_over(p, x)})

    def end_suspension(self, p: Partition, x: Execution) -> None:
        """The execution ends while it waits: what had counted is there for a replay, where that can wait for it."""
        s = x.d.suspension
        if x.state == "suspended" and s is not None:
            s.why, s.over_at = "ended", p.now
            if s.consume:
                back = [signal for signal in s.counted if x.d.waitpoints[signal.waitpoint_id].state != "closed"]
                x.d.kept = sorted([*x.d.kept, *back], key=lambda signal: signal.seq)
            s.counted = []
            if x.suspend_until is not None:
                self.timer(p, "suspension", x, None)
                x.suspend_until = None

    # ---- reads

    def call_observe_signals(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        s = x.d.suspension
        if s is None:
            return Say("signals", {"suspension_id": "", "why": "", "signals": []})
        wanted = [(*signal.texts,) for signal in s.counted][a.skip :][: a.limit]
        rest = a.skip + len(wanted) < len(s.counted)
        return Say("signals", {"suspension_id": s.id, "why": s.why, "resumed_at": s.over_at, "signals": wanted,
                               "next": a.skip + len(wanted) if rest else 0})  # fmt: skip

    def call_list_suspended(self, p: Partition, a: Any) -> Expected:
        waiting = [x for x in p.records.values() if x.state == "suspended" and a.lane_id in (None, x.lane.name)]
        ids = {x.id for x in waiting}

        def right(got: Any) -> str | None:
            page = [row.execution_id for row in got.rows]
            whole = a.cursor is None and not got.next_cursor
            if len(page) != len(set(page)) or not set(page) <= ids or (whole and set(page) != ids):
                return f"a page of {page}, all that wait are {sorted(ids)}"
            return None

        return Say("suspended_page", {}, right)
