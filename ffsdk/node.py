"""A node: a job that a flow will have once it is submitted. Until then it has an id and nothing to ask about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, cast

from ffcore.errors import InvalidArgument
from ffsdk.job import Job

if TYPE_CHECKING:
    from ffcore.ids import ExecutionId
    from ffsdk.client import Client
    from ffsdk.task import Task

R_co = TypeVar("R_co", covariant=True)


class Unsent:
    """Where the client of a node would be: one per flow, and whatever is asked of it says what is missing."""

    def __init__(self, flow: str) -> None:
        self.why = f"flow {flow} is not submitted yet: leaving its `with` block does that, ask its nodes then"

    def give_up(self, why: str) -> None:
        """The block was left by an error, or the store did not take the graph."""
        self.why = why

    def __getattr__(self, name: str) -> Any:
        raise InvalidArgument(self.why)


class Node(Job[R_co]):
    """What `flow.add` answers: a `Job` as soon as its flow is submitted, and the upstream of others until then.

    flow_id   the flow it belongs to
    key       its name within the flow; None: it has none
    place     which of the flow's nodes it is, from 0
    """

    __slots__ = ("flow_id", "key", "place", "task_name")

    def __init__(
        self, unsent: Unsent, execution_id: ExecutionId, task: Task[Any, R_co] | None, *, flow_id: str,
        key: str | None, place: int, task_name: str,
    ) -> None:  # fmt: skip
        super().__init__(cast("Client", unsent), execution_id, task)
        self.flow_id, self.key, self.place, self.task_name = flow_id, key, place, task_name

    def submitted(self, client: Client, created: bool) -> None:
        """For the flow: the store has it."""
        self._client, self.created = client, created

    def __repr__(self) -> str:
        return f"<Node {self.key if self.key is not None else self.task_name} {self.id}>"
