"""Unique keys: one execution holds a key; what ends that, and what happens when whoever took it dies."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import ids, limits
from ffcore.ids import uuid_of
from tests.lua.engine import P0, Engine
from tests.lua.quotas import Q0, left, owed, post

SCOPES = ("queued", "active", "window", "forever")


def unique_id(key: str = "order-81") -> str:
    return f"{Q0}:{ids.uuid8(b'unique' + key.encode())}"


def taking(id: Any, scope: str = "queued", window_ms: int = 0, **options: Any) -> c.TakeUniqueArgs:
    if scope == "window":
        window_ms = window_ms or 10_000
    return c.TakeUniqueArgs(unique_id=unique_id(), execution_id=id, scope=scope, window_ms=window_ms, **options)


async def take(engine: Engine, id: Any, scope: str = "queued", **options: Any) -> bool:
    return isinstance(await engine.call(taking(id, scope, **options)), c.UniqueTaken)


async def holder(engine: Engine) -> str | None:
    answer = await engine.call(c.ReadUniqueArgs(unique_id=unique_id()))
    return answer.execution_id if isinstance(answer, c.UniqueHeld) else None


async def free(engine: Engine, id: Any) -> None:
    """Its execution has let go of it: a row of its outbox."""
    assert await post(engine, "free", f"{uuid_of(unique_id())} {id}") == []


async def verified(engine: Engine, id: Any, taken: int, held: bool, scope: str = "queued") -> None:
    assert await post(engine, "verified", f"u {uuid_of(unique_id())} {scope} {id} {taken} {int(held)}") == []


def question(engine: Engine, id: Any, taken: int, scope: str = "queued") -> tuple[str, str, str]:
    return P0, "verify", f"{Q0} u {uuid_of(unique_id())} {scope} {id} {taken}"


@pytest.mark.parametrize("scope", SCOPES)
async def test_one_holds_a_key_and_the_next_hears_who(engine: Engine, scope: str) -> None:
    one, two = engine.new_id(), engine.new_id()
    until = engine.now + 10_000 if scope == "window" else 0
    assert await engine.call(taking(one, scope)) == c.UniqueTaken(True, until)  # type: ignore[arg-type]
    assert await engine.call(taking(two, scope)) == c.UniqueHeld(one, scope, until)  # type: ignore[arg-type]
    await engine.advance(5_000)
    assert await engine.call(taking(one, scope)) == c.UniqueTaken(False, until)  # type: ignore[arg-type]
    assert await engine.call(taking(one, "forever")) == c.UniqueTaken(False, until)  # type: ignore[arg-type]
    assert await engine.call(c.ReadUniqueArgs(unique_id=unique_id())) == c.UniqueHeld(one, scope, until)  # type: ignore[arg-type]
    replays = (await engine.call(c.ReadHeaderArgs(partition=Q0))).fields["replays"]
    assert replays == "2", "an answer that repeats an earlier one writes"


async def test_who_took_it_in_vain_gives_it_back(engine: Engine) -> None:
    """It was taken for an execution that turned out to exist already."""
    one, two = engine.new_id(), engine.new_id()
    await take(engine, one, "window")
    assert await engine.call(c.DropUniqueArgs(unique_id=unique_id(), execution_id=two)) == c.UniqueNotHeld()
    assert await engine.call(c.DropUniqueArgs(unique_id=unique_id(), execution_id=one)) == c.UniqueDropped()
    assert await engine.call(c.DropUniqueArgs(unique_id=unique_id(), execution_id=one)) == c.UniqueNotHeld()
    assert await engine.call(c.ReadUniqueArgs(unique_id=unique_id())) == c.UniqueFree()
    assert await left(engine) == set()


async def test_a_window_ends_to_the_millisecond_and_leaves_nothing(engine: Engine) -> None:
    one, two = engine.new_id(), engine.new_id()
    await take(engine, one, "window")
    await engine.advance(9_999)
    assert not await take(engine, two, "window")
    await engine.advance(1)
    assert await holder(engine) is None
    assert await take(engine, two, "window", window_ms=1_000)
    await engine.advance(999)
    await engine.tick(Q0)
    assert await holder(engine) == two
    await engine.advance(1)
    await engine.tick(Q0)
    assert await left(engine) == set()


async def test_a_key_taken_again_has_the_end_of_its_new_scope(engine: Engine) -> None:
    one, two = engine.new_id(), engine.new_id()
    await take(engine, one, "window")
    await engine.call(taking(two, "active", instead_of=one))
    await engine.advance(10_000)
    await engine.tick(Q0)
    assert await holder(engine) == two
    await take(engine, one, "window", window_ms=100, instead_of=two)
    await take(engine, two, "window", window_ms=50_000, instead_of=one)
    await engine.advance(100)
    await engine.tick(Q0)
    assert await holder(engine) == two


async def test_a_key_passes_from_the_holder_that_was_cancelled(engine: Engine) -> None:
    one, two, three = (engine.new_id() for _ in range(3))
    await take(engine, one)
    await take(engine, two, instead_of=one)
    assert await holder(engine) == two
    assert not await take(engine, three, instead_of=one), "somebody else was quicker"
    await free(engine, one)
    assert await holder(engine) == two, "the end of the one before frees nothing"
    await free(engine, two)
    assert await holder(engine) is None


@pytest.mark.parametrize(("fields", "detail"), [
    ({"scope": "x"}, "scope"), ({"execution_id": "x"}, "execution_id"),
    ({"window_ms": 0, "scope": "window"}, "window_ms"), ({"window_ms": -1, "scope": "window"}, "window_ms"),
    ({"window_ms": limits.SPAN_MAX_MS + 1}, "window_ms"),
])  # fmt: skip
async def test_what_cannot_be_held(engine: Engine, fields: dict[str, Any], detail: str) -> None:
    assert await engine.refused("invalid_input", taking(engine.new_id()), **fields) == detail
    assert await left(engine) == set()


# ---- crashes -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("scope", SCOPES)
async def test_taken_and_never_created_is_free_again(engine: Engine, scope: str) -> None:
    one = engine.new_id()
    taken = engine.now
    await take(engine, one, scope, window_ms=3_600_000 if scope == "window" else 0)
    await engine.advance(limits.RESERVATION_MS - 1)
    assert await owed(engine) == []
    await engine.advance(1)
    for _ in range(2):
        assert await owed(engine) == [question(engine, one, taken, scope)]
        await engine.advance(limits.RESERVATION_MS)
    await verified(engine, one, taken, False, scope)
    assert await holder(engine) is None
    assert await left(engine) == set()


async def test_created_is_never_asked_for_again(engine: Engine) -> None:
    one = engine.new_id()
    taken = engine.now
    await take(engine, one, "active")
    await engine.advance(limits.RESERVATION_MS)
    assert await owed(engine) == [question(engine, one, taken, "active")]
    await verified(engine, one, taken, True)
    for _ in range(3):
        await engine.advance(limits.RESERVATION_MS)
        assert await owed(engine) == []
    await take(engine, one, "active")
    await engine.advance(limits.RESERVATION_MS)
    assert await owed(engine) == [], "a repeat is no new hold"
    await free(engine, one)
    assert await left(engine) == set()


async def test_an_answer_is_about_the_hold_that_was_asked_for(engine: Engine) -> None:
    """The row that frees it was first; then the key was taken again, by the next or by the same one."""
    one, two = engine.new_id(), engine.new_id()
    taken = engine.now
    await take(engine, one)
    await engine.advance(limits.RESERVATION_MS)
    await owed(engine)
    await free(engine, one)
    await verified(engine, one, taken, False)
    await take(engine, two)
    await verified(engine, one, taken, False)
    assert await holder(engine) == two
    await free(engine, two)
    await take(engine, one)
    await verified(engine, one, taken, False)
    assert await holder(engine) == one
    await verified(engine, one, taken, True)
    await engine.advance(limits.RESERVATION_MS)
    assert await owed(engine) == [question(engine, one, engine.now - limits.RESERVATION_MS)], "not yet answered"
    await free(engine, one)


async def test_a_window_that_is_over_when_it_would_be_asked_for_is_gone(engine: Engine) -> None:
    await take(engine, engine.new_id(), "window", window_ms=limits.RESERVATION_MS)
    await engine.advance(limits.RESERVATION_MS)
    assert await owed(engine) == []
    assert await left(engine) == set()


async def test_mail_that_cannot_be_read_is_nothing(engine: Engine) -> None:
    one = engine.new_id()
    await take(engine, one)
    for body in ("", "x", uuid_of(unique_id()), f"{uuid_of(unique_id())} {engine.new_id()}"):
        assert await post(engine, "free", body) == []
    for rest in ("", "x", f"{uuid_of(unique_id())} queued {one} x 0", f"{uuid_of(unique_id())} queued {one} 1 2"):
        assert await post(engine, "verified", f"u {rest}") == []
    assert await holder(engine) == one
