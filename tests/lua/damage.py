"""A stock of executions, one in each situation, and the damages that a check must find in it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import ffcore.contracts as c
from ffcore.ids import uuid_of
from ffcore.policy import ExecutionPolicy, FixedBackoff
from tests.lua import invariants
from tests.lua.engine import P0, START_MS, Engine, cancel, retries, unclaim
from tests.lua.test_claim import needs
from tests.lua.test_grant import issue
from tests.lua.test_stream import frame, writing
from tests.lua.test_waiter import waiting

HEAD = f"ff:{P0}"
SHORT = invariants.field_names()


class Stock:
    """One execution in each situation that the damages below start from."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    async def fill(self) -> Stock:
        engine = self.engine
        submit = engine.submit
        self.ended = await submit(lane_id="ended")
        (job,) = await engine.claim(lanes=["ended"])
        await engine.complete(job, b"r" * 100)
        self.short = await submit(lane_id="ended")
        (job,) = await engine.claim(lanes=["ended"])
        await engine.complete(job, b"short")
        self.retried = await submit(lane_id="retried", policy=retries(3, backoff=FixedBackoff(delay_ms=60_000)))
        (job,) = await engine.claim(lanes=["retried"])
        await engine.fail(job)
        self.asked = await submit(lane_id="asked", execution_deadline_at=engine.now + 90_000)
        (job,) = await engine.claim(lanes=["asked"])
        await engine.call(cancel(self.asked))
        self.running = await submit()
        (self.job,) = await engine.claim()
        self.unknown = await submit(lane_id="unknown")
        (job,) = await engine.claim(lanes=["unknown"])
        await engine.call(unclaim(job, "unknown_task"))
        self.held = await submit(lane_id="held", execution_kind="halt")
        await engine.call(c.HoldArgs(partition=P0, what="task:halt", reason=""))
        assert await engine.claim(lanes=["held"]) == []
        self.delayed = await submit(lane_id="delayed", delay_until=engine.now + 60_000)
        self.picky = await submit(lane_id="picky", policy=ExecutionPolicy(**needs("gpu")))
        self.granted = await submit(lane_id="granted")
        await engine.call(issue(self.granted))
        self.tagged = await submit(lane_id="tagged", tags={"a.b": "c"})
        self.awaited = await submit(lane_id="awaited")
        await engine.call(waiting([self.awaited], "x"))
        await engine.call(waiting([self.awaited], "y"))
        self.purged = await submit(execution_id=engine.new_id(key="k"), lane_id="purged")
        (job,) = await engine.claim(lanes=["purged"])
        await engine.complete(job)
        await engine.advance(1)
        await engine.call(c.PurgeArgs(partition=P0, lane_id="purged", outcome="completed", before_ms=engine.now))
        self.streamed = await submit(lane_id="streamed")
        (job,) = await engine.claim(lanes=["streamed"])
        for mode in ("append", "best_effort"):
            await engine.call(frame(job, mode=mode))
        await engine.call(writing(job))
        await engine.complete(job, None)
        self.ready = await submit()
        self.last = await submit()
        lanes = await engine.command("HGETALL", f"{HEAD}:lanes")
        pairs = lanes.items() if isinstance(lanes, dict) else zip(lanes[::2], lanes[1::2], strict=True)
        self.lane = {name.decode(): number.decode() for name, number in pairs}
        return self

    def key(self, kind: str, id: Any) -> str:
        return f"{HEAD}:{kind}:{uuid_of(id)}"

    def index(self, lane: str, state: str) -> str:
        return f"{HEAD}:i:{self.lane[lane]}:{state}"

    def queue(self, lane: str = "mail", cap: str = "-") -> str:
        return f"{HEAD}:q:{self.lane[lane]}:{cap}"

    async def set(self, id: Any, **fields: Any) -> None:
        """Fields of a record by their long names; None takes one away."""
        for name, value in fields.items():
            if value is None:
                await self.engine.command("HDEL", self.key("x", id), SHORT[name])
            else:
                await self.engine.command("HSET", self.key("x", id), SHORT[name], value)

    async def owe(self, row: str, text: str) -> None:
        """A row of the outbox whose timer was lost."""
        await self.do("HSET", HEAD, "o{b:0}", 5)
        await self.do("HSET", f"{HEAD}:outbox", row, text)

    async def do(self, *words: Any) -> None:
        await self.engine.command(*words)


class Damage(NamedTuple):
    """What is done to a store, and what a check must say of it."""

    name: str
    plant: Callable[[Stock], Awaitable[Any]]
    said: list[tuple[str, str, str]]
    """Invariant, what of the stock it is about (`-`: the partition), words of the detail."""
    repaired: bool


def damage(name: str, plant: Callable[[Stock], Awaitable[Any]], *said: str, beyond: bool = False) -> Damage:
    """`said`: ``I2 ready not in :q:`` and so on. `beyond`: no repair brings back a sound store."""
    rows = [tuple(text.split(" ", 2)) for text in said]
    return Damage(name, plant, rows, not beyond)  # type: ignore[arg-type]


def about(stock: Stock, what: str) -> str:
    """The id a violation must carry."""
    return P0 if what == "-" else f"{P0}:{GHOST}" if what == "ghost" else getattr(stock, what)


LEFT_OVER = """
redis.call("XADD", ARGV[1] .. "t:" .. ARGV[2] .. ":0", "1-1", "t", "x")
redis.call("XADD", ARGV[1] .. "b:" .. ARGV[2] .. ":0", "1-1", "t", "x")
redis.call("HSET", ARGV[1] .. "n:" .. ARGV[2], "list", "0:1-1")
redis.call("HSET", ARGV[1] .. "y:" .. ARGV[2], "version", "1")
"""
"""What a purge that was cut short would leave of a job's streams."""
GHOST = "ffffffff-0000-7000-8000-00000000dead"


def later(stock: Stock, ms: int = 5_000) -> int:
    return stock.engine.now + ms


STANDING = (
    "ended short retried asked running unknown held delayed picky granted tagged awaited streamed ready last".split()
)

DAMAGES = [
    # I1
    damage(
        "a state nobody knows",
        lambda s: s.set(s.delayed, state="dozing"),
        "I1 delayed no state",
        "I17 delayed its record says dozing",
        beyond=True,
    ),
    damage("no task", lambda s: s.set(s.ready, task=None), "I1 ready without task", beyond=True),
    damage("no digest", lambda s: s.set(s.ready, digest=None), "I1 ready without digest", beyond=True),
    damage("no turn", lambda s: s.set(s.ready, turn=None), "I1 ready without turn", beyond=True),
    damage(
        "a turn that is no number", lambda s: s.set(s.ready, turn="soon"), "I1 ready turn is no number", beyond=True
    ),
    damage(
        "a reason that does not go with the state",
        lambda s: s.set(s.unknown, reason="waiting_for_signal"),
        "I1 unknown blocked with reason",
        "I5 unknown disagree",
        "I5 unknown is set",
        "I3 unknown :unknown",
        beyond=True,
    ),
    damage(
        "a reason where there is none",
        lambda s: s.set(s.awaited, reason="waiting_for_delay"),
        "I1 awaited ready with reason",
        beyond=True,
    ),
    damage(
        "an unknown kind of next attempt",
        lambda s: s.set(s.retried, next="again"),
        "I1 retried no known kind",
        "I1 retried next again",
        beyond=True,
    ),
    damage(
        "a backoff that is no retry", lambda s: s.set(s.retried, next="reclaim"), "I1 retried next reclaim", beyond=True
    ),
    damage(
        "a lane without a name",
        lambda s: s.set(s.ready, lane="99"),
        "I1 ready lane 99",
        "I2 ready not in :q:99:-",
        "I2 ready also in",
        beyond=True,
    ),
    damage("a rare field without the mark", lambda s: s.set(s.delayed, more=None), "I1 delayed reason"),
    damage(
        "a policy that is kept nowhere",
        lambda s: s.do("HDEL", f"{HEAD}:policies", "#1"),
        "I1 retried its policy",
        beyond=True,
    ),
    damage(
        "a reason after the end",
        lambda s: s.set(s.ended, reason="waiting_for_delay", more="1"),
        "I1 ended still has reason",
    ),
    # I2, I3
    damage("not in its queue", lambda s: s.do("ZREM", s.queue(), uuid_of(s.ready)), "I2 ready not in :q:"),
    damage(
        "not in its index",
        lambda s: s.do("ZREM", s.index("delayed", "delayed"), uuid_of(s.delayed)),
        "I2 delayed not in :i:",
    ),
    damage("a score of another", lambda s: s.do("ZADD", s.queue(), 7, uuid_of(s.ready)), "I2 ready stands at 7"),
    damage("another priority", lambda s: s.set(s.awaited, priority="3"), "I2 awaited stands at"),
    damage("in two queues", lambda s: s.do("ZADD", s.queue("delayed"), 7, uuid_of(s.ready)), "I2 ready also in :q:"),
    damage(
        "in an index of another state",
        lambda s: s.do("ZADD", s.index("mail", "failed"), 7, uuid_of(s.ready)),
        "I2 ready also in :i:",
    ),
    damage(
        "a set no worker can know", lambda s: s.do("DEL", f"{HEAD}:caps:{s.lane['picky']}"), "I2 picky capability set"
    ),
    damage("a member without a record", lambda s: s.do("ZADD", s.queue(), 7, GHOST), "I3 ghost no record"),
    damage(
        "among the held and not held",
        lambda s: s.do("ZADD", f"{HEAD}:held", 0, uuid_of(s.ready)),
        "I3 ready among :held",
    ),
    damage(
        "held and not among the held", lambda s: s.do("ZREM", f"{HEAD}:held", uuid_of(s.held)), "I3 held held task:halt"
    ),
    damage(
        "among the unknown without a record", lambda s: s.do("ZADD", f"{HEAD}:unknown", 7, GHOST), "I3 ghost :unknown"
    ),
    damage(
        "a lane that is named one way",
        lambda s: s.do("HDEL", f"{HEAD}:lanes", "held"),
        "I3 - do not lead to each other",
    ),
    damage(
        "two lanes of one number",
        lambda s: s.do("HSET", f"{HEAD}:lanes", "more", s.lane["held"]),
        "I3 - do not lead to each other",
        beyond=True,
    ),
    # I4
    damage(
        "running and not among the leases",
        lambda s: s.do("ZREM", f"{HEAD}:leases", uuid_of(s.running)),
        "I4 running not in :leases",
        "I6 - lane mail counts 1 running, there are 0",
    ),
    damage(
        "a lease of one that does not run",
        lambda s: s.do("ZADD", f"{HEAD}:leases", 7, uuid_of(s.ready)),
        "I4 ready also in :leases",
        "I6 - lane mail counts 1 running, there are 2",
    ),
    damage(
        "a lease that ends at another time",
        lambda s: s.do("ZADD", f"{HEAD}:leases", 7, uuid_of(s.running)),
        "I4 running stands at 7",
    ),
    damage("half a fence", lambda s: s.set(s.retried, lease_id=None), "I4 retried half a fence", beyond=True),
    damage("no lease", lambda s: s.set(s.running, lease_id=None), "I1 running without lease_id", beyond=True),
    # I5
    damage(
        "no timer",
        lambda s: s.do("ZREM", f"{HEAD}:timers", f"delay:{uuid_of(s.delayed)}"),
        "I5 delayed timer delay is not set",
    ),
    damage(
        "a timer of another state",
        lambda s: s.do("ZADD", f"{HEAD}:timers", 7, f"delay:{uuid_of(s.ready)}"),
        "I5 ready timer delay is due at 7",
        "I5 ready timer delay is set",
    ),
    damage(
        "a timer that is late",
        lambda s: s.do("ZADD", f"{HEAD}:timers", 7, f"grant:{uuid_of(s.granted)}"),
        "I5 granted timer grant is due at 7",
    ),
    damage(
        "no deadline",
        lambda s: s.do("ZREM", f"{HEAD}:timers", f"deadline:{uuid_of(s.asked)}"),
        "I5 asked timer deadline",
    ),
    damage(
        "a cancel nobody carries out",
        lambda s: s.do("ZREM", f"{HEAD}:timers", f"cancel_grace:{uuid_of(s.asked)}"),
        "I5 asked timer cancel_grace",
    ),
    damage(
        "an unknown task nobody fails",
        lambda s: s.do("ZREM", f"{HEAD}:timers", f"unknown_task:{uuid_of(s.unknown)}"),
        "I5 unknown disagree",
    ),
    damage(
        "an unknown task nobody finds",
        lambda s: s.do("ZREM", f"{HEAD}:unknown", uuid_of(s.unknown)),
        "I5 unknown disagree",
    ),
    damage(
        "a timer of nobody", lambda s: s.do("ZADD", f"{HEAD}:timers", later(s), f"delay:{GHOST}"), "I3 ghost :timers"
    ),
    damage(
        "a timer of no kind",
        lambda s: s.do("ZADD", f"{HEAD}:timers", later(s), "nap:x"),
        "I5 - nothing handles",
        beyond=True,
    ),
    damage(
        "an effect that is never delivered",
        lambda s: s.owe("{b:0}/0/5", "{b:0} k b"),
        "I5 - never delivered",
    ),
    damage("a timer of no effect", lambda s: s.do("ZADD", f"{HEAD}:timers", later(s), "outbox:r.1.1"), "I5 - no row"),
    damage("a waiter after the end", lambda s: s.set(s.ended, waiter="x 1", more="1"), "I5 ended still has waiter"),
    damage("a grant after the claim", lambda s: s.set(s.running, grant="w", more="1"), "I5 running grant"),
    # I6
    damage(
        "a running count too high",
        lambda s: s.do("HINCRBY", HEAD, f"a{s.lane['mail']}", 1),
        "I6 - counts 2 running, there are 1",
    ),
    damage("a count of holds", lambda s: s.do("HSET", HEAD, "holds", 2), "I6 - counts 2 holds, there are 1"),
    # I7
    damage(
        "a gap among the attempts",
        lambda s: s.do("RPUSH", s.key("a", s.retried), "2 a w 1 2 ended_failure error"),
        "I7 retried attempt 2 was closed after attempt 0",
        "I7 retried the last one closed is 2",
        beyond=True,
    ),
    damage(
        "an attempt nobody closed",
        lambda s: s.do("DEL", s.key("a", s.retried)),
        "I7 retried the last one closed is -1",
        beyond=True,
    ),
    damage(
        "an attempt that ended in no way",
        lambda s: s.do("LSET", s.key("a", s.retried), 0, "0 a w 1 2 melted -"),
        "I7 retried melted",
        beyond=True,
    ),
    damage(
        "an attempt before its time",
        lambda s: s.do("LSET", s.key("a", s.retried), 0, "0 a w 2 1 ended_failure -"),
        "I7 retried before it started",
        beyond=True,
    ),
    damage(
        "an attempt nobody can read",
        lambda s: s.do("LSET", s.key("a", s.retried), 0, "what"),
        "I7 retried cannot be read",
        beyond=True,
    ),
    damage(
        "attempts of one that was never claimed",
        lambda s: s.do("RPUSH", s.key("a", s.ready), "0 a w 1 2 ended_failure -"),
        "I7 ready never claimed",
        beyond=True,
    ),
    # I8
    damage(
        "an epoch that fell",
        lambda s: s.set(s.running, lease_epoch="5"),
        "I8 running its record says 5",
        "I20 running started_at 5",
        beyond=True,
    ),
    # I9
    damage(
        "a result that is gone", lambda s: s.do("DEL", s.key("r", s.ended)), "I9 ended its result is gone", beyond=True
    ),
    damage("a result nobody knows of", lambda s: s.do("SET", s.key("r", s.short), "?"), "I9 short does not know"),
    damage("a result without success", lambda s: s.set(s.delayed, result="x"), "I9 delayed with a result", beyond=True),
    # I10
    damage(
        "a record that is gone",
        lambda s: s.do("DEL", s.key("x", s.awaited)),
        "I10 awaited does not exist",
        "I3 awaited no record",
        "I18 awaited :p:",
        "I18 awaited :w:",
        beyond=True,
    ),
    # I17
    damage(
        "a move nobody told of",
        lambda s: s.do("XTRIM", f"{HEAD}:ev", "MAXLEN", 1),
        *(f"I17 {name} never told" for name in STANDING if name != "last"),
        beyond=True,
    ),
    damage(
        "a move there is not",
        lambda s: s.do(
            "XADD",
            f"{HEAD}:ev",
            "MAXLEN",
            9_999,
            f"{s.engine.now}-*",
            "e",
            f"{uuid_of(s.ready)} ready suspended 0 - 1 - x",
        ),
        "I17 ready no move there is",
        beyond=True,
    ),
    damage(
        "a move from elsewhere",
        lambda s: s.do("XADD", f"{HEAD}:ev", f"{s.engine.now}-*", "e", f"{uuid_of(s.ready)} delayed ready 0 - 1 - x"),
        "I17 ready the feed had it ready",
        beyond=True,
    ),
    # I18
    damage("no payload", lambda s: s.do("DEL", s.key("p", s.ready)), "I18 ready no payload", beyond=True),
    damage("a payload of nobody", lambda s: s.do("SET", f"{HEAD}:p:{GHOST}", "x"), "I18 ghost its record is gone"),
    damage("a detail nobody knows of", lambda s: s.set(s.tagged, detail=None), "I18 tagged detail hash"),
    damage(
        "a name that nothing gives",
        lambda s: s.do("SET", f"{HEAD}:junk:1", "x"),
        "I18 - nothing gives the name",
        beyond=True,
    ),
    damage(
        "a key of another type",
        lambda s: s.do("SET", s.key("d", s.ready), "x"),
        "I18 - is a string and should be a hash",
        "I18 ready detail hash",
        beyond=True,
    ),
    damage("frames nobody knows of", lambda s: s.set(s.streamed, streams=None), "I18 streamed in attempt 0 last"),
    damage(
        "frames whose places are gone",
        lambda s: s.do("DEL", s.key("n", s.streamed)),
        "I18 streamed the record says 0",
        "I18 streamed :t:",
        "I18 streamed :b:",
    ),
    damage(
        "frames of an attempt that had none",
        lambda s: s.do("XADD", f"{s.key('t', s.streamed)}:7", "1-1", "t", "x", "p", "x"),
        "I18 streamed is not known to have frames",
    ),
    damage(
        "frames and a summary of nobody",
        lambda s: s.do("EVAL", LEFT_OVER, 0, f"{HEAD}:", GHOST),
        "I18 ghost :t:",
        "I18 ghost :b:",
        "I18 ghost :n:",
        "I18 ghost :y:",
    ),
    damage("a TTL", lambda s: s.do("PEXPIRE", s.key("p", s.ready), 9_000_000), "I18 - carries a TTL"),
    damage("a TTL on the header", lambda s: s.do("PEXPIRE", HEAD, 9_000_000), "I18 - carries a TTL"),
    damage(
        "an index of no lane",
        lambda s: s.do("ZADD", f"{HEAD}:i:99:failed", 7, GHOST),
        "I18 - lane 99",
        "I3 ghost no record",
    ),
    damage(
        "what ended and stays",
        lambda s: s.do("ZREM", f"{HEAD}:reap", f"lane:{s.lane['ended']}"),
        "I18 ended nothing will ever purge",
        "I18 short nothing will ever purge",
    ),
    damage("a lane that stays", lambda s: s.do("ZREM", f"{HEAD}:reap", f"idle:{s.lane['ended']}"), "I18 - is kept"),
    damage("tombstones that stay", lambda s: s.do("ZREM", f"{HEAD}:reap", f"tomb:{s.purged[-3:]}"), "I18 - tombstones"),
    damage("a claim memory that stays", lambda s: s.do("ZREM", f"{HEAD}:reap", "claim:w1.s0"), "I18 - claim memory"),
    damage(
        "waiters that stay", lambda s: s.do("ZREM", f"{HEAD}:reap", f"waiters:{uuid_of(s.awaited)}"), "I18 - waiters of"
    ),
    damage(
        "workers nobody rings",
        lambda s: s.do("ZADD", f"{HEAD}:park:{s.lane['mail']}:0123456789ab", later(s), "w1"),
        "I18 - nobody remembers",
    ),
    damage(
        "a worker nobody knows", lambda s: s.do("SET", f"{HEAD}:worker:{'0' * 40}", "{}"), "I18 - not on the roster"
    ),
    # I20
    damage("a start in the future", lambda s: s.set(s.ready, created_at=later(s)), "I20 ready later than", beyond=True),
    damage(
        "an end before the start",
        lambda s: s.set(s.short, created_at=START_MS - 9, lease_epoch=START_MS + 7),
        "I20 short later than",
        "I20 short before it started",
        "I8 short its record says",
        beyond=True,
    ),
    damage(
        "a time that ran back",
        lambda s: s.do("HSET", HEAD, "hwm", START_MS - 9),
        "I20 - its feed is ahead",
        beyond=True,
    ),
]
