"""The two base structs of every contract: what is asked (`Args`) and what is answered (`Outcome`).

An `Args[R]` names one library function; ``R`` is everything that function may answer. Names are
shared with the function's signature in Lua, order is declared on neither side (see
`ffbackend_valkey/binding.py`), so a misspelt field is a TypeError at start-up.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar, dataclass_transform

import msgspec

R = TypeVar("R", covariant=True)

_WORD = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")


class _ArgsMeta(msgspec.StructMeta):
    """msgspec's `kw_only` holds for one class only; every request is keyword-only, so fields may stand in any order."""

    def __new__(mcls, name: str, bases: tuple[type, ...], namespace: dict[str, Any], /, **options: Any) -> _ArgsMeta:
        options.setdefault("kw_only", True)
        return super().__new__(mcls, name, bases, namespace, **options)


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(msgspec.field,))
class Args(msgspec.Struct, Generic[R], frozen=True, metaclass=_ArgsMeta):
    """One request to the engine.

    FUNCTION    the library function; derived from the class name unless given
                (`RenewLeaseArgs` -> `ff_renew_lease`).
    REPEATABLE  sending it again after a lost reply does no harm and answers the same: true of everything
                that carries an id, a fence or a claim id.
    OFF_WIRE    fields kept for the caller's records that the function does not take (`now`).
    COMPOSED    what callers use and no function takes as it is: the backend makes other requests of it, because
                something in it must not travel (a token, a secret) or must be made first.
    WIRE        what a composed one becomes; the backend's own, without a method in `ffcore.operations`.
    """

    FUNCTION: ClassVar[str] = ""
    REPEATABLE: ClassVar[bool] = True
    OFF_WIRE: ClassVar[frozenset[str]] = frozenset()
    COMPOSED: ClassVar[bool] = False
    WIRE: ClassVar[bool] = False

    @classmethod
    def function(cls) -> str:
        return cls.FUNCTION or "ff_" + _WORD.sub("_", cls.__name__.removesuffix("Args")).lower()


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """One thing the engine may answer. On the wire: ``[tag, *fields]``; the tag is the Lua word."""


@dataclass_transform(frozen_default=True, field_specifiers=(msgspec.field,))
class Row(msgspec.Struct, frozen=True, array_like=True):
    """One row of a `rows(...)` argument, or one entry of a list in an answer."""


S = TypeVar("S", bound=type[msgspec.Struct])


def veiled(*hidden: str) -> Callable[[S], S]:
    """For structs with a secret or a token in these fields: their repr, which gets into logs and tracebacks, has a mark
    in its place."""

    def veil(struct: S) -> S:
        def shown(self: msgspec.Struct) -> str:
            pairs = ((name, getattr(self, name)) for name in self.__struct_fields__)
            texts = (f"{name}=<hidden>" if name in hidden and value else f"{name}={value!r}" for name, value in pairs)
            return f"{type(self).__name__}({', '.join(texts)})"

        struct.__repr__ = shown  # type: ignore[method-assign, assignment]
        return struct

    return veil
