"""Schedules: jobs that are submitted by the engine itself, at the instants of a cron expression, an interval, or once.

    nightly = await client.schedule("nightly", report, Day("all"), cron="0 3 * * *", tz="Europe/Prague")

The rule: a schedule is what its name was last given. The same call again changes nothing, another one brings the
schedule to what it says, so a program may make its schedules each time it starts. A run is planned as a submit is, when
the schedule is made: a task's later options hold for it once it is made again.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, TypedDict, TypeVar, Unpack, cast, overload

import msgspec

from ffcore import checks, ids, limits
from ffcore.errors import Conflict, InvalidArgument, NotFound, rejection
from ffcore.ids import ExecutionId, PartitionKey, ScheduleId
from ffsdk import times
from ffsdk.job import Job

if TYPE_CHECKING:
    from zoneinfo import ZoneInfo

    from ffcore.backend import Backend
    from ffcore.contracts.schedule import ItemRun, ListedSchedule, ScheduleRead
    from ffcore.schedules import CatchUp, Spec
    from ffsdk.admit import Budgets, Quotas
    from ffsdk.client import Client
    from ffsdk.fold import New, Shared
    from ffsdk.plan import Plan
    from ffsdk.submit import Submitter
    from ffsdk.task import Task

P = TypeVar("P")
R = TypeVar("R")
Changed = Literal["paused", "resumed", "unchanged"]
TRIES_N: Final = 5
"""How often a change is made anew that somebody else came before."""
PAGE_N: Final = 200
PAST_MS: Final = 60_000
"""How far back an instant of `at=` may lie."""
_NOT_HERE: Final = {
    "unique": "each instant has one run already; for one run at a time give a quota= with a concurrency of 1",
    "delay": "a run is due when the schedule says: shift its instants instead",
}  # fmt: skip


class ScheduleOptions(TypedDict, total=False):
    """How each run wants to be treated: options of a submit that are left out are the task's. None is as good as left
    out."""

    priority: int | None
    lane: str | None
    deadline: times.Duration | None
    """A run ends as expired so long after it was made."""
    tags: Mapping[str, str] | None
    """Beside ``schedule.name`` and ``schedule.due``, which every run has."""
    requires: Iterable[str] | None
    budget: Budgets | None
    quota: Quotas | None


class ScheduleInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A schedule as it stands. Spans are seconds."""

    id: str
    name: str
    namespace: str
    state: str
    """active, paused or ended."""
    task: str
    lane: str
    cron: str | None
    every: float | None
    at: datetime | None
    tz: str
    catch_up: str
    jitter: float
    start: datetime | None
    end: datetime | None
    next_at: datetime | None
    """When the next run is made, its jitter included; None: nothing is to come, or it is paused."""
    fires: int
    """Instants that had their run."""
    last_due: datetime | None
    """The instant of the last run."""
    last_at: datetime | None
    """When that was made."""
    last_job: str | None
    refused: int
    """How often in a row the run that is due has been refused; it is tried again until it is taken."""
    refusal: str | None
    created_at: datetime | None
    changed_at: datetime | None
    revision: int


def info_of(row: ListedSchedule) -> ScheduleInfo:
    """What users see of a stored schedule. One this program cannot read has no times."""
    from ffcore import schedules as pure

    try:
        spec = pure.unpack(row.spec)
    except InvalidArgument:
        spec = pure.Spec()
    return ScheduleInfo(
        id=row.schedule_id, name=row.name, namespace=row.namespace, state=row.state, task=row.task, lane=row.lane_id,
        cron=spec.cron, every=None if spec.every_ms is None else spec.every_ms / 1000, at=times.from_ms(spec.at_ms),
        tz=spec.tz, catch_up=spec.catch_up, jitter=spec.jitter_ms / 1000, start=times.from_ms(spec.start_ms),
        end=times.from_ms(spec.end_ms), next_at=times.from_ms(row.at_ms), fires=row.fires,
        last_due=times.from_ms(row.last_ms), last_at=times.from_ms(row.last_at_ms),
        last_job=row.last_execution_id or None, refused=row.refused, refusal=row.refusal or None,
        created_at=times.from_ms(row.created_at), changed_at=times.from_ms(row.changed_at), revision=row.revision,
    )  # fmt: skip


class Schedule(Generic[R]):
    """A handle on one schedule. It holds a name and a client, no state; every question asks the store.

    created, changed   whether the call that answered it made the schedule, or brought it to another definition
    info               what the listing said that this handle came from; None otherwise
    """

    def __init__(
        self, client: Client, name: str, task: Task[Any, R] | None = None, *, created: bool = False,
        changed: bool = False, info: ScheduleInfo | None = None,
    ) -> None:  # fmt: skip
        from ffcore import schedules as pure

        self._client, self.name, self._task = client, name, task
        self.id: ScheduleId = pure.schedule_id(client.namespace, name, client.backend.config.fp)
        self.created, self.changed, self.info = created, changed, info

    def __repr__(self) -> str:
        return f"<Schedule {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Schedule) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    async def describe(self) -> ScheduleInfo:
        """How it stands. NotFound if there is none of this name."""
        return info_of((await self._read()).row)

    async def next(self, n: int = 1) -> list[datetime]:
        """The next so many instants, without their jitter; of a paused one those that it would have. Fewer if there are
        no more."""
        from itertools import islice

        from ffcore import schedules as pure

        checks.whole(n, "n", 1, limits.BACKFILL_N)
        read = await self._read()
        if read.row.state == "ended":
            return []
        spec = pure.unpack(read.row.spec)
        since = self._client.submitter.now_ms if read.row.state == "paused" else read.row.due_ms - 1
        return [_instant(at) for at in islice(pure.instants(spec, since), n)]

    async def pause(self) -> Changed:
        """Fire nothing until it is resumed. What falls into the pause is passed over: `backfill` can make it up."""
        from ffcore.contracts.schedule import PauseScheduleArgs

        answer = await self._client.backend.call(PauseScheduleArgs(schedule_id=self.id))
        return "paused" if answer.changed else "unchanged"

    async def resume(self) -> Changed:
        """Go on with the first instant from now."""
        from ffcore import schedules as pure
        from ffcore.contracts.schedule import ResumeScheduleArgs

        tries = TRIES_N
        while True:
            tries -= 1
            row = (await self._read()).row
            spec = pure.unpack(row.spec)
            due_ms = pure.after(spec, self._client.submitter.now_ms) or 0
            at_ms = pure.acted_at(spec, self.id, due_ms) if due_ms else 0
            try:
                answer = await self._client.backend.call(
                    ResumeScheduleArgs(schedule_id=self.id, due_ms=due_ms, at_ms=at_ms, expected_revision=row.revision)
                )
                return "resumed" if answer.changed else "unchanged"
            except Conflict:
                if not tries:
                    raise

    async def trigger(self) -> Job[R]:
        """Make a run now, whatever the schedule says and also while it is paused; its own instants stay as they are."""
        from ffcore import schedules as pure
        from ffcore.contracts.schedule import ScheduleRun

        partition, n = ids.partition_of(self.id), self._client.backend.config.fp
        [run_id] = ids.new_execution_ids(1, ids.partition_index(partition), n)
        now_ms = self._client.submitter.now_ms
        [job] = await self._runs([ScheduleRun(run_id, now_ms, pure.label(now_ms))])
        return job

    async def backfill(self, start: datetime, end: datetime) -> list[Job[R]]:
        """Make the runs of all its instants from `start` to `end`, both included, at once and oldest first. An instant
        that has had its run is answered with that job (`created` is False), as long as the job is kept.

        Raises InvalidArgument for more than 1,000 instants.
        """
        from ffcore import schedules as pure
        from ffcore.contracts.schedule import ScheduleRun

        first, last = times.instant_ms(start, "start"), times.instant_ms(end, "end")
        if last < first:
            raise InvalidArgument("the backfill ends before it starts: give an end after its start")
        spec = pure.unpack((await self._read()).row.spec)
        found = pure.between(spec, first, last, limits.BACKFILL_N)
        if len(found) > limits.BACKFILL_N:
            raise InvalidArgument(
                f"more than {limits.BACKFILL_N} instants lie between these: backfill them in parts, the first up to "
                f"{pure.label(found[-2])}"
            )
        return await self._runs([ScheduleRun(pure.run_id(self.id, at), at, pure.label(at)) for at in found])

    async def remove(self) -> bool:
        """Forget it; its runs stay what they are. Answers whether there was one."""
        from ffcore.contracts.schedule import RemoveScheduleArgs

        answer = await self._client.backend.call(RemoveScheduleArgs(schedule_id=self.id))
        return answer.was_there

    async def _read(self) -> ScheduleRead:
        from ffcore.contracts.schedule import ReadScheduleArgs

        return await self._client.backend.call(ReadScheduleArgs(schedule_id=self.id))

    async def _runs(self, runs: list[Any]) -> list[Job[R]]:
        """Raises what the store refused first; what was made before stays."""
        from ffcore.contracts.schedule import RunScheduleArgs

        jobs: list[Job[R]] = []
        for at in range(0, len(runs), limits.FIRES_N):
            some = runs[at : at + limits.FIRES_N]
            answer = await self._client.backend.call(RunScheduleArgs(schedule_id=self.id, items=some))
            items: list[ItemRun] = answer.items
            for run, item in zip(some, items, strict=True):
                if item.state == "error":
                    made = f"{len(jobs)} of {len(runs)} runs are made"
                    raise rejection(item.detail, made, asked="schedule", about=self.name)
                created = item.state == "created"
                jobs.append(Job(self._client, ExecutionId(run.execution_id), self._task, created=created))
        return jobs


class Scheduling:
    """The part of `ffsdk.client.Client` that makes schedules. These methods need an open client."""

    if TYPE_CHECKING:
        namespace: str

        @property
        def backend(self) -> Backend: ...
        @property
        def submitter(self) -> Submitter: ...

    @overload
    async def schedule(
        self, name: str, task: Task[None, R], payload: None = None, *, cron: str | None = None,
        every: times.Duration | None = None, at: datetime | None = None, tz: str | ZoneInfo = "UTC",
        catch_up: CatchUp = "one", jitter: times.Duration | None = None, start: datetime | None = None,
        end: datetime | None = None, paused: bool = False, **options: Unpack[ScheduleOptions],
    ) -> Schedule[R]: ...  # fmt: skip
    @overload
    async def schedule(
        self, name: str, task: Task[P, R], payload: P, *, cron: str | None = None,
        every: times.Duration | None = None, at: datetime | None = None, tz: str | ZoneInfo = "UTC",
        catch_up: CatchUp = "one", jitter: times.Duration | None = None, start: datetime | None = None,
        end: datetime | None = None, paused: bool = False, **options: Unpack[ScheduleOptions],
    ) -> Schedule[R]: ...  # fmt: skip
    @overload
    async def schedule(
        self, name: str, task: str, payload: Any = None, *, cron: str | None = None,
        every: times.Duration | None = None, at: datetime | None = None, tz: str | ZoneInfo = "UTC",
        catch_up: CatchUp = "one", jitter: times.Duration | None = None, start: datetime | None = None,
        end: datetime | None = None, paused: bool = False, **options: Unpack[ScheduleOptions],
    ) -> Schedule[Any]: ...  # fmt: skip

    async def schedule(
        self, name: str, task: Task[Any, Any] | str, payload: Any = None, *, cron: str | None = None,
        every: times.Duration | None = None, at: datetime | None = None, tz: str | ZoneInfo = "UTC",
        catch_up: CatchUp = "one", jitter: times.Duration | None = None, start: datetime | None = None,
        end: datetime | None = None, paused: bool = False, **options: Unpack[ScheduleOptions],
    ) -> Schedule[Any]:  # fmt: skip
        """Let the engine submit a job whenever it is due, once for each instant, whoever ticks.

        name      with the namespace what it is known by: the same call again changes nothing, another one updates it
        cron      minute, hour, day of the month, month, day of the week, in the time zone `tz`; @daily and the like
        every     an interval from `start` on, or from now; it does not drift
        at        once, at an aware datetime
        catch_up  what of instants that were missed (nobody ticked, the store was full): "one" run for all of them,
                  "none", or "all", one each and oldest first
        jitter    each run is made later by up to so much; how much follows from name and instant
        start, end   no instants outside
        paused    how it begins; one that exists stays paused or not

        Raises InvalidArgument (what cannot be, nothing was sent), `unknown_task`, StoreFull, Unavailable (make the call
        again).
        """
        from zoneinfo import ZoneInfo

        from ffcore import schedules as pure
        from ffsdk.submit import check_options

        checks.text(name, "name", limits.TAG_VALUE_BYTES)
        for word, said in _NOT_HERE.items():
            if word in options and cast("dict[str, Any]", options)[word] is not None:
                raise InvalidArgument(f"{word}= is not for schedules: {said}")
        check_options(cast("Any", options), ScheduleOptions, "schedule")
        given = pure.check(pure.Spec(
            cron=cron, every_ms=times.optional_ms(every, "every", low_ms=pure.EVERY_MIN_MS),
            at_ms=None if at is None else times.instant_ms(at, "at"), tz=tz.key if isinstance(tz, ZoneInfo) else tz,
            catch_up=catch_up, jitter_ms=times.optional_ms(jitter, "jitter") or 0,
            start_ms=None if start is None else times.instant_ms(start, "start"),
            end_ms=None if end is None else times.instant_ms(end, "end"),
        ))  # fmt: skip
        plan = await self.submitter.plan(task, cast("Any", {**options}), 0)
        raw = plan.encode(payload)
        what, tries = "", TRIES_N
        while not what:
            tries -= 1
            try:
                what = await _put(cast("Client", self), name, given, plan, payload, raw, paused)
            except Conflict:
                if not tries:
                    raise
        return Schedule(
            cast("Client", self), name, plan.declared, created=what == "created", changed=what == "updated"
        )

    def schedule_by_name(self, name: str, task: Task[Any, R] | None = None) -> Schedule[R]:
        """A handle on an existing schedule of this namespace. Asks nothing: use it to find out."""
        checks.text(name, "name", limits.TAG_VALUE_BYTES)
        return Schedule(cast("Client", self), name, task)

    async def schedules(self, state: str | None = None, limit: int | None = None) -> AsyncIterator[Schedule[Any]]:
        """Schedules of this namespace, partition by partition, in no order. `schedule.info` has how each stands.

        state   active, paused or ended; None: any
        """
        async for info in walk(self.backend, self.namespace, state, limit):
            yield Schedule(cast("Client", self), info.name, info=info)


async def walk(
    backend: Backend, namespace: str | None, state: str | None, limit: int | None
) -> AsyncIterator[ScheduleInfo]:
    """Schedules page by page; namespace None: of all of them."""
    from ffcore.contracts.schedule import ListSchedulesArgs

    if state not in (None, "active", "paused", "ended"):
        raise InvalidArgument(f"state is {state!r:.40}: use active, paused or ended")
    checks.whole(limit, "limit", 1) if limit is not None else None
    left = limit
    for partition in backend.config.keys("fp"):
        cursor: str | None = None
        while True:
            page = await backend.call(
                ListSchedulesArgs(partition=PartitionKey(partition), cursor=cursor, limit=PAGE_N)
            )
            for row in page.schedules:
                if (namespace is None or row.namespace == namespace) and (state is None or row.state == state):
                    yield info_of(row)
                    left = None if left is None else left - 1
                    if left == 0:
                        return
            cursor = page.cursor
            if not cursor:
                break


async def _put(client: Client, name: str, given: Spec, plan: Plan, payload: Any, raw: bytes, paused: bool) -> str:
    """One try. Raises Conflict when somebody else has changed it since it was read."""
    from ffcore import schedules as pure
    from ffcore.contracts.schedule import PutScheduleArgs, ReadScheduleArgs

    schedule_id = pure.schedule_id(client.namespace, name, client.backend.config.fp)
    try:
        known: ScheduleRead | None = await client.backend.call(ReadScheduleArgs(schedule_id=schedule_id))
    except NotFound:
        known = None
    was = _spec_of(known)
    keep = was is not None and was.timing == given.timing
    now_ms = client.submitter.now_ms
    spec = given
    if given.every_ms is not None and given.start_ms is None:
        # The same interval as before goes on in its own step.
        same = was is not None and was.every_ms == given.every_ms and was.start_ms is None
        spec = msgspec.structs.replace(given, anchor_ms=was.anchor_ms if same and was is not None else now_ms)
    new, shared = plan.new(None, payload, raw), plan.shared
    digest = _digest(given, shared, new)
    if known is not None and known.digest == digest:
        return "unchanged"
    if given.at_ms is not None and not keep and given.at_ms < now_ms - PAST_MS:
        said = f"at is {pure.label(given.at_ms)}, which has passed"
        raise InvalidArgument(f"{said}: submit the job, or give a time to come")
    # One instant that has only just passed is due. An interval that counts from now has its first when it is over.
    since = 0 if spec.at_ms is not None else now_ms - (spec.anchor_ms is None)
    due_ms = pure.after(spec, since) or 0
    if not due_ms and known is None:
        raise InvalidArgument("this schedule has no instant that is still to come: give a later end")
    answer = await client.backend.call(PutScheduleArgs(
        schedule_id=schedule_id, name=name, namespace=client.namespace, spec=spec.pack(), digest=digest,
        lane_id=shared.lane, execution_kind=shared.task, version=shared.version, priority=shared.priority,
        policy=shared.policy, payload=raw, tags=new.tags or b"", fairness_key=new.fairness, admission=new.admission,
        deadline_ms=shared.deadline_at, due_ms=due_ms, at_ms=pure.acted_at(spec, schedule_id, due_ms) if due_ms else 0,
        keep_due=keep, paused=paused, expected_revision=0 if known is None else known.row.revision,
    ))  # fmt: skip
    return answer.what


def _spec_of(known: ScheduleRead | None) -> Spec | None:
    from ffcore import schedules as pure

    try:
        return None if known is None else pure.unpack(known.row.spec)
    except InvalidArgument:
        return None


def _digest(spec: Spec, shared: Shared, new: New) -> str:
    """Of the whole definition, the same in every process that makes the same call."""
    parts = [
        spec.identity.pack(), shared.task, str(shared.version), shared.lane, str(shared.priority),
        bytes(shared.policy).hex(), new.payload.hex(), str(shared.deadline_at), (new.tags or b"").hex(),
        str(new.fairness), str(new.admission),
    ]  # fmt: skip
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _instant(ms: int) -> datetime:
    found = times.from_ms(ms)
    assert found is not None
    return found
