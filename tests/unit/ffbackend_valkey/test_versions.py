"""The library's version names its signatures: whoever changes a `define{}` line raises it.

`library_versions.json` keeps, per version, the digest of all signatures. A released row never changes; while a version
has not been released, its row is updated together with the change.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from ffbackend_valkey.library import assemble

VERSIONS = Path(__file__).with_name("library_versions.json")


def digest() -> str:
    rows = [list(s) for _, s in sorted(assemble().signatures.items())]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


def test_signatures_are_those_their_version_was_given_for() -> None:
    known: dict[str, str] = json.loads(VERSIONS.read_text())
    version = str(assemble().version)
    assert known.get(version) == digest(), (
        f"signatures have changed: raise `version` in lua/manifest.toml, add {version!r}: {digest()!r} here "
        "(or, before version is released, update its row)"
    )


def test_versions_only_rise() -> None:
    known: dict[str, str] = json.loads(VERSIONS.read_text())
    assert max(map(int, known)) == assemble().version
    assert assemble().compatible_since <= assemble().version
