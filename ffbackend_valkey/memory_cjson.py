"""cjson for memory://, as the server's behaves, where fakeredis answers with Python's json instead.

What differs there and matters: `[]` for an empty table, whole numbers of more than 14 digits, escapes,
bytes that are not UTF-8, tables with holes, and integers beyond 64 bits.

The rule kept here: bytes in, the same bytes out. Text outside ASCII is neither checked nor escaped.
Member order is the table's own; nothing in lua/ may depend on it, here or on a server.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any, Final, cast

NULL: Final = object()
"""What Lua sees as cjson.null."""

MAX_DEPTH: Final = 1000
SPARSE_SAFE: Final = 10
SPARSE_RATIO: Final = 2
"""A table whose highest index is above SPARSE_SAFE and SPARSE_RATIO times its entries is not made an array."""

_ESCAPES: Final = {
    b'"': b'\\"', b"\\": b"\\\\", b"/": b"\\/",
    b"\b": b"\\b", b"\f": b"\\f", b"\n": b"\\n", b"\r": b"\\r", b"\t": b"\\t",
}  # fmt: skip
_ESCAPED: Final = re.compile(rb'[\x00-\x1f"\\/\x7f]')



def encode(runtime: Any, _globals: object, value: Any) -> bytes:
    """cjson.encode. The first two arguments are how fakeredis calls it."""
    return _encode(runtime.globals()[b"type"], value, 1)


def decode(runtime: Any, _globals: object, text: Any) -> Any:
    """cjson.decode. Numbers become doubles, as everything numeric in Lua is."""
    if isinstance(text, (int, float)):
        return text
    try:
        # Bytes that are not UTF-8 travel as surrogates and come back unchanged.
        value = json.loads(text.decode("utf-8", "surrogateescape"), parse_int=float, strict=False)
    except (ValueError, AttributeError, RecursionError):
        raise _refusal("Expected value but found invalid token at character 1") from None
    return _to_lua(runtime, value, 1)


def _refusal(message: str) -> Exception:
    from fakeredis._helpers import SimpleError

    return SimpleError(f"ERR {message}")


def _to_lua(runtime: Any, value: Any, depth: int) -> Any:
    if depth > MAX_DEPTH:
        raise _refusal(f"Found too many nested data structures ({depth})")
    if value is None:
        return NULL
    if isinstance(value, str):
        return value.encode("utf-8", "surrogateescape")
    if isinstance(value, list):
        items = cast("Any", value)
        return runtime.table_from([_to_lua(runtime, item, depth + 1) for item in items])
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value).items()
        return runtime.table_from(
            {name.encode("utf-8", "surrogateescape"): _to_lua(runtime, item, depth + 1) for name, item in members}
        )
    return value


def _encode(lua_type: Any, value: Any, depth: int) -> bytes:
    if value is None or value is NULL:
        return b"null"
    if isinstance(value, bool):
        return b"true" if value else b"false"
    if isinstance(value, bytes):
        return _string(value)
    if isinstance(value, (int, float)):
        return _number(value)
    if lua_type(value) != b"table":
        raise _refusal(f"Cannot serialise {lua_type(value).decode()}: type not supported")
    if depth > MAX_DEPTH:
        raise _refusal(f"Cannot serialise, excessive depth ({depth})")
    pairs = dict(value.items())
    length = _array_length(pairs)
    if length:
        return b"[" + b",".join(_encode(lua_type, pairs.get(i), depth + 1) for i in range(1, length + 1)) + b"]"
    members: list[bytes] = []
    for key, item in pairs.items():
        if isinstance(key, bytes):
            name = _string(key)
        elif type(key) in (int, float):
            name = b'"' + _number(key) + b'"'
        else:
            raise _refusal("Cannot serialise table: table key must be a number or string")
        members.append(name + b":" + _encode(lua_type, item, depth + 1))
    return b"{" + b",".join(members) + b"}"


def _array_length(pairs: dict[Any, Any]) -> int:
    """The highest index if all keys are positive integers, else 0: an object. An empty table is an object."""
    highest = 0
    for key in pairs:
        if type(key) not in (int, float) or key != int(key) or key < 1:
            return 0
        highest = max(highest, int(key))
    if highest > SPARSE_SAFE and highest > len(pairs) * SPARSE_RATIO:
        raise _refusal("Cannot serialise table: excessively sparse array")
    return highest


def _number(value: float) -> bytes:
    if not math.isfinite(value):
        raise _refusal("Cannot serialise number: must not be NaN or Inf")
    return f"{float(value):.14g}".encode()


def _string(value: bytes) -> bytes:
    def escape(match: re.Match[bytes]) -> bytes:
        found = match[0]
        return _ESCAPES.get(found) or b"\\u%04x" % found[0]

    return b'"' + _ESCAPED.sub(escape, value) + b'"'
