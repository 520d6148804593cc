"""Assemble `lua/` into one loadable library, read its signatures, compare and load versions.

The rule: a worker never replaces a library that is newer than its own, nor one of its own version with
other contents; during a rolling deploy two versions would take turns. `ff library upgrade` replaces.
"""

from __future__ import annotations

import hashlib
import re
import tomllib
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

import msgspec

from ffcore import limits
from ffcore.errors import Incompatible

_DEFINE = re.compile(r"^define \{(.*?)^\}", re.S | re.M)
_LINE = re.compile(r"user_function:(\d+)")


class Signature(NamedTuple):
    """One library function as its `define{}` declares it."""

    name: str
    args: tuple[str, ...]
    returns: tuple[str, ...]
    errors: tuple[str, ...]
    flags: tuple[str, ...]
    scope: Literal["one", "many", "none"]

    @property
    def reads_only(self) -> bool:
        return "no-writes" in self.flags


class Library(NamedTuple):
    """The assembled library: what is loaded, and how to find a line of it again."""

    name: str
    version: int
    compatible_since: int
    sha: str
    source: str
    signatures: Mapping[str, Signature]
    starts: tuple[tuple[int, str], ...]

    def locate(self, message: str) -> str:
        """Turn ``user_function:57`` in a server error into ``lease.lua:12``."""

        def place(match: re.Match[str]) -> str:
            line = int(match[1])
            start, path = max(s for s in self.starts if s[0] <= line)
            return f"{path}:{line - start + 1}"

        return _LINE.sub(place, message)


def lua_root() -> Path:
    """Where the Lua files are: beside this package in a checkout, inside it in a wheel."""
    here = Path(__file__).resolve().parent
    inside = here / "lua"
    return inside if inside.is_dir() else here.parent / "lua"


def assemble(root: Path | None = None, *, replace: Mapping[str, str] | None = None) -> Library:
    """Join the files named in manifest.toml; `replace` swaps one for a test double."""
    root = root or lua_root()
    manifest = tomllib.loads((root / "manifest.toml").read_text())
    texts = {f: (replace or {}).get(f) or (root / f).read_text() for f in manifest["files"]}
    bounds = _limits()
    sha = hashlib.sha256((bounds + "".join(texts.values())).encode()).hexdigest()[:12]
    version, since = int(manifest["version"]), int(manifest["compatible_since"])
    out = [
        f"#!lua name={manifest['name']}",
        f'local LIBRARY = {{ version = {version}, compatible_since = {since}, sha = "{sha}" }}',
        bounds,
    ]
    starts = [(1, "assembly")]
    for path, text in texts.items():
        body = text.splitlines()
        if not path.startswith("shared/"):
            # A chunk may hold 200 locals; a do-block gives a capability its own.
            body = ["do  " + body[0], *body[1:], "end"]
        starts.append((len(out) + 1, path))
        out += body
    source = "\n".join(out) + "\n"
    return Library(manifest["name"], version, since, sha, source, _signatures(texts.values()), tuple(starts))


@cache
def library() -> Library:
    """The library of this installation."""
    return assemble()


def _limits() -> str:
    rows = ", ".join(f"{k} = {v}" for k, v in sorted(vars(limits).items()) if k.isupper() and isinstance(v, int))
    return f"local LIMITS = {{ {rows} }}"


def _signatures(texts: Iterable[str]) -> dict[str, Signature]:
    found: dict[str, Signature] = {}
    for text in texts:
        for block in _DEFINE.findall(text):

            def names(field: str, block: str = block) -> tuple[str, ...]:
                match = re.search(rf"\b{field}\s*=\s*\{{(.*?)\}}", block, re.S)
                return tuple(re.findall(r'"([^"]+)"', match[1])) if match else ()

            name = re.search(r'name\s*=\s*"(\w+)"', block)
            scope = re.search(r'scope\s*=\s*"(\w+)"', block)
            if name is None:
                raise ValueError(f"a define{{}} without a name: {block[:60]!r}")
            found[name[1]] = Signature(
                name[1], names("args"), names("returns"), names("errors"), names("flags"),
                scope[1] if scope else "one",  # type: ignore[arg-type]
            )
    return found


class Loaded(msgspec.Struct, frozen=True):
    """What a server says of the library it holds."""

    version: int
    sha: str
    compatible_since: int = 1
    signatures: dict[str, Any] = msgspec.field(default_factory=dict[str, Any])


def judge(ours: Library, theirs: Loaded | None) -> Literal["load", "go"]:
    """What to do about the library a server holds; raises Incompatible where a worker must not act."""
    if theirs is None:
        return "load"
    if theirs.version == ours.version:
        if theirs.sha == ours.sha:
            return "go"
        raise Incompatible(
            f"the store holds another library of the same version {ours.version} ({theirs.sha}, ours is {ours.sha}); "
            "run `ff library upgrade` to replace it with this one"
        )
    if theirs.version < ours.version:
        raise Incompatible(
            f"the store holds library version {theirs.version}, we need {ours.version}: run `ff library upgrade`"
        )
    if theirs.compatible_since > ours.version:
        raise Incompatible(
            f"the store holds library version {theirs.version}, which no longer answers version {ours.version}: "
            f"upgrade this program"
        )
    return "go"
