"""Turns of fairness keys that weigh more or less than others, and how a partition is told of weights."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from fractions import Fraction

import pytest

from ffcore import limits
from tests.lua.engine import P0, Engine, lane_told, told

UNIT = 16


async def weigh(engine: Engine, **weights: str) -> int:
    """Tell the partition; how many keys have a weight then."""
    await engine.call(told("weights:mail", weights))
    return int(await engine.command("HLEN", f"ff:{P0}:weights:1"))


def step(weight: str) -> Fraction:
    """What one job costs its key, in steps of 2^-9."""
    return Fraction(math.floor(UNIT / Fraction(weight) * 512 + Fraction(1, 2)), 512)


@pytest.mark.parametrize(
    "weights",
    [{"a": "3", "b": "1", "c": "0.5"}, {"a": "7", "b": "100", "c": "0.01"}, {"a": "1.5", "b": "1", "c": "33.3"}],
)
async def test_turns_are_those_of_a_clock_that_runs_by_weight(engine: Engine, weights: dict[str, str]) -> None:
    assert await weigh(engine, **weights) == sum(weight != "1" for weight in weights.values())
    want: dict[str, int] = {}
    for key, weight in weights.items():
        finish = Fraction(0)
        for _ in range(20):
            want[await engine.submit(fairness_key=key)] = math.floor(finish)
            finish += step(weight)
    got = {id: int((await engine.read(id)).fields["turn"]) for id in want}
    assert got == want
    claimed = [want[job.execution_id] for job in await engine.claim(limit=60)]
    assert claimed == sorted(want.values())


async def test_a_heavy_key_gets_so_many_turns_where_others_get_one(engine: Engine) -> None:
    await weigh(engine, big="3")
    of = {await engine.submit(fairness_key=key): key for key in ("big", "small", "other") for _ in range(30)}
    for _ in range(5):
        shares = Counter(of[job.execution_id] for job in await engine.claim(limit=10))
        assert abs(shares["big"] - 6) <= 1 and abs(shares["small"] - 2) <= 1, shares


async def test_turns_that_were_given_stay_when_weights_change(engine: Engine) -> None:
    ids = [await engine.submit(fairness_key="a") for _ in range(3)]
    await weigh(engine, a="16")
    ids += [await engine.submit(fairness_key="a") for _ in range(3)]
    assert [int((await engine.read(id)).fields["turn"]) for id in ids] == [0, 16, 32, 48, 49, 50]


async def test_an_aged_lanes_keys_weigh_too(engine: Engine) -> None:
    await engine.call(lane_told(aged_s=1))
    await weigh(engine, a="2")
    a = [await engine.submit(fairness_key="a") for _ in range(4)]
    b = [await engine.submit(fairness_key="b") for _ in range(4)]
    got = [job.execution_id for job in await engine.claim(limit=6)]
    assert set(got) == {*a, *b[:2]}


async def test_weights_are_replaced_as_a_whole(engine: Engine) -> None:
    assert await weigh(engine, a="2", b="3") == 2
    assert await weigh(engine, d="4") == 1
    digest = hashlib.sha1(b"d").hexdigest()[:12].encode()
    assert await engine.command("HGETALL", f"ff:{P0}:weights:1") in ([digest, b"4"], {digest: b"4"})
    assert await weigh(engine) == 0
    assert await engine.command("EXISTS", f"ff:{P0}:weights:1") == 0
    assert not (await engine.call(told("weights:nowhere", {}))).changed
    assert await engine.command("HGET", f"ff:{P0}:lanes", "nowhere") is None


@pytest.mark.parametrize("weight", ["0", "0.009", "101", "-1", "1e1", "x", ".5"])
async def test_a_weight_that_is_none_is_refused(engine: Engine, weight: str) -> None:
    args = told("weights:mail", {"a": "2", "b": weight})
    assert await engine.refused("invalid_input", args) == "a weight is a number from 0.01 to 100"
    assert await engine.command("EXISTS", f"ff:{P0}:weights:1") == 0


async def test_what_weights_are_for_is_looked_at(engine: Engine) -> None:
    await engine.refused("invalid_input", told("weights:mail", {"": "2"}))
    await engine.refused("invalid_input", told("weights:a b", {"a": "2"}))
    await engine.refused("invalid_input", told("weights:mail", {"a": "2"}), partition="{w:0}")
    full = {f"k{n}": "2" for n in range(limits.WEIGHTS_N)}
    assert await weigh(engine, **full) == limits.WEIGHTS_N
    assert "1000 keys" in await engine.refused("invalid_input", told("weights:mail", {**full, "a": "2"}))


async def test_a_full_table_of_lanes_takes_no_weights(engine: Engine) -> None:
    rows = [word for n in range(limits.LANES_N + 1) for word in (f"#x{n}", "y", f"x{n}", "z")]
    await engine.command("HSET", f"ff:{P0}:lanes", *rows)
    await engine.refused("too_many_names", told("weights:mail", {"a": "2"}))
    await engine.command("DEL", f"ff:{P0}:lanes")
