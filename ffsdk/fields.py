"""Fields of a payload, named by a path such as ``payload.tenant``: whose job it is, which key it holds."""

from __future__ import annotations

import hashlib
from typing import Any, cast

from ffcore import limits
from ffcore.errors import InvalidArgument


def is_path(text: str) -> bool:
    """Whether it names a payload, or a field of it at any depth."""
    parts = text.split(".")
    return parts[0] == "payload" and all(part.isidentifier() for part in parts)


def check_path(text: Any, what: str) -> str:
    if not isinstance(text, str) or not is_path(text):
        raise InvalidArgument(f"{what} {text!r:.60}: use a payload's field, as in payload.tenant")
    return text


def text_at(path: str | None, payload: Any) -> str | None:
    """The value at ``payload.a.b`` as text; None where the path ends early. Reads attributes or keys."""
    if path is None:
        return None
    value: Any = payload
    for part in path.split(".")[1:]:
        value = cast("Any", value).get(part) if isinstance(value, dict) else getattr(value, part, None)
        if value is None:
            return None
    text = str(value)
    raw = text.encode()
    # A key over the limit is still one tenant's: its digest keeps it apart from the others.
    return text if 0 < len(raw) <= limits.KEY_BYTES and text.isprintable() else hashlib.sha256(raw).hexdigest()
