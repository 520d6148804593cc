"""Quotas of a test: made, asked and told of what has ended, as workers and the post do it."""

from __future__ import annotations

from typing import Any, NamedTuple

import ffcore.contracts as c
from ffcore import ids
from ffcore.ids import LeaseEpoch, uuid_of
from tests.lua import invariants
from tests.lua.engine import P0, TTL, Engine

Q0 = ids.partition_key(0, "q")


def quota_id(name: str = "api") -> Any:
    return f"{Q0}:{ids.uuid8(name.encode())}"


def creation(
    name: str = "api", rate: tuple[int, int] = (0, 0), most: int = 0, **options: Any
) -> c.CreateQuotaPolicyArgs:
    """`rate`: so many in so many seconds."""
    return c.CreateQuotaPolicyArgs(
        quota_policy_id=quota_id(name), name=name, window_seconds=rate[1], max_requests_per_window=rate[0],
        max_concurrent=most, **options,
    )  # fmt: skip


async def made(engine: Engine, name: str = "api", rate: tuple[int, int] = (0, 0), most: int = 0) -> Any:
    answer = await engine.call(creation(name, rate, most))
    assert isinstance(answer, c.QuotaPolicyCreated)
    return answer.quota_policy_id


def asking(engine: Engine, quota: Any, id: Any, epoch: int = 1, **options: Any) -> c.AdmissionRequest:
    """A job asks, under a lease of its own. `adm`: its queue waits to be told."""
    given: dict[str, Any] = {"key": "-", "until_ms": engine.now + TTL, "partition": P0, "adm": ""} | options
    return c.AdmissionRequest(
        quota, given["key"], id, LeaseEpoch(epoch), given["until_ms"], given["partition"], given["adm"]
    )  # fmt: skip


async def ask(engine: Engine, *rows: c.AdmissionRequest) -> list[c.ItemAdmitted]:
    return (await engine.call(c.AdmitManyArgs(partition=Q0, items=list(rows)))).items


async def admit(engine: Engine, quota: Any, id: Any, epoch: int = 1, **options: Any) -> c.ItemAdmitted:
    return (await ask(engine, asking(engine, quota, id, epoch, **options)))[0]


def check(quota: Any, id: Any, rate: tuple[int, int] = (0, 0), cap: int = 0, **options: Any) -> c.CheckAdmissionArgs:
    return c.CheckAdmissionArgs(
        at=quota, execution_id=id, window_seconds=rate[1], rate_limit=rate[0], concurrency_cap=cap, **options
    )


class Told(NamedTuple):
    """What a quota tells a queue."""

    partition: str
    adm: str
    quota: str
    gen: int
    allow: int


def told(wakes: list[c.Wake]) -> list[Told]:
    found: list[Told] = []
    for wake in wakes:
        assert wake.kind == "unhalt", wake
        adm, uuid, gen, allow = wake.body.split(" ")
        found.append(Told(wake.target, adm, uuid, int(gen), int(allow)))
    return found


async def post(engine: Engine, kind: str, *bodies: str) -> list[c.Wake]:
    """Rows without names: each is applied, however often it comes."""
    letters = [c.Letter("", kind, body) for body in bodies]
    return (await engine.call(c.DeliverArgs(partition=Q0, source=P0, items=letters))).wakes


def settlement(quota: Any, id: Any, epoch: int = 1, key: str = "-", undo: bool = False) -> str:
    return f"q {uuid_of(quota)} {key} {id} {epoch} {int(undo)}"


async def settle(engine: Engine, quota: Any, id: Any, epoch: int = 1, key: str = "-", undo: bool = False) -> list[Told]:
    """A lease has ended; answers whom the quota tells."""
    return told(await post(engine, "settle", settlement(quota, id, epoch, key, undo)))


async def verified(engine: Engine, quota: Any, id: Any, epoch: int, held: bool, key: str = "-") -> list[Told]:
    return told(await post(engine, "verified", f"q {uuid_of(quota)} {key} {id} {epoch} {int(held)}"))


async def owed(engine: Engine) -> list[tuple[str, str, str]]:
    """What a tick of the quotas' partition says to others: target, kind and body."""
    return [(row.target, row.kind, row.body) for row in (await engine.tick(Q0)).owed]


async def read(engine: Engine, quota: Any, key: str | None = None) -> c.QuotaStatus:
    return await engine.call(c.ReadQuotaArgs(quota_policy_id=quota, key=key))


async def left(engine: Engine) -> set[str]:
    """Kinds of keys there are in the quotas' partition, without its header."""
    store = await invariants.read_store(engine.command)
    heads = [name.removeprefix(f"ff:{Q0}:") for name in store.values if name.startswith(f"ff:{Q0}:")]
    return {head.split(":")[0] for head in heads}
