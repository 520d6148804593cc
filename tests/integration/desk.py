"""What tests of durable handlers share: functions for steps that count, and a look into the journal."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

import ffsdk as ff
from ffcore.contracts.journal import ReadJournalArgs
from ffcore.ids import ExecutionId
from ffcore.steps import JournalEntry, entries_of
from ffsdk.testing import Engine
from tests.integration.worker_app import SOON

Handler = Callable[[Any, ff.Context], Awaitable[Any]]


class Receipt(msgspec.Struct):
    number: int
    lines: list[str]


class Desk:
    """Functions for steps that count how often they were called."""

    def __init__(self) -> None:
        self.ran: Counter[str] = Counter()
        self.keys: dict[str, list[str]] = {}

    async def do(self, what: str) -> str:
        self.ran[what] += 1
        self.keys.setdefault(what, []).append(ff.step_info().effect_key)
        return f"{what} done"

    def in_thread(self, what: str) -> str:
        self.ran[what] += 1
        return f"{what} by {threading.current_thread().name.split('-')[0]}"

    async def receipt(self, number: int) -> Receipt:
        self.ran["receipt"] += 1
        return Receipt(number, ["tea"])

    async def fail(self, reason: str) -> None:
        self.ran[reason] += 1
        raise ff.Fatal(reason, category="declined")


async def journal_of(eng: Engine, job: ff.Job[Any]) -> list[JournalEntry]:
    backend = await eng.app.backend()
    try:
        page = await backend.call(ReadJournalArgs(execution_id=ExecutionId(job.id)))
    finally:
        await eng.app.release()
    return entries_of(page.entries)


def task_of(app: ff.App, handler: Handler, **options: Any) -> Any:
    options.setdefault("retry", SOON)
    return app.task(name="work", **options)(handler)


async def outcome_of(handler: Handler, payload: Any = None, **options: Any) -> ff.Outcome[Any]:
    app = ff.App()
    work = task_of(app, handler, **options)
    async with Engine(app) as eng:
        return await (await eng.client.submit(work, payload)).outcome(timeout=3600)
