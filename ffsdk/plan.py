"""What the jobs of one submit have in common, settled once: a few values that every row of a call repeats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from ffcore import limits
from ffcore.ids import ExecutionId
from ffsdk import payload as payloads
from ffsdk.admit import Lines, Unique
from ffsdk.fields import text_at
from ffsdk.fold import New, Shared
from ffsdk.task import Task, digest
from ffsdk.unique import Wanted


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What all jobs of one submit have in common."""

    shared: Shared
    fairness: str | None = None
    declared: Task[Any, Any] | None = None
    tags: bytes | None = None
    patience_s: float = 0.0
    """How long to ask a full store again."""
    replicated: bool = False
    """Whether these jobs count only once a replica has them, whatever the client's own durability."""
    admission: str | None = None
    """What they must be admitted by, where that is the same for all of them."""
    keyed: Lines | None = None
    """The same where the payload has a part in it."""
    unique: Unique | None = None

    def encode(self, value: Any) -> bytes:
        if self.declared is not None:
            return self.declared.encode_payload(value)
        return payloads.encode(value, f"the payload of task {self.shared.task}", limits.PAYLOAD_BYTES)

    def new(self, keyed_id: ExecutionId | None, value: Any, raw: bytes, wanted: Wanted | None = None) -> New:
        """One of the jobs; wanted: the key it holds alone."""
        shared, path, admission = self.shared, self.fairness, self.admission
        fairness = None if path is None else text_at(path, value)
        if self.keyed is not None or wanted is not None:
            admission = self.text(lambda path: text_at(path, value), wanted)
        return New(keyed_id, digest(shared.task, raw, shared.lane), raw, fairness, self.tags, admission)

    def text(self, at: Callable[[str], str | None], wanted: Wanted | None = None) -> str | None:
        """What one of the jobs must be admitted by; `at` reads a field of its payload."""
        text = self.admission if self.keyed is None else self.keyed.text(at)
        if wanted is None:
            return text
        return wanted.line if text is None else f"{text}\n{wanted.line}"


def shared_of(task: str, version: int, lane: str, priority: int, policy: bytes) -> Shared:
    return Shared(task, version, lane, priority, policy, None, None)


def declared_plan(task: Task[Any, Any], tokens: frozenset[str] | None) -> Plan:
    """The plan of a task of this program; `tokens`: what it requires instead of its own."""
    shared = shared_of(task.name, task.version, task.lane, task.options.priority, task.policy_for(tokens))
    return Plan(shared=shared, fairness=task.options.fairness, declared=task)


def with_requirements(policy: bytes, requires: frozenset[str]) -> bytes:
    """A published policy with other requirements; keys sorted as `policy_json` sorts them."""
    read: dict[str, Any] = msgspec.json.decode(policy) if policy else {}
    if requires:
        read["routing_requirements"] = {"required_capabilities": sorted(requires)}
    else:
        read.pop("routing_requirements", None)
    return msgspec.json.encode(read, order="sorted")
