"""The contracts: every request the engine takes and everything it may answer, one module per noun.

Import from here; which module a type stands in is for readers of the source. Names of the seed are the
seed's; what was added to them is listed in `added.py`.
"""

# Names are packed, several to a line: one to a line would be 600 of them. A test holds the list complete.
# ruff: noqa: I001

from __future__ import annotations

from ffcore.contracts.added import ADDED, ADDED_VARIANTS
from ffcore.contracts.admit import (
    Refusal, ItemRefused, RefusedMany, RefuseManyArgs,
)
from ffcore.contracts.admission import (
    Admitted, AlreadyAdmitted, RateExceeded, ConcurrencyExceeded, CheckAdmissionResult, CheckAdmissionArgs,
    Released, ReleaseAdmissionResult, ReleaseAdmissionArgs, AdmissionRequest, ItemAdmitted, AdmittedMany, AdmitManyArgs,
)
from ffcore.contracts.attempt import (
    AttemptLifecycle, AttemptType, BackendTag, HandleKind, HandleOpaque, Handle, STUB_FRESH, STUB_RESUMED,
    ClaimedExecution, Claimed, ClaimExecutionResult, ClaimExecutionArgs, ClaimedResumedExecution, ResumedClaimed,
    ClaimResumedExecutionResult, ClaimResumedExecutionArgs, NotReclaimable, ReclaimCapExceeded, GrantNotFound,
    ReclaimClaimed, ReclaimExecutionOutcome, Reclaimed, MaxReclaimsExceeded, ReclaimExecutionResult,
    ReclaimExecutionArgs, Updated, UpdateProgressResult, UpdateProgressArgs,
)
from ffcore.contracts.batch import (
    Fence, NewExecution, ItemCreated, CreatedMany, CreateManyArgs, JournalHead, Input, Inputs, ClaimedJob,
    ClaimedBatch, ClaimBatchArgs, Completion, ItemDone, CompletedMany, CompleteManyArgs, Renewal, ItemRenewed,
    RenewedMany, RenewManyArgs, BellPassed, PassBellArgs,
)
from ffcore.contracts.budget import (
    BudgetCreated, BudgetAlreadySatisfied, CreateBudgetResult, CreateBudgetArgs, BudgetStatus, UsageDimensions,
    UsageOk, SoftBreach, HardBreach, ReportUsageResult, ReportUsageArgs, ReportUsageAdminArgs, Reset,
    ResetBudgetResult, ResetBudgetArgs, ReadBudgetArgs, BudgetsPage, ListBudgetsArgs, BudgetChanged, ChangeBudgetArgs,
    BudgetRaised, RaiseBudgetArgs, BudgetDeleted, DeleteBudgetArgs, Spender, Spenders, TopSpendersArgs, SpendRow,
    SpentRow, SpentMany, SpendManyArgs, ReserveRow, ReservedRow, ReservedMany, ReserveManyArgs, budget_changes,
)
from ffcore.contracts.check import (
    Wrong, SeenRecord, SeenMember, FlowCounts, SeenEvent, SeenSize, KeptBytes, OpenKid, KidCount, PageFacts, Checked,
    CheckArgs, Repaired, NothingWrong, BeyondRepair, RepairArgs,
)
from ffcore.contracts.condition import (
    MAX_COMPOSITE_DEPTH, MAX_COMPOSITE_LEAVES, CompositeValidationError, ByName, ByNames, Wildcard, SignalMatcher,
    CountKind, Single, OperatorOnly, TimeoutOnly, Composite, ResumeCondition, AllOf, Count, CompositeBody, all_of,
    count, all_of_waitpoints, check_matcher, check_leaf,
)
from ffcore.contracts.dependency import (
    SUCCESS_ONLY, EdgeSnapshot, Outgoing, Incoming, EdgeDirection, EdgeDescribed, NoEdge, DescribeEdgeArgs, EdgesPage,
    ListEdgesArgs, Upstream, Upstreams, ReadUpstreamsArgs, OnSatisfied, EdgeGroupState, EdgeAllOf, EdgeAnyOf,
    EdgeQuorum, EdgeDependencyPolicy, EdgeGroupSnapshot, Set, AlreadySet, SetEdgeGroupPolicyResult,
    SetEdgeGroupPolicyArgs, Staged, StageDependencyEdgeResult, StageDependencyEdgeArgs, Applied, AlreadyApplied,
    ApplyDependencyToChildResult, ApplyDependencyToChildArgs, Satisfied, Impossible, AlreadyResolved,
    ResolveDependencyResult, UPSTREAM_OUTCOMES, ResolveDependencyArgs, Promoted, PromoteBlockedToEligibleResult,
    PromoteBlockedToEligibleArgs, Status, EvaluateFlowEligibilityResult, EvaluateFlowEligibilityArgs,
)
from ffcore.contracts.execution import (
    Created, Duplicate, CreateExecutionResult, CreateExecutionArgs, Completed, CompleteExecutionResult,
    CompleteExecutionArgs, Cancelled, CancelRequested, CancelAlreadyTerminal, CancelExecutionResult,
    CancelExecutionArgs, Delayed, DelayExecutionResult, DelayExecutionArgs, Moved, ChildrenDone, Child,
    MoveToWaitingChildrenResult, MoveToWaitingChildrenArgs, Changed, ChangePriorityResult, ChangePriorityArgs, Expired,
    AlreadyTerminal, ExpireExecutionResult, ExpireExecutionArgs, Replayed, ReplayExecutionResult, ReplayExecutionArgs,
    TagsOk, SetExecutionTagsResult, SetExecutionTagsArgs, SetFlowTagsResult, SetFlowTagsArgs,
)
from ffcore.contracts.explain import ExplainArgs, Explained, Verdict
from ffcore.contracts.failure import (
    FailureClass, FailureReason, RetryScheduled, TerminalFailed, FailExecutionResult, FailExecutionArgs,
    FailOutcome,
)
from ffcore.contracts.flow import (
    FlowStatus, CancelFlowPolicy, NoWait, WaitTimeout, WaitIndefinite, CancelFlowWait, FlowCreated,
    FlowAlreadySatisfied, CreateFlowResult, CreateFlowArgs, Added, AlreadyMember, AddExecutionToFlowResult,
    AddExecutionToFlowArgs, FlowCancelled, CancellationScheduled, PartiallyCancelled, FlowAlreadyTerminal,
    CancelFlowResult, CancelFlowHeader, CancelFlowArgs, FlowCancelBegun, CancelFlowWireArgs, FlowInfo, ReadFlowArgs,
    AwaitFlowArgs, MemberEdge, Member, MembersPage, ReadMembersArgs, FlowSnapshot, DescribeFlowArgs, ListedFlow,
    FlowsPage, ListFlowsArgs, FlowSummary, ListFlowsPage, CompletionPayload,
)
from ffcore.contracts.graph import (
    FlowSubmitted, FlowDuplicate, FlowStaged, FlowPlan, FlowNode, SubmitFlowArgs, NodeRow, SubmitFlowWireArgs,
    FlowAborted, FlowNotStaging, AbortFlowArgs,
)
from ffcore.contracts.journal import (
    StepFrame, StepRecorded, StepReplayed, RecordStepArgs, JournalPage, ReadJournalArgs, Continued, ContinueAsArgs,
    VersionPinned, PinVersionArgs, UnclaimedNoted, NoteUnclaimedArgs,
)
from ffcore.contracts.lane import LaneState, ListLanesPage
from ffcore.contracts.lease import (
    LeaseFence, CancelSource, AlreadySatisfied, LeaseRenewal, Renewed, RenewLeaseResult, RenewLeaseArgs,
    MarkedExpired, MarkLeaseExpiredResult, MarkLeaseExpiredArgs, Revoked, RevokeLeaseResult, RevokeLeaseArgs,
)
from ffcore.contracts.mail import DeliverArgs, Delivered, Letter, Wake
from ffcore.contracts.operator import (
    ListedLane, ListedLanes, ListLanesArgs, LaneHalt, LaneCounts, LaneStatsArgs, Held, AlreadyHeld, HoldArgs,
    ReleasedHold, NotHeld, ReleaseArgs, ListedHold, Holds, ListHoldsArgs, Unclaimed, UnclaimArgs,
)
from ffcore.contracts.partition import PartitionFamily, Partition
from ffcore.contracts.quota import (
    QuotaPolicyCreated, QuotaPolicyAlreadySatisfied, CreateQuotaPolicyResult, CreateQuotaPolicyArgs, QuotaChanged,
    ChangeQuotaArgs, QuotaStatus, ReadQuotaArgs, ListedQuota, QuotasPage, ListQuotasArgs, QuotaDeleted, DeleteQuotaArgs,
)
from ffcore.contracts.reads import (
    StoredExecution, ReadExecutionArgs, ExecutionOutcome, ExecutionRef, Outcomes, ReadOutcomesArgs, Awaiting,
    AwaitArgs, ListedExecution, ExecutionsPage, ListExecutionsArgs, HistoryEntry, History, ExecutionHistoryArgs,
    ListedLease, Leases, ListLeasesArgs, CapabilitySet as ListedCapabilitySet, CapabilitySets,
    ListCapabilitySetsArgs, EventEntry, Events, ReadEventsArgs,
)
from ffcore.contracts.roster import (
    Registered, RegisterWorkerArgs, ListedWorker, Workers, ListWorkersArgs, TaskRow, Published, PublishTasksArgs,
    Tasks, ListTasksArgs, Announced, AnnounceTasksArgs,
)
from ffcore.contracts.schedule import (
    SchedulePut, PutScheduleArgs, Firing, ItemFired, FiredMany, FireSchedulesArgs, ScheduleRun, ItemRun, ScheduleRuns,
    RunScheduleArgs, ScheduleChanged, PauseScheduleArgs, ResumeScheduleArgs, ScheduleRemoved, RemoveScheduleArgs,
    ListedSchedule, ScheduleRead, ReadScheduleArgs, SchedulesPage, ListSchedulesArgs,
)
from ffcore.contracts.scheduling import (
    check_blocking_reason, ClaimGrant, ResumeGrant, ReclaimGrant, ResumeToken, Granted, IssueClaimGrantOutcome,
    IssueClaimGrantResult, IssueClaimGrantArgs, ReclaimGranted, ReclaimGrantIssued, IssueReclaimGrantOutcome,
    IssueReclaimGrantResult, IssueReclaimGrantArgs, Eligible, ScanEligibleArgs, RouteBlocked, LuaRejected,
    BlockRouteOutcome, BlockRouteArgs, Blocked, BlockExecutionResult, BlockExecutionArgs, Unblocked,
    UnblockExecutionResult, UnblockExecutionArgs,
)
from ffcore.contracts.secret import (
    check_kid, check_secret_hex, VerifyingKid, WaitpointHmacKids, ListWaitpointHmacKidsArgs, Rotated, Noop,
    RotateWaitpointHmacSecretOutcome, RotateWaitpointHmacSecretArgs, RotateFailed,
    RotateWaitpointHmacSecretAllEntry, RotateWaitpointHmacSecretAllResult, RotateWaitpointHmacSecretAllArgs, Seeded,
    AlreadySeeded, SeedOutcome, SeedWaitpointHmacSecretArgs, TokenMinted, MintTokenArgs,
    RotateWaitpointHmacSecretWireArgs, SeedWaitpointHmacSecretWireArgs,
)
from ffcore.contracts.settings import (
    Settings, SettingsRow, SettingsPage, PutSettingsArgs, ListSettingsArgs, SettingsApplied, ApplySettingsArgs,
)
from ffcore.contracts.signal import (
    SignalDuplicate, Accepted, DeliverSignalResult, DeliverSignalArgs, Buffered, BufferSignalResult,
    BufferSignalArgs, DeliverSignalWireArgs, BufferSignalWireArgs, ResumeSignal,
)
from ffcore.contracts.spawn import (
    Spawned, SpawnReplayed, SpawnArgs,
)
from ffcore.contracts.stream import (
    STREAM_READ_HARD_CAP, StreamCursorParseError, StreamCursorEmpty, StreamCursorBareMarkerRejected,
    StreamCursorMalformed, StreamCursor, FrameKind, PatchKind, Durable, DurableSummary, BestEffortLiveConfig,
    BestEffortLive, StreamMode, TailVisibility, SummaryDocument, Frame, Appended, AppendFrameResult,
    AppendFrameArgs, StreamFrame, StreamFrames, Frames, ReadFramesResult, ReadFramesArgs, FrameMode, NewFrame,
    ItemAppended, AppendedMany, AppendFramesArgs, TailFrame, StreamGap, StreamPage, ReadStreamArgs, Summary,
    ReadSummaryArgs,
    SummaryWritten, WriteSummaryArgs,
)
from ffcore.contracts.suspended import (
    ObservedSignal, ObservedSignals, ObserveSignalsArgs, Waited, parse_wait, SuspendedRow, SuspendedPage,
    ListSuspendedArgs,
)
from ffcore.contracts.suspension import (
    IdempotencyKey, WAITPOINTS_N, TIMEOUT_PAST_MS, ResumeTarget, TimeoutBehavior, SuspensionReasonCode,
    SuspensionRequester, ResumePolicy, Fresh, UsePending, WaitpointBinding, fresh, use_pending,
    AdditionalWaitpointBinding, SuspendOutcomeDetails, Suspended, SuspensionAlreadySatisfied, SuspendOutcome,
    SuspendArgs, ExecutionSuspended, SuspendAlreadySatisfied, SuspendExecutionResult, SuspendExecutionArgs, Resumed,
    ResumeExecutionResult, ResumeExecutionArgs, SuspensionExpired, ExpireSuspensionResult, ExpireSuspensionArgs,
    SuspendWaitpoint, BoundWaitpoint, WireSuspended, WireSatisfied, SuspendWireResult, SuspendWireArgs,
    WaitSuspended, WaitSatisfied, WaitResult, WaitedWaitpoint, WaitArgs,
    Paused, PausePending, AlreadyPaused, PauseExecutionResult,
    PauseExecutionArgs,
)
from ffcore.contracts.text import Text, enc_hook, dec_hook
from ffcore.contracts.unique import (
    UniqueTaken, UniqueHeld, TakeUniqueArgs, UniqueDropped, UniqueNotHeld, DropUniqueArgs, UniqueFree, ReadUniqueArgs,
)
from ffcore.contracts.upkeep import (
    Initialised, AlreadyInitialised, InitPartitionArgs, Done, NoopArgs, TickedPartition, Ticked, TickArgs, Purged,
    PurgeArgs, Header, ReadHeaderArgs, OwedRow, DueSchedule, OutboxRef, Outbox,
    ReadOutboxArgs, Acknowledged, AckOutboxArgs,
)
from ffcore.contracts.views import (
    AttemptSummary, LeaseSummary, ExecutionSnapshot, ExecutionContext, ExecutionInfo, StateSummary,
    ExecutionSummary, ListExecutionsResult, ListExecutionsPage, SuspendedExecutionEntry, NO_TIMEOUT_MS,
    ListSuspendedPage,
)
from ffcore.contracts.waitpoint import (
    WaitpointHmac, check_waitpoint_key, PendingWaitpoint, WaitpointCreated, CreatePendingWaitpointResult,
    CreatePendingWaitpointArgs, Closed, CloseWaitpointResult, CloseWaitpointArgs, PendingWaitpointInfo,
    ListPendingWaitpointsResult, ListPendingWaitpointsArgs, WaitpointOpened, CreatePendingWaitpointWireArgs,
)
from ffcore.contracts.worker import (
    CapabilitySet, ClaimPolicy, NoWork, WorkerGranted, ClaimForWorkerOutcome, ClaimForWorkerArgs,
)

__all__ = [
    # added
    "ADDED", "ADDED_VARIANTS",
    # admission
    "Admitted", "AlreadyAdmitted", "RateExceeded", "ConcurrencyExceeded", "CheckAdmissionResult",
    "CheckAdmissionArgs", "Released", "ReleaseAdmissionResult", "ReleaseAdmissionArgs", "AdmissionRequest",
    "ItemAdmitted", "AdmittedMany", "AdmitManyArgs",
    # admit
    "Refusal", "ItemRefused", "RefusedMany", "RefuseManyArgs",
    # attempt
    "AttemptLifecycle", "AttemptType", "BackendTag", "HandleKind", "HandleOpaque", "Handle", "STUB_FRESH",
    "STUB_RESUMED", "ClaimedExecution", "Claimed", "ClaimExecutionResult", "ClaimExecutionArgs",
    "ClaimedResumedExecution", "ResumedClaimed", "ClaimResumedExecutionResult", "ClaimResumedExecutionArgs",
    "NotReclaimable", "ReclaimCapExceeded", "GrantNotFound", "ReclaimClaimed", "ReclaimExecutionOutcome",
    "Reclaimed", "MaxReclaimsExceeded", "ReclaimExecutionResult", "ReclaimExecutionArgs", "Updated",
    "UpdateProgressResult", "UpdateProgressArgs",
    # batch
    "Fence", "NewExecution", "ItemCreated", "CreatedMany", "CreateManyArgs", "JournalHead", "Input", "Inputs",
    "ClaimedJob", "ClaimedBatch", "ClaimBatchArgs", "Completion", "ItemDone", "CompletedMany", "CompleteManyArgs",
    "Renewal", "ItemRenewed", "RenewedMany", "RenewManyArgs", "BellPassed", "PassBellArgs",
    # mail
    "DeliverArgs", "Delivered", "Letter", "Wake",
    # budget
    "BudgetCreated", "BudgetAlreadySatisfied", "CreateBudgetResult", "CreateBudgetArgs", "BudgetStatus",
    "UsageDimensions", "UsageOk", "SoftBreach", "HardBreach", "ReportUsageResult", "ReportUsageArgs",
    "ReportUsageAdminArgs", "Reset", "ResetBudgetResult", "ResetBudgetArgs",
    "ReadBudgetArgs", "BudgetsPage", "ListBudgetsArgs", "BudgetChanged", "ChangeBudgetArgs", "BudgetRaised",
    "RaiseBudgetArgs", "BudgetDeleted", "DeleteBudgetArgs", "Spender", "Spenders", "TopSpendersArgs", "SpendRow",
    "SpentRow", "SpentMany", "SpendManyArgs", "ReserveRow", "ReservedRow", "ReservedMany", "ReserveManyArgs",
    "budget_changes",
    # check
    "Wrong", "SeenRecord", "SeenMember", "FlowCounts", "SeenEvent", "SeenSize", "KeptBytes", "OpenKid", "KidCount",
    "PageFacts", "Checked", "CheckArgs",
    "Repaired", "NothingWrong", "BeyondRepair", "RepairArgs",
    # condition
    "MAX_COMPOSITE_DEPTH", "MAX_COMPOSITE_LEAVES", "CompositeValidationError", "ByName", "ByNames", "Wildcard",
    "SignalMatcher", "CountKind", "Single", "OperatorOnly", "TimeoutOnly", "Composite", "ResumeCondition", "AllOf",
    "Count", "CompositeBody", "all_of", "count", "all_of_waitpoints", "check_matcher", "check_leaf",
    # dependency
    "SUCCESS_ONLY", "EdgeSnapshot", "Outgoing", "Incoming", "EdgeDirection", "EdgeDescribed", "NoEdge",
    "DescribeEdgeArgs", "EdgesPage", "ListEdgesArgs", "Upstream", "Upstreams", "ReadUpstreamsArgs", "OnSatisfied",
    "EdgeGroupState", "EdgeAllOf", "EdgeAnyOf", "EdgeQuorum", "EdgeDependencyPolicy", "EdgeGroupSnapshot", "Set",
    "AlreadySet", "SetEdgeGroupPolicyResult", "SetEdgeGroupPolicyArgs", "Staged", "StageDependencyEdgeResult",
    "StageDependencyEdgeArgs", "Applied", "AlreadyApplied", "ApplyDependencyToChildResult",
    "ApplyDependencyToChildArgs", "Satisfied", "Impossible", "AlreadyResolved", "ResolveDependencyResult",
    "UPSTREAM_OUTCOMES", "ResolveDependencyArgs", "Promoted", "PromoteBlockedToEligibleResult",
    "PromoteBlockedToEligibleArgs", "Status", "EvaluateFlowEligibilityResult", "EvaluateFlowEligibilityArgs",
    # execution
    "Created", "Duplicate", "CreateExecutionResult", "CreateExecutionArgs", "Completed", "CompleteExecutionResult",
    "CompleteExecutionArgs", "Cancelled", "CancelRequested", "CancelAlreadyTerminal", "CancelExecutionResult",
    "CancelExecutionArgs", "Delayed", "DelayExecutionResult", "DelayExecutionArgs", "Moved", "ChildrenDone", "Child",
    "MoveToWaitingChildrenResult", "MoveToWaitingChildrenArgs", "Changed", "ChangePriorityResult",
    "ChangePriorityArgs", "Expired", "AlreadyTerminal", "ExpireExecutionResult", "ExpireExecutionArgs", "Replayed",
    "ReplayExecutionResult", "ReplayExecutionArgs", "TagsOk", "SetExecutionTagsResult", "SetExecutionTagsArgs",
    "SetFlowTagsResult", "SetFlowTagsArgs",
    # failure
    "FailureClass", "FailureReason", "RetryScheduled", "TerminalFailed", "FailExecutionResult", "FailExecutionArgs",
    "FailOutcome",
    # flow
    "FlowStatus", "CancelFlowPolicy", "NoWait", "WaitTimeout", "WaitIndefinite", "CancelFlowWait", "FlowCreated",
    "FlowAlreadySatisfied", "CreateFlowResult", "CreateFlowArgs", "Added", "AlreadyMember", "AddExecutionToFlowResult",
    "AddExecutionToFlowArgs", "FlowCancelled", "CancellationScheduled", "PartiallyCancelled", "FlowAlreadyTerminal",
    "CancelFlowResult", "CancelFlowHeader", "CancelFlowArgs", "FlowCancelBegun", "CancelFlowWireArgs", "FlowInfo",
    "ReadFlowArgs", "AwaitFlowArgs", "MemberEdge", "Member", "MembersPage", "ReadMembersArgs", "FlowSnapshot",
    "DescribeFlowArgs", "ListedFlow", "FlowsPage", "ListFlowsArgs", "FlowSummary", "ListFlowsPage", "CompletionPayload",
    # graph
    "FlowSubmitted", "FlowDuplicate", "FlowStaged", "FlowPlan", "FlowNode", "SubmitFlowArgs", "NodeRow",
    "SubmitFlowWireArgs", "FlowAborted", "FlowNotStaging", "AbortFlowArgs",
    # journal
    "StepFrame", "StepRecorded", "StepReplayed", "RecordStepArgs", "JournalPage", "ReadJournalArgs", "Continued",
    "ContinueAsArgs", "VersionPinned", "PinVersionArgs", "UnclaimedNoted", "NoteUnclaimedArgs",
    # lane
    "LaneState", "ListLanesPage",
    # lease
    "LeaseFence", "CancelSource", "AlreadySatisfied", "LeaseRenewal", "Renewed", "RenewLeaseResult",
    "RenewLeaseArgs", "MarkedExpired", "MarkLeaseExpiredResult", "MarkLeaseExpiredArgs", "Revoked",
    "RevokeLeaseResult", "RevokeLeaseArgs",
    # operator
    "Settings", "SettingsRow", "SettingsPage", "PutSettingsArgs", "ListSettingsArgs", "SettingsApplied",
    "ApplySettingsArgs", "ListedLane", "ListedLanes",
    "ExplainArgs", "Explained", "Verdict", "LaneHalt",
    "ListLanesArgs", "LaneCounts", "LaneStatsArgs", "Held", "AlreadyHeld", "HoldArgs", "ReleasedHold", "NotHeld",
    "ReleaseArgs", "ListedHold", "Holds", "ListHoldsArgs", "Unclaimed", "UnclaimArgs",
    # partition
    "PartitionFamily", "Partition",
    # quota
    "QuotaPolicyCreated", "QuotaPolicyAlreadySatisfied", "CreateQuotaPolicyResult", "CreateQuotaPolicyArgs",
    "QuotaChanged", "ChangeQuotaArgs", "QuotaStatus", "ReadQuotaArgs", "ListedQuota", "QuotasPage", "ListQuotasArgs",
    "QuotaDeleted", "DeleteQuotaArgs",
    # reads
    "StoredExecution", "ReadExecutionArgs", "ExecutionOutcome", "ExecutionRef", "Outcomes", "ReadOutcomesArgs",
    "Awaiting", "AwaitArgs", "ListedExecution", "ExecutionsPage", "ListExecutionsArgs", "HistoryEntry", "History",
    "ExecutionHistoryArgs", "ListedLease", "Leases", "ListLeasesArgs", "ListedCapabilitySet", "CapabilitySets",
    "ListCapabilitySetsArgs", "EventEntry", "Events", "ReadEventsArgs",
    # roster
    "Registered", "RegisterWorkerArgs", "ListedWorker", "Workers", "ListWorkersArgs", "TaskRow", "Published",
    "PublishTasksArgs", "Tasks", "ListTasksArgs", "Announced", "AnnounceTasksArgs",
    # schedule
    "SchedulePut", "PutScheduleArgs", "Firing", "ItemFired", "FiredMany", "FireSchedulesArgs", "ScheduleRun",
    "ItemRun", "ScheduleRuns", "RunScheduleArgs", "ScheduleChanged", "PauseScheduleArgs", "ResumeScheduleArgs",
    "ScheduleRemoved", "RemoveScheduleArgs", "ListedSchedule", "ScheduleRead", "ReadScheduleArgs", "SchedulesPage",
    "ListSchedulesArgs",
    # scheduling
    "check_blocking_reason", "ClaimGrant", "ResumeGrant", "ReclaimGrant", "ResumeToken", "Granted",
    "IssueClaimGrantOutcome", "IssueClaimGrantResult", "IssueClaimGrantArgs", "ReclaimGranted",
    "ReclaimGrantIssued", "IssueReclaimGrantOutcome", "IssueReclaimGrantResult", "IssueReclaimGrantArgs",
    "Eligible", "ScanEligibleArgs", "RouteBlocked", "LuaRejected", "BlockRouteOutcome", "BlockRouteArgs", "Blocked",
    "BlockExecutionResult", "BlockExecutionArgs", "Unblocked", "UnblockExecutionResult", "UnblockExecutionArgs",
    # secret
    "check_kid", "check_secret_hex", "VerifyingKid", "WaitpointHmacKids", "ListWaitpointHmacKidsArgs", "Rotated",
    "Noop", "RotateWaitpointHmacSecretOutcome", "RotateWaitpointHmacSecretArgs", "RotateFailed",
    "RotateWaitpointHmacSecretAllEntry", "RotateWaitpointHmacSecretAllResult", "RotateWaitpointHmacSecretAllArgs",
    "Seeded", "AlreadySeeded", "SeedOutcome", "SeedWaitpointHmacSecretArgs", "TokenMinted", "MintTokenArgs",
    "RotateWaitpointHmacSecretWireArgs", "SeedWaitpointHmacSecretWireArgs",
    # signal
    "SignalDuplicate", "Accepted", "DeliverSignalResult", "DeliverSignalArgs", "Buffered", "BufferSignalResult",
    "BufferSignalArgs", "DeliverSignalWireArgs", "BufferSignalWireArgs", "ResumeSignal",
    # spawn
    "Spawned", "SpawnReplayed", "SpawnArgs",
    # stream
    "STREAM_READ_HARD_CAP", "StreamCursorParseError", "StreamCursorEmpty", "StreamCursorBareMarkerRejected",
    "StreamCursorMalformed", "StreamCursor", "FrameKind", "PatchKind", "Durable", "DurableSummary",
    "BestEffortLiveConfig", "BestEffortLive", "StreamMode", "TailVisibility", "SummaryDocument", "Frame",
    "Appended", "AppendFrameResult", "AppendFrameArgs", "StreamFrame", "StreamFrames", "Frames", "ReadFramesResult",
    "ReadFramesArgs", "FrameMode", "NewFrame", "ItemAppended", "AppendedMany", "AppendFramesArgs", "TailFrame",
    "StreamGap",
    "StreamPage", "ReadStreamArgs", "Summary", "ReadSummaryArgs", "SummaryWritten", "WriteSummaryArgs",
    # suspended
    "ObservedSignal", "ObservedSignals", "ObserveSignalsArgs", "Waited", "parse_wait", "SuspendedRow", "SuspendedPage",
    "ListSuspendedArgs",
    # suspension
    "IdempotencyKey", "WAITPOINTS_N", "TIMEOUT_PAST_MS", "ResumeTarget", "TimeoutBehavior", "SuspensionReasonCode",
    "SuspensionRequester", "ResumePolicy", "Fresh", "UsePending", "WaitpointBinding", "fresh", "use_pending",
    "AdditionalWaitpointBinding", "SuspendOutcomeDetails", "Suspended", "SuspensionAlreadySatisfied",
    "SuspendOutcome", "SuspendArgs", "ExecutionSuspended", "SuspendAlreadySatisfied", "SuspendExecutionResult",
    "SuspendExecutionArgs", "Resumed", "ResumeExecutionResult", "ResumeExecutionArgs", "SuspensionExpired",
    "ExpireSuspensionResult", "ExpireSuspensionArgs",
    "SuspendWaitpoint", "BoundWaitpoint", "WireSuspended", "WireSatisfied", "SuspendWireResult",
    "SuspendWireArgs", "WaitSuspended", "WaitSatisfied", "WaitResult", "WaitedWaitpoint", "WaitArgs",
    "Paused",
    "PausePending", "AlreadyPaused", "PauseExecutionResult", "PauseExecutionArgs",
    # text
    "Text", "enc_hook", "dec_hook",
    # unique
    "UniqueTaken", "UniqueHeld", "TakeUniqueArgs", "UniqueDropped", "UniqueNotHeld", "DropUniqueArgs", "UniqueFree",
    "ReadUniqueArgs",
    # upkeep
    "Initialised", "AlreadyInitialised", "InitPartitionArgs", "Done", "NoopArgs", "TickedPartition", "Ticked",
    "TickArgs", "Purged", "PurgeArgs", "Header", "ReadHeaderArgs", "OwedRow", "DueSchedule", "OutboxRef",
    "Outbox", "ReadOutboxArgs", "Acknowledged", "AckOutboxArgs",
    # views
    "AttemptSummary", "LeaseSummary", "ExecutionSnapshot", "ExecutionContext", "ExecutionInfo", "StateSummary",
    "ExecutionSummary", "ListExecutionsResult", "ListExecutionsPage", "SuspendedExecutionEntry", "NO_TIMEOUT_MS",
    "ListSuspendedPage",
    # waitpoint
    "WaitpointHmac", "check_waitpoint_key", "PendingWaitpoint", "WaitpointCreated", "CreatePendingWaitpointResult",
    "CreatePendingWaitpointArgs", "Closed", "CloseWaitpointResult", "CloseWaitpointArgs", "PendingWaitpointInfo",
    "ListPendingWaitpointsResult", "ListPendingWaitpointsArgs", "WaitpointOpened", "CreatePendingWaitpointWireArgs",
    # worker
    "CapabilitySet", "ClaimPolicy", "NoWork", "WorkerGranted", "ClaimForWorkerOutcome", "ClaimForWorkerArgs",
]
