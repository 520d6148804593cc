"""Server releases with known holes in their Lua engine: the one part of a server that every call of ours goes through.

Only what vendors' release notes state is listed. A distribution may have patched an older release without another
number, so this is a warning and never a refusal.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

Version = tuple[int, int, int]


class Advisory(NamedTuple):
    """One set of holes, and the first sound release of each line that got the fix; later lines were born with it."""

    names: str
    what: str
    fixed: dict[str, tuple[Version, ...]]


ADVISORIES: Final = (
    Advisory(
        "CVE-2025-49844, CVE-2025-46817, CVE-2025-46818 and CVE-2025-46819",
        "whoever may run Lua in the server may take it over",
        {
            "Valkey": ((7, 2, 11), (8, 0, 6), (8, 1, 4), (9, 0, 0)),
            "Redis": ((7, 2, 11), (7, 4, 6), (8, 0, 4), (8, 2, 2)),
        },
    ),
    Advisory(
        "CVE-2026-23631",
        "use of freed memory when a full synchronisation falls into a long function",
        {"Valkey": ((7, 2, 13), (8, 0, 9), (8, 1, 7), (9, 0, 4))},
    ),
)
"""From the release notes of Valkey 7.2.11, 8.0.6, 8.1.4 (October 2025), 7.2.13, 8.0.8 (withdrawn for 8.0.9), 8.1.7,
9.0.4 (May 2026), and of Redis 7.2.11, 7.4.6, 8.0.4, 8.2.2 (October 2025)."""


def product_of(info: str) -> tuple[str, Version] | None:
    """Name and version of a server, from its INFO; None if it names none. Valkey also names a Redis it is like."""
    for name, field in (("Valkey", "valkey_version"), ("Redis", "redis_version")):
        if found := re.search(rf"^{field}:(\d+)\.(\d+)\.(\d+)", info, re.M):
            return name, (int(found[1]), int(found[2]), int(found[3]))
    return None


def warning(info: str) -> str | None:
    """What is known against the server that gave this INFO; None for nothing."""
    product = product_of(info)
    if product is None:
        return None
    name, version = product
    for advisory in ADVISORIES:
        fixed = advisory.fixed.get(name, ())
        if not fixed or version[:2] > fixed[-1][:2]:
            continue
        mine = next((first for first in fixed if first[:2] == version[:2]), None)
        if mine is not None and version >= mine:
            continue
        there = ", ".join(".".join(map(str, first)) for first in fixed)
        return (
            f"{name} {'.'.join(map(str, version))} is older than the fix of {advisory.names} ({advisory.what}): fixed "
            f"are {name} {there} and later lines, and distributions' packages that were patched"
        )
    return None
