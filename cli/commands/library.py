"""`ff library`: the functions in the store; and the store as one sees it before it can be used.

The rule: this is the one module of the CLI that knows the backend, because a store that is empty, or holds
another library, opens for nobody else. It replaces a library only when asked by name.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import AsyncGenerator
from typing import Any, NamedTuple

import click

from ffbackend_valkey.backend import ValkeyBackend
from ffbackend_valkey.library import Library, judge
from ffbackend_valkey.library import library as ours
from ffbackend_valkey.stores import HIDDEN, check_server, connect, default_config
from ffcore.backend import StoreConfig
from ffcore.errors import Incompatible
from ffsdk.connect import resolve_url

from ..options import Group, Settings, pass_settings
from ..store import run

__all__ = ["HIDDEN", "Facts", "bare", "initialise", "inspect", "library", "ours"]


@contextlib.asynccontextmanager
async def bare(url: str | None) -> AsyncGenerator[ValkeyBackend]:
    """A connection without the checks of boot and without initialising anything."""
    backend = await connect(resolve_url(url), init=False, check=False, patience=0.0)
    try:
        yield backend
    finally:
        await backend.close()


async def initialise(url: str | None, partitions: int | None) -> tuple[StoreConfig, bool]:
    """Create a fresh store's partitions, or finish what an interrupted init began. Incompatible for other counts.

    Answers the counts, and whether the store was uninitialised before.
    """
    async with bare(url) as backend:
        await check_server(backend, "accepted")
        if judge(backend.library, await backend.loaded()) == "load":
            await backend.load_library()
        known = await backend.read_config()
        wanted = StoreConfig(fp=partitions) if partitions else known or default_config(backend.url)
        return await backend.initialise(wanted), known is None


class Facts(NamedTuple):
    """What `ff doctor` asks a store before anything else."""

    url: str
    server: str
    refusal: str
    """Why the server's settings must not be used; empty if they may."""
    warnings: list[str]
    library: str
    """`ok`, `absent`, or what is wrong with the one that is there."""
    config: StoreConfig | None
    skew_ms: int
    """The server's clock minus ours, less half the time of the question."""


async def inspect(url: str | None) -> Facts:
    """Look at a store without changing it. Raises Unavailable and InvalidArgument only."""
    async with bare(url) as backend:
        refusal, warnings = "", list[str]()
        try:
            warnings = await check_server(backend, "accepted")
        except Incompatible as refused:
            refusal = str(refused)
        try:
            state = "absent" if judge(backend.library, await backend.loaded()) == "load" else "ok"
        except Incompatible as other:
            state = str(other)
        if backend.url.startswith("memory:"):
            return Facts(backend.url, "in this process", refusal, warnings, state, await backend.read_config(), 0)
        asked = time.time()
        seconds, micros = await backend.command("TIME")
        answered = time.time()
        skew = int(seconds) * 1000 + int(micros) // 1000 - round((asked + answered) / 2 * 1000)
        info = _info((await backend.command("INFO", "server")).decode())
        server = (
            f"Valkey {info['valkey_version']}"
            if "valkey_version" in info
            else f"Redis {info.get('redis_version', '?')}"
        )
        return Facts(backend.url, server, refusal, warnings, state, await backend.read_config(), skew)


def _info(text: str) -> dict[str, str]:
    return dict(line.split(":", 1) for line in text.splitlines() if ":" in line and not line.startswith("#"))


# ---- commands ------------------------------------------------------------------------------------------


@click.group(cls=Group)
def library() -> None:
    """Show, load or upgrade the store's function library."""


@library.command()
@pass_settings
def status(settings: Settings) -> None:
    """Compare the store's library with this program's. Ends with 1 if they do not go together."""

    async def read() -> dict[str, Any]:
        async with bare(settings.store_url()) as backend:
            mine, theirs = backend.library, await backend.loaded()
            try:
                verdict = "absent" if judge(mine, theirs) == "load" else "ok"
            except Incompatible as other:
                verdict = str(other)
            return {
                "verdict": verdict,
                "version": mine.version,
                "sha": mine.sha,
                "functions": len(mine.signatures),
                "store_version": theirs.version if theirs else None,
                "store_sha": theirs.sha if theirs else None,
                "store_compatible_since": theirs.compatible_since if theirs else None,
            }

    record = run(read())
    settings.out().record(record, "library")
    if record["verdict"] != "ok":
        click.get_current_context().exit(1)


@library.command()
@pass_settings
def load(settings: Settings) -> None:
    """Load this program's library where there is none. Never over another."""
    _load(settings, replace=False)


@library.command()
@pass_settings
def upgrade(settings: Settings) -> None:
    """Replace the store's library with this program's. Refused over a newer one."""
    _load(settings, replace=True)


def _load(settings: Settings, *, replace: bool) -> None:
    async def load_it() -> tuple[Library, Any]:
        async with bare(settings.store_url()) as backend:
            return backend.library, await backend.load_library(replace=replace)

    mine, before = run(load_it())
    out = settings.out()
    changed = before is None or before.sha != mine.sha
    record = {
        "version": mine.version,
        "sha": mine.sha,
        "before_version": before.version if before else None,
        "changed": changed,
    }
    if out.json:
        return out.line(record)
    out.say(f"Library {mine.version} ({mine.sha}) " + ("is loaded now." if changed else "was there already."))
