"""Rules that contracts check when they are built, so that a bad value never leaves the caller's process.

msgspec checks types when it decodes, not when a struct is constructed; what matters is therefore checked
in `__post_init__`. Each helper raises InvalidArgument and says what would be accepted; the store checks again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Final

from ffcore import limits
from ffcore.errors import InvalidArgument
from ffcore.ids import is_tag_key

INT_MAX: Final = 2**53 - 1
"""Lua and JSON readers keep integers exactly up to here."""
U32_MAX: Final = 2**32 - 1


def shown(value: object, limit: int = 40) -> str:
    """A bad value for a message: cut, and in any case text. Python refuses to write out an integer of thousands of
    digits, and what users pass may have a `repr` of its own that fails."""
    try:
        return f"{value!r:.{limit}}"
    except Exception:
        return f"one {type(value).__name__} that cannot be written out"


def whole(value: object, what: str, low: int = 0, high: int = INT_MAX, *, code: str | None = None) -> None:
    """An integer within bounds. None, which an optional field may hold, passes; a bool is not a number."""
    if value is None:
        return
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise InvalidArgument(f"{what} is {shown(value)}: use a whole number from {low} to {high}", code=code)


def span_ms(value: int | None, what: str, low: int = 0) -> None:
    whole(value, what, low, limits.SPAN_MAX_MS)


def lease_ttl_ms(value: int) -> None:
    whole(value, "lease_ttl_ms", limits.LEASE_TTL_MIN_MS, limits.LEASE_TTL_MAX_MS)


def grant_ttl_ms(value: int) -> None:
    whole(value, "grant_ttl_ms", 1, limits.GRANT_TTL_MAX_MS)


def priority(value: int, what: str = "priority") -> None:
    whole(value, what, limits.PRIORITY_MIN, limits.PRIORITY_MAX)


def page(value: int | None, what: str = "limit") -> None:
    whole(value, what, 1, limits.PAGE_MAX_N)


def utf8_n(value: str, what: str) -> int:
    """Bytes of a text; half a surrogate pair has no encoding and would fail where nobody expects it."""
    try:
        return len(value.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} {value!r:.60} is not valid Unicode text") from None


def size(value: bytes | str | None, what: str, limit: int, *, code: str = "payload_too_large") -> None:
    if value is None:
        return
    size_n = len(value) if isinstance(value, bytes) else utf8_n(value, what)
    if size_n > limit:
        raise InvalidArgument(f"{what} is {size_n} bytes; the limit is {limit}", code=code)


def text(value: object, what: str, limit: int = limits.KEY_BYTES) -> None:
    """Text that names something: present, printable, of bounded length."""
    if value is None:
        return
    if not isinstance(value, str) or not value or not value.isprintable() or len(value.encode()) > limit:
        raise InvalidArgument(f"{what} is {value!r:.60}: use 1 to {limit} bytes of printable text")


def tags(value: Mapping[str, str]) -> None:
    """Keys carry a namespace and a dot (`shop.tenant`), so that they never meet the engine's own fields."""
    if not isinstance(value, Mapping):
        raise InvalidArgument(f"tags are {shown(value, 60)}: use a mapping, as in {{'shop.tenant': 't1'}}")
    if len(value) > limits.TAGS_N:
        raise InvalidArgument(f"{len(value)} tags; the limit is {limits.TAGS_N}")
    for key, content in value.items():
        if not is_tag_key(key):
            raise InvalidArgument(
                f"tag key {key!r:.80}: use a lower-case namespace, a dot and a name, as in shop.tenant",
                code="invalid_tag_key",
            )
        if not isinstance(content, str):
            raise InvalidArgument(f"the value of tag {key} is not a string")
        size(content, f"the value of tag {key}", limits.TAG_VALUE_BYTES, code="invalid_input")


def capabilities(tokens: Collection[str]) -> None:
    """Tokens travel as sorted text joined by commas: none may be empty or hold a comma, space or control byte."""
    for token in tokens:
        if not token or any(c == "," or c <= " " or c == "\x7f" for c in token):
            raise InvalidArgument(
                f"capability {token!r:.60}: use text without commas, spaces or control characters",
                code="invalid_capabilities",
            )
    joined_n = sum(utf8_n(token, "capability") for token in tokens) + max(len(tokens) - 1, 0)
    if len(tokens) > limits.CAPABILITIES_N or joined_n > limits.CAPABILITIES_BYTES:
        raise InvalidArgument(
            f"{len(tokens)} capabilities in {joined_n} bytes; the limits are {limits.CAPABILITIES_N} tokens "
            f"and {limits.CAPABILITIES_BYTES} bytes",
            code="invalid_capabilities",
        )


def parallel(what: str, names: Sequence[str], **columns: Sequence[int]) -> None:
    """Lists that belong together, one entry per dimension; a name may appear once, a number is never negative."""
    if len(set(names)) != len(names):
        raise InvalidArgument(f"{what} names a dimension twice: {list(names)!r:.200}")
    for name in names:
        text(name, f"{what} name", limits.NAME_BYTES)
    for column, values in columns.items():
        if len(values) != len(names):
            raise InvalidArgument(f"{len(values)} {column} for {len(names)} {what}: give one each")
        for value in values:
            whole(value, column)
