"""Children: jobs that a handler makes and may wait for, in its own flow.

    parts = [await ctx.spawn(count, name) for name in names]
    return sum([await part.result() for part in parts])

Spawning is journaled: a handler that runs again gets the same children, and a crash between the call and its answer
makes none twice. Waiting gives up the lease and the worker's slot; how a child ended is read from its own record.

The rule: a child's end is never the parent's. It is heard where the handler asks for it, and nowhere else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, TypedDict, TypeVar, cast

import msgspec

from ffcore import checks, flows, ids, limits
from ffcore.contracts.reads import ExecutionOutcome
from ffcore.contracts.spawn import SpawnArgs, Spawned, SpawnReplayed
from ffcore.errors import InvalidArgument, StoreFull, WrongState
from ffcore.ids import ExecutionId, FlowId
from ffcore.steps import JournalEntry, digest_of, digest_of_text, effect_key
from ffsdk import payload as payloads
from ffsdk.fields import text_at
from ffsdk.gates import step_name
from ffsdk.job import Cancelling, Job, outcome_of
from ffsdk.submit import SubmitOptions
from ffsdk.task import Task, digest
from ffsdk.times import Duration
from ffsdk.unique import check_member, holding

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from ffsdk.admit import Budgets, Quotas, Unique
    from ffsdk.client import Client
    from ffsdk.context import Context
    from ffsdk.durable import Durable
    from ffsdk.outcomes import Outcome
    from ffsdk.plan import Plan

R_co = TypeVar("R_co", covariant=True)


class SpawnOptions(TypedDict, total=False):
    """Options of `ctx.spawn`; spans are seconds or timedelta. None is as good as left out."""

    delay: Duration | None
    """Not before so much later. Not together with `at`."""
    at: datetime | None
    """Not before this instant; aware."""
    priority: int | None
    """-100 to 100; higher first. Default: the task's."""
    lane: str | None
    """Default: the task's."""
    deadline: Duration | None
    """The child ends as expired so much later, whatever it is doing. Default: the task's."""
    tags: Mapping[str, str] | None
    """Keys carry a namespace: ``{"shop.tenant": "t1"}``."""
    requires: Iterable[str] | None
    """Capability tokens instead of the task's."""
    budget: Budgets | None
    """Budgets instead of the task's: a name, `ff.Budget`, or several. An empty list is none."""
    quota: Quotas | None
    """Quotas instead of the task's: a name, `ff.Quota`, or several. An empty list is none."""
    unique: Unique | None
    """A key that one job at a time may hold; its action is "reject" (Conflict, code `unique_held`) or "replace"."""
    abandon: bool
    """It goes on when its parent is cancelled."""


class Child(Job[R_co]):
    """A job this handler has spawned. What waits for its end waits durably; all else is as with any `Job`."""

    __slots__ = ("_ctx", "name")

    def __init__(
        self, ctx: Context, client: Client, name: str, execution_id: ExecutionId, task: Task[Any, R_co] | None, *,
        created: bool,
    ) -> None:  # fmt: skip
        super().__init__(client, execution_id, task, created=created)
        self._ctx = ctx
        self.name = name
        """Its key; of one without a key, its task."""

    async def outcome(self, timeout: Duration | None = None) -> Outcome[R_co]:
        """How it ended: Completed, Failed, Cancelled, Expired or Skipped. While it has not, the parent holds neither
        lease nor slot; it runs again when the child has ended.

        What a handler awaits at a time, as in a gather, is waited for together; to go on with the first that ends, use
        ``ctx.wait(ff.any_of(...))``. There is no timeout here: give the child a `deadline=`, and it ends as expired.
        """
        if timeout is not None:
            raise InvalidArgument(
                "waiting for a child is durable, and has no timeout: spawn it with deadline=, or ask its status()"
            )
        durable = self._ctx.durable
        durable.in_loop("run(job.result())")
        await durable.awaited.until((self.id,), 1)
        return self.decoded(durable.awaited.ended[self.id])

    def decoded(self, found: ExecutionOutcome) -> Outcome[R_co]:
        """Its end as the store has it, as an outcome of its task."""
        return outcome_of(found, self._task)

    async def cancel(self, reason: str = "", *, grace: Duration | None = None, force: bool = False) -> Cancelling:
        """As `Job.cancel`, as long as this handler holds its own job."""
        self._ctx.durable.check()
        return await super().cancel(reason, grace=grace, force=force)


# ---- spawning --------------------------------------------------------------------------------------------


async def spawn(
    ctx: Context, task: Task[Any, Any] | str, payload: Any, key: str | None, options: SpawnOptions
) -> Child[Any]:
    """See `ffsdk.context.Context.spawn`."""
    durable = ctx.durable
    if not isinstance(task, Task | str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise InvalidArgument(f"task is {checks.shown(task, 60)}: pass what @app.task made, or the task's name")
    name = task.name if isinstance(task, Task) else ids.check_name(task, "task")
    if key is not None:
        checks.text(key, "key", limits.KEY_BYTES)
    unknown = set(options) - set(SpawnOptions.__annotations__)
    if unknown:
        known = ", ".join(SpawnOptions.__annotations__)
        raise InvalidArgument(f"spawn has no option {', '.join(sorted(unknown)):.200}: use {known}")
    check_member(options.get("unique"), "spawn")
    declared = task if isinstance(task, Task) else durable.host.tasks.get(name)
    if declared is not None:
        raw = declared.encode_payload(payload)
    else:
        raw = payloads.encode(payload, f"the payload of task {name}", limits.PAYLOAD_BYTES)
    client = await durable.host.client()
    with durable.in_flight(name):
        step, entry = await durable.claim("spawn", name, digest_of(("spawn", payload, key), {}))
        created = False
        if entry is None:
            given = {k: v for k, v in options.items() if k != "abandon" and v is not None}
            plan = await client.submitter.plan(task, cast("SubmitOptions", given))
            new = _Spawn(name, step, payload, raw, key, options, plan)
            child_id, created = await new.send(durable)
        else:
            child_id = ExecutionId(entry.value.decode())
    durable.awaited.spawned.add(child_id)
    return Child(ctx, client, name if key is None else key, child_id, declared, created=created)


class _Spawn(NamedTuple):
    """A child to be made."""

    name: str
    step: str
    payload: Any
    raw: bytes
    """The payload as JSON."""
    key: str | None
    options: SpawnOptions
    plan: Plan

    async def send(self, durable: Durable) -> tuple[ExecutionId, bool]:
        """Make it, in the parent's flow; its id, and whether it is new. A full store is asked again under the same
        lease, as often as it advises."""
        host, held, awaited = durable.host, durable.held, durable.awaited
        joined = False
        while True:
            args, sent = self.args(durable, awaited.flow_id), host.clock()
            try:
                answer = await self.call(durable, args)
                break
            except StoreFull as full:
                await asyncio.sleep(full.retry_after)
                durable.check()
            except WrongState as moved:
                # Somebody has put the parent into a flow since it was claimed: its children belong there.
                if moved.code != "execution_already_in_flow" or joined:
                    raise
                awaited.flow_id, joined = FlowId(ids.check_id(moved.detail)), True
        host.extend(held, answer.lease_expires_at, sent)
        if answer.cancel_until:
            host.cancel(held)
        if isinstance(answer, SpawnReplayed):
            return ExecutionId(JournalEntry.parse(answer.entry).value.decode()), False
        return answer.child_id, answer.created

    async def call(self, durable: Durable, args: SpawnArgs) -> Spawned | SpawnReplayed:
        """Make it; a child that is to hold a key alone takes that first."""
        plan = self.plan
        client = await durable.host.client()
        wanted = client.submitter.wanted(plan, args.child_id, self.at)
        if wanted is None:
            return await durable.call(args)
        found: list[Spawned | SpawnReplayed] = []

        async def create() -> bool:
            found.append(await durable.call(msgspec.structs.replace(args, admission=plan.text(self.at, wanted))))
            # A step that stands, and was not there before this call: an answer of ours was lost.
            return isinstance(found[0], SpawnReplayed) or found[0].created

        await holding(durable.host.backend, [wanted], create)
        return found[0]

    def at(self, path: str) -> str | None:
        return text_at(path, self.payload)

    def args(self, durable: Durable, flow_id: FlowId) -> SpawnArgs:
        job, shared, options = durable.held.job, self.plan.shared, self.options
        raw, fairness = self.raw, text_at(self.plan.fairness, self.payload)
        return SpawnArgs(
            execution_id=job.execution_id, fence=durable.fence_text, step=self.step, step_name=self.name,
            task_version=durable.version, lease_ttl_ms=durable.host.lease_ms, flow_id=flow_id,
            child_id=self.child_id(durable, flow_id), namespace=ids.Namespace(job.namespace),
            lane_id=ids.LaneId(shared.lane), execution_kind=shared.task, version=shared.version, input_payload=raw,
            priority=shared.priority, creator_identity="", tags=dict(options.get("tags") or {}), policy=shared.policy,
            delay_until=shared.delay_until, execution_deadline_at=shared.deadline_at,
            digest=digest(shared.task, raw, shared.lane, flow_id), fairness_key=fairness, label=self.key,
            abandon=bool(options.get("abandon")), admission=self.plan.text(self.at),
        )  # fmt: skip

    def child_id(self, durable: Durable, flow_id: FlowId) -> ExecutionId:
        """Follows from where it was asked for, so that asking again makes no second one."""
        if self.key is not None:
            return flows.member_id(flow_id, self.key)
        parent = durable.held.job.execution_id
        # Version 5, which keeps no tombstone: nobody can ask for it by a key of his own.
        uuid = ids.derived_uuid(effect_key(parent, durable.run, self.step).encode(), "5")
        return ExecutionId(f"{ids.partition_of(parent)}:{uuid}")


# ---- joins of children -----------------------------------------------------------------------------------


class Children:
    """Some children, and how many of them must have ended.

    word       all_of, any_of or quorum
    children   in the order in which `ctx.wait` answers
    k          how many it takes
    """

    __slots__ = ("children", "k", "word")

    def __init__(self, word: str, children: Sequence[Child[Any]], k: int) -> None:
        checks.whole(k, "n", 1, limits.ROWS_N)
        if k > len(set(children)):
            raise InvalidArgument(f"{word}({k}) of {len(set(children))} children cannot come true")
        if k < len(children) > limits.ROWS_N:
            raise InvalidArgument(f"{word}() of {len(children)} children: it takes {limits.ROWS_N} at most")
        self.word, self.children, self.k = word, tuple(children), k

    def __str__(self) -> str:
        k = f"{self.k}, " if self.word == "quorum" else ""
        return f"{self.word}({k}{', '.join(child.name for child in self.children)})"

    __repr__ = __str__


def join(word: str, members: Sequence[Any], k: int | None = None) -> Children | None:
    """A join of these, if they are children (or their blocking twins); None: they are something else."""
    found = [getattr(member, "async_", member) for member in members]
    children_n = sum(isinstance(member, Child) for member in found)
    if not children_n:
        return None
    if children_n < len(found):
        other = next(member for member in found if not isinstance(member, Child))
        raise InvalidArgument(
            f"{word}() over children and {checks.shown(other, 60)}: children are waited for among themselves, without "
            "joins of joins; wait for each in a task of its own, as asyncio.gather does"
        )
    return Children(word, found, len(set(found)) if k is None else k)


def joined(conditions: Sequence[Any]) -> Children | None:
    """What `ctx.wait` was given, if that is children: a join of them, or some one by one."""
    if len(conditions) == 1 and isinstance(conditions[0], Children):
        return conditions[0]
    if any(isinstance(one, Children) for one in conditions):
        raise InvalidArgument("wait() takes one join of children: wait for each in a task of its own, as gather does")
    members: list[Any] = [*conditions]
    if len(members) == 1 and isinstance(members[0], list | tuple):
        members = [*conditions[0]]
    return join("all_of", members)


async def wait(ctx: Context, join: Children, timeout: Duration | None) -> list[Outcome[Any] | None]:
    """The ends of a join's children in the order given, as soon as there are enough; None for those that go on.

    Which had ended is recorded where it is a choice: a handler that runs again decides by the same ones.
    """
    if timeout is not None:
        raise InvalidArgument("waiting for children has no timeout: spawn them with deadline=")
    durable, children = ctx.durable, join.children
    for child in children:
        if child.execution_id not in durable.awaited.spawned:
            raise InvalidArgument(f"{child.execution_id} is no child of this run: wait for what ctx.spawn has answered")
    every = [child.id for child in children]
    if join.k == len(set(every)):
        await durable.awaited.until(every, join.k)
        return [child.decoded(durable.awaited.ended[child.id]) for child in children]
    name = step_name(str(join))
    with durable.in_flight(name):
        step, entry = await durable.claim("wait", name, digest_of_text(" ".join(["children", str(join.k), *every])))
    chosen: set[ExecutionId] = set()
    if entry is None:
        await durable.awaited.until(every, join.k)
        with durable.in_flight(name):
            chosen = {one for one in every if one in durable.awaited.ended}
            entry = await durable.record(step, "wait", name, value=msgspec.json.encode(sorted(chosen)))
    if entry is not None:
        chosen = msgspec.json.decode(entry.value, type=set[ExecutionId])
    await durable.awaited.until(list(chosen), len(chosen))
    ended = durable.awaited.ended
    return [child.decoded(ended[child.id]) if child.id in chosen else None for child in children]
