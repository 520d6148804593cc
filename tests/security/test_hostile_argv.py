"""What somebody may send who speaks to the functions directly: refused in words, or an FFBUG, and nothing half-written.

Arguments are drawn by kind: good ones, so that a call gets past its first check, and hostile ones. A reply that names a
line of the library is a function that broke in the middle; the digest of all data tells whether a refused call wrote.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from hypothesis import strategies as st

from ffbackend_valkey.backend import ValkeyBackend
from ffbackend_valkey.library import library
from ffbackend_valkey.stores import connect
from ffcore.backend import StoreConfig
from ffcore.errors import EngineBug, EngineError
from ffengine import check
from tests.lua import invariants
from tests.security import hostile

EXAMPLES_N = 30
KNOWN = [f"{{fp:0}}:{n:08x}-0000-7000-8000-000000000000" for n in range(6)]
FENCE = "w1.s0.0.1 1 w1.s0.0.1"
HOSTILE = [
    b"", b"\0", b"a\0b", b"{", b"}", b"}{", b"{fp:0}", b"ff:{fp:0}", b"a b", b"a\r\nb", b"\xff\xfe", b"\xc3\x28",
    b"\xed\xa0\x80", b"x" * 129, b"x" * 20_000, b"0x10", b"nan", b"-nan", b"inf", b"1e309", b"1.5", b" 1", b"+1",
    b"-1", b"-0", b"00", b"9007199254740993", b"-9007199254740993", b"99999999999999999", b"9" * 400, b"=", b"==",
    b"=\0", b"=nan", b"=1e309", b"#1", b"#lane", b"*", b"%s%n", b"[", b"[]", b"{}", b"[[]]", b"[null]", b'[{"a":1}]',
    b"[NaN]", b"[1e999]", b"[" * 2000, b'"', b"null", b'{"a":NaN}', b"[1,,2]", b'{"max_retries":1e999}',
    b'{"retry_policy":[]}', b'{"retry_policy":{"max_retries":-1}}',
    b'{"routing_requirements":{"required_capabilities":[{}]}}', b"0x1:a1:b", b"nan:a1:b", b"1e0:a1:b", b"-1:a",
    b"999999999999:a", b"1:a", b"0:0:" * 400, b"4:a.bc1:v", b"-", b"+", b"$", b"1-1-1", b"task:x", b"tag:a.b=\n",
    b"%[a", b"[%c", b"\x1b[2J",
]  # fmt: skip
GOOD: dict[str, list[bytes]] = {
    "str": [
        b"mail", b"w1", b"t1", b"active", b"paused", b"hand_back", b"fresh", b"resume", b"task:send", b"tag:a.b=c",
        b"c1", b"-",
    ],
    "blob": [
        b"payload", b"d" * 16, b"3:a.b1:v", b"{}", b'{"max_retries":3}',
    ],
    "int": [
        b"0", b"1", b"2", b"100", b"1000", b"30000", b"1800000000000", b"-100",
    ],
    "bool": [
        b"0", b"1",
    ],
    "json": [
        b"[]", b'["mail"]', b'["send"]', b'["w1"]', b'["a","b"]', b'["{fp:0}"]', b"{}",
        *[b'["%s"]' % id.encode() for id in KNOWN[:2]],
    ],
    "id": [id.encode() for id in KNOWN],
    "fence": [
        FENCE.encode(), b"a 1 b",
    ],
}  # fmt: skip


def word(kind: str) -> st.SearchStrategy[bytes]:
    optional, kind = kind.endswith("?"), kind.rstrip("?")
    good = st.sampled_from(GOOD[kind])
    if optional:
        good = st.one_of(st.just(b""), good.map(lambda raw: b"=" + raw))
    return st.one_of(good, good, st.sampled_from(HOSTILE), st.binary(max_size=12))


def arguments(name: str) -> st.SearchStrategy[list[bytes]]:
    """ARGV for a function, by its signature; now and then with a word too many or too few."""
    parts: list[st.SearchStrategy[list[bytes]]] = []
    for declared in library().signatures[name].args:
        _, _, kind = declared.partition(":")
        if kind.startswith("rows("):
            row = st.tuples(*(word(column.partition(":")[2]) for column in kind[5:-1].split(","))).map(list)
            parts.append(
                st.lists(row, max_size=3).map(lambda rows: [b"%d" % len(rows), *(one for row in rows for one in row)])
            )
        else:
            parts.append(word(kind).map(lambda raw: [raw]))
    whole = st.tuples(*parts).map(lambda lists: [raw for some in lists for raw in some])
    return st.one_of(
        whole, whole, whole, whole,
        st.tuples(whole, st.sampled_from(HOSTILE)).map(lambda pair: [*pair[0], pair[1]]),
        whole.map(lambda words: words[:-1]),
    )  # fmt: skip


def partitions(name: str) -> st.SearchStrategy[list[str]]:
    match library().signatures[name].scope:
        case "none":
            return st.just([])
        case "many":
            return st.sampled_from([["{fp:0}"], ["{fp:0}", "{fp:1}"], ["{fp:0}", "{fp:0}"], ["{w:0}"]])
        case _:
            return st.sampled_from([["{fp:0}"], ["{fp:0}"], ["{fp:0}"], ["{fp:1}"], ["{w:0}"], ["{b:0}"]])


@pytest.fixture
async def backend(digesting: str) -> AsyncIterator[ValkeyBackend]:
    backend = await connect(digesting, init=False, check=False)
    await backend.command("FLUSHALL")
    await backend.load_library(replace=True)
    await backend.initialise(StoreConfig(fp=2))
    yield backend
    await backend.close()


async def call(backend: ValkeyBackend, name: str, tags: list[str], argv: list[bytes]) -> tuple[Any, bool]:
    """The reply, and whether it is a refusal. Anything but an answer, a refusal or an FFBUG fails."""
    keys = [key for tag in tags for key in (f"ff:{tag}", f"ff:{tag}:absent")]
    try:
        reply = await backend.command("FCALL", name, len(keys), *keys, *argv)
    except EngineBug as bug:
        assert str(bug).startswith("FFBUG") and "user_function" not in str(bug), (name, argv, str(bug))
        return str(bug), True
    except EngineError as other:
        raise AssertionError((name, argv, repr(other))) from other
    assert isinstance(reply, list | bytes), (name, reply)
    return reply, isinstance(reply, list) and reply[0] == b"error"


async def begin(backend: ValkeyBackend) -> None:
    """Some executions to act on, in several states."""
    rows = [raw for id in KNOWN[:4] for raw in (id.encode(), b"d" * 16, b"hello", b"", b"", b"")]
    signature = [declared.partition(":")[0] for declared in library().signatures["ff_create_many"].args]
    given = {
        "namespace": b"default", "lane_id": b"mail", "execution_kind": b"send", "version": b"1", "priority": b"0",
    }  # fmt: skip
    head = [given.get(name, b"") for name in signature[:-1]]
    reply, refused = await call(backend, "ff_create_many", ["{fp:0}"], [*head, b"4", *rows])
    assert not refused, reply


COUNTED = {b"invalid_token"}
"""Refusals that the partition counts, and tells of in its feed once in a while; nothing else of it changes."""


@pytest.mark.parametrize("name", sorted(library().signatures))
async def test_a_function_answers_refuses_or_calls_it_a_bug_and_a_refusal_writes_nothing(
    backend: ValkeyBackend, name: str
) -> None:
    await begin(backend)
    for tags, argv in hostile.draws(st.tuples(partitions(name), arguments(name)), EXAMPLES_N):
        before = await backend.command("DEBUG", "DIGEST")
        reply, refused = await call(backend, name, tags, argv)
        if refused and reply[1] not in COUNTED:
            assert await backend.command("DEBUG", "DIGEST") == before, ("a refused call wrote", name, argv, reply)
    store = await invariants.read_store(backend.command)
    found = await check.violations(backend, memory=check.Memory())
    assert not found and not invariants.strays(store), [*map(str, found), *invariants.strays(store)]


async def test_names_are_ascii_in_lua_too(backend: ValkeyBackend) -> None:
    """A name of bytes that are no text would make every listing of it unreadable."""
    for name in (b"\xcf", b"a\xff", "é".encode(), b"{", b"a b", b"a\0"):
        for function, argv in (("ff_hold", [b"task:" + name, b""]), ("ff_register_worker", [name, b"{}", b"1000"])):
            reply, refused = await call(backend, function, ["{fp:0}"], argv)
            assert refused or (function == "ff_register_worker" and name == b"{"), (function, name, reply)
