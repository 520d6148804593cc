"""Looking at the calls of a process from outside: what failed on the wire, what the store answered to reports.

The backend repeats most failed calls and says nothing of it, so the failures are counted below it, and the answers
above it.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from typing import Any

from ffcore.args import Args
from ffcore.contracts.batch import (
    ClaimBatchArgs,
    CompletedMany,
    CompleteManyArgs,
    Completion,
    RenewedMany,
    RenewManyArgs,
)
from ffcore.errors import Unavailable
from tests.chaos.ledger import Ledger


class Counted:
    """The connection of a backend; notes every call that failed there."""

    def __init__(self, calls: Any, ledger: Ledger) -> None:
        self._calls, self._ledger = calls, ledger

    def __getattr__(self, name: str) -> Any:
        return getattr(self._calls, name)

    def call(self, *command: Any) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._calls.call(*command)
        future.add_done_callback(self._look)
        return future

    def _look(self, future: asyncio.Future[Any]) -> None:
        if not future.cancelled() and isinstance(failed := future.exception(), Unavailable):
            self._ledger.note("wire", failed.code, int(failed.may_have_applied), str(failed)[:80])


class Watched:
    """A worker's backend: notes what was answered to its reports and renewals. Of some claims and completions it loses
    the reply and sends them again, as they were; the worker gets the second answer."""

    def __init__(self, backend: Any, ledger: Ledger, rng: random.Random, repeat: float) -> None:
        """repeat: the share of claims and completions whose reply is lost."""
        self._backend, self._ledger, self._rng, self._repeat = backend, ledger, rng, repeat

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def call(self, args: Args[Any]) -> Any:
        answer = await self._seen(args)
        if isinstance(args, CompleteManyArgs | ClaimBatchArgs) and self._rng.random() < self._repeat:
            answer = await self._seen(args)
        return answer

    async def _seen(self, args: Args[Any]) -> Any:
        answer = await self._backend.call(args)
        if isinstance(args, CompleteManyArgs):
            self.answered("report", args.items, answer)
        return answer

    def answered(self, word: str, items: Sequence[Completion], answer: CompletedMany) -> None:
        for item, done in zip(items, answer.items, strict=True):
            self._ledger.note(word, item.execution_id, item.fence.split(" ")[1], done.state, done.detail or "-")

    def blocking(self) -> Any:
        return WatchedThread(self._backend.blocking(), self._ledger)


class WatchedThread:
    """The renewal thread's calls."""

    def __init__(self, calls: Any, ledger: Ledger) -> None:
        self._calls, self._ledger = calls, ledger

    def call(self, args: Args[Any]) -> Any:
        try:
            answer = self._calls.call(args)
        except Unavailable as failed:
            self._ledger.note("wire", failed.code, int(failed.may_have_applied), str(failed)[:80])
            raise
        if isinstance(args, RenewManyArgs) and isinstance(answer, RenewedMany):
            for asked, item in zip(args.items, answer.items, strict=True):
                if item.state == "error":
                    self._ledger.note("renewal", asked.execution_id, asked.fence.split(" ")[1], item.detail)
        return answer

    def close(self) -> None:
        self._calls.close()
