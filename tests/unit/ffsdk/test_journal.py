"""Which entry answers which call: names, arguments, and how many equal calls came before."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from ffcore.errors import InvalidArgument
from ffcore.steps import JournalEntry, digest_of, pack_error, step_key
from ffsdk import steps
from ffsdk.errors import StepConflict
from ffsdk.journal import Journal

A, B = digest_of(("a",), {}), digest_of(("b",), {})


def entry(
    seq: int, name: str, digest: str, occurrence: int = 0, status: str = "ok", value: bytes = b"1"
) -> JournalEntry:
    return JournalEntry(seq, step_key(name, digest, occurrence), "step", status, 1_000, 0, name, value)


def test_equal_calls_are_told_apart_by_how_many_came_before() -> None:
    journal = Journal([entry(1, "page", A, 0, value=b"1"), entry(2, "page", A, 1, value=b"2")])
    found = [journal.claim("page", journal.key("page", A)) for _ in range(3)]
    assert [one.value if one else None for one in found] == [b"1", b"2", None]


def test_calls_of_one_name_may_come_in_any_order() -> None:
    journal = Journal([entry(1, "page", A, value=b"1"), entry(2, "page", B, value=b"2")])
    later, earlier = (journal.claim("page", journal.key("page", digest)) for digest in (B, A))
    assert (later and later.value, earlier and earlier.value) == (b"2", b"1")
    assert journal.unclaimed() == []


def test_an_entry_stands_against_other_arguments_until_one_of_its_name_was_asked_for() -> None:
    journal = Journal([entry(1, "charge", A)])
    assert journal.claim("charge", journal.key("charge", B)) is None
    assert [one.seq for one in journal.stands_against("charge")] == [1]
    assert journal.stands_against("refund") == []
    journal.claim("charge", journal.key("charge", A))
    assert journal.stands_against("charge") == []


def test_a_failed_try_stands_against_nothing_and_is_not_missed() -> None:
    journal = Journal([entry(1, "charge", A, status="error", value=pack_error(2, "away"))])
    assert journal.stands_against("charge") == []
    assert journal.unclaimed() == []
    tried = journal.claim("charge", journal.key("charge", A))
    assert tried is not None and tried.tries == 2


def test_what_nobody_asked_for_is_named_in_the_order_it_was_recorded() -> None:
    journal = Journal([entry(1, "a", A), entry(2, "b", A), entry(3, "c", A)])
    journal.claim("b", journal.key("b", A))
    assert [one.name for one in journal.unclaimed()] == ["a", "c"]


def test_only_another_call_of_the_name_that_is_under_way_may_still_ask() -> None:
    journal = Journal()
    journal.begin("page")
    assert not journal.others_fly("page"), "the one that asks does not count"
    journal.begin("page")
    assert journal.others_fly("page")
    journal.end("page")
    assert not journal.others_fly("page")


def test_pages_are_taken_in_one_after_the_other() -> None:
    journal = Journal([entry(1, "a", A)])
    journal.add([entry(2, "b", A), entry(3, "c", A)])
    assert journal.read_n == 3
    assert journal.claim("c", journal.key("c", A)) is not None


def test_a_conflict_shows_both_sides() -> None:
    key = step_key("charge", B, 0)
    error = StepConflict.of("charge", key, [entry(1, "charge", A, value=b'"receipt 7"')])
    said = str(error)
    assert key in said and step_key("charge", A, 0) in said and "receipt 7" in said
    assert error.name == "charge" and error.category == "step_conflict"


@pytest.mark.parametrize("name", ["", "a\nb", "x" * 129, 7])
def test_a_name_is_printable_and_short(name: object) -> None:
    with pytest.raises(InvalidArgument, match="the name of a step"):
        steps.check_name(name)  # type: ignore[arg-type]


def test_a_digest_of_ones_own_is_a_text_or_what_encodes() -> None:
    assert steps.digest_by("order 81") == steps.digest_by("order 81") != steps.digest_by("order 82")
    assert steps.digest_by(81) != steps.digest_by("81")
    with pytest.raises(InvalidArgument, match="digest="):
        steps.digest_by(object())


def test_the_result_of_a_step_is_read_back_as_its_function_says() -> None:
    """Whatever it is: a function, a method, a partial, a callable object, an annotation as text."""

    class Bank:
        async def charge(self, cents: int) -> float:
            return cents

        def __call__(self) -> list[int]:
            return []

    def later() -> Later:
        return Later()

    bank = Bank()
    assert steps.result_hint(steps.routine_of(bank.charge)) in (float, "float")
    assert steps.result_hint(steps.routine_of(functools.partial(bank.charge, 1))) is float
    assert steps.result_hint(steps.routine_of(bank)) == list[int]
    assert steps.result_hint(later) is Later
    assert steps.result_hint(lambda: 1) is Any


class Later: ...


def test_outside_of_a_step_there_is_no_step() -> None:
    with pytest.raises(InvalidArgument, match=r"ctx\.step"):
        steps.step_info()
