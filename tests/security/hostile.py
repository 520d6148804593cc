"""Values nobody means well with, and how tests draw them: always the same ones, and few."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable
from typing import Any, TypeVar

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

T = TypeVar("T")
UUID = "01a1fe5c-11c0-7ae7-9924-5008be9f5f8e"
TEXTS = [
    "", " ", "\0", "a\0b", "{", "}", "}{", "{fp:0}", "{fp:0}:x", "ff:{fp:0}", f"{{fp:0}}:{UUID}",
    f"{{fp:\u0663}}:{UUID}", f"{{fp:00}}:{UUID}", f"{{fp:0}}:{UUID.upper()}", f"{{fp:0}}:{UUID}\n", f"{{w:0}}:{UUID}",
    f"{{fp:99999}}:{UUID}", f"{{fp:0}}:{UUID}x", f"{{fp:{'9' * 5000}}}:{UUID}", "a b", "a\r\nb", "a\tb", "\x1b[31m",
    "\x7f", "\u202e", "\u2028", "\ud800", "a\udfffb", "\u0130", "\u00e9", "x" * 129, "x" * 600, "x" * 20_000, "0x10",
    "nan", "1e309", "-1", str(2**64), "#1", "#", "*", "?", "[a]", "%s%n", "%[", "../..", "'; --", "=", "==", ",", ":",
    "task:a", "tag:a.b=c", "a.b", "A.b", "a.", ".b", "a..b", "a.b=c", "a" * 200 + ".b", "error", "-", "+", "$", "0-0",
    "1-1-1", "-1-0", "18446744073709551616-0", "null", "true", "[]", "__proto__", "self",
]  # fmt: skip
NUMBERS: list[Any] = [
    0, -1, 1, 101, -101, 2**31, 2**53 - 1, 2**53, 2**63, 2**64, -(2**63), 10**400, 10**5000, math.nan, math.inf,
    -math.inf, 1e306, 1e-320, 0.1, -0.0, True, False, datetime.timedelta.max, datetime.timedelta.min,
    datetime.timedelta(microseconds=1),
]  # fmt: skip

text = st.one_of(st.sampled_from(TEXTS), st.text(st.characters(), max_size=12))
number = st.one_of(st.integers(0, len(NUMBERS) - 1).map(lambda at: NUMBERS[at]), st.integers(), st.floats())
json = st.recursive(
    st.one_of(st.none(), st.booleans(), number, text, st.binary(max_size=8)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(text, inner, max_size=3)),
    max_leaves=6,
)


def texts(n: int, turn: int) -> list[str]:
    """Every other text of the list, from the first or the second on by turns, and `n` more."""
    return [*TEXTS[turn % 2 :: 2], *draws(text, n)]


def numbers(n: int) -> list[Any]:
    return [*NUMBERS, *draws(number, n)]


def draws(strategy: st.SearchStrategy[T], n: int) -> list[T]:
    """`n` values or so, the same in each run. Drawn before they are used: what uses them is not a function."""
    found: list[T] = []

    @settings(max_examples=n, derandomize=True, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(strategy)
    def draw(value: T) -> None:
        found.append(value)

    run: Callable[[], None] = draw
    run()
    return found
