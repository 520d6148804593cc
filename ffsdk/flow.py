"""A flow: many jobs as one thing, with edges between them. Collected in a block, submitted whole when that is left.

    async with client.flow("nightly") as flow:
        pages = [flow.add(scrape, Url(u), key=u) for u in urls]
        digest = flow.add(summarise, after=pages)
    report = await digest.result()

The rule: leaving the block submits everything in one operation, or nothing. Before that nothing asks the store; after
it the graph is what it is, and a flow is a handle, as a `Job` is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self, TypeVar, Unpack, overload

from ffcore import checks, limits
from ffcore.errors import EngineError, InvalidArgument, Rejected, Unavailable
from ffcore.ids import FlowId
from ffsdk import times
from ffsdk.admit import NO_TERMS, Budgets, Quotas, Terms
from ffsdk.connect import Durability, call_replicated, check_durability
from ffsdk.draft import (
    LEFT_OUT,
    Added,
    After,
    Draft,
    On,
    check_name,
    encoded,
    kind_of,
    name_of,
    policy_of,
    request,
)
from ffsdk.fields import text_at
from ffsdk.flows import FlowMember, FlowOutcome, member_of, outcome_of, to_replay
from ffsdk.full import patiently
from ffsdk.job import Job
from ffsdk.node import Node
from ffsdk.submit import JobOptions, check_options
from ffsdk.task import Task
from ffsdk.unique import check_member, holding
from ffsdk.views import Bulk

if TYPE_CHECKING:
    from ffcore.contracts.flow import FlowInfo, FlowSnapshot
    from ffsdk.client import Client
    from ffsdk.submit import Submitter

P = TypeVar("P")
R = TypeVar("R")
Policy = Literal["cancel_all", "cancel_pending", "flow_only"]
Cancelling = Literal["cancelled", "scheduled", "partially_cancelled", "already_ended"]
PAGE_N: Final = 500
"""Members one read brings."""
NO_KEYS: Final[Mapping[str, str | None]] = {}
BATCH_N: Final = 100
"""Replays of one turn: bounded, so that a large flow does not starve the workers."""


class Flow:
    """What `client.flow` and `client.flow_by_id` answer. Flows with the same id are equal.

    id        the flow's id; its jobs live in the same partition
    name      what it was called; "" for a flow looked up by id
    created   whether this block made it; False when its key named one that existed, and for looked-up flows
    info      what the listing said that this handle came from, or what `status` would have said then; None otherwise
    """

    def __init__(
        self, client: Client, flow_id: FlowId, name: str = "", *, info: FlowInfo | None = None,
    ) -> None:  # fmt: skip
        self._client, self.id, self.name, self.info = client, flow_id, name, info
        self.created = False
        self._draft: Draft | None = None

    @classmethod
    def draft(
        cls, client: Client, submitter: Submitter, flow_id: FlowId, name: str, *, tags: Mapping[str, str] | None,
        budget: Budgets | None, quota: Quotas | None, durability: Durability | None, patience: times.Duration | None,
        fresh: bool,
    ) -> Flow:  # fmt: skip
        """For the client: one to be filled. fresh: its id is of this moment, not of a key."""
        terms = Terms.of(budget, quota)
        checks.tags(tags or {})
        if durability is not None:
            check_durability(durability)
        self = cls(client, flow_id, check_name(name))
        self._draft = Draft(submitter, name, {**(tags or {})}, terms, durability, patience, fresh=fresh)
        return self

    @property
    def flow_id(self) -> FlowId:
        return self.id

    def __repr__(self) -> str:
        return f"<Flow {self.name} {self.id}>" if self.name else f"<Flow {self.id}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Flow) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    # ---- collecting

    async def __aenter__(self) -> Self:
        self._open("entered", entered=False).entered = True
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        draft = self._open("left")
        if error is not None:
            draft.unsent.give_up(f"flow {self.name} was given up by an error in its block: nothing was submitted")
            draft.over = True
            return
        await self._submit(draft)

    @overload
    def add(
        self, task: Task[None, R], payload: None = None, *, after: After = (), on: On = "success",
        key: str | None = None, **options: Unpack[JobOptions],
    ) -> Node[R]: ...  # fmt: skip
    @overload
    def add(
        self, task: Task[P, R], payload: P, *, after: After = (), on: On = "success", key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Node[R]: ...  # fmt: skip
    @overload
    def add(
        self, task: Task[P, R], *, after: After, on: On = "success", key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Node[R]: ...  # fmt: skip
    @overload
    def add(
        self, task: str, payload: Any = ..., *, after: After = (), on: On = "success", key: str | None = None,
        **options: Unpack[JobOptions],
    ) -> Node[Any]: ...  # fmt: skip

    def add(
        self, task: Task[Any, Any] | str, payload: Any = LEFT_OUT, *, after: After = (), on: On = "success",
        key: str | None = None, **options: Unpack[JobOptions],
    ) -> Node[Any]:  # fmt: skip
        """Add a job to the flow. Asks nothing; the answer is a `Job` as soon as the block has been left.

        payload   left out: what its upstreams returned, one value after a single node, else a list in order
        after     a node, a list of nodes, ``ff.any_of(...)``, ``ff.quorum(2, ...)``: starts when these have ended
        on        "success": they must complete, else this one is skipped; "always": however they end; "failure": they
                  must fail or run out of time, else this one is skipped
        key       its name in the flow; with it the job's id follows from the flow's, wherever it stands

        Raises InvalidArgument for what cannot be: a payload left out without `after`, a node of another flow, a key
        that is taken, more than 100,000 nodes.
        """
        draft = self._open("added to")
        if options:
            for name in ("durability", "patience"):
                if name in options:
                    raise InvalidArgument(f"{name}= holds for a flow as a whole: give it to client.flow(...)")
            check_options(options, JobOptions, "flow.add")
            check_member(options.get("unique"), "flow.add")
        join, kind = draft.join(after), kind_of(on)
        declared = draft.submitter.declared(task)
        task_name = name_of(declared if declared is not None else task)
        if payload is LEFT_OUT:
            if declared is not None and not declared.takes_payload:
                payload = None
            elif join is None:
                raise InvalidArgument(
                    f"task {task_name} has neither payload nor upstreams: give it a payload (None is one), or after="
                )
        if join is None and on == "failure":
            raise InvalidArgument("on='failure' without upstreams that could fail: name some with after=")
        left_out = payload is LEFT_OUT
        raw = None if left_out else encoded(declared, task_name, payload)
        keys: Mapping[str, str | None] = NO_KEYS
        if options or draft.terms is not NO_TERMS or (declared is not None and declared.terms is not NO_TERMS):
            paths = draft.paths(declared, options, task_name, left_out=left_out)
            keys = {path: text_at(path, payload) for path in paths}
        node = draft.node(self.id, declared, task_name, key)
        draft.added.append(Added(
            node, task, options, None if left_out or declared is None else declared.fairness_of(payload), raw,
            [] if join is None else [(upstream.place, kind) for upstream in join.nodes], policy_of(join), keys,
        ))  # fmt: skip
        return node

    def _open(self, verb: str, *, entered: bool = True) -> Draft:
        draft = self._draft
        if draft is None or draft.over or draft.entered != entered:
            raise InvalidArgument(f"{self!r} cannot be {verb}: a graph is made in one `with client.flow(...)` block")
        return draft

    async def _submit(self, draft: Draft) -> None:
        from ffcore.contracts.graph import FlowSubmitted

        client, backend = self._client, self._client.backend
        draft.over = True
        refused = f"flow {self.name} was not submitted: leaving its block raised why"
        draft.unsent.give_up(refused)
        await draft.submitter.keeps(draft.durability)
        args, alone = await request(draft, self.id, client.namespace, self.name)

        async def submitted() -> bool:
            replicated = draft.durability == "replicated"
            answer = await (call_replicated(backend, args) if replicated else backend.call(args))
            # Only we know a fresh id: the same graph was there because an answer of ours was lost.
            return draft.fresh or isinstance(answer, FlowSubmitted)

        async def send() -> bool:
            return await (holding(backend, alone, submitted) if alone else submitted())

        # Also for who is cancelled while it is under way.
        draft.unsent.give_up(f"nobody knows whether flow {self.name} was submitted: its store did not answer")
        try:
            self.created = await (patiently(send, draft.patience_s) if draft.patience_s else send())
        except EngineError as failed:
            if not (isinstance(failed, Unavailable) and failed.may_have_applied):
                draft.unsent.give_up(refused)
            raise
        for one in draft.added:
            one.node.submitted(client, self.created)
        self._draft = None  # a handle from here on, and payloads are not kept

    # ---- how it stands

    async def outcome(self, timeout: times.Duration | None = None) -> FlowOutcome:
        """How it ended, once each of its jobs has; also after `cancel`. Waits, for ever without a timeout.

        Raises TimeoutError (the flow goes on), NotFound, Unavailable.
        """
        waiters = self._sent().waiters
        if timeout is None:
            return outcome_of(await waiters.wait_flow(self.id))
        async with asyncio.timeout(times.seconds(timeout, "timeout")):
            return outcome_of(await waiters.wait_flow(self.id))

    async def status(self) -> FlowInfo:
        """The flow as its counters have it: public state, jobs by state, times, tags; one cheap read, exact. Raises
        NotFound."""
        from ffcore.contracts.flow import ReadFlowArgs

        return await self._sent().backend.call(ReadFlowArgs(flow_id=self.id))

    async def describe(self) -> FlowSnapshot:
        """The same with the group of edges of each job: reads the flow page by page, so jobs move meanwhile."""
        from ffcore.contracts.flow import DescribeFlowArgs

        return await self._sent().backend.call(DescribeFlowArgs(flow_id=self.id))

    async def nodes(self, *, edges: bool = True) -> AsyncIterator[FlowMember]:
        """Its jobs, in the order they were added, upstreams first; spawned ones at the end. A job that moves meanwhile
        is shown as it was when its page was read."""
        from ffcore.contracts.flow import ReadMembersArgs

        backend, after = self._sent().backend, 0
        while True:
            page = await backend.call(ReadMembersArgs(flow_id=self.id, after=after, limit=PAGE_N, edges=edges))
            for row in page.members:
                yield member_of(row)
            after = page.next
            if not after:
                return

    def job(self, key: str, task: Task[Any, R] | None = None) -> Job[R]:
        """The job that was added under this key; `task` gives its result a type. Asks nothing."""
        from ffcore.flows import member_id

        checks.text("" if key is None else key, "key", limits.KEY_BYTES)  # pyright: ignore[reportUnnecessaryComparison]
        return Job(self._sent(), member_id(self.id, key), task)

    # ---- changing its course

    async def cancel(
        self, reason: str = "", *, policy: Policy = "cancel_all", wait: bool | times.Duration = False
    ) -> Cancelling:
        """Cancel it. No job of it is claimed for the first time from now on; what becomes of the others, `policy` says.

        policy   "cancel_all": every job, running ones as `job.cancel` does it; "cancel_pending": those that have never
                 started, the others finish; "flow_only": those stay blocked, the others finish
        wait     until its jobs have ended: True, or at most so long

        Answers "cancelled", "scheduled" (jobs are still to end), "partially_cancelled" (some had not ended in time) or
        "already_ended". Raises NotFound.
        """
        from ffcore.contracts.flow import (
            CancelFlowArgs,
            CancelFlowPolicy,
            CancellationScheduled,
            FlowCancelled,
            NoWait,
            WaitIndefinite,
            WaitTimeout,
        )

        if not isinstance(reason, str):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArgument(f"reason is {checks.shown(reason)}: use text")
        waiting: NoWait | WaitIndefinite | WaitTimeout = WaitIndefinite() if wait is True else NoWait()
        if not isinstance(wait, bool):
            waiting = WaitTimeout(times.span_ms(wait, "wait"))
        if policy not in list(CancelFlowPolicy):
            raise InvalidArgument(f"policy is {checks.shown(policy)}: use one of {', '.join(CancelFlowPolicy)}")
        try:
            answer = await self._sent().backend.call(CancelFlowArgs(
                flow_id=self.id, reason=reason, cancellation_policy=CancelFlowPolicy(policy), wait=waiting,
            ))  # fmt: skip
        except Rejected as refused:
            if refused.code == "flow_already_terminal":
                return "already_ended"
            raise
        match answer:
            case FlowCancelled():
                return "cancelled"
            case CancellationScheduled():
                return "scheduled"
            case _:
                return "partially_cancelled"

    async def replay(self, mode: Literal["resume", "fresh"] = "resume") -> Bulk:
        """Run the jobs again that failed, ran out of time or were cancelled; what was skipped because of them waits
        for them again. Jobs that were cancelled because nobody needed them any more are left alone.

        `ids` says which, `refused` which of these were not, and why. A flow that was cancelled as a whole is not
        replayed: Rejected, code `flow_already_terminal`.
        """
        from ffcore.contracts.execution import ReplayExecutionArgs

        backend = self._sent().backend
        found = to_replay([member async for member in self.nodes()])
        refused: dict[str, str] = {}
        for at in range(0, len(found), BATCH_N):
            batch = found[at : at + BATCH_N]
            answers = await backend.call_all([ReplayExecutionArgs(execution_id=i, mode=mode) for i in batch])
            for execution_id, answer in zip(batch, answers, strict=True):
                if isinstance(answer, Rejected) and answer.code != "flow_already_terminal":
                    refused[execution_id] = answer.code
                elif isinstance(answer, EngineError):
                    raise answer
        return Bulk(dry_run=False, count=len(found), ids=[*found], done=len(found) - len(refused), refused=refused)

    async def set_tags(self, tags: Mapping[str, str]) -> int:
        """Add tags to the flow, or change them; answers how many it has. Raises NotFound."""
        from ffcore.contracts.execution import SetFlowTagsArgs

        checks.tags(tags)
        return (await self._sent().backend.call(SetFlowTagsArgs(flow_id=self.id, tags={**tags}))).count

    def _sent(self) -> Client:
        """The client, once there is something to ask about."""
        if self._draft is not None:
            raise InvalidArgument(self._draft.unsent.why)
        return self._client
