"""Tests of a program's own tasks: a month that passes at once, and a worker that dies at every place it could.

python -m pytest examples/test_invoices.py
"""

from __future__ import annotations

import pytest

import ffsdk as ff
from ffsdk.testing import Engine

app = ff.App()


class Bank:
    """Stands for a service outside, which charges once per request id, as payment services do."""

    def __init__(self) -> None:
        self.charges: dict[str, int] = {}
        self.letters: list[str] = []

    def charge(self, request_id: str, cents: int) -> None:
        self.charges.setdefault(request_id, cents)


bank = Bank()


@app.task
async def invoice(cents: int, ctx: ff.Context) -> str:
    # A handler may run again after a crash, and the execution's id is then the same: the bank knows it by that.
    bank.charge(ctx.execution_id, cents)
    return "paid"


@app.task
async def letter(text: str) -> None:
    bank.letters.append(text)  # nothing here tells a second run from the first


async def test_an_invoice_is_charged_when_it_is_due(ff_engine: type[Engine]) -> None:
    bank.charges.clear()
    async with ff_engine(app, auto=False) as eng:
        job = await eng.client.submit(invoice, 4_200, delay=30 * 86_400)
        await eng.advance(days=29)
        assert not bank.charges
        await eng.advance(days=1)
        assert await job.result() == "paid"
        assert bank.charges == {job.id: 4_200}


async def test_an_invoice_is_charged_once_wherever_a_worker_dies(ff_engine: type[Engine]) -> None:
    async def once(eng: Engine) -> None:
        bank.charges.clear()  # what is kept outside the store begins anew in each run
        job = await eng.client.submit(invoice, 4_200)
        assert await job.result() == "paid"
        assert list(bank.charges.values()) == [4_200]

    print(await ff_engine(app).crash_everywhere(once))


async def test_a_letter_is_sent_twice_by_some_crash(ff_engine: type[Engine]) -> None:
    """What a handler that cannot tell its runs apart looks like: the report names the call."""

    async def once(eng: Engine) -> None:
        bank.letters.clear()
        await (await eng.client.submit(letter, "dear customer")).result()
        assert bank.letters == ["dear customer"]

    with pytest.raises(AssertionError, match=r"before call .*, ff_complete_many"):
        await ff_engine(app).crash_everywhere(once)
