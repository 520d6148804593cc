"""`ff submit`: one job, or many with a progress bar."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import click

from ..options import Command, Settings, pass_settings

CHUNK_N = 2_000
"""Jobs of one `submit_many`: enough to fill its calls, few enough for the bar to move."""


def read_payload(text: str) -> Any:
    """The payload as given: JSON, @file, or - for standard input. UsageError if it is no JSON."""
    import msgspec

    if text.startswith("@"):
        try:
            raw = Path(text[1:]).read_bytes()
        except OSError as unreadable:
            raise click.UsageError(f"{text}: {unreadable.strerror}") from unreadable
    else:
        raw = sys.stdin.buffer.read() if text == "-" else text.encode()
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError as broken:
        raise click.UsageError(f"the payload is not JSON ({broken}); text needs quotes, as in '\"text\"'") from broken


def read_tags(pairs: tuple[str, ...]) -> dict[str, str]:
    tags: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise click.UsageError(f"--tag {pair}: write key=value, as in shop.tenant=t1")
        tags[key] = value
    return tags


@click.command(cls=Command)
@click.argument("task")
@click.argument("payload", default="null")
@click.option("--lane", help="Default: the task's own. Needed for a task that no worker has published.")
@click.option("--key", help="Makes a repeated submit answer the same job.")
@click.option("--delay", type=click.FloatRange(min=0), metavar="SECONDS", help="Not before so much later.")
@click.option("--priority", type=click.IntRange(-100, 100), help="Higher first.")
@click.option("--deadline", type=click.FloatRange(min=0.001), metavar="SECONDS", help="Ends as expired so much later.")
@click.option("--tag", "tags", multiple=True, metavar="KEY=VALUE")
@click.option("--wait", is_flag=True, help="Wait for the end and print the result.")
@click.option("--timeout", type=click.FloatRange(min=0), metavar="SECONDS", help="With --wait: exit code 4 after that.")
@click.option(
    "--count", type=click.IntRange(1, 10_000_000), help="Submit it so many times; with --key as key-0, key-1, ..."
)
@pass_settings
def submit(
    settings: Settings,
    task: str,
    payload: str,
    lane: str | None,
    key: str | None,
    delay: float | None,
    priority: int | None,
    deadline: float | None,
    tags: tuple[str, ...],
    wait: bool,
    timeout: float | None,
    count: int | None,
) -> None:
    """Submit a job of TASK. PAYLOAD is JSON, @file, or - for standard input; without it null."""
    from ..store import run

    if timeout is not None and not wait:
        raise click.UsageError("--timeout goes with --wait")
    if count is not None and wait:
        raise click.UsageError("--count goes without --wait: watch many with `ff top` or `ff lane stats`")
    options = {
        "lane": lane,
        "delay": delay,
        "priority": priority,
        "deadline": deadline,
        "tags": read_tags(tags) or None,
    }
    given = {name: value for name, value in options.items() if value is not None}
    value = read_payload(payload)
    if count is None:
        run(_one(settings, task, value, key, given, wait, timeout))
    else:
        run(_many(settings, task, value, key, given, count))


async def _one(
    settings: Settings,
    task: str,
    value: Any,
    key: str | None,
    options: dict[str, Any],
    wait: bool,
    timeout: float | None,
) -> None:
    from ..store import client_of
    from .job import print_outcome

    async with client_of(settings) as client:
        job = await client.submit(task, value, key=key, **options)
        if wait:
            return print_outcome(settings, job.id, await job.outcome(timeout))
    out = settings.out()
    if out.json:
        out.line({"execution_id": job.id, "created": job.created})
    else:
        click.echo(job.id)
        if not job.created:
            click.echo("ff: the key names a job that was submitted before", err=True)


async def _many(
    settings: Settings, task: str, value: Any, key: str | None, options: dict[str, Any], count: int
) -> None:
    from ..store import client_of

    out, began, created, sent = settings.out(), time.monotonic(), 0, 0
    async with client_of(settings) as client:
        with out.progress(f"submitting {task}", count) as advance:
            while sent < count:
                n = min(CHUNK_N, count - sent)
                keys = [f"{key}-{sent + i}" for i in range(n)] if key is not None else None
                jobs = await client.submit_many(task, [value] * n, keys=keys, **options)
                created, sent = created + sum(job.created for job in jobs), sent + n
                advance(n)
    seconds = time.monotonic() - began
    record = {
        "submitted": sent,
        "created": created,
        "seconds": round(seconds, 3),
        "per_second": round(sent / seconds, 1),
    }
    if out.json:
        return out.line(record)
    known = f", {sent - created} of them submitted before" if created < sent else ""
    out.say(f"{sent:,} jobs{known}, {record['per_second']:,.0f} a second.")
