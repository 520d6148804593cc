"""Random graphs, run by a simple worker in random order, against a plain executor (`plain_graph.py`).

How every member ends, what each was given, and how the flow ended must be the same: with all edges resolved in the
call that ends a member, and with a few per call and the rest by tick. A failure names the seed and what was done.
"""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from typing import Any

import pytest

import ffcore.contracts as c
from ffbackend_valkey.library import Library
from ffbackend_valkey.memory import MemoryServer
from ffcore import limits
from tests.lua.engine import P0, Engine, cancel, completion, failure, library_of, open_engine, unclaim
from tests.lua.plain_graph import Executor, Node, contradictions, drawn, topological

TTL = limits.LEASE_TTL_MAX_MS
BOUNDS = (1, 3)
"""Edges resolved, members cancelled, in one call."""


def bounded(edges: int) -> Library:
    """The library with another bound of what one call does in a graph."""
    lib, word = library_of(), f"EDGES_INLINE_N = {limits.EDGES_INLINE_N}"
    assert lib.source.count(word) == 1
    sha = f"{edges:012d}"
    source = lib.source.replace(word, f"EDGES_INLINE_N = {edges}").replace(lib.sha, sha)
    return lib._replace(source=source, sha=sha)


@pytest.fixture(params=BOUNDS)
async def slow(store_url: str, request: pytest.FixtureRequest) -> AsyncIterator[Engine]:
    engine = await open_engine(store_url, bounded(request.param))
    try:
        yield engine
    finally:
        await engine.close()
        MemoryServer.discard(store_url.removeprefix("memory://"))


class Play:
    """One flow, one worker that does one thing after another at random."""

    def __init__(
        self, engine: Engine, seed: int, *, cancel_remaining: bool, slow: bool = False, nodes: list[Node] | None = None
    ) -> None:
        """`slow`: the engine leaves work for its ticker."""
        self.engine, self.rng = engine, random.Random(seed)
        self.slow, self.calm = slow, cancel_remaining
        self.exact = not (slow and cancel_remaining)
        """The plain executor knows in which order things come to their turn."""
        self.eager = not slow or cancel_remaining
        """What an end leaves for a tick is done before anything else happens."""
        size = self.rng.choice([1, 3, 8, 20, 40, 60])
        self.nodes = nodes or drawn(self.rng, size, cancel_remaining=cancel_remaining)
        self.plain = Executor(self.nodes)
        self.flow: Any = engine.new_id()
        self.ids = {node.number: engine.new_id() for node in self.nodes}
        self.numbers = {id: number for number, id in self.ids.items()}
        self.running: dict[int, c.ClaimedJob] = {}
        self.ran: set[int] = set()
        self.called_off: set[int] = set()
        self.trace = [f"seed {seed}: {self.nodes}"]

    # ---- submit

    async def submit(self) -> None:
        order = list(self.nodes)
        if self.rng.random() < 0.5:
            self.rng.shuffle(order)
        place = {node.number: i for i, node in enumerate(order)}
        delays = sorted({node.delay_ms for node in order})
        plans = [c.FlowPlan(execution_kind="send", lane_id="mail", delay_until=self.engine.now + ms if ms else None)
                 for ms in delays]  # fmt: skip
        rows = [
            c.FlowNode(
                execution_id=self.ids[node.number], plan=delays.index(node.delay_ms), digest=b"d" * 16,
                payload=None if node.upstreams else b"root", policy=self._policy(node),
                upstreams=[(place[up], kind) for up, kind in node.upstreams],
            )
            for node in order
        ]  # fmt: skip
        told = await self.engine.call(
            c.SubmitFlowArgs(flow_id=self.flow, namespace="default", plans=plans, nodes=rows)  # type: ignore[arg-type]
        )
        assert isinstance(told, c.FlowSubmitted) and told.node_count == len(rows)
        self.plain.arrived({self.numbers[member.execution_id]: member.number for member in await self._members()})

    async def _members(self) -> list[c.Member]:
        members, after = list[c.Member](), -1
        while after:
            page = await self.engine.call(c.ReadMembersArgs(flow_id=self.flow, after=max(0, after), limit=50))
            members += page.members
            after = page.next
        return members

    @staticmethod
    def _policy(node: Node) -> Any:
        rest = c.OnSatisfied.CANCEL_REMAINING if node.cancel_remaining else c.OnSatisfied.LET_RUN
        match node.policy:
            case "any_of":
                return c.EdgeAnyOf(on_satisfied=rest)
            case "quorum":
                return c.EdgeQuorum(k=node.k, on_satisfied=rest)
            case _:
                return c.EdgeAllOf()

    # ---- run

    async def run(self) -> None:
        """To the end. Where groups cancel, nobody else does: what is cancelled is what nobody needs."""
        await self.submit()
        idle = 0
        while idle < 3:
            if self.running and self.rng.random() < 0.7:
                await self._end(self.rng.choice(list(self.running)))
            elif not self.calm and self.rng.random() < 0.03:
                await self._call_off()
            elif await self.claim():
                idle = 0
            elif not self.running:
                await self.catch_up()
                await self.engine.advance(300)
                idle += 1

    async def catch_up(self) -> None:
        for _ in range(1_000):
            ticked = await self.engine.tick(limit=self.rng.choice([1, 200]))
            if self.slow:
                flow = await self.engine.call(c.ReadFlowArgs(flow_id=self.flow))
                assert not flow.ended or (flow.unfinished, flow.resolving) == (0, 0), flow
            if ticked.next_due_ms > self.engine.now:
                return
        raise AssertionError("there is always more to do")

    def _started(self, jobs: list[c.ClaimedJob]) -> None:
        for job in jobs:
            number = self.numbers[job.execution_id]
            self.trace.append(f"start {number}")
            self.ran.add(number)
            self.running[number] = job
            if self.exact:
                self.plain.start(number)
            if self.eager and self.exact:
                self._given(number, job)

    def _given(self, number: int, job: c.ClaimedJob) -> None:
        """The results of its upstreams came with it, in order."""
        ups = self.plain.inputs.get(number)
        if ups is None:
            assert job.inputs is None and job.payload == b"root"
            return
        assert job.inputs is not None and job.inputs.complete
        got = [None if one is None else one.result for one in job.inputs.items]
        assert got == [None if up is None else b"of %d" % up for up in ups], f"{number} was given {got}, not {ups}"

    async def claim(self) -> bool:
        jobs = await self.engine.claim(self.rng.choice([1, 1, 2, 9]), lease_ttl_ms=TTL)
        self._started(jobs)
        return bool(jobs)

    async def _end(self, number: int) -> None:
        job, fate, rng = self.running.pop(number), self.plain.nodes[number].fate, self.rng
        engine, jobs = self.engine, list[c.ClaimedJob]()
        if rng.random() < (0.5 if number in self.plain.asked else 0.1):
            given_back = await engine.call(unclaim(job))
            if given_back.state != "cancelled":
                self.trace.append(f"give back {number}")
                self.plain.running.discard(number)
                return
            fate = "cancelled"  # it was asked to stop
        elif fate == "completed":
            if rng.random() < 0.5:
                await engine.call(completion(job, result_payload=b"of %d" % number))
            else:
                row = c.Completion(job.execution_id, f"{job.lease_id} {job.lease_epoch} {job.attempt_id}",
                                   b"of %d" % number)  # fmt: skip
                # Who is not needed any more may be started before a tick has got to it.
                most = 0 if self.slow and self.calm else rng.randrange(3)
                claiming = engine.claiming(most, lease_ttl_ms=TTL)
                told = await engine.call(c.CompleteManyArgs(
                    partition=P0, items=[row], limit=most, claim_id=claiming.claim_id, lanes=claiming.lanes,
                    capability_sets=[], worker_id=claiming.worker_id, lease_ttl_ms=TTL,
                    worker_instance_id=claiming.worker_instance_id,
                ))  # fmt: skip
                jobs = told.claimed.jobs
        elif fate == "failed":
            await engine.call(failure(job, failure_category="fatal"))
        elif fate == "expired":
            await engine.call(c.ExpireExecutionArgs(execution_id=job.execution_id, expire_reason="late"))
            fate = await engine.state(job.execution_id)  # a cancel that was asked for is what ends it
        else:
            await engine.call(cancel(job.execution_id, "operator_override"))
        await self.ended(number, fate, jobs)

    async def ended(self, number: int, how: str, claimed: list[c.ClaimedJob]) -> None:
        self.trace.append(f"end {number} {how}")
        if self.exact:
            self.plain.end(number, how)
        self._started(claimed)
        if self.slow and self.eager:
            await self.catch_up()

    async def _call_off(self) -> None:
        """Somebody cancels what has not begun."""
        waiting = [n for n in self.ids if n not in self.plain.state and n not in self.plain.running]
        if waiting:
            number = self.rng.choice(waiting)
            await self.engine.call(cancel(self.ids[number]))
            if await self.engine.state(self.ids[number]) == "cancelled":
                self.called_off.add(number)
                await self.ended(number, "cancelled", [])

    # ---- compare

    async def compare(self) -> None:
        found = {self.numbers[member.execution_id]: member.state for member in await self._members()}
        story = "\n".join(self.trace)
        wanted = self.plain.state
        wrong = {n: (state, wanted.get(n)) for n, state in sorted(found.items()) if state != wanted.get(n)}
        assert len(found) == len(self.nodes) and (not wrong or not self.exact), f"is, should be: {wrong}\n{story}"
        odd = contradictions(self.nodes, found, self.ran, self.called_off)
        assert not odd, f"{odd}\n{story}"
        flow = await self.engine.call(c.ReadFlowArgs(flow_id=self.flow))
        counts = {state: list(found.values()).count(state) for state in found.values()}
        assert {word: n for word, n in flow.counts.items() if n} == counts
        assert flow.ended and flow.resolving == 0
        if self.exact:
            assert flow.public_flow_state == self.plain.outcome(), story
        left = await self.engine.violations()
        assert not left, "\n".join([*left, story])


@pytest.mark.parametrize("seed", range(16))
async def test_a_graph_ends_as_the_plain_executor_says(engine: Engine, seed: int) -> None:
    play = Play(engine, seed, cancel_remaining=False)
    await play.run()
    await play.compare()
    untouched = not any(line.endswith("cancelled") for line in play.trace[1:])
    if untouched:
        assert play.plain.state == topological(play.nodes)


@pytest.mark.parametrize("seed", range(100, 116))
async def test_so_does_one_whose_groups_cancel_who_is_not_needed(engine: Engine, seed: int) -> None:
    play = Play(engine, seed, cancel_remaining=True)
    await play.run()
    await play.compare()


@pytest.mark.parametrize("seed", range(200, 205))
async def test_so_does_one_that_is_resolved_a_few_edges_at_a_time(slow: Engine, seed: int) -> None:
    """Members are started and ended while edges wait."""
    play = Play(slow, seed, slow=True, cancel_remaining=False)
    await play.run()
    await play.compare()


@pytest.mark.parametrize("seed", range(300, 305))
async def test_and_one_that_is_cancelled_a_few_members_at_a_time(slow: Engine, seed: int) -> None:
    play = Play(slow, seed, slow=True, cancel_remaining=True)
    await play.run()
    await play.compare()


async def test_a_flow_has_not_ended_while_some_edges_wait(slow: Engine) -> None:
    """All that depended on it has ended before: whether its failure was provided for is known with its last edge."""
    rest = [Node(number, [(1, "success_only")]) for number in range(2, 8)]
    play = Play(slow, 0, slow=True, cancel_remaining=False, nodes=[Node(1, [], fate="failed"), *rest])
    await play.submit()
    for node in rest:
        await slow.call(cancel(play.ids[node.number]))
        await play.ended(node.number, "cancelled", [])
    play.called_off = {node.number for node in rest}
    assert await play.claim()
    await slow.call(failure(play.running.pop(1), failure_category="fatal"))
    flow = await slow.call(c.ReadFlowArgs(flow_id=play.flow))
    assert not flow.ended and flow.resolving == 1
    await play.ended(1, "failed", [])
    await play.catch_up()
    await play.compare()
    assert play.plain.outcome() == "failed"
