"""A budget: how much jobs may spend, in several dimensions, between two resets.

    team = await client.budget("team-a", hard={"tokens": 200_000, "usd": 12.5}, reset=86_400)
    print((await team.status()).usage)

The rule: a budget is declared, by whoever starts first and by everybody after him; what is given holds from then on.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

import msgspec

from ffcore import admission, checks, ids, limits
from ffcore.admission import Amount
from ffcore.errors import InvalidArgument, NotFound, rejection
from ffcore.ids import BudgetId
from ffsdk.admit import budget_id, pair_of
from ffsdk.times import Duration, span_ms

if TYPE_CHECKING:
    from datetime import datetime

    from ffcore.args import Args
    from ffcore.contracts.budget import BudgetStatus, ReportUsageResult
    from ffsdk.client import Client

R = TypeVar("R")
ON_BREACH: Final = ("record", "refuse")


class Spender(msgspec.Struct, frozen=True, kw_only=True):
    """What one job has spent of a budget since its last reset."""

    execution_id: str
    amounts: dict[str, int | float]


class BudgetHandle:
    """One budget. Attach it to tasks and jobs by its name, as in ``budget="team-a"``; see `ffsdk.Budget`.

    All methods raise NotFound if it is gone.
    """

    def __init__(
        self, client: Client, name: str, budget_id: BudgetId, *, info: BudgetStatus | None = None
    ) -> None:  # fmt: skip
        self._client, self.name, self.id = client, name, budget_id
        self.info = info
        """What the listing said that this handle came from; None otherwise."""

    def __repr__(self) -> str:
        return f"<BudgetHandle {self.name}>"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, BudgetHandle) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    async def status(self) -> BudgetStatus:
        """Its limits, what is used and reserved of them, breaches, and the next reset."""
        from ffcore.contracts.budget import ReadBudgetArgs

        return await self._call(ReadBudgetArgs(budget_id=self.id))

    async def report(
        self, amounts: Mapping[str, Amount] | None = None, /, *, key: str | None = None, **more: Amount
    ) -> ReportUsageResult:
        """Report what was spent outside of any job, as ``report(tokens=120)``. Answers UsageOk, SoftBreach, HardBreach
        (`applied`: it is recorded all the same) or AlreadyApplied. Dimensions without a limit are counted too.

        key   with one, the same report counts once, for a day
        """
        from ffcore.contracts.budget import ReportUsageAdminArgs

        found = _amounts({**(amounts or {}), **more}, "report")
        checks.text(key, "key", limits.KEY_BYTES)
        return await self._call(ReportUsageAdminArgs(
            at=self.id, dimensions=list(found), deltas=[admission.number(text) for text in found.values()],
            dedup_key=key,
        ))  # fmt: skip

    async def reset(self) -> datetime | None:
        """Begin anew, now: nothing is used. What runs keeps what it has reserved, and the resets to come stay when they
        were. Answers when the next one is; None: never by itself."""
        from ffcore.contracts.budget import ResetBudgetArgs
        from ffsdk.times import from_ms

        return from_ms((await self._call(ResetBudgetArgs(budget_id=self.id))).next_reset_at)

    async def raise_(
        self, amounts: Mapping[str, Amount] | None = None, /, *, key: str | None = None, **more: Amount
    ) -> dict[str, int | float]:
        """Add to its hard limits, as ``raise_(tokens=1000)``, for good. Answers the limits. Only dimensions that have
        a limit can be raised: InvalidRequest for others.

        key   with one, it is one raise however often it is sent, for a year
        """
        from ffcore.contracts.budget import RaiseBudgetArgs

        found = _amounts({**(amounts or {}), **more}, "raise")
        checks.text(key, "key", limits.KEY_BYTES)
        raised = await self._call(
            RaiseBudgetArgs(budget_id=self.id, amounts=admission.pack_amounts(found), key=key or ids.uuid7())
        )
        return dict(raised.hard_limits)

    async def spenders(self, limit: int = 10) -> list[Spender]:
        """Jobs that spent of it since its last reset, those with most first. What more jobs have spent than it keeps
        apart is not listed."""
        from ffcore.contracts.budget import TopSpendersArgs

        checks.whole(limit, "limit", 1, limits.PAGE_MAX_N)
        found = await self._call(TopSpendersArgs(budget_id=self.id, limit=limit))
        return [Spender(execution_id=row.execution_id, amounts=row.amounts) for row in found.spenders]

    async def delete(self) -> None:
        """Forget it. What runs goes on; jobs that name it are held until there is one of that name again."""
        from ffcore.contracts.budget import DeleteBudgetArgs

        await self._call(DeleteBudgetArgs(budget_id=self.id))

    async def _call(self, args: Args[R]) -> R:
        try:
            return await self._client.backend.call(args)
        except NotFound as missing:
            self._missing(missing)

    def _missing(self, missing: NotFound) -> NoReturn:
        raise rejection(missing.code, asked="budget", about=self.name or self.id) from missing


def _amounts(given: Mapping[str, Any], what: str) -> dict[str, str]:
    if not given:
        raise InvalidArgument(f"{what} what? Give amounts by dimension, as in {what}(tokens=120)")
    return admission.amounts(given, what)


async def declare(
    client: Client, name: str, *, hard: Mapping[str, Amount] | None, soft: Mapping[str, Amount] | None,
    reset: Duration | None, on_breach: str | None, scope: tuple[str, str] | None,
) -> BudgetHandle:  # fmt: skip
    """See `ffsdk.client.Client.budget`."""
    from ffcore.contracts.budget import BudgetCreated, ChangeBudgetArgs, CreateBudgetArgs, budget_changes

    backend = client.backend
    ids.check_name(name, "budget")
    handle = BudgetHandle(client, name, budget_id(client.namespace, name, backend.config))
    if on_breach is not None and on_breach not in ON_BREACH:
        raise InvalidArgument(f"on_breach is {checks.shown(on_breach)}: use one of {', '.join(ON_BREACH)}")
    scope_type, scope_id = _scope(scope, client.namespace)
    texts = [None if one is None else _limits(one, what) for one, what in ((hard, "hard"), (soft, "soft"))]
    reset_ms = None if reset is None else span_ms(reset, "reset")
    changes = budget_changes(hard=texts[0], soft=texts[1], reset_interval_ms=reset_ms, enforcement_mode=on_breach)
    if not changes and scope is None:
        await handle.status()
        return handle
    numbers = [{name: admission.number(text) for name, text in (one or {}).items()} for one in texts]
    dimensions = sorted({*numbers[0], *numbers[1]})
    made = await backend.call(CreateBudgetArgs(
        budget_id=handle.id, name=name, namespace=client.namespace, scope_type=scope_type, scope_id=scope_id,
        enforcement_mode=on_breach or "record", on_hard_limit="hold", on_soft_limit="warn",
        reset_interval_ms=reset_ms or 0, dimensions=dimensions,
        hard_limits=[numbers[0].get(one, 0) for one in dimensions],
        soft_limits=[numbers[1].get(one, 0) for one in dimensions],
    ))  # fmt: skip
    if changes and not isinstance(made, BudgetCreated):
        await backend.call(ChangeBudgetArgs(budget_id=handle.id, changes=changes))
    return handle


def _limits(given: Any, what: str) -> dict[str, str]:
    if not isinstance(given, Mapping):
        raise InvalidArgument(f"{what} is {checks.shown(given)}: use amounts by dimension, as in {{'tokens': 1000}}")
    return admission.amounts(cast("Mapping[str, Any]", given), what)


def _scope(scope: Any, namespace: str) -> tuple[str, str]:
    if scope is None:
        return "namespace", namespace
    found = pair_of(scope)
    if found is None:
        raise InvalidArgument(f"scope is {checks.shown(scope)}: use a kind and an id, as in ('tenant', 't1')")
    kind, whose = found
    checks.text(whose, "scope", limits.NAME_BYTES)
    return ids.check_name(kind, "scope"), whose


async def walk(client: Client) -> AsyncIterator[BudgetHandle]:
    """See `ffsdk.client.Client.budgets`."""
    from ffcore.contracts.budget import ListBudgetsArgs

    backend = client.backend
    for partition in backend.config.keys("b"):
        cursor: str | None = None
        while True:
            page = await backend.call(ListBudgetsArgs(partition=partition, cursor=cursor, limit=limits.PAGE_MAX_N))
            for row in page.budgets:
                if row.namespace == client.namespace:
                    yield BudgetHandle(client, row.name, BudgetId(row.budget_id), info=row)
            cursor = page.cursor
            if not cursor:
                break
