"""What an execution must be admitted by: budgets it spends from, quotas it takes a place of, a key it holds alone.

As text, one line each, in the order they are asked. The same text goes with the create, stands beside the record,
and comes back with the claim; Lua checks it (shared/admission.lua) and takes the queue's name from it.

    b <budget id> <on_exceed> <dimension>=<amount>,... or -
    q <quota id> <on_exceed> <key, percent-encoded, or ->
    u <unique id> <queued | active | window | forever>

Amounts are decimals of at most six places, without sign or exponent.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Final, Literal, NamedTuple
from urllib.parse import quote, unquote

from ffcore import limits
from ffcore.errors import InvalidArgument

Amount = int | float | Decimal
OnExceed = Literal["hold", "fail", "suspend", "cancel"]
ON_EXCEED: Final = ("hold", "fail", "suspend", "cancel")
Scope = Literal["queued", "active", "window", "forever"]

_DIMENSION: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.\-]{0,63}")
_DECIMAL: Final = re.compile(r"\d{1,16}(\.\d{1,6})?")
KEY_TEXT_BYTES: Final = 128


class BudgetLine(NamedTuple):
    budget_id: str
    on_exceed: str
    estimate: dict[str, str]
    """Dimension -> amount as text; empty: admission asks only whether the budget is used up."""

    def text(self) -> str:
        return f"b {self.budget_id} {self.on_exceed} {pack_amounts(self.estimate) or '-'}"


class QuotaLine(NamedTuple):
    quota_id: str
    on_exceed: str
    key: str | None

    def text(self) -> str:
        return f"q {self.quota_id} {self.on_exceed} {'-' if self.key is None else key_word(self.key)}"


class UniqueLine(NamedTuple):
    unique_id: str
    scope: str

    def text(self) -> str:
        return f"u {self.unique_id} {self.scope}"


Line = BudgetLine | QuotaLine | UniqueLine


def amount_text(value: Amount | str, what: str = "amount") -> str:
    """An amount as it travels. InvalidArgument for a negative one, a bool, NaN, or more than six places."""
    if isinstance(value, bool):
        raise InvalidArgument(f"{what} is {value!r}: use a number")
    if isinstance(value, int):
        text = str(value)
    elif isinstance(value, float | Decimal):
        if value != value or value in (float("inf"), float("-inf")):
            raise InvalidArgument(f"{what} is {value!r}: use a number")
        text = f"{value:.6f}".rstrip("0").rstrip(".")
    else:
        text = value
    if not _DECIMAL.fullmatch(text) or Decimal(text) >= 2**53:
        raise InvalidArgument(f"{what} is {text!r:.60}: use a number from 0 to 2**53 with at most six places")
    return text


def amounts(values: Mapping[str, Amount | str], what: str = "amounts") -> dict[str, str]:
    """Dimensions and amounts, checked, sorted by name."""
    if len(values) > limits.DIMENSIONS_N:
        raise InvalidArgument(f"{what} has {len(values)} dimensions: use at most {limits.DIMENSIONS_N}")
    found: dict[str, str] = {}
    for name in sorted(values):
        if not _DIMENSION.fullmatch(name):
            raise InvalidArgument(f"{what}: dimension {name!r:.80} is no name: use letters, digits, _ . and -")
        found[name] = amount_text(values[name], f"{what}[{name}]")
    return found


def pack_amounts(values: Mapping[str, str]) -> str:
    return ",".join(f"{name}={value}" for name, value in sorted(values.items()))


def parse_amounts(text: str) -> dict[str, str]:
    """The other way; "-" and "" are none."""
    if text in ("", "-"):
        return {}
    return {name: amount for name, _, amount in (part.partition("=") for part in text.split(","))}


def number(text: str) -> int | float:
    """An amount as people read it: whole ones are ints."""
    return int(text) if "." not in text else float(text)


def key_word(key: str) -> str:
    """A quota's key as one word without spaces; a long one is its digest."""
    word = quote(key, safe="")
    if 0 < len(word) <= KEY_TEXT_BYTES and word != "-":
        return word
    return "%23" + hashlib.sha256(key.encode()).hexdigest()[:32]


def key_of(word: str) -> str | None:
    return None if word == "-" else unquote(word)


def pack(lines: list[Line]) -> str | None:
    """The text of some lines, None of none. InvalidArgument for too many."""
    if not lines:
        return None
    if len(lines) > limits.ADMISSIONS_N:
        raise InvalidArgument(f"{len(lines)} budgets, quotas and keys: use at most {limits.ADMISSIONS_N}")
    return "\n".join(line.text() for line in lines)


def parse(text: str) -> list[Line]:
    """The lines of a text the store has checked."""
    found: list[Line] = []
    for line in text.split("\n"):
        words = line.split(" ")
        if words[0] == "b":
            found.append(BudgetLine(words[1], words[2], parse_amounts(words[3])))
        elif words[0] == "q":
            found.append(QuotaLine(words[1], words[2], key_of(words[3])))
        elif words[0] == "u":
            found.append(UniqueLine(words[1], words[2]))
    return found
