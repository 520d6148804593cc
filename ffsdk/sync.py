"""The blocking client, for scripts and web views without a loop: the async client on a thread of its own.

Every method is the async one, run to its end on that thread; a test holds the two lists of methods together. Safe to
use from several threads. Do not use it inside an event loop: there the async client belongs.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Generic,
    Literal,
    Self,
    TypeAlias,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from ffsdk import budgets as aio_budgets
from ffsdk import client as aio
from ffsdk import flow as aio_flow
from ffsdk import job as aio_job
from ffsdk import lanes as aio_lanes
from ffsdk import node as aio_node
from ffsdk import quotas as aio_quotas
from ffsdk import times
from ffsdk.app import App
from ffsdk.connect import Durability
from ffsdk.draft import LEFT_OUT, On
from ffsdk.errors import SubmitErrors, Unavailable
from ffsdk.facade import Facade, Loop, blocking
from ffsdk.outcomes import Outcome
from ffsdk.submit import JobOptions, SubmitOptions
from ffsdk.sync_schedules import Scheduling
from ffsdk.task import Task

if TYPE_CHECKING:
    from ffcore.admission import Amount
    from ffcore.contracts.budget import BudgetStatus
    from ffcore.contracts.flow import FlowInfo
    from ffcore.contracts.quota import ListedQuota
    from ffcore.ids import ExecutionId, FlowId
    from ffsdk.admit import Budgets, Quotas
    from ffsdk.events import Kind
    from ffsdk.flows import FlowMember
    from ffsdk.joins import Join
    from ffsdk.listing import States, Tag
    from ffsdk.quotas import Rate
    from ffsdk.streams import Frame
    from ffsdk.views import Event, JobInfo

P = TypeVar("P")
R = TypeVar("R")
if TYPE_CHECKING:
    After: TypeAlias = "Node[Any] | Join | Iterable[Node[Any]]"


class Job(Facade[aio_job.Job[R]], Generic[R]):
    """A blocking handle on one execution; see `ffsdk.job.Job`."""

    @property
    def id(self) -> ExecutionId:
        return self.async_.id

    @property
    def execution_id(self) -> ExecutionId:
        return self.async_.id

    @property
    def created(self) -> bool:
        return self.async_.created

    @property
    def info(self) -> JobInfo | None:
        return self.async_.info

    def result(self, timeout: times.Duration | None = None) -> R:
        """What the handler returned; see `ffsdk.job.Job.result`."""
        return self._loop.run(self.async_.result(timeout))

    def outcome(self, timeout: times.Duration | None = None) -> Outcome[R]:
        """How it ended; see `ffsdk.job.Job.outcome`."""
        return self._loop.run(self.async_.outcome(timeout))

    status = blocking(aio_job.Job[Any].status)
    explain = blocking(aio_job.Job[Any].explain)
    steps = blocking(aio_job.Job[Any].steps)
    summary = blocking(aio_job.Job[Any].summary)
    cancel = blocking(aio_job.Job[Any].cancel)
    pause = blocking(aio_job.Job[Any].pause)
    resume = blocking(aio_job.Job[Any].resume)
    replay = blocking(aio_job.Job[Any].replay)

    def stream(self, after: str | None = None) -> Iterator[Frame]:
        """What its handler emits; see `ffsdk.job.Job.stream`."""
        return self._frames(self.async_.stream(after))

    def _frames(self, made: AsyncGenerator[Frame, None]) -> Iterator[Frame]:
        try:
            yield from self._iterate(made)
        finally:
            with contextlib.suppress(Unavailable):  # the client is closed, and with it everything it read
                self._loop.run(made.aclose())

    def __repr__(self) -> str:
        return repr(self.async_)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Job) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


class Node(Job[R]):
    """A node of a flow, and a blocking handle on its job once that is submitted; see `ffsdk.node.Node`."""

    async_: aio_node.Node[R]

    @property
    def flow_id(self) -> str:
        return self.async_.flow_id

    @property
    def key(self) -> str | None:
        return self.async_.key

    @property
    def place(self) -> int:
        return self.async_.place

    @property
    def task_name(self) -> str:
        return self.async_.task_name


class Flow(Facade[aio_flow.Flow]):
    """``with client.flow("nightly") as flow``, and a blocking handle on it after that; see `ffsdk.flow.Flow`."""

    @property
    def id(self) -> FlowId:
        return self.async_.id

    @property
    def flow_id(self) -> FlowId:
        return self.async_.id

    @property
    def name(self) -> str:
        return self.async_.name

    @property
    def created(self) -> bool:
        return self.async_.created

    @property
    def info(self) -> FlowInfo | None:
        return self.async_.info

    def __enter__(self) -> Self:
        self._loop.run(self.async_.__aenter__())
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._loop.run(self.async_.__aexit__(kind, error, traceback))

    @overload
    def add(
        self, task: Task[None, R], payload: None = None, *, after: After = (), on: On = "success",
        key: str | None = None, **options: Unpack[JobOptions],
    ) -> Node[R]: ...  # fmt: skip
    @overload
    def add(
        self, task: Task[P, R], payload: P, *, after: After = (), on: On = "success", key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Node[R]: ...  # fmt: skip
    @overload
    def add(
        self, task: Task[P, R], *, after: After, on: On = "success", key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Node[R]: ...  # fmt: skip
    @overload
    def add(
        self, task: str, payload: Any = ..., *, after: After = (), on: On = "success", key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Node[Any]: ...  # fmt: skip

    def add(
        self, task: Task[Any, Any] | str, payload: Any = LEFT_OUT, *, after: After = (), on: On = "success",
        key: str | None = None, **options: Unpack[JobOptions],
    ) -> Node[Any]:  # fmt: skip
        """Add a job to the flow; see `ffsdk.flow.Flow.add`."""
        made = self.async_.add(cast("str", task), payload, after=cast("Any", after), on=on, key=key, **options)
        return Node(made, self._loop)

    status = blocking(aio_flow.Flow.status)
    outcome = blocking(aio_flow.Flow.outcome)
    describe = blocking(aio_flow.Flow.describe)
    cancel = blocking(aio_flow.Flow.cancel)
    replay = blocking(aio_flow.Flow.replay)
    set_tags = blocking(aio_flow.Flow.set_tags)

    def nodes(self, *, edges: bool = True) -> Iterator[FlowMember]:
        """Its jobs; see `ffsdk.flow.Flow.nodes`."""
        return self._iterate(self.async_.nodes(edges=edges))

    def job(self, key: str, task: Task[Any, R] | None = None) -> Job[R]:
        """The job that was added under this key."""
        return Job(self.async_.job(key, task), self._loop)

    def __repr__(self) -> str:
        return repr(self.async_)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flow) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)


class Lane(Facade[aio_lanes.Lane]):
    """A blocking handle on a lane; see `ffsdk.lanes.Lane`."""

    @property
    def name(self) -> str:
        return self.async_.name

    pause = blocking(aio_lanes.Lane.pause)
    resume = blocking(aio_lanes.Lane.resume)
    drain = blocking(aio_lanes.Lane.drain)
    disable = blocking(aio_lanes.Lane.disable)
    aged = blocking(aio_lanes.Lane.aged)
    strict = blocking(aio_lanes.Lane.strict)
    keep = blocking(aio_lanes.Lane.keep)
    limit = blocking(aio_lanes.Lane.limit)
    backlog = blocking(aio_lanes.Lane.backlog)
    weigh = blocking(aio_lanes.Lane.weigh)
    weights = blocking(aio_lanes.Lane.weights)
    settings = blocking(aio_lanes.Lane.settings)
    stats = blocking(aio_lanes.Lane.stats)


class BudgetHandle(Facade[aio_budgets.BudgetHandle]):
    """A blocking handle on a budget; see `ffsdk.budgets.BudgetHandle`."""

    @property
    def name(self) -> str:
        return self.async_.name

    @property
    def id(self) -> str:
        return self.async_.id

    @property
    def info(self) -> BudgetStatus | None:
        return self.async_.info

    status = blocking(aio_budgets.BudgetHandle.status)
    report = blocking(aio_budgets.BudgetHandle.report)
    reset = blocking(aio_budgets.BudgetHandle.reset)
    raise_ = blocking(aio_budgets.BudgetHandle.raise_)
    spenders = blocking(aio_budgets.BudgetHandle.spenders)
    delete = blocking(aio_budgets.BudgetHandle.delete)


class QuotaHandle(Facade[aio_quotas.QuotaHandle]):
    """A blocking handle on a quota; see `ffsdk.quotas.QuotaHandle`."""

    @property
    def name(self) -> str:
        return self.async_.name

    @property
    def id(self) -> str:
        return self.async_.id

    @property
    def info(self) -> ListedQuota | None:
        return self.async_.info

    status = blocking(aio_quotas.QuotaHandle.status)
    delete = blocking(aio_quotas.QuotaHandle.delete)


class Client(Facade[aio.Client], Scheduling):
    """``with ff.sync.Client(url) as client``; see `ffsdk.client.Client`. Opens when made."""

    def __init__(
        self, url: str | None = None, *, namespace: str = "default", durability: Durability = "accepted",
        app: App | None = None,
    ) -> None:  # fmt: skip
        super().__init__(aio.Client(url, namespace=namespace, durability=durability, app=app), Loop())
        try:
            self._loop.run(self.async_.open())
        except BaseException:
            self._loop.stop()
            raise

    def close(self) -> None:
        """Let go of the store and end the thread. Closing twice is harmless."""
        with contextlib.suppress(Unavailable):  # closed already, maybe by another thread
            self._loop.run(self.async_.close())
        self._loop.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    @overload
    def submit(
        self, task: Task[None, R], payload: None = None, *, key: str | None = None, **options: Unpack[SubmitOptions]
    ) -> Job[R]: ...
    @overload
    def submit(
        self, task: Task[P, R], payload: P, *, key: str | None = None, **options: Unpack[SubmitOptions]
    ) -> Job[R]: ...
    @overload
    def submit(
        self, task: str, payload: Any = None, *, key: str | None = None, **options: Unpack[SubmitOptions]
    ) -> Job[Any]: ...

    def submit(
        self, task: Task[Any, Any] | str, payload: Any = None, *, key: str | None = None,
        **options: Unpack[SubmitOptions],
    ) -> Job[Any]:  # fmt: skip
        """Submit one job; see `ffsdk.client.Client.submit`."""
        return Job(self._loop.run(self.async_.submit(cast("str", task), payload, key=key, **options)), self._loop)

    @overload
    def submit_many(
        self, task: Task[P, R], payloads: Iterable[P], *, keys: Sequence[str] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> list[Job[R]]: ...  # fmt: skip
    @overload
    def submit_many(
        self, task: str, payloads: Iterable[Any], *, keys: Sequence[str] | None = None, **options: Unpack[SubmitOptions]
    ) -> list[Job[Any]]: ...

    def submit_many(
        self, task: Task[Any, Any] | str, payloads: Iterable[Any], *, keys: Sequence[str] | None = None,
        **options: Unpack[SubmitOptions],
    ) -> list[Job[Any]]:  # fmt: skip
        """Submit any number of jobs; see `ffsdk.client.Client.submit_many`. The jobs of SubmitErrors block too."""
        try:
            jobs = self._loop.run(self.async_.submit_many(cast("str", task), payloads, keys=keys, **options))
        except SubmitErrors as some:
            some.jobs = [None if job is None else Job[Any](job, self._loop) for job in some.jobs]
            raise
        return [Job(job, self._loop) for job in jobs]

    def flow(
        self, name: str, key: str | None = None, *, tags: Mapping[str, str] | None = None,
        budget: Budgets | None = None, quota: Quotas | None = None, durability: Durability | None = None,
        patience: times.Duration | None = None,
    ) -> Flow:  # fmt: skip
        """A graph of jobs; see `ffsdk.client.Client.flow`."""
        made = self.async_.flow(
            name, key, tags=tags, budget=budget, quota=quota, durability=durability, patience=patience
        )
        return Flow(made, self._loop)

    def flow_by_id(self, flow_id: str) -> Flow:
        """A handle on an existing flow."""
        return Flow(self.async_.flow_by_id(flow_id), self._loop)

    def flows(self, state: str | None = None, limit: int | None = None) -> Iterator[Flow]:
        """Flows by state; see `ffsdk.client.Client.flows`."""
        for flow in self._iterate(self.async_.flows(state, limit)):
            yield Flow(flow, self._loop)

    def job(self, execution_id: str, task: Task[Any, R] | None = None) -> Job[R]:
        """A handle on an existing execution."""
        return Job(self.async_.job(execution_id, task), self._loop)

    def jobs(
        self, *, state: States = None, lane: str | None = None, tag: Tag = None, limit: int | None = None
    ) -> Iterator[Job[Any]]:
        """Jobs by state, lane and tag; see `ffsdk.client.Client.jobs`."""
        for job in self._iterate(self.async_.jobs(state=state, lane=lane, tag=tag, limit=limit)):
            yield Job(job, self._loop)

    def lane(self, name: str) -> Lane:
        """A lane: pause, resume, drain, stats."""
        return Lane(self.async_.lane(name), self._loop)

    def subscribe(
        self, kind: Kind, *, lanes: Iterable[str] | None = None, tags: Mapping[str, str] | None = None,
        namespace: str | None = None, after: str | None = None,
    ) -> Iterator[Event]:  # fmt: skip
        """Follow what happens; see `ffsdk.client.Client.subscribe`."""
        made = self.async_.subscribe(kind, lanes=lanes, tags=tags, namespace=namespace, after=after)
        self._loop.run(made.start())
        return self._iterate(made)

    def budget(
        self, name: str, *, hard: Mapping[str, Amount] | None = None, soft: Mapping[str, Amount] | None = None,
        reset: times.Duration | None = None, on_breach: Literal["record", "refuse"] | None = None,
        scope: tuple[str, str] | None = None,
    ) -> BudgetHandle:  # fmt: skip
        """Declare or find a budget; see `ffsdk.client.Client.budget`."""
        made = self.async_.budget(name, hard=hard, soft=soft, reset=reset, on_breach=on_breach, scope=scope)
        return BudgetHandle(self._loop.run(made), self._loop)

    def budgets(self) -> Iterator[BudgetHandle]:
        """Budgets of this namespace."""
        for found in self._iterate(self.async_.budgets()):
            yield BudgetHandle(found, self._loop)

    def quota(self, name: str, *, rate: Rate | None = None, concurrency: int | None = None) -> QuotaHandle:
        """Declare or find a quota; see `ffsdk.client.Client.quota`."""
        return QuotaHandle(self._loop.run(self.async_.quota(name, rate=rate, concurrency=concurrency)), self._loop)

    def quotas(self) -> Iterator[QuotaHandle]:
        """Quotas of this namespace."""
        for found in self._iterate(self.async_.quotas()):
            yield QuotaHandle(found, self._loop)

    cancel_many = blocking(aio.Client.cancel_many)
    replay_many = blocking(aio.Client.replay_many)
    purge_many = blocking(aio.Client.purge_many)
    gate = blocking(aio.Client.gate)
    weight = blocking(aio.Client.weight)
    workers = blocking(aio.Client.workers)
    settings = blocking(aio.Client.settings)
    signal = blocking(aio.Client.signal)
    hold = blocking(aio.Client.hold)
    release = blocking(aio.Client.release)
