"""Mutants: the code with one thing taken out, to show that a chaos run would notice.

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
    run: str = "faults"
    """Which of the two runs is to notice: `faults` or `points`."""


MUTANTS: Final[dict[str, Mutant]] = {
    "nofence": Mutant(
        "lua/shared/fence.lua",
        'if not same then return reply.reject("stale_lease", "held at epoch " .. (x.lease_epoch or "0")) end',
        "",
        "whoever reports an active job is believed, whatever lease he names",
    ),
    "nolease": Mutant(
        "lua/shared/timers.lua",
        'note(p, "lease_writes", x.id, x.at)\n  soon(p, tonumber(x.at))\n  local lane',
        "local lane",
        "a claim does not enter the lease index: what a dead worker held is lost",
    ),
    "noexpiry": Mutant(
        "lua/shared/due.lua",
        "for i = 1, #lost do due.expire(p, lost[i]) end",
        "for i = 1, #lost - 1 do due.expire(p, lost[i]) end",
        "one lease of those that have run out is always left",
    ),
    "noindex": Mutant(
        "lua/shared/state.lua",
        "else queue.note(p, keys.index(p, x.lane, from), x.id, false) end",
        "end",
        "what was delayed or blocked stays in that index: wrong at once, and still wrong at the end",
    ),
    "early": Mutant(
        "lua/shared/graph.lua",
        'or g.ok == g.n and "s" or "p" end',
        'or "s" end',
        "who depends on several others begins when the first of them has completed",
    ),
    "unheard": Mutant(
        "lua/shared/graph.lua",
        'if met then\n    redis.call("HDEL", key, "w")',
        'if false then\n    redis.call("HDEL", key, "w")',
        "the end of the last child does not wake its parent",
        "points",
    ),
    "forgotten": Mutant(
        "lua/shared/journal.lua",
        "if not x.journal and not x.unpinned then return nil, 0 end",
        "do return nil, 0 end",
        "a claim does not tell what is recorded: the worker runs every step again",
        "points",
    ),
    "nointent": Mutant(
        "ffsdk/steps.py",
        "    if at_most_once:\n        standing",
        "    if False:\n        standing",
        "a step that must not begin twice begins without a record of that",
        "points",
    ),
    "doubled": Mutant(
        "lua/signal.lua",
        "if until_ms and tonumber(until_ms) > p.now then",
        "if false then",
        "a signal that is sent again is taken again",
        "points",
    ),
    "oneattempt": Mutant(
        "lua/shared/stream.lua",
        "while #words > LIMITS.STREAMS_N do",
        "while #words > 1 do",
        "the first frame of an attempt drops the frames of those before it",
        "points",
    ),
}


def mutate(root: Path, name: str) -> None:
    """Change a file under `root`, which must be a copy of the tree."""
    mutant = MUTANTS[name]
    change(root / mutant.file, mutant.find, mutant.put)
