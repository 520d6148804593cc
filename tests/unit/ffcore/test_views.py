"""Views: what one stored record looks like to the contracts."""

from __future__ import annotations

from typing import Any

import pytest

from ffcore import views
from ffcore.contracts.reads import StoredExecution
from ffcore.ids import ExecutionId, LaneId, TimestampMs
from ffcore.states import STATES, PublicState, vector

ID = ExecutionId("{fp:1}:01a1fde2-9924-7d8f-8927-3ae4b401c73e")
NEW = {"state": "ready", "next": "initial", "task": "t", "created_at": "1000", "lane": "1"}
RUNNING = {
    "state": "active", "next": "initial", "task": "t", "created_at": "1000", "started_at": "2000", "attempt": "2",
    "lease_id": "w.c.1.0", "lease_epoch": "77", "at": "9000", "priority": "-3", "namespace": "n", "moved_at": "1500",
}  # fmt: skip


def stored(fields: dict[str, str], **more: Any) -> StoredExecution:
    given: dict[str, Any] = {"worker_instance_id": "w", "tags": {}, "texts": {}, "payload": b"", **more}
    return StoredExecution(
        execution_id=ID,
        now_ms=TimestampMs(5_000),
        lane_id=LaneId("mail"),
        fields=fields,
        policy=b"",
        result=b"",
        attempts=[],
        **given,
    )


def test_an_execution_that_never_ran_has_no_attempt_and_no_lease() -> None:
    seen = views.snapshot(stored(NEW))
    assert seen.current_attempt is None and seen.current_lease is None and seen.total_attempt_count == 0
    assert (seen.public_state, seen.blocking_reason, seen.namespace) == ("waiting", "waiting_for_worker", "default")
    assert seen.last_mutation_at == 1_000


def test_a_running_execution_shows_its_attempt_and_its_lease() -> None:
    seen = views.snapshot(stored(RUNNING))
    assert seen.current_attempt is not None and seen.current_lease is not None
    assert (seen.current_attempt.attempt_index, seen.current_attempt.attempt_id) == (2, "w.c.1.0")
    lease = seen.current_lease
    assert (lease.lease_epoch, lease.expires_at, lease.lease_id, lease.worker_instance_id) == (
        77,
        9_000,
        "w.c.1.0",
        "w",
    )
    assert seen.total_attempt_count == 3 and seen.blocking_reason is None and seen.last_mutation_at == 2_000


def test_the_end_of_a_lease_is_not_taken_for_the_time_of_a_delayed_one() -> None:
    """Both stand in the same field of the record; the state says which it is."""
    delayed = stored({**NEW, "state": "delayed", "reason": "waiting_for_delay", "at": "9000"})
    assert (views.due_at(delayed), views.lease_expires_at(delayed)) == (9_000, 0)
    running = stored(RUNNING)
    assert (views.due_at(running), views.lease_expires_at(running)) == (0, 9_000)


def test_blocking_text_is_shown_only_while_it_blocks() -> None:
    """It stays in the record; after the release it would be a lie."""
    fields = {**NEW, "state": "blocked", "reason": "paused_by_operator"}
    assert views.snapshot(stored(fields, texts={"blocking": "provider down"})).blocking_detail == "provider down"
    assert views.snapshot(stored(NEW, texts={"blocking": "provider down"})).blocking_detail is None


def test_the_full_read_has_instants_as_text_as_the_seed_has_them() -> None:
    info = views.info(stored(RUNNING))
    assert (info.created_at, info.started_at, info.completed_at) == ("1000", "2000", None)
    assert (info.priority, info.current_attempt_index, info.execution_kind, info.namespace) == (-3, 2, "t", "n")
    assert info.state_vector == vector("active", None, "initial", True)


def test_a_context_is_the_same_for_each_attempt() -> None:
    context = views.context(stored(RUNNING, payload=b"{}", tags={"shop.tenant": "t1"}))
    assert (context.input_payload, context.execution_kind, context.tags) == (b"{}", "t", {"shop.tenant": "t1"})


@pytest.mark.parametrize("public", PublicState)
def test_a_listing_by_public_state_looks_where_such_executions_are(public: PublicState) -> None:
    """Every stored word whose public state is fixed is found under it; blocked ones under all that reasons make."""
    fixed = {word for word, row in STATES.items() if row.public is public} - {"reclaimable", "revoked"}
    blocked = {"blocked"} if public in ("waiting", "rate_limited", "waiting_children") else set[str]()
    assert set(views.LISTED[public]) == fixed | blocked
