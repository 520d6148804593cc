"""What recording steps, reading them back, beginning a new run and pinning a version must answer."""

from __future__ import annotations

from typing import Any

from ffcore.steps import JournalEntry
from tests.simulation.between import Rules
from tests.simulation.durable import Durable, Entry, unpacked
from tests.simulation.model import Expected, No, Say
from tests.simulation.records import Execution, Partition

RENEWAL_GAIN = 16
"""A renewal that travels with a step is left out where it would gain less than this part of the lease."""


def entry_text(entry: Entry) -> bytes:
    head = f"{entry.key} {entry.kind} {entry.status} {entry.at} {entry.attempt} {len(entry.name.encode())}:{entry.name}"
    return head.encode() + entry.value


class StepRules(Rules):
    # ---- the journal

    def put_entry(
        self, p: Partition, x: Execution, key: str, kind: str, name: str, status: str, value: bytes, version: int
    ) -> Entry:  # fmt: skip
        """Write an entry, in the place of an unfinished one of its key."""
        d = x.d
        old = d.entries.get(key)
        assert old is None or not old.final, "a recorded step is recorded for good"
        seq = old.seq if old else len(d.entries) + 1
        entry = Entry(seq, key, kind, name, status, p.now, max(x.attempt or 0, 0), value, x.epoch)
        d.bytes += len(entry_text(entry)) - (len(entry_text(old)) if old else 0)
        d.entries[key] = entry
        if old is None and seq == 1:
            # Its first entry settles the version; a replay that goes on stays in the run it goes on with.
            d.began = (x.run if d.began is None else d.began[0], version)
        x.unpinned = False
        self.touched[x.id] = x
        return entry

    def no_room(self, x: Execution, entry_bytes: int, old: Entry | None) -> bool:
        n = len(x.d.entries) + (old is None)
        size = x.d.bytes + entry_bytes - (len(entry_text(old)) if old else 0)
        return n > self.bounds["STEPS_N"] or size > self.bounds["STEPS_BYTES"]

    def journal_has_no_room(self, p: Partition, x: Execution, key: str, kind: str, name: str, value: bytes) -> bool:
        trial = Entry(0, key, kind, name, "ok", p.now, max(x.attempt or 0, 0), value, x.epoch)
        return self.no_room(x, len(entry_text(trial)), x.d.entries.get(key))

    def _extend(self, p: Partition, x: Execution, ttl: int) -> None:
        if ttl and x.at - p.now <= ttl - ttl / RENEWAL_GAIN:
            until = p.now + (x.policy.lease_ms or ttl)
            if x.attempt_deadline is not None:
                until = min(until, x.attempt_deadline)
            if until > x.at:
                x.at = until
                p.leases[x.uuid] = until
                self.soon(p, until)

    def call_record_step(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.check(p, x, a.fence)
        if refusal:
            return No(refusal)
        assert x is not None
        old = x.d.entries.get(a.step)
        value = str(x.epoch).encode() if a.status == "intent" else a.value or b""
        if old is not None and (old.final or self._begun_elsewhere(x, old, a.status)):
            self._renewed(p, x, a)
            fields = {"lease_expires_at": x.at, "cancel_until": x.cancel_until or 0}
            return Say("replayed", fields, lambda got: self._unlike(old, got.entry))
        trial = Entry(0, a.step, a.kind, a.name, a.status, p.now, max(x.attempt or 0, 0), value, x.epoch)
        if self.no_room(x, len(entry_text(trial)), old):
            return No("journal_full")
        self._renewed(p, x, a)
        # The same as what stands is the same call, sent again.
        again = old is not None and (old.status, old.value, old.attempt) == (a.status, value, trial.attempt)
        entry = self.put_entry(p, x, a.step, a.kind, a.name, a.status, value, a.version)
        self.append_frames(p, x, [] if again else a.frames)
        fields = {"seq": entry.seq, "lease_expires_at": x.at, "cancel_until": x.cancel_until or 0}
        return Say("recorded", fields)

    @staticmethod
    def _begun_elsewhere(x: Execution, old: Entry, status: str) -> bool:
        """A step that must not run twice was begun under another lease: whoever asks now is told so."""
        return old.status == "intent" and status == "intent" and old.value != str(x.epoch).encode()

    def _renewed(self, p: Partition, x: Execution, a: Any) -> None:
        self._extend(p, x, a.lease_ttl_ms)
        self.heard(x)

    @staticmethod
    def _unlike(entry: Entry, raw: bytes) -> str | None:
        got = JournalEntry.parse(raw)
        wanted = (entry.key, entry.kind, entry.status, entry.at, entry.attempt, entry.name, entry.value)
        told = (got.key, got.kind, got.status, got.at_ms, got.attempt, got.name, got.value)
        return f"the entry says {told}, it should be {wanted}" if told != wanted else None

    def call_read_journal(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        wanted = [entry_text(entry) for entry in x.d.by_seq()][a.from_seq - 1 :][: a.limit]
        fields = {"began": self._began(x), "total": len(x.d.entries)}

        def right(got: Any) -> str | None:
            n = len(got.entries)
            fine = got.entries == wanted[:n] and (n > 0 or not wanted)
            return None if fine else f"a page of {got.entries}, the journal goes on with {wanted}"

        return Say("journal", fields, right)

    @staticmethod
    def _began(x: Execution) -> str:
        return "" if x.d.began is None else f"{x.d.began[0]} {x.d.began[1]}"

    def head(self, x: Execution) -> dict[str, Any] | None:
        """What a claim tells of it: as many entries as fit, in order."""
        d = x.d
        if d.began is None and not x.unpinned:
            return None
        entries = Beginning([entry_text(entry) for entry in d.by_seq()])
        # Of an empty journal: the run and version it would begin in.
        began = self._began(x) or f"{x.run} {x.version}"
        return {"began": began, "total": len(d.entries), "unpinned": x.unpinned, "entries": entries}

    # ---- a new run

    def begin_anew(self, p: Partition, x: Execution) -> None:
        """Nothing an earlier run did is remembered, but what it has streamed can still be read."""
        self.end_waitpoints(p, x)
        was, x.d = x.d, Durable()
        x.d.frames, x.d.ids, x.d.op = was.frames, was.ids, was.op
        x.unpinned = True
        self.touched[x.id] = x

    def call_continue_as(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.check(p, x, a.fence, "continue")
        if refusal == "replay":
            assert x is not None
            return Say("continued", {"execution_id": x.id, "run": x.run, "state": x.state, "replayed": True})
        if refusal:
            return No(refusal)
        assert x is not None
        if not self.cancelled_instead(p, x, "continue"):
            self._continue(p, x, a.payload)
        return Say("continued", {"execution_id": x.id, "run": x.run, "state": x.state, "replayed": False})

    def _continue(self, p: Partition, x: Execution, payload: bytes) -> None:
        self.logged(x, "ended_success")
        self.begin_anew(p, x)
        x.payload = payload
        x.run += 1
        x.retries = x.crashes = x.unseen = x.hand_backs = 0
        x.attempt_deadline = x.left_ms = None
        x.next, x.ended_by = "initial", "continue"
        if x.deadline_ms is not None and x.deadline_at is not None:
            x.deadline_at = p.now + x.deadline_ms
            self.timer(p, "deadline", x, x.deadline_at)
        x.eligible_at = p.now
        x.turn = self.take_turn(p, x)
        self.move(p, x, "ready")

    def call_pin_version(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.check(p, x, a.fence)
        if refusal:
            return No(refusal)
        assert x is not None
        untouched = x.unpinned or (x.attempt == 0 and x.next == "initial" and x.d.began is None)
        if not untouched and a.version != x.version:
            return No("version_pinned")
        self.heard(x)
        x.version, x.unpinned = a.version, False
        return Say("pinned", {"version": x.version})

    def call_note_unclaimed(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.check(p, x, a.fence)
        if refusal:
            return No(refusal)
        assert x is not None
        self.heard(x)
        self.note(p, f"{x.uuid} {x.state} {x.state}")
        return Say("noted")

    # ---- replay

    def reopen(self, p: Partition, x: Execution) -> None:
        """A replay goes on with what was recorded; the failure that ended the run is to be tried again."""
        d = x.d
        if d.began is None:
            d.began = (x.run, x.version)
            return
        failed = [entry for entry in d.by_seq() if entry.status == "fatal"]
        failed = [entry for entry in failed if unpacked(entry.value)[2].decode() == x.category]
        if failed:
            last = failed[-1]
            d.bytes -= len(entry_text(last))
            last.status, last.value = "error", b"1 it failed for good, and a replay tries it again"
            d.bytes += len(entry_text(last))


class Beginning:
    """Equal to every list of these entries that begins with the first one: a claim cuts off what is too long."""

    def __init__(self, entries: list[bytes]) -> None:
        self.entries = entries

    def __eq__(self, other: object) -> bool:
        return isinstance(other, list) and other == self.entries[: len(other)]

    def __hash__(self) -> int:
        return id(self)

    def __repr__(self) -> str:
        return f"the first of {self.entries}"
