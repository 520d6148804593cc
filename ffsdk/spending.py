"""What handlers spend, on its way to the budgets of their jobs: `ctx.spend`, and what frames charge.

The rule: what was spent is recorded whether or not it was allowed, under a key of its own, so that a repeat is none;
who passes a limit is told after. Spending of one turn of the loop leaves in one call per partition, one call at a time.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterable, Mapping, Sequence
from decimal import Decimal
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from ffcore import admission, limits
from ffcore.admission import Amount
from ffcore.args import Args
from ffcore.contracts.budget import BudgetStatus, ReadBudgetArgs, SpendManyArgs, SpendRow, SpentRow
from ffcore.errors import BudgetExceeded, EngineBug, EngineError, InvalidArgument, Unavailable, alike, rejection
from ffcore.ids import BudgetId, PartitionKey
from ffsdk.slots import call_until_answered

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffsdk.context import Context
    from ffsdk.held import Held

_ops = itertools.count(1)
"""Numbers rise within every lease, because a lease is held by one process."""


class Spent(msgspec.Struct, frozen=True, kw_only=True):
    """What a budget said to `ctx.spend`."""

    usage: dict[str, int | float]
    """What has been used of each dimension near or above a limit, by all jobs together; empty within a step, whose
    spending is recorded with it."""
    soft: list[str]
    """Dimensions above their soft limit."""


class Charge(NamedTuple):
    """What one budget is to be charged for a job."""

    budget_id: str
    key: str
    amounts: dict[str, str]

    def plus(self, other: Charge) -> Charge:
        """Both as one."""
        total = {name: Decimal(amount) for name, amount in self.amounts.items()}
        for name, amount in other.amounts.items():
            total[name] = total.get(name, Decimal(0)) + Decimal(amount)
        texts = {name: admission.amount_text(format(amount, "f")) for name, amount in total.items()}
        return self._replace(amounts=texts)

    def line(self) -> str:
        """As it travels with the record of a step."""
        return f"{self.budget_id} {self.key} {admission.pack_amounts(self.amounts)}"


class _Ready(NamedTuple):
    held: Held
    charge: Charge
    folds: bool
    """It may be added to others of the same job: their answer is its own."""
    told: asyncio.Future[SpentRow]


@lru_cache(maxsize=1024)
def budgets_of(text: str) -> tuple[str, ...]:
    """The ids of the budgets in an admission text."""
    return tuple(line.budget_id for line in admission.parse(text) if isinstance(line, admission.BudgetLine))


Answers = list[tuple[Charge, SpentRow]]


class Spending:
    """That of one worker. Belongs to the event loop's thread."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._loop = asyncio.get_running_loop()
        self._names: dict[str, str] = {}
        self._dimensions: dict[str, frozenset[str]] = {}
        """What each budget has, as far as it was looked for."""
        self._ready: dict[PartitionKey, list[_Ready]] = {}
        self._busy: set[PartitionKey] = set()
        """Partitions with a call booked or under way."""
        self._tasks: set[asyncio.Task[Any]] = set()

    # ---- for contexts

    async def spend(self, ctx: Context, held: Held, given: Mapping[str, Amount]) -> Spent:
        """See `ffsdk.context.Context.spend`."""
        durable = ctx.durable
        durable.hear_breach()
        step = durable.step_inside
        charges = await self.charges(held, given)
        if step is not None:
            step.charge(charges)
            return Spent(usage={}, soft=[])
        return await self.heard(await self.put_all(held, charges))

    async def charges(self, held: Held, given: Mapping[str, Amount]) -> list[Charge]:
        """What every budget of the job is asked to record; of a dimension that it does not have it takes nothing.
        InvalidArgument for what is no amount, and for dimensions that none has: nothing is recorded then."""
        amounts = {name: text for name, text in admission.amounts(given, "spend").items() if Decimal(text)}
        ids = budgets_of(held.job.admission or "") if amounts else ()
        if ids and not amounts.keys() <= self._dimensions_of(ids):
            await self._look(ids, amounts)
        key = f"{held.job.lease_epoch}.{next(_ops)}"
        return [Charge(budget_id, key, amounts) for budget_id in ids]

    async def put_all(self, held: Held, charges: Sequence[Charge], folds: bool = False) -> Answers:
        """Charge them, and wait for what the budgets say."""
        told = await asyncio.gather(*(self.put(held, charge, folds) for charge in charges))
        return list(zip(charges, told, strict=True))

    async def heard(self, answers: Answers) -> Spent:
        """What it came to. Raises BudgetExceeded for the first budget that is above a hard limit; InvalidArgument for
        dimensions that none has; what a budget refused."""
        usage: dict[str, int | float] = {}
        soft: list[str] = []
        unknown: set[str] | None = None
        breached: tuple[Charge, SpentRow] | None = None
        for charge, item in answers:
            if item.state == "error":
                raise rejection(item.dimension, asked="spend", about=charge.budget_id)
            if item.dimension:
                usage[item.dimension] = item.usage
            if item.state == "soft":
                soft.append(item.dimension)
            elif item.state == "hard" and breached is None:
                breached = charge, item
            missing = set(item.unknown.split(",")) - {""}
            unknown = missing if unknown is None else unknown & missing
        if breached is not None:
            raise await self._exceeded(*breached)
        if unknown:  # since it was looked for
            raise await self._unknown([charge.budget_id for charge, _ in answers], unknown)
        return Spent(usage=usage, soft=soft)

    def _dimensions_of(self, ids: Sequence[str]) -> set[str]:
        return set[str]().union(*(self._dimensions.get(one, ()) for one in ids))

    async def _look(self, ids: Sequence[str], amounts: Mapping[str, str]) -> None:
        """Ask the budgets which dimensions they have, where one is not known yet."""
        calls: list[Args[BudgetStatus]] = [ReadBudgetArgs(budget_id=BudgetId(one)) for one in ids]
        told = True
        for one, status in zip(ids, await self._backend.call_all(calls), strict=True):
            if isinstance(status, EngineError):
                told = False  # it answers for itself when it is charged
            else:
                self._names[one] = status.name
                self._dimensions[one] = frozenset((*status.usage, *status.hard_limits, *status.soft_limits))
        if told and (unknown := amounts.keys() - self._dimensions_of(ids)):
            raise await self._unknown(ids, unknown)

    async def _unknown(self, ids: Sequence[str], dimensions: Iterable[str]) -> InvalidArgument:
        names = [await self._name(one) for one in ids]
        return InvalidArgument(
            f"no budget of this job ({', '.join(names)}) has {', '.join(sorted(dimensions))}: give it a limit, "
            "or spend what there is"
        )

    async def _exceeded(self, charge: Charge, item: SpentRow) -> BudgetExceeded:
        error = BudgetExceeded(
            f"budget {await self._name(charge.budget_id)} is used up: {item.usage} of {item.limit} {item.dimension}",
            code="budget_exceeded", detail=item.dimension,
        )  # fmt: skip
        error.budget_id, error.dimension = charge.budget_id, item.dimension
        error.usage, error.limit = item.usage, item.limit
        return error

    async def _name(self, budget_id: str) -> str:
        """What people call a budget; its id where that cannot be had."""
        if budget_id not in self._names:
            try:
                self._names[budget_id] = (await self._backend.call(ReadBudgetArgs(budget_id=BudgetId(budget_id)))).name
            except EngineError:
                return budget_id
        return self._names[budget_id] or budget_id

    # ---- on their way

    def put(self, held: Held, charge: Charge, folds: bool = False) -> asyncio.Future[SpentRow]:
        """Queue a charge; the future is what the budget said. `folds`: it may be one with others of its job."""
        told: asyncio.Future[SpentRow] = self._loop.create_future()
        partition = PartitionKey(charge.budget_id[: charge.budget_id.index("}") + 1])
        self._ready.setdefault(partition, []).append(_Ready(held, charge, folds, told))
        if partition not in self._busy:
            self._busy.add(partition)
            self._loop.call_soon(self._depart, partition)
        return told

    async def settle(self) -> None:
        """Wait until everything has been answered."""
        while self._busy:
            await (asyncio.wait(tuple(self._tasks)) if self._tasks else asyncio.sleep(0))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _depart(self, partition: PartitionKey) -> None:
        """The end of a turn of the loop: send what is ready."""
        ready = self._ready.pop(partition, [])
        if not ready:
            self._busy.discard(partition)
            return
        rows, left = _folded(ready)
        if left:
            self._ready[partition] = left
        task = self._loop.create_task(self._carry(partition, rows))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _carry(self, partition: PartitionKey, rows: list[list[_Ready]]) -> None:
        callers = [one.told for some in rows for one in some]
        try:
            requests = [_request(some) for some in rows]
            items = (await call_until_answered(self._backend, SpendManyArgs(partition=partition, items=requests))).items
            for some, item in zip(rows, items, strict=True):
                for one in some:
                    if not one.told.done():
                        one.told.set_result(item)
        except EngineError as failed:
            _fail(callers, failed)
        except asyncio.CancelledError:
            _fail(callers, Unavailable("spending was under way when the loop ended", may_have_applied=True))
            raise
        except Exception as broken:
            _fail(callers, EngineBug(f"spending broke: {type(broken).__name__}: {broken}"))
        finally:
            self._loop.call_soon(self._depart, partition)


def _folded(ready: list[_Ready]) -> tuple[list[list[_Ready]], list[_Ready]]:
    """The rows of one call, and what has no room in it."""
    rows: list[list[_Ready]] = []
    by_job: dict[tuple[str, str], list[_Ready]] = {}
    for at, one in enumerate(ready):
        of = (one.charge.budget_id, one.held.job.lease_id)
        some = by_job.get(of) if one.folds else None
        if some is not None:
            some.append(one)
            continue
        if len(rows) == limits.ROWS_N:
            return rows, ready[at:]
        rows.append([one])
        if one.folds:
            by_job[of] = rows[-1]
    return rows, []


def _request(some: list[_Ready]) -> SpendRow:
    charge, job = some[0].charge, some[0].held.job
    for one in some[1:]:
        charge = charge.plus(one.charge)
    return SpendRow(
        BudgetId(charge.budget_id), job.execution_id, job.lease_epoch, charge.key,
        admission.pack_amounts(charge.amounts),
    )  # fmt: skip


def _fail(callers: list[asyncio.Future[SpentRow]], failed: EngineError) -> None:
    """Everybody gets an error of his own."""
    for told in callers:
        if not told.done():
            told.set_exception(alike(failed))
