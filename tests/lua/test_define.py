"""Malformed calls: an FFBUG error reply, and nothing written. What the binding would never send, others might."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from ffcore.errors import NotInitialised
from tests.lua.engine import P0, P1, Engine, completion, library_of

ID = f"{P0}:00000000-0000-7000-8000-000000000000"
PAIR = (f"ff:{P0}", f"ff:{P0}:absent")
RENEW: tuple[Any, ...] = (ID, 0, "=a 1 b", 30_000, 60_000)


def fcall(function: str, keys: tuple[str, ...], *argv: Any) -> tuple[Any, ...]:
    return ("FCALL", function, len(keys), *keys, *argv)


@pytest.mark.parametrize(
    "keys",
    [(), PAIR[:1], (*PAIR, *PAIR), (*PAIR, PAIR[0]), (PAIR[1], PAIR[0]), (PAIR[0], PAIR[0]), (PAIR[0],
    f"ff:{P1}:absent"),
     ("ff:{fp:0", "ff:{fp:0:absent"), ("xx:{fp:0}", "xx:{fp:0}:absent"), ("ff:{fp:x}", "ff:{fp:x}:absent"),
     ("ff:{fp:0}x", "ff:{fp:0}x:absent")],
)  # fmt: skip
async def test_keys_that_are_no_partition_are_refused(engine: Engine, keys: tuple[str, ...]) -> None:
    await engine.bug(*fcall("ff_renew_lease", keys, *RENEW))


async def test_a_partition_nobody_initialised_is_not_an_empty_one(engine: Engine) -> None:
    answer = await engine.raw("ff_renew_lease", "{fp:7}", *RENEW)
    assert answer == [b"error", b"not_initialised", b"{fp:7}"]


@pytest.mark.parametrize("argv", [(), RENEW[:4], (*RENEW, "more")])
async def test_a_wrong_number_of_arguments_is_refused(engine: Engine, argv: tuple[Any, ...]) -> None:
    await engine.bug(*fcall("ff_renew_lease", PAIR, *argv))


@pytest.mark.parametrize(
    ("at", "value", "said"),
    [
        (0, "", "execution_id"), (0, ID[:-1], "execution_id"), (0, ID + "0", "execution_id"), (0, ID.replace("fp:0",
        "fp:1"), "execution_id"),
        (0, ID[:-4] + "{x}y", "execution_id"), (0, ID[:-2] + "\n0", "execution_id"), (0, ID[:-1] + "g", "execution_id"),
        (0, f"{P0}:../../etc/passwd/000000000000000000", "execution_id"), (0, ID[7:], "execution_id"),
        (1, "", "attempt_index"), (1, "x", "attempt_index"), (1, "1.5", "attempt_index"), (1, "1e3", "attempt_index"),
        (1, "0x10", "attempt_index"), (1, " 1", "attempt_index"), (1, "--1", "attempt_index"), (1, "9007199254740992",
        "attempt_index"),
        (1, "9" * 30, "attempt_index"), (1, "nan", "attempt_index"), (2, "a 1 b", "fence"), (2, "=a", "fence"),
        (2, "=", "fence"), (3, "-", "lease_ttl_ms"),
    ],
)  # fmt: skip
async def test_an_argument_that_cannot_be_read_is_refused_by_name(
    engine: Engine, at: int, value: Any, said: str
) -> None:
    argv = list(RENEW)
    argv[at] = value
    assert said in await engine.bug(*fcall("ff_renew_lease", PAIR, *argv))


@pytest.mark.parametrize("shape", ["{0} {1}", "{0} {1} {2} ", " 0 ", "{0} {1} {2} {2}", "{0} x {2}", "{0}  {1} {2}"])
async def test_a_fence_of_another_shape_is_nobodys(engine: Engine, shape: str) -> None:
    job = await engine.running()
    text = shape.format(job.lease_id, job.lease_epoch, job.attempt_id)
    answer = await engine.raw("ff_renew_many", P0, 30_000, 1, job.execution_id, text)
    assert answer[2][0][:2] == [b"error", b"stale_lease"]
    never = await engine.submit()
    answer = await engine.raw("ff_renew_many", P0, 30_000, 1, never, text)
    assert answer[2][0][:2] == [b"error", b"stale_lease"]


@pytest.mark.parametrize("value", ["-1", "9007199254740991", "0"])
async def test_the_whole_range_of_integers_is_read(engine: Engine, value: str) -> None:
    argv = list(RENEW)
    argv[1] = value
    assert (await engine.raw("ff_renew_lease", P0, *argv))[:2] == [b"error", b"execution_not_found"]


@pytest.mark.parametrize("value", ["", "2", "true", "01"])
async def test_a_bool_is_a_nought_or_a_one(engine: Engine, value: str) -> None:
    assert "force" in await engine.bug(*fcall("ff_tick", PAIR, "t1", 5, value))


@pytest.mark.parametrize("value", ["", "{", "[1,", "nope", "[" * 2_000])
async def test_json_that_cannot_be_read_is_refused(engine: Engine, value: str) -> None:
    assert "lanes" in await engine.bug(*fcall("ff_claim_batch", PAIR, value, "[]", 1, "w.s.1", "w", "w", 30_000, ""))


# ---- rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rows",
    [(), ("",), ("x",), (2, ID, "a 1 b"), (1, ID), (1, ID, "a 1 b", "more"), (0, ID), ("-1",), ("0x1", ID, "a 1 b"),
     ("1.5", ID, "a 1 b", ID), ("1e0", ID, "a 1 b"), (" 1", ID, "a 1 b")],
)  # fmt: skip
async def test_rows_that_do_not_match_their_count_are_refused(engine: Engine, rows: tuple[Any, ...]) -> None:
    await engine.bug(*fcall("ff_renew_many", PAIR, 30_000, *rows))


async def test_rows_are_bounded(engine: Engine) -> None:
    many = [ID, "a 1 b"] * limits.ROWS_N
    assert len((await engine.raw("ff_renew_many", P0, 30_000, limits.ROWS_N, *many))[2]) == limits.ROWS_N
    said = await engine.bug(*fcall("ff_renew_many", PAIR, 30_000, limits.ROWS_N + 1, *many, ID, "a 1 b"))
    assert str(limits.ROWS_N) in said


async def test_a_bad_value_in_a_row_costs_only_that_row(engine: Engine) -> None:
    job = await engine.running()
    rows = (job.execution_id, f"{job.lease_id} {job.lease_epoch} {job.attempt_id}", ID[:-1], "a 1 b", ID, "nothing")
    answer = await engine.raw("ff_renew_many", P0, 30_000, 3, *rows)
    assert [item[:2] for item in answer[2]] == [
        [b"renewed", b""],
        [b"error", b"invalid_input"],
        [b"error", b"invalid_input"],
    ]


# ---- many partitions, and none -----------------------------------------------------------------------


async def test_a_function_of_many_partitions_takes_whole_pairs_only(engine: Engine) -> None:
    other = (f"ff:{P1}", f"ff:{P1}:absent")
    assert len((await engine.command(*fcall("ff_tick", (*PAIR, *other), "t1", 5, 0)))[1]) == 2
    await engine.bug(*fcall("ff_tick", (*PAIR, other[0]), "t1", 5, 0))
    await engine.bug(*fcall("ff_tick", (), "t1", 5, 0))


async def test_one_missing_partition_refuses_the_whole_call(engine: Engine) -> None:
    keys = (*PAIR, "ff:{fp:9}", "ff:{fp:9}:absent")
    assert (await engine.command(*fcall("ff_tick", keys, "t1", 5, 0)))[:2] == [b"error", b"not_initialised"]
    assert "ticker" not in (await engine.call(c.ReadHeaderArgs(partition=P0))).fields


async def test_the_library_says_what_it_is(engine: Engine) -> None:
    loaded = await engine.backend.loaded()
    ours = library_of()
    assert loaded is not None and (loaded.version, loaded.sha) == (ours.version, ours.sha)
    assert loaded.signatures.keys() == ours.signatures.keys()
    assert loaded.signatures["ff_renew_lease"]["args"][0] == "execution_id:id"
    with_argument = ("FCALL_RO", "ff_library", 0, "x")
    await engine.bug(*with_argument)


async def test_a_wiped_store_does_not_look_like_an_empty_queue(engine: Engine) -> None:
    """Functions survive FLUSHALL, data does not."""
    job = await engine.running()
    await engine.command("FLUSHALL")
    await engine.command("SET", "ff:test:clock", engine.now)
    with pytest.raises(NotInitialised):
        await engine.claim()
    with pytest.raises(NotInitialised):
        await engine.call(completion(job))
