"""A suspension that nobody and nothing could end is refused before the lease is given up."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from ffcore import contracts as c
from ffcore.errors import InvalidArgument
from ffcore.ids import (
    AttemptId,
    ExecutionId,
    LeaseEpoch,
    LeaseId,
    SuspensionId,
    TimestampMs,
    WaitpointId,
    WaitpointToken,
)

ONE = ExecutionId("{fp:3}:018f0000-0000-7000-8000-000000000000")
FENCE = c.LeaseFence(LeaseId("w.0.1.0"), LeaseEpoch(7), AttemptId("w.0.1.0"))
PRIMARY = c.Fresh(WaitpointId("wp-1"), "wpk:1")
SECOND = c.Fresh(WaitpointId("wp-2"), "wpk:2")
PENDING = c.use_pending(c.PendingWaitpoint(
    waitpoint_id=WaitpointId("wp-0"), hmac_token=c.WaitpointHmac(WaitpointToken("k:00")),
))


def suspend(**changes: Any) -> c.SuspendArgs:
    fields: dict[str, Any] = {
        "suspension_id": SuspensionId("s"), "waitpoints": [PRIMARY],
        "resume_condition": c.Single("wpk:1", c.Wildcard()), "reason_code": c.SuspensionReasonCode.WAITING_FOR_SIGNAL,
        "at": ONE, "fence": FENCE, **changes,
    }
    return c.SuspendArgs(**fields)


def test_a_suspension_has_the_seeds_defaults() -> None:
    args = suspend()
    assert args.primary == PRIMARY and args.requested_by is c.SuspensionRequester.WORKER
    assert args.timeout_behavior is c.TimeoutBehavior.FAIL and args.timeout_at is None
    assert args.resume_policy == c.ResumePolicy(
        resume_target=c.ResumeTarget.RUNNABLE, consume_matched_signals=True, retain_signal_buffer_until_closed=False,
        resume_delay_ms=None, close_waitpoint_on_resume=True,
    )
    text = msgspec.json.encode(args, enc_hook=c.enc_hook)
    assert msgspec.json.decode(text, type=c.SuspendArgs, dec_hook=c.dec_hook) == args


@pytest.mark.parametrize("changes", [
    {"waitpoints": [PRIMARY, SECOND], "resume_condition": c.all_of_waitpoints(["wpk:1", "wpk:2"])},
    {"waitpoints": [PENDING]},
    {"waitpoints": [PENDING, SECOND], "resume_condition": c.all_of_waitpoints(["wpk:of-the-pending", "wpk:2"])},
    {"resume_condition": c.OperatorOnly()},
    {"resume_condition": c.TimeoutOnly(), "timeout_at": TimestampMs(5)},
    {"requested_by": c.SuspensionRequester.OPERATOR, "fence": None},
    {"timeout_at": TimestampMs(1_000_000), "now": TimestampMs(1_600_000)},
])
def test_a_sound_suspension_is_taken(changes: dict[str, Any]) -> None:
    assert suspend(**changes).primary is not None


@pytest.mark.parametrize(("changes", "match"), [
    ({"waitpoints": []}, "waitpoints_empty"),
    ({"waitpoints": [PRIMARY] * 65}, "1 to 64"),
    ({"waitpoints": [c.Fresh(WaitpointId("w"), "")]}, "waitpoint_key"),
    ({"waitpoints": [PRIMARY, PENDING]}, "must be Fresh"),
    ({"waitpoints": [PRIMARY, PRIMARY]}, "bound twice"),
    ({"waitpoints": [PRIMARY, c.Fresh(WaitpointId("wp-2"), "wpk:1")]}, "same key"),
    ({"waitpoints": [PRIMARY, SECOND]}, "the same set"),
    ({"resume_condition": c.all_of_waitpoints(["wpk:1", "wpk:9"])}, "which no waitpoint has"),
    ({"resume_condition": c.Single("wpk:1", c.ByName(""))}, "signal_name_empty"),
    ({"resume_condition": c.Single("", c.Wildcard())}, "waitpoint_key_empty"),
    ({"resume_condition": c.TimeoutOnly()}, "timeout_only_without_deadline"),
    ({"timeout_at": TimestampMs(999_999), "now": TimestampMs(1_600_000)}, "10 minutes"),
    ({"timeout_at": TimestampMs(-1)}, "timeout_at"),
    ({"fence": None}, "fence"),
])
def test_a_suspension_nobody_could_end_is_refused(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidArgument, match=match):
        suspend(**changes)


def test_fresh_waitpoints_are_all_different() -> None:
    one, two = c.fresh(), c.fresh()
    assert one.waitpoint_id != two.waitpoint_id and one.waitpoint_key == f"wpk:{one.waitpoint_id}"


def test_every_suspension_reason_shows_as_a_blocking_reason() -> None:
    shown = {code.as_wire_str(): code.blocking_reason.value for code in c.SuspensionReasonCode}
    assert shown == {
        "waiting_for_signal": "waiting_for_signal", "waiting_for_approval": "waiting_for_approval",
        "waiting_for_callback": "waiting_for_callback", "waiting_for_tool_result": "waiting_for_tool_result",
        "waiting_for_operator_review": "paused_by_operator", "manual_pause": "paused_by_operator",
        "paused_by_policy": "paused_by_policy", "paused_by_budget": "waiting_for_budget",
        "step_boundary": "waiting_for_signal",
    }
