"""Keeping leases: one call per partition for what is due, from a thread with a connection of its own.

A handler that blocks the event loop must not cost the worker its leases, so the thread shares nothing with the
loop but the table of held jobs. A lease that is refused, or that could not be renewed until shortly before its
end, is lost: the handler is stopped and nothing is reported for it.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Final

from ffcore import limits
from ffcore.backend import Backend, BlockingCalls
from ffcore.contracts.batch import Renewal, RenewedMany, RenewManyArgs
from ffcore.errors import EngineBug, EngineError, Unavailable
from ffcore.ids import PartitionKey
from ffsdk.held import ENDED, Held

log = logging.getLogger("flowfabric.worker")

LOOK_S: Final = 0.25
"""The thread looks at the table this often, or at a sixth of the shortest lease."""
IDLE_N: Final = 4
"""After so many looks that found nothing held, the thread sleeps until it is nudged."""
BLOCKED_S: Final = 1.0
"""A loop that has not answered the thread for this long is blocked, and the log says by what."""
MARGIN_S: Final = 1.0


def margin(lease_s: float) -> float:
    """How long before its end a lease that could not be renewed counts as lost: time to stop the handler."""
    return min(MARGIN_S, lease_s / 10)


def interval(lease_s: float) -> float:
    return min(lease_s / 3, limits.RENEWAL_INTERVAL_MAX_MS / 1000)


class Renewals:
    """What is due, and what an answer means; the thread and the loop's task below both drive this."""

    def __init__(
        self,
        held: dict[str, Held],
        *,
        lease_ms: int,
        clock: Callable[[], float],
        lost: Callable[[Held, str], None],
        cancel: Callable[[Held], None],
    ) -> None:
        """lost(held, why) and cancel(held) are called in whatever thread drives this."""
        self.held, self.clock = held, clock
        self._lease_ms, self._lost, self._cancel = lease_ms, lost, cancel

    def due(self, now: float) -> list[tuple[RenewManyArgs, list[Held]]]:
        """The calls to send now; at most `ROWS_N` leases each."""
        by_part: dict[PartitionKey, list[Held]] = {}
        for held in list(self.held.values()):  # list() of a dict's values is atomic: the loop goes on changing it
            if held.renew_at <= now and held.why != "lost":
                by_part.setdefault(held.part.key, []).append(held)
        calls: list[tuple[RenewManyArgs, list[Held]]] = []
        for key, all_held in by_part.items():
            for at in range(0, len(all_held), limits.ROWS_N):
                some = all_held[at : at + limits.ROWS_N]
                items = [Renewal(h.job.execution_id, h.fence) for h in some]
                calls.append((RenewManyArgs(partition=key, lease_ttl_ms=self._lease_ms, items=items), some))
        return calls

    def renewed(self, some: list[Held], answer: RenewedMany, sent: float) -> None:
        """Take an answer in: later deadlines, lost leases, cancel requests."""
        for held, item in zip(some, answer.items, strict=True):
            if item.state == "error":
                # A job whose outcome is on its way may well have ended meanwhile: that is no loss.
                if held.stage != ENDED and held.job.lease_id in self.held:
                    self._lost(held, item.detail)
                continue
            lease_s = (item.expires_at_ms - answer.now_ms) / 1000
            held.deadline = sent + lease_s
            held.renew_at = sent + interval(max(lease_s, self._lease_ms / 1000 if held.timeout_at else 0.0))
            if item.detail and held.stage != ENDED and held.why is None:
                self._cancel(held)

    def overdue(self, now: float) -> None:
        """Give up leases that end soon and could not be renewed. What the attempt's timeout bounds is left to that."""
        for held in list(self.held.values()):
            lease_s = held.deadline - held.renew_at
            if held.deadline - margin(lease_s * 1.5) <= now and held.why != "lost" and held.stage != ENDED:
                if held.timeout_at and held.timeout_at <= held.deadline + 0.1:
                    continue
                self._lost(held, "it could not be renewed in time")

    def next_due(self) -> float | None:
        """When to look again; None: nothing is held."""
        return min((h.renew_at for h in list(self.held.values()) if h.why != "lost"), default=None)


class RenewalThread(threading.Thread):
    """Drives renewals beside the loop, and watches whether the loop answers."""

    def __init__(
        self, renewals: Renewals, backend: Backend, *, loop: asyncio.AbstractEventLoop, shortest_s: float
    ) -> None:
        super().__init__(name="ff-renewal", daemon=True)
        self._renewals, self._calls = renewals, backend.blocking()
        self._loop, self._loop_thread = loop, threading.get_ident()
        self._look_s = min(LOOK_S, shortest_s / 6)
        self._stopping = False
        self._asleep = False
        """Nothing has been held for a while: only a nudge wakes the thread. While it looks by itself it gets none: it
        would wake beside a handler that starts, and contend with it for the interpreter."""
        self._nudged = threading.Event()
        self._asked = self._answered = 0.0
        self._told = False

    def nudge(self, lease_s: float | None = None) -> None:
        """Something is held again, under leases of `lease_s` at least; None: there is something to renew now."""
        if lease_s is None or self._asleep or lease_s / 6 < self._look_s:
            if lease_s is not None:
                self._look_s = min(self._look_s, lease_s / 6)
            self._nudged.set()

    def stop(self) -> None:
        self._stopping = True
        self._nudged.set()

    def run(self) -> None:
        try:
            idle_n = 0
            while not self._stopping:
                if self._renewals.held:
                    idle_n = 0
                    self._round()
                else:
                    self._asked = self._answered
                    idle_n += 1
                # Asleep first and the last look after it: who holds something from now on sees that a nudge is needed.
                self._asleep = idle_n > IDLE_N
                self._nudged.wait(None if self._asleep and not self._renewals.held else self._look_s)
                self._asleep = False
                self._nudged.clear()
        finally:
            self._calls.close()

    def _round(self) -> None:
        clock, renewals = self._renewals.clock, self._renewals
        self._watch(clock())
        for args, some in renewals.due(clock()):
            if self._stopping:
                return
            sent = clock()
            answer = self._send(self._calls, args)
            if answer is not None:
                renewals.renewed(some, answer, sent)
        renewals.overdue(clock())

    def _send(self, calls: BlockingCalls, args: RenewManyArgs) -> RenewedMany | None:
        try:
            return calls.call(args)
        except Unavailable as away:
            if not self._stopping:
                log.warning("leases could not be renewed, trying again: %s", away)
        except EngineBug:
            log.exception("leases could not be renewed")
        except EngineError as refused:
            log.error("leases could not be renewed: %s", refused)
        return None

    def _watch(self, now: float) -> None:
        """Ask the loop for a sign of life, and say what it does if none has come."""
        if self._answered >= self._asked:
            self._asked, self._told = now, False
            try:
                self._loop.call_soon_threadsafe(self._answer, now)
            except RuntimeError:  # the loop is closed: so is the worker
                self._stopping = True
        elif now - self._asked > BLOCKED_S and not self._told:
            self._told = True
            frame = sys._current_frames().get(self._loop_thread)
            stack = "".join(traceback.format_stack(frame)) if frame is not None else "(no stack)\n"
            log.warning(
                "the event loop has been blocked for %.1f s; leases are kept, but nothing else runs. Use a def "
                "handler, which runs in a thread, or await. It is at:\n%s",
                now - self._asked,
                stack,
            )

    def _answer(self, asked: float) -> None:
        self._answered = asked


async def renew_in_loop(renewals: Renewals, backend: Backend, nudged: Callable[[], asyncio.Event]) -> None:
    """The same from the loop, for a store on virtual time: there a thread would see another clock."""
    while True:
        now = renewals.clock()
        for args, some in renewals.due(now):
            sent = renewals.clock()
            try:
                renewals.renewed(some, await backend.call(args), sent)
            except Unavailable as away:
                log.warning("leases could not be renewed, trying again: %s", away)
        renewals.overdue(renewals.clock())
        due = renewals.next_due()
        event = nudged()
        try:
            async with asyncio.timeout(None if due is None else max(0.001, due - renewals.clock())):
                await event.wait()
        except TimeoutError:
            pass
