"""Outcomes other than a result: failures, cancels and jobs given back, each reported until the store has answered.

The rule: a report carries its fence, so repeating one after a lost reply does no harm, and one that comes too late
is refused and changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Final, Literal

from ffcore import limits
from ffcore.args import Args
from ffcore.backend import Backend
from ffcore.contracts.admit import Refusal, RefuseManyArgs
from ffcore.contracts.execution import CancelExecutionArgs
from ffcore.contracts.failure import FailExecutionArgs
from ffcore.contracts.journal import ContinueAsArgs
from ffcore.contracts.operator import UnclaimArgs
from ffcore.errors import EngineError, Rejected
from ffcore.ids import PartitionKey, TimestampMs
from ffsdk.held import ENDED, Held
from ffsdk.isolation import shorten
from ffsdk.slots import call_until_answered

log = logging.getLogger("flowfabric.worker")
Kind = Literal["b", "q", "l"]
NO_RETRY = '{"max_retries":0}'
DETAIL_BYTES: Final = 300
"""Of what a queue waits for, which everybody who asks is told."""


class Reports:
    """Sends them, each on its own: they are rare beside completions."""

    def __init__(
        self, backend: Backend, *, done: Callable[[Held], None], broken: Callable[[BaseException], None]
    ) -> None:
        """done(held): the store knows, or will not hear of it any more. broken: an error that no repeating mends."""
        self._backend, self._done, self._broken = backend, done, broken
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._refused: dict[PartitionKey, list[tuple[Refusal, Held]]] = {}

    def fail(
        self,
        held: Held,
        reason: str,
        category: str,
        detail: str = "",
        retry_after_ms: int | None = None,
        final: bool = False,
    ) -> None:
        """The attempt failed. `final`: no retry, whatever the policy says."""
        job = held.job
        log.info("%s failed: %s [%s]", held, reason.partition("\n")[0][:200], category)
        self._send(
            held,
            FailExecutionArgs(
                execution_id=job.execution_id,
                fence=held.lease,
                attempt_index=job.attempt_index,
                failure_reason=shorten(reason),
                failure_category=category,
                failure_detail=detail,
                retry_after_ms=retry_after_ms,
                retry_policy_json=NO_RETRY if final else "",
            ),
        )

    def cancel(self, held: Held, reason: str = "the handler was cancelled") -> None:
        """The handler has ended as it was asked to."""
        job = held.job
        self._send(
            held,
            CancelExecutionArgs(
                execution_id=job.execution_id,
                reason=shorten(reason),
                lease_id=job.lease_id,
                lease_epoch=job.lease_epoch,
                attempt_id=job.attempt_id,
            ),
        )

    def continue_as(self, held: Held, payload: bytes) -> None:
        """The handler begins a new run of its job."""
        self._send(held, ContinueAsArgs(execution_id=held.job.execution_id, fence=held.fence, payload=payload))

    def give_back(self, held: Held, reason: Literal["refused", "hand_back", "unknown_task"]) -> None:
        """Another worker may have it. `refused`: it never started; `hand_back`: its handler has ended early."""
        self._send(held, UnclaimArgs(execution_id=held.job.execution_id, fence=held.fence, reason=reason))

    def refuse(
        self, held: Held, resource: str, kind: Kind, gen: int, until_ms: int, detail: str, *, ran: bool = False
    ) -> None:
        """A budget or a quota does not admit it: it goes back to its place in line, and its queue waits. `ran`: not
        any more, after its handler had started."""
        held.stage = ENDED
        row = Refusal(
            held.job.execution_id, held.fence, resource, kind, gen, TimestampMs(until_ms),
            shorten(detail, DETAIL_BYTES), True, ran,
        )  # fmt: skip
        if not self._refused:
            self._loop.call_soon(self._send_refused)
        self._refused.setdefault(held.part.key, []).append((row, held))

    def _send_refused(self) -> None:
        """The end of a turn: one call for all of a partition."""
        refused, self._refused = self._refused, {}
        for partition, rows in refused.items():
            for at in range(0, len(rows), limits.ROWS_N):
                some = rows[at : at + limits.ROWS_N]
                args = RefuseManyArgs(partition=partition, items=[row for row, _ in some])
                self._spawn(self._deliver([held for _, held in some], args))

    async def settle(self) -> None:
        """Wait until everything has been answered."""
        while self._tasks or self._refused:
            await (asyncio.wait(tuple(self._tasks)) if self._tasks else asyncio.sleep(0))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _send(self, held: Held, args: Args[Any]) -> None:
        held.stage = ENDED
        self._spawn(self._deliver((held,), args))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _deliver(self, some: Sequence[Held], args: Args[Any]) -> None:
        try:
            await call_until_answered(self._backend, args)
        except Rejected as refused:
            # The lease was lost meanwhile, or the job has ended: somebody else's outcome stands.
            log.info("the report on %s came too late: %s", some[0], refused)
        except EngineError as broken:
            if broken.code != "closed":
                self._broken(broken)
        finally:
            for held in some:
                self._done(held)


def spawn(tasks: set[asyncio.Task[Any]], coro: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
    """A task that is kept from the garbage collector until it has ended."""
    task = asyncio.get_running_loop().create_task(coro, name=name)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
