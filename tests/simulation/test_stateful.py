"""Sequences of what users do, drawn by hypothesis: submits, flows, cancels, replays, holds, crashes of workers, time.

The real client and the real worker, on memory:// and virtual time. The model is what a user may rely on: a job is open
until it has an outcome; an outcome stays, unless the job is run again; a key names one request for good; what was
cancelled before it started never runs; and in the end every job ends the way its handler makes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

import ffsdk as ff
from ffcore.errors import IdempotencyConflict, WrongState
from ffsdk.testing import Engine

T = TypeVar("T")
ENDS = {"good": ff.Completed, "fatal": ff.Failed, "flaky": ff.Completed, "hopeless": ff.Failed, "slow": ff.Completed}
"""How each kind of handler ends when nobody interferes."""
CRASHES_ALLOWED = 3
"""Of one job, by the SDK's policy; the next one poisons it."""


@dataclass
class Known:
    """What a user knows of a job."""

    job: ff.Job[Any]
    kind: str
    n: int
    cancelled: bool = False
    """A cancel was asked for in this run."""
    never_ran: bool = False
    """It had not started when it was cancelled."""
    ended: Any = None


class Users(RuleBasedStateMachine):
    jobs = Bundle("jobs")

    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.known: dict[str, Known] = {}
        self.keys: dict[str, tuple[str, int, str]] = {}
        self.flows: list[tuple[ff.Flow, str, str, int]] = []
        """Two jobs each: how the first one ends, on what the second one runs, its number."""
        self.runs: dict[int, int] = {}
        """Times a handler was entered, by the payload's number."""
        self.failures: dict[int, int] = {}
        self.crashes = 0
        self._n = 0
        self.app = ff.App()
        runs, failures = self.runs, self.failures

        @self.app.task(retry=ff.Retry(max_attempts=3, backoff=5, jitter=False), lease=5)
        async def work(payload: dict[str, Any]) -> int:
            n, kind = payload["n"], payload["kind"]
            runs[n] = runs.get(n, 0) + 1
            if kind == "slow":
                await asyncio.sleep(12)
            if kind == "fatal":
                raise ff.Fatal("it cannot work")
            if kind == "hopeless":
                raise ConnectionError("again and again")
            if kind == "flaky" and failures.get(n, 0) < 2:
                failures[n] = failures.get(n, 0) + 1
                raise ConnectionError("now and then")
            return int(n)

        self.task = work

    def do(self, work: Coroutine[Any, Any, T]) -> T:
        return self.loop.run_until_complete(work)

    @initialize()
    def begin(self) -> None:
        self.engine = Engine(self.app, auto=False, concurrency=2)
        self.do(self.engine.__aenter__())

    def teardown(self) -> None:
        try:
            if hasattr(self, "engine"):
                self.do(self._finish())
        finally:
            if hasattr(self, "engine"):
                self.do(self.engine.__aexit__(None, None, None))
            self.loop.close()

    # ---- what users do

    @rule(target=jobs, kind=st.sampled_from(sorted(ENDS)), delay=st.sampled_from([None, None, 3, 30]))
    def submit(self, kind: str, delay: int | None) -> str:
        self._n += 1
        options: Any = {} if delay is None else {"delay": delay}
        job = self.do(self.engine.client.submit(self.task, {"n": self._n, "kind": kind}, **options))
        assert job.created
        self.known[job.id] = Known(job, kind, self._n)
        return job.id

    @rule(target=jobs, kind=st.sampled_from(sorted(ENDS)), key=st.sampled_from("xyz"), same=st.booleans())
    def submit_by_key(self, kind: str, key: str, same: bool) -> Any:
        """The same request again is the same job; another one under its key is refused."""
        if key not in self.keys:
            self._n += 1
            job = self.do(self.engine.client.submit(self.task, {"n": self._n, "kind": kind}, key=key))
            assert job.created
            self.keys[key] = (kind, self._n, job.id)
            self.known[job.id] = Known(job, kind, self._n)
            return job.id
        known_kind, n, id = self.keys[key]
        again = {"n": n if same else n + 1_000, "kind": known_kind}
        if same:
            job = self.do(self.engine.client.submit(self.task, again, key=key))
            assert (job.id, job.created) == (id, False)
        else:
            with pytest.raises(IdempotencyConflict):
                self.do(self.engine.client.submit(self.task, again, key=key))
        return id

    @rule(kind=st.sampled_from(sorted(ENDS)), on=st.sampled_from(["success", "always", "failure"]))
    def submit_flow(self, kind: str, on: Any) -> None:
        """One job, and one after it."""

        async def build() -> ff.Flow:
            async with self.engine.client.flow("two") as flow:
                first = flow.add(self.task, {"n": self._n - 1, "kind": kind})
                flow.add(self.task, {"n": self._n, "kind": "good"}, after=first, on=on)
            return flow

        self._n += 2
        self.flows.append((self.do(build()), kind, on, self._n))

    @rule(id=jobs, force=st.booleans())
    def cancel(self, id: str, force: bool) -> None:
        known = self.known[id]
        said = self.do(known.job.cancel("not needed", force=force))
        if known.ended is not None:
            expected = "cancelled" if isinstance(known.ended, ff.Cancelled) else "already_ended"
            assert said == expected, f"{id} had ended as {known.ended} and cancel said {said}"
            return
        known.cancelled = known.cancelled or said != "already_ended"
        if said == "cancelled" and self.do(known.job.status()).attempts == 0:
            known.never_ran = True

    @rule(id=jobs)
    def replay(self, id: str) -> None:
        known = self.known[id]
        if self._look(known) is None:
            with pytest.raises(WrongState):
                self.do(known.job.replay())
            return
        self.failures.pop(known.n, None)
        self.do(known.job.replay())
        known.ended, known.cancelled, known.never_ran = None, False, False

    @rule(hold=st.booleans())
    def hold_or_release(self, hold: bool) -> None:
        client = self.engine.client
        self.do(client.hold(task="work", reason="stop") if hold else client.release(task="work"))

    @rule(n=st.integers(1, 6), before=st.booleans())
    def let_a_worker_crash(self, n: int, before: bool) -> None:
        self.crashes += 1
        self.engine.crash_after(n, before=before)

    @rule(seconds=st.sampled_from([0.05, 1, 6, 20]))
    def wait(self, seconds: float) -> None:
        self.do(self.engine.advance(seconds=seconds))

    # ---- what must be true at any time

    @invariant()
    def an_outcome_stays(self) -> None:
        for known in self.known.values():
            before = known.ended
            after = self._look(known)
            assert before is None or after == before, f"{known.job.id} ended as {before} and is now {after}"

    @invariant()
    def what_was_cancelled_unstarted_never_runs(self) -> None:
        for known in self.known.values():
            if known.never_ran and known.ended is not None:
                assert isinstance(known.ended, ff.Cancelled)
                assert not self.runs.get(known.n), f"{known.job.id} ran after it was cancelled unstarted"

    # ---- helpers

    def _look(self, known: Known) -> Any:
        """Its outcome, if it has one, checked against what its handler does."""
        if known.ended is None and self.do(known.job.status()).state.is_terminal:
            known.ended = self.do(known.job.outcome())
            self._judge(known, known.ended)
            if isinstance(known.ended, ff.Completed):
                assert known.ended.value == known.n and self.runs.get(known.n), "completed without having run"
        if known.ended is None:
            return None
        return self.do(known.job.outcome())

    def _judge(self, known: Known, outcome: Any) -> None:
        allowed: set[Any] = {ENDS[known.kind], ff.Cancelled} if known.cancelled else {ENDS[known.kind]}
        if self.crashes > CRASHES_ALLOWED and isinstance(outcome, ff.Failed) and outcome.category == "poisoned":
            return
        assert type(outcome) in allowed, f"{known.job.id} ({known.kind}) ended as {outcome}"

    async def _finish(self) -> None:
        """Faults stop, time passes, everything comes to an end."""
        await self.engine.client.release(task="work")
        for _ in range(12):
            await self.engine.advance(seconds=60)
        for known in self.known.values():
            self._judge(known, await self.engine.run_until(known.job, timeout=3_600))
        for flow, kind, on, last in self.flows:
            outcome = await flow.outcome()
            if self.crashes > CRASHES_ALLOWED:
                continue
            good = ENDS[kind] is ff.Completed
            runs = on == "always" or good == (on == "success")
            assert bool(self.runs.get(last)) == runs, f"{flow.id}: the second job {'did not run' if runs else 'ran'}"
            wanted = "completed" if good or on == "failure" else "failed"
            assert outcome.state == wanted, f"{flow.id} ({kind}, {on}) ended as {outcome}"


def test_whatever_users_do_jobs_keep_their_promises() -> None:
    quick = settings(
        max_examples=5, stateful_step_count=14, deadline=None, derandomize=True, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    run_state_machine_as_test(Users, settings=quick)
