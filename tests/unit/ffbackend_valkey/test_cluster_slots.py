"""Which node serves which slot: reading what nodes say, and which key routes a command."""

from __future__ import annotations

from typing import Any

import pytest

from ffbackend_valkey.cluster_slots import (
    Range,
    SlotMap,
    goes_everywhere,
    key_of,
    read_redirect,
    read_slots,
    slot_of_key,
)
from ffcore import ids

A, B, C = ("10.0.0.1", 7001), ("10.0.0.2", 7002), ("10.0.0.3", 7003)
SEED = ("seed", 7000)


def test_the_slots_of_a_node_that_does_not_name_itself_are_where_it_was_asked() -> None:
    raw: list[Any] = [[0, 99, [b"", 7001, b"id"], [b"10.0.0.2", 7002, b"id", []]], [100, 16383, [None, 7003, b"id"]]]
    assert read_slots(raw, SEED) == [Range(0, 99, ("seed", 7001), (B,)), Range(100, 16383, ("seed", 7003), ())]


def test_a_node_without_a_known_endpoint_is_not_somewhere_to_go() -> None:
    raw = [[0, 99, [b"?", 7001, b"id"], [b"10.0.0.2", 7002, b"id"]], [100, 200, [b"10.0.0.1", 7001], [b"?", 7002]]]
    assert read_slots(raw, SEED) == [Range(100, 200, A, ())]


def test_the_map_answers_owners_and_tells_of_changes_once() -> None:
    slots, told = SlotMap([SEED]), []
    slots.on_change(lambda: told.append(slots.primaries))
    assert slots.owner(0) is None and slots.known == [SEED]
    view = [Range(0, 8191, A, (C,)), Range(8192, 16383, B, ())]
    slots.adopt(view)
    slots.adopt(view)
    assert told == [[A, B]]
    assert (slots.owner(0), slots.owner(8191), slots.owner(8192), slots.owner(16383)) == (A, A, B, B)
    assert slots.known == [A, B, C, SEED] and slots.replicas_of(A) == {C} and slots.replicas_of(B) == set()
    slots.moved(5, C)
    slots.moved(5, C)
    assert told[1:] == [[A, C, B]] and slots.owner(5) == C and slots.owner(6) == A
    slots.adopt([Range(0, 8191, A, ())])
    assert slots.owner(8192) is None, "what nobody serves is not remembered"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("MOVED 3999 10.0.0.1:7001", (3999, A)),
        ("ASK 3999 10.0.0.1:7001", (3999, A)),
        ("MOVED 3999 :7001", (3999, ("seed", 7001))),
        ("MOVED 3999 ::1:7001", (3999, ("::1", 7001))),
        ("MOVED 3999 [fd00::1]:7001", (3999, ("fd00::1", 7001))),
        ("MOVED 3999 node.example:7001", (3999, ("node.example", 7001))),
        ("MOVED 3999 ?:x", None), ("MOVED 99999 10.0.0.1:7001", None), ("MOVED", None), ("MOVED x 10.0.0.1:7001", None),
    ],
)  # fmt: skip
def test_a_refusal_says_where_to_go(text: str, found: object) -> None:
    assert read_redirect(text, SEED) == found


def test_slots_are_those_of_the_server() -> None:
    """Values of CLUSTER KEYSLOT."""
    assert slot_of_key("foo") == 12182
    assert slot_of_key("{fp:0}") == slot_of_key("ff:{fp:0}:x:1") == slot_of_key(b"ff:{fp:0}:absent") == 14926
    assert slot_of_key("{fp:0}") == ids.slot_of("{fp:0}")
    assert slot_of_key("foo{}{bar}") == 8363, "an empty tag is none"
    assert slot_of_key("foo{{bar}}zap") == 4015, "the first braces count"
    assert slot_of_key("foo{bar") == slot_of_key(b"foo{bar")


@pytest.mark.parametrize(
    ("command", "key"),
    [
        (("FCALL", "ff_x", 2, "ff:{fp:0}", "ff:{fp:0}:absent", "a"), "ff:{fp:0}"),
        (("FCALL_RO", "ff_library", 0), None), (("GET", "k"), "k"), (("hgetall", "k"), "k"), (("PING",), None),
        (("CONFIG", "GET", "x"), None), (("XREAD", "COUNT", 1, "STREAMS", "s", "0"), "s"),
        (("MEMORY", "USAGE", "k"), "k"), (("OBJECT", "ENCODING", "k"), "k"), (("SPUBLISH", "c", "m"), "c"),
        (("CLUSTER", "SLOTS"), None), (("SCAN", 0), None),
    ],
)  # fmt: skip
def test_a_command_is_routed_by_its_key(command: tuple[Any, ...], key: object) -> None:
    assert key_of(command) == key


def test_what_concerns_all_nodes_goes_to_all() -> None:
    assert goes_everywhere(("FLUSHALL",)) and goes_everywhere(("function", "load", "x"))
    assert goes_everywhere(("CONFIG", "SET", "a", "b")) and not goes_everywhere(("CONFIG", "GET", "a"))
    assert not goes_everywhere(("FUNCTION", "LIST")) and not goes_everywhere(("PING",))
