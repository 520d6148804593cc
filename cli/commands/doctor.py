"""`ff doctor`: what must hold of a store before it is trusted with work, checked one by one.

The rule: a violation is something that loses, hides or stops work; it makes the exit code 1. What may be meant
so is a warning.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple

import click

from ..options import Command, Settings, pass_settings
from ..render import Column
from ..store import opened, run

if TYPE_CHECKING:
    from .library import Facts

SKEW_MAX_MS = 1_000
"""Delays and deadlines of clients count from their own clock."""
OVERDUE_MAX_MS = 5_000
"""The engine sweeps within about a second; a lease overdue for this long has nobody looking after it."""


class Finding(NamedTuple):
    """One check: which invariant, of what, how it stands."""

    invariant: str
    id: str
    detail: str
    level: Literal["ok", "warning", "violation"] = "ok"


@click.command(cls=Command)
@click.option(
    "--repair", is_flag=True, help="Load a missing library, create missing partitions, sweep what is overdue."
)
@pass_settings
def doctor(settings: Settings, repair: bool) -> None:
    """Check connection, settings, versions, clocks, partitions and overdue work. Ends with 1 on a violation."""
    if repair:
        run(_repair(settings))
    findings = run(examine(settings))
    out = settings.out()
    bad = [f for f in findings if f.level == "violation"]
    if out.json:
        for f in bad:
            out.line({"invariant": f.invariant, "id": f.id, "detail": f.detail})
        for f in findings:
            if f.level == "warning":
                click.echo(f"ff: warning: {f.detail}", err=True)
    else:
        columns = [
            Column("level", "state"),
            Column("invariant", "check"),
            Column("id", "of"),
            Column("detail", "detail"),
        ]
        out.rows([f._asdict() for f in findings], columns)
        out.say(f"{len(bad)} violations." if bad else "No violations.")
    if bad:
        click.get_current_context().exit(1)


async def examine(settings: Settings) -> list[Finding]:
    """Every check, in the order in which they depend on each other."""
    from ffcore.errors import Unavailable

    from .library import inspect

    try:
        facts = await inspect(settings.store_url())
    except Unavailable as away:
        return [Finding("connection", "store", str(away), "violation")]
    if facts.config is None and facts.url.startswith(("embedded://", "memory://")):
        # Such a store makes its partitions and loads its library when it is first used.
        return [Finding("connection", facts.url, f"{facts.server}, empty: it initialises itself when it is first used")]
    found = _server(facts)
    if facts.config is None:
        return [*found, Finding("partitions_present", facts.url, "not initialised: run `ff init`", "violation")]
    if facts.library == "ok" and not facts.refusal:
        found += await _partitions(settings)
    return found


def _server(facts: Facts) -> list[Finding]:
    found = [Finding("connection", facts.url, facts.server)]
    found.append(
        Finding("configuration", facts.url, facts.refusal, "violation")
        if facts.refusal
        else Finding("configuration", facts.url, "nothing is evicted")
    )
    found += [Finding("configuration", facts.url, text, "warning") for text in facts.warnings]
    off = abs(facts.skew_ms) > SKEW_MAX_MS
    skew = f"the server's clock is {facts.skew_ms} ms ahead of ours" + (": set both by NTP" if off else "")
    found.append(Finding("clock_skew", facts.url, skew, "violation" if off else "ok"))
    if facts.library == "ok":
        found.append(Finding("library", facts.url, "the store and this program go together"))
    else:
        told = "no library is loaded: run `ff library load`" if facts.library == "absent" else facts.library
        found.append(Finding("library", facts.url, told, "violation"))
    return found


async def _partitions(settings: Settings) -> list[Finding]:
    from ffcore.contracts.reads import ListLeasesArgs
    from ffcore.contracts.upkeep import Header, ReadHeaderArgs
    from ffcore.errors import EngineError

    found: list[Finding] = []
    async with opened(settings) as backend:
        keys = [key for family in ("fp", "b", "q", "w") for key in backend.config.keys(family)]
        headers = await backend.call_all([ReadHeaderArgs(partition=key) for key in keys])
        counts: set[str] = set()
        for key, header in zip(keys, headers, strict=True):
            if isinstance(header, EngineError):
                found.append(Finding("partitions_present", key, f"{header}; run `ff doctor --repair`", "violation"))
            else:
                assert isinstance(header, Header)
                counts.add(header.fields.get("counts", ""))
        if len(counts) > 1:
            found.append(
                Finding(
                    "partitions_agree", backend.url, f"headers name different counts: {sorted(counts)}", "violation"
                )
            )
        if not found:
            found.append(Finding("partitions_present", backend.url, f"all {len(keys)}"))
        overdue = await backend.call_all(
            [ListLeasesArgs(partition=key, expired_only=True, limit=1_000) for key in backend.config.keys("fp")]
        )
        late = 0
        for answer in overdue:
            if isinstance(answer, EngineError):
                continue  # its partition is reported above
            for lease in answer.items:
                if (by_ms := answer.now_ms - lease.lease_expires_at) > OVERDUE_MAX_MS:
                    late += 1
                    told = f"its lease ran out {by_ms / 1000:.0f} s ago: run a worker or `ff engine run`"
                    found.append(Finding("expired_leases_swept", lease.execution_id, told, "violation"))
        if not late:
            found.append(Finding("expired_leases_swept", backend.url, "none is overdue"))
    return found


async def _repair(settings: Settings) -> None:
    from .engine import sweep
    from .library import initialise, inspect

    facts = await inspect(settings.store_url())
    if facts.refusal or facts.library not in ("ok", "absent"):
        return  # nothing to repair from here: the findings name the remedy
    if facts.config is None:
        return  # whether the store is the right one to initialise is not a doctor's guess
    await initialise(settings.store_url(), None)
    async with opened(settings) as backend:
        await sweep(backend, "ff-doctor")
