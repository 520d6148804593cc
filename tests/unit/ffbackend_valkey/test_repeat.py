"""What a call says after several tries, and after the end: by a backend whose store answers from a list."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ffbackend_valkey.backend import Calls, ValkeyBackend
from ffbackend_valkey.connection import FunctionMissing, read_refusal
from ffbackend_valkey.library import library
from ffcore.errors import EngineBug, EngineError, StoreFull, Unavailable
from tests.conformance.test_calls import creation


class Answers:
    """A connection that answers the next of a list, and the last one for ever."""

    def __init__(self, *answers: EngineError) -> None:
        self.answers, self.asked = list(answers), list[str]()

    def call(self, *command: Any) -> asyncio.Future[Any]:
        self.asked.append(str(command[1]))
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.set_exception(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])
        return answer

    async def close(self) -> None:
        return None


class Opened:
    """A store that counts what is opened."""

    url, fresh_initialises = "valkey://fake", False

    def __init__(self) -> None:
        self.opened: list[str] = []

    def confirming(self) -> Calls:
        self.opened.append("confirming")
        return Answers(Unavailable("opened"))

    def listening(self) -> Any:
        self.opened.append("listening")
        raise AssertionError("opened")

    async def close(self) -> None:
        return None


def backend_of(store: Opened, *answers: EngineError) -> ValkeyBackend:
    return ValkeyBackend(store, Answers(*answers), library(), patience=1.0)  # type: ignore[arg-type]


def full() -> EngineError:
    return read_refusal("OOM command not allowed when used memory > 'maxmemory'.")


async def test_a_store_that_is_full_at_the_first_try_has_taken_nothing() -> None:
    with pytest.raises(StoreFull):
        await backend_of(Opened(), full()).call(creation())


async def test_a_store_that_is_full_after_a_lost_reply_does_not_say_that_nothing_was_written() -> None:
    """Who believed it would submit again under another id: two jobs instead of one."""
    backend = backend_of(Opened(), Unavailable("cut", may_have_applied=True), full())
    with pytest.raises(Unavailable, match="memory limit") as told:
        await backend.call(creation())
    assert told.value.may_have_applied


async def test_a_connection_lost_while_the_library_is_loaded_is_waited_for_like_any_other() -> None:
    """And it says nothing of the call itself, which never ran."""
    calls = Answers(FunctionMissing("gone"), Unavailable("cut", may_have_applied=True), Unavailable("away"))
    backend = ValkeyBackend(Opened(), calls, library(), patience=0.2)  # type: ignore[arg-type]
    with pytest.raises(Unavailable, match="away") as told:
        await backend.call(creation())
    assert calls.asked[:3] == ["ff_create_execution", "ff_library", "ff_create_execution"]
    assert not told.value.may_have_applied


async def test_an_end_while_a_redirection_is_followed_does_not_hide_an_earlier_try() -> None:
    class Redirecting(ValkeyBackend):
        def _lead(self, *_: Any) -> Any:
            raise Unavailable("closed", code="closed", may_have_applied=False)

    calls = Answers(Unavailable("cut", may_have_applied=True))
    with pytest.raises(Unavailable) as told:
        await Redirecting(Opened(), calls, library(), patience=1.0).call(creation())  # type: ignore[arg-type]
    assert (told.value.code, told.value.may_have_applied) == ("closed", True)


async def test_a_function_that_loading_does_not_bring_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = ValkeyBackend(Opened(), Answers(FunctionMissing("gone")), library(), patience=0.1)  # type: ignore[arg-type]

    async def load(*, replace: bool = False) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(backend, "load_library", load)
    async with asyncio.timeout(10):
        with pytest.raises(EngineBug, match="functions"):
            await backend.call(creation())


async def test_after_the_end_nothing_is_opened_any_more() -> None:
    store = Opened()
    backend = backend_of(store, Unavailable("sent"))
    await backend.close()
    with pytest.raises(Unavailable) as confirmed:
        await backend.call_replicated(creation())
    with pytest.raises(Unavailable) as heard:
        await backend.subscribe(["c"], lambda channel, data: None)
    assert (confirmed.value.code, heard.value.code, store.opened) == ("closed", "closed", [])
