"""What a client does with budgets and quotas: declare, find, list them. A part of `ffsdk.client.Client`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Literal, cast

from ffsdk.times import Duration

if TYPE_CHECKING:
    from ffcore.admission import Amount
    from ffsdk.budgets import BudgetHandle
    from ffsdk.client import Client
    from ffsdk.quotas import QuotaHandle, Rate


class Limiting:
    """These methods need an open client."""

    async def budget(
        self, name: str, *, hard: Mapping[str, Amount] | None = None, soft: Mapping[str, Amount] | None = None,
        reset: Duration | None = None, on_breach: Literal["record", "refuse"] | None = None,
        scope: tuple[str, str] | None = None,
    ) -> BudgetHandle:  # fmt: skip
        """Declare a budget of this namespace: it is made, or brought to what is given here. With nothing but its name:
        the one there is, or NotFound.

        hard        what may be spent between two resets, by dimension, as in ``{"tokens": 200_000, "usd": 12.5}``: jobs
                    wait, or end, when this is used up or reserved; 0 is no limit. Given, it is the whole of them
        soft        the same for amounts that only warn: `soft_breach_count` counts when they are passed
        reset       seconds or timedelta from one reset to the next, counted from when the budget was made, so that they
                    stay in step; 0: never by itself
        on_breach   what becomes of a report beyond a hard limit: "record" it, because it has been spent, and admit
                    nobody until the next reset; "refuse" it, so that nothing changes. Default: "record"
        scope       what it is for, for people: a kind and an id, as in ``("tenant", "t1")``; fixed when it is made

        What is left out stays as it is. Attach it by name: ``budget="team-a"``, or ``ff.Budget("team-a", ...)``.
        Raises InvalidArgument, StoreFull.
        """
        from ffsdk.budgets import declare

        return await declare(cast("Client", self), name, hard=hard, soft=soft, reset=reset, on_breach=on_breach,
                             scope=scope)  # fmt: skip

    async def budgets(self) -> AsyncIterator[BudgetHandle]:
        """Budgets of this namespace, in no order; `budget.info` is its status as the listing read it."""
        from ffsdk.budgets import walk

        async for found in walk(cast("Client", self)):
            yield found

    async def quota(self, name: str, *, rate: Rate | None = None, concurrency: int | None = None) -> QuotaHandle:
        """Declare a quota of this namespace: it is made, or brought to what is given here. With nothing but its name:
        the one there is, or NotFound.

        rate          starts and seconds, as in ``(100, 60)``: no more than so many jobs start within any span of that
                      length, whole seconds; 0 starts is no limit
        concurrency   so many run at once; 0 is no limit

        What is left out stays as it is. Each key (`ffsdk.Quota`) has the quota for itself. Attach it by name:
        ``quota="api"``, or ``ff.Quota("api", key="payload.tenant")``. Raises InvalidArgument, StoreFull.
        """
        from ffsdk.quotas import declare

        return await declare(cast("Client", self), name, rate, concurrency)

    async def quotas(self) -> AsyncIterator[QuotaHandle]:
        """Quotas of this namespace, in no order; `quota.info` has their limits, and how many keys are in use."""
        from ffsdk.quotas import walk

        async for found in walk(cast("Client", self)):
            yield found
