"""Payloads and results: JSON on the wire, typed on both ends; never pickle.

Anything msgspec encodes is fine (Struct, dataclass, TypedDict, builtins, datetime, bytes); pydantic models too,
recognised by their methods, so that pydantic need not be installed.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from ffcore.errors import InvalidArgument


class Payload(msgspec.Struct):
    """A convenient base for payloads and results: fields with types and defaults, checked when decoded."""


def _enc_hook(value: Any) -> Any:
    dump = getattr(value, "model_dump", None)
    if callable(dump) and not isinstance(value, type):
        return dump(mode="json")
    name = type(value).__name__
    if hasattr(value, "execution_id") and hasattr(value, "result"):
        hint = "in a flow say after= instead, elsewhere pass what its result() answers"
        raise NotImplementedError(f"{name} is a job, and not what that returns: {hint}")
    raise NotImplementedError(f"{name} is not something JSON can carry")


def _dec_hook(wanted: Any, value: Any) -> Any:
    if wanted is object:
        return value
    validate = getattr(wanted, "model_validate", None)
    if callable(validate):
        return validate(value)
    raise NotImplementedError(f"{wanted!r} is not a type that can be decoded")


_encoder: Final = msgspec.json.Encoder(enc_hook=_enc_hook)


def encode(value: Any, what: str, limit: int) -> bytes:
    """The value as JSON; InvalidArgument if it does not encode or is over `limit` bytes."""
    try:
        raw = _encoder.encode(value)
    except (TypeError, NotImplementedError, ValueError, OverflowError, RecursionError) as refused:
        raise InvalidArgument(
            f"{what} does not encode as JSON: {refused}; use a Struct, dataclass, pydantic model or builtins",
            code="invalid_payload",
        ) from refused
    if len(raw) > limit:
        raise InvalidArgument(
            f"{what} is {len(raw)} bytes, the limit is {limit}: keep large data elsewhere and pass its name",
            code="payload_too_large",
        )
    return raw


def decoder(wanted: Any, what: str) -> msgspec.json.Decoder[Any]:
    """A decoder for a type, compiled once. InvalidArgument if the type cannot be decoded from JSON."""
    try:
        return msgspec.json.Decoder(wanted, dec_hook=_dec_hook)
    except TypeError as refused:
        raise InvalidArgument(f"{what} has type {wanted!r:.100}, which cannot be read back: {refused}") from refused


def decode(compiled: msgspec.json.Decoder[Any], raw: bytes, what: str) -> Any:
    """The value; InvalidArgument, code `invalid_payload`, if the bytes are not of the type."""
    try:
        return compiled.decode(raw)
    except (msgspec.DecodeError, ValueError, TypeError, NotImplementedError) as refused:
        raise InvalidArgument(f"{what} does not fit its type: {refused}", code="invalid_payload") from refused


def schema(wanted: Any) -> dict[str, Any] | None:
    """JSON Schema of a type for the task's descriptor; None where there is none."""
    try:
        found: Any = getattr(wanted, "model_json_schema", None)
        made: dict[str, Any] = found() if found is not None else msgspec.json.schema(wanted)
        return made
    except (TypeError, ValueError, NotImplementedError):
        return None
