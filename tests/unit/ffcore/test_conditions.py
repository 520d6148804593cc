"""Compiled conditions: what the store is sent for each shape, and what has no compiled form. That the store takes and
evaluates them is `tests/lua/test_condition.py`."""

from __future__ import annotations

import json
from typing import Any

import pytest

from ffcore import contracts as c
from ffcore import limits
from ffcore.conditions import compile_condition, compile_sleep, keys_of
from ffcore.errors import EngineBug, InvalidArgument
from ffcore.ids import PartitionKey, WaitpointId, WaitpointToken

ANY = c.Wildcard()


def compiled(condition: c.ResumeCondition, *keys: str) -> Any:
    return json.loads(compile_condition(condition, keys))


def counting(n: int, *keys: str, kind: c.CountKind = c.CountKind.DISTINCT_SIGNALS, matcher: Any = None) -> c.Composite:
    return c.Composite(c.count(n, kind, matcher, keys))


@pytest.mark.parametrize(("condition", "nodes"), [
    (c.Single("b", ANY), [["single", 0, 2, None]]),
    (c.Single("a", c.ByName("ok")), [["single", 0, 1, "ok"]]),
    (c.Single("a", c.ByNames(["ok", "fine"])), [["single", 0, 1, ["ok", "fine"]]]),
    (c.OperatorOnly(), [["operator_only", 0]]),
    (c.TimeoutOnly(), [["timeout_only", 0]]),
    (counting(2, "b", "a"), [["count", 0, 2, "distinct_signals", None, [2, 1]]]),
    (counting(1, "a", matcher=c.ByName("ok")), [["count", 0, 1, "distinct_signals", "ok", [1]]]),
    (counting(1, "a", "a", matcher=ANY), [["count", 0, 1, "distinct_signals", None, [1]]]),
    (c.Composite(c.all_of([c.Single("a", ANY), c.Composite(c.all_of([c.OperatorOnly(), counting(1, "b")])),
                           c.TimeoutOnly()])),
     [["all_of", 0, 3], ["single", 1, 1, None], ["all_of", 1, 2], ["operator_only", 3],
      ["count", 3, 1, "distinct_signals", None, [2]], ["timeout_only", 1]]),
])  # fmt: skip
def test_each_shape_is_a_list_of_nodes_parents_first(condition: c.ResumeCondition, nodes: Any) -> None:
    assert compiled(condition, "a", "b") == nodes


def test_the_same_condition_has_one_text() -> None:
    both = c.all_of_waitpoints(["a", "b"])
    assert compile_condition(both, ["a", "b"]) == compile_condition(c.all_of_waitpoints(["a", "b"]), ["a", "b"])
    assert compile_sleep() == compile_condition(c.TimeoutOnly(), [])


@pytest.mark.parametrize(("condition", "keys", "said"), [
    (c.Single("x", ANY), ["a"], "names 'x'"),
    (c.Single("a", ANY), [], "names 'a'"),
    (c.Single("a", ANY), ["a", "a"], "the same key"),
    (c.Single("a", c.ByName("")), ["a"], "signal_name_empty"),
    (c.Single("a", c.ByNames([])), ["a"], "signal_name_empty"),
    (counting(2, "a", "a", kind=c.CountKind.DISTINCT_WAITPOINTS), ["a"], "count_exceeds_waitpoint_set"),
    (counting(limits.SIGNALS_N + 1, "a"), ["a"], "count_n"),
    (c.Composite(c.all_of([c.OperatorOnly()] * limits.CONDITION_NODES_N)), ["a"], "nodes"),
    (c.Composite(c.all_of([c.Single("a", c.ByNames(["n" * 128] * 16))] * 128)), ["a"], "bytes"),
])  # fmt: skip
def test_what_has_no_compiled_form_says_why(condition: c.ResumeCondition, keys: list[str], said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        compile_condition(condition, keys)


@pytest.mark.parametrize("body", [c.all_of([c.OperatorOnly()]), counting(1, "a").body], ids=["AllOf", "Count"])
def test_the_body_of_a_composite_is_no_condition(body: Any) -> None:
    """Taken for one it would wait for an operator, and nobody would know."""
    for condition in (body, c.Composite(c.all_of([body]))):
        with pytest.raises(InvalidArgument, match=rf"wrap it, Composite\({type(body).__name__}"):
            compile_condition(condition, ["a"])


def test_a_pending_waitpoints_key_is_the_name_no_fresh_one_has() -> None:
    pending = c.use_pending(c.PendingWaitpoint(
        waitpoint_id=WaitpointId("p"), hmac_token=c.WaitpointHmac(WaitpointToken("k:00")),
    ))  # fmt: skip
    fresh = c.Fresh(WaitpointId("f"), "mine")
    assert keys_of([pending, fresh], c.all_of_waitpoints(["theirs", "mine"])) == ["theirs", "mine"]
    assert keys_of([pending], c.OperatorOnly()) == [""]
    assert keys_of([fresh], c.Single("mine", ANY)) == ["mine"]
    with pytest.raises(c.CompositeValidationError, match="no waitpoint has"):
        keys_of([fresh], c.all_of_waitpoints(["theirs", "mine"]))


# ---- what a wait ended with --------------------------------------------------------------------------


def packed(*texts: bytes) -> bytes:
    return b"".join(b"%d:%s" % (len(text), text) for text in texts)


def test_what_a_wait_ended_with_is_read_back() -> None:
    name, at = "n\u00e4me".encode(), b"1800000000000"
    signal = (b"wp", b"sig", name, b"user", b"web", b"dana", b"", at, b"k:1", b"json", b"\x00:9")
    waited = c.parse_wait(packed(b"signal", b"1800000000007", *signal, *signal))
    assert (waited.why, waited.at_ms, len(waited.signals)) == ("signal", 1_800_000_000_007, 2)
    one = waited.signals[1]
    assert (one.name, one.accepted_at, one.idempotency_key, one.payload) == (
        "n\u00e4me", 1_800_000_000_000, "k:1", b"\x00:9")  # fmt: skip
    assert c.parse_wait(packed(b"timeout", b"7")).signals == []


@pytest.mark.parametrize("value", [b"", packed(b"signal"), packed(b"signal", b"7", b"half")])
def test_a_wait_nobody_can_read_is_a_bug(value: bytes) -> None:
    with pytest.raises(EngineBug):
        c.parse_wait(value)


def test_requests_refuse_what_is_out_of_bounds() -> None:
    given: dict[str, Any] = {
        "execution_id": "{fp:0}:018f0000-0000-7000-8000-000000000000", "fence": None, "suspension_id": "s",
        "step": "a.b.0", "step_name": "x", "condition": compile_sleep(),
    }  # fmt: skip
    assert c.WaitArgs(**given).waitpoints == []
    for wrong in ({"timeout_ms": -1}, {"waitpoints": [c.WaitedWaitpoint(WaitpointId("w"))] * 65}):
        with pytest.raises(InvalidArgument):
            c.WaitArgs(**given | wrong)
    with pytest.raises(InvalidArgument):
        c.PauseExecutionArgs(execution_id=given["execution_id"], reason="r" * (limits.REASON_BYTES + 1))
    with pytest.raises(InvalidArgument):
        c.ListSuspendedArgs(partition=PartitionKey("{fp:0}"), limit=0)
