"""Keys of steps and of their effects, and the entries of the journal."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import random
import subprocess
import sys
from typing import Any

import msgspec
import pytest

from ffcore.errors import EngineBug, InvalidArgument
from ffcore.steps import (
    JournalEntry,
    StepFailure,
    began,
    digest_of,
    digest_of_text,
    effect_key,
    entries_of,
    name_part,
    pack_error,
    pack_texts,
    step_key,
    unpack_texts,
)


class Order(msgspec.Struct):
    id: str
    amount: int


@dataclasses.dataclass
class Address:
    city: str


# ---- digests and keys --------------------------------------------------------------------------------


def test_equal_arguments_have_one_digest_and_different_ones_do_not() -> None:
    given: list[tuple[tuple[Any, ...], dict[str, Any]]] = [
        ((), {}), ((1,), {}), (("1",), {}), ((1.5,), {}), ((None,), {}), ((True,), {}), ((), {"a": 1}),
        (({"a": 1},), {}),
        (([1, 2],), {}), ((1, 2), {}), ((b"1",), {}), ((Order("81", 3),), {}), ((Order("81", 4),), {}),
        ((Address("Brno"),), {}), ((dt.datetime(2026, 1, 1, tzinfo=dt.UTC),), {}), ((), {"a": 1, "b": 2}),
    ]  # fmt: skip
    digests = [digest_of(*args) for args in given]
    assert len(set(digests)) == len(given)
    assert digests == [digest_of(*args) for args in given]
    assert all(len(digest) == 64 and int(digest, 16) >= 0 for digest in digests)


def test_the_order_in_which_a_mapping_was_filled_does_not_count() -> None:
    one = digest_of([{"a": 1, "b": {2, 3, 1}}], {"x": 1, "y": 2})
    assert one == digest_of([{"b": {1, 3, 2}, "a": 1}], {"y": 2, "x": 1})


def test_a_digest_is_the_same_in_every_process() -> None:
    """Sets of texts have another order in each."""
    code = "from ffcore.steps import digest_of; print(digest_of([{'b', 'a', 'c', 'd'}], {}))"
    got: set[str] = set()
    for seed in ("1", "2", "3"):
        env = os.environ | {"PYTHONHASHSEED": seed}
        got.add(
            subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True)
            .stdout.decode()
            .strip()
        )
    assert got == {digest_of([{"a", "b", "c", "d"}], {})}


class Model:
    def __init__(self, n: int) -> None:
        self.n = n

    def model_dump(self, mode: str) -> dict[str, int]:
        assert mode == "json"
        return {"n": self.n}


def test_a_model_is_what_it_dumps() -> None:
    assert digest_of([Model(1)], {}) == digest_of([{"n": 1}], {}) != digest_of([Model(2)], {})


@pytest.mark.parametrize("value", [object(), lambda: 1, sys, open, {object(): 1}])
def test_arguments_that_do_not_encode_need_a_digest_and_the_error_says_so(value: Any) -> None:
    with pytest.raises(InvalidArgument, match="digest="):
        digest_of([value], {})


def test_a_given_digest_never_meets_a_computed_one() -> None:
    assert digest_of_text("[[],{}]") != digest_of([], {})
    assert digest_of_text("a") == digest_of_text("a") != digest_of_text("b")


def test_a_key_names_the_step_its_arguments_and_how_many_came_before() -> None:
    digest = digest_of([1], {})
    key = step_key("charge", digest, 0)
    assert key == step_key("charge", digest, 0)
    others = {step_key("charge", digest, 1), step_key("charge", digest_of([2], {}), 0), step_key("ship", digest, 0)}
    assert len(others | {key}) == 4
    assert name_part(key) == name_part(step_key("charge", digest_of([2], {}), 7))
    assert name_part(key) != name_part(step_key("ship", digest, 0))


@pytest.mark.parametrize("name", ["charge", "mit Umlaut äöü", "x" * 128, "spaces and: colons 7:", "🙂"])
def test_a_key_fits_where_the_store_keeps_it_whatever_the_name(name: str) -> None:
    key = step_key(name, digest_of([name], {}), 9_999)
    assert len(key) <= 64
    assert set(key) <= set("0123456789abcdef.")


def test_the_key_of_an_effect_follows_from_execution_run_and_step() -> None:
    key = step_key("charge", digest_of([], {}), 0)
    made = effect_key("{fp:0}:a", 0, key)
    assert len(made) == 32 and int(made, 16) >= 0
    assert made == effect_key("{fp:0}:a", 0, key)
    others = {effect_key("{fp:0}:b", 0, key), effect_key("{fp:0}:a", 1, key), effect_key("{fp:0}:a", 0, key[:-1] + "1")}
    assert len(others | {made}) == 4
    assert effect_key("a", 1, "1b") != effect_key("a", 11, "b"), "parts cannot run into each other"


def test_where_a_journal_began() -> None:
    assert began("0 1") == (0, 1)
    assert began("12 1000000000") == (12, 1_000_000_000)


# ---- entries -----------------------------------------------------------------------------------------


def packed(entry: JournalEntry) -> bytes:
    name = entry.name.encode()
    head = f"{entry.key} {entry.kind} {entry.status} {entry.at_ms} {entry.attempt} {len(name)}:"
    return head.encode() + name + entry.value


def test_an_entry_survives_whatever_its_name_and_its_result_hold() -> None:
    rng = random.Random(7)
    for n in range(300):
        name = "".join(rng.choice("a :0é🙂\t") for _ in range(rng.randrange(1, 20)))
        value = bytes(rng.randrange(256) for _ in range(rng.randrange(40)))
        key = step_key(name, digest_of([n], {}), n)
        entry = JournalEntry(n, key, "step", "ok", rng.randrange(1 << 45), n, name, value)
        assert JournalEntry.parse(packed(entry), n) == entry


@pytest.mark.parametrize(
    "raw", [b"", b"a", b"a.b step ok 1 0", b"a.b step ok 1 0 9:short", b"a.b step ok x 0 1:a", b"a.b step ok 1 0 n:a"]
)
def test_an_entry_that_cannot_be_read_is_a_bug_of_the_engine(raw: bytes) -> None:
    with pytest.raises(EngineBug, match="journal entry"):
        JournalEntry.parse(raw)


def test_an_unfinished_step_says_how_often_it_failed_and_why() -> None:
    entry = JournalEntry(1, "a", "step", "error", 1, 0, "charge", pack_error(3, "the bank is closed"))
    assert (entry.final, entry.tries, entry.reason) == (False, 3, "the bank is closed")
    begun = JournalEntry(1, "a", "step", "intent", 1, 0, "charge", b"1800000000000")
    assert (begun.final, begun.tries, begun.reason) == (False, 0, "")


def test_a_final_failure_comes_back_as_it_went_in() -> None:
    failure = StepFailure("Fatal", "card declined: 7:x é", "card")
    entry = JournalEntry(1, "a", "step", "fatal", 1, 0, "charge", failure.pack())
    assert (entry.final, entry.failure, entry.reason) == (True, failure, "card declined: 7:x é")


def test_entries_of_a_page_are_numbered_from_its_first() -> None:
    entry = JournalEntry(4, "a", "step", "ok", 1, 0, "charge", b"1")
    assert entries_of([packed(entry)] * 2, 4) == [entry, msgspec.structs.replace(entry, seq=5)]


def test_texts_with_lengths_keep_every_byte() -> None:
    texts = [b"", b"3:abc", bytes(range(256)), b"end"]
    assert unpack_texts(pack_texts(texts)) == texts
    for raw in (b"3:ab", b"x:ab", b"12"):
        with pytest.raises(EngineBug, match="texts"):
            unpack_texts(raw)
