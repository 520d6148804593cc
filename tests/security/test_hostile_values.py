"""Hostile text and numbers at every door of the SDK: a typed refusal or a job, and nothing half-written.

What is refused is an InvalidArgument or a Rejected, never an EngineBug and no bare Python error, and leaves the store
as it was; what is accepted leaves a store that the checker finds sound.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import strategies as st

import ffsdk as ff
from ffbackend_valkey.stores import connect
from ffbackend_valkey.url import parse_url
from ffcore.backend import StoreConfig
from ffengine import check
from tests.security import hostile

EXAMPLES_N = 15
Door = Callable[[ff.Client, Any], Awaitable[Any]]


async def listed(client: ff.Client, **options: Any) -> list[Any]:
    return [job async for job in client.jobs(limit=5, **options)]


async def first_event(client: ff.Client, kind: Any = "completion", **options: Any) -> None:
    # What is accepted may wait for ever.
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(0.005):
            await anext(aiter(client.subscribe(kind, **options)))


TEXT_DOORS: dict[str, Door] = {
    "task name": lambda c, v: c.submit(v, lane="mail"),
    "unknown task": lambda c, v: c.submit(v),
    "lane": lambda c, v: c.submit("t", lane=v),
    "key": lambda c, v: c.submit("t", lane="mail", key=v),
    "tag key": lambda c, v: c.submit("t", lane="mail", tags={v: "x"}),
    "tag value": lambda c, v: c.submit("t", lane="mail", tags={"a.b": v}),
    "capability": lambda c, v: c.submit("t", lane="mail", requires=[v]),
    "requires": lambda c, v: c.submit("t", lane="mail", requires=v),
    "durability": lambda c, v: c.submit("t", lane="mail", durability=v),
    "option": lambda c, v: c.submit("t", lane="mail", **{f"x{v}": 1}),
    "payload": lambda c, v: c.submit("t", v, lane="mail"),
    "keys": lambda c, v: c.submit_many("t", [1, 2], keys=["a", v], lane="mail"),
    "id": lambda c, v: c.job(v).status(),
    "id to await": lambda c, v: c.job(v).outcome(timeout=0.001),
    "id to cancel": lambda c, v: c.job(v).cancel("x"),
    "id to explain": lambda c, v: c.job(v).explain(),
    "cancel reason": lambda c, v: one(c).cancel(v),
    "replay mode": lambda c, v: one(c).replay(v),
    "list state": lambda c, v: listed(c, state=v),
    "list lane": lambda c, v: listed(c, lane=v),
    "list tag key": lambda c, v: listed(c, tag=(v, "x")),
    "list tag value": lambda c, v: listed(c, tag=("a.b", v)),
    "list tag": lambda c, v: listed(c, tag=v),
    "lane to pause": lambda c, v: c.lane(v).pause(),
    "lane to show": lambda c, v: c.lane(v).stats(),
    "hold task": lambda c, v: c.hold(task=v),
    "hold tag": lambda c, v: c.hold(tag=("a.b", v)),
    "hold tag key": lambda c, v: c.hold(tag=(v, "x")),
    "hold reason": lambda c, v: c.hold(task="t", reason=v),
    "release task": lambda c, v: c.release(task=v),
    "cancel_many lane": lambda c, v: c.cancel_many(lane=v, dry_run=True),
    "purge_many lane": lambda c, v: c.purge_many(lane=v),
    "subscribe kind": lambda c, v: first_event(c, v),
    "subscribe after": lambda c, v: first_event(c, after=v),
    "subscribe lane": lambda c, v: first_event(c, lanes=[v]),
    "subscribe tag": lambda c, v: first_event(c, tags={v: "x"}),
}
NUMBER_DOORS: dict[str, Door] = {
    "priority": lambda c, v: c.submit("t", lane="mail", priority=v),
    "delay": lambda c, v: c.submit("t", lane="mail", delay=v),
    "deadline": lambda c, v: c.submit("t", lane="mail", deadline=v),
    "at": lambda c, v: c.submit("t", lane="mail", at=v),
    "limit": lambda c, v: walk(c, v),
    "timeout": lambda c, v: timed(c, v),
    "grace": lambda c, v: one(c).cancel("x", grace=v),
    "older_than": lambda c, v: c.purge_many(older_than=v),
    "payload": lambda c, v: c.submit("t", v, lane="mail"),
}
JSON_DOORS: dict[str, Door] = {
    "payload": lambda c, v: c.submit("t", v, lane="mail"),
    "payloads": lambda c, v: c.submit_many("t", [v, v], lane="mail"),
    "key": lambda c, v: c.submit("t", lane="mail", key=v),
    "lane": lambda c, v: c.submit("t", lane=v),
    "tag value": lambda c, v: c.submit("t", lane="mail", tags={"a.b": v}),
    "tags": lambda c, v: c.submit("t", lane="mail", tags=v),
    "task": lambda c, v: c.submit(v, lane="mail"),
    "id": lambda c, v: c.job(v).status(),
    "list state": lambda c, v: listed(c, state=v),
}
WHEN = st.one_of(hostile.number, st.datetimes(), st.datetimes(timezones=st.just(datetime.UTC)))


def one(client: ff.Client) -> ff.Job[Any]:
    """The job that waits; another has ended."""
    return client.job(client.first_id)  # type: ignore[attr-defined]


async def walk(client: ff.Client, limit: Any) -> None:
    async for _ in client.jobs(limit=limit):
        pass


async def timed(client: ff.Client, timeout: Any) -> None:
    with contextlib.suppress(TimeoutError):
        await client.job(client.ended_id).outcome(timeout=timeout)  # type: ignore[attr-defined]


class Guard:
    """A store, and what is allowed to happen at one of its doors."""

    def __init__(self, client: ff.Client) -> None:
        self.client = client
        self.refused = self.accepted = 0

    async def contents(self) -> Any:
        return await self.client.backend.command("DEBUG", "DIGEST")  # type: ignore[attr-defined]

    async def knock(self, door: Door, value: Any) -> None:
        before = await self.contents()
        try:
            await door(self.client, value)
        except ff.EngineBug as bug:
            raise AssertionError(f"{value!r:.200} is called a bug of the engine: {bug}") from bug
        except (ff.InvalidArgument, ff.Rejected) as refused:
            self.refused += 1
            str(refused).encode(errors="surrogatepass")
            assert len(str(refused)) < 2_000, "a message repeats what it was given, cut"
            assert await self.contents() == before, f"{value!r:.200} was refused and left something behind"
        except (TimeoutError, BaseExceptionGroup) as other:
            assert isinstance(other, TimeoutError | ff.SubmitErrors), repr(other)
        else:
            self.accepted += 1

    async def end(self) -> None:
        found = await check.violations(self.client.backend, memory=check.Memory())
        assert not found, [str(one) for one in found]


@pytest.fixture
async def guard(digesting: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Guard]:
    monkeypatch.setenv("FF_QUIET", "1")
    bare = await connect(digesting, init=False, check=False)
    await bare.command("FLUSHALL")
    await bare.load_library(replace=True)
    await bare.initialise(StoreConfig(fp=2))
    await bare.close()
    async with ff.connect(digesting) as client:
        job = await client.submit("t", "x", lane="mail", tags={"a.b": "c"})
        client.first_id = job.id  # type: ignore[attr-defined]
        ended = await client.submit("t", lane="mail")
        await ended.cancel()
        client.ended_id = ended.id  # type: ignore[attr-defined]
        guard = Guard(client)
        yield guard
        await guard.end()


@pytest.mark.parametrize("name", TEXT_DOORS)
async def test_text(guard: Guard, name: str) -> None:
    for value in hostile.texts(EXAMPLES_N, list(TEXT_DOORS).index(name)):
        await guard.knock(TEXT_DOORS[name], value)
    assert guard.refused or name == "payload"


@pytest.mark.parametrize("name", NUMBER_DOORS)
async def test_numbers(guard: Guard, name: str) -> None:
    for value in hostile.draws(WHEN, EXAMPLES_N) if name == "at" else hostile.numbers(EXAMPLES_N):
        await guard.knock(NUMBER_DOORS[name], value)
    assert guard.refused


@pytest.mark.parametrize("name", JSON_DOORS)
async def test_nested_values_and_values_of_another_type(guard: Guard, name: str) -> None:
    for value in hostile.draws(hostile.json, EXAMPLES_N):
        await guard.knock(JSON_DOORS[name], value)


def refused(make: Callable[[Any], Any], value: Any) -> bool:
    """Whether it is refused; anything but a typed refusal fails."""
    try:
        make(value)
    except ff.EngineBug as bug:
        raise AssertionError(bug) from bug
    except ff.InvalidArgument as wrong:
        assert len(str(wrong)) < 2_000
        return True
    return False


def declared(**options: Any) -> None:
    async def handler(_: None) -> None: ...

    ff.App().task(**options)(handler)


def worker(**options: Any) -> None:
    app = ff.App()

    @app.task
    async def handler(_: None) -> None: ...

    app.worker(**options)


DECLARATIONS: dict[str, Callable[[Any], None]] = {
    "task name": lambda v: declared(name=v),
    "task lane": lambda v: declared(lane=v),
    "task requires": lambda v: declared(requires={v}),
    "task fairness": lambda v: declared(fairness=v),
    "task isolation": lambda v: declared(isolation=v),
    "app namespace": lambda v: ff.App(namespace=v),
    "app durability": lambda v: ff.App(durability=v),
    "worker lane": lambda v: worker(lanes=[v]),
    "worker name": lambda v: worker(name=v),
    "worker capability": lambda v: worker(capabilities={v}),
    "url": parse_url,
    "url host": lambda v: parse_url(f"valkey://{v}"),
    "url login": lambda v: parse_url(f"valkey://{v}@h:1"),
    "url path": lambda v: parse_url(f"valkey://h/{v}"),
    "url option": lambda v: parse_url(f"valkeys://h?{v}"),
    "url socket": lambda v: parse_url(f"unix:///{v}"),
    "url directory": lambda v: parse_url(f"embedded://{v}"),
    "url store": lambda v: parse_url(f"memory://{v}"),
    "url cluster": lambda v: parse_url(f"valkey+cluster://{v},h:1"),
}
COUNTS: dict[str, Callable[[Any], None]] = {
    "task priority": lambda v: declared(priority=v),
    "task timeout": lambda v: declared(timeout=v),
    "task deadline": lambda v: declared(deadline=v),
    "task lease": lambda v: declared(lease=v),
    "task version": lambda v: declared(version=v),
    "retry attempts": lambda v: ff.Retry(max_attempts=v),
    "retry backoff": lambda v: ff.Retry(backoff=v),
    "retry factor": lambda v: ff.Retry(factor=v),
    "worker concurrency": lambda v: worker(concurrency=v),
    "worker prefetch": lambda v: worker(prefetch=v),
    "worker lease": lambda v: worker(lease=v),
    "worker grace": lambda v: worker(grace=v),
}


@pytest.mark.parametrize("name", DECLARATIONS)
def test_declarations_of_text(name: str) -> None:
    values = hostile.texts(40, list(DECLARATIONS).index(name))
    assert sum(refused(DECLARATIONS[name], value) for value in values)


@pytest.mark.parametrize("name", COUNTS)
def test_declarations_of_numbers(name: str) -> None:
    values = hostile.numbers(40)
    assert sum(refused(COUNTS[name], value) for value in values)
