"""Conditions of any shape against signals in any order: the store's incremental evaluation comes to what a naive one
comes to that begins anew each time. Many trees in bulk on the evaluator alone, fewer through the calls."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lupa.lua51 import LuaRuntime

import ffcore.contracts as c
from ffbackend_valkey.library import lua_root
from ffcore import limits
from ffcore.conditions import compile_condition
from tests.lua import naive
from tests.lua.engine import Engine
from tests.lua.naive import Arrived
from tests.lua.waits import gates, observed, resume, send, signal, suspended, suspending, waiting

KEYS = ["a", "b", "c", "d"]
NAMES = ["ok", "no", "maybe"]
EFFECTS = {
    "elsewhere": "signal_ignored_not_in_condition", "unmatched": "signal_ignored_matcher_failed",
    "duplicate": "appended_to_waitpoint_duplicate", "counted": "appended_to_waitpoint",
}  # fmt: skip

# ---- any condition, anything that arrives ------------------------------------------------------------

matchers = st.one_of(
    st.sampled_from(NAMES).map(c.ByName), st.just(c.Wildcard()),
    st.lists(st.sampled_from(NAMES), min_size=1, max_size=2, unique=True).map(c.ByNames),
)  # fmt: skip
singles = st.builds(c.Single, st.sampled_from(KEYS), matchers)


@st.composite
def counts(draw: st.DrawFn) -> c.Composite:
    keys = draw(st.lists(st.sampled_from(KEYS), min_size=1, max_size=4, unique=True))
    kind = draw(st.sampled_from(c.CountKind))
    most = len(keys) if kind is c.CountKind.DISTINCT_WAITPOINTS else 4
    return c.Composite(c.count(draw(st.integers(1, most)), kind, draw(st.none() | matchers), keys))


def trees(depth: int) -> st.SearchStrategy[Any]:
    """Conditions with at most so many composites above one another."""
    leaf = st.one_of(singles, singles, st.just(c.OperatorOnly()), st.just(c.TimeoutOnly()))
    if depth == 0:
        return leaf
    members = st.lists(trees(depth - 1), min_size=1, max_size=3)
    return st.one_of(leaf, counts(), members.map(lambda m: c.Composite(c.all_of(m))))


conditions = trees(c.MAX_COMPOSITE_DEPTH)
arrivals = st.lists(
    st.one_of(
        *[st.builds(Arrived, st.sampled_from(KEYS), st.sampled_from(NAMES), st.sampled_from(["s1", "s2", "s3", "s4"]),
                    st.sampled_from(["web", "cli"]), st.sampled_from(["ann", "bob"]))] * 6,
        st.just(Arrived(None)),
    ), max_size=24,
)  # fmt: skip


# ---- the evaluator alone -----------------------------------------------------------------------------

DRIVER = """
local hash, kept = {}, {}
cjson = { decode = function(text) return decode_json(text) end }
redis = {
  sha1hex = function(text) return sha1(text) end,
  call = function(word, key, ...)
    assert(word == "HMGET" and key == "h")
    local out = {}
    for i = 1, select("#", ...) do out[i] = hash[select(i, ...)] or false end
    return out
  end,
}
"""
RUN = """
return {
  begin = function() hash = {} end,
  read = function(text) return condition.read(text) ~= nil end,
  offer = function(text, waitpoint, signal)
    local st = condition.state("h")
    local effect, met = condition.offer(condition.read(text), st, waitpoint, signal)
    for i = 1, #st.set, 2 do hash[st.set[i]] = tostring(st.set[i + 1]) end
    return effect, met
  end,
  approve = function(text)
    local st = condition.state("h")
    local any, met = condition.approve(condition.read(text), st)
    for i = 1, #st.set, 2 do hash[st.set[i]] = tostring(st.set[i + 1]) end
    return any, met
  end,
  size = function() local n = 0; for _ in pairs(hash) do n = n + 1 end; return n end,
}
"""


class Evaluator:
    """shared/condition.lua with a table for a store."""

    def __init__(self) -> None:
        self.lua = LuaRuntime(unpack_returned_tuples=True)
        g = self.lua.globals()
        g["decode_json"], g["sha1"] = self.decode, lambda text: hashlib.sha1(text.encode()).hexdigest()
        bounds = {name: value for name, value in vars(limits).items() if name.isupper() and isinstance(value, int)}
        g["LIMITS"] = self.lua.table_from(bounds)
        source = (lua_root() / "shared/condition.lua").read_text()
        self.do = self.lua.execute(DRIVER + source + RUN)

    def decode(self, text: str) -> Any:
        def of(value: Any) -> Any:
            return self.lua.table_from({i: of(v) for i, v in enumerate(value, 1)}) if isinstance(value, list) else value

        return of(json.loads(text))

    def offer(self, text: str, signal: Arrived) -> tuple[str, bool]:
        row = self.lua.table_from({"id": signal.id, "name": signal.name, "source_type": signal.source_type,
                                   "source_identity": signal.source_identity})  # fmt: skip
        effect, met = self.do["offer"](text, KEYS.index(signal.key or "") + 1, row)
        return effect, met


evaluator = Evaluator()


@settings(max_examples=1_500, deadline=None)
@given(condition=conditions, arriving=arrivals)
def test_any_condition_is_met_by_what_a_naive_evaluation_says(condition: Any, arriving: list[Arrived]) -> None:
    text = compile_condition(condition, KEYS).decode()
    evaluator.do["begin"]()
    for n, one in enumerate(arriving):
        before = arriving[:n]
        if one.key is None:
            fresh = not any(s.key is None for s in before) and any(
                isinstance(leaf, c.OperatorOnly) for leaf in naive.leaves(condition)
            )
            any_, met = evaluator.do["approve"](text)
            assert any_ == fresh
        else:
            effect, met = evaluator.offer(text, one)
            assert effect == naive.effect(condition, before, one)
        assert met == (naive.met(condition, arriving[: n + 1]))
        if met:
            return


@settings(max_examples=300, deadline=None)
@given(condition=conditions)
def test_what_is_kept_of_a_condition_is_bounded_by_it(condition: Any) -> None:
    """However many signals arrive: a field per node, and per distinct signal that a count still needs."""
    text = compile_condition(condition, KEYS).decode()
    evaluator.do["begin"]()
    for n in range(40):
        for key in KEYS:
            if evaluator.offer(text, Arrived(key, NAMES[n % 3], f"s{n}", "t", f"i{n}"))[1]:
                return
    nodes = json.loads(text)
    assert evaluator.do["size"]() <= len(nodes) + sum(node[2] for node in nodes if node[0] == "count")


# ---- through the calls -------------------------------------------------------------------------------


def _firsts(arrived: list[Arrived]) -> list[Arrived]:
    """Each signal once per waitpoint, where it came first."""
    seen: dict[tuple[str | None, str], Arrived] = {}
    for one in arrived:
        seen.setdefault((one.key, one.id), one)
    return list(seen.values())


class Store:
    """One execution that waits, and what a naive evaluation says of it."""

    def __init__(self, engine: Engine, condition: Any) -> None:
        self.engine, self.condition = engine, condition
        self.before: list[Arrived] = []
        self.counted: list[Arrived] = []
        self.over = False
        self.sent: dict[tuple[str | None, str], str] = {}

    def note(self, one: Arrived) -> str:
        """The effect to expect; keeps what counted."""
        effect = naive.effect(self.condition, self.before, one)
        self.before.append(one)
        if effect == "counted":
            self.counted.append(one)
        self.over = naive.met(self.condition, self.before)
        return "resume_condition_satisfied" if effect == "counted" and self.over else EFFECTS[effect]

    async def run(self, early: list[Arrived], late: list[Arrived], fresh: bool) -> None:
        engine = self.engine
        self.job = job = await engine.running()
        self.at = await gates(engine, job, *KEYS)
        early = [one for one in early if one.key is not None]
        for one in early:
            assert await self.send(one) in ("appended_to_waitpoint", "duplicate")
        for one in _firsts(early):
            if not self.over:
                self.note(one)
        args: Any = waiting(job, self.condition, self.at, timeout_ms=60_000)
        if fresh:
            args = suspending(job, self.condition, pending=self.at, timeout_at=engine.now + 60_000)
        answer = await engine.call(args)
        assert isinstance(answer, c.WaitSatisfied | c.WireSatisfied) is self.over
        for one in late:
            if self.over:
                break
            if one.key is None:
                await self.approve()
            else:
                effect = await self.send(one)
                assert effect == "duplicate" or effect == self.note(one)
        seen = await observed(engine, job.execution_id)
        got = [(self.key_of(s), s.name, s.signal_id) for s in seen.signals]
        assert got == [(s.key, s.name, s.id) for s in self.counted]
        assert bool(seen.why) is self.over
        assert (await engine.state(job.execution_id) == "suspended") is not self.over

    def key_of(self, s: c.ObservedSignal) -> str:
        return next(key for key, id in self.at.items() if id == s.waitpoint_id)

    async def send(self, one: Arrived) -> str:
        """The effect; "duplicate" where the same signal was sent to the waitpoint before: it is answered as it was."""
        answer = await self.engine.call(signal(
            self.job.execution_id, self.at[one.key or ""], one.name, signal_id=one.id, source_type=one.source_type,
            source_identity=one.source_identity,
        ))  # fmt: skip
        was = self.sent.get((one.key, one.id))
        if isinstance(answer, c.SignalDuplicate):
            assert answer.effect == was
            return "duplicate"
        assert was is None
        self.sent[one.key, one.id] = answer.effect
        return answer.effect

    async def approve(self) -> None:
        """An operator's word: it meets what waits for one, and ends a wait in which nothing does."""
        waits = any(isinstance(leaf, c.OperatorOnly) for leaf in naive.leaves(self.condition))
        self.before.append(Arrived(None))
        self.over = naive.met(self.condition, self.before) or not waits
        await self.engine.call(resume(self.job.execution_id, trigger_type="operator"))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(condition=conditions, early=arrivals.map(lambda a: a[:5]), late=arrivals, fresh=st.booleans())
def _run(engine: Engine, runner: Any, condition: Any, early: Any, late: Any, fresh: bool) -> None:
    async def one() -> None:
        await engine.fresh()
        await Store(engine, condition).run(early, late, fresh)
        assert await engine.violations() == []

    runner(one())


async def test_any_condition_through_the_calls(engine: Engine) -> None:
    """hypothesis is synchronous: it runs in a thread, its examples in this loop."""
    loop = asyncio.get_running_loop()

    def runner(coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, loop).result(60)

    await asyncio.to_thread(_run, engine, runner)


# ---- the trees that were never met elsewhere ---------------------------------------------------------


async def test_a_composite_below_the_second_level_is_met(engine: Engine) -> None:
    deep = c.Composite(c.all_of([c.Composite(c.all_of([c.Composite(c.all_of([naive_single("a"), c.Composite(
        c.count(1, c.CountKind.DISTINCT_SIGNALS, None, ["b"]))]))]))]))  # fmt: skip
    job, at = await suspended(engine, deep, "a", "b")
    assert await send(engine, job.execution_id, at["a"]) == "appended_to_waitpoint"
    assert await send(engine, job.execution_id, at["b"]) == "resume_condition_satisfied"


async def test_two_counts_of_a_kind_have_tallies_of_their_own(engine: Engine) -> None:
    def two_of(*keys: str) -> c.Composite:
        return c.Composite(c.count(2, c.CountKind.DISTINCT_WAITPOINTS, None, keys))

    job, at = await suspended(engine, c.Composite(c.all_of([two_of("a", "b", "c"), two_of("c", "d", "e")])), *"abcde")
    for key in "abd":
        assert await send(engine, job.execution_id, at[key]) == "appended_to_waitpoint"
    assert await send(engine, job.execution_id, at["e"]) == "resume_condition_satisfied"


async def test_sources_are_told_apart_whole(engine: Engine) -> None:
    two = c.Composite(c.count(2, c.CountKind.DISTINCT_SOURCES, None, ["a"]))
    job, at = await suspended(engine, two, "a")

    async def by(kind: str, who: str) -> str:
        return await send(engine, job.execution_id, at["a"], source_type=kind, source_identity=who)

    assert await by("we", "bann") == "appended_to_waitpoint"
    assert await by("we", "bann") == "appended_to_waitpoint_duplicate"
    assert await by("web", "ann") == "resume_condition_satisfied"


def naive_single(key: str) -> c.Single:
    return c.Single(key, c.Wildcard())


# ---- what is no condition ----------------------------------------------------------------------------

SINGLE = ["single", 0, 1, None]


def nest(depth: int) -> list[Any]:
    return [["all_of", n, 1] for n in range(depth)] + [["single", depth, 1, None]]


@pytest.mark.parametrize("nodes", [
    [], {}, "x", 7, None, ["single"], [["single"]], [["nap", 0]], [[]], [None],
    [["single", 1, 1, None]], [["single", 0, 0, None]], [["single", 0, 1.5, None]], [["single", 0, 65, None]],
    [["single", 0, 1, ""]], [["single", 0, 1, 7]], [["single", 0, 1, []]], [["single", 0, 1, ["x", 7]]],
    [["single", 0, 1, ["x"] * 17]], [["single", 0, 1, "n" * 129]],
    [SINGLE, SINGLE], [SINGLE, ["single", 1, 1, None]],
    [["all_of", 0, 0]], [["all_of", 0, 1]], [["all_of", 0, 2], ["single", 1, 1, None]],
    [["all_of", 0, 1], ["single", 2, 1, None]], [["all_of", 0, 1], ["single", 1, 1, None], ["single", 1, 1, None]],
    [["count", 0, 0, "distinct_signals", None, [1]]], [["count", 0, 1, "distinct", None, [1]]],
    [["count", 0, 1, "distinct_signals", None, []]], [["count", 0, 1, "distinct_signals", None, 1]],
    [["count", 0, 1, "distinct_signals", None, [1, 1]]], [["count", 0, 2, "distinct_waitpoints", None, [1]]],
    [["count", 0, 20_000, "distinct_signals", None, [1]]], [["count", 0, 1, "distinct_signals", "", [1]]],
    nest(5), [["all_of", 0, 600]] + [["operator_only", 1]] * 600,
])  # fmt: skip
async def test_the_store_takes_nothing_that_is_no_condition(engine: Engine, nodes: Any) -> None:
    job = await engine.running()
    at = await gates(engine, job, "a")
    args = waiting(job, naive_single("a"), at)
    assert "condition" in await engine.refused("invalid_input", args, condition=json.dumps(nodes).encode())


async def test_it_takes_the_deepest_and_the_widest_there_may_be(engine: Engine) -> None:
    deep: Any = naive_single("a")
    for _ in range(c.MAX_COMPOSITE_DEPTH):
        deep = c.Composite(c.all_of([deep]))
    job, at = await suspended(engine, deep, "a")
    assert await send(engine, job.execution_id, at["a"]) == "resume_condition_satisfied"
    await engine.complete((await engine.claim())[0])
    keys = [f"w{n}" for n in range(limits.WAITPOINTS_N)]
    wide = c.Composite(c.all_of([c.Single(keys[n % len(keys)], c.ByName(f"n{n}" * 20)) for n in range(256)]))
    job, at = await suspended(engine, wide, *keys)
    assert await send(engine, job.execution_id, at["w5"], "n5" * 20) == "appended_to_waitpoint"
    with pytest.raises(c.CompositeValidationError):
        c.Composite(c.all_of([deep]))


async def test_unreadable_json_is_no_condition(engine: Engine) -> None:
    job = await engine.running()
    for text in (b"", b"[", b"\xff", b" " * (limits.CONDITION_BYTES + 1)):
        await engine.refused("invalid_input", waiting(job, timeout_ms=1), condition=text)
