"""Which capability sets a worker can serve: tokens a job requires against tokens a worker has.

A plain token ("gpu") is met by the same token. A comparison ("torch>=2.3") is met by a version the worker states,
as "torch==2.4" or "torch=2.4"; versions are dotted numbers and compare number by number, so 2.10 is above 2.9.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ffcore import checks
from ffcore.errors import InvalidArgument

_COMPARISON: Final = re.compile(r"([^<>=!\s,]+)(==|!=|>=|<=|=|>|<)([^<>=!\s,]+)")
_VERSION: Final = re.compile(r"\d+(\.\d+)*")


def _parse(token: str) -> tuple[str, str, str] | None:
    """Name, operator and version of a comparison; None for a plain token."""
    match = _COMPARISON.fullmatch(token)
    return (match[1], match[2], match[3]) if match else None


def _numbers(version: str) -> tuple[int, ...] | None:
    """A dotted version as numbers without trailing zeros (2.0 is 2); None if it is something else."""
    if not _VERSION.fullmatch(version):
        return None
    numbers = [int(part) for part in version.split(".")]
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def _meets(have: str, operator: str, want: str) -> bool:
    mine, theirs = _numbers(have), _numbers(want)
    if mine is None or theirs is None:
        # Not a dotted number ("cuda==12a"): equal or not is all that can be said.
        same = have == want
        return same if operator in ("=", "==", ">=", "<=") else operator == "!=" and not same
    match operator:
        case "=" | "==":
            return mine == theirs
        case "!=":
            return mine != theirs
        case ">=":
            return mine >= theirs
        case "<=":
            return mine <= theirs
        case ">":
            return mine > theirs
        case _:
            return mine < theirs


class Capabilities:
    """What one worker has."""

    def __init__(self, tokens: Iterable[str]) -> None:
        """Tokens are plain words or stated versions ("torch==2.4"). InvalidArgument for anything else: a worker that
        says it has "torch>=2" has not said what it has."""
        if isinstance(tokens, str):
            raise InvalidArgument(f"capabilities is {tokens!r:.60}: use a set, as in {{{tokens!r:.60}}}")
        self.tokens = frozenset(tokens)
        self._versions: dict[str, list[str]] = {}
        for token in self.tokens:
            if not isinstance(token, str) or any(c.isspace() for c in token):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise InvalidArgument(f"capability {token!r:.60}: use a word without spaces and commas")
        checks.capabilities(self.tokens)
        for token in self.tokens:
            parsed = _parse(token)
            if parsed is None:
                continue
            name, operator, version = parsed
            if operator not in ("=", "=="):
                raise InvalidArgument(
                    f"capability {token!r:.60}: a worker states a version it has, as in {name}=={version}"
                )
            self._versions.setdefault(name, []).append(version)

    def __bool__(self) -> bool:
        return bool(self.tokens)

    def meets(self, token: str) -> bool:
        """Whether a required token is met. A stated version meets its bare name too: "torch" by "torch==2.4"."""
        if token in self.tokens or token in self._versions:
            return True
        parsed = _parse(token)
        if parsed is None:
            return False
        name, operator, version = parsed
        return any(_meets(have, operator, version) for have in self._versions.get(name, ()))

    def serves(self, required: Iterable[str]) -> bool:
        """Whether all of a set are met."""
        return all(self.meets(token) for token in required)
