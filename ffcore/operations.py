"""The Backend trait under its operation names: `backend.renew_lease(args)` is `backend.call(args)`.

One line each, nothing else: the verb is `call`, these are for readers and for completion in an editor.
`tests/unit/ffcore/test_operations.py` holds the list complete. Refusals are those of the function's signature.
"""

from __future__ import annotations

from ffcore.contracts.attempt import (
    Claimed,
    ClaimExecutionArgs,
    ClaimResumedExecutionArgs,
    GrantNotFound,
    NotReclaimable,
    ReclaimCapExceeded,
    ReclaimClaimed,
    ReclaimExecutionArgs,
    ResumedClaimed,
    Updated,
    UpdateProgressArgs,
)
from ffcore.contracts.batch import (
    BellPassed,
    ClaimBatchArgs,
    ClaimedBatch,
    CompletedMany,
    CompleteManyArgs,
    CreatedMany,
    CreateManyArgs,
    PassBellArgs,
    RenewedMany,
    RenewManyArgs,
)
from ffcore.contracts.check import (
    BeyondRepair,
    CheckArgs,
    Checked,
    NothingWrong,
    RepairArgs,
    Repaired,
)
from ffcore.contracts.execution import (
    AlreadyTerminal,
    CancelAlreadyTerminal,
    CancelExecutionArgs,
    Cancelled,
    CancelRequested,
    Changed,
    ChangePriorityArgs,
    Completed,
    CompleteExecutionArgs,
    Created,
    CreateExecutionArgs,
    Delayed,
    DelayExecutionArgs,
    Duplicate,
    Expired,
    ExpireExecutionArgs,
    Replayed,
    ReplayExecutionArgs,
    SetExecutionTagsArgs,
    TagsOk,
)
from ffcore.contracts.failure import (
    FailExecutionArgs,
    RetryScheduled,
    TerminalFailed,
)
from ffcore.contracts.lease import (
    AlreadySatisfied,
    MarkedExpired,
    MarkLeaseExpiredArgs,
    Renewed,
    RenewLeaseArgs,
    Revoked,
    RevokeLeaseArgs,
)
from ffcore.contracts.operator import (
    AlreadyHeld,
    Held,
    HoldArgs,
    Holds,
    LaneCounts,
    LaneStatsArgs,
    ListedLanes,
    ListHoldsArgs,
    ListLanesArgs,
    NotHeld,
    ReleaseArgs,
    ReleasedHold,
    UnclaimArgs,
    Unclaimed,
)
from ffcore.contracts.reads import (
    AwaitArgs,
    Awaiting,
    CapabilitySets,
    Events,
    ExecutionHistoryArgs,
    ExecutionsPage,
    History,
    Leases,
    ListCapabilitySetsArgs,
    ListExecutionsArgs,
    ListLeasesArgs,
    Outcomes,
    ReadEventsArgs,
    ReadExecutionArgs,
    ReadOutcomesArgs,
    StoredExecution,
)
from ffcore.contracts.roster import (
    Announced,
    AnnounceTasksArgs,
    ListTasksArgs,
    ListWorkersArgs,
    Published,
    PublishTasksArgs,
    Registered,
    RegisterWorkerArgs,
    Tasks,
    Workers,
)
from ffcore.contracts.scheduling import (
    Blocked,
    BlockExecutionArgs,
    BlockRouteArgs,
    Eligible,
    Granted,
    IssueClaimGrantArgs,
    IssueReclaimGrantArgs,
    LuaRejected,
    ReclaimGranted,
    RouteBlocked,
    ScanEligibleArgs,
    Unblocked,
    UnblockExecutionArgs,
)
from ffcore.contracts.settings import (
    ApplySettingsArgs,
    ListSettingsArgs,
    PutSettingsArgs,
    Settings,
    SettingsApplied,
    SettingsPage,
)
from ffcore.contracts.upkeep import (
    Acknowledged,
    AckOutboxArgs,
    AlreadyInitialised,
    Done,
    Header,
    Initialised,
    InitPartitionArgs,
    NoopArgs,
    PurgeArgs,
    Purged,
    ReadHeaderArgs,
    TickArgs,
    Ticked,
)
from ffcore.contracts.worker import (
    ClaimForWorkerArgs,
    NoWork,
    WorkerGranted,
)
from ffcore.operations_admission import AdmissionOperations
from ffcore.operations_durable import DurableOperations
from ffcore.operations_flow import FlowOperations


class Operations(DurableOperations, FlowOperations, AdmissionOperations):
    """Mixed into a Backend, which brings `call`."""

    # ---- attempt

    async def claim_execution(self, args: ClaimExecutionArgs) -> Claimed:
        """Start the attempt that an outstanding claim grant promised this worker; the grant is found by execution."""
        return await self.call(args)

    async def claim_resumed_execution(self, args: ClaimResumedExecutionArgs) -> ResumedClaimed:
        """Continue the attempt of an execution that was resumed: same index, new epoch."""
        return await self.call(args)

    async def reclaim_execution(
        self, args: ReclaimExecutionArgs
    ) -> ReclaimClaimed | NotReclaimable | ReclaimCapExceeded | GrantNotFound:
        """Start the new attempt that an outstanding reclaim grant promised this worker."""
        return await self.call(args)

    async def update_progress(self, args: UpdateProgressArgs) -> Updated:
        """Say how far the attempt has come; for people, never for decisions."""
        return await self.call(args)

    # ---- batch

    async def claim_batch(self, args: ClaimBatchArgs) -> ClaimedBatch:
        """Pop and lease up to `limit` jobs, trying the partitions in the order given."""
        return await self.call(args)

    async def complete_many(self, args: CompleteManyArgs) -> CompletedMany:
        """Complete jobs of one partition and, in the same call, claim up to `limit` more there (0: none)."""
        return await self.call(args)

    async def create_many(self, args: CreateManyArgs) -> CreatedMany:
        """Create up to 200 executions of one task in one partition. Options hold for all of them."""
        return await self.call(args)

    async def pass_bell(self, args: PassBellArgs) -> BellPassed:
        """A bell reached a worker without room: let another one know. Harmless when repeated."""
        return await self.call(args)

    async def renew_many(self, args: RenewManyArgs) -> RenewedMany:
        """Extend leases of one partition; an attempt's timeout and the deadline bound the extension."""
        return await self.call(args)

    # ---- check

    async def check(self, args: CheckArgs) -> Checked:
        """One page of a partition's check; `limit` bounds how long it holds the server."""
        return await self.call(args)

    async def repair(self, args: RepairArgs) -> Repaired | NothingWrong | BeyondRepair:
        """Put one violation right, by what the record says; looks again first."""
        return await self.call(args)

    # ---- execution

    async def cancel_execution(self, args: CancelExecutionArgs) -> Cancelled | CancelRequested | CancelAlreadyTerminal:
        """Cancel: at once what is not running, after a grace what is. An operator override does not wait."""
        return await self.call(args)

    async def change_priority(self, args: ChangePriorityArgs) -> Changed:
        return await self.call(args)

    async def complete_execution(self, args: CompleteExecutionArgs) -> Completed:
        """End the execution with a result."""
        return await self.call(args)

    async def create_execution(self, args: CreateExecutionArgs) -> Created | Duplicate:
        """Create an execution. Sending it again is harmless: the id and the digest tell a repeat from a conflict."""
        return await self.call(args)

    async def delay_execution(self, args: DelayExecutionArgs) -> Delayed:
        """Give the lease back and continue the same attempt later."""
        return await self.call(args)

    async def expire_execution(self, args: ExpireExecutionArgs) -> Expired | AlreadyTerminal | RetryScheduled:
        """End an execution by time."""
        return await self.call(args)

    async def replay_execution(self, args: ReplayExecutionArgs) -> Replayed:
        """Run a finished execution again, with counters, deadline and edges starting clean."""
        return await self.call(args)

    async def set_execution_tags(self, args: SetExecutionTagsArgs) -> TagsOk:
        return await self.call(args)

    # ---- failure

    async def fail_execution(self, args: FailExecutionArgs) -> RetryScheduled | TerminalFailed:
        """End the attempt with a failure; the policy decides whether another one follows."""
        return await self.call(args)

    # ---- lease

    async def mark_lease_expired(self, args: MarkLeaseExpiredArgs) -> MarkedExpired | AlreadySatisfied:
        """End a lease whose time is over; harmless when it is not."""
        return await self.call(args)

    async def renew_lease(self, args: RenewLeaseArgs) -> Renewed:
        """Extend a lease its owner still holds."""
        return await self.call(args)

    async def revoke_lease(self, args: RevokeLeaseArgs) -> Revoked | AlreadySatisfied:
        """Take a lease away from a worker that should no longer hold it."""
        return await self.call(args)

    # ---- operator

    async def hold(self, args: HoldArgs) -> Held | AlreadyHeld:
        """`what` is ``task:<name>`` or ``tag:<key>=<value>``."""
        return await self.call(args)

    async def lane_stats(self, args: LaneStatsArgs) -> LaneCounts:
        return await self.call(args)

    async def list_holds(self, args: ListHoldsArgs) -> Holds:
        return await self.call(args)

    async def list_lanes(self, args: ListLanesArgs) -> ListedLanes:
        return await self.call(args)

    async def release(self, args: ReleaseArgs) -> ReleasedHold | NotHeld:
        return await self.call(args)

    async def unclaim(self, args: UnclaimArgs) -> Unclaimed:
        """Give a claimed job back without an outcome."""
        return await self.call(args)

    # ---- settings

    async def apply_settings(self, args: ApplySettingsArgs) -> SettingsApplied:
        """Copy a record to one partition."""
        return await self.call(args)

    async def list_settings(self, args: ListSettingsArgs) -> SettingsPage:
        """Records changed after a revision, or the one of a name."""
        return await self.call(args)

    async def put_settings(self, args: PutSettingsArgs) -> Settings:
        """Change some values of a record. Partitions hear of it by `apply_settings`."""
        return await self.call(args)

    # ---- reads

    async def await_(self, args: AwaitArgs) -> Awaiting:
        """Read states and register a client to be told of the end of those that have not ended."""
        return await self.call(args)

    async def execution_history(self, args: ExecutionHistoryArgs) -> History:
        """An execution's transitions, oldest first, as far as the partition's feed still holds them."""
        return await self.call(args)

    async def list_capability_sets(self, args: ListCapabilitySetsArgs) -> CapabilitySets:
        """The capability sets that jobs of these lanes require: what a worker matches its own tokens against."""
        return await self.call(args)

    async def list_executions(self, args: ListExecutionsArgs) -> ExecutionsPage:
        """A page of executions by stored state, newest first within a lane and state."""
        return await self.call(args)

    async def list_leases(self, args: ListLeasesArgs) -> Leases:
        return await self.call(args)

    async def read_events(self, args: ReadEventsArgs) -> Events:
        """The partition's feed after a cursor (``-``: from the oldest kept). A cursor older than what was"""
        return await self.call(args)

    async def read_execution(self, args: ReadExecutionArgs) -> StoredExecution:
        return await self.call(args)

    async def read_outcomes(self, args: ReadOutcomesArgs) -> Outcomes:
        """States and results of up to 200 executions of one partition."""
        return await self.call(args)

    # ---- roster

    async def announce_tasks(self, args: AnnounceTasksArgs) -> Announced:
        """Tell an execution partition which tasks a starting worker brings, as ``name@version``."""
        return await self.call(args)

    async def list_tasks(self, args: ListTasksArgs) -> Tasks:
        """Descriptors by name; no names: all, up to 1,000."""
        return await self.call(args)

    async def list_workers(self, args: ListWorkersArgs) -> Workers:
        return await self.call(args)

    async def publish_tasks(self, args: PublishTasksArgs) -> Published:
        """Publish task descriptors (JSON, at most 16 KiB each); the newest version of a name wins."""
        return await self.call(args)

    async def register_worker(self, args: RegisterWorkerArgs) -> Registered:
        """Say that a worker is alive for `ttl_ms` more; 0 says that it leaves. `info` is JSON, at most 16 KiB."""
        return await self.call(args)

    # ---- scheduling

    async def block_execution(self, args: BlockExecutionArgs) -> Blocked:
        """Hold one execution for a budget, a quota, a route, a lane or an operator."""
        return await self.call(args)

    async def block_route(self, args: BlockRouteArgs) -> RouteBlocked | LuaRejected:
        """Hold one ready execution because no worker can serve it."""
        return await self.call(args)

    async def issue_claim_grant(self, args: IssueClaimGrantArgs) -> Granted:
        """Reserve a ready execution for one worker."""
        return await self.call(args)

    async def issue_reclaim_grant(
        self, args: IssueReclaimGrantArgs
    ) -> ReclaimGranted | NotReclaimable | ReclaimCapExceeded:
        """Reserve an execution whose lease expired or was revoked for one worker."""
        return await self.call(args)

    async def scan_eligible(self, args: ScanEligibleArgs) -> Eligible:
        """The executions of a lane that could be claimed now, highest priority first."""
        return await self.call(args)

    async def unblock_execution(self, args: UnblockExecutionArgs) -> Unblocked:
        """Release a held execution to its place in the queue."""
        return await self.call(args)

    # ---- upkeep

    async def ack_outbox(self, args: AckOutboxArgs) -> Acknowledged:
        """Say that outbox rows have been delivered."""
        return await self.call(args)

    async def init_partition(self, args: InitPartitionArgs) -> Initialised | AlreadyInitialised:
        """Create a partition's header. `counts` names all counts of the store and is fixed for good."""
        return await self.call(args)

    async def noop(self, args: NoopArgs) -> Done:
        """What one call costs, for benchmarks beside the real ones."""
        return await self.call(args)

    async def purge(self, args: PurgeArgs) -> Purged:
        """Forget terminal executions of a lane and outcome that ended before a time; bounded, repeatable."""
        return await self.call(args)

    async def read_header(self, args: ReadHeaderArgs) -> Header:
        """A partition's header as it stands."""
        return await self.call(args)

    async def tick(self, args: TickArgs) -> Ticked:
        """Do what is due, at most `limit` timers and `limit` purges per partition, and promise to look again."""
        return await self.call(args)

    # ---- worker

    async def claim_for_worker(self, args: ClaimForWorkerArgs) -> NoWork | WorkerGranted:
        """Pick one ready execution of a lane that this worker can serve, and reserve it."""
        return await self.call(args)
