"""A condition that can never be met, or nests without end, is refused before anything suspends on it."""

from __future__ import annotations

import msgspec
import pytest

from ffcore.contracts import (
    AllOf,
    ByName,
    Composite,
    CompositeValidationError,
    Count,
    CountKind,
    OperatorOnly,
    ResumeCondition,
    Single,
    TimeoutOnly,
    Wildcard,
    all_of,
    all_of_waitpoints,
    count,
)
from ffcore.errors import InvalidArgument


def single(key: str = "wpk:a") -> Single:
    return Single(key, ByName("x"))


def nested(depth: int) -> ResumeCondition:
    condition: ResumeCondition = single("wpk:leaf")
    for _ in range(depth):
        condition = Composite(AllOf([condition]))
    return condition


def test_single_passes_validate() -> None:
    for condition in (single(), OperatorOnly(), TimeoutOnly()):
        condition.validate_composite()


def test_allof_empty_members_rejected() -> None:
    with pytest.raises(CompositeValidationError, match="allof_empty_members at path <root>"):
        Composite(AllOf([]))


@pytest.mark.parametrize("n", [0, -1])
def test_count_n_zero_rejected(n: int) -> None:
    with pytest.raises(CompositeValidationError, match="count_n_zero"):
        Composite(Count(n, CountKind.DISTINCT_WAITPOINTS, None, ["wpk:a"]))


def test_count_waitpoints_empty_rejected() -> None:
    with pytest.raises(CompositeValidationError, match="count_waitpoints_empty"):
        Composite(count(1, CountKind.DISTINCT_SOURCES, None, []))


def test_count_exceeds_waitpoint_set_rejected_only_for_distinct_waitpoints() -> None:
    with pytest.raises(CompositeValidationError, match="count_exceeds_waitpoint_set"):
        Composite(Count(3, CountKind.DISTINCT_WAITPOINTS, None, ["a", "b"]))
    for kind in (CountKind.DISTINCT_SIGNALS, CountKind.DISTINCT_SOURCES):
        Composite(Count(3, kind, None, ["a", "b"])).validate_composite()
    Composite(Count(2, CountKind.DISTINCT_WAITPOINTS, None, ["a", "b"])).validate_composite()


def test_depth_4_accepted_depth_5_rejected() -> None:
    nested(4).validate_composite()
    with pytest.raises(CompositeValidationError, match=r"depth 5 exceeds cap 4 at path members\[0\]"):
        nested(5)


def test_an_error_names_the_place_in_the_tree() -> None:
    inner = AllOf([single(), Single("", Wildcard())])
    with pytest.raises(InvalidArgument, match="waitpoint_key_empty"):
        Composite(AllOf([Composite(inner)]))
    text = b"""{"type":"composite","body":{"kind":"all_of","members":[
        {"type":"operator_only"}, {"type":"composite","body":{"kind":"count","n":0,"count_kind":"distinct_signals",
        "waitpoints":["a"]}}]}}"""
    with pytest.raises(msgspec.ValidationError, match=r"count_n_zero.*members\[1\]"):
        msgspec.json.decode(text, type=ResumeCondition)


@pytest.mark.parametrize("condition", [
    Single("k", ByName("")), Single("", ByName("x")), Single("k", ByName("n" * 129)),
])
def test_a_leaf_inside_a_composite_names_its_waitpoint_and_its_signal(condition: Single) -> None:
    with pytest.raises(InvalidArgument):
        Composite(AllOf([condition]))


def test_a_condition_of_very_many_waitpoints_is_refused() -> None:
    all_of_waitpoints(f"k{i}" for i in range(256)).validate_composite()
    with pytest.raises(CompositeValidationError, match="257 waitpoints"):
        all_of_waitpoints(f"k{i}" for i in range(257))


def test_referenced_waitpoint_keys_are_listed_once_in_tree_order() -> None:
    tree = Composite(all_of([
        single("b"),
        Composite(count(1, CountKind.DISTINCT_SIGNALS, Wildcard(), ["a", "b", "c"])),
        OperatorOnly(),
        single("a"),
    ]))
    assert tree.referenced_waitpoint_keys() == ["b", "a", "c"]
    assert OperatorOnly().referenced_waitpoint_keys() == []


def test_a_condition_is_stored_as_json_with_snake_case_tags() -> None:
    tree = Composite(AllOf([single(), Composite(Count(1, CountKind.DISTINCT_SOURCES, None, ["b"]))]))
    text = msgspec.json.encode(tree)
    assert msgspec.json.decode(text, type=ResumeCondition) == tree
    assert msgspec.json.decode(text) == {
        "type": "composite",
        "body": {"kind": "all_of", "members": [
            {"type": "single", "waitpoint_key": "wpk:a", "matcher": {"type": "by_name", "name": "x"}},
            {"type": "composite", "body": {
                "kind": "count", "n": 1, "count_kind": "distinct_sources", "matcher": None, "waitpoints": ["b"],
            }},
        ]},
    }


def test_a_stored_condition_from_a_newer_version_may_have_more_fields() -> None:
    assert msgspec.json.decode(b'{"type":"operator_only","who":"dana"}', type=ResumeCondition) == OperatorOnly()


def test_a_stored_condition_is_checked_as_it_is_read() -> None:
    with pytest.raises(msgspec.ValidationError, match="allof_empty_members"):
        msgspec.json.decode(b'{"type":"composite","body":{"kind":"all_of","members":[]}}', type=ResumeCondition)
