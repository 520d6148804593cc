"""A mutant: one plausible mistake in the Lua, as a patch that is applied when the library is assembled.

A patch names a file, the words to find and what to put in their stead. The words must stand exactly once, in the file
or in the block that `within` opens; otherwise the code has moved on and the patch must follow it (`Drift`). Nothing
on disk is changed.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import Literal, NamedTuple

from ffbackend_valkey.library import Library, assemble, lua_root
from tests.lua.engine import on_test_clock


class Drift(Exception):
    """A patch does not fit the source any more. Find the place the words went to and write the patch anew."""


class Patch(NamedTuple):
    file: str
    """Path below lua/."""
    old: str
    new: str
    within: str = ""
    """How the line begins that opens the block to look in; the block ends at the next line that begins with `end`
    or `}`. Empty: the whole file."""


class Mutant(NamedTuple):
    id: str
    invariant: str
    """The rule it breaks: an invariant of docs/model.md, or a word for a promise that has no number."""
    why: str
    """Why somebody might write this."""
    patches: tuple[Patch, ...]
    kind: Literal["named", "generated"] = "named"


def single(id: str, invariant: str, why: str, file: str, old: str, new: str, within: str = "") -> Mutant:
    """A named mutant of one patch."""
    return Mutant(id, invariant, why, (Patch(file, old, new, within),))


ROOT = lua_root()
"""Where the Lua is read. A run sets it to a copy, so that edits meanwhile do not mix into it."""


def read_lua(file: str) -> str:
    return (ROOT / file).read_text()


def manifest() -> list[str]:
    """The files of the library."""
    files: list[str] = tomllib.loads(read_lua("manifest.toml"))["files"]
    return files


def applied(text: str, patch: Patch) -> str:
    """The text with the patch in place. Raises Drift."""
    start, end = _block(text, patch)
    block = text[start:end]
    found = block.count(patch.old)
    if found != 1:
        where = f"the block {patch.within!r} of lua/{patch.file}" if patch.within else f"lua/{patch.file}"
        moved = [f for f in manifest() if f != patch.file and read_lua(f).count(patch.old) == 1] if not found else []
        hint = f" (lua/{moved[0]} has it)" if moved else ""
        raise Drift(f"{where} has {patch.old!r} {found} times; a patch needs it once{hint}")
    return text[:start] + block.replace(patch.old, patch.new) + text[end:]


def _block(text: str, patch: Patch) -> tuple[int, int]:
    if not patch.within:
        return 0, len(text)
    starts = [i for i in range(len(text)) if text.startswith("\n" + patch.within, i)]
    if len(starts) != 1:
        raise Drift(f"lua/{patch.file} has {len(starts)} lines that begin with {patch.within!r}; a patch needs one")
    ends = [at for at in (text.find("\nend", starts[0]), text.find("\n}", starts[0])) if at >= 0]
    return starts[0], min(ends)


def mutated(patches: Iterable[Patch]) -> dict[str, str]:
    """The files that the patches change, by name."""
    texts: dict[str, str] = {}
    for patch in patches:
        texts[patch.file] = applied(texts.get(patch.file) or read_lua(patch.file), patch)
    return texts


def library_with(mutant: Mutant | None) -> Library:
    """The library with the mutant in it (None: as it is) and its clock on the key that tests move. Raises Drift."""
    texts = mutated(mutant.patches) if mutant else {}
    clock = "shared/clock.lua"
    texts[clock] = on_test_clock(texts.get(clock) or read_lua(clock))
    return assemble(ROOT, replace=texts)
