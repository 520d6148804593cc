"""Submitting: from a task and options to create calls, and from their answers to ids.

Ids are minted here, so every call may be sent again. Everything that can be refused without the store is refused
before anything is sent.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

import msgspec

from ffcore import checks, ids, limits, wire
from ffcore.errors import EngineBug, EngineError, InvalidArgument, StoreFull, rejection
from ffcore.ids import ExecutionId, PartitionKey
from ffsdk.admit import (
    NO_TERMS,
    Budgets,
    Lines,
    Quotas,
    Terms,
    Unique,
    budgets_of,
    look_for,
    quotas_of,
    unique_id,
    unique_of,
)
from ffsdk.connect import Durability, call_replicated, require_durability
from ffsdk.errors import NotAccepted
from ffsdk.fields import text_at
from ffsdk.fold import Fold, New, fill, refusal
from ffsdk.full import patiently, waited
from ffsdk.plan import Plan, declared_plan, shared_of, with_requirements
from ffsdk.task import Descriptor, Task, TaskOptions, policy_json, required
from ffsdk.times import Duration, instant_ms, span_ms
from ffsdk.unique import Got, Wanted, gathered, settle, take, take_many, to_its_end

if TYPE_CHECKING:
    from ffcore.backend import Backend

DESCRIPTOR_S = 30.0
"""How long a published descriptor is believed; a rolled-out change of lane or policy is seen after that."""
IN_FLIGHT = 4
"""Create calls of one submit_many at a time: enough to keep the store busy, few enough to let others in between."""
FEW_N = 16
"""Jobs without keys share a call from here on, also if every partition could have one of its own."""
REGISTRY = PartitionKey("{w:0}")


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
    budget: Budgets | None
    """Budgets instead of the task's: a name, `ff.Budget`, or several. An empty list is none."""
    quota: Quotas | None
    """Quotas instead of the task's: a name, `ff.Quota`, or several. An empty list is none."""
    unique: Unique | None
    """A key that one job at a time may hold."""


class SubmitOptions(JobOptions, total=False):
    """Options of `submit` and `submit_many`."""

    durability: Durability | None
    """More than the client's own: "fsync" asks the store once whether it keeps it, "replicated" waits for a replica."""
    patience: Duration | None
    """How long to ask again while the store is full (StoreFull), as often as it advises. Default: not at all."""


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
        self._there: set[str] = set()
        """Budgets and quotas that have been looked for."""
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
        """The plan of a declared task without options, once it is known; None for a name that is none."""
        declared = self._tasks.get(task) if isinstance(task, str) else task
        if not isinstance(declared, Task):
            return None
        found = self._plans.get(declared)
        if found is None and declared.terms is NO_TERMS:
            found = self._plans[declared] = declared_plan(declared, None)
        return found

    async def plan(
        self, task: Task[Any, Any] | str, options: SubmitOptions, now_ms: int | None = None, *, also: Terms = NO_TERMS
    ) -> Plan:
        """Check the options and settle what the jobs share. By name, it may ask the store for the descriptor; the
        first time a budget or a quota is named, whether it exists.

        now_ms   what relative times count from, for jobs that are submitted together
        also     budgets and quotas they have beside their own
        """
        plain = not options and also is NO_TERMS
        if plain and (known := self.known(task)) is not None:
            return known
        check_options(options, SubmitOptions, "submit")
        lane, priority, tags = options.get("lane"), options.get("priority"), options.get("tags")
        requires, unique = options.get("requires"), options.get("unique")
        tokens = None if requires is None else required(requires)
        now_ms = self._now_ms() if now_ms is None else now_ms
        delay_until, deadline_at = times_of(options, now_ms)
        if unique is not None and unique.delay_ms:
            delay_until = now_ms + unique.delay_ms
        base, terms = await self._base(task, lane, tokens)
        durability = options.get("durability")
        await self.keeps(durability)
        shared = base.shared._replace(
            lane=lane or base.shared.lane, priority=base.shared.priority if priority is None else priority,
            delay_until=delay_until, deadline_at=deadline_at,
        )  # fmt: skip
        patience = options.get("patience")
        lines = await self._lines(terms.instead(options.get("budget"), options.get("quota")).beside(also))
        plan = msgspec.structs.replace(
            base, shared=shared, tags=wire.pack_pairs(tags) if tags else None, replicated=durability == "replicated",
            patience_s=0.0 if patience is None else span_ms(patience, "patience") / 1000,
            admission=lines.fixed, keyed=lines if lines.keyed else None, unique=unique,
        )  # fmt: skip
        if plain and base.declared is not None:
            self._plans[base.declared] = plan
        return plan

    async def _base(
        self, task: Task[Any, Any] | str, lane: str | None, tokens: frozenset[str] | None
    ) -> tuple[Plan, Terms]:
        """The plan without this submit's own options, of a declared task, a published one, or an unknown name; and the
        budgets and quotas of that task."""
        known = self.declared(task)
        if isinstance(known, Task):
            return declared_plan(known, tokens), known.terms
        if not isinstance(task, str):
            raise InvalidArgument(f"task is {task!r:.60}: pass what @app.task made, or the task's name")
        name = ids.check_name(task, "task")
        found = await self._described(name)
        if found is not None:
            policy = bytes(found.policy)
            policy = policy if tokens is None else with_requirements(policy, tokens)
            shared = shared_of(name, found.version, found.lane, found.priority, policy)
            return Plan(shared=shared, fairness=found.fairness), Terms(found.budgets, found.quotas)
        if lane is None:
            raise rejection("unknown_task", asked="submit", about=name)
        policy = policy_json(TaskOptions(name=name), tokens or frozenset())
        return Plan(shared=shared_of(name, 1, lane, 0, policy)), NO_TERMS

    async def _lines(self, terms: Terms) -> Lines:
        """Budgets and quotas as text. Each is looked for once: NotFound names the one that nobody has made."""
        lines, config = terms.lines(self._namespace, self._backend.config), self._backend.config
        new = [one for one in terms.ids(self._namespace, config) if one[2] not in self._there]
        if new:
            await look_for(self._backend, new)
            self._there.update(one[2] for one in new)
        return lines

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

    def wanted(self, plan: Plan, execution_id: ExecutionId, at: Callable[[str], str | None]) -> Wanted | None:
        """The key a job is to hold alone; `at` reads a field of its payload. InvalidArgument if that has none."""
        unique = plan.unique
        if unique is None:
            return None
        key = unique.key if unique.path is None else at(unique.path)
        if key is None:
            raise InvalidArgument(f"the payload has no {unique.path}, which its unique key is read from: fill it in")
        return Wanted(unique, unique_id(self._namespace, key, self._backend.config), execution_id)

    async def submit(self, plan: Plan, payload: Any, key: str | None) -> tuple[ExecutionId, bool]:
        """The job's id, and whether it is new; False if the same request had been made before. Raises what the store
        refused."""
        raw = plan.encode(payload)
        fold = self._confirmed if plan.replicated else self._fold
        keyed_id = None if key is None else self.keyed_id(key)
        if plan.unique is not None:
            return await self._submit_alone(fold, plan, payload, raw, keyed_id)
        new = plan.new(keyed_id, payload, raw)
        if plan.patience_s:
            return await patiently(lambda: fold.submit(plan.shared, new), plan.patience_s)
        return await fold.submit(plan.shared, new)

    async def _submit_alone(
        self, fold: Fold, plan: Plan, payload: Any, raw: bytes, keyed_id: ExecutionId | None
    ) -> tuple[ExecutionId, bool]:
        """A job that holds a key: that is taken first, under the id the job gets."""
        made = keyed_id or ids.new_execution_id(self._backend.config.fp)
        wanted = self.wanted(plan, made, lambda path: text_at(path, payload))
        assert wanted is not None
        new = plan.new(made, payload, raw, wanted)

        async def send() -> tuple[ExecutionId, bool]:
            got = await take(self._backend, wanted)
            if not isinstance(got, Got):
                return got, False
            try:
                answer = await fold.submit(plan.shared, new)
            except EngineError as failed:
                await settle(self._backend, got, failed)
                raise
            # A fresh id is known to nobody else: it was there because an answer of ours was lost.
            is_new = answer[1] or keyed_id is None
            await settle(self._backend, got, is_new)
            return made, is_new

        return await patiently(lambda: to_its_end(send()), plan.patience_s)

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
        raws, keyed, wanted = list[bytes](), list[ExecutionId](), list[Wanted]()
        minted = self._mint(len(items)) if plan.unique is not None and keys is None else []
        for at, payload in enumerate(items):
            try:
                raws.append(plan.encode(payload))
                if keys is not None:
                    keyed.append(self.keyed_id(keys[at]))
                elif minted:
                    keyed.append(minted[at])
                if plan.unique is not None:
                    one = self.wanted(plan, keyed[at], functools.partial(text_at, payload=payload))
                    wanted += [one] if one is not None else []
            except InvalidArgument as bad:
                raise InvalidArgument(f"item {at}: {bad}", code=bad.code) from bad
        if wanted:
            return await to_its_end(self._send_alone(plan, items, raws, wanted, fresh=keys is None))
        return await self._create(plan, items, raws, keyed, None, range(len(raws)))

    def _mint(self, count: int) -> list[ExecutionId]:
        """Ids that make full calls."""
        found: list[ExecutionId] = []
        for at in range(0, count, limits.BULK_N):
            index = ids.partition_index(self._fold.next_partition())
            found += ids.new_execution_ids(min(limits.BULK_N, count - at), index, self._backend.config.fp)
        return found

    async def _send_alone(
        self, plan: Plan, items: Sequence[Any], raws: Sequence[bytes], wanted: Sequence[Wanted], *, fresh: bool
    ) -> list[tuple[ExecutionId, bool] | NotAccepted]:
        """Jobs that hold a key each; fresh: their ids are of this call."""
        found = await take_many(self._backend, wanted)
        places = [place for place, one in enumerate(found) if isinstance(one, Got)]
        results = await self._create(plan, items, raws, [one.execution_id for one in wanted], wanted, places)
        made = {one.execution_id: place for place, one in enumerate(wanted)}
        settling: list[tuple[int, Awaitable[None]]] = []
        for place, one in enumerate(found):
            if isinstance(one, EngineError):
                results[place] = NotAccepted(place, one)
            elif not isinstance(one, Got):
                # Whoever holds the key may be an earlier one of these that was not accepted.
                earlier = results[made[one]] if one in made else None
                results[place] = earlier.at(place) if isinstance(earlier, NotAccepted) else (one, False)
            elif isinstance(result := results[place], NotAccepted):
                settling.append((place, settle(self._backend, one, result)))
            else:
                results[place] = result[0], result[1] or fresh
                settling.append((place, settle(self._backend, one, result[1] or fresh)))
        for at in range(0, len(settling), limits.ROWS_N):
            some = settling[at : at + limits.ROWS_N]
            for (place, _), end in zip(some, await gathered([one for _, one in some]), strict=True):
                if isinstance(end, EngineError):
                    results[place] = NotAccepted(place, end)
        return results

    async def _create(
        self, plan: Plan, items: Sequence[Any], raws: Sequence[bytes], keyed: Sequence[ExecutionId],
        wanted: Sequence[Wanted] | None, places: Sequence[int],
    ) -> list[tuple[ExecutionId, bool] | NotAccepted]:  # fmt: skip
        """Create the jobs at these places; the others have no result."""
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

        more_n = len(plan.tags or b"") + len(plan.admission or "")
        async with asyncio.TaskGroup() as calls:
            for partition, some in self._batches(raws, keyed, places, more_n):
                await gate.acquire()
                new = [
                    plan.new(keyed[i] if keyed else None, items[i], raws[i], wanted[i] if wanted else None)
                    for i in some
                ]
                calls.create_task(send(partition, some, new))
                # It leaves while the next call is prepared.
                await asyncio.sleep(0)
        return results

    def _batches(
        self, raws: Sequence[bytes], keyed: Sequence[ExecutionId], all_places: Sequence[int], more_n: int
    ) -> Iterable[tuple[PartitionKey, list[int]]]:
        """Places of items, each batch within the bounds of one call: those with keys by partition, the others in order,
        over all partitions alike. more_n: bytes of each besides its payload."""
        groups: list[tuple[PartitionKey | None, list[int]]] = [(None, list(all_places))]
        if keyed:
            by_partition: dict[PartitionKey, list[int]] = {}
            for place in all_places:
                by_partition.setdefault(ids.partition_of(keyed[place]), []).append(place)
            groups = list(by_partition.items())
        # As many calls for every partition, unless they would be very small.
        rounds = -(-len(raws) // (limits.BULK_N * self._backend.config.fp))
        even = max(FEW_N, -(-len(raws) // (rounds * self._backend.config.fp))) if rounds else 0
        for partition, places in groups:
            while places:
                n, _ = fill((len(raws[i]) + more_n for i in places), limits.BULK_N if partition else even)
                yield partition or self._fold.next_partition(), places[:n]
                places = places[n:]


def check_options(options: JobOptions, known: type, asked: str) -> None:
    """Refuse what is no option, and what none can be. What may change, or can be read once, is kept as it is now:
    `options` are the call's own."""
    unknown = set(options) - set(known.__annotations__)
    if unknown:
        there = ", ".join(known.__annotations__)
        raise InvalidArgument(f"{asked} has no option {', '.join(sorted(unknown)):.200}: use {there}")
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
    if (budget := options.get("budget")) is not None:
        options["budget"] = budgets_of(budget)
    if (quota := options.get("quota")) is not None:
        options["quota"] = quotas_of(quota)
    due, _ = times_of(options, 0)
    if (unique := options.get("unique")) is not None and unique_of(unique).delay_ms and due is not None:
        raise InvalidArgument("debounce says when the job starts: leave delay and at out")


def times_of(options: JobOptions, now_ms: int) -> tuple[int | None, int | None]:
    """When a job is due and when it ends, in milliseconds since 1970."""
    delay, at, deadline = options.get("delay"), options.get("at"), options.get("deadline")
    if delay is not None and at is not None:
        raise InvalidArgument("delay and at both say when: give one")
    due = None if delay is None else now_ms + span_ms(delay, "delay")
    if at is not None:
        due = instant_ms(at, "at")
    return due, None if deadline is None else now_ms + span_ms(deadline, "deadline", low_ms=1)
