"""Submitting: from a task and options to create calls, and from their answers to ids.

Ids are minted here, so every call may be sent again. Everything that can be refused without the store is refused
before anything is sent.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, TypedDict

import msgspec

from ffcore import checks, ids, limits, wire
from ffcore.errors import EngineBug, EngineError, InvalidArgument, StoreFull, rejection
from ffcore.ids import ExecutionId, PartitionKey
from ffsdk import payload as payloads
from ffsdk.connect import Durability, call_replicated, require_durability
from ffsdk.errors import NotAccepted, refuse_not_yet
from ffsdk.fold import Fold, New, Shared, fill, refusal
from ffsdk.full import patiently, waited
from ffsdk.task import Descriptor, Task, TaskOptions, digest, fairness_of, policy_json, required
from ffsdk.times import Duration, instant_ms, span_ms

if TYPE_CHECKING:
    from ffcore.backend import Backend

DESCRIPTOR_S = 30.0
"""How long a published descriptor is believed; a rolled-out change of lane or policy is seen after that."""
IN_FLIGHT = 4
"""Create calls of one submit_many at a time: enough to keep the store busy, few enough to let others in between."""
FEW_N = 16
"""Jobs without keys share a call from here on, also if every partition could have one of its own."""
REGISTRY = PartitionKey("{w:0}")


NOT_YET: Final = ("budget", "quota", "unique")
"""Options that later releases have."""


class JobOptions(TypedDict, total=False):
    """How one job wants to be treated, other than its task says; spans are seconds or timedelta. None is as good as
    left out."""

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
    budget: object | None
    quota: object | None
    unique: object | None


class SubmitOptions(JobOptions, total=False):
    """Options of `submit` and `submit_many`."""

    durability: Durability | None
    """More than the client's own: "fsync" asks the store once whether it keeps it, "replicated" waits for a replica."""
    patience: Duration | None
    """How long to ask again while the store is full (StoreFull), as often as it advises. Default: not at all."""


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

    def encode(self, value: Any) -> bytes:
        if self.declared is not None:
            return self.declared.encode_payload(value)
        return payloads.encode(value, f"the payload of task {self.shared.task}", limits.PAYLOAD_BYTES)

    def new(self, keyed_id: ExecutionId | None, value: Any, raw: bytes) -> New:
        shared, path = self.shared, self.fairness
        fairness = None if path is None else fairness_of(path, value)
        return New(keyed_id, digest(shared.task, raw, shared.lane), raw, fairness, self.tags)


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
        self._plans: dict[Task[Any, Any], Plan] = {}
        """Of declared tasks, without options of a submit."""
        self._fold = Fold(lambda args: self._backend.call(args), namespace, backend.config.keys("fp"))
        self._confirmed = Fold(lambda args: call_replicated(self._backend, args), namespace, backend.config.keys("fp"))

    # ---- planning

    @property
    def now_ms(self) -> int:
        """The clock relative times are counted from."""
        return self._now_ms()

    def declared(self, task: Task[Any, Any] | str) -> Task[Any, Any] | None:
        """The task, if this program declares it."""
        return self._tasks.get(task) if isinstance(task, str) else task

    def known(self, task: Task[Any, Any] | str) -> Plan | None:
        """The plan of a declared task without options; None for a name that is none."""
        declared = self._tasks.get(task) if isinstance(task, str) else task
        if not isinstance(declared, Task):
            return None
        found = self._plans.get(declared)
        if found is None:
            found = self._plans[declared] = _declared(declared, None)
        return found

    async def plan(self, task: Task[Any, Any] | str, options: SubmitOptions, now_ms: int | None = None) -> Plan:
        """Check the options and settle what the jobs share. By name, it may ask the store for the descriptor.

        now_ms: what relative times count from, for jobs that are submitted together."""
        if not options and (known := self.known(task)) is not None:
            return known
        check_options(options, SubmitOptions, "submit")
        lane, priority, tags = options.get("lane"), options.get("priority"), options.get("tags")
        requires = options.get("requires")
        tokens = None if requires is None else required(requires)
        delay_until, deadline_at = times_of(options, self._now_ms() if now_ms is None else now_ms)
        base = await self._base(task, lane, tokens)
        durability = options.get("durability")
        await self.keeps(durability)
        shared = base.shared._replace(
            lane=lane or base.shared.lane, priority=base.shared.priority if priority is None else priority,
            delay_until=delay_until, deadline_at=deadline_at,
        )  # fmt: skip
        patience = options.get("patience")
        return msgspec.structs.replace(
            base, shared=shared, tags=wire.pack_pairs(tags) if tags else None, replicated=durability == "replicated",
            patience_s=0.0 if patience is None else span_ms(patience, "patience") / 1000,
        )  # fmt: skip

    async def _base(self, task: Task[Any, Any] | str, lane: str | None, tokens: frozenset[str] | None) -> Plan:
        """The plan without this submit's own options: of a declared task, a published one, or an unknown name."""
        known: Task[Any, Any] | None = task if isinstance(task, Task) else None
        if isinstance(task, str):
            known = self._tasks.get(task)
        if known is not None:
            return _declared(known, tokens)
        if not isinstance(task, str):
            raise InvalidArgument(f"task is {task!r:.60}: pass what @app.task made, or the task's name")
        name = ids.check_name(task, "task")
        found = await self._described(name)
        if found is not None:
            policy = bytes(found.policy)
            policy = policy if tokens is None else _with_requirements(policy, tokens)
            shared = _shared(name, found.version, found.lane, found.priority, policy)
            return Plan(shared=shared, fairness=found.fairness)
        if lane is None:
            raise rejection("unknown_task", asked="submit", about=name)
        policy = policy_json(TaskOptions(name=name), tokens or frozenset())
        return Plan(shared=_shared(name, 1, lane, 0, policy))

    async def keeps(self, durability: str | None) -> None:
        """Refuse (Incompatible) a store that does not keep what is asked."""
        if durability is not None and durability not in self._kept:
            await require_durability(self._backend, durability)
            self._kept.add(durability)

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

    def keyed_id(self, key: str) -> ExecutionId:
        checks.text(key, "key", limits.KEY_BYTES)
        return ExecutionId(ids.keyed_id("execution", self._namespace, key, self._backend.config.fp))

    async def submit(self, plan: Plan, payload: Any, key: str | None) -> tuple[ExecutionId, bool]:
        """The job's id, and whether it is new; False if the same request had been made before. Raises what the store
        refused."""
        raw = plan.encode(payload)
        fold = self._confirmed if plan.replicated else self._fold
        new = plan.new(None if key is None else self.keyed_id(key), payload, raw)
        if plan.patience_s:
            return await patiently(lambda: fold.submit(plan.shared, new), plan.patience_s)
        return await fold.submit(plan.shared, new)

    async def submit_many(
        self, plan: Plan, items: Sequence[Any], keys: Sequence[str] | None
    ) -> list[tuple[ExecutionId, bool] | NotAccepted]:
        """As `_send_many`; what a full store refused is sent again as long as the plan has patience."""
        deadline = asyncio.get_running_loop().time() + plan.patience_s
        results = await self._send_many(plan, items, keys)
        while plan.patience_s:
            full = [i for i, r in enumerate(results) if isinstance(r, NotAccepted) and isinstance(r.cause, StoreFull)]
            if not full or not await waited(limits.FULL_RETRY_MS / 1000, deadline):
                break
            some = None if keys is None else [keys[i] for i in full]
            again = await self._send_many(plan, [items[i] for i in full], some)
            for place, result in zip(full, again, strict=True):
                results[place] = result if isinstance(result, tuple) else result.at(place)
        return results

    async def _send_many(
        self, plan: Plan, items: Sequence[Any], keys: Sequence[str] | None
    ) -> list[tuple[ExecutionId, bool] | NotAccepted]:
        """As `submit` for each item, in order, in as few calls as their bounds allow; raises InvalidArgument, which
        names the item, before anything is sent."""
        raws, keyed = list[bytes](), list[ExecutionId]()
        for at, payload in enumerate(items):
            try:
                raws.append(plan.encode(payload))
                if keys is not None:
                    keyed.append(self.keyed_id(keys[at]))
            except InvalidArgument as bad:
                raise InvalidArgument(f"item {at}: {bad}", code=bad.code) from bad
        results: list[Any] = [None] * len(raws)
        gate = asyncio.Semaphore(IN_FLIGHT)
        fold, shared = self._confirmed if plan.replicated else self._fold, plan.shared

        async def send(partition: PartitionKey, places: Sequence[int], news: list[New]) -> None:
            found = fold.ids_of(news, partition)
            try:
                created = await fold.send(shared, partition, found, news)
            except EngineError as failed:
                for place in places:
                    results[place] = NotAccepted(place, failed)
            else:
                for place, execution_id, new, item in zip(places, found, news, created, strict=True):
                    refused = refusal(shared, execution_id, new, item)
                    results[place] = (
                        (execution_id, item.state == "created") if refused is None else NotAccepted(place, refused)
                    )
            finally:
                gate.release()

        async with asyncio.TaskGroup() as calls:
            for partition, places in self._batches(raws, keyed, len(plan.tags or b"")):
                await gate.acquire()
                new = [plan.new(keyed[i] if keyed else None, items[i], raws[i]) for i in places]
                calls.create_task(send(partition, places, new))
                # It leaves while the next call is prepared.
                await asyncio.sleep(0)
        return results

    def _batches(
        self, raws: Sequence[bytes], keyed: Sequence[ExecutionId], tags_n: int
    ) -> Iterable[tuple[PartitionKey, list[int]]]:
        """Places of items, each batch within the bounds of one call: those with keys by partition, the others in order,
        over all partitions alike."""
        groups: list[tuple[PartitionKey | None, list[int]]] = [(None, list(range(len(raws))))]
        if keyed:
            by_partition: dict[PartitionKey, list[int]] = {}
            for place, execution_id in enumerate(keyed):
                by_partition.setdefault(ids.partition_of(execution_id), []).append(place)
            groups = list(by_partition.items())
        # As many calls for every partition, unless they would be very small.
        rounds = -(-len(raws) // (limits.BULK_N * self._backend.config.fp))
        even = max(FEW_N, -(-len(raws) // (rounds * self._backend.config.fp))) if rounds else 0
        for partition, places in groups:
            while places:
                n, _ = fill((len(raws[i]) + tags_n for i in places), limits.BULK_N if partition else even)
                yield partition or self._fold.next_partition(), places[:n]
                places = places[n:]


def check_options(options: JobOptions, known: type, asked: str) -> None:
    """Refuse what is no option, what none can be, and what this release does not have yet. What may change, or can be
    read once, is kept as it is now: `options` are the call's own."""
    unknown = set(options) - set(known.__annotations__)
    if unknown:
        there = ", ".join(name for name in known.__annotations__ if name not in NOT_YET)
        raise InvalidArgument(f"{asked} has no option {', '.join(sorted(unknown)):.200}: use {there}")
    refuse_not_yet(budget=options.get("budget"), quota=options.get("quota"), unique=options.get("unique"))
    lane, priority = options.get("lane"), options.get("priority")
    tags, requires = options.get("tags"), options.get("requires")
    if lane is not None:
        ids.check_name(lane, "lane")
    checks.priority(0 if priority is None else priority)
    if tags is not None:
        checks.tags(tags)
        options["tags"] = {**tags}
    if requires is not None:
        options["requires"] = required(requires)
    times_of(options, 0)


def times_of(options: JobOptions, now_ms: int) -> tuple[int | None, int | None]:
    """When a job is due and when it ends, in milliseconds since 1970."""
    delay, at, deadline = options.get("delay"), options.get("at"), options.get("deadline")
    if delay is not None and at is not None:
        raise InvalidArgument("delay and at both say when: give one")
    due = None if delay is None else now_ms + span_ms(delay, "delay")
    if at is not None:
        due = instant_ms(at, "at")
    return due, None if deadline is None else now_ms + span_ms(deadline, "deadline", low_ms=1)


def _shared(task: str, version: int, lane: str, priority: int, policy: bytes) -> Shared:
    return Shared(task, version, lane, priority, policy, None, None)


def _declared(task: Task[Any, Any], tokens: frozenset[str] | None) -> Plan:
    """The plan of a task of this program; `tokens`: what it requires instead of its own."""
    shared = _shared(task.name, task.version, task.lane, task.options.priority, task.policy_for(tokens))
    return Plan(shared=shared, fairness=task.options.fairness, declared=task)


def _with_requirements(policy: bytes, requires: frozenset[str]) -> bytes:
    """A published policy with other requirements; keys sorted as `policy_json` sorts them."""
    read: dict[str, Any] = msgspec.json.decode(policy) if policy else {}
    if requires:
        read["routing_requirements"] = {"required_capabilities": sorted(requires)}
    else:
        read.pop("routing_requirements", None)
    return msgspec.json.encode(read, order="sorted")
