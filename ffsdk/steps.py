"""Steps: what a handler does once, however often it runs; and sleeps, which it begins once.

A step's result goes to the journal as JSON. The handler gets it as it is read back, in the first run too, so that a
handler cannot come to depend on something (an open file, a subclass, a tuple) that the next run would not give it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import inspect
import types
import typing
import weakref
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

from ffcore import checks, ids, limits
from ffcore.conditions import compile_sleep
from ffcore.contracts.journal import StepFrame
from ffcore.contracts.suspended import parse_wait
from ffcore.contracts.suspension import SuspensionReasonCode, TimeoutBehavior, WaitArgs, WaitSatisfied
from ffcore.errors import EngineError, InvalidArgument, JournalFull
from ffcore.ids import SuspensionId
from ffcore.steps import JournalEntry, StepFailure, digest_of, digest_of_text, effect_key, pack_error
from ffsdk import payload as payloads
from ffsdk.durable import inside
from ffsdk.errors import Fatal, StepConflict, StepInterrupted
from ffsdk.isolation import said_of, shorten
from ffsdk.task import Task
from ffsdk.times import Duration, span_ms

if TYPE_CHECKING:
    from ffsdk.context import Context
    from ffsdk.durable import Durable
    from ffsdk.spending import Charge

SLEEP: Final = "sleep"
SUSPEND_MS: Final = 4_500
"""A sleep this long gives up the slot: less is not worth the claim that follows. Sleeps of 5 s do, also when recording
them has taken a while."""
STEP_FRAMES_N: Final = 100
REASON_BYTES: Final = 4 << 10
"""What is kept of an error in the journal, which is read at each claim."""
PLAIN: Final = (str, int, bool)
"""Read back as they were, so that reading back can be left out."""


class StepInfo:
    """What the function of a step may know of it: `ff.step_info()`.

    name         the step's
    effect_key   32 hexadecimal digits to send along with its effect: the same in every try of this step, so that
                 whoever receives it can tell a repeat. Another one after `ff.ContinueAs` and after a fresh replay
    attempt      of the job, from 0
    occurrence   how many steps of this name and these arguments came before it
    """

    __slots__ = ("_charges", "durable", "frames", "key", "name", "over")

    def __init__(self, durable: Durable, name: str, key: str) -> None:
        self.name, self.durable, self.key, self.over = name, durable, key, False
        self.frames: list[StepFrame] = []
        """What `emit` left for the step's record."""
        self._charges: dict[str, Charge] = {}

    def emit(self, value: Any, type: str = "token") -> None:
        """A frame of the job's stream that is part of the step: readers get it when the step is recorded, once; of a
        try that is not recorded they get none. (`ctx.emit` shows a frame at once, and again when the step runs again.)
        Bytes are read back as bytes, anything else as the JSON value. Also for a function in a thread.

        Raises InvalidArgument: a value that does not encode, more than 64 KiB of it, more than 100 frames or 1 MiB in a
        step.
        """
        from ffsdk.streams import encoded

        raw, encoding = encoded(value, type)
        if self.over:
            raise InvalidArgument(f"step {self.name!r} has ended")
        size = len(raw) + sum(len(frame.payload) for frame in self.frames)
        if len(self.frames) >= STEP_FRAMES_N or size > limits.BATCH_BYTES:
            raise InvalidArgument(
                f"step {self.name!r} has {len(self.frames)} frames, and its record takes {STEP_FRAMES_N} and "
                f"{limits.BATCH_BYTES} bytes of them: use ctx.emit for what may be seen twice"
            )
        self.frames.append(StepFrame(type, "append", raw, encoding))

    def charge(self, charges: Sequence[Charge]) -> None:
        """What `ctx.spend` left for the step's record: one charge for each budget."""
        for charge in charges:
            before = self._charges.get(charge.budget_id)
            self._charges[charge.budget_id] = charge if before is None else before.plus(charge)

    def take_charges(self) -> list[Charge]:
        charges, self._charges = list(self._charges.values()), {}
        return charges

    @property
    def effect_key(self) -> str:
        return effect_key(self.durable.execution_id, self.durable.run, self.key)

    @property
    def attempt(self) -> int:
        return self.durable.ctx.attempt

    @property
    def occurrence(self) -> int:
        return int(self.key.rpartition(".")[2])

    def __repr__(self) -> str:
        return f"<step {self.name} {self.occurrence} attempt {self.attempt}>"


def step_info() -> StepInfo:
    """The step whose function runs. InvalidArgument outside of one."""
    info: StepInfo | None = inside.get()
    if info is None or info.over:
        raise InvalidArgument("ff.step_info() is for the function of a step, and none runs here: see ctx.step")
    return info


# ---- how a function is called, and what it gives back ---------------------------------------------------


class Shape(NamedTuple):
    """How to call a function, and how to read back what it returned. Does not hold the function."""

    is_async: bool
    decoder: msgspec.json.Decoder[Any]
    plain: tuple[type, ...]
    """What it returns need not be read back if it is of these."""

    @classmethod
    def of(cls, wanted: Any, is_async: bool, what: str) -> Shape:
        return cls(
            is_async, payloads.decoder(wanted, what), PLAIN if wanted is Any else (wanted,) if wanted in PLAIN else ()
        )


class Plan(NamedTuple):
    """One function as a step."""

    fn: Callable[..., Any]
    shape: Shape


_shapes: weakref.WeakKeyDictionary[Any, Shape] = weakref.WeakKeyDictionary()
"""By the function behind what was given. Functions that each run makes anew go away with it."""


def plan_of(fn: Any, name: str, ctx: Context) -> Plan:
    """The plan of a function, a method, a partial, anything callable, or a task."""
    given = fn
    if isinstance(fn, Task):
        return _plan_of_task(given, name, ctx)
    if not callable(fn):
        raise InvalidArgument(
            f"step {name!r}: {fn!r:.60} cannot be called; pass a function, and its arguments after it"
        )
    routine = routine_of(fn)
    try:
        shape = _shapes.get(routine)
    except TypeError:
        shape = None
    if shape is None:
        is_async = inspect.iscoroutinefunction(routine)
        shape = Shape.of(result_hint(routine), is_async, f"the result of step {name}")
        try:
            _shapes[routine] = shape
        except TypeError:
            pass  # neither hashed nor remembered
    return Plan(fn, shape)


def _plan_of_task(task: Task[Any, Any], name: str, ctx: Context) -> Plan:
    if task.options.isolation == "process":
        raise InvalidArgument(
            f"step {name!r}: task {task.name} has isolation='process', and a step runs in the handler's process",
            code="unsupported",
        )

    def call(*args: Any) -> Any:
        return task.fn(*args, *((ctx,) if task.takes_ctx else ()))

    return Plan(call, Shape.of(task.result_type, task.is_async, f"the result of task {task.name}"))


def routine_of(fn: Any) -> Callable[..., Any]:
    """The function behind a partial, a method or a callable object."""
    while isinstance(fn, functools.partial):
        fn = typing.cast("Any", fn).func
    fn = getattr(fn, "__func__", fn)
    return fn if inspect.isroutine(fn) or isinstance(fn, type) else type(fn).__call__


def result_hint(call: Callable[..., Any]) -> Any:
    """What a function says it returns; Any where it says nothing, or names what cannot be found."""
    wanted = getattr(call, "__annotations__", {}).get("return", Any)
    if isinstance(wanted, str):
        closure: dict[str, Any] = {}
        if isinstance(call, types.FunctionType):
            with contextlib.suppress(ValueError):
                closure = dict(inspect.getclosurevars(call).nonlocals)
        bare = types.SimpleNamespace(__annotations__={"return": wanted})
        known = getattr(call, "__globals__", {})
        try:
            wanted = typing.get_type_hints(bare, known, closure, include_extras=True)["return"]
        except NameError:
            return Any
    if typing.get_origin(wanted) in (Awaitable, Coroutine):
        wanted = typing.get_args(wanted)[-1]
    return Any if wanted in (typing.NoReturn, typing.Never) else wanted


# ---- a step --------------------------------------------------------------------------------------------


class Begun:
    """A step that is to be run: between its claim and its record."""

    __slots__ = ("at_most_once", "durable", "info", "key", "name", "plan", "tries")

    def __init__(self, durable: Durable, name: str, key: str, plan: Plan, at_most_once: bool, tries: int) -> None:
        self.durable, self.name, self.key, self.plan = durable, name, key, plan
        self.at_most_once, self.tries = at_most_once, tries
        self.info = StepInfo(durable, name, key)

    async def succeeded(self, value: Any) -> Any:
        """Record the result; answers it as it is read back."""
        plan, shape = self.plan, self.plan.shape
        what = f"the result of step {self.name!r}"
        try:
            raw = None if value is None else payloads.encode(value, what, limits.RESULT_BYTES)
            # Read back before it is recorded: what does not fit is found in the first run, not in a later one.
            if raw is not None and type(value) not in shape.plain:
                value = payloads.decode(shape.decoder, raw, what)
        except InvalidArgument as unfit:
            await self.failed(unfit)
            raise
        standing = await self.durable.record(
            self.key, "step", self.name, "ok", raw, self.info.frames, self.info.take_charges()
        )
        return value if standing is None else result_of(standing, plan)

    async def failed(self, error: Exception) -> None:
        """Record a failure that is final, count one that is not. The error itself is the caller's to raise."""
        charges = self.info.take_charges()
        try:
            if isinstance(error, Fatal):
                failure = StepFailure(type(error).__name__, shorten(error.reason, REASON_BYTES), error.category)
                await self.durable.record(self.key, "step", self.name, "fatal", failure.pack(), (), charges)
            elif not self.at_most_once:
                tried = pack_error(self.tries + 1, shorten(said_of(error), REASON_BYTES))
                await self.durable.record(self.key, "step", self.name, "error", tried, (), charges)
            else:
                self.durable.spent(charges)
        except JournalFull as full:
            error.add_note(f"it could not be recorded: {full}")

    async def given_up(self) -> None:
        """Count a try that the handler itself has ended: by a timeout, or because another step failed. Without an
        entry the next run, which asks for it again, would look like one that asks for something else."""
        durable, charges = self.durable, self.info.take_charges()
        if durable.held.why is not None or not durable.holding or self.at_most_once:
            durable.spent(charges)
            return  # the whole handler is being stopped; or the intent says as much
        with contextlib.suppress(EngineError):
            reason = "the handler gave it up (a timeout around it, or another step failed)"
            tried = pack_error(self.tries + 1, reason)
            await durable.record(self.key, "step", self.name, "error", tried, (), charges)


async def step(
    ctx: Context, name: str, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], at_most_once: bool, digest: Any
) -> Any:
    """See `ffsdk.context.Context.step`."""
    check_name(name)
    durable = ctx.durable
    with durable.in_flight(name):
        begun, value = await begin(ctx, name, fn, args, kwargs, at_most_once, digest)
        if begun is None:
            return value
        return await _finish(begun, args, kwargs)


async def begin(
    ctx: Context, name: str, fn: Any, args: tuple[Any, ...], kwargs: dict[str, Any], at_most_once: bool, digest: Any
) -> tuple[Begun | None, Any]:
    """The step to run, or None and what it came to in an earlier run. Within `in_flight`."""
    plan = plan_of(fn, name, ctx)
    known_by = digest_of(args, kwargs) if digest is None else digest_by(digest)
    durable = ctx.durable
    key, entry = await durable.claim("step", name, known_by)
    tries = 0
    if entry is not None:
        if entry.final:
            return None, result_of(entry, plan)
        if entry.status == "intent":
            raise StepInterrupted(name)
        tries = entry.tries
    begun = Begun(durable, name, key, plan, at_most_once, tries)
    if at_most_once:
        standing = await durable.record(key, "step", name, "intent")
        if standing is not None:
            if standing.final:
                return None, result_of(standing, plan)
            raise StepInterrupted(name)
        durable.check()  # the answer may have been so long in coming that the job is another's
    return begun, None


async def _finish(begun: Begun, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run the function and record what it came to."""
    info, plan = begun.info, begun.plan
    stopped: asyncio.CancelledError | None = None
    token = inside.set(info)
    try:
        if plan.shape.is_async:
            task = asyncio.current_task()
            assert task is not None
            begun.durable.running.add(task)
            try:
                value = await plan.fn(*args, **kwargs)
            finally:
                begun.durable.running.discard(task)
        else:
            call = functools.partial(contextvars.copy_context().run, plan.fn, *args, **kwargs)
            value, stopped = await _to_its_end(begun.durable.host.in_thread(call))
            if inspect.isawaitable(value):
                value = await value
    except Exception as failed:
        info.over = True
        await begun.failed(failed)
        raise
    except asyncio.CancelledError:
        info.over = True
        await begun.given_up()
        raise
    finally:
        info.over = True
        inside.reset(token)
    value = await begun.succeeded(value)
    if stopped is not None:
        raise stopped
    return value


async def _to_its_end(thread: asyncio.Future[Any]) -> tuple[Any, asyncio.CancelledError | None]:
    """What a thread came to. It cannot be stopped, so a cancel waits for it: what it did is recorded before."""
    stopped: asyncio.CancelledError | None = None
    while not thread.done():
        try:
            await asyncio.wait((thread,))
        except asyncio.CancelledError as cancel:
            stopped = cancel
    if stopped is not None and thread.exception() is not None:
        raise stopped
    return thread.result(), stopped


def result_of(entry: JournalEntry, plan: Plan) -> Any:
    """What a recorded step came to: its result, or the failure that is raised again."""
    if entry.status == "fatal":
        failure = entry.failure
        raise Fatal(failure.message, category=failure.category)
    if not entry.value:
        return None
    try:
        return payloads.decode(plan.shape.decoder, entry.value, f"the recorded result of step {entry.name!r}")
    except InvalidArgument as unfit:
        raise StepConflict(
            f"{unfit}; it was recorded by attempt {entry.attempt}: {entry.value[:200].decode(errors='replace')}. Let "
            "the function return what can be read, or replay the job fresh",
            name=entry.name,
        ) from unfit


def check_name(name: str, what: str = "step") -> None:
    """A name as the journal keeps it."""
    if not isinstance(name, str) or not name or not name.isprintable() or len(name.encode()) > limits.NAME_BYTES:
        raise InvalidArgument(
            f"the name of a {what} is {checks.shown(name, 60)}: use printable text of 1 to {limits.NAME_BYTES} bytes, "
            "the same in every run"
        )


def digest_by(given: Any) -> str:
    """The digest a caller names: a text, or anything that encodes."""
    return digest_of_text(given) if isinstance(given, str) else digest_of((given,), {})


# ---- sleep ---------------------------------------------------------------------------------------------

_NO_ARGUMENTS: Final = digest_of_text("")
"""A sleep is known by its place alone: how long it is to be may follow from the time of day."""
_NOTHING: Final = compile_sleep()


async def sleep(ctx: Context, duration: Duration) -> None:
    """See `ffsdk.context.Context.sleep`. When it ends is recorded as it begins, so that whatever happens meanwhile, and
    however often the handler runs, it ends then; or when an operator resumes the job."""
    asked_ms = span_ms(duration, "sleep")
    durable = ctx.durable
    with durable.in_flight(SLEEP):
        key, entry = await durable.claim("sleep", SLEEP, _NO_ARGUMENTS)
        until_ms = durable.now_ms + asked_ms
        if entry is None:
            entry = await durable.record(key, "sleep", SLEEP, "ok", b"%d" % until_ms)
        if entry is not None:
            until_ms = int(entry.value)
        # Each time it was suspended there is an entry, behind its own: what ended that.
        times_n, cut_short = 0, False
        while (waited := durable.journal.claim(SLEEP, f"{key}.{times_n + 1}")) is not None:
            times_n += 1
            cut_short = cut_short or parse_wait(waited.value).why == "operator"
    if cut_short:
        return
    durable.alarms.append(until_ms)
    try:
        while until_ms - durable.now_ms >= SUSPEND_MS:
            times_n += 1
            again = functools.partial(_until_the_first, durable, f"{key}.{times_n}")
            answer = await durable.suspend(again)
            if isinstance(answer, WaitSatisfied) and parse_wait(answer.value).why == "operator":
                return
    finally:
        durable.alarms.remove(until_ms)
    with durable.in_flight(SLEEP):
        left_ms = until_ms - durable.now_ms
        if left_ms > 0:
            await asyncio.sleep(left_ms / 1000)


def _until_the_first(durable: Durable, key: str) -> WaitArgs:
    """Suspend until the first sleep of this handler ends: several may sleep at a time."""
    return WaitArgs(
        execution_id=durable.held.job.execution_id,
        fence=durable.fence,
        suspension_id=SuspensionId(ids.uuid7()),
        step=key,
        step_name=SLEEP,
        version=durable.version,
        condition=_NOTHING,
        timeout_ms=max(0, min(durable.alarms) - durable.now_ms),
        timeout_behavior=TimeoutBehavior.AUTO_RESUME_WITH_TIMEOUT_SIGNAL,
        reason_code=SuspensionReasonCode.STEP_BOUNDARY,
    )
