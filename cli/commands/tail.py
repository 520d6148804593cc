"""`ff job tail`: what a job emits, as it comes."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import click

from ..options import Command, Settings, pass_settings
from ..render import encodes, moment, plain, printable
from ..store import client_of, run

if TYPE_CHECKING:
    from ffsdk.job import Job
    from ffsdk.streams import Frame


def frame_record(execution_id: str, frame: Frame) -> dict[str, Any]:
    """A frame's record. Bytes are base64 under a key that says so."""
    return {
        "execution_id": execution_id,
        "attempt": frame.attempt,
        "cursor": frame.cursor,
        "at": moment(frame.at),
        "type": frame.type,
        "mode": frame.mode,
        "value": plain(frame.value),
    }


def text_of(value: Any) -> str:
    """A value for people."""
    if isinstance(value, bytes):
        return f"{len(value)} bytes"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def gone(frame: Frame) -> str:
    """What a gap says to people."""
    return f"attempt {frame.attempt} keeps its newest frames alone: of {frame.value} older ones, some were not read"


def write_raw(frame: Frame) -> None:
    """The value and nothing else: text and bytes as they are, anything else as a line of JSON."""
    if frame.type == "superseded":
        sys.stderr.write(f"\nattempt {frame.attempt} takes over; what came before stands no more\n")
        return
    if frame.type == "gap":
        sys.stderr.write(f"\n{gone(frame)}\n")
        return
    if isinstance(frame.value, bytes):
        sys.stdout.flush()
        sys.stdout.buffer.write(frame.value)
    else:
        text = text_of(frame.value)
        shown = text if encodes(text, sys.stdout) else text.encode("ascii", "backslashreplace").decode()
        sys.stdout.write(shown if isinstance(frame.value, str) else shown + "\n")
    sys.stdout.flush()


@click.command(cls=Command)
@click.argument("execution_id", metavar="ID")
@click.option("--after", metavar="CURSOR", help="Go on behind this frame; `end`: only what comes from now on.")
@click.option("--raw", is_flag=True, help="Values only: text and bytes as they are, joined.")
@pass_settings
def tail(settings: Settings, execution_id: str, after: str | None, raw: bool) -> None:
    """Print what a job emits, from the first frame kept on, until it has ended."""
    out = settings.out()
    if raw and out.json:
        raise click.UsageError("--raw and --json exclude each other")

    async def follow() -> None:
        async with client_of(settings) as client:
            job: Job[Any] = client.job(execution_id)
            async for frame in job.stream(after):
                if raw:
                    write_raw(frame)
                elif out.json:
                    out.line(frame_record(job.id, frame))
                elif frame.type == "superseded":
                    out.say(f"-- attempt {frame.attempt} takes over --")
                elif frame.type == "gap":
                    out.say(f"-- {gone(frame)} --")
                else:
                    out.say(f"{printable(frame.type)}  {printable(text_of(frame.value))}")

    run(follow())
