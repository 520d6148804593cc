"""In which order a lane's jobs are claimed: bands, turns, fairness keys; held against a naive model.

Turns are start-time fair queueing: a key that floods a lane queues behind itself, and nobody else does.
"""

from __future__ import annotations

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.lua.engine import P0, Engine, delay, revoke, unclaim


async def test_higher_bands_come_first_and_each_is_first_in_first_out(engine: Engine) -> None:
    wanted = [(priority, await engine.submit(priority=priority)) for priority in (0, 100, -100, 0, 7, 7, -100, 100)]
    order = [id for _, id in sorted(wanted, key=lambda row: -row[0])]
    assert [job.execution_id for job in await engine.claim(8)] == order


async def test_neighbouring_bands_never_mix_however_far_their_turns_are_apart(engine: Engine) -> None:
    """A score that adds priority and time merges neighbours some day; bands must not, at 2^44 turns."""
    first = await engine.submit(priority=-1)
    await engine.command("HSET", f"ff:{P0}", "f1", 16 * (2**40 - 1))
    last = await engine.submit(priority=0)
    assert [job.execution_id for job in await engine.claim(2)] == [last, first]


async def test_what_only_comes_back_keeps_its_turn_and_what_was_delayed_takes_a_new_one(engine: Engine) -> None:
    one, two, three = await engine.submit_many(3)
    (job,) = await engine.claim()
    await engine.call(unclaim(job))
    (job,) = await engine.claim()
    assert job.execution_id == one
    await engine.call(revoke(one))
    (job,) = await engine.claim()
    assert job.execution_id == one
    await engine.call(delay(job, engine.now))
    assert [job.execution_id for job in await engine.claim(3)] == [two, three, one]


async def test_lanes_take_turns_at_being_first(engine: Engine) -> None:
    for _ in range(4):
        await engine.submit(lane_id="a")
        await engine.submit(lane_id="b")
    lanes = [(await engine.claim(lanes=["a", "b"], n=n))[0].lane_id for n in range(4)]
    assert lanes == ["a", "b", "a", "b"]


async def test_a_newcomer_waits_one_job_of_each_key_behind_a_flood(engine: Engine) -> None:
    """A tenant with a thousand jobs must not keep the next tenant's first one waiting."""
    for _ in range(20):
        await engine.submit(fairness_key="flood")
    await engine.claim(5)
    small = await engine.submit(fairness_key="small")
    assert small in [job.execution_id for job in await engine.claim(2)]


async def test_a_flood_of_newcomers_does_not_overtake_who_waits_in_another_band(engine: Engine) -> None:
    """A batch that reaches two bands moves virtual time in both; else a newcomer in the first would start at its
    old value and get a whole flood in before a key that has been served there."""
    for _ in range(10):
        await engine.submit(fairness_key="old", priority=1)
    await engine.submit(fairness_key="old", priority=0)
    await engine.claim(11)
    for _ in range(10):
        await engine.submit(fairness_key="new", priority=1)
    waiting = await engine.submit(fairness_key="old", priority=1)
    assert waiting in [job.execution_id for job in await engine.claim(3)]


async def test_virtual_time_does_not_fall_when_an_old_turn_comes_back(engine: Engine) -> None:
    for _ in range(11):
        await engine.submit(fairness_key="old")
    jobs = await engine.claim(10)
    await engine.call(unclaim(jobs[0]))
    await engine.claim()
    for _ in range(10):
        await engine.submit(fairness_key="new")
    waiting = await engine.submit(fairness_key="old")
    assert waiting in [job.execution_id for job in await engine.claim(5)]


async def test_a_lane_that_starts_with_keys_late_counts_the_rest_as_one_tenant(engine: Engine) -> None:
    plain = await engine.submit_many(6)
    keyed = [await engine.submit(fairness_key="k") for _ in range(2)]
    order = [job.execution_id for job in await engine.claim(8)]
    assert order.index(keyed[0]) <= 1 and order.index(keyed[1]) <= 3
    assert [id for id in order if id in plain] == plain


UNIT = 16
Steps = list[tuple[str, int, int]]
SOME_STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("submit"), st.integers(-1, 1), st.integers(0, 3)),
        st.tuples(st.just("claim"), st.integers(1, 4), st.just(0)),
    ),
    max_size=40,
)  # fmt: skip


class Naive:
    """The order of a lane, the slow way: start-time fair queueing over plain lists."""

    def __init__(self) -> None:
        self.ready: list[tuple[int, int, str]] = []
        self.virtual: dict[int, int] = {}
        self.finish: dict[tuple[int, int], int] = {}
        self.turn, self.keyed = 0, False

    def submit(self, id: str, priority: int, key: int) -> None:
        if key:
            self.keyed = True
        if not self.keyed:
            self.ready.append((-priority, self.turn, id))
            self.turn += UNIT
            return
        if priority not in self.virtual:
            head = min(self.ready, default=None)
            self.virtual[priority] = head[1] if head else self.turn
        virtual = self.virtual[priority]
        if key:
            turn = max(virtual, self.finish.get((priority, key), -1))
            self.finish[priority, key] = turn + UNIT
        else:
            turn = max(virtual, self.turn)
            self.turn = turn + UNIT
        self.ready.append((-priority, turn, id))

    def claim(self, n: int) -> list[str]:
        self.ready.sort()
        got, self.ready = self.ready[:n], self.ready[n:]
        for band, turn, _ in got if self.keyed else []:
            self.virtual[-band] = max(self.virtual.get(-band, 0), turn)
        return [id for _, _, id in got]


@settings(
    max_examples=25, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(steps=SOME_STEPS)
async def test_the_order_of_a_lane_is_that_of_a_naive_model(engine: Engine, steps: Steps) -> None:
    """Bands, turns and fairness keys together; ids of equal turns decide by their text."""
    await engine.fresh()
    model = Naive()
    for what, a, b in [*steps, ("claim", 100, 0)]:
        if what == "submit":
            id = await engine.submit(priority=a, **({"fairness_key": f"tenant {b}"} if b else {}))
            model.submit(id, a, b)
        else:
            assert [job.execution_id for job in await engine.claim(a)] == model.claim(a)


@settings(
    max_examples=15, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
@given(steps=SOME_STEPS, flood=st.integers(1, 3))
async def test_no_key_waits_longer_than_a_round_behind_a_flood(engine: Engine, steps: Steps, flood: int) -> None:
    """From the moment a job is first of its key, at most two jobs of any other key go before it."""
    await engine.fresh()
    key_of: dict[str, int] = {}
    waiting: list[str] = []
    for what, a, b in steps:
        if what == "submit":
            for _ in range(5 if b == flood else 1):
                id = await engine.submit(fairness_key=f"tenant {b}")
                key_of[id] = b
                waiting.append(id)
        else:
            taken = {job.execution_id for job in await engine.claim(a)}
            waiting = [id for id in waiting if id not in taken]
    first = {key: next(id for id in waiting if key_of[id] == key) for key in {key_of[id] for id in waiting}}
    order = [job.execution_id for job in await engine.claim(200)]
    assert sorted(order) == sorted(waiting)
    for key, id in first.items():
        before = [key_of[other] for other in order[: order.index(id)]]
        assert key not in before
        assert all(before.count(other) <= 2 for other in set(before)), (key, before)
