"""What a check says of flows, members and edges that are not as they should be: I11, I12, and what follows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.ids import uuid_of
from tests.lua import damage as stocks
from tests.lua.damage import GHOST, HEAD, Damage, about, damage, later
from tests.lua.engine import Engine, open_engine
from tests.lua.graphs import chunks, graph, info, row, spawning, waiting
from tests.lua.test_check import look, repair
from tests.lua.test_flow import run, staging


class Stock(stocks.Stock):
    """A flow on its way (one member has ended, one runs, one is ready, one waits), one that has ended, one that is not
    published; a parent that waits for its child."""

    async def fill(self) -> Stock:
        engine = self.engine
        self.done, (self.first, self.second) = await graph(engine, "", "1s")
        await run(engine)
        parent = await engine.running()
        self.family, self.parent, self.child = engine.new_id(), parent.execution_id, engine.new_id()
        await engine.call(spawning(parent, self.child, self.family, lane_id="elsewhere"))
        await engine.call(waiting(parent, self.child))
        self.live, (self.root, self.busy, self.idle, self.join) = await graph(engine, "", "1s", "1s", "2s,3s")
        (job,) = await engine.claim()
        await engine.complete(job)
        (job,) = await engine.claim()
        assert job.execution_id == self.busy
        self.staged, (self.unborn, *_) = await staging(engine)
        return self

    def row(self, down: Any, up: Any, state: str, order: int = 1) -> Any:
        return self.do("HSET", self.key("in", down), uuid_of(up), f"{order} s {state} 7")

    def group(self, down: Any, text: str) -> Any:
        return self.do("HSET", self.key("in", down), "g", text)

    def flow(self, flow: Any, *pairs: Any) -> Any:
        return self.do("HSET", self.key("flow", flow), *pairs)


async def each(*calls: Any) -> None:
    for call in calls:
        await call


def wrong(name: str, plant: Callable[[Any], Awaitable[Any]], *said: str, beyond: bool = False) -> Damage:
    return damage(name, plant, *said, beyond=beyond)


def armed(s: Stock, timer: str) -> Any:
    return s.do("ZADD", f"{HEAD}:timers", later(s), timer)


def disarmed(s: Stock, timer: str) -> Any:
    return s.do("ZREM", f"{HEAD}:timers", timer)


DAMAGES = [
    # counts
    wrong(
        "a member too many",
        lambda s: s.do("HINCRBY", s.key("flow", s.live), "q", 1),
        "I12 live counts 4 members that live and 1",
    ),
    wrong(
        "a member counted as another",
        lambda s: s.flow(s.live, "q", 0, "d", 1),
        "I12 live counts 0 queued, there are 1",
        "I12 live counts 1 delayed, there are 0",
    ),
    wrong("a failure too many", lambda s: s.flow(s.live, "nf", 1), "I12 live counts 1 failures, there are 0"),
    wrong("a broken group too many", lambda s: s.flow(s.live, "nb", 1), "I12 live counts 1 broken, there are 0"),
    wrong("a cancel too many", lambda s: s.flow(s.live, "nc", 1), "I12 live counts 1 cancels, there are 0"),
    wrong("an edge too many", lambda s: s.flow(s.live, "e", 5), "I12 live counts 5 edges, there are 4"),
    wrong("an end too many", lambda s: s.flow(s.live, "p", 1), "I12 live counts 1 resolving, there are 0"),
    wrong("a number too many", lambda s: s.flow(s.live, "n", 5), "I12 live counts 5 members, there are 4"),
    wrong("a count that is none", lambda s: s.flow(s.live, "q", "x"), "I12 live counts 2 members that live and 1"),
    wrong("a count below nothing", lambda s: s.flow(s.live, "q", -1), "I12 live queued is no number"),
    # a flow
    wrong(
        "no such state", lambda s: s.flow(s.live, "st", "dozing"), "I12 live no state this library knows", beyond=True
    ),
    wrong(
        "an outcome before the end",
        lambda s: s.flow(s.live, "o", "completed"),
        "I12 live live, outcome completed",
        beyond=True,
    ),
    wrong(
        "a policy without a cancel",
        lambda s: s.flow(s.done, "x", "cancel_all"),
        "I12 done cancelled by cancel_all at 0",
        beyond=True,
    ),
    wrong(
        "an end before that of its members",
        lambda s: s.flow(s.live, "st", "ended", "o", "completed", "ea", 7),
        "I12 live has ended and counts 3 members that live",
        "I12 busy has not ended and its flow has",
        "I12 idle has not ended and its flow has",
        "I12 join has not ended and its flow has",
        "I18 live ended and nothing will ever purge it",
        beyond=True,
    ),
    wrong(
        "no end where nothing goes on",
        lambda s: each(s.flow(s.done, "st", "live"), s.do("HDEL", s.key("flow", s.done), "o", "ea")),
        "I12 done lives and nothing of it goes on",
    ),
    wrong(
        "not among the flows",
        lambda s: s.do("ZREM", f"{HEAD}:flows", uuid_of(s.live)),
        "I3 live is not among the flows",
    ),
    wrong("a flow that is nowhere", lambda s: s.do("ZADD", f"{HEAD}:flows", 0, GHOST), "I3 ghost no such flow"),
    wrong(
        "a flow that is gone",
        lambda s: s.do("DEL", s.key("flow", s.done)),
        "I3 done no such flow",
        "I18 done :members:",
        "I12 first which there is not",
        "I12 second which there is not",
        beyond=True,
    ),
    wrong(
        "what ended and stays",
        lambda s: s.do("ZREM", f"{HEAD}:reap", f"flow:{uuid_of(s.done)}"),
        "I18 done nothing will ever purge it",
    ),
    wrong(
        "a purge that stands still",
        lambda s: each(s.flow(s.done, "st", "purging"), s.do("ZREM", f"{HEAD}:reap", f"flow:{uuid_of(s.done)}")),
        "I18 done nothing goes on with it",
    ),
    wrong(
        "left over from flows",
        lambda s: each(
            *(
                s.do(*words)
                for words in (
                    ("HSET", f"{HEAD}:flowtext:{GHOST}", "kind", "x"),
                    ("HSET", f"{HEAD}:in:{GHOST}", "g", "A 0 - 0 0 0 0 0 0 p"),
                    ("RPUSH", f"{HEAD}:out:{GHOST}", GHOST),
                )
            )
        ),
        "I18 ghost :flowtext:",
        "I18 ghost :in:",
        "I18 ghost :out:",
    ),
    wrong(
        "an event of no flow",
        lambda s: s.do("XADD", f"{HEAD}:ev", f"{s.engine.now}-*", "f", "what"),
        "I17 - tells of nothing",
        beyond=True,
    ),
    # timers of flows
    wrong(
        "a graph that is never removed",
        lambda s: disarmed(s, f"staging:{uuid_of(s.staged)}"),
        "I5 staged timer staging is not set",
    ),
    wrong(
        "a published graph that is removed",
        lambda s: armed(s, f"staging:{uuid_of(s.live)}"),
        "I5 live timer staging is set",
    ),
    wrong("a cancel that stands still", lambda s: s.flow(s.live, "xn", 2), "I5 live timer flow_cancel is not set"),
    wrong(
        "a cancel that goes on",
        lambda s: armed(s, f"flow_cancel:{uuid_of(s.live)}"),
        "I5 live timer flow_cancel is set",
    ),
    wrong("a timer of no flow", lambda s: armed(s, f"staging:{GHOST}"), "I3 ghost there is no such flow"),
    wrong(
        "a graph of no flow is published", lambda s: armed(s, f"publish:{GHOST} 7"), "I3 ghost there is no such flow"
    ),
    wrong("a timer of no member", lambda s: armed(s, f"edges:{GHOST}"), "I3 ghost there is no such member"),
    # members
    wrong(
        "a member that is nowhere",
        lambda s: s.do("ZADD", s.key("members", s.live), 9, GHOST),
        "I12 ghost there is no record",
        "I12 live counts 4 members, there are 5",
    ),
    wrong(
        "no member of its flow",
        lambda s: s.do("ZREM", s.key("members", s.live), uuid_of(s.idle)),
        "I12 idle and there no member",
        "I12 live counts 4 members, there are 3",
    ),
    wrong(
        "another number",
        lambda s: s.set(s.idle, node="9"),
        "I12 idle is number 9 of flow",
        "I12 idle its record says number 9",
    ),
    wrong(
        "a member of another flow",
        lambda s: s.set(s.idle, flow=uuid_of(s.done)),
        "I12 idle is number 3 of flow",
        "I12 idle its record says of",
        "I11 idle depends on",
        "I11 join depends on",
        "I12 idle has not ended and its flow has",
        beyond=True,
    ),
    wrong(
        "a number without a flow",
        lambda s: s.set(s.parent, flow=None),
        "I12 parent is of no flow",
        "I12 parent its record says of",
        beyond=True,
    ),
    # edges
    wrong(
        "an edge its downstream does not have",
        lambda s: s.do("HDEL", s.key("in", s.idle), uuid_of(s.root)),
        "I11 root depends on it, which does not",
        "I11 idle counts 1 edges, 1 satisfied",
    ),
    wrong(
        "an edge its upstream does not have",
        lambda s: s.do("LREM", s.key("out", s.root), 0, uuid_of(s.idle)),
        "I11 idle which does not know of it",
        "I12 live counts 4 edges, there are 3",
    ),
    wrong(
        "an edge to nobody",
        lambda s: s.do("RPUSH", s.key("out", s.root), GHOST),
        "I11 root is gone",
        "I12 live counts 4 edges, there are 5",
    ),
    wrong(
        "an edge from nobody",
        lambda s: each(s.row(s.join, f"{stocks.P0}:{GHOST}", "u", 3), s.group(s.join, "A 0 - 3 0 0 0 0 0 p")),
        "I11 join which is gone",
        beyond=True,
    ),
    wrong(
        "an edge nobody can read",
        lambda s: s.do("HSET", s.key("in", s.join), uuid_of(s.busy), "what"),
        "I11 join cannot be read",
        "I11 join counts 2 edges, 0 satisfied, 0 impossible; there are 1",
        beyond=True,
    ),
    wrong(
        "edges that are gone",
        lambda s: s.do("DEL", s.key("in", s.join)),
        "I11 join are gone",
        "I11 join there is none to wait for",
        "I11 busy depends on it, which does not",
        "I11 idle depends on it, which does not",
        beyond=True,
    ),
    wrong(
        "edges the record forgot",
        lambda s: s.set(s.join, deps=None),
        "I11 join its record does not know of",
    ),
    wrong(
        "dependents the record forgot",
        lambda s: s.set(s.root, outs=None),
        "I11 root has 2 edges to others",
        "I12 live counts 4 edges, there are 2",
    ),
    wrong(
        "dependents that are gone",
        lambda s: s.do("DEL", s.key("out", s.busy)),
        "I11 busy has 0 edges to others",
        "I11 join which does not know of it",
        "I12 live counts 4 edges, there are 3",
    ),
    wrong(
        "a name of no edge",
        lambda s: s.do("HSET", s.key("edges", s.live), GHOST, f"{uuid_of(s.root)} {uuid_of(s.idle)}"),
        "I11 live and nobody has it",
    ),
    # groups
    wrong(
        "a group counts wrong", lambda s: s.group(s.join, "A 0 - 2 1 0 0 0 0 p"), "I11 join counts 2 edges, 1 satisfied"
    ),
    wrong(
        "a group nobody can read",
        lambda s: s.group(s.join, "what"),
        "I11 join its group cannot be read",
        "I11 join there is none to wait for",
        beyond=True,
    ),
    wrong(
        "no group",
        lambda s: s.do("HDEL", s.key("in", s.join), "g"),
        "I11 join and no group",
        "I11 join are gone",
        "I11 join there is none to wait for",
        beyond=True,
    ),
    wrong(
        "a group that is decided and does not know",
        lambda s: each(
            s.row(s.join, s.busy, "S"), s.row(s.join, s.idle, "S", 2), s.group(s.join, "A 0 - 2 2 0 0 0 0 p")
        ),
        "I11 join its edges have decided it",
        beyond=True,
    ),
    wrong(
        "ready before its time",
        lambda s: each(s.row(s.idle, s.root, "u"), s.group(s.idle, "A 0 - 1 0 0 0 0 0 p")),
        "I11 idle its upstreams have not ended",
        "I11 root was not resolved",
    ),
    wrong(
        "waiting for nothing",
        lambda s: each(
            s.row(s.join, s.busy, "S"), s.row(s.join, s.idle, "S", 2), s.group(s.join, "A 0 - 2 2 0 0 0 0 s")
        ),
        "I11 join there is none to wait for",
    ),
    wrong(
        "ready before its graph is published",
        lambda s: s.set(s.unborn, state="ready", reason=None, turn="7"),
        "I11 unborn ready and its graph is not published",
        "I2 unborn ready and not in :q:",
        "I2 unborn ready and also in :i:",
        "I17 unborn its record says ready",
        "I12 staged counts 0 queued, there are 1",
        "I12 staged counts 3 blocked, there are 2",
        beyond=True,
    ),
    # children
    wrong(
        "children counted wrong",
        lambda s: s.do("HSET", s.key("in", s.parent), "c", "1 0"),
        "I11 parent counts 1 children, 0 alive; there are 1 and 1",
        "I11 parent waits for children and all have ended",
    ),
    wrong(
        "children nobody can count",
        lambda s: s.do("HSET", s.key("in", s.parent), "c", "some"),
        "I11 parent count of children cannot be read",
        beyond=True,
    ),
    wrong(
        "children the record forgot", lambda s: s.set(s.parent, children=None), "I11 parent its record does not know of"
    ),
    # what goes on later
    wrong(
        "edges nobody goes on with",
        lambda s: s.set(s.root, resolving="1 0"),
        "I5 root timer edges is not set",
        "I12 live counts 0 resolving, there are 1",
    ),
    wrong(
        "a replay nobody goes on with", lambda s: s.set(s.busy, reopening="1 failed"), "I5 busy timer reopen is not set"
    ),
    wrong(
        "upstreams nobody goes on with",
        lambda s: s.do("HSET", s.key("in", s.join), "k", "1"),
        "I5 join timer siblings is not set",
    ),
    wrong(
        "children nobody goes on with",
        lambda s: s.do("HSET", s.key("in", s.parent), "h", "1"),
        "I5 parent timer children is not set",
    ),
    wrong("edges that are resolved anew", lambda s: armed(s, f"edges:{uuid_of(s.root)}"), "I5 root timer edges is set"),
]


@pytest.fixture
async def stock(store_url: str) -> AsyncIterator[Stock]:
    engine = await open_engine(store_url)
    stock = await Stock(engine).fill()
    assert await look(engine) == []
    yield stock
    await engine.close()


@pytest.fixture
async def bare(store_url: str) -> AsyncIterator[Engine]:
    engine = await open_engine(store_url)
    yield engine
    await engine.close()


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name.replace(" ", "_"))
async def test_damage_is_found_and_put_right_if_it_can_be(stock: Stock, damage: Damage) -> None:
    engine = stock.engine
    await damage.plant(stock)
    found = await look(engine)
    for invariant, what, words in damage.said:
        assert any(v.invariant == invariant and v.id == about(stock, what) and words in v.detail for v in found), found
    assert len(found) == len(damage.said), found
    assert await look(engine, limit=1) == found, "pages of one find the same as one page"
    for _ in range(3):
        await repair(engine, await look(engine))
    left = await look(engine)
    assert (left == []) is damage.repaired, left
    answers = await repair(engine, left)
    assert all(type(answer) is not c.Repaired for answer in answers), "a repair says what it has not done"


async def large(engine: Engine, n: int = 250) -> Any:
    flow, ids = engine.new_id(), [engine.new_id() for _ in range(n)]
    for call in chunks(flow, [row(id, f"{i}a" if i else "") for i, id in enumerate(ids)], limits.FLOW_CHUNK_N):
        await engine.call(call)
    return flow


@pytest.mark.parametrize("limit", [10, 200])
async def test_members_of_a_large_flow_are_added_up_over_pages(bare: Engine, limit: int) -> None:
    flow = await large(bare)
    for _ in range(3):
        for job in await bare.claim():
            await bare.complete(job)
    assert await look(bare, limit=limit) == []
    key = f"{HEAD}:flow:{uuid_of(flow)}"
    await bare.command("HINCRBY", key, "C", 1)
    await bare.command("HINCRBY", key, "q", -1)
    found = await look(bare, limit=limit)
    assert [(v.invariant, v.id, v.detail) for v in found] == [
        ("I12", flow, "counts 0 queued, there are 1"), ("I12", flow, "counts 4 completed, there are 3"),
    ]  # fmt: skip
    assert [type(answer) for answer in await repair(bare, found)] == [c.Repaired, c.NothingWrong]
    assert await look(bare, limit=limit) == []
    assert (await info(bare, flow)).counts == {"blocked": 246, "ready": 1, "completed": 3}


async def test_a_large_flow_at_work_raises_no_alarm(bare: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """A member moves between every two pages."""
    await large(bare)
    whole = bare.backend.call

    async def call(args: Any) -> Any:
        if isinstance(args, c.CheckArgs):
            for job in await bare.claim():
                await bare.complete(job)
        return await whole(args)

    with monkeypatch.context() as patch:
        patch.setattr(bare.backend, "call", call)
        assert await look(bare, limit=50) == []
    assert await look(bare) == []


async def test_a_flow_of_many_pages_is_sound_while_it_is_purged(bare: Engine) -> None:
    flow = await large(bare)
    await run(bare, 300)
    await bare.advance(limits.RETENTION_AGE_MS)
    looks = 0
    while await bare.command("EXISTS", f"{HEAD}:flow:{uuid_of(flow)}"):
        await bare.tick(limit=50)
        assert await look(bare) == []
        looks += 1
    assert looks > 4
