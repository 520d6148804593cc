"""Frames without a store: how emits fold, what becomes of them when the store is away, cursors, merge patches."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from ffcore import limits
from ffcore.contracts.stream import AppendedMany, AppendFramesArgs, ItemAppended, StreamPage
from ffcore.errors import EngineBug, InvalidArgument, StaleLease, Unavailable
from ffcore.ids import ExecutionId
from ffcore.merge import merge_patch
from ffsdk import emitter as emitters
from ffsdk.emitter import Emitter
from ffsdk.pace import Pace, VirtualPace
from ffsdk.streams import parse_cursor
from ffsdk.tails import Ear, Tails

A = ExecutionId("{fp:0}:00000000-0000-7000-8000-00000000000a")
B = ExecutionId("{fp:1}:00000000-0000-7000-8000-00000000000b")


class Store:
    """Answers appends when told to, and remembers them."""

    def __init__(self) -> None:
        self.calls: list[AppendFramesArgs] = []
        self.open = asyncio.Event()
        self.open.set()
        self.failures: list[Exception] = []
        self.refused: set[bytes] = set()

    async def call(self, args: AppendFramesArgs) -> AppendedMany:
        self.calls.append(args)
        await self.open.wait()
        if self.failures:
            raise self.failures.pop(0)
        gone, taken = ItemAppended("error", "stale_lease", "gone"), ItemAppended("appended", "1-1")
        return AppendedMany([gone if frame.payload in self.refused else taken for frame in args.items])

    @property
    def sent(self) -> list[list[bytes]]:
        return [[frame.payload for frame in call.items] for call in self.calls]


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def emitter(store: Store) -> Emitter:
    return Emitter(store.call)


def put(emitter: Emitter, raw: bytes, id: ExecutionId = A, mode: Any = "append") -> asyncio.Future[None]:
    return emitter.put(id, "l 1 l", "token", mode, raw, None)


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


# ---- emitting --------------------------------------------------------------------------------------------


async def test_frames_of_one_turn_leave_in_one_call_per_partition(store: Store, emitter: Emitter) -> None:
    await asyncio.gather(*(put(emitter, b"%d" % n, A if n % 2 else B) for n in range(6)))
    assert sorted(store.sent) == [[b"0", b"2", b"4"], [b"1", b"3", b"5"]]


async def test_what_comes_while_a_call_is_under_way_leaves_with_the_next(store: Store, emitter: Emitter) -> None:
    """One call at a time: a repeated call must not overtake, or be overtaken by, later frames of its lease."""
    store.open.clear()
    waiting = [put(emitter, b"1")]
    await turns()
    waiting += [put(emitter, b"2"), put(emitter, b"3")]
    await turns()
    assert store.sent == [[b"1"]]
    store.open.set()
    await asyncio.gather(*waiting)
    assert store.sent == [[b"1"], [b"2", b"3"]]


async def test_numbers_rise_in_the_order_of_emits(store: Store, emitter: Emitter) -> None:
    for n in range(3):
        await asyncio.gather(put(emitter, b"%d" % n), put(emitter, b"%d" % n, B))
    for id in (A, B):
        ops = [frame.op for call in store.calls for frame in call.items if frame.execution_id == id]
        assert ops == sorted(set(ops))


async def test_a_call_is_bounded_by_rows_and_by_bytes(store: Store, emitter: Emitter) -> None:
    await asyncio.gather(*(put(emitter, b"x") for _ in range(limits.ROWS_N + 1)))
    assert [len(call.items) for call in store.calls] == [limits.ROWS_N, 1]
    store.calls.clear()
    large, fits = b"x" * limits.FRAME_BYTES, limits.BATCH_BYTES // limits.FRAME_BYTES
    await asyncio.gather(*(put(emitter, large) for _ in range(fits + 1)))
    assert [len(call.items) for call in store.calls] == [fits, 1]


async def test_each_frame_gets_its_own_answer(store: Store, emitter: Emitter) -> None:
    store.refused = {b"bad"}
    good, bad, other = put(emitter, b"good"), put(emitter, b"bad"), put(emitter, b"bad")
    await good
    with pytest.raises(StaleLease, match="gone") as one:
        await bad
    with pytest.raises(StaleLease) as two:
        await other
    assert one.value is not two.value


async def test_a_frame_is_repeated_until_the_store_answers(
    store: Store, emitter: Emitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(emitters, "AWAY_S", 0)
    store.failures = [Unavailable("away", may_have_applied=True), Unavailable("away")]
    await put(emitter, b"1")
    assert len(store.calls) == 3 and len({call.items[0].op for call in store.calls}) == 1


async def test_a_store_that_was_closed_ends_the_wait(store: Store, emitter: Emitter) -> None:
    store.failures = [Unavailable("closed", code="closed")]
    with pytest.raises(Unavailable):
        await put(emitter, b"1")
    store.failures = [ValueError("odd")]
    with pytest.raises(EngineBug, match="odd"):
        await put(emitter, b"1")
    await put(emitter, b"2")


async def test_whoever_is_cancelled_before_his_frame_left_sends_nothing(store: Store, emitter: Emitter) -> None:
    gone, stays = put(emitter, b"gone"), put(emitter, b"stays")
    gone.cancel()
    await stays
    assert store.sent == [[b"stays"]]
    put(emitter, b"gone").cancel()
    await turns()
    await put(emitter, b"next")
    assert store.sent == [[b"stays"], [b"next"]]


async def test_a_best_effort_frame_is_not_waited_for(
    store: Store, emitter: Emitter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is done when it has left; one that cannot leave soon is given up."""
    monkeypatch.setattr(emitters, "LATE_S", 0.001)
    store.open.clear()
    await put(emitter, b"leaves", mode="best_effort")
    await put(emitter, b"late", mode="best_effort")
    kept = put(emitter, b"kept")
    store.open.set()
    await kept
    assert store.sent == [[b"leaves"], [b"kept"]]


async def test_a_best_effort_frame_given_up_as_it_leaves_holds_up_nobody(store: Store, emitter: Emitter) -> None:
    """Between leaving and being sent lies a turn of the loop, in which its caller may be cancelled."""
    given_up = put(emitter, b"1", mode="best_effort")
    asyncio.get_running_loop().call_soon(given_up.cancel)
    await asyncio.sleep(0.01)
    async with asyncio.timeout(1):
        await put(emitter, b"2")
    assert store.sent[-1] == [b"2"]


async def test_a_best_effort_frame_that_is_refused_disturbs_nobody(store: Store, emitter: Emitter) -> None:
    store.refused = {b"x"}
    await put(emitter, b"x", mode="best_effort")
    await put(emitter, b"y")


# ---- reading ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "found"), [
    (None, (None, "-")), ("start", (None, "-")), ("end", (None, "+")), ("0-0", (None, "0-0")), ("17", (None, "17")),
    ("17-2", (None, "17-2")), ("3:17-2", (3, "17-2")), ("0:0-0", (0, "0-0")),
])  # fmt: skip
def test_a_cursor_is_a_place_and_the_attempt_it_was_told_of(text: str | None, found: Any) -> None:
    assert parse_cursor(text) == found


@pytest.mark.parametrize("text", ["", "-", "+", "x", "1-", "1:", ":1-1", "1:2:3-4", "1" * 16, 7, b"1-1"])
def test_what_is_no_cursor_is_refused(text: Any) -> None:
    with pytest.raises(InvalidArgument, match="cursor"):
        parse_cursor(text)


def test_a_reader_is_rung_by_what_it_has_not_read() -> None:
    ear = Ear("c")
    for read_to, message, rung in [
        ("-", "1-1", True), ("5-2", "5-2", False), ("5-2", "5-1", False), ("5-2", "5-3", True), ("5-2", "10-0", True),
        ("5-2", "4-9", False), ("5-2", "completed", True), ("5-2", "?", True),
    ]:  # fmt: skip
        ear.read_to = read_to
        ear.rung.clear()
        ear.hear(message)
        assert ear.rung.is_set() is rung, (read_to, message)


class Channels:
    """A backend of channels alone."""

    def __init__(self) -> None:
        self.listening: dict[str, Any] = {}
        self.subscribed_n = self.read_n = 0
        self.fails: list[Exception] = []
        self.gap: Any = None

    def stream_channel(self, execution_id: str) -> str:
        return f"c:{execution_id}"

    async def subscribe(self, channels: list[str], heard: Any, gap: Any) -> Any:
        self.subscribed_n += 1
        if self.fails:
            raise self.fails.pop(0)
        self.listening[channels[0]], self.gap = heard, gap
        mine = self

        class Subscription:
            async def close(self) -> None:
                del mine.listening[channels[0]]

        return Subscription()

    async def call(self, args: Any) -> StreamPage:
        self.read_n += 1
        await asyncio.sleep(0)
        if self.fails:
            raise self.fails.pop(0)
        return StreamPage([], args.after, -1, 0, "", False)

    def say(self, execution_id: str, text: bytes) -> None:
        channel = self.stream_channel(execution_id)
        self.listening[channel](channel, text)


@pytest.fixture
def channels() -> Channels:
    return Channels()


async def test_readers_of_one_stream_share_a_subscription_and_its_end(channels: Channels) -> None:
    tails = Tails(channels, Pace())  # type: ignore[arg-type]
    one, two, other = await tails.listen(A), await tails.listen(A), await tails.listen(B)
    assert channels.subscribed_n == 2
    channels.say(A, b"7-0")
    assert one.rung.is_set() and two.rung.is_set() and not other.rung.is_set()
    await tails.leave(one)
    assert len(channels.listening) == 2
    await tails.leave(two)
    await tails.leave(other)
    await tails.leave(other)
    assert channels.listening == {}
    await tails.close()


async def test_readers_at_one_place_share_a_read_of_the_same_turn_and_of_no_other(channels: Channels) -> None:
    tails = Tails(channels, Pace())  # type: ignore[arg-type]
    await asyncio.gather(*(tails.read(A, "1-1") for _ in range(10)), tails.read(A, "1-2"), tails.read(B, "1-1"))
    assert channels.read_n == 3
    first = asyncio.ensure_future(tails.read(A, "1-1"))
    await turns(2)
    await asyncio.gather(first, tails.read(A, "1-1"))
    assert channels.read_n == 5, "a read that has left may miss what rang the later reader"


async def test_a_read_that_fails_fails_for_each_of_its_readers(channels: Channels) -> None:
    tails = Tails(channels, Pace())  # type: ignore[arg-type]
    channels.fails = [Unavailable("away")]
    failed = await asyncio.gather(*(tails.read(A, "-") for _ in range(3)), return_exceptions=True)
    assert [type(error) for error in failed] == [Unavailable] * 3 and len(set(map(id, failed))) == 3


async def test_a_reader_that_cannot_listen_is_rung_by_the_poll(channels: Channels) -> None:
    """On a virtual clock each nudge is a look; a channel that could not be opened is tried again with it."""
    pace = VirtualPace()
    tails = Tails(channels, pace)  # type: ignore[arg-type]
    channels.fails = [Unavailable("away")]
    ear = await tails.listen(A)
    await turns()
    pace.nudge()
    await asyncio.wait_for(ear.rung.wait(), 5)
    await turns()
    assert channels.subscribed_n == 2 and channels.listening
    ear.rung.clear()
    channels.gap()
    assert ear.rung.is_set(), "after a reconnect messages may be missing"
    ear.rung.clear()
    await tails.close()
    assert ear.rung.is_set() and channels.listening == {}


async def test_a_refusal_to_listen_is_raised_and_leaves_nothing(channels: Channels) -> None:
    tails = Tails(channels, Pace())  # type: ignore[arg-type]
    channels.fails = [EngineBug("no right to")]
    with pytest.raises(EngineBug):
        await tails.listen(A)
    channels.fails = [Unavailable("closed", code="closed")]
    with pytest.raises(Unavailable):
        await tails.listen(A)
    assert channels.listening == {} and tails._poller is None


# ---- merge patches -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("document", "patch", "merged"), [
    # the cases of RFC 7396, appendix A
    ({"a": "b"}, {"a": "c"}, {"a": "c"}),
    ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
    ({"a": "b"}, {"a": None}, {}),
    ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
    ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
    ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
    ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
    ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
    (["a", "b"], ["c", "d"], ["c", "d"]),
    ({"a": "b"}, ["c"], ["c"]),
    ({"a": "foo"}, None, None),
    ({"a": "foo"}, "bar", "bar"),
    ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
    ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
    ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
])  # fmt: skip
def test_a_merge_patch_is_that_of_the_rfc(document: Any, patch: Any, merged: Any) -> None:
    before = repr(document), repr(patch)
    assert merge_patch(document, patch) == merged
    assert (repr(document), repr(patch)) == before
