"""Bind contract types to library functions: names on both sides, order on neither.

A signature comes from Lua, fields from the `Args` struct; drift is a TypeError when the backend starts,
never a shifted argument. Encoders and decoders are compiled once per function, because they are on the
path of every call.
"""

from __future__ import annotations

import enum
import importlib
import inspect
import pkgutil
import types
import typing
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import Any, Final, Literal, NamedTuple, Union, cast, get_args, get_origin, get_type_hints

import msgspec

import ffcore.contracts as contracts
from ffbackend_valkey import keys
from ffbackend_valkey.library import Library, Signature
from ffcore.admission import number
from ffcore.args import Args, Outcome
from ffcore.contracts.lease import LeaseFence
from ffcore.contracts.partition import Partition
from ffcore.errors import EngineBug, Rejected, rejection
from ffcore.ids import partition_of
from ffcore.wire import pack_pairs

Word = bytes | str | int | float
_ROUTES: Final = (
    "partitions", "at", "partition", "budget_id", "quota_policy_id", "unique_id", "schedule_id", "execution_id",
    "flow_id",
)  # fmt: skip
"""Fields that say where a call goes; the first one a struct has is used."""
_ABOUT: Final = (
    "execution_id", "flow_id", "budget_id", "quota_policy_id", "unique_id", "schedule_id", "lane_id", "at", "partition",
)  # fmt: skip
"""Fields that say what a call is about, the narrowest first."""


# ---- requests ----------------------------------------------------------------------------------------


def encode(value: Any) -> Word:
    """A present argument as the wire wants it."""
    if isinstance(value, bytes | str):
        # An enum member is its word.
        return value.value if isinstance(value, enum.Enum) else value
    if isinstance(value, bool):
        return b"1" if value else b"0"
    if isinstance(value, int):
        return value
    if isinstance(value, LeaseFence):
        return f"{value.lease_id} {value.lease_epoch} {value.attempt_id}"
    if isinstance(value, dict):
        return pack_pairs(cast("dict[str, str]", value))
    return _encode_json(value)


def _encode_json(value: Any) -> bytes:
    if isinstance(value, set | frozenset):
        return msgspec.json.encode(sorted(cast("set[str]", value)))
    # A policy holds a set: one order in every process, or the store would keep the same policy under several texts.
    return msgspec.json.encode(value, order="deterministic")


def _encode_optional(value: Any) -> Word:
    """Optional arguments carry a presence mark, so that empty and absent differ."""
    if value is None:
        return b""
    word = encode(value)
    if isinstance(word, bytes):
        return b"=" + word
    return f"={word}"


def _encode_required(value: Any) -> Word:
    return b"" if value is None else encode(value)


class _Column(NamedTuple):
    name: str
    kind: str
    optional: bool

    @classmethod
    def parse(cls, text: str) -> _Column:
        name, kind = text.split(":", 1)
        return cls(name, kind.rstrip("?"), kind.endswith("?"))

    @property
    def encoder(self) -> Callable[[Any], Word]:
        if self.optional:
            return _encode_optional
        return _encode_json if self.kind == "json" else _encode_required

    def expression(self, hint: Any, names: dict[str, Any]) -> str:
        """Python source of the word for ``v.<name>``. Text and bytes are the word; the rest goes through a call."""
        plain, value = _plain(hint), f"v.{self.name}"
        if plain in (str, bytes) and self.kind != "json":
            if not self.optional:
                # A field that may be None is sent empty where the function wants something.
                return value if type(None) not in get_args(hint) else f"({value} or b'')"
            return f"({'b' if plain is bytes else ''}'=' + x if (x := {value}) is not None else b'')"
        names[f"_put_{self.name}"] = self.encoder
        return f"_put_{self.name}({value})"


def _plain(hint: Any) -> Any:
    """The type behind a NewType, an annotation or an `| None`."""
    if hasattr(hint, "__supertype__"):
        return _plain(hint.__supertype__)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is typing.Annotated:
        return _plain(inner[0])
    if origin in (Union, types.UnionType):
        real = [a for a in inner if a is not type(None)]
        return _plain(real[0]) if len(real) == 1 and len(inner) == 2 else None
    return hint


def _compile_words(columns: list[_Column], hints: dict[str, Any], what: str) -> Callable[[Any], tuple[Word, ...]]:
    """A function from a struct to its words, one generated expression: a call of submit_many has five hundred."""
    names: dict[str, Any] = {}
    parts = [column.expression(hints[column.name], names) for column in columns]
    source = f"def words(v): return ({''.join(part + ', ' for part in parts)})"
    exec(compile(source, f"<words of {what}>", "exec"), names)  # noqa: S102 - our own types only
    return cast("Callable[[Any], tuple[Word, ...]]", names["words"])


def _parse_args(signature: Signature) -> tuple[list[_Column], tuple[str, list[_Column]] | None]:
    columns: list[_Column] = []
    for text in signature.args:
        name, _, kind = text.partition(":")
        if kind.startswith("rows("):
            return columns, (name, [_Column.parse(c) for c in kind[5:-1].split(",")])
        columns.append(_Column.parse(text))
    return columns, None


def _partition_text(value: Any) -> str:
    if isinstance(value, Partition):
        return str(value.key)
    text = str(value)
    return text if text.endswith("}") else str(partition_of(text))


# ---- answers -----------------------------------------------------------------------------------------


class _Decoders:
    """Compile answer decoders. Each is one generated expression: an answer of a batch claim has 23 fields
    a job, and a chain of small calls per field would cost more than the store does."""

    def __init__(self) -> None:
        self.names: dict[str, Any] = {
            "_pairs": _pairs, "_int_pairs": _int_pairs, "_number": _number, "_number_pairs": _number_pairs,
        }  # fmt: skip
        self._structs: dict[type, str] = {}

    def _name(self, prefix: str, value: Any) -> str:
        name = f"_{prefix}{len(self.names)}"
        self.names[name] = value
        return name

    def expression(self, hint: Any, var: str) -> str:
        """Python source that turns raw `var` into a value of type `hint`."""
        if hasattr(hint, "__supertype__"):
            return self.expression(hint.__supertype__, var)
        origin, inner = get_origin(hint), get_args(hint)
        if origin is typing.Annotated:
            return self.expression(inner[0], var)
        if origin is Literal:
            return f"{var}.decode()"
        if hint == int | float:
            return f"_number({var})"
        if origin in (Union, types.UnionType):
            (real,) = [a for a in inner if a is not type(None)]
            return f"(None if {var} is None or {var} == b'' else {self.expression(real, var)})"
        if origin in (list, Iterable):
            return f"[{self.expression(inner[0], 'i')} for i in {var}]"
        if origin is dict:
            if inner[1] == int | float:
                return f"_number_pairs({var})"
            return f"_int_pairs({var})" if inner[1] is int else f"_pairs({var})"
        if hint is int:
            return f"int({var})"
        if hint is bool:
            return f"({var} == 1 or {var} == b'1')"
        if hint is str:
            return f"{var}.decode('utf-8', 'replace')"  # text of another hand must not make a listing unreadable
        if hint is bytes:
            return var
        if isinstance(hint, type) and issubclass(hint, enum.Enum):
            return f"{self._name('enum', hint)}({var}.decode())"
        if isinstance(hint, type) and issubclass(hint, str):
            return f"{self._name('text', hint)}({var}.decode())"
        if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
            return f"{self.struct(hint)}({var})"
        raise TypeError(f"no decoder for {hint!r}")

    def struct(self, cls: type[msgspec.Struct]) -> str:
        """Name of a function that builds `cls` from a raw list. Nested outcomes carry their tag first."""
        if cls in self._structs:
            return self._structs[cls]
        name = f"_struct{len(self._structs)}_{cls.__name__}"
        self._structs[cls] = name
        hints = get_type_hints(cls, include_extras=True)
        offset = 1 if issubclass(cls, Outcome) else 0
        parameters = inspect.signature(cls).parameters.values()
        keyword_only = any(p.kind is inspect.Parameter.KEYWORD_ONLY for p in parameters)
        parts: list[str] = []
        # Fields that travel as one text, separated by spaces (`TEXT`), are cut out of the first value.
        text = getattr(cls, "TEXT", 0)
        for i, field in enumerate(msgspec.structs.fields(cls)):
            if text:
                at, raw = i - text + 1, f"a[{i}]" if i < text else f"v[{i - text + 1}]"
            else:
                at, raw = i + offset, f"v[{i + offset}]"
            expression = self.expression(hints[field.name], raw)
            # Fields with a default may be missing at the end of an answer.
            if i >= text and (field.default is not msgspec.NODEFAULT or field.default_factory is not msgspec.NODEFAULT):
                value = field.default if field.default is not msgspec.NODEFAULT else None
                expression = f"({expression} if len(v) > {at} else {self._name('default', value)})"
            parts.append(f"{field.name}={expression}" if keyword_only else expression)
        self.names[name + "_cls"] = cls
        cut = 'a = v[0].split(b" "); ' if text else ""
        source = f"def {name}(v): {cut}return {name}_cls({', '.join(parts)})"
        exec(compile(source, f"<decoder of {cls.__name__}>", "exec"), self.names)  # noqa: S102 - our own types only
        return name


def _pairs(raw: list[Any]) -> dict[str, str]:
    return {raw[i].decode(): _text(raw[i + 1]) for i in range(0, len(raw), 2)}


def _int_pairs(raw: list[Any]) -> dict[str, int]:
    return {raw[i].decode(): int(raw[i + 1]) for i in range(0, len(raw), 2)}


def _number(raw: Any) -> int | float:
    """An amount: a decimal as text."""
    return number(_text(raw))


def _number_pairs(raw: list[Any]) -> dict[str, int | float]:
    return {raw[i].decode(): _number(raw[i + 1]) for i in range(0, len(raw), 2)}


def _text(raw: Any) -> str:
    return raw.decode(errors="surrogateescape") if isinstance(raw, bytes) else str(raw)


# ---- one function, one Args type ---------------------------------------------------------------------


class Binding:
    """One library function and its `Args`: builds the command, reads the answer."""

    seen: typing.ClassVar[set[tuple[str, str]]] = set()
    """(function, tag or code) answered in this process: what the conformance suite reports as covered."""

    def __init__(self, signature: Signature, args: type[Args[Any]]) -> None:
        self.signature, self.args_type = signature, args
        fields = {f.name for f in msgspec.structs.fields(args)}
        columns, rows = _parse_args(signature)
        wanted = {c.name for c in columns}
        if rows:
            wanted.add(rows[0])
        self.route = next((r for r in _ROUTES if r in fields), None)
        if self.route is None and signature.scope != "none":
            raise TypeError(f"{args.__name__} does not say which partition it goes to")
        free = set(args.OFF_WIRE) | {"partitions", "at", "partition"}
        if missing := wanted - fields:
            raise TypeError(f"{signature.name} takes {sorted(missing)}, {args.__name__} has no such field")
        if unused := fields - wanted - free:
            raise TypeError(f"{args.__name__} has {sorted(unused)}, {signature.name} does not take them")
        hints = get_type_hints(args, include_extras=True)
        self._words = _compile_words(columns, hints, args.__name__)
        self._rows = None
        if rows:
            (of_row,) = get_args(hints[rows[0]])
            of_columns = _compile_words(rows[1], get_type_hints(of_row, include_extras=True), of_row.__name__)
            self._rows = attrgetter(rows[0]), of_columns
        self._command = "FCALL_RO" if signature.reads_only else "FCALL"
        self._variants = self._compile_answers()
        if odd := {t.decode() for t in self._variants} ^ set(signature.returns):
            raise TypeError(f"{signature.name} and {args.__name__} disagree on outcomes {sorted(odd)}")
        if odd := {e for e in signature.errors if e not in Rejected.by_code}:
            raise TypeError(f"{signature.name} rejects with unknown codes {sorted(odd)}")

    def _compile_answers(self) -> dict[bytes, Callable[[list[Any]], Any]]:
        bases: tuple[Any, ...] = self.args_type.__dict__["__orig_bases__"]
        (answer,) = get_args(next(b for b in bases if get_origin(b) is Args))
        decoders = _Decoders()
        variants: dict[bytes, Callable[[list[Any]], Any]] = {}
        for variant in get_args(answer) or (answer,):
            tag = variant.__struct_config__.tag
            name = decoders.struct(variant)
            variants[tag.encode()] = decoders.names[name]
        return variants

    def partitions(self, args: Args[Any]) -> list[str]:
        """The partitions a call names, as ``{fp:3}``."""
        if self.route is None:
            return []
        value = getattr(args, self.route)
        if self.route == "partitions":
            return [_partition_text(v) for v in value]
        return [_partition_text(value)]

    def request(self, args: Args[Any]) -> tuple[Word, ...]:
        """The command of a call."""
        declared: list[str] = []
        for partition in self.partitions(args):
            declared += keys.pair(partition)
        out: list[Word] = [self._command, self.signature.name, len(declared), *declared]
        out += self._words(args)
        if self._rows:
            get_rows, words = self._rows
            rows = get_rows(args)
            out.append(len(rows))
            for row in rows:
                out += words(row)
        return tuple(out)

    def outcome(self, raw: Any, args: Args[Any] | None = None) -> Any:
        """The answer as its outcome struct; a refusal is raised, and names what was asked, of `args` if given."""
        try:
            tag = raw[0]
            decode = self._variants.get(tag)
            if decode is not None:
                Binding.seen.add((self.signature.name, tag.decode()))
                return decode(raw)
        except (TypeError, IndexError, AttributeError, ValueError) as wrong:
            raise EngineBug(f"{self.signature.name} gave an answer that cannot be read: {raw!r:.200}") from wrong
        if tag == b"error":
            code = raw[1].decode()
            Binding.seen.add((self.signature.name, code))
            asked = self.signature.name.removeprefix("ff_").replace("_", " ")
            raise rejection(code, _text(raw[2]), asked=asked, about=_about(args))
        raise EngineBug(f"{self.signature.name} gave an unknown answer {tag!r}")


def _about(args: Args[Any] | None) -> str:
    """What a call was about, for an error's text: the narrowest thing its arguments name."""
    found = (getattr(args, name, None) for name in _ABOUT)
    return next((str(value) for value in found if value), "")


def bind(library: Library, args_types: Iterable[type[Args[Any]]]) -> dict[type[Args[Any]], Binding]:
    """Bind every given type whose function the library has; a function without a type is a TypeError."""
    bound: dict[type[Args[Any]], Binding] = {}
    for args in args_types:
        signature = library.signatures.get(args.function())
        if signature is not None and not args.COMPOSED:
            bound[args] = Binding(signature, args)
    if orphans := set(library.signatures) - {b.signature.name for b in bound.values()} - {"ff_library"}:
        raise TypeError(f"library functions without an Args type: {sorted(orphans)}")
    return bound


def all_args() -> list[type[Args[Any]]]:
    """Every Args type of `ffcore.contracts`."""
    found: list[type[Args[Any]]] = []
    for module in pkgutil.iter_modules(contracts.__path__, contracts.__name__ + "."):
        for value in vars(importlib.import_module(module.name)).values():
            if isinstance(value, type) and issubclass(value, Args) and value.__module__ == module.name:
                found.append(value)  # pyright: ignore[reportUnknownArgumentType]
    return found
