"""The facade of named methods is complete: whoever expects `backend.renew_lease(...)` finds it."""

from __future__ import annotations

import inspect
import keyword
from typing import Any, get_args, get_type_hints

import pytest

from ffbackend_valkey.backend import ValkeyBackend
from ffbackend_valkey.binding import all_args
from ffbackend_valkey.library import assemble
from ffcore.args import Args
from ffcore.operations import Operations


def method_name(args: type[Args[Any]]) -> str:
    """The function without its prefix; a Python keyword gets the usual underscore (`await_`)."""
    name = args.function().removeprefix("ff_")
    return name + "_" if keyword.iskeyword(name) else name


BOUND = [
    args for args in all_args()
    if not args.WIRE and (args.COMPOSED or args.function() in assemble().signatures)
]  # fmt: skip


@pytest.mark.parametrize("args", BOUND, ids=lambda a: a.__name__)
def test_every_operation_has_a_method_of_its_name_and_type(args: type[Args[Any]]) -> None:
    method = getattr(Operations, method_name(args))
    hints = get_type_hints(method)
    (answer,) = args.__orig_bases__[0].__args__  # type: ignore[attr-defined]
    assert args in (get_args(hints["args"]) or (hints["args"],))
    assert hints["return"] == answer


def test_no_method_names_an_operation_that_is_gone() -> None:
    methods = {name for name, _ in inspect.getmembers(Operations, inspect.isfunction)} - {"call"}
    assert methods == {method_name(args) for args in BOUND}


def test_the_backend_has_them() -> None:
    assert issubclass(ValkeyBackend, Operations)
