"""`ff demo`: a directory tree counted by several workers, one of which is killed."""

from __future__ import annotations

import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..options import Command, Settings, pass_settings
from ..render import Column, size

if TYPE_CHECKING:
    from ..demo.run import Report


@click.command(cls=Command)
@click.option("--files", type=click.IntRange(60, 1_000_000), default=3_000, show_default=True, help="At most so many.")
@click.option(
    "--workers", type=click.IntRange(2, 32), default=3, show_default=True, help="Processes; one of them is killed."
)
@click.option(
    "--concurrency", type=click.IntRange(1, 256), default=4, show_default=True, help="Jobs at a time, per worker."
)
@click.option(
    "--dir", "directory", type=click.Path(path_type=Path), help="Whose files; default: Python's standard library."
)
@pass_settings
def demo(settings: Settings, files: int, workers: int, concurrency: int, directory: Path | None) -> None:
    """Watch jobs survive a killed worker.

    Hashes and counts the words of real files, one job each, on an embedded Valkey in a directory of its own; kills one
    worker half-way; then compares every result with a plain computation. Ends with 0 only if every file was counted
    exactly once and the killed worker's jobs were recovered.
    """
    from ..demo.processes import Failed
    from ..demo.run import demo as scenario
    from ..store import run

    if settings.url:
        raise click.UsageError("the demo brings its own store: leave --url out")
    root = directory or Path(sysconfig.get_paths()["stdlib"])
    out = settings.out()
    shown = 0
    try:
        with out.progress("counting", files) as bar:

            def advance(done: int) -> None:
                nonlocal shown
                bar(done - shown)
                shown = done

            report = run(scenario(root.resolve(), files, workers, concurrency, out.say, advance))
    except Failed as failed:
        click.echo(f"ff: the demo failed: {failed}", err=True)
        click.get_current_context().exit(1)
    if out.json:
        import msgspec

        out.line(msgspec.to_builtins(report))
    else:
        out.say("")
        out.rows(summary(report), [Column("name", ""), Column("value", "")])
        for wrong in report.wrong[:20]:
            out.say(f"WRONG: {wrong}")
    if report.wrong:
        click.get_current_context().exit(1)


def summary(report: Report) -> list[dict[str, str]]:
    """The report as a person reads it."""
    good = not report.wrong
    rows = {
        "files counted": f"{report.completed:,} of {report.files:,}",
        "bytes, words": f"{size(report.bytes)}, {report.words:,}",
        "throughput": f"{report.files_per_s:,.0f} files a second over {report.seconds:.1f} s (paced)",
        "workers": f"{report.workers} processes",
        "killed": f"pid {report.killed_pid} ({report.killed_worker}) after {report.done_when_killed:,} files",
        "leases it held": f"{report.leases_held:,}",
        "jobs recovered": f"{report.recovered:,}, the last one {report.recovery_s:.1f} s after the kill",
        "proof": "every digest and count equals the plain computation; each file exactly once"
        if good
        else f"{len(report.wrong)} differences",
    }
    return [{"name": name, "value": value} for name, value in rows.items()]
