"""The network of a chaos run: half of the processes reach the server through a proxy that cuts connections."""

from __future__ import annotations

import asyncio

from tests.integration.proxy import Proxy


class Network(Proxy):
    """The proxy of the tests, with the two things that happen to networks, counted."""

    cut_n = 0
    """Connections cut."""
    swallowed_n = 0
    """Bytes of replies that arrived nowhere."""

    def cut_all(self) -> None:
        self.cut_n += len(self._pairs)
        self.cut()

    async def swallow(self, seconds: float) -> None:
        """Lose what the server answers from now on; then cut, as a network does in the end. The calls that were
        answered meanwhile have taken effect and nobody knows."""
        self.drop_replies()
        await asyncio.sleep(seconds)
        self.swallowed_n += self.swallowed
        self.cut_all()
