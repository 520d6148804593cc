"""Tokens: one opens one waitpoint of one execution, says where it leads, and shows nothing of the secret."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ffcore import ids, tokens
from ffcore.errors import InvalidArgument, InvalidToken

JOB = "{fp:3}:018f0000-0000-7000-8000-000000000000"
PLACE = "018f0000-0000-7000-8000-0000000000aa"
SECRET = bytes(range(32))
RING = tokens.Ring({"k1": SECRET, "k2": b"s" * 32})

uuids = st.uuids().map(str)
kids = st.from_regex(r"[A-Za-z0-9_-]{1,32}", fullmatch=True)
jobs = st.builds("{{fp:{}}}:{}".format, st.integers(0, 99_999), uuids)
texts = st.text(min_size=1, max_size=40).filter(lambda text: text.isprintable())


def test_a_token_is_what_anybody_with_the_secret_computes() -> None:
    """Written out, so that another program can make one."""
    signed = b"".join(len(raw).to_bytes(4, "big") + raw for raw in (JOB.encode(), PLACE.encode(), b"approval"))
    wanted = hmac.new(SECRET, signed, hashlib.sha256).hexdigest()
    assert tokens.mint(SECRET, "k1", JOB, PLACE, "approval") == f"k1:{wanted}"
    assert tokens.digest(f"k1:{wanted}") == hashlib.sha256(f"k1:{wanted}".encode()).hexdigest()


@given(st.lists(st.tuples(texts, texts, texts), min_size=2, max_size=2, unique=True))
def test_no_two_places_have_one_token(places: list[tuple[str, str, str]]) -> None:
    """However their parts are cut: each is signed behind its length."""
    one, two = places
    assert tokens.mint(SECRET, "k", *one) != tokens.mint(SECRET, "k", *two)


def test_moving_a_letter_from_one_part_to_the_next_makes_another_token() -> None:
    assert tokens.mint(SECRET, "k", "ab", "c", "d") != tokens.mint(SECRET, "k", "a", "bc", "d")


@given(jobs, uuids, kids, texts)
def test_a_gate_token_says_where_it_leads(job: str, place: str, kid: str, key: str) -> None:
    token = tokens.mint(SECRET, kid, job, place, key)
    text = tokens.gate_token(job, place, token)
    assert tokens.parse_gate_token(text) == (job, place, token)
    assert text.isascii() and all(letter.isalnum() or letter in "._-" for letter in text), "safe in a URL as it is"


@given(st.one_of(st.text(max_size=200), st.binary(max_size=80).map(lambda raw: f"ff1.{raw.hex()}")))
def test_what_is_no_gate_token_is_refused_like_a_wrong_one(text: str) -> None:
    with pytest.raises(InvalidToken) as caught:
        tokens.parse_gate_token(text)
    assert caught.value.code == ("invalid_token" if text else "missing_token")
    assert str(caught.value) == str(tokens.refusal(caught.value.code)), "nothing of it is repeated"


@pytest.mark.parametrize("change", ["ff2", "fp:03", "kid", "hex", "uuid", "tail"])
def test_a_gate_token_has_one_spelling(change: str) -> None:
    text = tokens.gate_token(JOB, PLACE, RING.mint(JOB, PLACE, "a"))
    wrong = {
        "ff2": text.replace("ff1", "ff2", 1), "fp:03": text.replace("ff1.3.", "ff1.03."),
        "kid": text.replace(".k2.", ".k:2."),
        "hex": text.upper(), "uuid": text.replace("018f", "018F", 1), "tail": text + "0",
    }[change]  # fmt: skip
    assert wrong != text
    with pytest.raises(InvalidToken):
        tokens.parse_gate_token(wrong)


def test_an_empty_token_has_no_digest() -> None:
    assert tokens.digest("") == "" and len(tokens.fingerprint_of("k1:00")) == 16


# ---- the ring ----------------------------------------------------------------------------------------


def test_the_last_secret_of_a_ring_signs() -> None:
    assert (RING.current, RING.kids) == ("k2", ["k1", "k2"])
    assert tokens.Ring({"k1": SECRET, "k2": b"s" * 32}, "k1").current == "k1"
    assert RING.mint(JOB, PLACE, "a").startswith("k2:") and RING.mint(JOB, PLACE, "a", "k1").startswith("k1:")


def test_a_secret_that_has_left_the_ring_is_an_invalid_token() -> None:
    with pytest.raises(InvalidToken, match="kid 'k9' has left the ring"):
        RING.mint(JOB, PLACE, "a", "k9")


def test_a_ring_is_of_sound_secrets() -> None:
    for secrets in ({}, {"a b": SECRET}, {"k": b"short"}):
        with pytest.raises(InvalidArgument):
            tokens.Ring(secrets)
    with pytest.raises(InvalidArgument):
        tokens.Ring({"k": SECRET}, "other")


def test_no_text_of_a_ring_shows_a_secret() -> None:
    shown = [repr(RING), str(RING), f"{RING}", tokens.fingerprint(SECRET)]
    assert not [text for text in shown if SECRET.hex()[:12] in text or repr(SECRET)[2:10] in text]
    assert tokens.fingerprint(SECRET) != tokens.fingerprint(b"s" * 32) and len(tokens.fingerprint(SECRET)) == 32


@given(texts, texts, st.one_of(st.just(""), kids))
def test_a_recorded_gate_reads_back(waitpoint_id: str, key: str, kid: str) -> None:
    record = tokens.GateRecord(waitpoint_id, key, kid)
    assert tokens.GateRecord.parse(record.pack()) == record


def test_ids_of_tokens_are_ids() -> None:
    assert ids.check_id(tokens.parse_gate_token(tokens.gate_token(JOB, PLACE, RING.mint(JOB, PLACE, "a"))).execution_id)
