"""The other party: a process of its own that is told of gates and signals them, each signal several times.

`python -m tests.chaos.points.caller '{"url": ..., "directory": ..., "seed": ...}'`; it learns of a gate by its letter
in the book, and writes down there what it was answered.
"""

from __future__ import annotations

import asyncio
import random
import sys
from pathlib import Path
from typing import Any

import msgspec

import ffsdk as ff
from ffcore import tokens
from tests.chaos.points.book import Book, Reader


class Orders(msgspec.Struct, kw_only=True):
    url: str
    directory: str
    seed: int


class Caller:
    def __init__(self, client: ff.Client, book: Book, seed: int) -> None:
        self._client, self._book, self._seed = client, book, seed
        self._known: set[int] = set()
        self._calls: set[asyncio.Task[None]] = set()

    async def listen(self, reader: Reader) -> None:
        """Until the process is ended."""
        while True:
            for line in reader.lines():
                if line[0] == "letter" and int(line[1]) not in self._known:
                    self._known.add(int(line[1]))
                    task = asyncio.create_task(self._answer(int(line[1]), line[2]))
                    self._calls.add(task)
                    task.add_done_callback(self._done)
            await asyncio.sleep(0.05)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._calls.discard(task)
        if not task.cancelled() and (failed := task.exception()) is not None:
            self._book.note("fatal", f"caller: {type(failed).__name__}: {failed}")

    async def _answer(self, n: int, token: str) -> None:
        """Two signals from two sources, each sent twice at once, and both again when the job has long gone on. A third
        of a name that the gate does not accept must not count."""
        rng = random.Random(f"{self._seed} {n}")
        await asyncio.gather(self._send(n, token, "a", 0), self._send(n, token, "a", 0))
        await self._send(n, token, "c", 2, name="no")
        job: ff.Job[Any] = self._client.job(tokens.parse_gate_token(token).execution_id)
        # Not before it waits: a job that need not wait passes other points.
        while (await job.status()).state != "suspended":
            await asyncio.sleep(rng.uniform(0.3, 0.6))
        await asyncio.gather(self._send(n, token, "b", 1), self._send(n, token, "b", 1))
        await asyncio.sleep(rng.uniform(0.0, 2.0))
        await asyncio.gather(self._send(n, token, "b", 1), self._send(n, token, "a", 0))

    async def _send(self, n: int, token: str, key: str, more: int, name: str = "yes") -> None:
        try:
            answer = await self._client.signal(token, 10 * n + more, name=name, key=key, source=f"web:{key}")
        except ff.Rejected as refused:
            self._book.note("refused", n, key, refused.code)
        else:
            self._book.note("sent", n, key, answer.signal_id, answer.effect, int(not answer.duplicate))


async def main(orders: Orders) -> None:
    directory = Path(orders.directory)
    async with ff.Client(orders.url) as client:
        await Caller(client, Book(directory), orders.seed).listen(Reader(directory))


if __name__ == "__main__":
    asyncio.run(main(msgspec.json.decode(sys.argv[1], type=Orders)))
