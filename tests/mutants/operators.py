"""Mutants made by rule: every place of the state-changing Lua where an operator applies, and a sample of them.

The sample is by rank: a candidate's rank is a digest of the seed and of its own text, and each operator takes its
lowest. So an edit of the Lua changes the mutants at the place of the edit and leaves the rest of the sample as it is.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from tests.mutants.mutant import Mutant, Patch, manifest, read_lua

SEED = "1"
NOT_OF_INTEREST = {
    "shared/define.lua", "shared/clock.lua", "shared/keys.lua", "shared/names.lua", "shared/check.lua",
    "shared/flow_check.lua", "shared/kinds.lua", "check.lua", "library.lua", "view.lua",
}  # fmt: skip
"""Declarations, names, reads, and the checker: what changes a store is in the others."""

WRITES = (
    r'redis\.call\("(?:ZADD|ZREM|ZREMRANGEBYSCORE|HSET|HDEL|HSETNX|HINCRBY|SET|DEL|UNLINK|RPUSH|LTRIM|SADD|SREM|XADD|SPUBLISH)"'
    r"|timers\.(?:set|clear|reap|reap_first|unreap|lease|extend|unlease|write)\(|queue\.(?:note|enter|leave|put_back)\("
    r"|events\.(?:add|note)\(|lanes\.(?:note|changed)\(|record\.(?:write|put|describe)\(|wake\.(?:ring|worker|waiters)\("
    r"|fence\.(?:replayed|heard)\(|attempt\.close\(|state\.(?:requeue|finish)\(|note\("
)


class Edit(NamedTuple):
    """Put `new` between two places of a text."""

    start: int
    end: int
    new: str


Operator = Callable[[str, str], Iterator[Edit]]
"""From a text and the same with comments and the insides of strings blanked, to what may be done to it."""

# ---- reading Lua, roughly --------------------------------------------------------------------------------

_TOKEN = re.compile(r'--[^\n]*|"(?:\\.|[^"\\\n])*"')


def bare(text: str) -> str:
    """The text, of the same length, with comments blank and strings filled with underscores."""

    def blank(match: re.Match[str]) -> str:
        found = match[0]
        return " " * len(found) if found.startswith("--") else '"' + "_" * (len(found) - 2) + '"'

    return _TOKEN.sub(blank, text)


def _close(plain: str, opening: int) -> int:
    """Where the bracket at `opening` is closed."""
    depth = 0
    for at in range(opening, len(plain)):
        if plain[at] in "([{":
            depth += 1
        elif plain[at] in ")]}":
            depth -= 1
            if depth == 0:
                return at
    raise ValueError("an open bracket")


def _split(plain: str, start: int, end: int, sign: str) -> list[tuple[int, int]]:
    """The parts between `sign` outside of brackets, as places."""
    parts, depth, begin, at = [], 0, start, start
    while at < end:
        if plain[at] in "([{":
            depth += 1
        elif plain[at] in ")]}":
            depth -= 1
        elif depth == 0 and plain.startswith(sign, at):
            parts.append((begin, at))
            at += len(sign)
            begin = at
            continue
        at += 1
    return [*parts, (begin, end)]


def _conditions(plain: str) -> Iterator[tuple[int, int]]:
    """The conditions of if and elseif that stand on one line."""
    for match in re.finditer(r"\b(?:if|elseif) (.+?) then\b", plain):
        yield match.span(1)


# ---- operators -------------------------------------------------------------------------------------------


def drop_write(text: str, plain: str) -> Iterator[Edit]:
    """A write that is a statement of its own is left out."""
    for match in re.finditer(rf"(?:^ *|then |else |do )({WRITES})", text, re.M):
        start = match.start(1)
        if plain[start : start + 4] != text[start : start + 4]:
            continue  # in a comment
        end = _close(plain, plain.index("(", start)) + 1
        if re.match(r" *(?:$|end\b|else\b|;)", plain[end:].split("\n", 1)[0]):
            yield Edit(start, end, "")


def off_by_one(text: str, plain: str) -> Iterator[Edit]:
    """One more or less: `+ 1` left out, a bound taken as passed or not."""
    for match in re.finditer(r" \+ 1\b(?=[,)\n ])", plain):
        if not re.search(r"\[[^\]]*$", plain[plain.rfind("\n", 0, match.start()) : match.start()]):  # not an index
            yield Edit(*match.span(), "")
    for start, end in _conditions(plain):
        # Whether there is any (`> 0`) is no bound; `negate` asks that.
        for match in re.finditer(r" (<=|>=|<|>) (?!0\b)", plain[start:end]):
            sign = match[1]
            other = sign[0] if len(sign) == 2 else sign + "="
            yield Edit(start + match.start(1), start + match.end(1), other)


_PAIRED = {"state.move": 4, "state.step": 4, "record.write": 2, "record.put": 1, "record.describe": 2, "redis.call": 2}
"""What takes name, value, name, value, and how many arguments stand before."""


def swap_writes(text: str, plain: str) -> Iterator[Edit]:
    """Two neighbours of one write get each other's values."""
    for match in re.finditer(rf"\b({'|'.join(map(re.escape, _PAIRED))})\(", plain):
        opening = match.end() - 1
        if match[1] == "redis.call" and not text.startswith('"HSET"', opening + 1):
            continue
        parts = _split(plain, opening + 1, _close(plain, opening), ",")[_PAIRED[match[1]] :]
        values = [(a + len(plain[a:b]) - len(plain[a:b].lstrip()), b) for a, b in parts[1::2]]
        for (a, b), (c, d) in itertools.pairwise(values):
            if text[a:b] != text[c:d]:
                yield Edit(a, d, text[c:d] + text[b:c] + text[a:b])


def negate(text: str, plain: str) -> Iterator[Edit]:
    """A condition says the opposite."""
    for start, end in _conditions(plain):
        yield Edit(start, end, f"not ({text[start:end]})")


def drop_conjunct(text: str, plain: str) -> Iterator[Edit]:
    """One of the conditions that must all hold is not asked for."""
    for start, end in _conditions(plain):
        if " or " in plain[start:end]:
            continue
        parts = _split(plain, start, end, " and ")
        for i, (a, b) in enumerate(parts):
            if len(parts) > 1:
                yield Edit(a, parts[i + 1][0], "") if i + 1 < len(parts) else Edit(a - len(" and "), b, "")


def drop_refusal(text: str, plain: str) -> Iterator[Edit]:
    """What should have been refused goes on."""
    refusal = r"(?:nil, )?(?:reply\.reject\([^\n]*\)|refusal)"
    for match in re.finditer(rf"^ *(if [^\n]*? then return {refusal} end)", plain, re.M):
        yield Edit(*match.span(1), "")


OPERATORS: dict[str, tuple[Operator, int]] = {
    "drop_write": (drop_write, 9), "off_by_one": (off_by_one, 4), "swap_writes": (swap_writes, 3),
    "negate": (negate, 3), "drop_conjunct": (drop_conjunct, 3), "drop_refusal": (drop_refusal, 3),
}  # fmt: skip
"""Each with how many of it a run takes."""

# ---- candidates ------------------------------------------------------------------------------------------


def _blocks(text: str) -> list[tuple[int, str]]:
    """Where functions and declarations begin, and their names."""
    found = [(0, "top")]
    opens = r'^(?:local )?function ([\w.]+)|^define \{\s*name\s*=\s*"(\w+)"|^(?:due|reap)\.on\("(\w+)"'
    for match in re.finditer(opens, text, re.M):
        found.append((match.start(), match[1] or match[2] or f"on_{match[3]}"))
    return found


def _reads_only(text: str) -> list[tuple[int, int]]:
    return [m.span() for m in re.finditer(r"^define \{.*?^\}", text, re.M | re.S) if '"no-writes"' in m[0]]


def _patch(file: str, text: str, edit: Edit) -> Patch:
    """As a patch of whole lines, as many as make it the only such place."""
    start, end = text.rfind("\n", 0, edit.start) + 1, text.find("\n", edit.end)
    while text.count(text[start:end]) > 1:
        start = text.rfind("\n", 0, max(0, start - 1)) + 1
        end = max(end, text.find("\n", end + 1))
    return Patch(file, text[start:end], text[start : edit.start] + edit.new + text[edit.end : end])


def _line(text: str, edit: Edit) -> str:
    start, end = text.rfind("\n", 0, edit.start) + 1, text.find("\n", edit.end)
    before = text[start : edit.start].lstrip()
    return f"{before}[-{text[edit.start : edit.end]}-]{{+{edit.new}+}}{text[edit.end : end]}"


def files() -> list[str]:
    """The state-changing chapters, as the manifest lists them."""
    return [file for file in manifest() if file not in NOT_OF_INTEREST]


def candidates(operator: str) -> list[Mutant]:
    """Every mutant an operator can make, by rank."""
    ranked: list[tuple[str, Mutant]] = []
    for file in files():
        text = read_lua(file)
        plain, blocks, skipped = bare(text), _blocks(text), _reads_only(text)
        seen: dict[str, int] = {}
        for edit in OPERATORS[operator][0](text, plain):
            if any(start <= edit.start < end for start, end in skipped):
                continue
            block = max(b for b in blocks if b[0] <= edit.start)[1]
            where, what = f"{file}:{block}", _line(text, edit)
            seen[where + what] = nth = seen.get(where + what, 0) + 1
            digest = hashlib.sha256(f"{SEED} {operator} {where} {what} {nth}".encode()).hexdigest()
            id = f"{operator}:{where.removeprefix('shared/')}:{digest[:4]}"
            ranked.append((digest, Mutant(id, "-", what, (_patch(file, text, edit),), "generated")))
    return [mutant for _, mutant in sorted(ranked, key=lambda row: row[0])]


def generated(*, everything: bool = False) -> tuple[Mutant, ...]:
    """The sample of a run, or all there are."""
    return tuple(m for name, (_, n) in OPERATORS.items() for m in candidates(name)[: None if everything else n])
