"""`ff job tail`: frames for people, for programs, and raw."""

from __future__ import annotations

import io
import sys

import pytest

import ffsdk
from ffcli.commands import tail
from ffsdk.streams import Frame
from tests.cli.conftest import FF, app, work


@app.task(name="cli.talk", lane="talk", retry=ffsdk.Retry(max_attempts=2, backoff=0.01))
async def talk(tries: int, ctx: ffsdk.Context) -> None:
    for word in ("one ", "two\n"):
        await ctx.emit(word)
    await ctx.emit(b"\xff", type="blob")
    await ctx.emit({"n": 3}, type="usage", mode="best_effort")
    if ctx.attempt + 1 < tries:
        raise ValueError("again")


def talked(ff: FF, store: str, tries: int = 1) -> str:
    execution_id = str(ff("submit", "cli.talk", str(tries), "--lane", "talk", "--json").record["execution_id"])
    work(store, execution_id)
    return execution_id


def test_a_tail_prints_frames_and_ends_with_the_job(ff: FF, store: str) -> None:
    execution_id = talked(ff, store)
    ran = ff("job", "tail", execution_id)
    assert ran.code == 0, ran.err
    assert [line.split() for line in ran.out.splitlines()] == [
        ["token", "one"], ["token", "two\\n"], ["blob", "1", "bytes"], ["usage", '{"n":3}'],
    ]  # fmt: skip


def test_records_carry_cursors_to_go_on_from(ff: FF, store: str) -> None:
    execution_id = talked(ff, store, tries=2)
    records = ff("job", "tail", execution_id, "--json").records
    assert [(r["attempt"], r["type"], r["mode"], r["value"]) for r in records] == [
        *(frames := [(0, "token", "append", "one "), (0, "token", "append", "two\n"),
                     (0, "blob", "append", {"base64": "/w=="}), (0, "usage", "best_effort", {"n": 3})]),
        (1, "superseded", "append", 1),
        *((1, *frame[1:]) for frame in frames),
    ]  # fmt: skip
    assert {r["execution_id"] for r in records} == {execution_id}
    for at in (0, 4, 8):
        rest = ff("job", "tail", execution_id, "--after", records[at]["cursor"], "--json")
        assert rest.records == records[at + 1 :]


def test_a_gap_is_told_to_people_and_to_programs(capsys: pytest.CaptureFixture[str]) -> None:
    gap = Frame(type="gap", value=7, cursor="0:0-0", attempt=0, mode="append", at=None)
    record = tail.frame_record("id", gap)
    assert (record["type"], record["value"], record["at"]) == ("gap", 7, None)
    tail.write_raw(gap)
    printed = capsys.readouterr()
    assert printed.out == "" and "of 7 older ones, some" in printed.err


def test_raw_values_are_joined_as_they_are(ff: FF, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    execution_id = talked(ff, store, tries=2)
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding="utf-8"))
    assert ff("job", "tail", execution_id, "--raw").code == 0
    assert printed.getvalue() == b'one two\n\xff{"n":3}\n' * 2


def test_what_makes_no_sense_is_refused(ff: FF, store: str) -> None:
    execution_id = talked(ff, store)
    assert ff("job", "tail", execution_id, "--raw", "--json").code == 2
    assert ff("job", "tail", execution_id, "--after", "yesterday").code == 2
    assert ff("job", "tail", "{fp:0}:00000000-0000-7000-8000-00000000dead").code == 3
