"""Budgets: what each function answers, and what it leaves behind."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

import ffcore.contracts as c
from ffcore import ids, limits
from ffcore.contracts.mail import Letter
from ffcore.contracts.upkeep import OwedRow
from ffcore.ids import BudgetId, PartitionKey
from tests.lua.engine import P0, START_MS, Engine, library_of, open_engine

B0 = ids.partition_key(0, "b")
Q0 = ids.partition_key(0, "q")
_numbers = itertools.count(1)


def budget_id(n: int = 0) -> BudgetId:
    return BudgetId(f"{B0}:{n:08x}-0000-8000-8000-000000000000")


TEAM = budget_id(1)


def job(n: int, partition: PartitionKey = P0) -> str:
    return f"{partition}:{n:08x}-0000-7000-8000-000000000000"


def creating(
    id: BudgetId = TEAM, hard: dict[str, Any] | None = None, soft: dict[str, Any] | None = None, **options: Any
) -> c.CreateBudgetArgs:
    hard = {"tokens": 100} if hard is None else hard
    soft = soft or {}
    dimensions = sorted({**hard, **soft})
    given: dict[str, Any] = {
        "budget_id": id, "name": "team", "scope_type": "team", "scope_id": "a", "enforcement_mode": "record",
        "on_hard_limit": "hold", "on_soft_limit": "warn", "reset_interval_ms": 0, "dimensions": dimensions,
        "hard_limits": [hard.get(name, 0) for name in dimensions],
        "soft_limits": [soft.get(name, 0) for name in dimensions],
    } | options  # fmt: skip
    return c.CreateBudgetArgs(**given)


async def created(engine: Engine, id: BudgetId = TEAM, **options: Any) -> BudgetId:
    assert await engine.call(creating(id, **options)) == c.BudgetCreated(id)
    return id


async def status(engine: Engine, id: BudgetId = TEAM) -> c.BudgetStatus:
    return await engine.call(c.ReadBudgetArgs(budget_id=id))


def reserving(n: int, amounts: str = "tokens=10", *, id: BudgetId = TEAM, epoch: int = 1, lease_ms: int = 30_000,
              now: int = START_MS, partition: Any = P0, adm: str = "a1b2c3d4e5f6") -> c.ReserveRow:  # fmt: skip
    return c.ReserveRow(id, job(n), epoch, now + lease_ms, partition, adm, amounts)  # type: ignore[arg-type]


async def reserved(engine: Engine, *rows: c.ReserveRow) -> list[c.ReservedRow]:
    return (await engine.call(c.ReserveManyArgs(partition=B0, items=list(rows)))).items


async def spent(
    engine: Engine, n: int, amounts: str, *, id: BudgetId = TEAM, epoch: int = 1, key: str | None = None
) -> c.SpentRow:
    named = f"k{next(_numbers)}" if key is None else key
    row = c.SpendRow(id, job(n), epoch, named, amounts)
    (answer,) = (await engine.call(c.SpendManyArgs(partition=B0, items=[row]))).items
    return answer


async def report(engine: Engine, key: str | None = None, id: BudgetId = TEAM, **amounts: Any) -> Any:
    return await engine.call(
        c.ReportUsageArgs(at=id, dimensions=list(amounts), deltas=list(amounts.values()), dedup_key=key)
    )


class Post:
    """Rows from an execution partition, numbered as its outbox would."""

    def __init__(self, engine: Engine, source: PartitionKey = P0) -> None:
        self.engine, self.source, self.last = engine, source, 0

    def row(self, kind: str, body: str) -> Letter:
        before, self.last = self.last, self.last + 1
        return Letter(f"{B0}/{before}/{self.last}", kind, body)

    def settle(self, n: int, epoch: int = 1, id: BudgetId = TEAM) -> Letter:
        return self.row("settle", f"b {ids.uuid_of(id)} - {job(n)} {epoch} 0")

    def spend(self, n: int, amounts: str, *, epoch: int = 1, key: str = "k", id: BudgetId = TEAM) -> Letter:
        return self.row("spend", f"{ids.uuid_of(id)} {job(n)} {epoch} {key} {amounts}")

    async def deliver(self, *rows: Letter) -> c.Delivered:
        return await self.engine.call(c.DeliverArgs(partition=B0, source=self.source, items=list(rows)))


def waking(adm: str, gen: int, allow: int, id: BudgetId = TEAM, target: PartitionKey = P0) -> c.Wake:
    """`gen` counts from the making of a budget that was made at first."""
    return c.Wake(target, "unhalt", f"{adm} {ids.uuid_of(id)} {START_MS + gen} {allow}")


async def owed(engine: Engine) -> list[OwedRow]:
    return (await engine.tick(B0)).owed


# ---- making, reading, changing ---------------------------------------------------------------------------


async def test_a_budget_is_created_once_and_read_back(engine: Engine) -> None:
    args = creating(hard={"tokens": 100, "usd": 2.5}, soft={"tokens": 80}, reset_interval_ms=60_000)
    assert await engine.call(args) == c.BudgetCreated(TEAM)
    assert await engine.call(creating(hard={"tokens": 5})) == c.BudgetAlreadySatisfied(TEAM)
    assert await status(engine) == c.BudgetStatus(
        budget_id=TEAM, scope_type="team", scope_id="a", enforcement_mode="record", usage={"tokens": 0, "usd": 0},
        hard_limits={"tokens": 100, "usd": 2.5}, soft_limits={"tokens": 80}, breach_count=0, soft_breach_count=0,
        last_breach_at=None, last_breach_dim=None, next_reset_at=str(START_MS + 60_000), created_at=str(START_MS),
        name="team", namespace="default", on_hard_limit="hold", on_soft_limit="warn", reset_interval_ms=60_000,
        reserved={}, reservations=0, period=1, waiting=0,
    )  # fmt: skip
    assert budget_id(9) in await engine.refused("budget_not_found", c.ReadBudgetArgs(budget_id=budget_id(9)))


@pytest.mark.parametrize(("fields", "code", "detail"), [
    ({"scope_type": "a b"}, "invalid_budget_scope", "scope_type is a name"),
    ({"scope_id": "x" * 200}, "invalid_budget_scope", "scope_type is a name"),
    ({"enforcement_mode": "strict"}, "invalid_input", "enforcement_mode is record or refuse"),
    ({"on_hard_limit": "explode"}, "invalid_input", "on_hard_limit"),
    ({"on_soft_limit": "explode"}, "invalid_input", "on_soft_limit"),
    ({"name": "a b"}, "invalid_input", "name"),
    ({"reset_interval_ms": -1}, "invalid_input", "reset_interval_ms"),
    ({"hard_limits": [1, 2]}, "invalid_input", "as many numbers"),
    ({"hard_limits": [-1]}, "invalid_input", "an amount of tokens"),
    ({"hard_limits": ["x"]}, "invalid_input", "an amount of tokens"),
    ({"dimensions": ["a b"]}, "invalid_input", "dimension a b"),
    ({"dimensions": ["d"] * 33}, "invalid_input", "dimensions"),
    ({"dimensions": ["a", "a"], "hard_limits": [1, 1], "soft_limits": [1, 1]}, "invalid_input", "dimension a"),
])  # fmt: skip
async def test_a_budget_nobody_could_mean_is_refused(
    engine: Engine, fields: dict[str, Any], code: str, detail: str
) -> None:
    assert (await engine.refused(code, creating(), **fields)).startswith(detail)
    assert (await engine.call(c.ListBudgetsArgs(partition=B0))).budgets == []


async def test_budgets_live_in_their_own_partitions(engine: Engine) -> None:
    assert "{b:M}" in await engine.refused("invalid_input", creating(BudgetId(job(1))))


async def test_nothing_is_created_above_the_high_water_mark(engine: Engine) -> None:
    await engine.command(
        "HSET",
        f"ff:{B0}",
        "v",
        (await engine.command("HGET", f"ff:{B0}", "v")).decode() + " x",
        "gate_until",
        START_MS + 1_000,
    )
    await engine.refused("store_full", creating())
    await engine.advance(1_001)
    await created(engine)
    await engine.tick(B0)


async def test_budgets_are_listed_in_pages(engine: Engine) -> None:
    made = [await created(engine, budget_id(n)) for n in range(5)]
    first = await engine.call(c.ListBudgetsArgs(partition=B0, limit=3))
    rest = await engine.call(c.ListBudgetsArgs(partition=B0, cursor=first.cursor, limit=3))
    assert [b.budget_id for b in first.budgets + rest.budgets] == made
    assert rest.cursor is None
    assert await engine.refused("invalid_input", c.ListBudgetsArgs(partition=B0, limit=0)) == "limit"
    await engine.refused("invalid_offset", c.ListBudgetsArgs(partition=B0, cursor="[x"))


async def test_limits_and_modes_are_brought_to_what_is_given(engine: Engine) -> None:
    await created(engine, hard={"tokens": 100, "usd": 1}, soft={"tokens": 5})
    await report(engine, tokens=10)
    changes = c.budget_changes(
        hard={"tokens": "50", "calls": "3"}, soft={}, reset_interval_ms=1_000, enforcement_mode="refuse",
        on_hard_limit="fail", on_soft_limit="none",
    )  # fmt: skip
    for _ in range(2):
        changed = (await engine.call(c.ChangeBudgetArgs(budget_id=TEAM, changes=changes))).budget
        assert (changed.hard_limits, changed.soft_limits) == ({"tokens": 50, "calls": 3}, {})
        assert changed.usage == {"tokens": 10, "usd": 0, "calls": 0}
        assert (changed.enforcement_mode, changed.on_hard_limit, changed.on_soft_limit) == ("refuse", "fail", "none")
        assert changed.next_reset_at == str(START_MS + 1_000)
        assert changed == await status(engine)
    changes = c.budget_changes(reset_interval_ms=0)
    assert (await engine.call(c.ChangeBudgetArgs(budget_id=TEAM, changes=changes))).budget.next_reset_at is None


@pytest.mark.parametrize(("changes", "detail"), [
    ({"hard_limits": "tokens"}, "hard_limits are amounts, as in tokens=500"), ({"colour": "red"}, "colour"),
    ({"enforcement_mode": "strict"}, "enforcement_mode"), ({"reset_interval_ms": "-1"}, "reset_interval_ms"),
    ({"soft_limits": ",".join(f"d{n}=1" for n in range(32))}, "more than 32 dimensions"),
])  # fmt: skip
async def test_a_change_nobody_could_mean_changes_nothing(engine: Engine, changes: dict[str, str], detail: str) -> None:
    await created(engine)
    before = await status(engine)
    assert await engine.refused("invalid_input", c.ChangeBudgetArgs(budget_id=TEAM, changes=changes)) == detail
    assert await status(engine) == before
    await engine.refused("budget_not_found", c.ChangeBudgetArgs(budget_id=budget_id(9), changes={}))


async def test_a_limit_is_raised_once_per_key(engine: Engine) -> None:
    await created(engine, hard={"tokens": 100, "usd": 1})
    raising = c.RaiseBudgetArgs(budget_id=TEAM, amounts="tokens=50,usd=0.5", key="approval-1")
    assert await engine.call(raising) == c.BudgetRaised({"tokens": 150, "usd": 1.5}, False)
    await engine.advance(limits.REPORT_KEYS_MS + 1)
    await engine.pass_time(2_000)
    await engine.tick(B0)
    assert await engine.call(raising) == c.BudgetRaised({"tokens": 150, "usd": 1.5}, True)
    assert (await engine.call(c.RaiseBudgetArgs(budget_id=TEAM, amounts="tokens=1", key="approval-2"))).hard_limits[
        "tokens"
    ] == 151
    said = await engine.refused("invalid_input", c.RaiseBudgetArgs(budget_id=TEAM, amounts="calls=1", key="k"))
    assert said == "the budget has no hard limit for calls"
    await engine.refused("invalid_input", c.RaiseBudgetArgs(budget_id=TEAM, amounts="-", key="k"))
    await engine.refused("invalid_input", c.RaiseBudgetArgs(budget_id=TEAM, amounts="tokens=1", key=""))
    await engine.refused("budget_not_found", c.RaiseBudgetArgs(budget_id=budget_id(9), amounts="tokens=1", key="k"))


async def test_a_deleted_budget_leaves_nothing(engine: Engine) -> None:
    before = await engine.command("DBSIZE")
    await created(engine, reset_interval_ms=1_000)
    await reserved(engine, reserving(1), reserving(2, "tokens=200"), reserving(3, "tokens=95"))
    await spent(engine, 1, "tokens=5")
    await report(engine, "k", tokens=1)
    assert await engine.call(c.DeleteBudgetArgs(budget_id=TEAM)) == c.BudgetDeleted()
    await engine.refused("budget_not_found", c.DeleteBudgetArgs(budget_id=TEAM))
    assert [row.body.split(" ")[0] for row in await owed(engine)] == ["a1b2c3d4e5f6"], "who waited is told"
    for _ in range(3):
        await engine.advance(30_001)
        assert await owed(engine) == []
    assert await engine.command("DBSIZE") == before
    (row,) = await reserved(engine, reserving(1))
    assert row.state == "not_found"
    assert (await spent(engine, 1, "tokens=1")).dimension == "budget_not_found"


# ---- reports ---------------------------------------------------------------------------------------------


async def test_a_report_is_recorded_whatever_it_passes(engine: Engine) -> None:
    await created(engine, hard={"tokens": 100}, soft={"tokens": 50})
    assert await report(engine, tokens=50) == c.UsageOk()
    assert await report(engine, tokens=10) == c.SoftBreach("tokens", 60, 50)
    assert await report(engine, tokens=10) == c.SoftBreach("tokens", 70, 50)
    await engine.advance(7)
    assert await report(engine, tokens=31.25) == c.HardBreach("tokens", 101.25, 100, True)
    now = await status(engine)
    assert now.usage == {"tokens": 101.25}
    assert (now.breach_count, now.soft_breach_count) == (1, 1), "a soft breach is one crossing"
    assert (now.last_breach_at, now.last_breach_dim) == (str(START_MS + 7), "tokens")


async def test_a_budget_may_refuse_what_passes_its_limit(engine: Engine) -> None:
    await created(engine, hard={"tokens": 100, "usd": 1}, enforcement_mode="refuse")
    assert await report(engine, "a", tokens=90, usd=2) == c.HardBreach("usd", 0, 1, False)
    assert (await status(engine)).usage == {"tokens": 0, "usd": 0}, "all of a report or none of it"
    assert await report(engine, "a", tokens=90) == c.UsageOk(), "what was refused is not remembered"
    assert (await spent(engine, 1, "tokens=11")).state == "hard"
    assert (await status(engine)).usage == {"tokens": 90, "usd": 0}
    assert (await status(engine)).breach_count == 2


async def test_a_key_counts_once(engine: Engine) -> None:
    await created(engine)
    other = await created(engine, budget_id(2))
    args = c.ReportUsageAdminArgs(at=TEAM, dimensions=["tokens"], deltas=[5], dedup_key="k")
    assert await engine.call(args) == c.UsageOk()
    assert await engine.call(args) == c.AlreadyApplied()
    assert await report(engine, "k", other, tokens=5) == c.UsageOk(), "keys are a budget's own"
    assert (await spent(engine, 1, "tokens=5", key="k")).state == "ok", "and an execution's own"
    assert (await spent(engine, 1, "tokens=5", key="k")).state == "already"
    assert (await spent(engine, 2, "tokens=5", key="k")).state == "ok"
    assert (await status(engine)).usage == {"tokens": 15}
    without = c.ReportUsageArgs(at=TEAM, dimensions=["tokens"], deltas=[1])
    assert [await engine.call(without) for _ in range(2)] == [c.UsageOk(), c.AlreadyApplied()], "sent again"
    await engine.pass_time(1_000)
    await engine.advance(limits.REPORT_KEYS_MS)
    await engine.tick(B0)
    assert await engine.command("ZCARD", f"ff:{B0}:rep:{ids.uuid_of(TEAM)}") == 0, "keys are forgotten"
    assert await engine.call(args) == c.UsageOk()


async def test_dimensions_nobody_limited_are_counted(engine: Engine) -> None:
    await created(engine)
    assert await report(engine, tokens=1, wall_ms=20) == c.UsageOk()
    assert (await status(engine)).usage == {"tokens": 1, "wall_ms": 20}
    answer = await spent(engine, 1, "tokens=1,joules=3")
    assert (answer.state, answer.unknown) == ("ok", "joules"), "an execution spends of what there is"
    assert (await status(engine)).usage == {"tokens": 2, "wall_ms": 20}
    many = {f"d{n}": 1 for n in range(31)}
    assert "32 dimensions" in await engine.refused(
        "invalid_input", c.ReportUsageArgs(at=TEAM, dimensions=list(many), deltas=list(many.values()))
    )


async def test_reports_nobody_could_mean_are_refused(engine: Engine) -> None:
    await created(engine)
    args = c.ReportUsageArgs(at=TEAM, dimensions=["tokens"], deltas=[1], dedup_key="k")
    assert await engine.refused("invalid_input", args, deltas=[-1]) == "an amount of tokens"
    assert await engine.refused("invalid_input", args, dedup_key="") == "dedup_key"
    await engine.refused("budget_not_found", args, at=budget_id(9))
    rows = [
        c.SpendRow(TEAM, job(1), 1, "", "tokens=1"), c.SpendRow(TEAM, "x", 1, "k", "tokens=1"),
        c.SpendRow(TEAM, job(1), 1, "k", "tokens"), c.SpendRow(BudgetId(f"{B0}:x"), job(1), 1, "k", "tokens=1"),
        c.SpendRow(TEAM, job(1), 1, "k", "tokens=2"),
    ]  # fmt: skip
    answers = (await engine.call(c.SpendManyArgs(partition=B0, items=rows))).items
    assert [row.state for row in answers] == ["error"] * 4 + ["ok"]
    assert (await status(engine)).usage == {"tokens": 2}


async def test_who_spent_most_of_what_is_limited(engine: Engine) -> None:
    await created(engine, hard={"tokens": 1_000, "usd": 1})
    await spent(engine, 1, "tokens=100")
    await spent(engine, 2, "usd=0.5")
    await spent(engine, 3, "tokens=200,usd=0.1")
    await spent(engine, 1, "tokens=10")
    await report(engine, tokens=7)
    top = await engine.call(c.TopSpendersArgs(budget_id=TEAM))
    assert top.spenders == [
        c.Spender(job(2), {"usd": 0.5}), c.Spender(job(3), {"tokens": 200, "usd": 0.1}),
        c.Spender(job(1), {"tokens": 110}),
    ]  # fmt: skip
    assert top.rest == {"tokens": 7}
    assert len((await engine.call(c.TopSpendersArgs(budget_id=TEAM, limit=1))).spenders) == 1
    await engine.refused("budget_not_found", c.TopSpendersArgs(budget_id=budget_id(9)))
    await engine.refused("invalid_input", c.TopSpendersArgs(budget_id=TEAM), limit=0)


# ---- bounds, repeats ---------------------------------------------------------------------------------------


async def test_of_very_many_spenders_the_smallest_are_one_sum(store_url: str) -> None:
    lib = library_of()
    assert lib.source.count("SPENDERS_N = 10000") == 1
    few = lib._replace(sha="few", source=lib.source.replace("SPENDERS_N = 10000", "SPENDERS_N = 3"))
    engine = await open_engine(store_url, few)
    try:
        await created(engine, hard={"tokens": 1_000})
        for n in range(6):
            await spent(engine, n, f"tokens={(n + 1) * 10}")
        await spent(engine, 0, "tokens=1")
        top = await engine.call(c.TopSpendersArgs(budget_id=TEAM))
        assert [one.amounts for one in top.spenders] == [{"tokens": 60}, {"tokens": 50}, {"tokens": 40}]
        assert top.rest == {"tokens": 61}
        assert (await status(engine)).usage == {"tokens": 211}
        assert not await engine.violations()
    finally:
        await engine.close()


REPEATED: dict[str, Any] = {
    "create": creating(budget_id(2)),
    "report": c.ReportUsageArgs(at=TEAM, dimensions=["tokens"], deltas=[1]),
    "spend": c.SpendManyArgs(partition=B0, items=[c.SpendRow(TEAM, job(1), 1, "k", "tokens=1")]),
    "reserve": c.ReserveManyArgs(partition=B0, items=[reserving(1)]),
    "raise": c.RaiseBudgetArgs(budget_id=TEAM, amounts="tokens=1", key="k"),
    "change": c.ChangeBudgetArgs(budget_id=TEAM, changes=c.budget_changes(hard={"tokens": "7"})),
}


@pytest.mark.parametrize("what", REPEATED)
async def test_a_call_that_is_repeated_writes(engine: Engine, what: str) -> None:
    """A WAIT for copies behind a call that wrote nothing would report the first call's write as safe."""
    await created(engine)

    async def replays() -> int:
        return int((await engine.call(c.ReadHeaderArgs(partition=B0))).fields.get("replays", "0"))

    assert REPEATED[what].REPEATABLE
    await engine.call(REPEATED[what])
    before, state = await replays(), await status(engine)
    await engine.call(REPEATED[what])
    assert (await replays(), await status(engine)) == (before + 1, state)


def test_a_reset_is_not_sent_twice() -> None:
    """It would forget what was spent in between."""
    assert not c.ResetBudgetArgs.REPEATABLE


async def test_whole_amounts_are_exact_all_the_way(engine: Engine) -> None:
    most = 2**53 - 1
    await created(engine, hard={"tokens": most})
    await report(engine, tokens=2**52)
    await report(engine, tokens=2**52 - 1)
    assert (await status(engine)).usage == {"tokens": most}
    (row,) = await reserved(engine, reserving(1, "tokens=1"))
    assert row.state == "refused"
    for _ in range(20):
        await spent(engine, 1, "joules=0.1,tokens=0")
    assert (await status(engine)).usage == {"tokens": most}


async def test_a_tenth_ten_times_is_one(engine: Engine) -> None:
    await created(engine, hard={"usd": 1})
    for _ in range(10):
        await spent(engine, 1, "usd=0.1")
    assert (await status(engine)).usage == {"usd": 1}
    for _ in range(2):
        assert (await spent(engine, 1, "usd=0.000001", key="last")).state == "hard", "a repeat is told of it, too"
    assert (await status(engine)).usage == {"usd": 1.000001}
    args = c.ReportUsageArgs(at=TEAM, dimensions=["usd"], deltas=[1], dedup_key="k")
    assert isinstance(await engine.call(args), c.HardBreach)
    assert await engine.call(args) == c.AlreadyApplied()
