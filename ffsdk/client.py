"""The client: submit jobs, wait for them, look at them, steer them. One per event loop; cheap to share in it.

Bad input is refused before anything is sent; what the store refuses arrives as a typed error whose family says
what to do (`ffsdk.errors`).
"""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator, Callable, Generator, Iterable, Mapping, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack, overload

from ffcore import checks, ids, limits
from ffcore.errors import InvalidArgument, Unavailable
from ffsdk import times
from ffsdk.app import App
from ffsdk.connect import Durability, clock_of
from ffsdk.errors import NotAccepted, SubmitErrors
from ffsdk.job import Job, check_id
from ffsdk.limiting import Limiting
from ffsdk.many import Many
from ffsdk.pace import Pace
from ffsdk.schedules import Scheduling
from ffsdk.submit import SubmitOptions, Submitter
from ffsdk.task import Task
from ffsdk.views import FanOut, info_of
from ffsdk.waiters import Waiters

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffsdk.admit import Budgets, Quotas
    from ffsdk.events import Kind, Subscription
    from ffsdk.flow import Flow
    from ffsdk.lanes import Lane, LaneNames
    from ffsdk.listing import States, Tag
    from ffsdk.settings import StoreSettings
    from ffsdk.signals import SignalAnswer
    from ffsdk.tails import Tails
    from ffsdk.workers import WorkerInfo

P = TypeVar("P")
R = TypeVar("R")


class Client(Many, Limiting, Scheduling):
    """``async with app.client() as client`` or ``async with ff.Client(url) as client``; also
    ``client = await ff.connect(url)`` and `close()`. Opening raises what `ffsdk.connect.open_backend` does."""

    def __init__(
        self,
        url: str | None = None,
        *,
        namespace: str = "default",
        durability: Durability = "accepted",
        app: App | None = None,
    ) -> None:
        if app is not None and url is not None:
            raise InvalidArgument("the app says where the store is: leave url out")
        self._app = app if app is not None else App(url, namespace, durability)
        self.namespace = self._app.namespace
        self._backend: Backend | None = None
        self._waiters: Waiters | None = None
        self._submitter: Submitter | None = None
        self._lane_names: LaneNames | None = None
        self._tails: Tails | None = None
        self._now_ms: Callable[[], int] = times.wall_ms

    # ---- open and close

    async def open(self) -> Self:
        """Open it, if it is not open."""
        if self._backend is None:
            backend = await self._app.backend()
            if self._backend is not None:  # opened by another task meanwhile
                await self._app.release()
                return self
            self._backend, self._now_ms = backend, clock_of(backend)
            # Random, not the host's name: two clients of one process must not get each other's notices.
            self._waiters = Waiters(backend, f"c{secrets.token_hex(8)}", self.pace)
            self._submitter = Submitter(backend, self.namespace, self._app.durability, self._app.tasks, self._now_ms)
        return self

    async def close(self) -> None:
        """End its waits (Unavailable, code `closed`) and let go of the store. Closing twice is harmless."""
        waiters, self._waiters = self._waiters, None
        opened, self._backend, self._submitter, self._lane_names = self._backend, None, None, None
        tails, self._tails = self._tails, None
        if tails is not None:
            await tails.close()
        if waiters is not None:
            await waiters.close()
        if opened is not None:
            await self._app.release()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __await__(self) -> Generator[Any, None, Self]:
        return self.open().__await__()

    @property
    def backend(self) -> Backend:
        """The engine's own interface, for tools. Raises Unavailable while the client is not open."""
        return _opened(self._backend)

    @property
    def submitter(self) -> Submitter:
        """For what submits beside `submit`: flows, and handlers that spawn."""
        return _opened(self._submitter)

    @property
    def waiters(self) -> Waiters:
        return _opened(self._waiters)

    @property
    def pace(self) -> Pace:
        return self._app.pace

    @property
    def tails(self) -> Tails:
        """Its readers of streams."""
        if self._tails is None:
            from ffsdk.tails import Tails

            self._tails = Tails(self.backend, self.pace)
        return self._tails

    @property
    def lane_names(self) -> LaneNames:
        if self._lane_names is None:
            from ffsdk.lanes import LaneNames

            self._lane_names = LaneNames(self)
        return self._lane_names

    # ---- submit

    @overload
    async def submit(
        self, task: Task[None, R], payload: None = None, *, key: str | None = None, **options: Unpack[SubmitOptions]
    ) -> Job[R]: ...
    @overload
    async def submit(
        self, task: Task[P, R], payload: P, *, key: str | None = None, **options: Unpack[SubmitOptions]
    ) -> Job[R]: ...
    @overload
    async def submit(
        self, task: str, payload: Any = None, *, key: str | None = None, **options: Unpack[SubmitOptions]
    ) -> Job[Any]: ...

    async def submit(
        self,
        task: Task[Any, Any] | str,
        payload: Any = None,
        *,
        key: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Job[Any]:
        """Submit one job. With a `key`, the same request answers the same job however often it is made.

        Raises InvalidArgument (bad input, nothing was sent), IdempotencyConflict (the key names another request),
        `unknown_task` (by name, not published, no lane=), NotFound (no such budget or quota), Conflict, code
        `unique_held` (another job holds its unique key), StoreFull, Unavailable (`may_have_applied`: repeat it with
        its key).
        """
        submitter = _opened(self._submitter)
        plan = await submitter.plan(task, options)
        execution_id, created = await submitter.submit(plan, payload, key)
        return Job(self, execution_id, plan.declared, created=created)

    @overload
    async def submit_many(
        self,
        task: Task[P, R],
        payloads: Iterable[P],
        *,
        keys: Sequence[str] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> list[Job[R]]: ...
    @overload
    async def submit_many(
        self, task: str, payloads: Iterable[Any], *, keys: Sequence[str] | None = None, **options: Unpack[SubmitOptions]
    ) -> list[Job[Any]]: ...

    async def submit_many(
        self, task: Task[Any, Any] | str, payloads: Iterable[Any], *, keys: Sequence[str] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> list[Job[Any]]:  # fmt: skip
        """Submit any number of jobs of one task, in few calls, and answer them in order; `keys`: one per payload.

        With `unique`, each takes its key in the order given; a field of the payload gives each a key of its own.
        Raises InvalidArgument before anything is sent; SubmitErrors, an ExceptionGroup whose `jobs` tells per item
        what was accepted, if some items were not.
        """
        submitter = _opened(self._submitter)
        plan = await submitter.plan(task, options)
        items = list(payloads)
        if keys is not None and (isinstance(keys, str) or len(keys) != len(items)):
            raise InvalidArgument(f"{len(items)} payloads need as many keys, one each")
        results = await submitter.submit_many(plan, items, keys)
        jobs: list[Job[Any] | None] = []
        refused: list[NotAccepted] = []
        for result in results:
            if isinstance(result, NotAccepted):
                refused.append(result)
                jobs.append(None)
            else:
                jobs.append(Job(self, result[0], plan.declared, created=result[1]))
        if refused:
            raise SubmitErrors.of(
                f"{len(refused)} of {len(items)} jobs of task {plan.shared.task} were not accepted", refused, jobs
            )
        return [job for job in jobs if job is not None]

    # ---- flows

    def flow(
        self, name: str, key: str | None = None, *, tags: Mapping[str, str] | None = None,
        budget: Budgets | None = None, quota: Quotas | None = None, durability: Durability | None = None,
        patience: times.Duration | None = None,
    ) -> Flow:  # fmt: skip
        """A graph of jobs, collected in a block and submitted whole when that is left without an error.

        ``async with client.flow("nightly") as flow: page = flow.add(scrape, url); flow.add(digest, after=page)``

        name   what it is called; need not be unique
        key    with one, the same graph is the same flow however often it is made (`flow.created` tells)
        budget, quota   of every job in it, beside the job's own: a name, `ff.Budget`, `ff.Quota`, or several

        Leaving the block raises IdempotencyConflict (the key names another graph), StoreFull, `unknown_task`,
        Unavailable (`may_have_applied`: make it again with its key); then nothing of it runs. durability and patience
        are those of `submit`, for the flow as a whole.
        """
        from ffcore.ids import FlowId
        from ffsdk.flow import Flow

        partitions_n = self.backend.config.fp
        if key is None:
            flow_id = FlowId(ids.new_execution_id(partitions_n))
        else:
            checks.text(key, "key", limits.KEY_BYTES)
            flow_id = FlowId(ids.keyed_id("flow", self.namespace, key, partitions_n))
        return Flow.draft(
            self, self.submitter, flow_id, name, tags=tags, budget=budget, quota=quota, durability=durability,
            patience=patience, fresh=key is None,
        )  # fmt: skip

    def flow_by_id(self, flow_id: str) -> Flow:
        """A handle on an existing flow. Asks nothing: use it to find out."""
        from ffcore.ids import FlowId
        from ffsdk.flow import Flow

        return Flow(self, FlowId(check_id(flow_id, self.backend.config.fp)))

    async def flows(self, state: str | None = None, limit: int | None = None) -> AsyncIterator[Flow]:
        """Flows of this namespace, partition by partition, in no order. `flow.info` has name, state and counters.

        state   open, running, blocked, completed, failed or cancelled; "active": one of the first three; None: any
        """
        from ffsdk.flow import Flow
        from ffsdk.flows import walk

        async for info in walk(self.backend, self.namespace, state, limit):
            yield Flow(self, info.flow_id, info.name, info=info)

    # ---- find

    def job(self, execution_id: str, task: Task[Any, R] | None = None) -> Job[R]:
        """A handle on an existing execution; `task` gives its result a type. Asks nothing: use it to find out."""
        return Job(self, check_id(execution_id, self.backend.config.fp), task)

    async def jobs(
        self, *, state: States = None, lane: str | None = None, tag: Tag = None, limit: int | None = None
    ) -> AsyncIterator[Job[Any]]:
        """Jobs of this namespace by public state (one or several), lane and tag; newest first within lane and state,
        partition by partition. `job.info` has what the listing knows. A job that moves may appear twice, or not."""
        from ffsdk.listing import states_of, tag_text, walk

        wanted, text = states_of(state), tag_text(tag)
        async for row in walk(self.backend, wanted, lane=lane, tag=text, namespace=self.namespace, limit=limit):
            yield Job(self, row.execution_id, self._app.tasks.get(row.task), info=info_of(row))

    def lane(self, name: str) -> Lane:
        """A lane: pause, resume, drain, order, limit, stats."""
        from ffsdk.lanes import Lane

        return Lane(self, name)

    async def weight(self, lane: str, weights: Mapping[str, float], *, revision: int | None = None) -> FanOut:
        """Give fairness keys of a lane more turns, or fewer, as ``{"t1": 4}``; see `ffsdk.lanes.Lane.weigh`."""
        return await self.lane(lane).weigh(weights, revision=revision)

    async def workers(self, *, dead: bool = False) -> list[WorkerInfo]:
        """Workers that are alive, or with `dead` those that died within the last hour; of every namespace."""
        from ffsdk.workers import workers

        return await workers(self.backend, dead)

    async def gate(
        self, *, pct: int | None = None, bytes: int | None = None, revision: int | None = None
    ) -> FanOut:  # fmt: skip
        """Refuse submits (StoreFull) while the server uses this share of its maxmemory, or so many bytes; 0: not for
        that reason, None: as it is. What is there is worked on whatever the memory. See `settings`."""
        from ffcore.settings import STORE
        from ffsdk.settings import change

        checks.whole(pct, "pct", 0, 100)
        checks.whole(bytes, "bytes", 0)
        given = {"gate_pct": pct, "gate_bytes": bytes}
        if pct is None and bytes is None:
            raise InvalidArgument("which mark? Give pct= or bytes=")
        return await change(self.backend, STORE, {k: v for k, v in given.items() if v is not None}, revision)

    async def settings(self) -> StoreSettings:
        """What holds for the whole store, at which revision, and who has not heard of it yet."""
        from ffsdk.settings import store_settings

        return await store_settings(self.backend)

    # ---- signals

    async def signal(
        self, gate_token: str, value: Any = None, *, name: str | None = None, key: str | None = None,
        source: str | None = None, execution_id: str | None = None, waitpoint_id: str | None = None,
    ) -> SignalAnswer:  # fmt: skip
        """Send a signal to a gate; its token says where that is. The job goes on at once if it waited for just this.

        value       of the gate's type; anything JSON can carry, at most 64 KiB
        name        what the signal is, "signal" unless given; a gate may accept some names only
        key         with one it is one signal however often it is sent (for a day at least), and every answer is equal,
                    also when the job has gone on or has ended; without one, each call is a signal of its own
        source      who sends it, as "web:dana"; conditions may count distinct sources
        execution_id, waitpoint_id   where it is meant to go, if known: must match the token

        Raises InvalidToken (whatever is wrong with it, also when the job is gone), WrongState, code `waitpoint_closed`
        (a new signal, and the gate is no longer open), InvalidArgument (a value that does not encode or is too large,
        too many signals), StoreFull, Unavailable (`may_have_applied`: send it again with its key).
        """
        from ffsdk.signals import send

        return await send(
            self.backend, gate_token, value, name=name, key=key, source=source, execution_id=execution_id,
            waitpoint_id=waitpoint_id,
        )  # fmt: skip

    # ---- follow

    def subscribe(
        self,
        kind: Kind,
        *,
        lanes: Iterable[str] | None = None,
        tags: Mapping[str, str] | None = None,
        namespace: str | None = None,
        after: str | None = None,
    ) -> Subscription:
        """Follow what happens: "completion" (jobs that end), "lease" (claimed, lost, given back), "signal" (sent to
        their gates), "operator" (done to them, or to a lane, from outside: pause, resume, hold, cancel, and what asks
        for that), "flow" (flows that are created, end, are reopened or purged).

        lanes, tags, namespace   only of jobs in one of these lanes (not for flows), with all of these tags, of this
        namespace. For the last two each record is read: what retention has removed meanwhile is left out.

        ``async for event in client.subscribe(...)``; `event.cursor` as `after=` goes on behind it; None starts with
        what happens from the first use on, "-" with all that is kept. A cursor the feed was trimmed past raises
        `cursor_expired`.
        """
        from ffsdk.events import Subscription

        return Subscription(self, kind, lanes=lanes, tags=tags, namespace=namespace, after=after)


T = TypeVar("T")


def _opened(part: T | None) -> T:
    if part is None:
        raise Unavailable("the client is not open: use `async with app.client() as client`", code="closed")
    return part
