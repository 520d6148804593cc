"""The facade's part for flows: graphs, edges, children. The rest is in `operations.py`."""

from __future__ import annotations

from ffcore.contracts.dependency import (
    AlreadyApplied,
    AlreadyResolved,
    AlreadySet,
    Applied,
    ApplyDependencyToChildArgs,
    DescribeEdgeArgs,
    EdgeDescribed,
    EdgesPage,
    EvaluateFlowEligibilityArgs,
    Impossible,
    ListEdgesArgs,
    NoEdge,
    PromoteBlockedToEligibleArgs,
    Promoted,
    ReadUpstreamsArgs,
    ResolveDependencyArgs,
    Satisfied,
    Set,
    SetEdgeGroupPolicyArgs,
    Staged,
    StageDependencyEdgeArgs,
    Status,
    Upstreams,
)
from ffcore.contracts.execution import ChildrenDone, Moved, MoveToWaitingChildrenArgs, SetFlowTagsArgs, TagsOk
from ffcore.contracts.flow import (
    AddExecutionToFlowArgs,
    AddExecutionToFlowResult,
    AwaitFlowArgs,
    CancelFlowArgs,
    CancelFlowResult,
    CreateFlowArgs,
    CreateFlowResult,
    DescribeFlowArgs,
    FlowInfo,
    FlowSnapshot,
    FlowsPage,
    ListFlowsArgs,
    MembersPage,
    ReadFlowArgs,
    ReadMembersArgs,
)
from ffcore.contracts.graph import (
    AbortFlowArgs,
    FlowAborted,
    FlowDuplicate,
    FlowNotStaging,
    FlowSubmitted,
    SubmitFlowArgs,
)
from ffcore.contracts.spawn import SpawnArgs, Spawned, SpawnReplayed
from ffcore.operations_durable import Caller


class FlowOperations(Caller):
    """One line each, as in `Operations`."""

    # ---- flow

    async def add_execution_to_flow(self, args: AddExecutionToFlowArgs) -> AddExecutionToFlowResult:
        """Make an execution a member."""
        return await self.call(args)

    async def await_flow(self, args: AwaitFlowArgs) -> FlowInfo:
        """Read a flow and register a client to be told of its end, unless it has ended."""
        return await self.call(args)

    async def cancel_flow(self, args: CancelFlowArgs) -> CancelFlowResult:
        """Cancel a flow and, as the policy says, its members."""
        return await self.call(args)

    async def create_flow(self, args: CreateFlowArgs) -> CreateFlowResult:
        """Create an empty flow, to be grown one by one; a whole graph is one `submit_flow`."""
        return await self.call(args)

    async def describe_flow(self, args: DescribeFlowArgs) -> FlowSnapshot:
        """A flow with the groups of all its members."""
        return await self.call(args)

    async def list_flows(self, args: ListFlowsArgs) -> FlowsPage:
        """A page of a partition's flows, by id."""
        return await self.call(args)

    async def read_flow(self, args: ReadFlowArgs) -> FlowInfo:
        """A flow's record and counters."""
        return await self.call(args)

    async def read_members(self, args: ReadMembersArgs) -> MembersPage:
        """A page of a flow's members, with their edges where asked for."""
        return await self.call(args)

    async def set_flow_tags(self, args: SetFlowTagsArgs) -> TagsOk:
        return await self.call(args)

    # ---- graph

    async def abort_flow(self, args: AbortFlowArgs) -> FlowAborted | FlowNotStaging:
        """Give up a graph of which some chunks have been sent."""
        return await self.call(args)

    async def submit_flow(self, args: SubmitFlowArgs) -> FlowSubmitted | FlowDuplicate:
        """Create a flow with all its nodes and edges; nothing of it runs before all of it stands."""
        return await self.call(args)

    # ---- dependency

    async def apply_dependency_to_child(self, args: ApplyDependencyToChildArgs) -> Applied | AlreadyApplied:
        """Make a staged edge hold its downstream execution back."""
        return await self.call(args)

    async def describe_edge(self, args: DescribeEdgeArgs) -> EdgeDescribed | NoEdge:
        return await self.call(args)

    async def evaluate_flow_eligibility(self, args: EvaluateFlowEligibilityArgs) -> Status:
        """Ask whether an execution's flow lets it run; changes nothing."""
        return await self.call(args)

    async def list_edges(self, args: ListEdgesArgs) -> EdgesPage:
        """The edges into or out of one member, in order."""
        return await self.call(args)

    async def promote_blocked_to_eligible(self, args: PromoteBlockedToEligibleArgs) -> Promoted:
        """Make an execution ready whose edges are all satisfied."""
        return await self.call(args)

    async def read_upstreams(self, args: ReadUpstreamsArgs) -> Upstreams:
        """What the upstreams of an execution came to, in the order of its inputs."""
        return await self.call(args)

    async def resolve_dependency(self, args: ResolveDependencyArgs) -> Satisfied | Impossible | AlreadyResolved:
        """Tell an edge how its upstream ended."""
        return await self.call(args)

    async def set_edge_group_policy(self, args: SetEdgeGroupPolicyArgs) -> Set | AlreadySet:
        """Say how many of an execution's upstreams must succeed."""
        return await self.call(args)

    async def stage_dependency_edge(self, args: StageDependencyEdgeArgs) -> Staged:
        """Add an edge to the graph, provided that it is still the one the caller saw."""
        return await self.call(args)

    # ---- spawn

    async def move_to_waiting_children(self, args: MoveToWaitingChildrenArgs) -> Moved | ChildrenDone:
        """Give the lease back until children have ended."""
        return await self.call(args)

    async def spawn(self, args: SpawnArgs) -> Spawned | SpawnReplayed:
        """Create a child of a running execution, as a step of its journal."""
        return await self.call(args)
