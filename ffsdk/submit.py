"""Submitting: from a task and options to create calls, and from their answers to ids.

Ids are minted here, so every call may be sent again. Everything that can be refused without the store is refused
before anything is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec

from ffcore import checks, ids, limits, wire
from ffcore.errors import EngineBug, EngineError, InvalidArgument, rejection
from ffcore.ids import ExecutionId, PartitionKey
from ffsdk import payload as payloads
from ffsdk.connect import Durability, require_durability
from ffsdk.errors import NotAccepted, refuse_not_yet
from ffsdk.task import Descriptor, Task, TaskOptions, digest, fairness_of, policy_json, required
from ffsdk.times import Duration, instant_ms, span_ms

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.contracts.batch import CreateManyArgs, NewExecution

DESCRIPTOR_S = 30.0
"""How long a published descriptor is believed; a rolled-out change of lane or policy is seen after that."""
IN_FLIGHT = 4
"""Create calls of one submit_many at a time: enough to keep the store busy, few enough to let others in between."""
REGISTRY = PartitionKey("{w:0}")


class SubmitOptions(TypedDict, total=False):
    """Options of `submit` and `submit_many`; spans are seconds or timedelta. None is as good as left out."""

    delay: Duration | None
    """Not before so much later, by this client's clock. Not together with `at`."""
    at: datetime | None
    """Not before this instant; aware."""
    priority: int | None
    """-100 to 100; higher first. Default: the task's."""
    lane: str | None
    """Default: the task's."""
    deadline: Duration | None
    """The job ends as expired so much later, whatever it is doing. Default: the task's."""
    tags: Mapping[str, str] | None
    """Keys carry a namespace: ``{"shop.tenant": "t1"}``."""
    requires: Iterable[str] | None
    """Capability tokens instead of the task's."""
    durability: Durability | None
    """More than the client's own: "fsync" asks the store once whether it keeps it."""
    budget: object | None
    quota: object | None
    unique: object | None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What all jobs of one submit share."""

    task: str
    lane: str
    policy: bytes
    version: int = 1
    priority: int = 0
    fairness: str | None = None
    declared: Task[Any, Any] | None = None
    tags: bytes | None = None
    delay_until: int | None = None
    deadline_at: int | None = None

    def encode(self, value: Any) -> bytes:
        if self.declared is not None:
            return self.declared.encode_payload(value)
        return payloads.encode(value, f"the payload of task {self.task}", limits.PAYLOAD_BYTES)


class Submitter:
    """Plans and sends submits of one client."""

    def __init__(
        self,
        backend: Backend,
        namespace: str,
        durability: str,
        tasks: Mapping[str, Task[Any, Any]],
        now_ms: Callable[[], int],
    ) -> None:
        self._backend, self._namespace, self._tasks, self._now_ms = backend, namespace, tasks, now_ms
        self._kept = {"accepted", durability}
        self._published: dict[str, tuple[float, Descriptor | None]] = {}

    # ---- planning

    async def plan(self, task: Task[Any, Any] | str, options: SubmitOptions) -> Plan:
        """Check the options and settle what the jobs share. By name, it may ask the store for the descriptor."""
        unknown = set(options) - set(SubmitOptions.__annotations__)
        if unknown:
            raise InvalidArgument(f"submit has no option {', '.join(sorted(unknown))}")
        refuse_not_yet(budget=options.get("budget"), quota=options.get("quota"), unique=options.get("unique"))
        lane, priority, tags = options.get("lane"), options.get("priority"), options.get("tags")
        if lane is not None:
            ids.check_name(lane, "lane")
        checks.priority(0 if priority is None else priority)
        checks.tags(tags or {})
        requires = options.get("requires")
        tokens = None if requires is None else required(requires)
        delay_until, deadline_at = self._times(options)
        base = await self._base(task, lane, tokens)
        await self._keeps(options.get("durability"))
        return msgspec.structs.replace(
            base, lane=lane or base.lane, priority=base.priority if priority is None else priority,
            tags=wire.pack_pairs(tags) if tags else None, delay_until=delay_until, deadline_at=deadline_at,
        )  # fmt: skip

    async def _base(self, task: Task[Any, Any] | str, lane: str | None, tokens: frozenset[str] | None) -> Plan:
        """The plan without this submit's own options: of a declared task, a published one, or an unknown name."""
        known: Task[Any, Any] | None = task if isinstance(task, Task) else None
        if isinstance(task, str):
            known = self._tasks.get(task)
        if known is not None:
            return Plan(
                task=known.name, version=known.version, lane=known.lane, priority=known.options.priority,
                policy=known.policy_for(tokens), fairness=known.options.fairness, declared=known,
            )  # fmt: skip
        if not isinstance(task, str):
            raise InvalidArgument(f"task is {task!r:.60}: pass what @app.task made, or the task's name")
        name = ids.check_name(task, "task")
        found = await self._described(name)
        if found is not None:
            policy = bytes(found.policy)
            return Plan(
                task=name, version=found.version, lane=found.lane, priority=found.priority, fairness=found.fairness,
                policy=policy if tokens is None else _with_requirements(policy, tokens),
            )  # fmt: skip
        if lane is None:
            raise rejection("unknown_task", f"no worker has published {name}: pass lane=, or start one that has it")
        return Plan(task=name, lane=lane, policy=policy_json(TaskOptions(name=name), tokens or frozenset()))

    async def _keeps(self, durability: str | None) -> None:
        if durability is not None and durability not in self._kept:
            await require_durability(self._backend, durability)
            self._kept.add(durability)

    def _times(self, options: SubmitOptions) -> tuple[int | None, int | None]:
        delay, at, deadline = options.get("delay"), options.get("at"), options.get("deadline")
        if delay is not None and at is not None:
            raise InvalidArgument("delay and at both say when: give one")
        due = None if delay is None else self._now_ms() + span_ms(delay, "delay")
        if at is not None:
            due = instant_ms(at, "at")
        return due, None if deadline is None else self._now_ms() + span_ms(deadline, "deadline", low_ms=1)

    async def _described(self, name: str) -> Descriptor | None:
        """The published descriptor of a task. That there is none is believed for no longer than this call."""
        from ffcore.contracts.roster import ListTasksArgs

        now = asyncio.get_running_loop().time()
        known = self._published.get(name)
        if known is not None and known[0] > now:
            return known[1]
        answer = await self._backend.call(ListTasksArgs(partition=REGISTRY, names=[name]))
        if not answer.items:
            return None
        try:
            found = msgspec.json.decode(answer.items[0].descriptor, type=Descriptor)
        except msgspec.DecodeError as broken:
            raise EngineBug(f"the published descriptor of task {name} cannot be read: {broken}") from broken
        self._published[name] = (now + DESCRIPTOR_S, found)
        return found

    # ---- sending

    def mint(self, key: str | None) -> ExecutionId:
        partitions_n = self._backend.config.fp
        if key is None:
            return ids.new_execution_id(partitions_n)
        checks.text(key, "key", limits.KEY_BYTES)
        return ExecutionId(ids.keyed_id("execution", self._namespace, key, partitions_n))

    def row(self, plan: Plan, payload: Any, key: str | None) -> NewExecution:
        from ffcore.contracts.batch import NewExecution

        raw = plan.encode(payload)
        return NewExecution(
            self.mint(key), digest(plan.task, raw, plan.lane), raw, fairness_of(plan.fairness, payload), plan.tags
        )

    def _call(self, plan: Plan, partition: PartitionKey, rows: list[NewExecution]) -> CreateManyArgs:
        from ffcore.contracts.batch import CreateManyArgs

        return CreateManyArgs(
            partition=partition, namespace=self._namespace, lane_id=plan.lane, execution_kind=plan.task,
            version=plan.version, priority=plan.priority, policy=plan.policy, delay_until=plan.delay_until,
            execution_deadline_at=plan.deadline_at, items=rows,
        )  # fmt: skip

    async def send_one(self, plan: Plan, row: NewExecution) -> bool:
        """True if it is new, False if the same request had been made before. Raises what the store refused."""
        answer = await self._backend.call(self._call(plan, ids.partition_of(row.execution_id), [row]))
        refused = _refusal(plan, row, answer.items[0].state, answer.items[0].detail)
        if refused is not None:
            raise refused
        return answer.items[0].state == "created"

    async def send_all(self, plan: Plan, rows: Sequence[NewExecution]) -> list[bool | NotAccepted]:
        """As `send_one` for each row, in order, in as few calls as their bounds allow."""
        results: list[bool | NotAccepted] = [False] * len(rows)
        gate = asyncio.Semaphore(IN_FLIGHT)

        async def send(partition: PartitionKey, places: list[int]) -> None:
            async with gate:
                try:
                    answer = await self._backend.call(self._call(plan, partition, [rows[i] for i in places]))
                except EngineError as failed:
                    for place in places:
                        results[place] = NotAccepted(place, failed)
                    return
            for place, item in zip(places, answer.items, strict=True):
                refused = _refusal(plan, rows[place], item.state, item.detail)
                results[place] = item.state == "created" if refused is None else NotAccepted(place, refused)

        await asyncio.gather(*(send(partition, places) for partition, places in _batches(rows)))
        return results


def _refusal(plan: Plan, row: NewExecution, state: str, detail: str) -> EngineError | None:
    if state != "error":
        return None
    said = {
        "idempotency_conflict": f"the key of {row.execution_id} was used before with another task, payload or lane",
        "lane_closed": f"lane {plan.lane} takes no new work: it is draining or disabled",
        "payload_too_large": f"{len(row.payload)} bytes, the limit is {limits.PAYLOAD_BYTES}",
    }
    return rejection(detail, said.get(detail, f"task {plan.task}, lane {plan.lane}"))


def _batches(rows: Sequence[NewExecution]) -> list[tuple[PartitionKey, list[int]]]:
    """Places of rows, by partition, each batch within the bounds of one call."""
    batches: list[tuple[PartitionKey, list[int]]] = []
    filling: dict[PartitionKey, tuple[list[int], int]] = {}
    for place, row in enumerate(rows):
        partition, size_n = ids.partition_of(row.execution_id), len(row.payload)
        places, bytes_n = filling.get(partition, (None, 0))
        if places is None or len(places) >= limits.BULK_N or bytes_n + size_n > limits.BATCH_BYTES:
            fresh: list[int] = []
            places, bytes_n = fresh, 0
            batches.append((partition, fresh))
        places.append(place)
        filling[partition] = (places, bytes_n + size_n)
    return batches


def _with_requirements(policy: bytes, requires: frozenset[str]) -> bytes:
    """A published policy with other requirements; keys sorted as `policy_json` sorts them."""
    read: dict[str, Any] = msgspec.json.decode(policy) if policy else {}
    if requires:
        read["routing_requirements"] = {"required_capabilities": sorted(requires)}
    else:
        read.pop("routing_requirements", None)
    return msgspec.json.encode(read, order="sorted")
