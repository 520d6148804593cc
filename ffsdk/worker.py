"""The worker: takes jobs of some lanes, runs their handlers, reports what came of them.

The rule: a job is this worker's only while its lease is, and every report carries the lease's fence. What the worker
holds when it dies comes back by itself when the leases end.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Literal

from ffcore import checks, ids, limits
from ffcore.backend import Backend, Subscription
from ffcore.capabilities import Capabilities
from ffcore.contracts.batch import ClaimedJob
from ffcore.errors import EngineError, InvalidArgument
from ffengine.post import Mail, Post
from ffengine.tick import Ticker
from ffsdk.admission import HALT_MOST_MS, Admission
from ffsdk.approval import Approvals
from ffsdk.handlers import Handlers
from ffsdk.held import ENDED, RUNNING, Held
from ffsdk.host import Host
from ffsdk.isolation import Isolated, check_importable
from ffsdk.presence import Presence
from ffsdk.renewal import Renewals, RenewalThread, interval, renew_in_loop
from ffsdk.reports import Reports, spawn
from ffsdk.runner import Runners
from ffsdk.slots import Part, Slots
from ffsdk.times import Duration, span_ms

if TYPE_CHECKING:
    from ffsdk.app import App

log = logging.getLogger("flowfabric.worker")

GRACE_S: Final = 25.0
"""Below the 30 s that Kubernetes and systemd give by default."""
CANCEL_WAIT_S: Final = 2.0
"""How long cancelled handlers may take to end before the worker leaves without them."""
SETTLE_S: Final = 5.0
"""How long a stopping worker tries to report to a store that does not answer."""
LOOK_S: Final = 0.5


class Worker:
    """Runs the tasks of an app: ``await app.worker(lanes=["checkout"], concurrency=16).run()``.

    lanes         whose jobs to take; None: those of the app's tasks
    concurrency   handlers at a time, async ones and threads together
    capabilities  what this worker has ("gpu", "torch==2.4"), for tasks with `requires`
    lease         seconds or timedelta between renewals allowed; a crashed worker's jobs come back after it
    prefetch      jobs held beyond those that run; "auto": as many as `concurrency` while handlers are short, else none
    grace         how long a stopping worker lets handlers finish
    tick          also do what is due in the store (retries, timeouts, lost leases); some process has to
    name          shown to operators; default: the host's
    """

    def __init__(
        self,
        app: App,
        *,
        lanes: Sequence[str] | None = None,
        concurrency: int = 16,
        capabilities: Iterable[str] = (),
        lease: Duration = limits.LEASE_TTL_MS / 1000,
        prefetch: int | Literal["auto"] = "auto",
        grace: Duration = GRACE_S,
        tick: bool = True,
        name: str | None = None,
    ) -> None:
        if isinstance(lanes, str):
            raise InvalidArgument(f"lanes is {lanes!r:.60}: use a list, as in [{lanes!r:.60}]")
        self.app = app
        self.lanes: list[str] = list(
            dict.fromkeys(lanes if lanes is not None else sorted({t.lane for t in app.tasks.values()}))
        )
        if not self.lanes or len(self.lanes) > limits.TAGS_N:
            raise InvalidArgument(
                f"a worker serves 1 to {limits.TAGS_N} lanes, not {len(self.lanes)}: declare a task, or pass lanes="
            )
        for lane in self.lanes:
            ids.check_name(lane, "lane")
        checks.whole(concurrency, "concurrency", 1, 10_000)
        if prefetch != "auto":
            checks.whole(prefetch, "prefetch", 0, 10_000)
        self.concurrency = concurrency
        self.capabilities = Capabilities(capabilities)
        for task in app.tasks.values():
            if task.options.isolation == "process":
                check_importable(task)
        self._lease_ms = span_ms(lease, "lease", low_ms=limits.LEASE_TTL_MIN_MS)
        checks.lease_ttl_ms(self._lease_ms)
        self._prefetch = None if prefetch == "auto" else prefetch
        self._grace_s = span_ms(grace, "grace") / 1000
        self._tick = tick
        host = "".join(c if c.isalnum() or c in "_-" else "-" for c in socket.gethostname())
        self.name = ids.check_name(name, "worker") if name is not None else (host or "worker")
        self.instance = f"{self.name[:18]}-{os.getpid()}-{secrets.token_hex(4)}"
        """Unique per worker; names it in leases, in the roster and on its channels. At most 40 bytes."""
        self.started = asyncio.Event()
        """Set when the worker takes jobs."""
        self._held: dict[str, Held] = {}
        """By lease id: one execution may come back under a new lease before the old handler has ended."""
        self._tasks: set[asyncio.Task[Any]] = set()
        self._stop: asyncio.Future[None] | None = None
        self._hurry = asyncio.Event()
        self._ended = asyncio.Event()
        self._stop_asked = False
        self._thread: RenewalThread | None = None
        self._nudged = asyncio.Event()

    # ---- running and stopping

    async def run(self, *, signals: bool = False) -> None:
        """Take and run jobs until `stop`. With `signals`, SIGTERM and SIGINT stop it; a second one does not wait.

        Raises what repeating does not mend: a store that is not initialised, that refuses, that runs other code."""
        if self._stop is not None:
            raise InvalidArgument("this worker runs already, or has run: make another one")
        loop = asyncio.get_running_loop()
        self._stop = loop.create_future()
        if self._stop_asked:
            self._stop.set_result(None)
        caught = self._catch_signals(loop) if signals else ()
        try:
            backend = await self.app.backend()
            try:
                async with self.app.lifespan() as state:
                    await self._serve(backend, state)
            finally:
                await self.app.release()
        finally:
            for number in caught:
                loop.remove_signal_handler(number)
            self._ended.set()

    def run_blocking(self) -> None:
        """`run` in a loop of its own, until SIGTERM or SIGINT."""
        asyncio.run(self.run(signals=True))

    async def stop(self, *, wait: bool = True) -> None:
        """Take no more jobs, let handlers finish within the grace, hand the rest back; returns when that is done.
        Called again, it does not wait for handlers any longer. `wait=False` is for handlers, which would wait for
        themselves."""
        self.request_stop()
        if wait:
            await self._ended.wait()

    def request_stop(self) -> None:
        """What `stop` does, without waiting; for signal handlers."""
        if self._stop_asked:
            self._hurry.set()
        self._stop_asked = True
        if self._stop is not None and not self._stop.done():
            self._stop.set_result(None)

    def _catch_signals(self, loop: asyncio.AbstractEventLoop) -> tuple[int, ...]:
        caught: list[int] = []
        for number in (signal.SIGTERM, signal.SIGINT):
            with contextlib.suppress(
                NotImplementedError, RuntimeError, ValueError
            ):  # no main thread, or no signals here
                loop.add_signal_handler(number, self._on_signal, number)
                caught.append(number)
        return tuple(caught)

    def _on_signal(self, number: int) -> None:
        log.warning(
            "%s: %s", signal.Signals(number).name, "stopping at once" if self._stop_asked else "finishing what runs"
        )
        self.request_stop()

    async def _serve(self, backend: Backend, state: Any) -> None:
        assert self._stop is not None
        virtual = self.app.pace.virtual
        loop = asyncio.get_running_loop()
        self._loop = loop
        self._clock: Callable[[], float] = loop.time if virtual else time.monotonic
        self._isolated = Isolated(self.concurrency)
        self._handlers = handlers = Handlers(self._held, backend=backend, state=state, clock=self._clock)
        self._runners = Runners(handlers, self._isolated, self.app.tasks, self.concurrency, self._prefetch)
        self._mail = Mail(Post(backend))
        self._reports = Reports(backend, done=handlers.forget, broken=self._broken)
        approvals = Approvals(handlers.context_of, self.app.tasks.get)
        self._admission = Admission(
            backend,
            runners=self._runners,
            reports=self._reports,
            clock=self._clock,
            stopped=handlers.stopped,
            give_back=handlers.give_back,
            raised=approvals.raised,
            suspend=approvals.suspend,
            broken=self._broken,
            # On virtual time no wake is lost, and each look costs as much as on real time.
            halt_most_ms=3_600_000 if virtual else HALT_MOST_MS,
        )
        self._slots = Slots(
            backend,
            instance=self.instance,
            worker_id=self.name,
            lanes=self.lanes,
            lease_ms=self._lease_ms,
            clock=self._clock,
            capacity=self._runners.capacity,
            load=lambda: self._runners.load() + self._admission.load,
            arrived=self._arrived,
            settled=handlers.settled,
            revised=self._revised,
            broken=self._broken,
            polls=not virtual,
        )
        self._renewals = Renewals(
            self._held,
            lease_ms=self._lease_ms,
            clock=self._clock,
            lost=handlers.lose if virtual else handlers.lose_from_thread,
            cancel=handlers.cancel if virtual else handlers.cancel_from_thread,
        )
        self._host = Host(
            backend,
            clock=self._clock,
            lease_ms=self._lease_ms,
            lose=handlers.lose,
            cancel=handlers.cancel,
            leave=handlers.leave,
            nudge=self._nudge_renewal,
            owes=lambda held: self._mail.poke(held.part.key),
            client=self.app.client(),
            tasks=self.app.tasks,
        )
        handlers.connect(
            runners=self._runners,
            slots=self._slots,
            reports=self._reports,
            host=self._host,
            admission=self._admission,
        )
        self._shortest_ms = self._lease_ms
        self._presence = presence = Presence(
            self.app,
            backend,
            self._slots,
            instance=self.instance,
            name=self.name,
            lanes=self.lanes,
            concurrency=self.concurrency,
            capabilities=self.capabilities,
            clock=self._clock,
        )
        subscription: Subscription | None = None
        ticker = Ticker(backend, self.instance) if self._tick and not virtual else None
        try:
            await presence.begin()
            self._channels = {backend.worker_channel(part.key, self.instance): part.key for part in self._slots.parts}
            subscription = await backend.subscribe(tuple(self._channels), self._heard, self._slots.ask_everywhere)
            if ticker is not None:
                spawn(self._tasks, ticker.run(), "ff ticker").add_done_callback(self._part_ended)
            spawn(self._tasks, presence.stay(), "ff worker roster").add_done_callback(self._part_ended)
            if virtual:
                renewing = renew_in_loop(self._renewals, backend, lambda: self._nudged)
                spawn(self._tasks, renewing, "ff renewal").add_done_callback(self._part_ended)
            else:
                self._thread = RenewalThread(self._renewals, backend, loop=loop, shortest_s=self._lease_ms / 1000)
                self._thread.start()
                loop.call_later(LOOK_S, self._look)
            log.info("worker %s takes jobs of %s", self.instance, ", ".join(self.lanes))
            self._slots.wake()
            self.started.set()
            await self._stop
            await self._drain()
        finally:
            if ticker is not None:
                ticker.stop()
            await self._close(subscription)

    async def _drain(self) -> None:
        """Give back what has not started, wait for the handlers, cancel those that take too long."""
        runners, slots = self._runners, self._slots
        slots.claiming = False
        for held in [*runners.take_back(), *self._admission.take_back()]:
            self._handlers.give_back(held)
        rested = asyncio.Event()
        runners.on_rest = rested.set
        if runners.running_n:
            log.info("worker %s waits for %d handlers", self.instance, runners.running_n)
            await self._wait_for(rested, self._grace_s, or_hurry=True)
        if runners.running_n:
            for held in tuple(self._held.values()):
                if held.stage == RUNNING:
                    self._handlers.stop(held, "stop")
            await self._wait_for(rested, CANCEL_WAIT_S)
        for held in tuple(self._held.values()):
            if held.stage == RUNNING:
                # Its lease ends by itself. Handing back a handler that still runs would make two of it.
                log.warning("%s did not stop; its job will be taken over when the lease ends", held)
        try:
            async with asyncio.timeout(SETTLE_S):
                await self._admission.settle()
                await slots.settle()
                await self._reports.settle()
                await self._host.spending.settle()
                await self._mail.settle()
        except TimeoutError:
            log.warning("the store did not answer; %d outcomes are not reported", slots.unsettled)

    async def _wait_for(self, rested: asyncio.Event, seconds: float, *, or_hurry: bool = False) -> None:
        waiting = [asyncio.ensure_future(rested.wait())]
        if or_hurry:
            waiting.append(asyncio.ensure_future(self._hurry.wait()))
        try:
            await asyncio.wait(waiting, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for one in waiting:
                one.cancel()

    async def _close(self, subscription: Subscription | None) -> None:
        self._stop_asked = True
        if self._thread is not None:
            self._thread.stop()
        self._slots.claiming = False
        await self._runners.close()
        self._isolated.close()
        await self._host.close()
        await self._slots.close()
        await self._admission.close()
        await self._reports.close()
        await self._mail.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        try:
            async with asyncio.timeout(1.0):
                if subscription is not None:
                    await subscription.close()
                await self._presence.leave()
        except (EngineError, TimeoutError):
            pass  # it is forgotten by itself when its time in the roster is over

    def _broken(self, error: BaseException) -> None:
        """Something that no repeating mends: `run` raises it."""
        # Logged as well: a program that runs the worker as a task and awaits results would wait in silence.
        log.error("the worker ends: %s", error)
        if self._stop is not None and not self._stop.done():
            self._stop.set_exception(error)

    def _part_ended(self, task: asyncio.Task[Any]) -> None:
        if not task.cancelled() and (broken := task.exception()) is not None:
            self._broken(broken)

    # ---- bells and renewals

    def _revised(self, parts: Sequence[Part]) -> None:
        if self.capabilities:
            spawn(self._tasks, self._presence.learn(parts), "ff capabilities").add_done_callback(self._part_ended)

    def _heard(self, channel: str, data: bytes) -> None:
        key = self._channels.get(channel)
        if key is None:
            return
        if data == b"work":
            self._slots.rung(key)
            return
        # "cancel <id>" or "revoked <id>". It may be about an earlier lease of the job: a renewal tells.
        _, _, execution_id = data.decode(errors="replace").partition(" ")
        for held in self._held.values():
            if held.job.execution_id == execution_id and held.stage != ENDED:
                held.renew_at = 0.0
                self._nudge_renewal()

    def _nudge_renewal(self, lease_s: float | None = None) -> None:
        if self._thread is not None:
            self._thread.nudge(lease_s)
        else:
            event, self._nudged = self._nudged, asyncio.Event()
            event.set()

    def _look(self) -> None:
        """The thread does this too, but may be stuck in a call to a store that does not answer."""
        if not self._ended.is_set() and self._thread is not None:
            self._renewals.overdue(self._clock())
            self._loop.call_later(LOOK_S, self._look)

    # ---- jobs come and go

    def _arrived(
        self, jobs: Sequence[ClaimedJob], part_of: Callable[[ClaimedJob], Part], sent: float, now_ms: int
    ) -> None:
        fresh: list[Held] = []
        asking: list[Held] = []
        held_by_lease, claiming = self._held, self._slots.claiming
        was_empty = not held_by_lease
        shortest_ms = self._shortest_ms
        ahead_ms = now_ms - sent * 1000
        for job in jobs:
            lease_ms = job.lease_expires_at - now_ms
            timeout_at = 0.0
            if job.attempt_deadline_at:
                # A little early: at the very end the store ends the attempt by itself, and our report comes too late.
                left_s = (job.attempt_deadline_at - now_ms) / 1000
                timeout_at = sent + left_s - min(0.05, left_s / 20)
            elif lease_ms < shortest_ms:
                shortest_ms = lease_ms
            lease_s = lease_ms / 1000
            held = Held(job, part_of(job), sent + lease_s, sent + interval(lease_s), timeout_at, lease_s, ahead_ms)
            held_by_lease[job.lease_id] = held
            if job.cancel_requested:
                held.why = "cancel"
                self._reports.cancel(held)
            elif not claiming:
                self._handlers.give_back(held)
            elif job.admission:
                asking.append(held)
            else:
                fresh.append(held)
        if was_empty or shortest_ms < self._shortest_ms or (self._thread is None and (fresh or asking)):
            self._shortest_ms = shortest_ms
            self._nudge_renewal(shortest_ms / 1000)
        if fresh:
            self._runners.add(fresh)
        if asking:
            self._admission.add(asking)
