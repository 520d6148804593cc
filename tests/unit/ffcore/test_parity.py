"""The contracts hold the seed's names: every type, every field, every variant, every error code.

The specification is the extracted seed (`tests/seeds/*.json`). What differs on purpose is listed here with
its reason, and nothing else may differ: neither a name missing nor one too many.
"""

from __future__ import annotations

import enum
import inspect
import json
import re
import types
from pathlib import Path
from typing import Any, NewType, get_args, get_type_hints

import msgspec
import pytest

import ffcore.contracts as contracts
from ffcore import backend, errors, ids, policy, states
from ffcore.args import Args, Outcome
from ffcore.contracts.added import ADDED, ADDED_VARIANTS

SPEC = Path(__file__).parents[2] / "seeds"
CONTRACTS: dict[str, dict[str, Any]] = json.loads((SPEC / "contracts.json").read_text())
FOREIGN: dict[str, dict[str, Any]] = json.loads((SPEC / "foreign.json").read_text())
CODES: list[str] = json.loads((SPEC / "error_codes.json").read_text())

STILL_TO_COME: frozenset[str] = frozenset()
"""Types of the specification that are not written yet."""

MAPPED_AWAY = {
    "EngineError": "Rust's error enum; ffcore.errors has one exception class per family, with the code on it",
    "ValidationKind": "kinds of EngineError::Validation; here the code of a Rejected or InvalidArgument",
    "ContentionKind": "kinds of EngineError::Contention; here the code of a Rejected",
    "ConflictKind": "kinds of EngineError::Conflict; here the code of a Rejected",
    "StateKind": "kinds of EngineError::State; here the code of a Rejected",
    "BugKind": "kinds of EngineError::Bug; here EngineBug with a code",
    "BackendConfig": "connection options of the Rust client; a URL and ffbackend_valkey's own options here",
    "Supports": "which of three Rust backends implements what; the one backend here implements everything",
    "Capabilities": "carries Supports and the identity of a Rust backend",
    "PartitionConfig": "counts per family; ffcore.backend.StoreConfig, under this engine's family names",
}
"""Foreign types that are Rust's own machinery, with where their content went."""

NOT_AN_ENUM = {
    "StreamCursor": "a checked string: it travels as bare text, so that text is what it is",
    "StreamCursorParseError": "an exception with one subclass per variant",
    "CancelSource": "a checked string with four known values; Custom is any other text",
}

OTHER_SHAPE = {
    ("FailOutcome", "retry_scheduled"): {"next_attempt_index"},
}
"""The same class serves FailExecutionResult, which says more."""

RENAMED_TYPE = {
    "Partition": "PartitionKey",  # routing reads the key's text; contracts.Partition is its parsed form
    "Duration": "timedelta",
}

OWN_TYPE = {
    ("CreateExecutionArgs", "partition_id"): "int | None",  # the id says it
    ("RevokeLeaseArgs", "expected_lease_id"): "LeaseId | None",
    ("Revoked", "lease_id"): "LeaseId",
    ("Revoked", "lease_epoch"): "LeaseEpoch",
    ("CancelFlowArgs", "cancellation_policy"): "CancelFlowPolicy",
    ("FlowCancelled", "member_execution_ids"): "list[ExecutionId]",
    ("FlowAlreadyTerminal", "member_execution_ids"): "list[ExecutionId]",
    ("CancellationScheduled", "member_execution_ids"): "list[ExecutionId]",
    ("PartiallyCancelled", "member_execution_ids"): "list[ExecutionId]",
    ("PartiallyCancelled", "failed_member_execution_ids"): "list[ExecutionId]",
    ("LeaseRenewal", "lease_epoch"): "LeaseEpoch",
    ("RotateWaitpointHmacSecretAllEntry", "result"): "Rotated | Noop | RotateFailed",  # an exception is not data
    ("WaitTimeout", "timeout_ms"): "int",
    ("UsageDimensions", "custom"): "dict[str, int]",  # cut short by the extraction
    # Amounts of a budget may have six places: money is one of its dimensions.
    ("CreateBudgetArgs", "hard_limits"): "list[Number]",
    ("CreateBudgetArgs", "soft_limits"): "list[Number]",
    ("BudgetStatus", "usage"): "dict[str, Number]",
    ("BudgetStatus", "hard_limits"): "dict[str, Number]",
    ("BudgetStatus", "soft_limits"): "dict[str, Number]",
    ("ReportUsageArgs", "deltas"): "list[Number]",
    ("ReportUsageAdminArgs", "deltas"): "list[Number]",
    ("SoftBreach", "current_usage"): "Number",
    ("SoftBreach", "soft_limit"): "Number",
    ("HardBreach", "current_usage"): "Number",
    ("HardBreach", "hard_limit"): "Number",
}
"""Fields whose type is stronger than the seed's text, or says the same differently."""


def snake(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()


def find(name: str) -> Any:
    for room in (contracts, states, policy, ids, backend):
        if hasattr(room, name):
            return getattr(room, name)
    raise AssertionError(f"{name} of the specification is nowhere in ffcore")


def classes(alias: Any) -> list[type[msgspec.Struct]]:
    return list(get_args(alias)) if isinstance(alias, types.UnionType) else [alias]


def tag_of(cls: type[msgspec.Struct]) -> str:
    return str(cls.__struct_config__.tag)


# ---- types as text -----------------------------------------------------------------------------------


def python_type(rust: str) -> str:
    """The Python spelling of a Rust type."""
    rust = re.sub(r"\b(?:crate|std)::(?:\w+::)*", "", rust.strip())
    simple = {
        "String": "str", "bool": "bool", "f64": "float", "Vec<u8>": "bytes",
        **dict.fromkeys(("u8", "u16", "u32", "u64", "i32", "i64", "usize"), "int"),
    }
    if rust in simple:
        return simple[rust]
    if rust in RENAMED_TYPE:
        return RENAMED_TYPE[rust]
    outer = re.fullmatch(r"(\w+)<(.*)>", rust)
    if outer is None:
        return rust
    inner = [python_type(part) for part in outer[2].split(",")]
    return {
        "Option": lambda: f"{inner[0]} | None",
        "Vec": lambda: f"list[{inner[0]}]",
        "BTreeSet": lambda: f"frozenset[{inner[0]}]",
        "HashMap": lambda: f"dict[{inner[0]}, {inner[1]}]",
        "BTreeMap": lambda: f"dict[{inner[0]}, {inner[1]}]",
    }[outer[1]]()


def spelled(cls: type, field: str) -> str:
    """A field's annotation as text, without module names."""
    for base in cls.__mro__:
        annotations = inspect.get_annotations(base)
        if field in annotations:
            return re.sub(r"\b(?:\w+\.)+(?=\w)", "", str(annotations[field]))
    raise AssertionError(f"{cls.__name__} has no field {field}")


def compare_fields(cls: type[msgspec.Struct], seed: dict[str, str], also: set[str] | None = None) -> None:
    """The seed's names in the seed's order, then exactly the fields that the ADDED table lists."""
    added = set(ADDED.get(cls.__name__, ())) | (also or set())
    assert [name for name in cls.__struct_fields__ if name not in added] == list(seed), cls.__name__
    assert added <= set(cls.__struct_fields__), f"{cls.__name__}: ADDED lists a field that is not there"
    for name, rust in seed.items():
        expected = OWN_TYPE.get((cls.__name__, name)) or python_type(rust)
        assert spelled(cls, name) == expected, f"{cls.__name__}.{name}"


def compare_variant(union: str, cls: type[msgspec.Struct], seed: dict[str, str]) -> None:
    if set(seed) == {"0"}:  # a tuple variant: one field, named for its content
        assert len(cls.__struct_fields__) == 1, cls.__name__
        expected = python_type(seed["0"])
        only = cls.__struct_fields__[0]
        assert OWN_TYPE.get((cls.__name__, only), spelled(cls, only)) == spelled(cls, only)
        assert (cls.__name__, only) in OWN_TYPE or spelled(cls, only) == expected, f"{cls.__name__}.{only}"
    else:
        compare_fields(cls, seed, OTHER_SHAPE.get((union, tag_of(cls))))


def compare_enum(name: str, variants: dict[str, dict[str, str]]) -> None:
    ours = find(name)
    wanted = {snake(variant): fields for variant, fields in variants.items()}
    added = set(ADDED_VARIANTS.get(name, ()))
    if isinstance(ours, type) and issubclass(ours, enum.Enum):
        assert not any(wanted.values()), f"{name} has variants with content"
        assert [member.value for member in ours if member.value not in added] == list(wanted), name
        assert added <= {member.value for member in ours}, name
        return
    by_tag = {tag_of(cls): cls for cls in classes(ours)}
    assert len(by_tag) == len(classes(ours)), f"{name}: two variants share a tag"
    assert [tag for tag in by_tag if tag not in added] == list(wanted), name
    assert added <= set(by_tag), name
    for tag, fields in wanted.items():
        compare_variant(name, by_tag[tag], fields)


def foreign_variants(listed: list[str]) -> dict[str, dict[str, str]]:
    """`Fixed { delay_ms: u64 }` and `WaitTimeout(Duration)` as the contract file has them."""
    parsed: dict[str, dict[str, str]] = {}
    for text in listed:
        name = re.match(r"\w+", text)
        assert name is not None
        fields = {key: kind.strip() for key, kind in re.findall(r"(\w+): ([^,}]+)", text)}
        content = re.search(r"\((.*)\)", text)
        parsed[name[0]] = {"0": content[1]} if content else fields
    return parsed


# ---- the tests ---------------------------------------------------------------------------------------


def test_the_specification_is_the_whole_one() -> None:
    assert len(CONTRACTS) == 163
    assert set(CONTRACTS) >= STILL_TO_COME


@pytest.mark.parametrize("name", sorted(set(CONTRACTS) - STILL_TO_COME))
def test_a_contract_type_has_the_seeds_fields_and_variants(name: str) -> None:
    spec = CONTRACTS[name]
    if name == "IdempotencyKey":  # a newtype around a private string
        assert isinstance(contracts.IdempotencyKey, NewType)
    elif name in NOT_AN_ENUM:
        assert isinstance(find(name), type)
    elif name == "CompositeValidationError":
        assert contracts.CompositeValidationError("why").detail == "why"
    elif spec["kind"] == "struct":
        compare_fields(find(name), spec["fields"])
    else:
        compare_enum(name, spec["variants"])


@pytest.mark.parametrize("name", sorted(set(FOREIGN) - set(MAPPED_AWAY)))
def test_a_foreign_type_has_the_seeds_fields_and_variants(name: str) -> None:
    spec = FOREIGN[name]
    if spec["kind"] == "newtype":
        assert isinstance(find(name), NewType) or find(name) is bytes
    elif name in NOT_AN_ENUM:
        assert isinstance(find(name), type)
    elif spec["kind"] == "struct":
        compare_fields(find(name), spec["fields"])
    else:
        compare_enum(name, foreign_variants(spec["variants"]))


def test_types_that_are_mapped_away_are_really_absent() -> None:
    assert set(MAPPED_AWAY) <= set(FOREIGN)
    assert not [name for name in MAPPED_AWAY if hasattr(contracts, name)]


def test_stream_cursor_errors_are_one_class_per_variant() -> None:
    prefix = "StreamCursor"
    ours = {cls.__name__.removeprefix(prefix) for cls in contracts.StreamCursorParseError.__subclasses__()}
    assert ours == set(CONTRACTS["StreamCursorParseError"]["variants"])


def test_cancel_sources_have_the_seeds_words() -> None:
    words = [snake(v) for v in FOREIGN["CancelSource"]["variants"] if "(" not in v]
    for word in words:
        assert getattr(contracts.CancelSource, word.upper()).wire == word
    assert not any(contracts.CancelSource.parse(word).is_custom for word in words)


def test_the_tables_of_additions_name_only_what_exists() -> None:
    for name in ADDED:
        assert isinstance(find(name), type), name
    for name in ADDED_VARIANTS:
        find(name)
    answers = {cls.__name__ for name in CONTRACTS if name not in NOT_AN_ENUM for cls in classes(find(name))}
    assert set(ADDED) <= set(CONTRACTS) | set(FOREIGN) | answers
    assert set(ADDED_VARIANTS) <= set(CONTRACTS) | set(FOREIGN)


def test_every_args_names_all_its_answers_as_outcomes() -> None:
    """The binding decodes an answer by its tag: an outcome without one, or two with the same, cannot be read."""
    for name in contracts.__all__:
        cls = getattr(contracts, name)
        if not (isinstance(cls, type) and issubclass(cls, Args)):
            continue
        (answer,) = get_args(cls.__orig_bases__[0])  # type: ignore[attr-defined]
        tags = [tag_of(one) for one in classes(answer)]
        assert all(issubclass(one, Outcome) for one in classes(answer)), name
        assert len(set(tags)) == len(tags), name
        assert set(cls.__struct_fields__) >= cls.OFF_WIRE, name
        assert cls.function().startswith("ff_"), name
        get_type_hints(cls)  # every annotation resolves


def test_every_outcome_survives_the_wire() -> None:
    """Decoders can be built for every answer: no ambiguous union, no type that msgspec cannot read."""
    for name in contracts.__all__:
        cls = getattr(contracts, name)
        if isinstance(cls, type) and issubclass(cls, Outcome):
            msgspec.json.Decoder(cls, dec_hook=contracts.dec_hook)


def test_everything_public_can_be_imported_from_the_package() -> None:
    for module in {getattr(contracts, name).__module__ for name in contracts.__all__ if
                   getattr(getattr(contracts, name), "__module__", "").startswith("ffcore.contracts.")}:
        room = __import__(module, fromlist=["_"])
        own = {n for n, v in vars(room).items() if getattr(v, "__module__", None) == module and not n.startswith("_")}
        assert own <= set(contracts.__all__), module


# ---- error codes -------------------------------------------------------------------------------------

CODE_MAPPED_AWAY = {
    "valkey": "a transport failure is Unavailable, or EngineBug when the store answers nonsense",
}


def test_every_code_of_the_seed_has_an_exception() -> None:
    assert not set(CODES) - set(errors.Rejected.by_code) - set(CODE_MAPPED_AWAY)
    assert not set(CODE_MAPPED_AWAY) & set(errors.Rejected.by_code)


def test_no_code_is_known_that_nobody_declared() -> None:
    assert not set(errors.Rejected.by_code) - set(CODES) - errors.OWN_CODES
    assert not errors.OWN_CODES & set(CODES)


def test_every_code_makes_an_exception_that_carries_it() -> None:
    for code in [*CODES, *errors.OWN_CODES]:
        if code not in CODE_MAPPED_AWAY:
            made = errors.rejection(code, "why")
            assert made.code == code and made.detail == "why" and not isinstance(made, errors.EngineBug)
