"""Budgets and quotas of a whole flow: given once, held by every job in it."""

from __future__ import annotations

import asyncio

import pytest

import ffsdk as ff
from ffcore import admission
from ffsdk.admit import budget_id, quota_id
from tests.integration.flow_run import STORES, Run


@pytest.fixture(params=STORES)
def run(request: pytest.FixtureRequest) -> Run:
    return Run.of(request)


async def lines(client: ff.Client, execution_id: str) -> list[admission.Line]:
    """What a job must be admitted by, as its record has it."""
    from ffcore.contracts.reads import ReadExecutionArgs
    from ffcore.ids import ExecutionId

    stored = await client.backend.call(ReadExecutionArgs(execution_id=ExecutionId(execution_id)))
    return admission.parse(stored.texts["admission"]) if "admission" in stored.texts else []


async def test_a_flow_gives_its_budget_to_every_job(run: Run) -> None:
    @run.task
    async def page(n: int, ctx: ff.Context) -> int:
        await ctx.spend(tokens=10)
        return n

    @run.task(budget=ff.Budget("own", estimate={"calls": 1}))
    async def total(pages: list[int], ctx: ff.Context) -> int:
        await ctx.spend(tokens=5, calls=1)
        return sum(pages)

    async with run.engine() as eng:
        client = eng.client
        team = await client.budget("team", hard={"tokens": 1000})
        own = await client.budget("own", hard={"calls": 10})
        async with client.flow("nightly", budget="team") as flow:
            pages = [flow.add(page, n) for n in range(3)]
            whole = flow.add(total, after=pages)
        assert await whole.result(20) == 3
        assert (await team.status()).usage == {"tokens": 35}
        assert (await own.status()).usage == {"calls": 1}
        config, space = client.backend.config, client.namespace
        assert await lines(client, pages[0].id) == [admission.BudgetLine(budget_id(space, "team", config), "hold", {})]
        assert await lines(client, whole.id) == [
            admission.BudgetLine(budget_id(space, "own", config), "hold", {"calls": "1"}),
            admission.BudgetLine(budget_id(space, "team", config), "hold", {}),
        ]


async def test_what_a_flow_cannot_be_admitted_by_is_refused(run: Run) -> None:
    """A payload that upstreams make is not there yet when its key is needed; a quota nobody has made holds nothing."""

    @run.task(quota=ff.Quota("api", key="payload.tenant"))
    async def page(payload: dict[str, str]) -> None: ...

    async with run.engine() as eng:
        client = eng.client
        await client.quota("api", concurrency=5)
        with pytest.raises(ff.NotFound, match="nobody-made"):
            async with client.flow("f", "k", quota="nobody-made") as flow:
                first = flow.add(page, {"tenant": "t"})
                with pytest.raises(ff.InvalidArgument, match=r"read from payload\.tenant"):
                    flow.add(page, after=first)
                flow.add(page, after=first, quota=[])
        async with client.flow("f", "k") as flow:
            flow.add(page, {"tenant": "t"})
        assert flow.created, "nothing of the other one was submitted"
        await flow.outcome(20)


async def test_keys_of_members_are_read_from_their_payloads(run: Run) -> None:
    @run.task(quota=ff.Quota("api", key="payload.tenant"))
    async def page(payload: dict[str, str]) -> str:
        return payload["tenant"]

    async with run.engine() as eng:
        client = eng.client
        await client.quota("api", concurrency=5)
        dear = ff.Budget("team", estimate={"tokens": 7}, on_exceed="fail")
        await client.budget("team", hard={"tokens": 100})
        async with client.flow("f", budget="team") as flow:
            nodes = [flow.add(page, {"tenant": "t1"}), flow.add("page", {"tenant": "t2"}, budget=dear)]
            nodes.append(flow.add(page, after=nodes[0], quota=ff.Quota("api", key="t3")))
        config, space = client.backend.config, client.namespace
        api, team = quota_id(space, "api", config), budget_id(space, "team", config)
        free, paid = admission.BudgetLine(team, "hold", {}), admission.BudgetLine(team, "fail", {"tokens": "7"})
        assert [await lines(client, node.id) for node in nodes] == [
            [free, admission.QuotaLine(api, "hold", "t1")], [paid, admission.QuotaLine(api, "hold", "t2")],
            [free, admission.QuotaLine(api, "hold", "t3")],
        ]  # fmt: skip
        await asyncio.gather(*(node.outcome(20) for node in nodes))


async def test_a_flow_whose_budget_is_used_up_waits_as_a_whole(run: Run) -> None:
    ran: list[int] = []

    @run.task
    async def part(n: int) -> int:
        ran.append(n)
        return n

    async with run.engine() as eng:
        budget = await eng.client.budget("team", hard={"n": 1})
        await budget.report(n=1)
        async with eng.client.flow("f", budget="team") as flow:
            parts = [flow.add(part, n) for n in range(3)]
        await asyncio.sleep(0.3)
        assert not ran and (await flow.status()).public_flow_state != "completed"
        await budget.raise_(n=5)
        assert sorted(await asyncio.gather(*(one.result(20) for one in parts))) == [0, 1, 2]
        assert (await flow.outcome(10)).state == "completed"
