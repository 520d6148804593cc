"""Making faults happen: one method for each kind of `plan.KINDS`.

The rule: every fault ends. Whatever it stops, fills or lowers is put right by the same method, and again by `heal`.
"""

from __future__ import annotations

import asyncio
import signal
import time
from collections import Counter
from collections.abc import Callable
from typing import Final

from tests.chaos.fleet import Death, Fleet, Member
from tests.chaos.ledger import now_ms
from tests.chaos.plan import ON_SERVER, Fault
from tests.chaos.proxy import Network
from tests.chaos.store import Server

SETTLED_S: Final = 1.5
"""A worker this old has taken jobs; killing one that still boots shows little."""
NOBODY_S: Final = 5.0
"""How long a fault waits for somebody it can meet."""
SPIN: Final = """#!lua name=ffchaos
redis.register_function('ff_chaos_spin', function() while true do end end)
"""


class Faults:
    def __init__(self, server: Server, fleet: Fleet, network: Network) -> None:
        self._server, self._fleet, self._network = server, fleet, network
        self.done: Counter[str] = Counter()
        self.missed: list[str] = []
        """Faults that found nobody to meet, or could not be made."""
        self.deaths: list[Death] = []
        self.pauses: list[Death] = []
        self.outages: list[tuple[int, int]] = []
        """From when to when, in ms, the server did not serve."""
        self._one_outage = asyncio.Lock()

    async def follow(self, schedule: list[Fault], clock: Callable[[], float]) -> None:
        """Make each fault at its time by the run's clock, and wait until the last is over."""
        running: set[asyncio.Task[None]] = set()
        for fault in schedule:
            while (left := fault.at_s - clock()) > 0:
                await asyncio.sleep(min(left, 0.1))
            running.add(asyncio.create_task(self._make(fault), name=fault.kind))
        await asyncio.gather(*running)

    async def _make(self, fault: Fault) -> None:
        method = getattr(self, fault.kind)
        try:
            if fault.kind in ON_SERVER:
                async with self._one_outage:
                    await method(fault)
            else:
                await method(fault)
        except (RuntimeError, OSError) as failed:
            self.missed.append(f"{fault.kind}: {failed}")
        else:
            self.done[fault.kind] += 1

    async def heal(self) -> None:
        """Nothing is stopped, full or away any more."""
        for member in self._fleet.members:
            if member.alive:
                self._fleet.signal(member, signal.SIGCONT)
            member.paused = False
        self._server.disk.free()
        if not self._server.alive:
            await self._server.start()
        self._server.resume()
        self._server.ask("CONFIG", "SET", "maxmemory", "0")

    # ---- processes

    async def _pick(self, fault: Fault, prefix: str) -> Member:
        give_up = time.monotonic() + NOBODY_S
        while not (those := self._fleet.those(prefix, least_s=SETTLED_S)):
            if time.monotonic() > give_up:
                raise RuntimeError(f"no {prefix} was there to meet")
            await asyncio.sleep(0.05)
        return those[int(fault.whom * len(those))]

    def _instance(self, member: Member) -> str:
        assert member.process is not None
        return f"{member.name}-{member.process.pid}-"

    async def worker_kill(self, fault: Fault) -> None:
        member = await self._pick(fault, "worker")
        instance, at_ms = self._instance(member), now_ms()
        self._fleet.kill(member)
        self.deaths.append(Death(instance, at_ms))
        self._fleet.start(member)

    async def worker_pause(self, fault: Fault) -> None:
        member = await self._pick(fault, "worker")
        member.paused = True
        pid = member.process.pid if member.process else 0
        self.pauses.append(Death(self._instance(member), now_ms()))
        self._fleet.signal(member, signal.SIGSTOP)
        await asyncio.sleep(fault.span_s)
        if member.process is not None and member.process.pid == pid:
            self._fleet.signal(member, signal.SIGCONT)
            member.paused = False

    async def worker_deploy(self, fault: Fault) -> None:
        member = await self._pick(fault, "worker")
        member.leaving = True
        self._fleet.signal(member, signal.SIGTERM)

    async def ticker_kill(self, fault: Fault) -> None:
        member = await self._pick(fault, "ticker")
        self._fleet.kill(member)
        self._fleet.start(member)

    async def submitter_kill(self, fault: Fault) -> None:
        member = await self._pick(fault, "submitter")
        self._fleet.kill(member)
        self._fleet.start(member)

    # ---- network

    async def proxy_cut(self, fault: Fault) -> None:
        self._network.cut_all()
        await asyncio.sleep(0)

    async def proxy_swallow(self, fault: Fault) -> None:
        await self._network.swallow(fault.span_s)

    # ---- server

    def _outage(self, since_ms: int) -> None:
        self.outages.append((since_ms, now_ms()))

    async def server_kill(self, fault: Fault) -> None:
        since = now_ms()
        self._server.kill()
        await asyncio.sleep(fault.span_s)
        await self._server.start()
        self._outage(since)

    async def server_pause(self, fault: Fault) -> None:
        since = now_ms()
        self._server.pause()
        try:
            await asyncio.sleep(fault.span_s)
        finally:
            self._server.resume()
        self._outage(since)

    async def long_script(self, fault: Fault) -> None:
        """A function that never returns: everybody is told BUSY until somebody ends it."""
        server = self._server
        server.ask("FUNCTION", "LOAD", "REPLACE", SPIN)
        since = now_ms()
        spinning = asyncio.create_task(asyncio.to_thread(server.ask, "FCALL", "ff_chaos_spin", "0", timeout=20.0))
        await asyncio.sleep(fault.span_s)
        killed, give_up = b"", time.monotonic() + 5
        while killed != b"+OK" and time.monotonic() < give_up:
            killed = server.ask("FUNCTION", "KILL")
            await asyncio.sleep(0.02)
        if killed != b"+OK":
            server.kill()
            await server.start()
        answer = await spinning
        server.ask("FUNCTION", "DELETE", "ffchaos")
        self._outage(since)
        if killed != b"+OK":
            raise RuntimeError(f"FUNCTION KILL answered {killed!r}, the function {answer!r}")

    async def memory_full(self, fault: Fault) -> None:
        """No room for new work; all that ends work goes on, so this is no outage."""
        self._server.ask("CONFIG", "SET", "maxmemory", str(max(1, self._server.used_memory())))
        await asyncio.sleep(fault.span_s)
        self._server.ask("CONFIG", "SET", "maxmemory", "0")

    async def disk_full(self, fault: Fault) -> None:
        """With `appendfsync always` a server that cannot write ends itself rather than acknowledge what it lost."""
        server, since = self._server, now_ms()
        server.disk.fill(server.pid)
        ended = await server.ended(within=15.0)
        try:
            if ended:
                await asyncio.sleep(fault.span_s)
        finally:
            server.disk.free()
        if not server.alive:
            await server.start()
        self._outage(since)
        if not ended:
            raise RuntimeError("the server went on although its disk was full")
