"""Who is there, and which tasks they know."""

from __future__ import annotations

from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import limits
from tests.lua.engine import P0, START_MS, W0, Engine, unclaim


def register(name: str = "w1", ttl_ms: int = 30_000, info: bytes = b'{"pid":1}') -> c.RegisterWorkerArgs:
    return c.RegisterWorkerArgs(partition=W0, worker_instance_id=name, info=info, ttl_ms=ttl_ms)  # type: ignore[arg-type]


def publish(*rows: tuple[str, int, bytes]) -> c.PublishTasksArgs:
    return c.PublishTasksArgs(partition=W0, items=[c.TaskRow(*row) for row in rows])


async def names(engine: Engine, **options: Any) -> list[str]:
    return [w.worker_instance_id for w in (await engine.call(c.ListWorkersArgs(partition=W0, **options))).items]


async def test_a_worker_is_listed_while_it_says_that_it_is_there(engine: Engine) -> None:
    assert (await engine.call(register("b"))).now_ms == START_MS
    await engine.call(register("a", 60_000))
    page = await engine.call(c.ListWorkersArgs(partition=W0))
    assert [(w.worker_instance_id, w.alive_until, w.info) for w in page.items] == [
        ("a", START_MS + 60_000, b'{"pid":1}'), ("b", START_MS + 30_000, b'{"pid":1}'),
    ]  # fmt: skip
    await engine.advance(30_001)
    assert await names(engine) == ["a"]
    await engine.call(register("a", 0))
    assert await names(engine) == []


async def test_workers_come_in_pages(engine: Engine) -> None:
    for name in ("c", "a", "b"):
        await engine.call(register(name))
    page = await engine.call(c.ListWorkersArgs(partition=W0, limit=2))
    assert ([w.worker_instance_id for w in page.items], page.cursor) == (["a", "b"], "b")
    assert await names(engine, limit=2, after="b") == ["c"]
    assert await engine.refused("invalid_input", c.ListWorkersArgs(partition=W0), limit=1_001) == "limit"


async def dead(engine: Engine) -> list[tuple[str, int, int]]:
    page = await engine.call(c.ListWorkersArgs(partition=W0, dead=True))
    return [(w.worker_instance_id, w.seen_at, w.alive_until) for w in page.items]


async def test_the_dead_are_listed_with_their_last_sign_of_life(engine: Engine) -> None:
    await engine.call(register("alive", 10**6))
    await engine.call(register("gone", 1_000))
    await engine.call(register("left", 1_000))
    await engine.advance(500)
    await engine.call(register("gone", 1_000))
    await engine.call(register("left", 0))
    assert await dead(engine) == []
    await engine.advance(1_000)
    assert await names(engine) == ["alive", "gone"], "its time ends with this millisecond"
    await engine.advance(1)
    assert await dead(engine) == [("gone", START_MS + 500, START_MS + 1_500)]
    assert await names(engine) == ["alive"]
    await engine.call(register("gone", 1_000))
    assert (await dead(engine), await names(engine)) == ([], ["alive", "gone"])


async def test_the_dead_are_forgotten_after_an_hour(engine: Engine) -> None:
    await engine.call(register("dead", 1_000))
    await engine.call(register("alive", 10**7))
    for _ in range(60):
        await engine.advance(limits.WAITER_MS)
        await engine.tick(W0)
    assert [name for name, *_ in await dead(engine)] == ["dead"]
    for _ in range(2):
        await engine.advance(limits.WAITER_MS)
        await engine.tick(W0)
    assert await engine.command("ZCARD", f"ff:{W0}:workers") == 1
    assert len(await engine.command("KEYS", "*:worker:*")) == 1


async def test_of_too_many_dead_the_longest_dead_go(engine: Engine) -> None:
    for n in range(limits.DEAD_WORKERS_N + 150):
        await engine.call(register(f"w{n:04}", 1_000 + n))
    await engine.call(register("alive", 10**7))
    await engine.advance(limits.WAITER_MS)
    await engine.tick(W0)
    await engine.tick(W0)
    assert await engine.command("ZCARD", f"ff:{W0}:workers") == limits.DEAD_WORKERS_N + 1
    page = await engine.call(c.ListWorkersArgs(partition=W0, dead=True, limit=1))
    assert page.items[0].worker_instance_id == "w0150"
    assert await names(engine) == ["alive"]


@pytest.mark.parametrize(
    ("field", "value"),
    [("worker_instance_id", ""), ("worker_instance_id", "a b"), ("worker_instance_id", "x" * 41), ("info",
    b"x" * 16_385),
     ("ttl_ms", -1), ("ttl_ms", limits.LEASE_TTL_MAX_MS + 1)],
)  # fmt: skip
async def test_bad_input_to_a_registration_is_refused(engine: Engine, field: str, value: Any) -> None:
    assert await engine.refused("invalid_input", register(), **{field: value}) == field


async def test_the_newest_descriptor_of_a_task_wins(engine: Engine) -> None:
    assert await engine.call(publish(("send", 2, b"two\nlines"), ("scan", 1, b"{}"))) == c.Published(2)
    assert await engine.call(publish(("send", 1, b"old"))) == c.Published(0)
    assert await engine.call(publish(("send", 2, b"again"))) == c.Published(1)

    async def known(*wanted: str) -> list[c.TaskRow]:
        return (await engine.call(c.ListTasksArgs(partition=W0, names=list(wanted)))).items

    assert await known("send", "none") == [c.TaskRow("send", 2, b"again")]
    assert [row.task for row in await known()] == ["scan", "send"]


@pytest.mark.parametrize(
    "row", [("", 1, b""), ("a b", 1, b""), ("{x}", 1, b""), ("x" * 129, 1, b""), ("a", 1, b"x" * 16_385), ("a", 0, b""),
            ("a", -3, b""), ("a", 10**15, b"")],
)  # fmt: skip
async def test_one_bad_descriptor_refuses_them_all_and_writes_none(engine: Engine, row: Any) -> None:
    assert await engine.refused("invalid_input", publish(("good", 1, b""), row)) == "items"
    assert (await engine.call(c.ListTasksArgs(partition=W0))).items == []


@pytest.mark.parametrize("given", [7, ["x"] * 1_001, [7], [["a"]], [None]])
async def test_a_list_of_names_that_is_none_is_refused(engine: Engine, given: Any) -> None:
    assert await engine.refused("invalid_input", c.ListTasksArgs(partition=W0), names=given) == "names"


async def test_an_announcement_reaches_what_stands_behind_hundreds_of_others(engine: Engine) -> None:
    """Work of another task that nobody knows must not keep this one from the worker that does."""
    await engine.submit_many(limits.ROWS_N + 10)
    await engine.submit(execution_kind="scan")
    for job in await engine.claim(200) + await engine.claim(200):
        await engine.call(unclaim(job, "unknown_task"))
    announce = c.AnnounceTasksArgs(partition=P0, tasks=["scan@1"])
    assert await engine.call(announce) == c.Announced(1)
    assert await engine.call(announce) == c.Announced(0)


@pytest.mark.parametrize("given", [7, ["x"] * 1_001])
async def test_an_announcement_that_is_none_is_refused(engine: Engine, given: Any) -> None:
    assert await engine.refused("invalid_input", c.AnnounceTasksArgs(partition=P0, tasks=[]), tasks=given) == "tasks"
