"""What people and programs see: golden tables and lines."""

from __future__ import annotations

import io

import pytest

from ffcli.options import Settings
from ffcli.render import Column, Out, ago, cell, instant, plain, size, span

ROWS = [
    {"id": "a", "state": "completed", "tries": 1, "tags": {"shop.tenant": "t1"}, "worker": None},
    {"id": "b", "state": "failed", "tries": 12, "tags": {}, "worker": "w[bold]1"},
]
COLUMNS = [
    Column("id", "id"),
    Column("state", "state"),
    Column("tries", "tries", right=True),
    Column("worker", "worker"),
]


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def shown(*, tty: bool = False, json: bool = False, color: bool = True) -> str:
    stream = Terminal() if tty else io.StringIO()
    Out(json=json, stream=stream, color=color, width=60).rows(ROWS, COLUMNS)
    return stream.getvalue()


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines()]


def test_a_pipe_gets_plain_aligned_columns() -> None:
    assert lines(shown()) == [
        "id  state      tries  worker",
        "a   completed      1  -",
        "b   failed        12  w[bold]1",
    ]


def test_a_terminal_gets_a_table() -> None:
    assert lines(shown(tty=True, color=False)) == [
        "id   state       tries   worker",
        "─────────────────────────────────",
        "a    completed       1   -",
        "b    failed         12   w[bold]1",
    ]


def test_no_color_means_no_escapes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in shown(tty=True, color=Settings().out().color)
    monkeypatch.delenv("NO_COLOR")
    assert "\x1b" in shown(tty=True, color=Settings().out().color)
    assert "\x1b" not in shown(tty=False)


def test_programs_get_every_field_and_one_object_per_line() -> None:
    assert shown(json=True).splitlines() == [
        '{"id":"a","state":"completed","tries":1,"tags":{"shop.tenant":"t1"},"worker":null}',
        '{"id":"b","state":"failed","tries":12,"tags":{},"worker":"w[bold]1"}',
    ]


def test_one_record_is_names_and_values_or_one_object() -> None:
    people, programs = io.StringIO(), io.StringIO()
    Out(json=False, stream=people, width=60).record({"execution_id": "a", "tries": 2}, "job")
    Out(json=True, stream=programs).record({"execution_id": "a", "tries": 2}, "job")
    assert lines(people.getvalue()) == ["job", "execution id  a", "tries         2"]
    assert programs.getvalue() == '{"execution_id":"a","tries":2}\n'


def test_no_rows_are_a_sentence_for_people_and_nothing_for_programs() -> None:
    people, programs = io.StringIO(), io.StringIO()
    Out(json=False, stream=people).rows([], COLUMNS, empty="No jobs.")
    Out(json=True, stream=programs).rows([], COLUMNS, empty="No jobs.")
    assert (people.getvalue(), programs.getvalue()) == ("No jobs.\n", "")


def test_text_of_users_moves_no_cursor_and_breaks_no_row() -> None:
    assert cell("a\x1b[31m\nb") == "a\\x1b[31m\\nb"


def test_text_that_no_encoding_carries_still_leaves_as_json() -> None:
    stream = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    Out(json=True, stream=stream).line({"reason": "\udcff"})
    stream.seek(0)
    assert stream.read() == '{"reason":"\\udcff"}\n'


def test_bytes_are_the_json_they_hold_or_base64() -> None:
    assert plain(b'{"a":[1]}') == {"a": [1]}
    assert plain(b"") is None
    assert plain({"digest": b"\xff\x00".decode(errors="surrogateescape"), "task": "t"}) == {
        "digest": {"base64": "/wA="},
        "task": "t",
    }


def test_instants_are_utc_with_milliseconds() -> None:
    assert instant(1_700_000_000_123) == "2023-11-14T22:13:20.123Z"
    assert instant("0") is None
    assert ago(1_700_000_060_123)(instant(1_700_000_000_123)) == "60s ago"
    assert ago(1_700_000_000_123)(instant(1_700_000_180_123)) == "in 3m"


def test_spans_and_sizes_take_their_largest_fitting_unit() -> None:
    assert [span(s) for s in (0.25, 59, 240, 7_200, 200_000)] == ["0.2s", "59s", "4m", "2h", "2d"]
    assert [size(n) for n in (12, 2_048, 5 << 20, 3 << 30)] == ["12 B", "2.0 KiB", "5.0 MiB", "3.0 GiB"]
