"""A store that takes no new work: wait as long as it advises, and no longer than the caller has patience.

The rule: only what was refused is sent again, and a refusal says that nothing was written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ffcore.errors import StoreFull

R = TypeVar("R")


async def patiently(send: Callable[[], Awaitable[R]], patience_s: float) -> R:
    """What `send` answers; while it is refused by a full store, ask again. Raises the last StoreFull."""
    deadline = asyncio.get_running_loop().time() + patience_s
    while True:
        try:
            return await send()
        except StoreFull as full:
            if not await waited(full.retry_after, deadline):
                raise


async def waited(seconds: float, deadline: float) -> bool:
    """Wait so long; False, at once, if that would be after the deadline (of the loop's clock)."""
    if asyncio.get_running_loop().time() + seconds > deadline:
        return False
    await asyncio.sleep(seconds)
    return True
