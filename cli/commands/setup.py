"""`ff init`, `ff config show`, `ff completion`, `ff version`: before and around the first job."""

from __future__ import annotations

import sys
from typing import Any

import click

from ..options import Command, Group, Settings, pass_settings


@click.command(cls=Command)
@click.option(
    "--partitions", type=click.IntRange(1, 1024), help="How many; fixed for good. Default 4, on a cluster 64."
)
@pass_settings
def init(settings: Settings, partitions: int | None) -> None:
    """Create the partitions of a fresh store and load the library. Repeating it changes nothing."""
    from ..store import run
    from .library import initialise

    config, created = run(initialise(settings.store_url(), partitions))
    out = settings.out()
    record: dict[str, Any] = {"partitions": config.fp, "created": created}
    if out.json:
        return out.line(record)
    out.say(f"The store has {config.fp} partitions" + (", created now." if created else "; it was initialised before."))


@click.group(cls=Group)
def config() -> None:
    """Show what this program is connected to and how."""


@config.command("show")
@pass_settings
def show(settings: Settings) -> None:
    """Show the store, where its URL came from, and what it keeps. Never a password."""
    import os

    from ..store import opened, run

    async def read() -> dict[str, Any]:
        async with opened(settings) as backend:
            counts = backend.config
            source = "--url" if settings.url else "FF_URL" if os.environ.get("FF_URL") else "default"
            return {
                "url": backend.url,
                "url_from": source,
                "password_file": bool(os.environ.get("FF_PASSWORD_FILE")),
                "namespace": settings.namespace or "default",
                "partitions": counts.fp,
                "budget_partitions": counts.b,
                "quota_partitions": counts.q,
                "worker_partitions": counts.w,
            }

    settings.out().record(run(read()), "setting")


@click.command(cls=Command)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a completion script: eval "$(ff completion bash)"."""
    from click.shell_completion import get_completion_class

    from ..main import cli

    found = get_completion_class(shell)
    assert found is not None, "every shell of the choice has a class"
    click.echo(found(cli, {}, "ff", "_FF_COMPLETE").source())


def release() -> str:
    """The version of this distribution; of a checkout that is not installed, what its pyproject.toml says."""
    from importlib.metadata import PackageNotFoundError
    from importlib.metadata import version as installed

    try:
        return installed("flowfabric-py")
    except PackageNotFoundError:
        import tomllib
        from pathlib import Path

        file = Path(__file__).resolve().parents[2] / "pyproject.toml"
        return str(tomllib.loads(file.read_text())["project"]["version"]) if file.is_file() else "unknown"


@click.command(cls=Command)
@pass_settings
def version(settings: Settings) -> None:
    """Print the version of this program, of its library, and of Python."""
    from .library import ours

    mine = ours()
    record = {"version": release(), "library": mine.version, "library_sha": mine.sha, "python": sys.version.split()[0]}
    if settings.json:
        settings.out().line(record)
    else:
        click.echo(f"ff {record['version']} (library {mine.version} {mine.sha}, Python {record['python']})")
