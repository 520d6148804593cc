"""Why a job does not run, from what was read: no store is asked."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

from ffcore.contracts import dependency as c
from ffcore.contracts.budget import BudgetStatus
from ffcore.contracts.explain import Explained, Verdict
from ffcore.contracts.quota import QuotaStatus
from ffcore.contracts.reads import StoredExecution
from ffcore.ids import ExecutionId, LaneId, TimestampMs
from ffsdk.explain import awaited_by, explain_from, waits_for
from ffsdk.explain_limits import budget_reason, quota_reason, workers_told
from ffsdk.views import Reason

ID = ExecutionId("{fp:0}:00000000-0000-7000-8000-00000000000a")
DRY = Explained(TimestampMs(0), "ready", [], 0, 1, "", "")


def stored(**fields: str) -> StoredExecution:
    return StoredExecution(
        execution_id=ID, now_ms=TimestampMs(0), lane_id=LaneId("l"), worker_instance_id="",
        fields={"state": "ready", "next": "initial", "task": "work", **fields}, tags={}, texts={}, policy=b"",
        payload=b"", result=b"", attempts=[],
    )  # fmt: skip


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "waiting_for_worker"),
        ({"version": "3"}, "waiting_for_worker"),
        ({"attempt": "0", "next": "resumed"}, "unknown_task"),
        ({"attempt": "0", "next": "resumed", "version": "2"}, "waiting_for_worker"),
        ({"attempt": "1", "next": "retry", "version": "3"}, "unknown_task"),
        ({"attempt": "1", "next": "initial", "unpinned": "1"}, "waiting_for_worker"),
        ({"task": "other"}, "unknown_task"),
    ],
)
def test_a_job_that_no_code_has_begun_is_for_workers_of_any_version(fields: dict[str, str], why: str) -> None:
    workers = [{"lanes": ["l"], "tasks": ["work@2"]}]
    assert [reason.code for reason in explain_from(stored(**fields), DRY, workers).reasons] == [why]


class Upstreams:
    """A store with a job's upstreams, answered by pages of a hundred."""

    def __init__(self, states: list[str]) -> None:
        self.rows = [
            c.Upstream(n, ExecutionId(f"{{fp:0}}:{n}"), "work", f"u{n}", "s", "active", state, False, "", b"")
            for n, state in enumerate(states, 1)
        ]

    async def call(self, args: c.ReadUpstreamsArgs) -> c.Upstreams:
        page = [row for row in self.rows if row.order > args.after][:100]
        return c.Upstreams(page, page[-1].order if page and page[-1] is not self.rows[-1] else 0)


async def test_what_a_job_waits_for_is_found_behind_hundreds_that_have_ended() -> None:
    blocked = stored(state="blocked", reason="waiting_for_children")
    found = await awaited_by(cast("Any", Upstreams(["S"] * 950 + ["u"] * 3)), blocked)
    assert waits_for(found) == "u951 (active), u952 (active), u953 (active)"
    many = await awaited_by(cast("Any", Upstreams(["u"] * 1_000)), blocked)
    assert len(many) == 100


# ---- what budgets, quotas and workers say ---------------------------------------------------------------------


def budget(**fields: Any) -> BudgetStatus:
    given: dict[str, Any] = {
        "budget_id": "b", "scope_type": "namespace", "scope_id": "default", "enforcement_mode": "record", "usage": {},
        "hard_limits": {"tokens": 10_000}, "soft_limits": {}, "breach_count": 0, "soft_breach_count": 0,
        "last_breach_at": None, "last_breach_dim": None, "next_reset_at": None, "created_at": None, "name": "team-a",
    }  # fmt: skip
    return BudgetStatus(**given | fields)


def quota(**fields: Any) -> QuotaStatus:
    given: dict[str, Any] = {
        "name": "api", "namespace": "default", "window_seconds": 60, "max_requests_per_window": 100,
        "max_concurrent": 10, "created_at": 0, "subjects": 1, "in_window": 0, "active": 0, "next_free_ms": 0,
        "waiting": 0,
    }  # fmt: skip
    return QuotaStatus(**given | fields)


HALT = Verdict("waiting_for_budget", "what the store said", TimestampMs(5_000), "b x")


@pytest.mark.parametrize(
    ("status", "asks", "said"),
    [
        (budget(usage={"tokens": 9_800}, reserved={"tokens": 150}), {"tokens": "500"},
         "budget team-a: tokens 9,800 used + 150 reserved of 10,000, this job asks 500"),
        (budget(usage={"tokens": 10_000}), {}, "budget team-a: tokens 10,000 used of 10,000"),
        (budget(usage={"tokens": 9_500.25}), {"tokens": "499.75"}, None),
        (budget(usage={"tokens": 9_500.25}), {"tokens": "500"},
         "budget team-a: tokens 9,500.25 used of 10,000, this job asks 500"),
        (budget(usage={"tokens": 1}, next_reset_at="1700000000000"), {"tokens": "10000"},
         "budget team-a: tokens 1 used of 10,000, this job asks 10,000; resets 2023-11-14T22:13:20Z"),
        (budget(usage={"usd": 2, "tokens": 10_001}, hard_limits={"usd": 2, "tokens": 10_000, "calls": 0}), {},
         "budget team-a: tokens 10,001 used of 10,000; usd 2 used of 2"),
        (budget(usage={"calls": 10**9}, hard_limits={"calls": 0}), {"calls": "5"}, None),
    ],
)  # fmt: skip
def test_a_budget_that_refuses_tells_its_numbers(status: Any, asks: dict[str, str], said: str | None) -> None:
    found = budget_reason(status, asks, None)
    assert (found.detail if found else None) == said
    assert found is None or found.code == "waiting_for_budget"
    assert found is None or (found.until is not None) == ("resets" in found.detail)


def test_an_estimate_above_the_limit_is_never_admitted() -> None:
    found = budget_reason(budget(), {"tokens": "10001"}, None)
    assert found is not None and found.code == "never_within_budget"
    assert found.detail == (
        "budget team-a: tokens 0 used of 10,000, this job asks 10,001, more than there will ever be"
    )


def test_a_queue_that_is_still_halted_says_that_it_opens() -> None:
    for found in (budget_reason(budget(), {}, HALT), quota_reason(quota(), None, 0, HALT)):
        assert found is not None and found.until is not None and "opens within seconds" in found.detail


@pytest.mark.parametrize(
    ("status", "key", "said", "at_ms"),
    [
        (quota(in_window=100, next_free_ms=12_345), "t1",
         "quota api (key t1): 100 of 100 in 60 s; next place in 12.3 s", 13_345),
        (quota(active=10), None, "quota api: 10 of 10 run", None),
        (quota(in_window=100, next_free_ms=500, active=11), None,
         "quota api: 100 of 100 in 60 s; next place in 0.5 s, 11 of 10 run", None),
        (quota(in_window=99, active=9), None, None, None),
        (quota(in_window=500, max_requests_per_window=0, max_concurrent=0, active=90), None, None, None),
    ],
)  # fmt: skip
def test_a_quota_that_refuses_tells_its_numbers(status: Any, key: str | None, said: str | None, at_ms: Any) -> None:
    found = quota_reason(status, key, 1_000, None)
    assert (found.detail if found else None) == said
    assert (round(found.until.timestamp() * 1000) if found and found.until else None) == at_ms


@pytest.mark.parametrize(
    ("met", "said"),
    [
        (["gpu", "gpu", "", ""], "requires torch>=2.3: 0 of 4 workers have it"),
        ([""], "requires gpu: 0 of 1 workers has it; requires torch>=2.3: 0 of 1 workers has it"),
        (["gpu", "torch>=2.3"],
         "requires gpu (1 of 2), torch>=2.3 (1 of 2): no worker has all of them, the nearest lacks torch>=2.3"),
    ],
)  # fmt: skip
def test_what_no_worker_has_is_counted(met: list[str], said: str) -> None:
    assert workers_told([one.split() for one in met], ["gpu", "torch>=2.3"]) == said


def test_a_halt_is_told_once_with_the_numbers_of_what_it_waits_for() -> None:
    dry = Explained(TimestampMs(0), "ready", [HALT], 0, 1, "", "")
    told = Reason(code="waiting_for_budget", detail="budget team-a: ...")
    workers = [{"lanes": ["l"], "tasks": ["work@1"]}]
    assert explain_from(stored(), dry, workers, limits_=[told]).reasons == [told]


def test_a_worker_whose_capabilities_cannot_be_read_has_none() -> None:
    policy = b'{"routing_requirements": {"required_capabilities": ["gpu"]}}'
    workers = [{"lanes": ["l"], "capabilities": ["gpu", "torch>=2"]}, {"lanes": ["l"], "capabilities": ["cpu"]}]
    needy = msgspec.structs.replace(stored(), policy=policy)
    (told,) = explain_from(needy, DRY, workers).reasons
    assert (told.code, told.detail) == ("no_capable_worker", "requires gpu: 0 of 2 workers have it")


def test_a_worker_with_too_many_tasks_to_say_may_know_any() -> None:
    (told,) = explain_from(stored(task="other"), DRY, [{"lanes": ["l"], "tasks": None}]).reasons
    assert told.code == "waiting_for_worker"
    assert told.detail == "number 1 of 1 in line in its partition; 1 workers serve it"
