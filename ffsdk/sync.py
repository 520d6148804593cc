"""The blocking client, for scripts and web views without a loop: the async client on a thread of its own.

Every method is the async one, run to its end on that thread; a test holds the two lists of methods together. Safe to
use from several threads. Do not use it inside an event loop: there the async client belongs.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    Self,
    TypeAlias,
    TypeVar,
    Unpack,
    cast,
    overload,
)

from ffsdk import client as aio
from ffsdk import flow as aio_flow
from ffsdk import job as aio_job
from ffsdk import lanes as aio_lanes
from ffsdk import node as aio_node
from ffsdk import times
from ffsdk.app import App
from ffsdk.connect import Durability
from ffsdk.draft import LEFT_OUT, On
from ffsdk.errors import InvalidArgument, SubmitErrors, Unavailable
from ffsdk.outcomes import Outcome
from ffsdk.submit import JobOptions, SubmitOptions
from ffsdk.task import Task

if TYPE_CHECKING:
    from ffcore.contracts.flow import FlowInfo
    from ffcore.ids import ExecutionId, FlowId
    from ffsdk.events import Kind
    from ffsdk.flows import FlowMember
    from ffsdk.joins import Join
    from ffsdk.listing import States, Tag
    from ffsdk.streams import Frame
    from ffsdk.views import Event, JobInfo

P = TypeVar("P")
R = TypeVar("R")
A = TypeVar("A")
S = ParamSpec("S")
if TYPE_CHECKING:
    After: TypeAlias = "Node[Any] | Join | Iterable[Node[Any]]"
TURNS_N = 10
"""Turns of the loop between the end of the client and that of the loop."""


class _Loop:
    """An event loop in a daemon thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._gate, self._closed = threading.Lock(), False
        self._thread = threading.Thread(target=self._work, name="ff-sync", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, R]) -> R:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            work.close()
            raise InvalidArgument("ff.sync blocks, and an event loop runs in this thread: use the async client here")
        with self._gate:
            if self._closed:
                work.close()
                raise Unavailable("the client is closed", code="closed")
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            if self._closed:
                raise Unavailable("the client was closed meanwhile", code="closed") from None
            raise
        except BaseException:
            future.cancel()  # KeyboardInterrupt: nobody waits for it any more
            raise

    @property
    def alive(self) -> bool:
        return not self._closed

    def stop(self) -> None:
        """End the thread. What other threads wait for ends with Unavailable, code `closed`."""
        with self._gate:
            if self._closed:
                return
            self._closed = True
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _work(self) -> None:
        self._loop.run_forever()
        self._loop.run_until_complete(self._end())
        self._loop.close()

    async def _end(self) -> None:
        for _ in range(TURNS_N):  # whoever has been told that the client is closed says so himself
            await asyncio.sleep(0)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=1.0) if left else None
        await self._loop.shutdown_asyncgens()


class _Facade(Generic[A]):
    """Something async and the loop it lives on."""

    def __init__(self, async_: A, loop: _Loop) -> None:
        self.async_ = async_
        """The async twin. It belongs to the facade's own thread."""
        self._loop = loop

    def _iterate(self, made: AsyncIterator[R]) -> Iterator[R]:
        async def step() -> tuple[R, ...]:
            async for item in made:
                return (item,)
            return ()

        while found := self._loop.run(step()):
            yield found[0]


def _blocking(method: Callable[Concatenate[A, S], Coroutine[Any, Any, R]]) -> Callable[Concatenate[_Facade[A], S], R]:
    """The blocking form of an async method, with the same parameters."""

    def call(self: _Facade[A], /, *args: S.args, **kwargs: S.kwargs) -> R:
        return self._loop.run(method(self.async_, *args, **kwargs))  # pyright: ignore[reportPrivateUsage]

    call.__name__, call.__doc__ = method.__name__, method.__doc__
    call.__wrapped__ = method  # type: ignore[attr-defined]  # what inspect.signature and help() show
    return call


class Job(_Facade[aio_job.Job[R]], Generic[R]):
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

    status = _blocking(aio_job.Job[Any].status)
    explain = _blocking(aio_job.Job[Any].explain)
    steps = _blocking(aio_job.Job[Any].steps)
    summary = _blocking(aio_job.Job[Any].summary)
    cancel = _blocking(aio_job.Job[Any].cancel)
    pause = _blocking(aio_job.Job[Any].pause)
    resume = _blocking(aio_job.Job[Any].resume)
    replay = _blocking(aio_job.Job[Any].replay)

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


class Flow(_Facade[aio_flow.Flow]):
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

    status = _blocking(aio_flow.Flow.status)
    outcome = _blocking(aio_flow.Flow.outcome)
    describe = _blocking(aio_flow.Flow.describe)
    cancel = _blocking(aio_flow.Flow.cancel)
    replay = _blocking(aio_flow.Flow.replay)
    set_tags = _blocking(aio_flow.Flow.set_tags)

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


class Lane(_Facade[aio_lanes.Lane]):
    """A blocking handle on a lane; see `ffsdk.lanes.Lane`."""

    @property
    def name(self) -> str:
        return self.async_.name

    pause = _blocking(aio_lanes.Lane.pause)
    resume = _blocking(aio_lanes.Lane.resume)
    drain = _blocking(aio_lanes.Lane.drain)
    disable = _blocking(aio_lanes.Lane.disable)
    aged = _blocking(aio_lanes.Lane.aged)
    strict = _blocking(aio_lanes.Lane.strict)
    keep = _blocking(aio_lanes.Lane.keep)
    settings = _blocking(aio_lanes.Lane.settings)
    stats = _blocking(aio_lanes.Lane.stats)


class Client(_Facade[aio.Client]):
    """``with ff.sync.Client(url) as client``; see `ffsdk.client.Client`. Opens when made."""

    def __init__(
        self, url: str | None = None, *, namespace: str = "default", durability: Durability = "accepted",
        app: App | None = None,
    ) -> None:  # fmt: skip
        super().__init__(aio.Client(url, namespace=namespace, durability=durability, app=app), _Loop())
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
        budget: object | None = None, durability: Durability | None = None, patience: times.Duration | None = None,
    ) -> Flow:  # fmt: skip
        """A graph of jobs; see `ffsdk.client.Client.flow`."""
        made = self.async_.flow(name, key, tags=tags, budget=budget, durability=durability, patience=patience)
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

    cancel_many = _blocking(aio.Client.cancel_many)
    replay_many = _blocking(aio.Client.replay_many)
    purge_many = _blocking(aio.Client.purge_many)
    gate = _blocking(aio.Client.gate)
    settings = _blocking(aio.Client.settings)
    signal = _blocking(aio.Client.signal)
    hold = _blocking(aio.Client.hold)
    release = _blocking(aio.Client.release)
