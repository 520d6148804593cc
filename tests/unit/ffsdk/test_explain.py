"""Why a job does not run, from what was read: no store is asked."""

from __future__ import annotations

import pytest

from ffcore.contracts.operator import LaneCounts
from ffcore.contracts.reads import StoredExecution
from ffcore.ids import ExecutionId, LaneId, TimestampMs
from ffsdk.explain import explain_from

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
