"""Quotas: what a window and a number of places let start, to the millisecond; who else may not."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import Engine
from tests.lua.quotas import (
    Q0,
    admit,
    ask,
    asking,
    check,
    creation,
    left,
    made,
    owed,
    quota_id,
    read,
    settle,
)


async def replays(engine: Engine) -> int:
    return int((await engine.call(c.ReadHeaderArgs(partition=Q0))).fields.get("replays", "0"))


# ---- the record --------------------------------------------------------------------------------------


async def test_a_quota_is_created_once(engine: Engine) -> None:
    quota = await made(engine, rate=(100, 60), most=10)
    again = await engine.call(creation(rate=(7, 7)))
    assert again == c.QuotaPolicyAlreadySatisfied(quota), "who wants other limits changes them"
    assert await replays(engine) == 1
    status = await read(engine, quota)
    assert (status.name, status.namespace, status.created_at) == ("api", "default", engine.now)
    assert (status.window_seconds, status.max_requests_per_window, status.max_concurrent) == (60, 100, 10)
    assert (status.subjects, status.in_window, status.active, status.next_free_ms, status.waiting) == (0, 0, 0, 0, 0)


@pytest.mark.parametrize(("fields", "code"), [
    ({"rate": (1, 0)}, "invalid_quota_spec"),
    ({"rate": (-1, 1)}, "invalid_quota_spec"),
    ({"rate": (1, -1)}, "invalid_quota_spec"),
    ({"most": -1}, "invalid_quota_spec"),
    ({"rate": (limits.QUOTA_N + 1, 1)}, "invalid_quota_spec"),
    ({"rate": (1, limits.QUOTA_WINDOW_S + 1)}, "invalid_quota_spec"),
    ({"most": limits.QUOTA_N + 1}, "invalid_quota_spec"),
    ({"name": "a b"}, "invalid_input"),
    ({"namespace": ""}, "invalid_input"),
])  # fmt: skip
async def test_what_cannot_be_a_quota(engine: Engine, fields: dict[str, Any], code: str) -> None:
    fields = dict(fields)
    rate = fields.pop("rate", (1, 1))
    options = {"window_seconds": rate[1], "max_requests_per_window": rate[0], "max_concurrent": fields.pop("most", 0)}
    await engine.refused(code, creation(), **options, **fields)
    assert await left(engine) == set()


async def test_limits_change_and_what_is_not_named_stays(engine: Engine) -> None:
    quota = await made(engine, rate=(100, 60), most=10)
    changed = await engine.call(c.ChangeQuotaArgs(quota_policy_id=quota, max_concurrent=3))
    assert changed == c.QuotaChanged(60, 100, 3)
    assert await engine.call(c.ChangeQuotaArgs(quota_policy_id=quota, max_concurrent=3)) == changed
    assert await replays(engine) == 1
    changed = await engine.call(c.ChangeQuotaArgs(quota_policy_id=quota, max_requests_per_window=5, window_seconds=1))
    assert changed == c.QuotaChanged(1, 5, 3)
    await engine.refused("invalid_quota_spec", c.ChangeQuotaArgs(quota_policy_id=quota, window_seconds=0))
    await engine.refused("quota_policy_not_found", c.ChangeQuotaArgs(quota_policy_id=quota_id("no"), window_seconds=9))
    assert (await read(engine, quota)).max_requests_per_window == 5


async def test_quotas_are_listed_in_pages(engine: Engine) -> None:
    made_ids = sorted([await made(engine, name, most=1) for name in "abcde"])
    await admit(engine, made_ids[2], engine.new_id())
    seen: list[c.ListedQuota] = []
    cursor = None
    while True:
        page = await engine.call(c.ListQuotasArgs(partition=Q0, cursor=cursor, limit=2))
        seen += page.quotas
        cursor = page.cursor
        if cursor is None:
            break
    assert [row.quota_policy_id for row in seen] == made_ids
    assert [row.subjects for row in seen] == [0, 0, 1, 0, 0]
    assert await engine.refused("invalid_input", c.ListQuotasArgs(partition=Q0), limit=0) == "limit"
    await engine.refused("invalid_offset", c.ListQuotasArgs(partition=Q0, cursor="x"))


async def test_what_is_not_there_is_not_read(engine: Engine) -> None:
    await engine.refused("quota_policy_not_found", c.ReadQuotaArgs(quota_policy_id=quota_id()))
    quota = await made(engine, most=1)
    await engine.refused("invalid_input", c.ReadQuotaArgs(quota_policy_id=quota, key="two words"))
    await engine.bug("FCALL", "ff_read_quota", 2, f"ff:{Q0}", f"ff:{Q0}:absent", f"{Q0}:x", "")


# ---- the window --------------------------------------------------------------------------------------


async def test_a_window_is_exact_to_the_millisecond(engine: Engine) -> None:
    quota = await made(engine, rate=(2, 10))
    assert (await admit(engine, quota, engine.new_id())).state == "admitted"
    await engine.advance(3)
    assert (await admit(engine, quota, engine.new_id())).state == "admitted"
    late = engine.new_id()
    for wait in (9_997, 1):
        refused = await admit(engine, quota, late)
        assert (refused.state, refused.retry_after_ms) == ("rate", wait)
        status = await read(engine, quota)
        assert (status.in_window, status.next_free_ms) == (2, wait)
        await engine.advance(wait - 1)
    await engine.advance(1)
    assert (await read(engine, quota)).in_window == 1
    assert (await admit(engine, quota, late)).state == "admitted"
    refused = await admit(engine, quota, engine.new_id())
    assert (refused.state, refused.retry_after_ms) == ("rate", 3), "the second one leaves next"


async def test_after_a_smaller_rate_as_many_have_to_leave(engine: Engine) -> None:
    quota = await made(engine, rate=(5, 10))
    for _ in range(5):
        await admit(engine, quota, engine.new_id())
        await engine.advance(1_000)
    await engine.call(c.ChangeQuotaArgs(quota_policy_id=quota, max_requests_per_window=2))
    refused = await admit(engine, quota, engine.new_id())
    assert (refused.state, refused.retry_after_ms) == ("rate", 8_000), "five seconds after the first, four leave"
    await engine.advance(8_000)
    assert (await admit(engine, quota, engine.new_id())).state == "admitted"


async def test_each_key_has_a_window_of_its_own(engine: Engine) -> None:
    quota = await made(engine, rate=(1, 10))
    for key in ("t1", "t2", "-", "%23" + "0" * 32):
        assert (await admit(engine, quota, engine.new_id(), key=key)).state == "admitted"
        assert (await admit(engine, quota, engine.new_id(), key=key)).state == "rate"
        assert (await read(engine, quota, key)).in_window == 1
    assert (await read(engine, quota)).subjects == 4


async def test_rows_of_one_call_count_for_each_other(engine: Engine) -> None:
    quota = await made(engine, rate=(3, 10), most=2)
    one, two, three, four = (engine.new_id() for _ in range(4))
    rows = [asking(engine, quota, id) for id in (one, two, one, three, four)]
    other = asking(engine, await made(engine, "other", rate=(1, 1)), four)
    gone = asking(engine, quota_id("no"), four)
    states = [item.state for item in await ask(engine, *rows, other, gone)]
    assert states == ["admitted", "admitted", "already", "concurrency", "concurrency", "admitted", "not_found"]
    status = await read(engine, quota)
    assert (status.in_window, status.active) == (2, 2), "what is refused takes nothing"


async def test_the_same_lease_again_is_admitted_already(engine: Engine) -> None:
    """A lost answer is asked for again; it must not count twice."""
    quota, keyless = await made(engine, rate=(2, 10), most=2), await made(engine, "b", rate=(2, 10))
    id = engine.new_id()
    for one in (quota, keyless):
        before = await replays(engine)
        assert (await admit(engine, one, id)).state == "admitted"
        assert (await admit(engine, one, id)).state == "already"
        assert await replays(engine) == before + 1
        assert (await read(engine, one)).in_window == 1
    assert await settle(engine, quota, id) == []
    assert (await admit(engine, quota, id)).state == "already", "a call that was long on its way takes no place"
    assert (await read(engine, quota)).active == 0


# ---- places ------------------------------------------------------------------------------------------


async def test_so_many_run_at_once(engine: Engine) -> None:
    quota = await made(engine, most=2)
    one, two, three = (engine.new_id() for _ in range(3))
    assert [(await admit(engine, quota, id)).state for id in (one, two)] == ["admitted", "admitted"]
    refused = await admit(engine, quota, three)
    assert (refused.state, refused.retry_after_ms) == ("concurrency", limits.HALT_MS)
    await settle(engine, quota, one)
    assert (await admit(engine, quota, three)).state == "admitted"
    assert (await read(engine, quota)).active == 2


async def test_a_later_lease_of_the_same_execution_takes_over_its_place(engine: Engine) -> None:
    """A worker died; another has claimed its job before the end of the first lease was delivered."""
    quota = await made(engine, most=1)
    id = engine.new_id()
    await admit(engine, quota, id, 5)
    assert (await admit(engine, quota, id, 6)).state == "admitted"
    assert (await admit(engine, quota, id, 5)).state == "concurrency", "the first worker has lost it"
    await settle(engine, quota, id, 5)
    assert (await read(engine, quota)).active == 1, "the end of the first lease frees nothing of the second"
    await settle(engine, quota, id, 6)
    assert (await read(engine, quota)).active == 0
    assert await settle(engine, quota, id, 6) == [], "and twice is once"


async def test_what_did_not_start_gives_back_its_start(engine: Engine) -> None:
    quota = await made(engine, rate=(2, 10), most=2)
    one, two = engine.new_id(), engine.new_id()
    await admit(engine, quota, one, 5)
    await admit(engine, quota, two, 5)
    await settle(engine, quota, one, 5, undo=True)
    await settle(engine, quota, two, 5)
    status = await read(engine, quota)
    assert (status.in_window, status.active) == (1, 0)
    await settle(engine, quota, two, 4, undo=True)
    assert (await read(engine, quota)).in_window == 1, "the start of another lease stays"
    await settle(engine, quota, two, 5, undo=True)
    assert "subj" not in await left(engine)


async def test_rows_that_cannot_be_read_are_refused_alone(engine: Engine) -> None:
    quota = await made(engine, most=5)
    id = engine.new_id()
    good = asking(engine, quota, id)
    bad = {
        "key": asking(engine, quota, id, key="two words"), "execution_id": asking(engine, quota, "x"),
        "epoch": asking(engine, quota, id, 0), "quota_policy_id": asking(engine, f"{Q0}:x", id),
        "partition or adm": asking(engine, quota, id, adm="a b"), "until_ms": asking(engine, quota, id, until_ms="x"),
    }  # fmt: skip
    items = await ask(engine, *bad.values(), good, asking(engine, quota, engine.new_id(), adm="a", partition="{b:0}"))
    said = [f"invalid_input {what}" for what in bad] + ["", "invalid_input partition or adm"]
    assert [item.detail for item in items] == said
    assert [item.state for item in items] == ["error"] * 6 + ["admitted", "error"]


# ---- for programs that admit by themselves -------------------------------------------------------------


async def test_a_request_is_checked_and_recorded(engine: Engine) -> None:
    quota = await made(engine, rate=(2, 10), most=2)
    one, two, three = (engine.new_id() for _ in range(3))
    assert await engine.call(check(quota, one)) == c.Admitted()
    assert await engine.call(check(quota, one)) == c.AlreadyAdmitted()
    assert await replays(engine) == 1
    await engine.advance(4_000)
    assert await engine.call(check(quota, two)) == c.Admitted()
    assert await engine.call(check(quota, three)) == c.RateExceeded(6_000)
    await engine.advance(6_000)
    assert await engine.call(check(quota, three)) == c.ConcurrencyExceeded()
    for _ in range(2):
        assert await engine.call(c.ReleaseAdmissionArgs(at=quota, execution_id=one)) == c.Released()
    assert await engine.call(check(quota, three)) == c.Admitted()
    status = await read(engine, quota)
    assert (status.in_window, status.active) == (2, 2)


async def test_a_release_makes_the_next_request_another_start(engine: Engine) -> None:
    quota = await made(engine, rate=(3, 10))
    id = engine.new_id()
    for _ in range(3):
        assert await engine.call(check(quota, id)) == c.Admitted()
        await engine.call(c.ReleaseAdmissionArgs(at=quota, execution_id=id))
    assert await engine.call(check(quota, id)) == c.RateExceeded(10_000)


async def test_a_call_can_only_tighten(engine: Engine) -> None:
    quota = await made(engine, rate=(3, 10), most=3)
    one, two = engine.new_id(), engine.new_id()
    assert await engine.call(check(quota, one, rate=(9, 10), cap=9)) == c.Admitted()
    assert await engine.call(check(quota, two, cap=1)) == c.ConcurrencyExceeded()
    assert await engine.call(check(quota, two, rate=(1, 10))) == c.RateExceeded(10_000)
    assert await engine.call(check(quota, two, rate=(1, 2))) == c.RateExceeded(2_000)
    await engine.advance(2_000)
    assert await engine.call(check(quota, two, rate=(1, 2))) == c.Admitted()
    assert await engine.call(check(quota, engine.new_id(), rate=(9, 10))) == c.Admitted()
    assert await engine.call(check(quota, engine.new_id(), rate=(9, 10))) == c.RateExceeded(8_000)
    await engine.refused("invalid_quota_spec", check(quota, two, rate=(1, 11)))
    await engine.refused("invalid_quota_spec", check(await made(engine, "b", most=1), two, rate=(1, 1)))
    await engine.refused("invalid_quota_spec", check(quota, two), rate_limit=-1)
    await engine.refused("invalid_input", check(quota, two), jitter_ms=-1)
    await engine.refused("invalid_input", check(quota, "x"))
    await engine.refused("quota_policy_not_found", check(quota_id("no"), two))
    await engine.refused("invalid_input", c.ReleaseAdmissionArgs(at=quota, execution_id="x"))  # type: ignore[arg-type]


async def test_jitter_spreads_those_who_are_refused(engine: Engine) -> None:
    quota = await made(engine, rate=(1, 10))
    await engine.call(check(quota, engine.new_id()))
    ids = [engine.new_id() for _ in range(30)]
    answers = [await engine.call(check(quota, id, jitter_ms=1_000)) for id in ids]
    waits = [answer.retry_after_ms for answer in answers if isinstance(answer, c.RateExceeded)]
    assert all(10_000 <= wait <= 11_000 for wait in waits) and len(set(waits)) > 20
    again = [await engine.call(check(quota, id, jitter_ms=1_000)) for id in ids]
    assert again == answers, "the same request is told the same"


async def test_a_place_without_a_lease_is_released_by_name(engine: Engine) -> None:
    """Also when the quota has gone meanwhile."""
    quota = await made(engine, most=1)
    id = engine.new_id()
    await engine.call(check(quota, id))
    await engine.call(c.DeleteQuotaArgs(quota_policy_id=quota))
    await owed(engine)
    assert "run" in await left(engine)
    assert await engine.call(c.ReleaseAdmissionArgs(at=quota, execution_id=id)) == c.Released()
    assert not {"run", "subj", "quota"} & await left(engine)
