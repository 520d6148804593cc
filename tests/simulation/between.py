"""What the rules of one chapter ask of those of another; each is written in the file that is named."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ffcore.policy import ExecutionPolicy
from tests.simulation.durable import Signal, Waitpoint
from tests.simulation.flows import Edge, Flow
from tests.simulation.model import Base
from tests.simulation.records import Execution, Lane, Partition


class Rules(Base):
    def heard(self, x: Execution) -> None:
        """The holder has made itself heard: a lease that expires after this was its."""
        x.heard = x.epoch
        self.touched[x.id] = x

    # rules_admission.py
    def admit(self, x: Execution, text: str | None) -> None:
        raise NotImplementedError

    def asked(self, x: Execution) -> str | None:
        raise NotImplementedError

    def popped(self, p: Partition, lane: Lane, caps: list[str], want: int) -> list[Execution]:
        raise NotImplementedError

    def lane_room(self, p: Partition, lane: Lane, want: int) -> int:
        raise NotImplementedError

    def takes_place(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    def give_back(self, p: Partition, adm: str) -> None:
        raise NotImplementedError

    def any_ready(self, p: Partition, lane: Lane, cap: str) -> bool:
        raise NotImplementedError

    def is_shut(self, p: Partition, x: Execution) -> bool:
        raise NotImplementedError

    def wake_all(self, p: Partition) -> None:
        raise NotImplementedError

    def heard_from(self, p: Partition, rows: list[Any]) -> str | None:
        raise NotImplementedError

    def due_schedules(self, p: Partition) -> list[tuple[str, int, str]]:
        raise NotImplementedError

    # rules_worker.py
    def unclaim(self, p: Partition, x: Execution, reason: str) -> None:
        raise NotImplementedError

    def check(self, p: Partition, x: Execution | None, fence: str, operation: str | None = None) -> str | None:
        raise NotImplementedError

    def request_cancel(self, p: Partition, x: Execution, source: str, grace_ms: int | None = None) -> None:
        raise NotImplementedError

    def resolve(self, p: Partition, x: Execution | None, a: Any, operation: str) -> str | None:
        raise NotImplementedError

    # rules_operator.py
    def unend(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    def forget(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    def bury(self, p: Partition, uuid: str, digest: bytes, until: int) -> None:
        raise NotImplementedError

    def reap_later(self, p: Partition, name: str, due: int) -> None:
        raise NotImplementedError

    # rules_flows.py
    def mind(self, x: Execution, outcome: str) -> None:
        raise NotImplementedError

    def resolve_edge(self, p: Partition, down: Execution, edge: Edge, outcome: str) -> None:
        raise NotImplementedError

    def act(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    def promote(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    def hold(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    def flow_stops(self, p: Partition, x: Execution) -> bool:
        raise NotImplementedError

    def mutated(self, p: Partition, f: Flow) -> None:
        raise NotImplementedError

    def look(self, p: Partition, f: Flow) -> None:
        raise NotImplementedError

    # rules_queue.py
    def complete_item(self, p: Partition, row: Any) -> tuple[str, str]:
        raise NotImplementedError

    def held_by(self, p: Partition, x: Execution) -> bool:
        raise NotImplementedError

    def create_member(
        self, p: Partition, a: Any, row: Any, payload: bytes, policy: ExecutionPolicy, tags: Any,
        member: Callable[[Execution], None] | None = None, blocked: bool = False,
    ) -> str:  # fmt: skip
        raise NotImplementedError

    def is_closed(self, p: Partition, lane_id: str) -> bool:
        raise NotImplementedError

    # rules_edges.py
    def closed(self, f: Flow | None) -> str | None:
        raise NotImplementedError

    def provides(self, down: Execution, edge: Edge, outcome: str) -> bool:
        raise NotImplementedError

    def waits(self, x: Execution) -> bool:
        raise NotImplementedError

    def inputs_of(self, p: Partition, x: Execution) -> dict[str, Any] | None:
        raise NotImplementedError

    # rules_members.py
    def new_flow(self, p: Partition, id: str, state: str) -> Flow:
        raise NotImplementedError

    def join(self, p: Partition, f: Flow, x: Execution) -> None:
        raise NotImplementedError

    def oldest(self, p: Partition, lane: Lane) -> list[Execution]:
        raise NotImplementedError

    def flow_may_go(self, p: Partition, f: Flow) -> bool:
        raise NotImplementedError

    # rules_steps.py
    def journal_has_no_room(self, p: Partition, x: Execution, key: str, kind: str, name: str, value: bytes) -> bool:
        raise NotImplementedError

    def put_entry(
        self, p: Partition, x: Execution, key: str, kind: str, name: str, status: str, value: bytes, version: int
    ) -> Any:  # fmt: skip
        raise NotImplementedError

    def head(self, x: Execution) -> dict[str, Any] | None:
        raise NotImplementedError

    def begin_anew(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    def reopen(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    # rules_suspension.py
    def weigh(self, p: Partition, x: Execution, signal: Signal) -> tuple[str, bool]:
        raise NotImplementedError

    # rules_signals.py
    def unopenable(self, p: Partition, x: Execution, rows: list[Any]) -> str | None:
        raise NotImplementedError

    def open_waitpoint(self, p: Partition, x: Execution, row: Any, expires_in_ms: int | None) -> None:
        raise NotImplementedError

    def unusable(self, p: Partition, x: Execution, waitpoint_id: str) -> str | None:
        raise NotImplementedError

    def close_waitpoint(self, p: Partition, x: Execution, waitpoint: Waitpoint, reason: str) -> None:
        raise NotImplementedError

    def reopen_waitpoints(self, p: Partition, x: Execution) -> None:
        raise NotImplementedError

    # rules_streams.py
    def append_frames(self, p: Partition, x: Execution, rows: list[Any]) -> None:
        raise NotImplementedError
