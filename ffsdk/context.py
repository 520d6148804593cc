"""The context of a handler: facts about its job, and what it may tell the engine while it runs.

The rule: everything a handler tells carries its fence, so a handler that has lost its job can change nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Generic, Literal, Protocol, TypeVar, Unpack, overload

from ffcore import checks, limits
from ffcore.contracts.lease import LeaseFence
from ffcore.errors import InvalidArgument
from ffcore.wire import pairs_to_dict
from ffsdk.times import Duration, from_ms

if TYPE_CHECKING:
    from ffcore.admission import Amount
    from ffsdk.blocking import Blocking
    from ffsdk.children import Child, Children, SpawnOptions
    from ffsdk.conditions import Condition
    from ffsdk.durable import Durable
    from ffsdk.gates import Gate
    from ffsdk.held import Held
    from ffsdk.inputs import Upstream
    from ffsdk.outcomes import Outcome
    from ffsdk.signals import Signal
    from ffsdk.spending import Spent
    from ffsdk.task import Task

P = TypeVar("P")
R = TypeVar("R")


class Home(Protocol):
    """Where a handler runs, as its context sees it: the worker's own process, or a child of it."""

    def tell(self, held: Held | None, durable: Durable | None, pct: int, message: str) -> Awaitable[None]: ...
    def spend(self, ctx: Context, held: Held | None, given: Mapping[str, Amount]) -> Awaitable[Spent]: ...
    def durable(self, ctx: Context, held: Held | None) -> Durable: ...


class Context:
    """What a handler gets as its second argument.

    execution_id   the job's id
    attempt        index of this attempt, from 0
    fence          lease id, lease epoch and attempt id; `fence.lease_epoch` rises with every lease of the job, so
                   a system that remembers the highest one seen can refuse a worker that has lost the job
    tags           the job's tags
    deadline       when this attempt will be ended (aware, UTC): the earlier of its timeout and the job's deadline
    state          what the app's lifespan yielded
    cancelled      True once the handler should stop: cancelled, timed out, lease lost, worker stopping. An async
                   handler is cancelled by asyncio as well; a handler in a thread has to look here
    task           the task that runs
    sync           the calls below, blocking, for a `def` handler
    """

    __slots__ = (
        "_deadline_ms",
        "_durable",
        "_flat_tags",
        "_held",
        "_home",
        "_tags",
        "attempt",
        "cancelled",
        "execution_id",
        "fence",
        "state",
        "task",
    )

    def __init__(
        self,
        *,
        execution_id: str,
        attempt: int,
        fence: LeaseFence,
        tags: list[str],
        deadline_ms: int,
        state: Any,
        task: Task[Any, Any],
        home: Home,
        held: Held | None = None,
    ) -> None:
        self.execution_id, self.attempt, self.fence = execution_id, attempt, fence
        self.state, self.task, self.cancelled = state, task, False
        self._flat_tags, self._tags, self._deadline_ms = tags, None, deadline_ms
        self._home, self._held, self._durable = home, held, None

    _tags: Mapping[str, str] | None
    _durable: Durable | None

    @classmethod
    def of(cls, held: Held, task: Task[Any, Any], state: Any, home: Home) -> Context:
        """The context of a job that was just claimed."""
        job = held.job
        ends = [at for at in (job.deadline_at, job.attempt_deadline_at) if at]
        return cls(
            execution_id=job.execution_id,
            attempt=job.attempt_index,
            fence=held.lease,
            tags=job.tags,
            deadline_ms=min(ends, default=0),
            state=state,
            task=task,
            home=home,
            held=held,
        )

    # ---- facts

    @property
    def tags(self) -> Mapping[str, str]:
        if self._tags is None:
            self._tags = pairs_to_dict(self._flat_tags)
        return self._tags

    @property
    def deadline(self) -> datetime | None:
        return from_ms(self._deadline_ms)

    @property
    def durable(self) -> Durable:
        """What steps, sleeps, gates and frames of this handler have in common; made when first used."""
        if self._durable is None:
            self._durable = self._home.durable(self, self._held)
        return self._durable

    @property
    def sync(self) -> Blocking:
        """The same calls for a `def` handler, which blocks until they have taken effect:
        ``ctx.sync.step("charge", charge, order)``. A step's function runs in the handler's own thread."""
        from ffsdk.blocking import Blocking

        return Blocking(self)

    # ---- telling

    def progress(self, pct: int, message: str = "") -> Awaitable[None]:
        """Say how far the job has come, 0 to 100; for people, never for decisions.

        ``await`` it in an async handler. In a `def` handler just call it: it has taken effect when it returns. What is
        said within a step may travel with the step's record, at most half a second later.
        Raises StaleLease if the job is no longer this handler's, Unavailable if the store does not answer.
        """
        if isinstance(pct, bool) or not isinstance(pct, int | float) or not 0 <= pct <= 100:
            raise InvalidArgument(f"progress is {pct!r:.40}: use a number from 0 to 100")
        if not isinstance(message, str):
            raise InvalidArgument(f"the progress message is {checks.shown(message, 40)}: use text")
        checks.size(message, "the progress message", limits.REASON_BYTES, code="invalid_input")
        return self._home.tell(self._held, self._durable, int(pct), message)

    def spend(self, **amounts: Amount) -> Awaitable[Spent]:
        """Charge the job's budgets with what has been spent: ``await ctx.spend(tokens=120, usd=0.002)``.

        Each dimension is charged to every budget of the job that has it; one that none has is InvalidArgument, and a
        job without budgets is charged nothing. ``await`` it in an async handler; in a `def` handler just call it
        (``ctx.sync.spend(...)`` also answers). Within a step it is recorded with the step, once, and a limit that it
        passes is heard of at a later call of the context.

        Raises BudgetExceeded where a hard limit is passed. It is recorded all the same, unless the budget refuses what
        goes beyond it (`on_breach="refuse"`). Left uncaught, what the job's `on_exceed` says happens.
        """
        return self._home.spend(self, self._held, amounts)

    def emit(
        self, value: Any, type: str = "token", mode: Literal["append", "best_effort"] = "append", *,
        spend: Mapping[str, Amount] | None = None,
    ) -> Coroutine[Any, Any, None]:  # fmt: skip
        """Append a frame to the attempt's stream, for whoever reads `job.stream()`.

        value   bytes are read back as bytes, everything else as its JSON value; at most 64 KiB
        type    a word of your own ("token", "tool_call"), shown with the frame
        mode    "append": kept within the stream's retention. "best_effort": kept in smaller number, and not waited for
        spend   what the frame costs, as for `ctx.spend`; what many frames cost is charged together. BudgetExceeded
                comes after the frame is stored, from this call or from the next
        """
        from ffsdk import streams

        return streams.emit(self._awaited("emit"), value, type, mode, spend)

    def summary(self, patch: Mapping[str, Any]) -> Coroutine[Any, Any, dict[str, Any]]:
        """Apply a JSON merge patch to the job's summary document (None removes a field); answers the whole document."""
        from ffsdk import streams

        return streams.summary(self._awaited("summary"), patch)

    # ---- what is done once

    @overload
    def step(
        self, name: str, fn: Callable[..., Awaitable[R]], /, *args: Any, at_most_once: bool = ..., digest: Any = ...,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, R]: ...  # fmt: skip
    @overload
    def step(
        self, name: str, fn: Task[Any, R], /, *args: Any, at_most_once: bool = ..., digest: Any = ...
    ) -> Coroutine[Any, Any, R]: ...
    @overload
    def step(
        self, name: str, fn: Callable[..., R], /, *args: Any, at_most_once: bool = ..., digest: Any = ...,
        **kwargs: Any,
    ) -> Coroutine[Any, Any, R]: ...  # fmt: skip
    def step(
        self, name: str, fn: Any, /, *args: Any, at_most_once: bool = False, digest: Any = None, **kwargs: Any
    ) -> Coroutine[Any, Any, Any]:
        """Run `fn(*args, **kwargs)` once and record what it came to: a handler that runs again gets the record.

        fn             async def, def (runs in a thread) or a task. What it returns must encode as JSON; the handler
                       gets it as it is read back, in the type `fn` says it returns, in every run alike
        at_most_once   never begin it twice: if nobody knows how the first try ended, the next run gets StepInterrupted
        digest         what tells this step from others of its name, instead of its arguments; needed where these do
                       not encode, such as a connection

        A step is known by name, arguments and how many equal ones the handler has begun before it. `ff.Fatal` is
        recorded as well and raised again in every run; any other error is counted and raised, and the next attempt
        tries the step again. Raises StepConflict where an earlier run recorded this name with other arguments,
        JournalFull past 10,000 steps or 16 MiB. `ff.step_info()` inside tells the key for the step's effect.
        """
        from ffsdk import steps

        return steps.step(self._awaited("step"), name, fn, args, kwargs, at_most_once, digest)

    def sleep(self, duration: Duration) -> Coroutine[Any, Any, None]:
        """Sleep so many seconds (or a timedelta), counted from the first time the handler got here, over crashes and
        restarts. From 5 seconds on the job is suspended: it holds no lease and no slot, and the handler runs again
        after it."""
        from ffsdk import steps

        return steps.sleep(self._awaited("sleep"), duration)

    # ---- what it came after

    def upstreams(self) -> Coroutine[Any, Any, list[Upstream]]:
        """The jobs that this one was added after in its flow, in order: how each ended, and what it returned as
        builtins. Empty outside of flows. One read, also in a handler that got its payload from them."""
        from ffsdk import inputs

        return inputs.upstreams(self._awaited("upstreams"))

    # ---- children

    @overload
    def spawn(
        self, task: Task[None, R], payload: None = None, *, key: str | None = None, **options: Unpack[SpawnOptions]
    ) -> Coroutine[Any, Any, Child[R]]: ...
    @overload
    def spawn(
        self, task: Task[P, R], payload: P, *, key: str | None = None, **options: Unpack[SpawnOptions]
    ) -> Coroutine[Any, Any, Child[R]]: ...
    @overload
    def spawn(
        self, task: str, payload: Any = None, *, key: str | None = None, **options: Unpack[SpawnOptions]
    ) -> Coroutine[Any, Any, Child[Any]]: ...

    def spawn(
        self, task: Task[Any, Any] | str, payload: Any = None, *, key: str | None = None,
        **options: Unpack[SpawnOptions],
    ) -> Coroutine[Any, Any, Child[Any]]:  # fmt: skip
        """Make a child: a job in this job's flow, recorded as a step named after its task, so that a handler which runs
        again gets the same one. It goes its own way: it may outlive this handler, its failure is heard by who awaits
        its `result()`, and it ends when this job is cancelled (`abandon=True`: not even then).

        key       names it within the flow: the same child for every run and every member that spawns it; a key that
                  stands for another task, payload or lane raises IdempotencyConflict. Without one, each new run (after
                  `ff.ContinueAs`, a fresh replay) makes its own
        options   delay, at, priority, lane, deadline, tags, requires, as in `client.submit`; abandon

        ``await job.result()`` waits durably: no lease, no slot. Raises StepConflict and JournalFull as `step` does; a
        store that is full is asked again for as long as the lease lasts.
        """
        from ffsdk import children

        return children.spawn(self._awaited("spawn"), task, payload, key, options)

    # ---- waiting for others

    @overload
    def gate(
        self, name: str, type: type[R], names: str | Iterable[str] | None = None
    ) -> Coroutine[Any, Any, Gate[R]]: ...
    @overload
    def gate(
        self, name: str, type: Any = Any, names: str | Iterable[str] | None = None
    ) -> Coroutine[Any, Any, Gate[Any]]: ...

    def gate(
        self, name: str, type: Any = Any, names: str | Iterable[str] | None = None
    ) -> Coroutine[Any, Any, Gate[Any]]:
        """Open a place for a signal, before anybody is told of it: an early answer is kept.

        type    what a signal's value is decoded to
        names   signals that count; None: any. Others are kept and answered as ignored

        ``gate.token`` opens it from outside (`client.signal`), ``await gate.wait(timeout=...)`` suspends until it is.
        """
        from ffsdk import gates

        return gates.open_gate(self._awaited("gate"), name, type, names)

    @overload
    def wait(
        self, *children: Child[Any] | Children | Sequence[Child[Any]]
    ) -> Coroutine[Any, Any, list[Outcome[Any] | None]]: ...
    @overload
    def wait(
        self, *conditions: Condition | Iterable[Condition], timeout: Duration | None = None,
        on_timeout: Literal["fail", "cancel", "expire", "resume", "escalate"] = "fail",
    ) -> Coroutine[Any, Any, list[Signal]]: ...  # fmt: skip

    def wait(
        self, *conditions: Any, timeout: Duration | None = None,
        on_timeout: Literal["fail", "cancel", "expire", "resume", "escalate"] = "fail",
    ) -> Coroutine[Any, Any, Any]:  # fmt: skip
        """Suspend until all of the conditions hold: gates, `ff.all_of(...)`, `ff.count(2, ...)`, `ff.operator()`.

        Answers the satisfying signals in the order they came. on_timeout as in `gate.wait`.

        Of children (or one `ff.any_of`, `ff.quorum`, `ff.all_of` of some): waits until so many have ended, well or not,
        and answers their outcomes in the order given, None for those that go on. Without timeout: see `Child.outcome`.
        """
        from ffsdk import children, gates

        join = children.joined(conditions)
        if join is not None:
            return children.wait(self._awaited("wait"), join, timeout)
        return gates.wait(self._awaited("wait"), conditions, timeout, on_timeout)

    def ended(self) -> None:
        """For the worker: the handler has ended."""
        if self._durable is not None:
            self._durable.ended()

    def _awaited(self, call: str) -> Context:
        """The context, for a call that the handler awaits; in a thread nobody would."""
        self.durable.in_loop(call)
        return self


class Done:
    """An awaitable that has nothing left to do."""

    def __await__(self) -> Any:
        return
        yield


class Told(Generic[R]):
    """An awaitable whose value is there."""

    __slots__ = ("value",)

    def __init__(self, value: R) -> None:
        self.value = value

    def __await__(self) -> Generator[Any, Any, R]:
        return self.value
        yield
