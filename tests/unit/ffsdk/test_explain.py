"""Why a job does not run, from what was read: no store is asked."""

from __future__ import annotations

from typing import Any, cast

import pytest

from ffcore.contracts import dependency as c
from ffcore.contracts.operator import LaneCounts
from ffcore.contracts.reads import StoredExecution
from ffcore.ids import ExecutionId, LaneId, TimestampMs
from ffsdk.explain import awaited_by, explain_from, waits_for

ID = ExecutionId("{fp:0}:00000000-0000-7000-8000-00000000000a")
LANE = LaneCounts("active", {"ready": 1}, TimestampMs(0), 0, TimestampMs(0))


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
    assert [reason.code for reason in explain_from(stored(**fields), LANE, [], workers).reasons] == [why]


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
