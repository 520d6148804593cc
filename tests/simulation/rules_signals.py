"""What opening and closing waitpoints, sending signals and rotating secrets must answer.

The order of a delivery's checks is the promise: the token, then whether the key is known, then whether there is room.
"""

from __future__ import annotations

from typing import Any

from tests.simulation.between import Rules
from tests.simulation.durable import Signal, Waitpoint, packed, unpacked
from tests.simulation.model import Expected, No, Say
from tests.simulation.records import Execution, Partition


class SignalRules(Rules):
    # ---- waitpoints

    def unopenable(self, p: Partition, x: Execution, rows: list[Any]) -> str | None:
        """Why waitpoints cannot be opened together. One that is there under this id and key is no reason."""
        fresh = 0
        for row in rows:
            there = x.d.waitpoints.get(row.waitpoint_id)
            if there is not None and there.key != row.waitpoint_key:
                return "waitpoint_already_exists"
            if there is None:
                fresh += 1
                if row.kid is not None and row.kid != p.kid:
                    return "invalid_kid"
            if len(x.d.open_waitpoints()) + fresh > self.bounds["WAITPOINTS_N"]:
                return "waitpoint_limit_exceeded"
        return None

    def open_waitpoint(self, p: Partition, x: Execution, row: Any, expires_in_ms: int | None) -> None:
        expires = None if expires_in_ms is None else p.now + expires_in_ms
        d = x.d
        d.waitpoints[row.waitpoint_id] = Waitpoint(
            row.waitpoint_id, row.waitpoint_key, row.kid, row.token_digest, p.now, expires
        )  # fmt: skip
        if expires is not None and (d.next_expiry is None or expires < d.next_expiry):
            d.next_expiry = expires
            self.timer(p, "waitpoint", x, expires)
        self.touched[x.id] = x

    def unusable(self, p: Partition, x: Execution, waitpoint_id: str) -> str | None:
        """Why the execution cannot begin to wait there."""
        waitpoint = x.d.waitpoints.get(waitpoint_id)
        if waitpoint is None:
            return "waitpoint_not_found"
        if waitpoint.state != "pending":
            return "waitpoint_not_pending"
        late = waitpoint.expires_at is not None and waitpoint.expires_at <= p.now
        return "pending_waitpoint_expired" if late else None

    def close_waitpoint(self, p: Partition, x: Execution, waitpoint: Waitpoint, reason: str) -> None:
        if waitpoint.state != "closed":
            waitpoint.state, waitpoint.index, waitpoint.reason = "closed", None, reason.replace(" ", "_")
            if reason != "ended":
                # Nothing can wait there again. After an end something can: a replay.
                x.d.kept = [signal for signal in x.d.kept if signal.waitpoint_id != waitpoint.id]
            self.touched[x.id] = x

    def end_waitpoints(self, p: Partition, x: Execution, reason: str = "ended") -> None:
        for waitpoint in x.d.open_waitpoints():
            self.close_waitpoint(p, x, waitpoint, reason)
        if x.d.next_expiry is not None:
            x.d.next_expiry = None
            self.timer(p, "waitpoint", x, None)

    def reopen_waitpoints(self, p: Partition, x: Execution) -> None:
        """What only the end has closed is open again for a replay that goes on with what was done."""
        for waitpoint in x.d.waitpoints.values():
            if waitpoint.reason == "ended":
                waitpoint.state, waitpoint.reason, waitpoint.expires_at = "pending", "", None

    def due_waitpoint(self, p: Partition, uuid: str) -> None:
        """Pending ones whose time is over close by themselves."""
        x = p.records.get(uuid)
        if x is None or x.terminal:
            return
        later: list[int] = []
        for waitpoint in sorted(x.d.waitpoints.values(), key=lambda one: one.id):
            if waitpoint.state == "pending" and waitpoint.expires_at is not None:
                if waitpoint.expires_at <= p.now:
                    self.close_waitpoint(p, x, waitpoint, "expired")
                    self.note(p, f"{x.uuid} {x.state} {x.state}")
                else:
                    later.append(waitpoint.expires_at)
        x.d.next_expiry = min(later, default=None)
        if x.d.next_expiry is not None:
            self.timer(p, "waitpoint", x, x.d.next_expiry)

    def call_create_pending_waitpoint(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.check(p, x, a.fence.wire)
        if refusal:
            return No(refusal)
        assert x is not None
        done = x.d.entries.get(a.step) if a.step is not None else None
        if done is not None:
            if (done.kind, done.status) != ("gate", "ok"):
                return No("invalid_input")
            self.heard(x)
            id, key, kid = (text.decode() for text in unpacked(done.value))
            return Say("created", {"waitpoint_id": id, "waitpoint_key": key, "kid": kid, "replayed": True})
        refusal = self.unopenable(p, x, [a])
        if refusal:
            return No(refusal)
        value = packed(a.waitpoint_id, a.waitpoint_key, a.kid or "")
        if a.step is not None and (
            len(x.d.entries) + 1 > self.bounds["STEPS_N"]
            or x.d.bytes + len(a.step) + len(a.step_name) + len(value) + 64 > self.bounds["STEPS_BYTES"]
        ):
            return No("journal_full")
        self.heard(x)
        there = x.d.waitpoints.get(a.waitpoint_id)
        if there is None:
            self.open_waitpoint(p, x, a, a.expires_in_ms)
        elif a.step is None:
            return Say("created", {"waitpoint_id": there.id, "waitpoint_key": there.key, "kid": there.kid or "",
                                   "replayed": True})  # fmt: skip
        if a.step is not None:
            self.put_entry(p, x, a.step, "gate", a.step_name, "ok", value, a.version)
        return Say("created", {"waitpoint_id": a.waitpoint_id, "waitpoint_key": a.waitpoint_key, "kid": a.kid or "",
                               "replayed": False})  # fmt: skip

    def call_close_waitpoint(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.at)
        if x is None:
            return No("execution_not_found")
        waitpoint = x.d.waitpoints.get(a.waitpoint_id)
        if waitpoint is None:
            return No("waitpoint_not_found")
        if waitpoint.state != "closed":
            self.close_waitpoint(p, x, waitpoint, a.reason)
            self.note(p, f"{x.uuid} {x.state} {x.state}")
        return Say("closed")

    def call_list_pending_waitpoints(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        rows = sorted((w for w in x.d.open_waitpoints() if a.after is None or w.id > a.after), key=lambda w: w.id)
        page = rows[: a.limit or 100]
        wanted = [
            {"waitpoint_id": w.id, "waitpoint_key": w.key, "state": w.state, "created_at": w.created_at,
             "activated_at": w.activated_at, "expires_at": w.expires_at, "token_kid": w.kid or "",
             "token_fingerprint": (w.digest or "")[:16]}
            for w in page
        ]  # fmt: skip
        return Say("waitpoints", {"entries": wanted, "next_cursor": page[-1].id if len(page) < len(rows) else None})

    # ---- signals

    def _refused(self, p: Partition, x: Execution | None) -> No:
        """A token that opens nothing: told in the feed, but not as often as somebody tries."""
        if p.now - p.bad_tokens_at >= self.bounds["BAD_TOKENS_MS"]:
            p.bad_tokens_at = p.now
            self.note(p, "o" if x is None else f"{x.uuid} {x.state} {x.state}")
        return No("invalid_token")

    @staticmethod
    def _opens(p: Partition, waitpoint: Waitpoint, digest: str) -> bool:
        """Only the token of this waitpoint does, as long as its kid verifies."""
        kid = waitpoint.kid
        verifies = kid is not None and (kid == p.kid or (kid in p.kids and p.kids[kid][1] > p.now))
        return verifies and waitpoint.digest == digest

    def _deliver(self, p: Partition, a: Any) -> Expected:
        if not a.operator and a.token_digest == "":
            return No("missing_token")
        x = self.find(p, a.execution_id)
        waitpoint = x.d.waitpoints.get(a.waitpoint_id) if x is not None else None
        if a.operator:
            if x is None or waitpoint is None:
                return No("execution_not_found" if x is None else "waitpoint_not_found")
        elif x is None or waitpoint is None or not self._opens(p, waitpoint, a.token_digest):
            return self._refused(p, x)
        d = x.d
        # One without a key is known by its own id.
        mark = waitpoint.id, "\n" + a.signal_id if a.idempotency_key is None else a.idempotency_key
        known = d.dedup.get(mark)
        if known is not None and known[0] > p.now:
            return Say("duplicate", {"existing_signal_id": known[1], "effect": known[2]})
        over = waitpoint.expires_at is not None and waitpoint.expires_at <= p.now
        if waitpoint.state == "closed" or (waitpoint.state == "pending" and over):
            return No("waitpoint_closed")
        most = min(x.policy.max_signals_per_execution, self.bounds["SIGNALS_N"])
        if a.max_signals_per_execution is not None:
            most = min(most, a.max_signals_per_execution)
        if d.signals_n >= most:
            return No("signal_limit_exceeded")
        d.signals_n += 1
        signal = Signal(
            d.signals_n, waitpoint.id, a.signal_id, a.signal_name, a.signal_category, a.source_type, a.source_identity,
            a.correlation_id or "", p.now, a.idempotency_key or "", a.payload_encoding or "", a.payload or b"",
        )  # fmt: skip
        effect, used = "appended_to_waitpoint", False
        if waitpoint.state == "active":
            effect, used = self.weigh(p, x, signal)
        if not used and waitpoint.state != "closed":
            d.kept.append(signal)
        ttl = self.bounds["SIGNAL_DEDUP_MS"] if a.dedup_ttl_ms is None else a.dedup_ttl_ms
        d.dedup[mark] = (p.now + ttl, signal.id, effect)
        self.touched[x.id] = x
        self.note(p, f"{x.uuid} {x.state} {x.state}")
        if a.operator:
            self.note(p, f"{x.uuid} {x.state} {x.state}")
        return Say("accepted", {"signal_id": signal.id, "effect": effect})

    def call_deliver_signal(self, p: Partition, a: Any) -> Expected:
        return self._deliver(p, a)

    def call_buffer_signal_for_pending_waitpoint(self, p: Partition, a: Any) -> Expected:
        said = self._deliver(p, a)
        if isinstance(said, Say) and said.tag == "accepted":
            return Say("buffered", {"signal_id": said.fields["signal_id"]})
        return said

    # ---- secrets

    def call_seed_waitpoint_hmac_secret(self, p: Partition, a: Any) -> Expected:
        if p.kid is not None:
            same = p.kid == a.kid and p.kids[p.kid][0] == a.fingerprint
            return Say("already_seeded", {"kid": p.kid, "same_secret": same})
        p.kid, p.kids[a.kid] = a.kid, (a.fingerprint, 0)
        return Say("seeded", {"kid": a.kid})

    def call_rotate_waitpoint_hmac_secret(self, p: Partition, a: Any) -> Expected:
        known = p.kids.get(a.new_kid)
        # Open waitpoints know a kid by its name alone: it must not become another secret's.
        used = self._open_of(p, a.new_kid) > 0
        if known and known[0] != a.fingerprint and (a.new_kid == p.kid or known[1] > p.now or used):
            return No("rotation_conflict")
        if used and not known:
            return No("rotation_conflict")
        if a.new_kid == p.kid:
            return Say("noop", {"kid": p.kid, "open_waitpoints": self._of_others(p, a.new_kid)})
        over = [kid for kid, (_, until) in p.kids.items() if kid not in (p.kid, a.new_kid) and until <= p.now]
        for kid in over:
            del p.kids[kid]
        was = p.kid
        if was is not None:
            p.kids[was] = (p.kids[was][0], max(1, p.now + a.grace_ms))
        p.kid, p.kids[a.new_kid] = a.new_kid, (a.fingerprint, 0)
        self.note(p, "o")
        return Say("rotated", {"previous_kid": was, "new_kid": a.new_kid, "gc_count": len(over),
                               "open_waitpoints": self._of_others(p, a.new_kid)})  # fmt: skip

    @staticmethod
    def _open_of(p: Partition, kid: str) -> int:
        return sum(1 for x in p.records.values() for w in x.d.open_waitpoints() if w.kid == kid)

    @staticmethod
    def _of_others(p: Partition, kid: str) -> int:
        """Open waitpoints whose tokens end with a grace."""
        held = [w.kid for x in p.records.values() for w in x.d.open_waitpoints()]
        return sum(1 for one in held if one not in (None, kid))

    def call_list_waitpoint_hmac_kids(self, p: Partition, a: Any) -> Expected:
        verifying = [(kid, until) for kid, (_, until) in sorted(p.kids.items()) if kid != p.kid and until > p.now]
        return Say("kids", {"current_kid": p.kid, "verifying": verifying})
