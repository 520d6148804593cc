"""Budgets, quotas and unique keys as they are written: what they say on the wire, and what is refused at once."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any, cast

import pytest

import ffsdk as ff
from ffcore import admission, limits
from ffcore.backend import StoreConfig
from ffcore.errors import rejection
from ffsdk.admit import Terms, budget_id, quota_id
from ffsdk.fields import text_at
from ffsdk.submit import Submitter
from ffsdk.unique import check_member

STORE = StoreConfig(fp=4)


def text(terms: Terms, payload: Any = None) -> str:
    return terms.lines("default", STORE).text(lambda path: text_at(path, payload))


def test_lines_stand_in_the_order_they_are_asked() -> None:
    budget = ff.Budget("team-a", estimate={"usd": Decimal("0.25"), "tokens": 500}, on_exceed="fail")
    terms = Terms.of([budget, "all"], [ff.Quota("api", key="payload.tenant"), "lane"])
    one, two = budget_id("default", "team-a", STORE), budget_id("default", "all", STORE)
    three, four = quota_id("default", "api", STORE), quota_id("default", "lane", STORE)
    assert text(terms, {"tenant": "t 1"}).split("\n") == [
        f"b {one} fail tokens=500,usd=0.25", f"b {two} hold -", f"q {three} hold t%201", f"q {four} hold -",
    ]  # fmt: skip
    assert admission.parse(text(terms, {"tenant": "t1"}))[2] == admission.QuotaLine(three, "hold", "t1")


def test_what_is_the_same_for_all_jobs_is_made_once() -> None:
    fixed = Terms.of("team-a", ff.Quota("api", key="t1")).lines("default", STORE)
    assert fixed.fixed is not None and fixed.fixed.endswith(" t1") and not fixed.keyed
    keyed = Terms.of("team-a", ff.Quota("api", key="payload.tenant")).lines("default", STORE)
    assert keyed.fixed is None and keyed.keyed
    nothing = Terms().lines("default", STORE)
    assert nothing.fixed is None and not nothing.keyed


def test_a_key_that_only_looks_like_a_field_can_be_given() -> None:
    """Names of customers come from outside: one of them may be called payload.x."""
    quota = ff.Quota("api", key="payload.x", literal=True)
    assert quota.path is None and text(Terms.of(None, quota)).endswith(" payload.x")
    assert ff.Unique("payload.x", literal=True).path is None and ff.Unique("payload.x").path == "payload.x"
    assert [ff.Quota("api", key=key).path for key in ("payload", "payloads.x", "payload.", "t1")] == [
        "payload", None, None, None,
    ]  # fmt: skip


def test_jobs_without_the_field_share_what_jobs_without_a_key_have() -> None:
    assert text(Terms.of(None, ff.Quota("api", key="payload.tenant")), {}).endswith(" -")


def test_a_submit_says_it_instead_of_the_task_and_a_flow_beside_it() -> None:
    task = Terms.of(["a", "b"], "q")
    assert task.instead(None, None) == task
    assert task.instead("c", None) == Terms.of("c", "q")
    assert not task.instead([], []).any
    dear = ff.Budget("b", estimate={"n": 1})
    assert task.beside(Terms.of([dear, "c"], ["q", ff.Quota("q", key="k")])) == Terms.of(
        ["a", "b", "c"], ["q", ff.Quota("q", key="k")]
    )


def test_a_budget_keeps_its_estimate_as_it_was_given() -> None:
    given: dict[str, int] = {"tokens": 1}
    budget = ff.Budget("b", given)
    given["tokens"] = 2
    assert budget.estimate == {"tokens": 1}


@pytest.mark.parametrize(
    "make",
    [
        lambda: ff.Budget("two words"), lambda: ff.Budget(""), lambda: ff.Budget("b", {"tokens": -1}),
        lambda: ff.Budget("b", {"tokens": True}), lambda: ff.Budget("b", {"two words": 1}),
        lambda: ff.Budget("b", {"n": float("nan")}), lambda: ff.Budget("b", [("tokens", 1)]),  # type: ignore[arg-type]
        lambda: ff.Budget("b", on_exceed="wait"),  # type: ignore[arg-type]
        lambda: ff.Quota("q", on_exceed="wait"),  # type: ignore[arg-type]
        lambda: ff.Quota("{q}"), lambda: ff.Quota("q", key=""), lambda: ff.Quota("q", key="\n"),
        lambda: ff.Unique(""), lambda: ff.Unique("k", "running"),  # type: ignore[arg-type]
        lambda: ff.Unique("k", action="drop"),  # type: ignore[arg-type]
        lambda: ff.Unique("k", "window"), lambda: ff.Unique("k", "window", 0), lambda: ff.Unique("k", window=5),
        lambda: ff.Unique("k", "forever", action="debounce", window=5), lambda: ff.Unique("k", action="debounce"),
        lambda: Terms.of(7, None),  # type: ignore[arg-type]
        lambda: Terms.of([7], None),  # type: ignore[list-item]
        lambda: Terms.of(ff.Quota("q"), None),  # type: ignore[arg-type]
        lambda: Terms.of(["a", ff.Budget("a")], None), lambda: Terms.of(None, ["q", "q"]),
        lambda: text(Terms.of([f"b{n}" for n in range(limits.ADMISSIONS_N)], None)),
        lambda: text(Terms.of([ff.Budget(f"b{n}", {"d" * 60 + str(i): 1 for i in range(32)}) for n in range(9)], None)),
        lambda: check_member(ff.Unique("k", action="existing"), "spawn"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_where_it_is_written(make: Any) -> None:
    with pytest.raises(ff.InvalidArgument):
        make()


def test_the_spans_of_a_unique_key() -> None:
    debounced = ff.Unique("k", window=timedelta(seconds=2), action="debounce")
    assert (debounced.delay_ms, debounced.window_ms) == (2_000, 0)
    window = ff.Unique("k", "window", 2.5)
    assert (window.delay_ms, window.window_ms) == (0, 2_500)


class Store:
    """Has every budget and quota but those of these names."""

    def __init__(self) -> None:
        self.config, self.missing, self.asked = STORE, set[str](), list[str]()

    async def call_all(self, batch: list[Any]) -> list[Any]:
        found: list[str] = [getattr(one, "budget_id", "") or one.quota_policy_id for one in batch]
        self.asked += found
        return [rejection("budget_not_found") if one in self.missing else None for one in found]


async def test_each_name_is_looked_for_once() -> None:
    """Jobs with budgets must not cost a call more than others; a misspelt name must not wait for ever either."""
    app, store = ff.App("memory://unused"), Store()
    task = app.task(name="t", budget="team-a", quota=ff.Quota("api", key="payload.tenant"))(lambda payload: None)
    submitter = Submitter(cast("Any", store), "default", "accepted", app.tasks, lambda: 0)
    store.missing = {budget_id("default", "team-a", STORE)}
    for _ in range(2):
        with pytest.raises(ff.NotFound, match="team-a"):
            await submitter.plan(task, {})
    store.missing, store.asked = set(), []
    plans = [await submitter.plan(task, {}) for _ in range(3)]
    await submitter.plan("t", {"priority": 3, "budget": ["team-a"]})
    assert len(store.asked) == 2 and plans[0] is plans[1]
    await submitter.plan(task, {}, also=Terms.of("team-b", None))
    assert store.asked[2:] == [budget_id("default", "team-b", STORE)]
    one, two = (plans[0].new(None, {"tenant": name}, b"{}").admission or "" for name in ("t1", "t2"))
    assert one.split()[:-1] == two.split()[:-1] and (one[-3:], two[-3:]) == (" t1", " t2")
