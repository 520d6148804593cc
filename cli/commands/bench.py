"""`ff bench`: the repository's benchmarks, or, where only the package is installed, one drain.

The rule: it measures on a store of its own and asserts nothing.
"""

from __future__ import annotations

import asyncio
import os
import platform
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import click

from ..options import Command, Settings, pass_settings


def repository() -> Path | None:
    """The checkout this runs from, if it has benchmarks to run."""
    root = Path(__file__).resolve().parents[2]
    return root if (root / "bench" / "__main__.py").is_file() else None


@click.command(cls=Command, context_settings={"ignore_unknown_options": True})
@click.option(
    "--jobs", type=click.IntRange(100, 1_000_000), default=5_000, show_default=True, help="Of the built-in drain."
)
@click.option("--builtin", is_flag=True, help="The built-in drain, also in a checkout.")
@click.argument("args", nargs=-1, type=click.UNPROCESSED)
@pass_settings
def bench(settings: Settings, jobs: int, builtin: bool, args: tuple[str, ...]) -> None:
    """Measure; prints numbers and the machine. In a checkout ARGS go to `python -m bench`."""
    root = repository()
    if root is not None and not builtin:
        env = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(root), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
            ),
        }
        done = subprocess.run([sys.executable, "-m", "bench", *args], cwd=root, env=env, check=False)
        click.get_current_context().exit(done.returncode)
    if args:
        raise click.UsageError("the built-in drain takes no arguments")
    from ..demo.processes import directory_with_store
    from ..store import run

    if settings.url:
        raise click.UsageError("the bench brings its own store: leave --url out")
    with directory_with_store() as (_, url):
        record = run(drain(url, jobs))
    settings.out().record(record, "drain")


async def drain(url: str, jobs: int) -> dict[str, Any]:
    """Submit jobs that do nothing, then run them with one worker of this process."""
    import ffsdk as ff

    app = ff.App(url=url)

    @app.task(name="bench.nothing", lane="bench")
    async def nothing(number: int) -> int:
        return number

    async with app.client() as client:
        await client.lane("bench").pause()
        began = time.perf_counter()
        made = await client.submit_many(nothing, range(jobs))
        submitted = time.perf_counter()
        worker = app.worker(concurrency=64)
        running = asyncio.ensure_future(worker.run())
        try:
            await asyncio.wait(
                {running, asyncio.ensure_future(worker.started.wait())}, return_when=asyncio.FIRST_COMPLETED
            )
            started = time.perf_counter()
            await client.lane("bench").resume()
            await asyncio.gather(*(job.result() for job in made))
            ended = time.perf_counter()
        finally:
            await worker.stop()
            await running
    return {
        "jobs": jobs,
        "submit_per_s": round(jobs / (submitted - began), 1),
        "drain_per_s": round(jobs / (ended - started), 1),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }
