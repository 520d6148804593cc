"""Small encodings shared by both sides of the wire.

`pack_pairs` carries a string map through the store without an escape: each text is preceded by its length
in bytes and a colon, so any text survives and nothing a user stored passes through a JSON decoder in Lua.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def pack_pairs(pairs: Mapping[str, str]) -> bytes:
    """Keys in order, each key followed by its value."""
    out = bytearray()
    for key in sorted(pairs):
        for text in (key, pairs[key]):
            raw = text.encode()
            out += b"%d:" % len(raw)
            out += raw
    return bytes(out)


def pairs_to_dict(flat: Sequence[str]) -> dict[str, str]:
    """A flat list key, value, key, value as a dict."""
    return dict(zip(flat[::2], flat[1::2], strict=True))
