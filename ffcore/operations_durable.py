"""The facade's part for durable handlers: steps, waits, signals, secrets, streams. The rest is in `operations.py`."""

from __future__ import annotations

from typing import TypeVar

from ffcore.args import Args
from ffcore.contracts.journal import (
    ContinueAsArgs,
    Continued,
    JournalPage,
    NoteUnclaimedArgs,
    PinVersionArgs,
    ReadJournalArgs,
    RecordStepArgs,
    StepRecorded,
    StepReplayed,
    UnclaimedNoted,
    VersionPinned,
)
from ffcore.contracts.lease import (
    AlreadySatisfied,
)
from ffcore.contracts.secret import (
    AlreadySeeded,
    ListWaitpointHmacKidsArgs,
    MintTokenArgs,
    Noop,
    Rotated,
    RotateWaitpointHmacSecretAllArgs,
    RotateWaitpointHmacSecretAllResult,
    RotateWaitpointHmacSecretArgs,
    Seeded,
    SeedWaitpointHmacSecretArgs,
    TokenMinted,
    WaitpointHmacKids,
)
from ffcore.contracts.signal import (
    Accepted,
    Buffered,
    BufferSignalArgs,
    DeliverSignalArgs,
    SignalDuplicate,
)
from ffcore.contracts.stream import (
    Appended,
    AppendedMany,
    AppendFrameArgs,
    AppendFramesArgs,
    Frames,
    ReadFramesArgs,
    ReadStreamArgs,
    ReadSummaryArgs,
    StreamPage,
    Summary,
    SummaryWritten,
    WriteSummaryArgs,
)
from ffcore.contracts.suspended import (
    ListSuspendedArgs,
    ObservedSignals,
    ObserveSignalsArgs,
    SuspendedPage,
)
from ffcore.contracts.suspension import (
    AlreadyPaused,
    ExecutionSuspended,
    ExpireSuspensionArgs,
    Paused,
    PauseExecutionArgs,
    PausePending,
    Resumed,
    ResumeExecutionArgs,
    SuspendAlreadySatisfied,
    SuspendArgs,
    Suspended,
    SuspendExecutionArgs,
    SuspensionAlreadySatisfied,
    SuspensionExpired,
    WaitArgs,
    WaitSatisfied,
    WaitSuspended,
)
from ffcore.contracts.waitpoint import (
    Closed,
    CloseWaitpointArgs,
    CreatePendingWaitpointArgs,
    ListPendingWaitpointsArgs,
    ListPendingWaitpointsResult,
    WaitpointCreated,
)

R = TypeVar("R")


class Caller:
    """What a facade is mixed into: it brings `call`."""

    async def call(self, args: Args[R]) -> R:
        """One atomic transition."""
        raise NotImplementedError


class DurableOperations(Caller):
    """One line each, as in `Operations`."""

    # ---- journal

    async def continue_as(self, args: ContinueAsArgs) -> Continued:
        """End this run and begin the next with another payload and nothing recorded, under the same id."""
        return await self.call(args)

    async def note_unclaimed(self, args: NoteUnclaimedArgs) -> UnclaimedNoted:
        """Tell the feed that a handler which ends well has not asked for some recorded steps."""
        return await self.call(args)

    async def pin_version(self, args: PinVersionArgs) -> VersionPinned:
        """Take an execution no code has begun yet for this version of its task."""
        return await self.call(args)

    async def read_journal(self, args: ReadJournalArgs) -> JournalPage:
        """Entries from a number on, as many as one page of 64 KiB holds, and at least one."""
        return await self.call(args)

    async def record_step(self, args: RecordStepArgs) -> StepRecorded | StepReplayed:
        """Record what a step came to, and renew the lease in the same call."""
        return await self.call(args)

    # ---- suspension

    async def expire_suspension(self, args: ExpireSuspensionArgs) -> SuspensionExpired | AlreadySatisfied:
        """Apply a suspension's timeout now, if it is due."""
        return await self.call(args)

    async def list_suspended(self, args: ListSuspendedArgs) -> SuspendedPage:
        """Suspended executions of one partition, those that have waited longest first within a lane."""
        return await self.call(args)

    async def observe_signals(self, args: ObserveSignalsArgs) -> ObservedSignals:
        """What an execution's last suspension was resumed with."""
        return await self.call(args)

    async def pause_execution(self, args: PauseExecutionArgs) -> Paused | PausePending | AlreadyPaused:
        """Keep one execution from running until it is resumed."""
        return await self.call(args)

    async def resume_execution(self, args: ResumeExecutionArgs) -> Resumed:
        """Take a pause back; without one, an operator lets a suspended execution go on."""
        return await self.call(args)

    async def suspend(self, args: SuspendArgs) -> Suspended | SuspensionAlreadySatisfied:
        """Give the lease up until a condition holds."""
        return await self.call(args)

    async def suspend_execution(self, args: SuspendExecutionArgs) -> ExecutionSuspended | SuspendAlreadySatisfied:
        """The same in the seed's words, with one waitpoint."""
        return await self.call(args)

    async def wait(self, args: WaitArgs) -> WaitSuspended | WaitSatisfied:
        """Suspend at a step of the handler, on waitpoints it has opened before."""
        return await self.call(args)

    # ---- waitpoint

    async def close_waitpoint(self, args: CloseWaitpointArgs) -> Closed:
        """Close a waitpoint: it takes no new signals."""
        return await self.call(args)

    async def create_pending_waitpoint(self, args: CreatePendingWaitpointArgs) -> WaitpointCreated:
        """Open a waitpoint before anyone is told of it."""
        return await self.call(args)

    async def list_pending_waitpoints(self, args: ListPendingWaitpointsArgs) -> ListPendingWaitpointsResult:
        """The open waitpoints of an execution; nothing in the answer opens one."""
        return await self.call(args)

    # ---- signal

    async def buffer_signal_for_pending_waitpoint(self, args: BufferSignalArgs) -> Buffered | SignalDuplicate:
        """Deliver a signal to a waitpoint that nothing suspends on yet."""
        return await self.call(args)

    async def deliver_signal(self, args: DeliverSignalArgs) -> Accepted | SignalDuplicate:
        """Deliver a signal by a waitpoint's token; an execution that waited for just this resumes in the same call."""
        return await self.call(args)

    # ---- secret

    async def list_waitpoint_hmac_kids(self, args: ListWaitpointHmacKidsArgs) -> WaitpointHmacKids:
        """Which kid signs in a partition, and which still verify, until when."""
        return await self.call(args)

    async def mint_token(self, args: MintTokenArgs) -> TokenMinted:
        """Make the token of an open waitpoint again, from its kid."""
        return await self.call(args)

    async def rotate_waitpoint_hmac_secret(self, args: RotateWaitpointHmacSecretArgs) -> Rotated | Noop:
        """Make another kid sign in one partition; the last one verifies until its grace is over."""
        return await self.call(args)

    async def rotate_waitpoint_hmac_secret_all(
        self, args: RotateWaitpointHmacSecretAllArgs
    ) -> RotateWaitpointHmacSecretAllResult:
        """The same in every partition; failures are listed, and the whole may be run again."""
        return await self.call(args)

    async def seed_waitpoint_hmac_secret(self, args: SeedWaitpointHmacSecretArgs) -> Seeded | AlreadySeeded:
        """Install a partition's first secret; harmless at every start."""
        return await self.call(args)

    # ---- stream

    async def append_frame(self, args: AppendFrameArgs) -> Appended:
        """Append a frame to the attempt's stream; a worker that lost its lease cannot."""
        return await self.call(args)

    async def append_frames(self, args: AppendFramesArgs) -> AppendedMany:
        """Append up to 200 frames of executions of one partition, in order; each is answered on its own."""
        return await self.call(args)

    async def read_attempt_stream(self, args: ReadFramesArgs) -> Frames:
        """Read frames between two positions, both included; `StreamCursor.to_wire` makes them."""
        return await self.call(args)

    async def read_stream(self, args: ReadStreamArgs) -> StreamPage:
        """An execution's frames behind a place, of all its attempts, in order."""
        return await self.call(args)

    async def read_summary(self, args: ReadSummaryArgs) -> Summary:
        """The summary document of an execution's present run."""
        return await self.call(args)

    async def write_summary(self, args: WriteSummaryArgs) -> SummaryWritten:
        """Replace the summary by what a patch made of the version that was read."""
        return await self.call(args)
