"""What a lease holder's calls must answer: complete, fail, delay, give back, renew, progress; and how a lease ends.

The refusals come in one order (decision 0007): not found, the first outcome again, terminal, stale, revoked, expired.
"""

from __future__ import annotations

from typing import Any

import msgspec

from ffcore import limits
from ffcore.policy import ExponentialBackoff, RetryPolicy, backoff_ms
from tests.simulation.between import Rules
from tests.simulation.model import Expected, No, Say
from tests.simulation.records import QUEUED, Execution, Partition

FINAL = {
    "fatal", "permanent", "invalid_payload", "invalid_result", "result_too_large", "unknown_task", "poisoned",
    "cancelled",
}  # fmt: skip
"""Categories that no policy retries."""


class WorkerRules(Rules):
    # ---- the fence

    def check(self, p: Partition, x: Execution | None, fence: str, operation: str | None = None) -> str | None:
        """None: go on. ``replay``: answer the first outcome. Else the refusal."""
        if x is None:
            return "execution_not_found"
        same = fence == x.fence
        if x.terminal:
            return "replay" if same and operation is not None and x.ended_by == operation else "terminal"
        if not same:
            return "stale_lease"
        if x.state != "active":
            if operation is not None and x.ended_by == operation:
                return "replay"
            return "lease_revoked" if x.state == "revoked" else "stale_lease"
        return "lease_expired" if x.at <= p.now and p.grace < p.now else None

    def resolve(self, p: Partition, x: Execution | None, a: Any, operation: str) -> str | None:
        """The same for calls that an operator may make without a fence."""
        if a.fence is not None:
            return self.check(p, x, a.fence.wire, operation)
        if x is None:
            return "execution_not_found"
        if a.source != "operator_override":
            return "fence_required"
        if x.terminal:
            return "terminal"
        return None if x.state == "active" else "no_active_lease"

    # ---- complete

    def _complete(self, p: Partition, x: Execution, result: bytes | None) -> None:
        x.result = result
        self.finish(p, x, "completed", "complete")

    def call_complete_execution(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.resolve(p, x, a, "complete")
        if refusal == "replay":
            return Say("completed", {"execution_id": a.execution_id, "public_state": "completed", "replayed": True})
        if refusal:
            return No(refusal)
        assert x is not None
        if a.result_payload is not None and len(a.result_payload) > limits.RESULT_BYTES:
            return No("payload_too_large")
        self._complete(p, x, a.result_payload)
        return Say("completed", {"execution_id": a.execution_id, "public_state": "completed", "replayed": False})

    def complete_item(self, p: Partition, row: Any) -> tuple[str, str]:
        x = self.find(p, row.execution_id)
        refusal = self.check(p, x, row.fence, "complete")
        if refusal == "replay":
            return ("replayed", "completed")
        if refusal:
            return ("error", refusal)
        assert x is not None
        self._complete(p, x, row.result)
        return ("completed", "completed")

    # ---- fail

    def fail(
        self, p: Partition, x: Execution, category: str, operation: str | None, given: Any = None,
        after_ms: int | None = None,
    ) -> str:  # fmt: skip
        retry: RetryPolicy | None = given or x.policy.retry_policy
        allowed = retry is not None and category not in FINAL and x.retries < retry.max_retries
        if allowed and retry is not None and retry.retryable_categories:
            allowed = category in retry.retryable_categories
        if (allowed or operation != "fail") and self.cancelled_instead(p, x, operation or "cancel"):
            return "cancelled"
        if not allowed:
            x.category = category
            self.finish(p, x, "failed", operation)
            return "failed"
        assert retry is not None
        wait = backoff_ms(retry, x.retries, 0.0) if after_ms is None else after_ms
        self.logged(x, "ended_failure")
        x.reason, x.next, x.at, x.ended_by = "waiting_for_retry_backoff", "retry", p.now + wait, operation
        x.retries += 1
        x.hand_backs = x.unseen = 0
        x.attempt_deadline = None
        self.move(p, x, "delayed")
        return "delayed"

    def call_fail_execution(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.resolve(p, x, a, "fail")
        if refusal == "replay":
            assert x is not None
            if x.terminal:
                return Say("terminal_failed", {"replayed": True})
            return Say("retry_scheduled", {"next_attempt_index": (x.attempt or 0) + 1, "replayed": True})
        if refusal:
            return No(refusal)
        assert x is not None
        given = msgspec.json.decode(a.retry_policy_json, type=RetryPolicy) if a.retry_policy_json else None
        retries, now = x.retries, p.now
        led_to = self.fail(p, x, a.failure_category, "fail", given, a.retry_after_ms)
        if led_to != "delayed":
            return Say("terminal_failed", {"replayed": False})
        fields = {"next_attempt_index": (x.attempt or 0) + 1, "replayed": False, "delay_until": x.at}
        backoff = (given or x.policy.retry_policy).backoff  # type: ignore[union-attr]
        if a.retry_after_ms is None and isinstance(backoff, ExponentialBackoff) and backoff.jitter:
            # The engine draws: half to whole of the delay is right, and the model goes on with what was drawn.
            del fields["delay_until"]
            most = backoff_ms(RetryPolicy(max_retries=1, backoff=msgspec.structs.replace(backoff, jitter=False)),
                              retries, 0.0)  # fmt: skip
            return Say("retry_scheduled", fields, lambda got: self._adopt_delay(p, x, got.delay_until, now, most))
        return Say("retry_scheduled", fields)

    def _adopt_delay(self, p: Partition, x: Execution, due: int, now: int, most: int) -> str | None:
        if not most // 2 <= due - now <= most:
            return f"a jittered delay of {due - now} ms, not half to whole of {most}"
        # Taken over, also for the ticker who is told of it, or need not be.
        mine = (f"ff:{p.key}:tick", x.at)
        kept = [ring for ring in self.rings if ring != mine]
        self.rings = [*kept, (mine[0], due)] if len(kept) < len(self.rings) and due < p.ticker_until else kept
        if x.paused is not None:
            x.paused = f"{x.paused.rpartition(' ')[0]} {due}"
            return None
        x.at = due
        p.timers[f"delay:{x.uuid}"] = due
        return None

    # ---- give the lease up

    def call_delay_execution(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.resolve(p, x, a, "delay")
        if refusal == "replay":
            return Say("delayed", {"public_state": "delayed"})
        if refusal:
            return No(refusal)
        assert x is not None
        if a.delay_until > p.now + limits.SPAN_MAX_MS:
            return No("invalid_input")
        if self.cancelled_instead(p, x, "delay"):
            return Say("delayed", {"public_state": "cancelled"})
        x.reason, x.at, x.next = "waiting_for_delay", max(a.delay_until, p.now), "resumed"
        x.left_ms, x.attempt_deadline, x.ended_by, x.unseen = self.left(p, x), None, "delay", 0
        self.move(p, x, "delayed")
        return Say("delayed", {"public_state": "delayed"})

    def call_unclaim(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.check(p, x, a.fence, "unclaim")
        if refusal == "replay":
            assert x is not None
            return Say("unclaimed", {"state": x.state})
        if refusal:
            return No(refusal)
        assert x is not None
        if a.reason not in ("hand_back", "refused", "unknown_task"):
            return No("invalid_input")
        if not self.cancelled_instead(p, x, "unclaim"):
            self.unclaim(p, x, a.reason)
        return Say("unclaimed", {"execution_id": a.execution_id, "state": x.state})

    def unclaim(self, p: Partition, x: Execution, reason: str) -> None:
        x.ended_by = "unclaim"
        if reason == "hand_back":
            if x.hand_backs >= limits.HAND_BACKS_N:
                x.hand_backs = 0
                self.interrupt(p, x, "reclaimable", x.crashes + 1, 0)
                return
            x.next, x.left_ms = "resumed", self.left(p, x)
            x.hand_backs += 1
        elif x.next == "resumed":
            x.left_ms = self.left(p, x)
        else:
            x.attempt = (x.attempt or 0) - 1
        x.attempt_deadline, x.unseen = None, 0
        if reason == "unknown_task" and x.paused is None:
            x.reason = "waiting_for_capable_worker"
            self.move(p, x, "blocked")
            p.unknown[x.uuid] = p.now
            self.timer(p, "unknown_task", x, p.now + limits.UNKNOWN_TASK_MS)
            return
        if x.turn is None:
            x.turn = self.take_turn(p, x)
        self.move(p, x, "ready")

    def due_delay(self, p: Partition, uuid: str) -> None:
        x = p.records.get(uuid)
        if x and x.state == "delayed" and x.at <= p.now:
            x.reason, x.eligible_at = None, p.now
            x.turn = self.take_turn(p, x)
            self.move(p, x, "ready")

    def due_unknown_task(self, p: Partition, uuid: str) -> None:
        p.unknown.pop(uuid, None)
        x = p.records.get(uuid)
        if x and (x.state, x.reason) == ("blocked", "waiting_for_capable_worker"):
            self.finish(p, x, "failed")

    # ---- renew and progress

    def _renew(self, p: Partition, x: Execution | None, fence: str, ttl: int) -> str | int:
        refusal = self.check(p, x, fence)
        if refusal:
            return refusal
        assert x is not None
        x.at = p.now + (x.policy.lease_ms or ttl)
        if x.attempt_deadline is not None:
            x.at = min(x.at, x.attempt_deadline)
        x.heard = x.epoch
        p.leases[x.uuid] = x.at
        self.soon(p, x.at)
        self.touched[x.id] = x
        return x.at

    def call_renew_lease(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if a.fence is None:
            return No("fence_required" if x else "execution_not_found")
        got = self._renew(p, x, a.fence.wire, a.lease_ttl_ms)
        return No(got) if isinstance(got, str) else Say("renewed", {"expires_at": got})

    def call_renew_many(self, p: Partition, a: Any) -> Expected:
        items: list[tuple[str, str, int]] = []
        for row in a.items:
            x = self.find(p, row.execution_id)
            got = self._renew(p, x, row.fence, a.lease_ttl_ms)
            if isinstance(got, str):
                items.append(("error", got, 0))
            else:
                assert x is not None
                items.append(("renewed", f"cancel:{x.cancel_until}" if x.cancel_until is not None else "", got))
        return Say("renewed_many", {"now_ms": p.now, "items": items})

    def call_update_progress(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.check(p, x, f"{a.lease_id} {a.lease_epoch} {a.attempt_id}")
        if refusal:
            return No(refusal)
        assert x is not None
        self.heard(x)
        return Say("updated")

    # ---- the lease ends by time or by hand

    def call_mark_lease_expired(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        reason = None
        if x is None:
            reason = "execution_not_found"
        elif x.state != "active":
            reason = "not_active"
        elif x.at > p.now:
            reason = "not_yet_expired"
        elif p.grace >= p.now:
            reason = "grace"
        if reason or x is None:
            return Say("already_satisfied", {"reason": reason})
        self.expire_lease(p, x)
        return Say("marked_expired")

    def call_revoke_lease(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        if x.terminal:
            return No("terminal")
        if x.state in ("revoked", "reclaimable"):
            word = "already_revoked" if x.state == "revoked" else "already_expired"
            return Say("already_satisfied", {"reason": word})
        if x.state != "active":
            return No("no_active_lease")
        if (a.expected_lease_id or x.lease_id) != x.lease_id or (a.worker_instance_id or x.worker) != x.worker:
            return No("stale_lease")
        answer = Say("revoked", {"lease_id": x.lease_id, "lease_epoch": x.epoch})
        if not self.cancelled_instead(p, x):
            holder = x.worker
            self.interrupt(p, x, "revoked", x.crashes, x.unseen)
            self.tell(p, holder, f"revoked {x.id}")
        return answer

    # ---- cancel and expire

    def call_cancel_execution(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        id, given = x.id, a.lease_id is not None
        if x.terminal:
            tag = "cancelled" if x.state == "cancelled" else "already_terminal"
            return Say(tag, {"execution_id": id, "public_state": x.state})
        if given:
            refusal = self.check(p, x, f"{a.lease_id} {a.lease_epoch} {a.attempt_id}")
            if refusal:
                return No(refusal)
        elif x.state == "active" and a.source != "operator_override":
            self.request_cancel(p, x, a.source, a.grace_ms)
            return Say("cancel_requested", {"execution_id": id, "grace_until": x.cancel_until})
        self._cancel_at_once(p, x, a.source)
        return Say("cancelled", {"execution_id": id, "public_state": "cancelled"})

    def request_cancel(self, p: Partition, x: Execution, source: str, grace_ms: int | None = None) -> None:
        """What does not run ends now, the holder of what does has a grace."""
        if x.state != "active":
            self._cancel_at_once(p, x, source)
        elif x.cancel_until is None:
            x.cancel_until = p.now + (limits.CANCEL_GRACE_MS if grace_ms is None else grace_ms)
            x.cancelled_by = source
            self.timer(p, "cancel_grace", x, x.cancel_until)
            self.note(p, f"{x.uuid} active active")
            self.tell(p, x.worker, f"cancel {x.id}")
            self.touched[x.id] = x

    def _cancel_at_once(self, p: Partition, x: Execution, source: str) -> None:
        holder = x.worker if x.state == "active" else ""
        if x.cancel_until is None or source == "operator_override":
            x.cancelled_by = source
        self.finish(p, x, "cancelled", "cancel")
        self.tell(p, holder, f"cancel {x.id}")

    def due_cancel_grace(self, p: Partition, uuid: str) -> None:
        x = p.records.get(uuid)
        if x and not x.terminal and x.cancel_until is not None and x.cancel_until <= p.now:
            holder = x.worker
            self.finish(p, x, "cancelled", "cancel")
            self.tell(p, holder, f"cancel {x.id}")

    def call_expire_execution(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        if x.terminal:
            return Say("already_terminal")
        if a.expire_reason == "attempt_timeout":
            if x.state != "active":
                return No("no_active_lease")
            if self.fail(p, x, "timeout", None) == "delayed":
                fields = {"next_attempt_index": (x.attempt or 0) + 1, "replayed": False, "delay_until": x.at}
                return Say("retry_scheduled", fields)
            return Say("expired", {"execution_id": x.id})
        self._expire(p, x)
        return Say("expired", {"execution_id": x.id})

    def _expire(self, p: Partition, x: Execution) -> None:
        holder = x.worker if x.state == "active" else ""
        if not self.cancelled_instead(p, x):
            self.finish(p, x, "expired")
        self.tell(p, holder, f"cancel {x.id}")

    def due_deadline(self, p: Partition, uuid: str) -> None:
        x = p.records.get(uuid)
        if x and not x.terminal and x.deadline_at is not None and x.deadline_at <= p.now:
            self._expire(p, x)

    # ---- block

    def call_block_execution(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        if x.terminal:
            return No("terminal")
        if (x.state, x.reason) == ("blocked", a.blocking_reason):
            return Say("blocked")
        if x.state not in QUEUED:
            return No("execution_not_eligible")
        x.reason = a.blocking_reason
        self.move(p, x, "blocked")
        return Say("blocked")

    def call_block_route(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None or x.state not in QUEUED:
            word = "execution_not_eligible" if x else "execution_not_found"
            return Say("lua_rejected", {"message": word})
        x.reason = a.reason_code
        self.move(p, x, "blocked")
        return Say("blocked", {"execution_id": x.id})

    def call_unblock_execution(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        if x.state != "blocked":
            return No("not_blocked")
        if a.expected_blocking_reason not in (None, x.reason):
            return No("invalid_blocking_reason")
        if x.reason == "waiting_for_children" and self.waits(x):
            return No("deps_not_satisfied")
        if x.reason == "paused_by_operator":
            x.paused = None  # whoever lifts just this says that it may run
        x.reason = None
        self.requeue(p, x)
        return Say("unblocked")
