"""Cursors are checked where they enter, so a malformed one never reaches the store as a script error."""

from __future__ import annotations

import msgspec
import pytest

from ffcore.contracts import (
    ReadFramesArgs,
    StreamCursor,
    StreamCursorBareMarkerRejected,
    StreamCursorEmpty,
    StreamCursorMalformed,
    StreamCursorParseError,
    StreamFrames,
    dec_hook,
    enc_hook,
)
from ffcore.errors import InvalidArgument
from ffcore.ids import AttemptIndex, ExecutionId, TimestampMs

ONE_ID = ExecutionId("{fp:0}:018f0000-0000-7000-8000-000000000000")
ALL = [StreamCursor.START, StreamCursor.END, StreamCursor.at("0-0"), StreamCursor.at("1713100800150-0")]


def encode(cursor: StreamCursor) -> bytes:
    return msgspec.json.encode(cursor, enc_hook=enc_hook)


def decode(text: bytes) -> StreamCursor:
    return msgspec.json.decode(text, type=StreamCursor, dec_hook=dec_hook)


def test_stream_cursor_display_matches_wire_tokens() -> None:
    assert [str(c) for c in (StreamCursor.START, StreamCursor.END)] == ["start", "end"]
    assert [str(StreamCursor.at(i)) for i in ("123", "123-4")] == ["123", "123-4"]


def test_stream_cursor_to_wire_maps_to_valkey_markers() -> None:
    assert StreamCursor.START.to_wire() == "-"
    assert StreamCursor.END.to_wire() == "+"
    assert StreamCursor.at("0-0").to_wire() == "0-0"
    assert StreamCursor.at("17-3").to_wire() == "17-3"


def test_stream_cursor_into_wire_string_gives_a_plain_string() -> None:
    """What goes to the store is a str proper: the client library need not know cursors."""
    for cursor in ALL:
        assert type(cursor.to_wire()) is str


def test_stream_cursor_from_str_accepts_wire_tokens() -> None:
    assert StreamCursor.parse("start") == StreamCursor.START
    assert StreamCursor.parse("end") == StreamCursor.END
    for entry_id in ("123", "0-0", "1713100800150-0"):
        assert StreamCursor.parse(entry_id) == StreamCursor.at(entry_id)


@pytest.mark.parametrize("marker", ["-", "+"])
def test_stream_cursor_from_str_rejects_bare_markers(marker: str) -> None:
    with pytest.raises(StreamCursorBareMarkerRejected, match="use 'start' or 'end'") as caught:
        StreamCursor.parse(marker)
    assert caught.value.cursor == marker


def test_stream_cursor_from_str_rejects_empty() -> None:
    with pytest.raises(StreamCursorEmpty, match="must not be empty"):
        StreamCursor.parse("")


@pytest.mark.parametrize("bad", [
    "abc", "-1", "1-", "-1-2", "1-2-3", "1.2", "1 2", "Start", "END", "1\n", "start ", "٣",
])
def test_stream_cursor_from_str_rejects_malformed(bad: str) -> None:
    with pytest.raises(StreamCursorMalformed, match="expected 'start', 'end'"):
        StreamCursor.parse(bad)


def test_stream_cursor_from_str_rejects_non_ascii() -> None:
    with pytest.raises(StreamCursorMalformed):
        StreamCursor.parse("1\u20132")


def test_every_parse_error_is_an_invalid_argument() -> None:
    for text in ("", "-", "abc"):
        with pytest.raises(InvalidArgument) as caught:
            StreamCursor.parse(text)
        assert isinstance(caught.value, StreamCursorParseError) and caught.value.code == "invalid_input"


def test_stream_cursor_serde_round_trip() -> None:
    for cursor in ALL:
        back = decode(encode(cursor))
        assert back == cursor and type(back) is StreamCursor


def test_stream_cursor_serializes_as_bare_string() -> None:
    assert [encode(c) for c in ALL[:3]] == [b'"start"', b'"end"', b'"0-0"']


@pytest.mark.parametrize("text", [b'"-"', b'"+"', b'""', b"7"])
def test_stream_cursor_deserialize_rejects_bare_markers(text: bytes) -> None:
    with pytest.raises((msgspec.ValidationError, NotImplementedError)):
        decode(text)


def test_stream_cursor_from_beginning_is_zero_zero() -> None:
    assert StreamCursor.from_beginning() == StreamCursor.at("0-0")


def test_stream_cursor_is_concrete_classifies_variants() -> None:
    assert not StreamCursor.START.is_concrete() and not StreamCursor.END.is_concrete()
    assert StreamCursor.at("0-0").is_concrete() and StreamCursor.from_beginning().is_concrete()


def test_only_an_entry_id_can_be_pointed_at() -> None:
    with pytest.raises(StreamCursorMalformed, match="not an entry id"):
        StreamCursor.at("start")


def read(count_limit: int, from_id: str = "-") -> ReadFramesArgs:
    return ReadFramesArgs(
        execution_id=ONE_ID, attempt_index=AttemptIndex(0), from_id=from_id, to_id="+", count_limit=count_limit
    )


def test_a_read_is_bounded_and_takes_the_stores_positions() -> None:
    assert read(1).count_limit == 1 and read(10_000, "17-3").from_id == "17-3"
    for count_limit in (0, 10_001, -1):
        with pytest.raises(InvalidArgument, match="from 1 to 10000"):
            read(count_limit)
    with pytest.raises(StreamCursorMalformed):
        read(1, "start")


def test_frames_without_a_closing_time_may_still_grow() -> None:
    assert not StreamFrames.empty_open().is_closed()
    assert StreamFrames(closed_at=TimestampMs(5), closed_reason="attempt_success").is_closed()
