"""What appending and reading frames, and the summary beside them, must answer.

Frames are in the order they came, whatever their kind and attempt; the ids are the store's, and only have to rise.
"""

from __future__ import annotations

from typing import Any

from tests.simulation.between import Rules
from tests.simulation.durable import Frame
from tests.simulation.model import Expected, No, Say
from tests.simulation.records import Execution, Partition

REASONS = {
    "ended_success": "attempt_success", "ended_failure": "attempt_failure", "ended_cancelled": "attempt_cancelled",
    "interrupted_reclaimed": "attempt_interrupted", "completed": "attempt_success", "failed": "attempt_failure",
    "cancelled": "attempt_cancelled", "expired": "attempt_failure", "skipped": "attempt_cancelled",
}  # fmt: skip
"""How an attempt, or its execution, ended: why its stream was closed."""


def place(id: str) -> tuple[int, int]:
    ms, _, seq = id.partition("-")
    return int(ms), int(seq or "0")


class StreamRules(Rules):
    # ---- append

    def _append(self, x: Execution, row: Any) -> int:
        """Only whoever holds the lease comes here. Answers the frame's place among all of the execution."""
        assert x.state == "active", "frames are of attempts that hold a lease"
        frame = Frame(x.attempt or 0, row.frame_type, row.mode, row.payload, row.correlation_id or "", x.epoch)
        x.d.frames.append(frame)
        x.d.ids.append(None)
        x.streams = x.attempt
        self.touched[x.id] = x
        return len(x.d.frames) - 1

    def append_frames(self, p: Partition, x: Execution, rows: list[Any]) -> None:
        for row in rows:
            self._append(x, row)
        if rows:
            # The counter of the lease's operations begins with the lease, whoever appends first.
            if x.d.op[0] != x.epoch:
                x.d.op = (x.epoch, 0, "-")
            self.read_of(p, x)

    def read_of(self, p: Partition, x: Execution) -> None:
        """Whoever reads its frames is told."""
        self.streamed.append(f"ff:{p.key}:s:{x.uuid}")

    def _learned(self, x: Execution, at: int, id: str) -> str | None:
        known = [one for one in x.d.ids[:at] if one is not None]
        if known and place(id) <= place(known[-1]):
            return f"frame {at} got the id {id} after {known[-1]}"
        if x.d.ids[at] not in (None, id):
            return f"frame {at} had the id {x.d.ids[at]} and now has {id}"
        x.d.ids[at] = id
        return None

    def _appended(self, x: Execution, at: int, op: int | None, id: str) -> str | None:
        wrong = self._learned(x, at, id)
        epoch, last, last_id = x.d.frames[at].epoch, 0, "-"
        if x.d.op[0] == epoch:
            _, last, last_id = x.d.op
        x.d.op = (epoch, last, last_id) if op is None else (epoch, op, id)
        return wrong

    def _known(self, x: Execution, op: int | None) -> bool:
        return op is not None and x.d.op[0] == x.epoch and op <= x.d.op[1]

    def _count(self, x: Execution) -> int:
        return sum(1 for frame in x.d.frames if frame.attempt == x.attempt)

    def call_append_frame(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.check(p, x, f"{a.lease_id} {a.lease_epoch} {a.attempt_id}")
        if refusal:
            return No(refusal)
        assert x is not None
        if not a.frame_type:
            return No("invalid_frame_type")
        self.heard(x)
        if self._known(x, a.op):
            return Say("appended", {"entry_id": x.d.op[2], "frame_count": self._count(x), "replayed": True})
        at = self._append(x, a)
        self.read_of(p, x)
        fields = {"frame_count": self._count(x), "replayed": False}
        return Say("appended", fields, lambda got: self._appended(x, at, a.op, got.entry_id))

    def call_append_frames(self, p: Partition, a: Any) -> Expected:
        items: list[Any] = []
        new: list[tuple[int, Execution, int, int]] = []
        ops: dict[str, tuple[int, int]] = {}
        for row in a.items:
            x = self.find(p, row.execution_id)
            refusal = self.check(p, x, row.fence)
            if refusal:
                items.append(("error", refusal))
                continue
            assert x is not None
            self.heard(x)
            epoch, last = ops.get(x.id, x.d.op[:2])
            if epoch == x.epoch and row.op <= last:
                items.append(("replayed",))
                continue
            ops[x.id] = (x.epoch, row.op)
            new.append((len(items), x, self._append(x, row), row.op))
            items.append(("appended",))
            self.read_of(p, x)

        def right(got: Any) -> str | None:
            for i, x, at, op in new:
                wrong = self._appended(x, at, op, got.items[i].detail)
                if wrong:
                    return wrong
            return None

        return Say("appended_many", {"items": items}, right)

    # ---- read

    def call_read_attempt_stream(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        mine = [i for i, frame in enumerate(x.d.frames) if frame.attempt == a.attempt_index]
        if a.visibility == "exclude_best_effort":
            mine = [i for i in mine if x.d.frames[i].mode != "best_effort"]
        reason = self.closed_reason(x, a.attempt_index)

        def right(got: Any) -> str | None:
            page = got.frames
            told = [(f.fields["frame_type"], f.fields["mode"], f.payload, f.fields.get("correlation_id", ""))
                    for f in page.frames]  # fmt: skip
            wanted = [tuple(x.d.frames[i])[1:5] for i in mine[: a.count_limit]]
            if told != wanted:
                return f"frames {told}, should be {wanted}"
            if page.closed_reason != reason or (page.closed_at is None) != (reason is None):
                return f"closed {page.closed_reason} at {page.closed_at}, should be {reason}"
            ids = [self._learned(x, i, f.id) for i, f in zip(mine, page.frames, strict=False)]
            return next((wrong for wrong in ids if wrong), None)

        return Say("frames", {}, right)

    @staticmethod
    def closed_reason(x: Execution, attempt: int) -> str | None:
        if attempt in x.log:
            return REASONS[x.log[attempt]]
        current = max(x.attempt or 0, 0)
        if attempt < current:
            return "attempt_interrupted"
        return REASONS[x.state] if x.terminal else None

    def call_read_stream(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        # Runs stay within what streams keep.
        fields = {
            "attempt_index": -1 if x.attempt is None else x.attempt, "state": x.state if x.terminal else "", "gaps": [],
        }  # fmt: skip
        shown = [i for i, f in enumerate(x.d.frames) if f.mode != "best_effort" or a.visibility == "all"]

        def right(got: Any) -> str | None:
            told = [(f.attempt_index, f.frame_type, "best_effort" if f.best_effort else "append", f.payload,
                     f.correlation_id) for f in got.frames]  # fmt: skip
            first = self._behind(x, shown, a.after)
            if first is None:
                return None
            wanted = [tuple(x.d.frames[i])[:5] for i in shown[first:]]
            if told != wanted[: len(told)] or (len(told) < len(wanted) and not got.more and len(told) < a.limit):
                return f"frames {told}, should be {wanted}"
            ids = [self._learned(x, i, f.id) for i, f in zip(shown[first:], got.frames, strict=False)]
            return next((wrong for wrong in ids if wrong), None)

        return Say("page", fields, right)

    @staticmethod
    def _behind(x: Execution, shown: list[int], after: str) -> int | None:
        """Which of the frames shown is the first one behind a place; None: there are some whose ids nobody knows."""
        if after == "-":
            return 0
        if after == "+":
            return len(shown)
        n = 0
        for i in shown:
            id = x.d.ids[i]
            if id is None:
                return None
            n += place(id) <= place(after)
        return n

    # ---- the summary

    def call_read_summary(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        if x is None:
            return No("execution_not_found")
        s = x.d.summary
        return Say("summary", {"summary": None if s is None else {"version": s[0], "document_json": s[1]}})

    def call_write_summary(self, p: Partition, a: Any) -> Expected:
        x = self.find(p, a.execution_id)
        refusal = self.check(p, x, a.fence.wire)
        if refusal:
            return No(refusal)
        assert x is not None
        version, document, epoch = x.d.summary or (0, b"", 0)
        if version == a.expected_version + 1 and epoch == x.epoch and document == a.document_json:
            return Say("written", {"version": version})
        if version != a.expected_version:
            return No("revision_conflict")
        self.heard(x)
        x.d.summary = (version + 1, a.document_json, x.epoch)
        return Say("written", {"version": version + 1})
