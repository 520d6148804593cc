"""Conditions made of gates, and what a recorded wait is read back as. No store is asked."""

from __future__ import annotations

from typing import Any, cast

import msgspec
import pytest

import ffsdk as ff
from ffcore import limits
from ffcore.conditions import compile_condition
from ffcore.contracts.suspended import ObservedSignal
from ffcore.ids import SignalId, TimestampMs, WaitpointId
from ffcore.steps import pack_texts
from ffsdk import conditions, gates, payload, signals
from ffsdk.conditions import Condition
from ffsdk.gates import Gate
from ffsdk.views import Waitpoint


class Job:
    """As much of a context as a gate looks at."""

    execution_id = "{fp:0}:00000000-0000-7000-8000-000000000000"


class Verdict(ff.Payload):
    approved: bool


def gate(name: str, *names: str, type_: Any = Any, key: str | None = None) -> Gate[Any]:
    decoder = payload.decoder(type_, f"gate {name}")
    return Gate(cast("Any", Job()), name, names or None, decoder, f"id-{key or name}", key or name, f"ff1.{name}")


def nodes(condition: Condition) -> list[Any]:
    """The condition as the store gets it."""
    keys = [one.waitpoint_key for one in condition.gates()]
    return cast("list[Any]", msgspec.json.decode(compile_condition(condition.contract(), keys)))


A, B, C = gate("a"), gate("b"), gate("c")


# ---- conditions ------------------------------------------------------------------------------------------


def test_a_gate_alone_waits_for_any_signal_or_for_those_it_accepts() -> None:
    assert nodes(A) == [["single", 0, 1, None]]
    assert nodes(gate("a", "ok")) == [["single", 0, 1, "ok"]]
    assert nodes(gate("a", "no", "ok")) == [["single", 0, 1, ["no", "ok"]]]


def test_members_are_given_one_by_one_or_as_one_list() -> None:
    assert nodes(ff.all_of(A, B)) == nodes(ff.all_of([A, B])) == nodes(conditions.together([A, B]))
    assert nodes(ff.all_of(A, B)) == [["all_of", 0, 2], ["single", 1, 1, None], ["single", 1, 2, None]]
    assert nodes(ff.count(2, A, B, C)) == nodes(ff.count(2, [A, B, C])) == nodes(ff.count(2, (g for g in (A, B, C))))
    assert nodes(conditions.together([[A]])) == nodes(A)


def test_conditions_nest_and_a_gate_named_twice_is_one_waitpoint() -> None:
    assert nodes(ff.any_of(A, B)) == nodes(ff.any_of([A, B])) == nodes(ff.count(1, A, B))
    assert nodes(ff.quorum(2, A, B, C)) == nodes(ff.quorum(2, [A, B, C])) == nodes(ff.count(2, A, B, C))
    tree = ff.all_of(A, ff.count(1, [A, B], distinct="sources", name="ok"), ff.operator())
    assert tree.gates() == [A, B]
    assert nodes(tree) == [
        ["all_of", 0, 3], ["single", 1, 1, None], ["count", 1, 1, "distinct_sources", "ok", [1, 2]],
        ["operator_only", 1],
    ]  # fmt: skip
    assert str(tree) == "all_of(a, count(1, a, b, distinct=sources, name=ok), operator())"


def test_a_count_takes_the_names_its_gates_agree_on() -> None:
    one, other = gate("one", "ok"), gate("other", "ok")
    assert nodes(ff.count(2, one, other))[0][4] == "ok"
    assert nodes(ff.count(2, one, other, name="yes"))[0][4] == "yes"
    with pytest.raises(ff.InvalidArgument, match="accept different names"):
        ff.count(1, one, A)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: ff.all_of(), "never waits"),
        (lambda: ff.all_of("a"), "use gates"),
        (lambda: ff.count(1), "needs gates"),
        (lambda: ff.any_of(), "needs gates"),
        (lambda: ff.quorum(3, A, B), "cannot come true"),
        (lambda: ff.count(0, A), "whole number"),
        (lambda: ff.count(3, A, B), "cannot come true"),
        (lambda: ff.count(2, A, A), "cannot come true"),
        (lambda: ff.count(1, ff.operator()), "use gates"),
        (lambda: ff.count(1, A, distinct=cast("Any", "people")), "use waitpoints, signals or sources"),
        (lambda: ff.count(1, A, name=""), "signal name"),
        (lambda: conditions.together([]), "ctx.sleep"),
        (lambda: conditions.check_names([]), "None for any"),
        (lambda: conditions.check_names([str(n) for n in range(17)]), "17 names"),
    ],
)
def test_a_condition_that_cannot_be_meant_is_refused_where_it_is_made(make: Any, said: str) -> None:
    with pytest.raises(ff.InvalidArgument, match=said):
        make()


def test_a_tree_that_is_too_deep_is_refused_before_anything_is_sent() -> None:
    tree: Condition = A
    for _ in range(5):
        tree = ff.all_of(tree)
    with pytest.raises(ff.InvalidArgument, match="depth 5"):
        tree.contract()


def test_a_wait_is_told_apart_by_its_gates_and_named_in_so_many_bytes() -> None:
    """Two gates of one name are two; what a wait is called must fit the journal."""
    again = gate("a", key="a#2")
    assert gates.identity(A) != gates.identity(again) and str(A) == str(again)
    long = ff.all_of([gate("ä" * 60 + str(n)) for n in range(5)])
    assert len(gates.step_name(str(long)).encode()) <= limits.NAME_BYTES


def test_gates_of_one_name_are_numbered() -> None:
    assert [gates.key_of("a", f"0.0.{n}") for n in range(3)] == ["a", "a#2", "a#3"]


# ---- gates -----------------------------------------------------------------------------------------------


def test_a_gate_equals_its_name_and_no_other_gate() -> None:
    assert A == "a" and A != "b" and gate("a", key="a#2") != A and {A: 1}["a"] == 1  # type: ignore[index]
    assert f"{A}" == "a" and payload.encode({"gate": A}, "x", 100) == b'{"gate":"a"}'


def test_a_token_that_cannot_be_made_again_is_said_when_it_is_read() -> None:
    lost = gate("a")
    lost._token = ff.InvalidToken("the ring has lost it")  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(ff.InvalidToken, match="the ring has lost it"):
        str(lost.token)


# ---- what came -------------------------------------------------------------------------------------------


def came(waitpoint: str, value: bytes, *, name: str = "ok", source: str = "web:dana", key: str = "k") -> ObservedSignal:
    kind, identity = signals.source_parts(source)
    return ObservedSignal(
        WaitpointId(waitpoint), SignalId("s1"), name, "external", kind, identity, "", TimestampMs(1), key, "json", value
    )


def recorded(why: str, *received: ObservedSignal) -> bytes:
    texts = [why.encode(), b"7"]
    for one in received:
        texts += [v if isinstance(v, bytes) else str(v).encode() for v in msgspec.structs.astuple(one)]
    return pack_texts(texts)


def test_signals_come_back_in_order_of_arrival_with_their_gates_types() -> None:
    typed, plain = gate("typed", type_=Verdict), gate("plain")
    value = recorded("signal", came("id-plain", b"[1]", source="sensor"), came("id-typed", b'{"approved":true}'))
    first, second = gates.received(ff.all_of(typed, plain), value, None)
    assert (first.gate, first.value, first.source, first.name, first.key) == (plain, [1], "sensor", "ok", "k")
    assert (second.gate, second.value, second.source) == (typed, Verdict(True), "web:dana")


def test_a_signal_without_a_key_of_its_own_shows_none() -> None:
    [one] = gates.received(A, recorded("signal", came("id-a", b"null", key="s1")), None)
    assert one.key is None and one.value is None


def test_a_value_of_another_type_is_a_failure_that_no_retry_helps() -> None:
    with pytest.raises(ff.InvalidSignal, match="gate typed: the signal 'ok' from web:dana") as raised:
        gates.received(gate("typed", type_=Verdict), recorded("signal", came("id-typed", b"3")), None)
    assert isinstance(raised.value, ff.Fatal)
    assert (raised.value.gate, raised.value.raw, raised.value.category) == ("typed", b"3", "invalid_signal")


def test_an_operator_and_time_end_a_wait_with_what_there_is() -> None:
    assert gates.received(A, recorded("operator"), None) == []
    with pytest.raises(ff.GateTimeout, match=r"all_of\(a, b\) within 60 s") as raised:
        gates.received(ff.all_of(A, B), recorded("timeout", came("id-b", b"2")), 60_000)
    assert [one.gate for one in raised.value.signals] == [B] and raised.value.waited == 60


# ---- senders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", ["web:dana", "sensor", "mail:a:b", ":x"])
def test_a_source_is_read_back_as_it_was_written(source: str) -> None:
    assert signals.source_text(*signals.source_parts(source)) == source


def test_answers_to_one_signal_are_equal_though_one_says_that_it_was_a_repeat() -> None:
    first = ff.SignalAnswer(signal_id="s", effect="appended_to_waitpoint")
    again = ff.SignalAnswer(signal_id="s", effect="appended_to_waitpoint", duplicate=True)
    assert first == again and hash(first) == hash(again) and not first.ignored
    assert first != ff.SignalAnswer(signal_id="t", effect="appended_to_waitpoint")
    assert ff.SignalAnswer(signal_id="s", effect="signal_ignored_matcher_failed").ignored


def opened(name: str, state: str = "active", *names: str) -> Waitpoint:
    return Waitpoint(
        waitpoint_id=f"id-{name}", gate=name, state=state, names=list(names), created_at=None, activated_at=None,
        expires_at=None, kid="k1", fingerprint="0" * 16,
    )  # fmt: skip


def test_an_operator_names_a_gate_where_there_are_several() -> None:
    one, two, early = opened("one"), opened("two"), opened("early", "pending")
    assert signals.choose([one, early], None, "x") is one, "the job waits there"
    assert signals.choose([early], None, "x") is early
    assert signals.choose([one, two], "two", "x") is signals.choose([one, two], "id-two", "x") is two
    for given, wanted, said in (([one, two], None, "one, two"), ([], None, "resume"), ([one], "two", "open are one")):
        with pytest.raises(ff.InvalidArgument, match=said):
            signals.choose(given, wanted, "x")


def test_an_operators_signal_is_named_so_that_it_counts() -> None:
    names = signals._name_for  # pyright: ignore[reportPrivateUsage]
    assert [names(opened("g")), names(opened("g", "active", "ok"))] == ["approved", "ok"]
    assert names(opened("g", "active", "approved", "refused")) == "approved"
    with pytest.raises(ff.InvalidArgument, match="no, ok"):
        names(opened("g", "active", "no", "ok"))
