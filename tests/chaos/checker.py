"""The online checker: every invariant of docs/model.md over all partitions, again and again while the run goes on.

A mutant that leaves an index wrong for a moment may look right again at the end, so looking at the end alone misses it.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable

from ffcore.backend import Backend
from ffcore.errors import EngineError, Unavailable
from ffengine.check import Memory, Violation, violations


class Checker:
    def __init__(self, backend: Backend, starts: Callable[[], int]) -> None:
        """starts: how often the server was started."""
        self._backend, self._starts, self.memory = backend, starts, Memory()
        self.passes_n = 0
        self.spoilt_n = 0
        """Passes during which the server was started; they do not count."""
        self.found: dict[Violation, int] = {}
        """What was wrong, and in how many passes."""
        self.broken: list[str] = []
        """Passes that ended in an error: nothing was checked then."""

    async def run(self, every_s: float = 1.0) -> None:
        """Until cancelled. A store that is away is asked again."""
        while True:
            began = time.monotonic()
            try:
                await self.check()
            except Unavailable:
                pass
            except EngineError as failed:
                self.broken.append(str(failed))
            # A pass over many records takes a while, and the server belongs to the run.
            await asyncio.sleep(max(every_s, 3 * (time.monotonic() - began)))

    async def check(self) -> None:
        """One pass over all partitions."""
        starts = self._starts()
        found = await violations(self._backend, memory=self.memory)
        if self._starts() != starts:
            # Keys are found by SCAN, whose cursors mean nothing to a server that was started anew: such a pass may
            # have missed some, and remembers what is not so.
            self.memory, self.spoilt_n = Memory(), self.spoilt_n + 1
            return
        for violation in found:
            self.found[violation] = self.found.get(violation, 0) + 1
        self.passes_n += 1

    @property
    def by_invariant(self) -> Counter[str]:
        return Counter(violation.invariant for violation in self.found)
