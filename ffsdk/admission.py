"""Admission: between its claim and its handler a job asks for what it must be admitted by.

The rule: a handler starts once every budget and quota of its job has said yes, and not before. All are asked at the
same time; the first in the job's own order that says no decides what becomes of it (`on_exceed`), and what the others
have granted goes back when the job does. Jobs ask only as runners come free, so that what waits holds nothing.

Asking is repeatable: the same lease gets the same place. A lease that ends gives back by itself what it holds.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ffcore import limits
from ffcore.args import Args
from ffcore.contracts.admission import AdmitManyArgs, ItemAdmitted
from ffcore.contracts.budget import ReservedRow, ReserveManyArgs
from ffcore.errors import EngineBug, EngineError, Unavailable
from ffcore.ids import PartitionKey
from ffsdk.asking import Asked, Refused, Wanted, heard, request, wanted_by
from ffsdk.held import Held
from ffsdk.slots import RETRY_S

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffsdk.reports import Reports
    from ffsdk.runner import Runners

log = logging.getLogger("flowfabric.worker")

UNREACHED_S: Final = 5.0
"""How long a partition that does not answer is asked again before its jobs are put back: they hold places elsewhere."""
STUCK_S: Final = 1.0
"""Jobs that could not even ask for this long are given back: another worker may be idle."""
HALT_MOST_MS: Final = 60_000
"""A queue waits twice as long each time nothing has been released in between, up to this. Who releases something wakes
it: asking again helps only where that was lost, and then it has cost no more than what was waited before."""
HALTS_N: Final = 1_000
"""Queues whose waits are remembered."""


class _Call(NamedTuple):
    """What one partition is asked, and on whose behalf: the job, and which of the things it wants."""

    args: ReserveManyArgs | AdmitManyArgs
    places: list[tuple[Asked, int]]


class _Halt(NamedTuple):
    """How a queue waits: for which release, and until when it was to wait for how long."""

    gen: int
    until_ms: int
    ms: int


class Admission:
    """The jobs of one worker that are not admitted yet. Methods belong to the event loop's thread."""

    def __init__(
        self, backend: Backend, *, runners: Runners, reports: Reports, clock: Callable[[], float],
        stopped: Callable[[Held], None], give_back: Callable[[Held], None],
        raised: Callable[[Held], Coroutine[Any, Any, bool]],
        suspend: Callable[[Held, str], Coroutine[Any, Any, None]],
        broken: Callable[[BaseException], None], halt_most_ms: int = HALT_MOST_MS,
    ) -> None:  # fmt: skip
        """stopped(held): it was to be stopped meanwhile. give_back(held): it never started. raised(held): apply what
        its budgets were raised by since it was suspended; answers whether it is to ask still. suspend(held, id):
        suspend it until somebody lets it ask this budget or quota again. broken: an error that no repeating mends."""
        self._backend, self._runners, self._reports, self._clock = backend, runners, reports, clock
        self._stopped, self._give_back, self._broken = stopped, give_back, broken
        self._raised, self._suspend, self._halt_most_ms = raised, suspend, halt_most_ms
        self._loop = asyncio.get_running_loop()
        self.waiting: deque[Held] = deque()
        """Claimed, and nothing asked for yet."""
        self._asking_n = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._halts: dict[tuple[str, str], _Halt] = {}
        """By resource and queue."""
        self._booked = False
        self._checking: asyncio.TimerHandle | None = None
        self._moved = 0.0
        self._open = True
        """False once the worker stops: whoever is admitted now goes back all the same."""

    @property
    def load(self) -> int:
        """Jobs that are here."""
        return len(self.waiting) + self._asking_n

    def add(self, jobs: list[Held]) -> None:
        """Admit these, in this order, as runners come free."""
        if not self.waiting:
            self._moved = self._loop.time()
        self.waiting.extend(jobs)
        self.pump()

    def pump(self) -> None:
        """Look again at the end of this turn."""
        if not self._booked and self.waiting:
            self._booked = True
            self._loop.call_soon(self._ask_for_some)

    def drop(self, held: Held) -> bool:
        """Take one out that has not asked; False if it is not here, or is being asked for."""
        try:
            self.waiting.remove(held)
        except ValueError:
            return False
        return True

    def take_back(self) -> list[Held]:
        """The worker stops: jobs that have not asked. Those being asked for are given back as they are answered."""
        self._open = False
        jobs = list(self.waiting)
        self.waiting.clear()
        return jobs

    def again(self, held: Held, refused: Refused) -> None:
        """A handler has ended because a budget of its job is used up: the same follows as from a no before it."""
        self._asking_n += 1
        self._exceeded(held, refused)

    async def settle(self) -> None:
        """Wait until all have been answered."""
        while self._tasks:
            await asyncio.wait(tuple(self._tasks))

    async def close(self) -> None:
        self._open = False
        if self._checking is not None:
            self._checking.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- asking

    def _ask_for_some(self) -> None:
        """The end of a turn: ask for as many as will soon start."""
        self._booked = False
        waiting, room = self.waiting, self._runners.room() - self._asking_n
        some: list[Held] = []
        while waiting and room > 0:
            some.append(waiting.popleft())
            room -= 1
        # Whoever is left is asked for when a handler ends; nobody else pays for being asked whether somebody is.
        self._runners.on_ended = self.pump if waiting else None
        if waiting and self._checking is None and not self._runners.keeps:
            self._checking = self._loop.call_later(STUCK_S, self._check)
        if not some:
            return
        self._moved = self._loop.time()
        self._asking_n += len(some)
        ready = [held for held in some if not self._has_waited(held)]
        for held in some:
            if self._has_waited(held):
                self._spawn(self._hear(held))
        self._ask(ready)

    def _has_waited(self, held: Held) -> bool:
        """Whether what it waited for may have raised a budget."""
        return held.job.journal is not None and any(
            wanted.kind == "b" and wanted.on_exceed == "suspend" for wanted in wanted_by(held.job.admission or "")
        )

    async def _hear(self, held: Held) -> None:
        if await self._raised(held):
            self._ask([held])
        else:
            self._left(held)

    def _ask(self, jobs: list[Held]) -> None:
        """Every budget's and quota's partition at once, all jobs of this turn in one call to each."""
        rows: dict[tuple[str, PartitionKey], list[tuple[Asked, int]]] = {}
        ready: list[Held] = []
        for held in jobs:
            asked = Asked(held, wanted_by(held.job.admission or ""))
            if not asked.wanted:
                ready.append(held)
            for at, wanted in enumerate(asked.wanted):
                rows.setdefault(("b" if wanted.kind == "b" else "q", wanted.partition), []).append((asked, at))
        for (family, partition), places in rows.items():
            for at in range(0, len(places), limits.ROWS_N):
                some = places[at : at + limits.ROWS_N]
                self._spawn(self._carry(_Call(request(family, partition, some), some)))
        self._start(ready)

    async def _carry(self, call: _Call) -> None:
        items = await self._answered(call)
        ready: list[Held] = []
        for at, (asked, n) in enumerate(call.places):
            wanted = asked.wanted[n]
            if isinstance(items, EngineError):
                asked.said[n] = Refused(wanted, f"the partition of {wanted.id} does not answer: {items}")
            else:
                asked.said[n] = heard(wanted, items[at], self._now_ms(asked.held))
            asked.left_n -= 1
            if not asked.left_n and self._decided(asked):
                ready.append(asked.held)
        self._start(ready)

    async def _answered(self, call: _Call) -> Sequence[ReservedRow | ItemAdmitted] | EngineError:
        """The answers, one for each row; or the error, once a partition has been away for too long."""
        until = self._loop.time() + UNREACHED_S
        while True:
            try:
                args: Args[Any] = call.args
                items: Sequence[ReservedRow | ItemAdmitted] = (await self._backend.call(args)).items
            except Unavailable as away:
                if away.code == "closed":
                    raise
                if self._loop.time() >= until or not self._open or all(a.held.why for a, _ in call.places):
                    return away
                log.warning("%s does not answer, asking again: %s", call.args.partition, away)
                await asyncio.sleep(RETRY_S)
            else:
                if len(items) != len(call.places):
                    raise EngineBug(f"{len(items)} answers to {len(call.places)} requests for admission")
                return items

    def _now_ms(self, held: Held) -> int:
        return int(self._clock() * 1000 + held.clock_ms)

    # ---- deciding

    def _decided(self, asked: Asked) -> bool:
        """Everybody has answered: whether it starts."""
        held = asked.held
        refused = next((no for no in asked.said if no is not None), None)
        if held.why is not None:
            self._left(held)
        elif refused is not None:
            self._exceeded(held, refused)
        elif not self._open:
            self._asking_n -= 1
            self._give_back(held)
        else:
            return True
        return False

    def _start(self, ready: list[Held]) -> None:
        if ready:
            self._asking_n -= len(ready)
            self._runners.add(ready)
        self.pump()

    def _left(self, held: Held) -> None:
        """It is not to start any more."""
        self._asking_n -= 1
        self._stopped(held)
        self.pump()

    def _exceeded(self, held: Held, refused: Refused) -> None:
        """What becomes of a job that was told no."""
        wanted = refused.wanted
        word = "fail" if refused.final and wanted.on_exceed == "hold" else wanted.on_exceed
        log.info("%s is not admitted (%s): %s", held, word, refused.text)
        if word == "suspend":
            self._spawn(self._wait_for_word(held, refused))
            return
        self._asking_n -= 1
        if word == "hold":
            self._hold(held, refused)
        elif word == "cancel":
            self._reports.cancel(held, refused.text)
        else:
            self._reports.fail(held, refused.text, refused.category, final=True)

    def _hold(self, held: Held, refused: Refused) -> None:
        wanted, now_ms = refused.wanted, self._now_ms(held)
        until_ms = refused.until_ms
        if not refused.exact:
            soon_ms = now_ms + self._patience_ms(wanted, refused.gen, now_ms)
            until_ms = min(until_ms or soon_ms, soon_ms)
        self._reports.refuse(held, wanted.id, wanted.kind, refused.gen, until_ms, refused.text, ran=refused.ran)

    def _patience_ms(self, wanted: Wanted, gen: int, now_ms: int) -> int:
        """How long its queue may wait for a release."""
        if not gen:
            return limits.HALT_MS
        of = wanted.id, wanted.adm
        known = self._halts.get(of)
        if known is None or known.gen != gen:
            if len(self._halts) >= HALTS_N:
                self._halts.clear()
            known = self._halts[of] = _Halt(gen, now_ms + limits.HALT_MS, limits.HALT_MS)
        elif now_ms >= known.until_ms:
            ms = min(2 * known.ms, self._halt_most_ms)
            known = self._halts[of] = _Halt(gen, now_ms + ms, ms)
        return known.ms

    async def _wait_for_word(self, held: Held, refused: Refused) -> None:
        """Suspend the job until somebody raises its budget, or lets it ask its quota again."""
        cannot: EngineError | None = None
        try:
            await self._suspend(held, refused.wanted.id)
        except EngineError as failed:
            cannot = failed
        self._asking_n -= 1
        if held.suspended:
            pass
        elif held.why is not None:
            self._stopped(held)
        elif cannot is not None:
            # Whoever operates this can mend it: a secret for the gate is missing, or the job has too many gates.
            log.warning("%s cannot wait for a word, so its queue waits: %s", held, cannot)
            self._hold(held, refused._replace(text=f"{refused.text}; and no gate can be opened: {cannot}"))
        else:
            self._give_back(held)  # somebody has raised it already
        self.pump()

    def _check(self) -> None:
        """Give back what could not ask for long."""
        self._checking = None
        if not self.waiting or not self._open:
            return
        left_s = self._moved + STUCK_S - self._loop.time()
        if left_s > 0:
            self._checking = self._loop.call_later(left_s, self._check)
            return
        self._runners.slow()
        stuck = list(self.waiting)
        self.waiting.clear()
        log.info("%d jobs that wait for admission are given back: no handler has ended for %g s", len(stuck), STUCK_S)
        for held in stuck:
            held.why = held.why or "stop"
            self._stopped(held)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled() or (failed := task.exception()) is None:
            return
        if not isinstance(failed, EngineError) or failed.code != "closed":
            self._broken(failed)
