"""What the backend makes of requests that no function takes as they are."""

from __future__ import annotations

import inspect
import re
from typing import Any

import msgspec
import pytest

import ffcore.contracts as c
from ffbackend_valkey import composed, composed_flow
from ffbackend_valkey.binding import all_args
from ffbackend_valkey.composed import FUNCTIONS, Composed
from ffbackend_valkey.library import library
from ffcore import tokens
from ffcore.args import Args
from ffcore.backend import StoreConfig
from ffcore.errors import EngineBug, SecretMissing

COMPOSED = [args for args in all_args() if args.COMPOSED]
JOB, PLACE = "{fp:0}:018f0000-0000-7000-8000-000000000000", "018f0000-0000-7000-8000-0000000000aa"


class Ring:
    async def ring(self, *, fresh: bool = False) -> tokens.Ring:
        return tokens.Ring({"k1": bytes(32)})

    async def add(self, kid: str, secret: bytes) -> bool:
        return False


class Store:
    """Answers each request with the next of what it was given."""

    def __init__(self, *answers: Any) -> None:
        self.sent: list[Any] = []
        self._answers = list(answers)

    async def __call__(self, args: Args[Any], /) -> Any:
        self.sent.append(args)
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def made(secrets: Any = None) -> Composed:
    return Composed(lambda: secrets or Ring(), lambda: StoreConfig(fp=1))


def test_every_composed_request_is_composed_and_says_what_it_calls() -> None:
    assert set(FUNCTIONS) == set(COMPOSED) == set(made()._does)
    assert {name for names in FUNCTIONS.values() for name in names} <= set(library().signatures)


def test_every_wire_request_is_made_of_a_composed_one() -> None:
    """And no facade offers it: what goes over the wire is the backend's business."""
    sources = inspect.getsource(composed) + inspect.getsource(composed_flow)
    wires = {args.__name__ for args in all_args() if args.WIRE}
    assert wires == set(re.findall(r"\b(\w+WireArgs)\(", sources)) | {"SuspendWireArgs"}


async def test_one_that_nothing_composes_is_a_bug() -> None:
    class UnknownArgs(Args[c.Closed]):
        pass

    with pytest.raises(EngineBug):
        await made().call(UnknownArgs(), Store())


async def test_a_signal_travels_with_the_digest_of_its_token() -> None:
    args = c.DeliverSignalArgs(
        execution_id=JOB, waitpoint_id=PLACE, signal_id="s", signal_name="ok", signal_category="x", source_type="web",
        source_identity="dana", target_scope="w", waitpoint_token="k1:secret",
    )  # fmt: skip
    store = Store(c.Accepted("s", "appended_to_waitpoint"))
    await made().call(args, store)
    (sent,) = store.sent
    shared = set(type(sent).__struct_fields__) & set(type(args).__struct_fields__)
    assert {name: getattr(sent, name) for name in shared} == {name: getattr(args, name) for name in shared}
    assert sent.token_digest == tokens.digest("k1:secret") and b"k1:secret" not in msgspec.json.encode(sent)


async def test_a_partition_that_keeps_changing_its_kid_is_followed_so_often() -> None:
    from ffcore.errors import rejection

    refused = [rejection("invalid_kid", "k1") for _ in range(composed.TRIES_N)]
    args = c.CreatePendingWaitpointArgs(
        execution_id=JOB, lease_id="l", lease_epoch=1, attempt_id="a", attempt_index=0, waitpoint_id=PLACE,
        waitpoint_key="k", expires_in_ms=1,
    )  # fmt: skip
    store = Store(*refused)
    with pytest.raises(type(refused[0])) as caught:
        await made().call(args, store)
    assert caught.value.code == "invalid_kid" and len(store.sent) == composed.TRIES_N
    with pytest.raises(SecretMissing, match="kid k9 signs"):
        await made().call(args, Store(rejection("invalid_kid", "k9"), rejection("invalid_kid", "k9")))
