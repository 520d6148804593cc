"""Mutants: the library with one thing taken out, to show that a chaos run would notice.

A harness that has never failed proves nothing. Each mutant is a text to find, once, and what stands there instead.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, NamedTuple

from tests.chaos.tree import change


class Mutant(NamedTuple):
    file: str
    find: str
    put: str
    what: str


MUTANTS: Final[dict[str, Mutant]] = {
    "nofence": Mutant(
        "shared/fence.lua",
        'if not same then return reply.reject("stale_lease", "held at epoch " .. (x.lease_epoch or "0")) end',
        "",
        "whoever reports an active job is believed, whatever lease he names",
    ),
    "nolease": Mutant(
        "shared/timers.lua",
        'note(p, "lease_writes", x.id, x.at)\n  soon(p, tonumber(x.at))\n  local lane',
        "local lane",
        "a claim does not enter the lease index: what a dead worker held is lost",
    ),
    "noexpiry": Mutant(
        "shared/due.lua",
        "for i = 1, #lost do due.expire(p, lost[i]) end",
        "for i = 1, #lost - 1 do due.expire(p, lost[i]) end",
        "one lease of those that have run out is always left",
    ),
    "noindex": Mutant(
        "shared/state.lua",
        "else queue.note(p, keys.index(p, x.lane, from), x.id, false) end",
        "end",
        "what was delayed or blocked stays in that index: wrong at once, and still wrong at the end",
    ),
}


def mutate(root: Path, name: str) -> None:
    """Change the Lua files under `root`, which must be a copy."""
    mutant = MUTANTS[name]
    change(root / mutant.file, mutant.find, mutant.put)
