"""Dying at a point: the worker's process kills itself when a job that asks for it gets there.

The rule: `before` an engine call nothing of it has been sent; `after` it the store has answered, the answer stands in
the book, and the worker has not heard it.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import msgspec

from ffcore.args import Args
from ffcore.contracts.batch import ClaimBatchArgs, ClaimedBatch, ClaimedJob, CompletedMany, CompleteManyArgs
from ffcore.contracts.execution import Moved, MoveToWaitingChildrenArgs
from ffcore.contracts.failure import FailExecutionArgs
from ffcore.contracts.journal import ContinueAsArgs, RecordStepArgs, StepReplayed
from ffcore.contracts.secret import MintTokenArgs
from ffcore.contracts.spawn import SpawnArgs, Spawned
from ffcore.contracts.stream import AppendedMany, AppendFramesArgs
from ffcore.contracts.suspension import WaitArgs, WaitSuspended
from ffcore.contracts.waitpoint import CreatePendingWaitpointArgs
from ffcore.flows import implicit_flow, member_id
from ffcore.steps import JournalEntry, began, entries_of
from ffsdk.forwarding import Forwarding
from tests.chaos.ledger import now_ms
from tests.chaos.points.book import Book
from tests.chaos.points.plan import CHILDREN, SHAKY, Order

if TYPE_CHECKING:
    from ffcore.backend import Backend

R = TypeVar("R")
CHILD = "child:"
"""How the leg of a child begins; it has one."""


class Known(NamedTuple):
    """A job this process holds, as it was leased."""

    n: int
    run: int
    leg: str
    epoch: int
    die: Sequence[str]


def leg_of(run: int, entries: Iterable[JournalEntry]) -> str:
    """How far a job was when it was leased, by what is recorded: it is on the same leg whoever died meanwhile."""
    if run:
        return "second"
    entries = list(entries)
    seen = {(entry.kind, entry.name) for entry in entries}
    waits = {name for kind, name in seen if kind == "wait"}
    if waits:
        return "slept" if "sleep" in waits else "signalled"
    if sum(entry.kind == "spawn" for entry in entries) == len(CHILDREN):
        return "joined"
    return "retry" if ("step", SHAKY) in seen else "first"


class Points:
    """What one process passes."""

    def __init__(self, book: Book, directory: Path) -> None:
        """directory: where a file for each death says that it has happened."""
        self.book, self._directory = book, directory
        self._jobs: dict[str, Known] = {}

    def reach(self, execution_id: str, event: str) -> None:
        """A job gets to a point; this may not return."""
        job = self._jobs.get(execution_id)
        if job is None or (job.leg.startswith(CHILD) and event.startswith("fail/")):
            return  # how often a child is tried is up to the clock
        point = f"{job.leg}/{event}"
        if not job.die:
            self.book.note("at", job.n, point)
        elif point in job.die and self._first(job.n, job.die.index(point)):
            self.book.note("kill", job.n, point, os.getpid(), len(self._jobs) - 1, now_ms())
            os.kill(os.getpid(), signal.SIGKILL)

    def _first(self, n: int, index: int) -> bool:
        try:
            os.close(os.open(self._directory / f"{n}.{index}", os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return False
        return True

    def leg(self, execution_id: str) -> str:
        """Which leg a job is on that this process holds."""
        return self._jobs[execution_id].leg

    # ---- the store's answers

    def leased(self, jobs: Iterable[ClaimedJob]) -> None:
        for job in jobs:
            order = msgspec.json.decode(job.payload, type=Order)
            if order.child:
                self._jobs[job.execution_id] = Known(order.n, 0, CHILD + order.child, job.lease_epoch, order.die)
                self.book.note("child", order.n, order.child, job.lease_epoch)
                self.reach(job.execution_id, "claimed")
                continue
            entries = entries_of(job.journal.entries) if job.journal is not None else []
            leg = leg_of(job.run, entries)
            self._jobs[job.execution_id] = Known(order.n, job.run, leg, job.lease_epoch, order.die)
            self.book.note("claim", order.n, job.lease_epoch, job.run, job.attempt_index, leg, now_ms())
            if job.journal is not None and began(job.journal.began)[0] == job.run:
                for entry in entries:
                    self.book.note("head", order.n, job.run, entry.name.replace(" ", ""), entry.status)
                    if entry.kind == "spawn":
                        child = entry.value.decode()
                        keyed = member_id(implicit_flow(job.execution_id), "a")
                        self.book.note("born", order.n, "a" if child == keyed else "b", child, 0)
            self.reach(job.execution_id, "claimed")

    def answered(self, args: Args[Any], answer: Any) -> None:
        """Write down what the store has from now on."""
        if isinstance(args, RecordStepArgs):
            if (job := self._jobs.get(args.execution_id)) is not None:
                word = "replayed" if isinstance(answer, StepReplayed) else "recorded"
                self.book.note("ack", job.n, job.run, args.name, args.status, _epoch(args.fence), word)
        elif isinstance(args, SpawnArgs):
            if (job := self._jobs.get(args.execution_id)) is not None:
                made = isinstance(answer, Spawned)
                child = answer.child_id if made else JournalEntry.parse(answer.entry).value.decode()
                self.book.note("born", job.n, _child(args), child, int(made and answer.created))
        elif isinstance(args, AppendFramesArgs):
            assert isinstance(answer, AppendedMany)
            for frame, item in zip(args.items, answer.items, strict=True):
                if item.state != "error" and (job := self._jobs.get(frame.execution_id)) is not None:
                    self.book.note("frame", job.n, job.run, frame.frame_type, _epoch(frame.fence))

    def passed(self, args: Args[Any], answer: Any) -> None:
        """What comes with an answer beside it: jobs leased, jobs given up."""
        if isinstance(args, CompleteManyArgs):
            assert isinstance(answer, CompletedMany)
            for item in args.items:
                self._forget(item.execution_id, _epoch(item.fence))
            self.leased(answer.claimed.jobs)
        elif isinstance(args, ClaimBatchArgs):
            assert isinstance(answer, ClaimedBatch)
            self.leased(answer.jobs)
        elif isinstance(args, ContinueAsArgs):
            self._forget(args.execution_id, _epoch(args.fence))
        elif isinstance(answer, WaitSuspended | Moved) or isinstance(args, FailExecutionArgs):
            assert isinstance(args, WaitArgs | MoveToWaitingChildrenArgs | FailExecutionArgs)
            assert args.fence is not None
            self._forget(args.execution_id, args.fence.lease_epoch)

    def _forget(self, execution_id: str, epoch: int) -> None:
        job = self._jobs.get(execution_id)
        if job is not None and job.epoch == epoch:
            del self._jobs[execution_id]


def _epoch(fence: str) -> int:
    return int(fence.split(" ")[1])


def _child(args: SpawnArgs) -> str:
    """Which of CHILDREN it is."""
    return args.label or "b"


def events(args: Args[Any]) -> Iterator[tuple[str, str]]:
    """The executions an engine call is about, and what it is called for each. Claims are none: nobody holds the job."""
    match args:
        case RecordStepArgs():
            yield args.execution_id, f"record:{args.name}:{args.status}"
        case CreatePendingWaitpointArgs():
            yield args.execution_id, f"gate:{args.step_name}"
        case WaitArgs():
            yield args.execution_id, f"wait:{args.step_name.replace(' ', '')}"
        case SpawnArgs():
            yield args.execution_id, f"spawn:{_child(args)}"
        case MoveToWaitingChildrenArgs():
            yield args.execution_id, "children"
        case AppendFramesArgs():
            for frame in args.items:
                yield frame.execution_id, f"frame:{frame.frame_type}"
        case CompleteManyArgs():
            for item in args.items:
                yield item.execution_id, "complete"
        case ContinueAsArgs():
            yield args.execution_id, "continue"
        case FailExecutionArgs():
            yield args.execution_id, "fail"
        case MintTokenArgs():
            pass  # made in this process, not in the store
        case _:
            if (execution_id := getattr(args, "execution_id", None)) is not None:
                yield execution_id, args.function()


class Deadly(Forwarding):
    """A worker's backend, in which it dies. The renewal thread's calls record nothing, and when they come is up to the
    clock: no points."""

    def __init__(self, backend: Backend, points: Points) -> None:
        super().__init__(backend)
        self._points = points

    async def call(self, args: Args[R]) -> R:
        points, about = self._points, list(events(args))
        for execution_id, event in about:
            points.reach(execution_id, f"{event}/before")
        answer = await self._backend.call(args)
        points.answered(args, answer)
        for execution_id, event in about:
            points.reach(execution_id, f"{event}/after")
        points.passed(args, answer)
        return answer
