"""How things that poll in the background wait between two looks.

Polls are the slow second way beside bells and notices. On a virtual clock they would turn a month into half a
million empty looks, so there they wait for `nudge`, which the test engine calls each time the clock has moved.
"""

from __future__ import annotations

import asyncio


class Pace:
    """Real time: `pause` sleeps, and ends early when nudged."""

    virtual = False

    def __init__(self) -> None:
        self._nudged = asyncio.Event()

    async def pause(self, seconds: float) -> None:
        """Wait for the time or the next nudge, whichever is first."""
        try:
            async with asyncio.timeout(None if self.virtual else seconds):
                await self._nudged.wait()
        except TimeoutError:
            pass

    def nudge(self) -> None:
        """Wake everybody who pauses now; whoever pauses later waits for the next nudge."""
        nudged, self._nudged = self._nudged, asyncio.Event()
        nudged.set()


class VirtualPace(Pace):
    """Virtual time: `pause` ends when nudged and at no other time."""

    virtual = True
