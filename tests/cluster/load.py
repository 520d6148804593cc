"""Users at work: submitters that keep a book of what was acknowledged to them, while a worker runs it."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable

import ffsdk as ff
from ffcore import ids
from ffcore.contracts.reads import ReadEventsArgs
from ffcore.errors import EngineError, NotFound
from ffcore.ids import PartitionKey
from tests.integration.worker_app import Order, working


class Ack:
    """One submit as its caller saw it; times are of the loop's clock."""

    def __init__(self, id: str, asked: float, told: float) -> None:
        self.id, self.asked, self.told = id, asked, told
        self.partition = ids.partition_of(id)


class Book:
    """What users were told."""

    def __init__(self) -> None:
        self.acked: list[Ack] = []
        self.errors: list[EngineError] = []
        self.runs: Counter[str] = Counter()
        """Starts of the handler by job: more than one is allowed."""

    def first_after(self, at: float, partitions: Iterable[PartitionKey]) -> Ack:
        """The first acknowledgement told after an instant, in these partitions."""
        wanted = set(partitions)
        return min((ack for ack in self.acked if ack.told > at and ack.partition in wanted), key=lambda ack: ack.told)

    def told_after(self, at: float, partitions: Iterable[PartitionKey]) -> bool:
        wanted = set(partitions)
        return any(ack.told > at and ack.partition in wanted for ack in reversed(self.acked))

    @property
    def slowest_ms(self) -> float:
        return max(ack.told - ack.asked for ack in self.acked) * 1000


@contextlib.asynccontextmanager
async def under_load(app: ff.App, *, submitters: int = 8, pause: float = 0.005) -> AsyncIterator[Book]:
    """Submit and run jobs for the length of the block; afterwards nothing is under way any more."""
    book = Book()

    @app.task(name="load", lane="load", lease=10)
    async def handler(order: Order, ctx: ff.Context) -> int:
        book.runs[ctx.execution_id] += 1
        return order.number

    stopping = False

    async def submitter(client: ff.Client, me: int) -> None:
        n = 0
        while not stopping:
            asked, n = time.monotonic(), n + 1
            try:
                job = await client.submit(handler, Order(n), key=f"load-{me}-{n}")
                book.acked.append(Ack(job.id, asked, time.monotonic()))
            except EngineError as seen:
                book.errors.append(seen)
            await asyncio.sleep(pause)

    async with app.client() as client, working(app, concurrency=16):
        tasks = [asyncio.create_task(submitter(client, me)) for me in range(submitters)]
        try:
            yield book
        finally:
            stopping = True
            await asyncio.gather(*tasks)
        await _until_ended(client, book)


async def _until_ended(client: ff.Client, book: Book, within: float = 30.0) -> None:
    """Wait until every acknowledged job has ended, or is gone."""
    give_up = time.monotonic() + within
    open_ids = {ack.id for ack in book.acked}
    while open_ids:
        asked = tuple(open_ids)
        states = await asyncio.gather(*(state_of(client, id) for id in asked))
        open_ids -= {id for id, state in zip(asked, states, strict=True) if state in ("completed", "gone")}
        assert time.monotonic() < give_up, f"{len(open_ids)} jobs have not ended, such as {sorted(open_ids)[:3]}"
        await asyncio.sleep(0.05)


async def state_of(client: ff.Client, id: str) -> str:
    try:
        return (await client.job(id).status()).state
    except NotFound:
        return "gone"


async def lost(app: ff.App, book: Book) -> list[str]:
    """Acknowledged jobs the store has no record of."""
    async with app.client() as client:
        states = await asyncio.gather(*(state_of(client, ack.id) for ack in book.acked))
    return [ack.id for ack, state in zip(book.acked, states, strict=True) if state == "gone"]


async def completions(app: ff.App) -> Counter[str]:
    """How often the feed says that a job was completed."""
    backend, counted = await app.backend(), Counter[str]()
    try:
        for partition in backend.config.keys("fp"):
            after = "-"
            while page := (await backend.call(ReadEventsArgs(partition=partition, after=after, limit=1000))).entries:
                for entry in page:
                    for sort, text in zip(entry.fields[::2], entry.fields[1::2], strict=True):
                        uuid, _, now = (*text.split(" ", 3), "", "")[:3]
                        if sort != "o" and now == "completed":
                            counted[f"{partition}:{uuid}"] += 1
                after = page[-1].event_id
    finally:
        await app.release()
    return counted
