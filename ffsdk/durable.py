"""What the durable calls of one running handler have in common: its journal, its lease, and how it is suspended.

The rule: what is recorded is answered from the record, and what is not is done under the lease or not at all. Once the
job is suspended the handler is only unwound: every further call of its context raises `Suspended` again.

All of it belongs to the event loop's thread. Made when a handler first uses it, so that plain handlers pay nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import Callable, Coroutine, Generator, Sequence
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar

from ffcore.args import Args
from ffcore.contracts.journal import NoteUnclaimedArgs, ReadJournalArgs, RecordStepArgs, StepFrame, StepReplayed
from ffcore.errors import BudgetExceeded, EngineError, InvalidArgument, NotFound, StaleLease, Suspended, Terminal
from ffcore.steps import JournalEntry, entries_of
from ffsdk.errors import StepConflict
from ffsdk.held import ENDED
from ffsdk.journal import OURS, Journal
from ffsdk.slots import call_until_answered

if TYPE_CHECKING:
    from ffcore.contracts.lease import LeaseFence
    from ffsdk.awaited import Awaited
    from ffsdk.context import Context
    from ffsdk.held import Held
    from ffsdk.host import Host
    from ffsdk.spending import Charge
    from ffsdk.steps import StepInfo

log = logging.getLogger("flowfabric.worker")
R = TypeVar("R")

QUIET_TURNS: Final = 3
"""Turns of the loop after the last call has ended before a handler counts as quiet: what it was awaited by gets its
turn, and may make the next call."""
RIDE_S: Final = 0.5
"""Progress told within a step waits so long for the step's record, which takes it along."""
SHOWN_N: Final = 5
GIVEN_UP: Final = ("suspended", "moved")
"""Answers that say the lease is the store's again."""
PATIENCE_S: Final = 2.0
"""What looks like a conflict is one if nobody has asked for what is recorded after this long. It is waited only where
an earlier run was interrupted within a gather, or where code and journal disagree."""
ASKED_EVERY_S: Final = 0.05

inside: contextvars.ContextVar[Any] = contextvars.ContextVar("ff_step", default=None)
"""The step whose function runs (`ffsdk.steps.StepInfo`)."""


class Durable:
    """One per running handler.

    host           the worker: its backend, its clock, its threads
    execution_id   the job
    version        of the task that runs
    run            the run the journal began in; keys of effects follow from it
    gone           True once the job is suspended
    alarms         when the sleeps of this handler end, by the store's clock
    running        tasks that run a step's function
    """

    def __init__(self, host: Host, ctx: Context, held: Held) -> None:
        self.host, self.ctx, self.held = host, ctx, held
        self.execution_id, self.version = ctx.execution_id, ctx.task.version
        job = self.held.job
        head = job.journal
        self.run = int(head.began.partition(" ")[0]) if head is not None else job.run
        self.journal = Journal(entries_of(head.entries)) if head is not None else Journal()
        self._missing = head.total - len(head.entries) if head is not None else 0
        self._loading: asyncio.Task[None] | None = None
        self._suspending: asyncio.Future[None] | None = None
        self._flying_n = 0
        self._landed: asyncio.Future[None] | None = None
        self._progress: tuple[int, str] | None = None
        self._flush: asyncio.TimerHandle | None = None
        self._awaited: Awaited | None = None
        self.alarms: list[int] = []
        self.running: set[asyncio.Task[Any]] = set()
        self.gone = False
        self._over = False
        self._breach: EngineError | None = None

    @property
    def fence(self) -> LeaseFence:
        return self.held.lease

    @property
    def fence_text(self) -> str:
        """The fence as calls of many rows carry it."""
        return self.held.fence

    @property
    def now_ms(self) -> int:
        """The store's clock, as far as this worker knows it: ahead by a round trip at most."""
        return int(self.host.clock() * 1000 + self.held.clock_ms)

    def in_loop(self, call: str) -> None:
        """Refuse a call that would have to be awaited where nobody can."""
        try:
            running: asyncio.AbstractEventLoop | None = asyncio.get_running_loop()
        except RuntimeError:
            running = None
        if running is not self.host.loop:
            raise InvalidArgument(
                f"ctx.{call} is awaited, and this handler runs in a thread: use ctx.sync.{call}, or make it async def"
            )

    @property
    def awaited(self) -> Awaited:
        """What it awaits of its children."""
        if self._awaited is None:
            from ffsdk.awaited import Awaited

            self._awaited = Awaited(self)
        return self._awaited

    @property
    def holding(self) -> bool:
        """Whether the job is this handler's, as far as this worker knows."""
        return not (self.held.why == "lost" or self.held.stage == ENDED or self._over or self.gone)

    # ---- what is spent

    def hear_breach(self) -> None:
        """Raise what earlier spending has come to, once."""
        breach, self._breach = self._breach, None
        if breach is not None:
            raise breach

    def spent(self, charges: Sequence[Charge], folds: bool = False) -> None:
        """Charge these now, whatever becomes of the handler; a limit that is passed is heard of at a later call."""
        if charges:
            self.host.spawn(self._charge(charges, folds))

    async def _charge(self, charges: Sequence[Charge], folds: bool) -> None:
        spending = self.host.spending
        try:
            await spending.heard(await spending.put_all(self.held, charges, folds))
        except (BudgetExceeded, InvalidArgument) as breach:
            self._breach = breach
        except EngineError as failed:
            log.warning("%s: what it has spent is not charged: %s", self.held, failed)
        # What a step's record has left for the budget is known there by now.
        self.host.owes(self.held)

    # ---- what is recorded

    def check(self) -> None:
        """Raise what a call of this context has to hear: Suspended, StaleLease, or that it stands within a step."""
        if self.gone:
            raise Suspended("the job is suspended; the handler runs again when it goes on")
        if not self.holding:
            raise StaleLease(
                "the handler has ended" if self._over else "the job is no longer this handler's: report nothing",
                code="stale_lease",
            )
        step = inside.get()
        if step is not None and step.durable is self and not step.over:
            raise InvalidArgument(
                f"this is called within the step {step.name!r}: a step is recorded as one, so nothing in it can be "
                "found again on its own; call it beside the step",
                code="within_step",
            )

    @contextlib.contextmanager
    def in_flight(self, name: str) -> Generator[None]:
        """A call under way, from before it is claimed to after it is recorded: no suspension interrupts it."""
        self._flying_n += 1
        self.journal.begin(name)
        try:
            yield
        finally:
            self.journal.end(name)
            self._flying_n -= 1
            if self._landed is not None and not self._flying_n:
                self._landed.set_result(None)
                self._landed = None

    async def claim(self, kind: str, name: str, digest: str) -> tuple[str, JournalEntry | None]:
        """The key of a call, and the entry that answers it if there is one. Calls are counted in the order in which
        they get here. An entry is not always the end of it: see its status.

        Raises StepConflict where earlier runs recorded this name with other arguments alone, and nothing under way
        could still ask for these.
        """
        self.check()
        self.hear_breach()
        key = self.journal.key(name, digest)
        if self._missing or self._suspending is not None:
            await self.ready()
        entry = self.journal.claim(name, key)
        if entry is None and self.journal.stands_against(name):
            await self._hear_others(name, key)
        elif entry is not None and entry.kind != kind:
            raise StepConflict.of(name, key, [entry], kind=kind)
        return key, entry

    async def _hear_others(self, name: str, key: str) -> None:
        """Let others of this handler ask for what is recorded: a gather's in this turn of the loop, and those that a
        limiter, a pause or a thread of their own holds up in a while. StepConflict if none does."""
        patience_ends = self.host.loop.time() + PATIENCE_S
        pause_s = 0.0
        while True:
            await asyncio.sleep(pause_s)
            against = self.journal.stands_against(name)
            if not against or self.journal.others_fly(name):
                break
            if self.host.loop.time() >= patience_ends:
                raise StepConflict.of(name, key, against)
            pause_s = ASKED_EVERY_S
        self.check()

    async def ready(self) -> None:
        """Wait until the journal has been read, and no suspension is under way."""
        if self._missing:
            if self._loading is None:
                self._loading = asyncio.ensure_future(self._read_on())
            await asyncio.shield(self._loading)
        while self._suspending is not None:
            await asyncio.shield(self._suspending)
        self.check()

    async def _read_on(self) -> None:
        """Read what the claim's answer had no room for."""
        try:
            while self._missing > 0:
                args = ReadJournalArgs(execution_id=self.held.job.execution_id, from_seq=self.journal.read_n + 1)
                page = await call_until_answered(self.host.backend, args)
                self.journal.add(entries_of(page.entries, self.journal.read_n + 1))
                self._missing = page.total - self.journal.read_n if page.entries else 0
        finally:
            self._loading = None

    async def record(
        self, key: str, kind: str, name: str, status: str = "ok", value: bytes | None = None,
        frames: Sequence[StepFrame] = (), charges: Sequence[Charge] = (),
    ) -> JournalEntry | None:  # fmt: skip
        """Record what a call came to, and renew the lease with it; frames, spending and progress that waits travel
        along. Answers the entry that stands already, if one does: then that is what the call came to.

        Raises JournalFull; what `call` raises.
        """
        host, held = self.host, self.held
        progress = self._take_progress()
        sent = host.clock()
        args = RecordStepArgs(
            execution_id=held.job.execution_id,
            fence=held.fence,
            step=key,
            kind=kind,
            name=name,
            status=status,
            value=value,
            version=self.version,
            lease_ttl_ms=host.lease_ms,
            progress_pct=progress[0] if progress else None,
            progress_message=(progress[1] or None) if progress else None,
            spends="\n".join(charge.line() for charge in charges) or None,
            frames=list(frames),
        )
        try:
            answer = await self.call(args)
        finally:
            # With the same keys, so that it counts once; also where the record came too late, because it is spent.
            self.spent(charges)
        host.extend(held, answer.lease_expires_at, sent)
        if answer.cancel_until:
            host.cancel(held)
        return JournalEntry.parse(answer.entry) if isinstance(answer, StepReplayed) else None

    async def call(self, args: Args[R]) -> R:
        """A call under this handler's lease, repeated until it is answered. A refusal that means the job is no longer
        this handler's stops the handler, as a lost lease does, and is raised."""
        try:
            return await call_until_answered(self.host.backend, args)
        except (StaleLease, Terminal) as lost:
            self.host.lose(self.held, str(lost))
            raise
        except NotFound as lost:
            if lost.code == "execution_not_found":
                self.host.lose(self.held, str(lost))
            raise

    # ---- suspending

    async def quiesce(self) -> None:
        """Wait until no step of this handler is under way and none follows at once."""
        quiet_n = 0
        while quiet_n < QUIET_TURNS:
            if self._flying_n:
                quiet_n = 0
                if self._landed is None:
                    self._landed = self.host.loop.create_future()
                await asyncio.shield(self._landed)
            else:
                quiet_n += 1
                await asyncio.sleep(0)

    async def suspend(self, args: Args[R] | Callable[[], Args[R]]) -> R:
        """Send a call that gives the job up, once no step is under way; nothing of this handler begins meanwhile. Where
        the store answers `suspended`, or `moved`, this does not return, it raises Suspended; any other answer is
        returned and the handler goes on under its lease. A function makes the call when it is to be sent, and what it
        raises then is raised. Not within `in_flight`."""
        while True:
            await self.quiesce()
            if self._suspending is None:
                break
            await asyncio.shield(self._suspending)
        self.check()
        call = args() if callable(args) else args
        host, held = self.host, self.held
        answered = self._suspending = host.loop.create_future()
        # A renewal would be refused once the job is given up, and look like a lost lease.
        held.renew_at = held.deadline
        try:
            answer, stopped = await self._to_its_answer(self.call(call))
            if type(answer).__struct_config__.tag in GIVEN_UP:  # type: ignore[attr-defined]
                self.suspended()
            if stopped is not None:
                raise stopped
            return answer
        finally:
            self._suspending = None
            if not self.gone:
                held.renew_at = host.clock()
                host.nudge()
            answered.set_result(None)

    async def _to_its_answer(self, call: Coroutine[Any, Any, R]) -> tuple[R, asyncio.CancelledError | None]:
        """The answer of a call that may give the job up, also if the handler itself has cancelled who waits for it (by
        a timeout, or because another step failed): a handler that does not know of it would go on without a lease."""
        answered = asyncio.ensure_future(call)
        stopped: asyncio.CancelledError | None = None
        while not answered.done():
            try:
                await asyncio.wait((answered,))
            except asyncio.CancelledError as cancel:
                if self.held.why is not None:  # the worker stops it: what becomes of the job is not its own any more
                    answered.cancel()
                    raise
                stopped = cancel
        return answered.result(), stopped

    def suspended(self) -> NoReturn:
        """The store has suspended the job: free the slot, and unwind the handler."""
        if not self.gone:
            self.gone = True
            self._take_progress()
            if not self._over:  # a wait that nobody awaited may outlive the handler, and so the slot
                self.host.leave(self.held)
        raise Suspended("the job is suspended; the handler runs again when it goes on")

    # ---- progress told within a step

    @property
    def within_step(self) -> bool:
        return self.step_inside is not None

    @property
    def step_inside(self) -> StepInfo | None:
        """The step of this handler whose function makes the call."""
        step: StepInfo | None = inside.get()
        return step if step is not None and step.durable is self and not step.over else None

    def ride(self, pct: int, message: str) -> None:
        """Let progress travel with the record of the step, or on its own if that is long in coming."""
        self._progress = (pct, message)
        if self._flush is None:
            self._flush = self.host.loop.call_later(RIDE_S, self._tell_now)

    def _take_progress(self) -> tuple[int, str] | None:
        if self._flush is not None:
            self._flush.cancel()
            self._flush = None
        told, self._progress = self._progress, None
        return told

    def _tell_now(self) -> None:
        self._flush = None
        told = self._take_progress()
        if told is not None:
            self.host.spawn(self._send(*told))

    async def _send(self, pct: int, message: str) -> None:
        try:
            await self.host.send_progress(self.held, pct, message)
        except EngineError as refused:
            log.info("progress of %s was not taken: %s", self.held, refused)

    # ---- the end

    async def tell_unclaimed(self) -> None:
        """The handler has returned. Entries of earlier runs that it did not ask for say that its code has changed, or
        that it decides by something that is not recorded: the log says so, and an event for whoever operates it. That
        keeps no job from its end."""
        self._over = True
        if self.gone:
            return
        try:
            if self._missing:
                await self._read_on()
            left = [entry for entry in self.journal.unclaimed() if not entry.name.startswith(OURS)]
            if not left:
                return
            shown = ", ".join(f"{entry.kind} {entry.name!r}" for entry in left[:SHOWN_N])
            shown += ", ..." if len(left) > SHOWN_N else ""
            log.warning(
                "%s ended without asking for %d of its recorded steps: %s; its code has changed since, or it decides "
                "by something that is not recorded (a clock, a random number, an order that varies)",
                self.held, len(left), shown,
            )  # fmt: skip
            note = NoteUnclaimedArgs(
                execution_id=self.held.job.execution_id, fence=self.fence_text, count=len(left), names=shown
            )
            await self.call(note)
        except EngineError as refused:
            log.info("%s: the feed does not tell of steps nobody asked for: %s", self.held, refused)

    def ended(self) -> None:
        """The handler has ended, one way or another. A step that it has left behind, as a gather does that fails, must
        not go on beside the next attempt, which begins it again."""
        self._over = True
        for task in self.running:
            task.cancel()
        if self._awaited is not None:
            self._awaited.close()
        told = self._take_progress()
        if told is not None and not self.gone:
            self.host.spawn(self._send(*told))
