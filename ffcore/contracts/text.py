"""Text with a grammar: strings that are checked where they are made, and stay plain strings on the wire.

A `Text` is a str, so it compares, hashes, prints and travels as one; msgspec needs the two hooks below to
encode and decode it.
"""

from __future__ import annotations

from typing import Any, Self


class Text(str):
    """Base of strings that `parse` makes and nothing else should."""

    __slots__ = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The value, or InvalidArgument naming what would be accepted."""
        raise NotImplementedError

    @property
    def wire(self) -> str:
        """The plain string the store keeps."""
        return str.__str__(self)


def enc_hook(value: Any) -> Any:
    """For `msgspec.json.encode(..., enc_hook=)` and the binding."""
    if isinstance(value, Text):
        return str.__str__(value)
    raise NotImplementedError(f"{type(value).__name__} has no wire form")


def dec_hook(wanted: Any, value: Any) -> Any:
    """For `msgspec.json.decode(..., dec_hook=)` and `msgspec.convert`."""
    if isinstance(wanted, type) and issubclass(wanted, Text) and isinstance(value, str):
        return wanted.parse(value)
    raise NotImplementedError(f"{wanted!r} has no wire form")
