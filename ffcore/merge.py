"""JSON merge patch (RFC 7396): what a document becomes when a patch is applied to it."""

from __future__ import annotations

from typing import Any, cast


def merge_patch(document: Any, patch: Any) -> Any:
    """A new document. An object of the patch is merged into the object at its place, None takes a field away, and
    anything else, lists too, replaces what was there."""
    if not isinstance(patch, dict):
        return patch
    merged: dict[str, Any] = dict(cast("dict[str, Any]", document)) if isinstance(document, dict) else {}
    for name, value in cast("dict[str, Any]", patch).items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value)
    return merged
