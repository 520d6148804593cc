"""Binding of contracts to functions: names on both sides must agree, and values survive the way there and back."""

from __future__ import annotations

import enum
from typing import Any, Literal, NewType

import msgspec
import pytest

import ffcore.contracts as c
from ffbackend_valkey.binding import Binding, all_args, bind, encode
from ffbackend_valkey.library import Library, Signature, library
from ffcore.args import Args, Outcome, Row
from ffcore.errors import EngineBug, InvalidArgument, NotFound, NotInitialised, Rejected
from ffcore.ids import PartitionKey

P0 = PartitionKey("{fp:0}")


class Colour(enum.StrEnum):
    RED = "red"


Name = NewType("Name", str)


class Inner(Row):
    name: Name
    size: int
    ready: bool


class Good(Outcome, tag="good"):
    text: str
    data: bytes
    count: int
    flag: bool
    colour: Colour
    word: Literal["a", "b"]
    maybe: int | None
    inner: Inner
    rows: list[Inner]
    names: list[str]
    pairs: dict[str, str]
    counts: dict[str, int]
    late: str = "unset"


class Bare(Outcome, tag="bare"):
    pass


class ThingArgs(Args[Good | Bare]):
    partition: PartitionKey
    text: str
    size: int = 0
    note: str | None = None


def signature(**changes: Any) -> Signature:
    given: dict[str, Any] = {
        "name": "ff_thing", "args": ("text:str", "size:int", "note:str?"), "returns": ("good", "bare"),
        "errors": ("execution_not_found",), "flags": (), "scope": "one",
    } | changes  # fmt: skip
    return Signature(**given)


BOUND = Binding(signature(), ThingArgs)


# ---- drift -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"args": ("text:str", "size:int", "node:str?")}, "takes .*node.*has no such field"),
        ({"args": ("text:str", "size:int")}, r"has \['note'\].*does not take"),
        ({"returns": ("good",)}, "disagree on outcomes .*bare"),
        ({"returns": ("good", "bare", "better")}, "disagree on outcomes .*better"),
        ({"errors": ("execution_not_found", "no_such_code")}, "unknown codes .*no_such_code"),
    ],
)
def test_drift_between_a_signature_and_its_struct_is_found_when_it_is_bound(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(TypeError, match=says):
        Binding(signature(**changes), ThingArgs)


def test_a_struct_that_does_not_say_where_it_goes_is_refused() -> None:
    class LostArgs(Args[Bare]):
        text: str

    with pytest.raises(TypeError, match="which partition"):
        Binding(signature(args=("text:str",), returns=("bare",)), LostArgs)


def test_a_function_without_a_struct_is_refused() -> None:
    lib = Library("x", 1, 1, "s", "", {"ff_thing": signature(), "ff_other": signature(name="ff_other")}, ())
    with pytest.raises(TypeError, match="ff_other"):
        bind(lib, [ThingArgs])


def test_every_function_of_the_library_is_bound() -> None:
    bound = {binding.signature.name for binding in bind(library(), all_args()).values()}
    assert bound == set(library().signatures) - {"ff_library"}


def test_fields_kept_for_the_records_do_not_travel() -> None:
    class NowArgs(Args[Bare]):
        OFF_WIRE = frozenset({"now"})
        partition: PartitionKey
        text: str
        now: int = 0

    binding = Binding(signature(args=("text:str",), returns=("bare",)), NowArgs)
    assert binding.request(NowArgs(partition=P0, text="x", now=5))[-1] == "x"


# ---- requests ----------------------------------------------------------------------------------------


def test_a_request_names_function_key_pair_and_arguments_in_the_order_of_the_signature() -> None:
    words = BOUND.request(ThingArgs(partition=P0, size=3, text="a", note="b"))
    assert words == ("FCALL", "ff_thing", 2, "ff:{fp:0}", "ff:{fp:0}:absent", "a", 3, "=b")


def test_a_function_that_only_reads_is_called_as_one() -> None:
    binding = Binding(signature(flags=("no-writes",)), ThingArgs)
    assert binding.request(ThingArgs(partition=P0, text="a"))[0] == "FCALL_RO"


def test_absent_and_empty_differ() -> None:
    absent, empty = ThingArgs(partition=P0, text="a"), ThingArgs(partition=P0, text="a", note="")
    assert (BOUND.request(absent)[-1], BOUND.request(empty)[-1]) == (b"", "=")


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (True, b"1"), (False, b"0"), (7, 7), (b"\x00", b"\x00"), ("x", "x"), (Colour.RED, "red"),
        (c.LeaseFence("l", 5, "a"), "l 5 a"), ({"b": "2", "a": "1"}, b"1:a1:11:b1:2"), (["b", "a"], b'["b","a"]'),  # type: ignore[arg-type]
        (frozenset({"b", "a"}), b'["a","b"]'),
    ],
)  # fmt: skip
def test_each_kind_of_value_has_its_word(value: Any, word: Any) -> None:
    assert encode(value) == word


def test_bytes_and_texts_of_an_optional_keep_their_mark() -> None:
    binding = bind(library(), all_args())[c.CompleteExecutionArgs]
    given = c.CompleteExecutionArgs(
        execution_id=ID, attempt_index=0, fence=c.LeaseFence("l", 1, "a"), result_payload=b"=\x00"
    )  # type: ignore[arg-type]
    words = binding.request(given)
    assert b"==\x00" in words and "=l 1 a" in words


ID: Any = "{fp:3}:00000000-0000-7000-8000-000000000000"


def test_rows_travel_as_their_count_and_flat_values() -> None:
    binding = bind(library(), all_args())[c.RenewManyArgs]
    words = binding.request(
        c.RenewManyArgs(partition=P0, lease_ttl_ms=9, items=[c.Renewal(ID, "l 1 a"), c.Renewal(ID, "m 2 b")])
    )
    assert words[5:] == (9, 2, ID, "l 1 a", ID, "m 2 b")


@pytest.mark.parametrize(
    ("args", "partitions"),
    [
        (c.ReadExecutionArgs(execution_id=ID), ["{fp:3}"]),
        (c.TickArgs(partitions=[P0, PartitionKey("{b:1}")], ticker="t"), ["{fp:0}", "{b:1}"]),
        (c.ListHoldsArgs(partition=P0), ["{fp:0}"]),
    ],
)
def test_a_call_goes_where_its_fields_say(args: Any, partitions: list[str]) -> None:
    assert bind(library(), all_args())[type(args)].partitions(args) == partitions


# ---- answers -----------------------------------------------------------------------------------------

RAW: list[Any] = [
    b"good", b"t\xc3\xa9", b"\xff", 4, 1, b"red", b"a", b"", [b"n", 2, 0], [[b"m", 3, 1], [b"o", 4, 0]], [b"x", b"y"],
    [b"k", b"v"], [b"k", 9],
]  # fmt: skip


def test_each_kind_of_field_is_decoded() -> None:
    assert BOUND.outcome(RAW) == Good(
        text="té", data=b"\xff", count=4, flag=True, colour=Colour.RED, word="a", maybe=None, inner=Inner(Name("n"),
        2, False),
        rows=[Inner(Name("m"), 3, True), Inner(Name("o"), 4, False)], names=["x", "y"], pairs={"k": "v"},
        counts={"k": 9},
    )  # fmt: skip
    assert BOUND.outcome([b"bare"]) == Bare()


def test_a_field_that_an_older_library_does_not_send_has_its_default() -> None:
    assert BOUND.outcome(RAW).late == "unset"
    assert BOUND.outcome([*RAW, b"here"]).late == "here"
    assert BOUND.outcome([*RAW, b"here", b"and more of a newer one"]).late == "here"


def test_numbers_may_come_as_text() -> None:
    """A record's own text is not converted twice on its way."""
    raw = list(RAW)
    raw[3], raw[7] = b"1800000000001", b"5"
    assert (BOUND.outcome(raw).count, BOUND.outcome(raw).maybe) == (1_800_000_000_001, 5)


def test_a_refusal_is_raised_as_its_class_with_code_and_detail() -> None:
    with pytest.raises(NotFound) as caught:
        BOUND.outcome([b"error", b"execution_not_found", b"purged"])
    assert (caught.value.code, caught.value.detail) == ("execution_not_found", "purged")
    with pytest.raises(InvalidArgument):
        BOUND.outcome([b"error", b"invalid_input", b"limit"])
    with pytest.raises(NotInitialised, match="ff init"):
        BOUND.outcome([b"error", b"not_initialised", b"{fp:0}"])


@pytest.mark.parametrize(
    "raw",
    [
        [],
        None,
        7,
        [b"good"],
        [b"good", b"x"],
        [b"unknown"],
        [b"error", b"brand_new_code", b""],
        [None],
        [b"good", *[None] * 12],
    ],
)
def test_an_answer_nobody_can_read_is_a_bug_and_never_a_guess(raw: Any) -> None:
    with pytest.raises(EngineBug):
        BOUND.outcome(raw)


def test_what_was_answered_is_noted_for_the_coverage_of_outcomes() -> None:
    BOUND.outcome([b"bare"])
    assert ("ff_thing", "bare") in Binding.seen
    Binding.seen.discard(("ff_thing", "bare"))


def test_every_code_of_every_signature_has_its_class() -> None:
    codes = {code for s in library().signatures.values() for code in s.errors}
    assert codes and codes <= set(Rejected.by_code)


def test_answers_of_real_functions_are_compiled_for_every_outcome() -> None:
    for args_type, binding in bind(library(), all_args()).items():
        assert set(binding.signature.returns), args_type
        assert msgspec.structs.fields(args_type)
