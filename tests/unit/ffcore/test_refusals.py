"""What a person reads when the engine says no: what was refused, of which job, and what to do next."""

from __future__ import annotations

import pytest

from ffbackend_valkey.library import library
from ffcore.errors import InvalidArgument, NotFound, Rejected, StaleLease, StoreFull, rejection
from ffcore.refusals import SAID

ID = "{fp:1}:01a1fe50-003c-7812-a429-c8d425b46a99"
RAISED = sorted({code for one in library().signatures.values() for code in one.errors} - {"not_initialised"})


@pytest.mark.parametrize("code", RAISED)
def test_every_refusal_of_the_library_says_what_for_which_job_and_what_to_do(code: str) -> None:
    error = rejection(code, "the store's own words", asked="complete execution", about=ID)
    assert isinstance(error, Rejected) and error.code == code and error.detail == "the store's own words"
    if code == "store_full":
        assert isinstance(error, StoreFull) and "ff store gate" in str(error)
        return
    what, remedy = SAID[code]
    assert str(error) == f"{code}: complete execution of {ID}: {what} (the store's own words); {remedy}"


@pytest.mark.parametrize("code", sorted(Rejected.by_code))
def test_a_code_without_a_row_of_its_own_is_explained_by_its_family(code: str) -> None:
    text = str(rejection(code, about=ID))
    said = text.removeprefix(f"{code}: ").removeprefix(f"{ID}: ")
    assert ";" in said or code == "store_full"
    assert len(said) > 30 and "\n" not in text and "  " not in text and not text.endswith(".")


@pytest.mark.parametrize("code", sorted(SAID))
def test_a_row_belongs_to_a_code_and_is_two_short_sentences(code: str) -> None:
    what, remedy = SAID[code]
    assert code in Rejected.by_code
    for text in (what, remedy):
        assert 5 < len(text) < 120 and not text.endswith(".") and text[0].islower()
    assert what != remedy


def test_an_id_is_not_said_twice() -> None:
    text = str(rejection("execution_not_found", ID, asked="read execution", about=ID))
    assert text.count(ID) == 1 and "check the id" in text


def test_the_family_tells_programs_what_the_text_tells_people() -> None:
    assert isinstance(rejection("execution_not_found"), NotFound) and isinstance(rejection("stale_lease"), StaleLease)
    assert isinstance(rejection("invalid_input", "limit"), InvalidArgument | ValueError)
