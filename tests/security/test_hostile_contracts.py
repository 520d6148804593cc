"""Every request of the contract, filled with values nobody means well with: refused where it is made, or by the
store in words. Nothing else may come of it, and what was refused wrote nothing (`test_hostile_argv.py`).
"""

from __future__ import annotations

import enum
import itertools
import types
from collections.abc import AsyncIterator
from functools import cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import msgspec
import pytest
from hypothesis import strategies as st

from ffbackend_valkey.backend import ValkeyBackend
from ffbackend_valkey.binding import all_args
from ffbackend_valkey.library import library
from ffbackend_valkey.stores import connect
from ffcore.args import Args
from ffcore.backend import StoreConfig
from ffcore.errors import EngineBug, EngineError
from ffengine import check
from tests.security import hostile

EXAMPLES_N = 25
REQUESTS = [one for one in all_args() if one.COMPOSED or one.function() in library().signatures]
IDS = [f"{{fp:0}}:{n:08x}-0000-7000-8000-000000000000" for n in range(4)]
WELL_MEANT = [
    *IDS, "{fp:0}", "{fp:1}", "{w:0}", "mail", "send", "default", "w1", "w1.s0.1", "w1.s0.0.1 1 w1.s0.0.1", "active",
    "task:send",
]  # fmt: skip
NUMBERS = [0, 1, 2, 100, 30_000, 1_800_000_000_000]
HUGE = [-1, 101, 2**31, 2**53, 2**63, 2**64, -(2**63), 10**400]
_names = itertools.count()

texts = st.one_of(st.sampled_from(WELL_MEANT), st.sampled_from(WELL_MEANT), hostile.text)


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Values of a field's type; what is not of it, a type checker refuses."""
    if hasattr(hint, "__supertype__"):
        return values(hint.__supertype__)
    origin, inner = get_origin(hint), get_args(hint)
    if origin is Literal:
        return st.sampled_from(inner)
    if origin in (Union, types.UnionType):
        return st.one_of(*(values(one) for one in inner))
    if hint is type(None):
        return st.none()
    if hint is bool:
        return st.booleans()
    if hint is int:
        return st.one_of(st.sampled_from(NUMBERS), st.integers(), st.sampled_from(HUGE))
    if hint is bytes:
        return st.one_of(st.just(b"d" * 16), st.binary(max_size=40))
    if isinstance(hint, type) and issubclass(hint, enum.Enum):
        return st.sampled_from(hint)
    if isinstance(hint, type) and issubclass(hint, msgspec.Struct):
        return _part(hint)
    if origin is not None and issubclass(origin, dict):
        return st.dictionaries(texts, values(inner[1]), max_size=2)
    if origin is tuple:
        return st.tuples(*(values(one) for one in inner if one is not ...))
    if origin is not None and inner:
        return st.lists(values(inner[0]), max_size=3)
    return texts


@cache
def _part(cls: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """The same as a field; made when it is first drawn from, since a condition may hold conditions."""
    return st.deferred(lambda: _built(cls).filter(lambda built: built is not None))


def _built(cls: type[msgspec.Struct]) -> st.SearchStrategy[Any]:
    """Instances of a struct, or its refusal to be made; needed fields always, others now and then."""
    hints = get_type_hints(cls)
    fields = msgspec.structs.fields(cls)
    needed = {f.name: values(hints[f.name]) for f in fields if f.required}
    others = {f.name: values(hints[f.name]) for f in fields if not f.required}
    return st.fixed_dictionaries(needed, optional=others).map(lambda given: _make(cls, given))


def _make(cls: type[msgspec.Struct], given: dict[str, Any]) -> Any:
    try:
        return cls(**given)
    except (EngineError, ValueError):
        return None


@pytest.fixture
async def backend() -> AsyncIterator[ValkeyBackend]:
    backend = await connect(f"memory://hostile-contracts-{next(_names)}", init=False, check=False)
    await backend.load_library()
    await backend.initialise(StoreConfig(fp=2))
    yield backend
    await backend.close()


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@pytest.mark.parametrize("request_type", REQUESTS, ids=lambda one: one.__name__)
async def test_a_request_of_any_content_is_answered_or_refused_in_words(
    backend: ValkeyBackend, request_type: type[Args[Any]]
) -> None:
    for args in hostile.draws(_built(request_type), EXAMPLES_N):
        if args is None:
            continue
        try:
            await backend.call(args)
        except EngineBug as bug:
            assert str(bug).startswith("FFBUG") and ".lua:" not in str(bug), (args, str(bug))
        except (EngineError, ValueError) as refused:
            assert len(str(refused)) < 5_000, "a refusal repeats no more than a line of what was sent"
    assert await check.violations(backend) == []
