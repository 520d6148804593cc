"""`ff doctor`: what must hold of a store, checked one by one: its server, its library, its partitions, its records.

The rule: a violation is something that loses, hides or stops work; it makes the exit code 1. What may be meant
so is a warning. Nothing is changed before the person has seen what would be, or has said --yes.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import click

from ..options import Command, Settings, pass_settings
from ..render import Column
from ..store import opened, run

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffengine.check import Violation

    from ..render import Out
    from .library import Facts

SKEW_MAX_MS = 1_000
"""Delays and deadlines of clients count from their own clock."""
ROUNDS_MAX = 3
"""Of repairs: one may uncover another."""
OVERDUE_MAX_MS = 5_000
"""The engine sweeps within about a second; a lease overdue for this long has nobody looking after it."""


LOAD, CREATE, SWEEP = "load the library", "create the partition", "do what is due"

ADVICE = {
    "I1": "`ff job show` it; cancel it or purge it, and submit it again",
    "I2": "`ff job show` it; cancel it, and submit it again",
    "I3": "look at the key; whoever wrote it knows more than the store",
    "I4": "`ff lease revoke` or cancel it, and submit it again",
    "I5": "a newer release may have set it: run one",
    "I6": "pause the lane until fewer run, and come back",
    "I7": "what the log says of earlier attempts is lost; the job itself goes on",
    "I8": "two workers may have run it: compare what they did",
    "I9": "its result cannot be made up: replay it, or submit it again",
    "I10": "submit it again: nothing here says what it was",
    "I17": "the record is the truth; whoever follows the feed should read the record",
    "I18": "delete by hand what is not ours; submit a job without a payload again",
    "I19": "it was written by hand: delete it",
    "I20": "time that ran ahead catches up with it; set the clocks by NTP",
    "I21": "run `ff library upgrade` against every primary",
}
"""What a person can do about a violation that no repair mends."""


class Finding(NamedTuple):
    """One check: which invariant, of what, how it stands."""

    invariant: str
    id: str
    detail: str
    level: Literal["ok", "warning", "violation"] = "ok"
    repair: str = ""
    """What --repair would do; empty: nothing."""
    violation: Violation | None = None
    """Where it came from, when the checker found it."""


@click.command(cls=Command)
@click.option("--repair", is_flag=True, help="Show what can be put right, and do it when told to.")
@click.option("--yes", is_flag=True, help="With --repair: do not ask.")
@pass_settings
def doctor(settings: Settings, repair: bool, yes: bool) -> None:
    """Check connection, settings, versions, clocks, partitions, and every record against its indexes and timers.

    May run while the store is at work. Ends with 1 on a violation."""
    if yes and not repair:
        raise click.UsageError("--yes goes with --repair")
    findings = run(examine(settings))
    out = settings.out()
    if repair and _plan(out, findings) and _agreed(out, yes):
        run(_apply(settings, findings))
        findings = run(examine(settings))
    bad = [f for f in findings if f.level == "violation"]
    if out.json:
        for f in bad:
            line = {"invariant": f.invariant, "id": f.id, "detail": f.detail}
            out.line({**line, "repair": f.repair or None} if repair else line)
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
        out.say(_verdict(bad))
    if bad:
        click.get_current_context().exit(1)


def _verdict(bad: Sequence[Finding]) -> str:
    if not bad:
        return "No violations."
    mends = sum(bool(f.repair) for f in bad)
    lines = [f"{len(bad)} violations" + (f", {mends} of which `ff doctor --repair` can put right." if mends else ".")]
    for invariant in sorted({f.invariant for f in bad if not f.repair and f.invariant in ADVICE}):
        lines.append(f"{invariant}: {ADVICE[invariant]}.")
    return "\n".join(lines)


def _plan(out: Out, findings: Sequence[Finding]) -> bool:
    """Show what would be done; whether there is anything."""
    todo = [f for f in findings if f.repair]
    if not out.json and todo:
        out.rows(
            [f._asdict() for f in todo], [Column("invariant", "check"), Column("id", "of"), Column("repair", "repair")]
        )
    return bool(todo)


def _agreed(out: Out, yes: bool) -> bool:
    """Whether to go on. Where nobody can be asked, only --yes says so."""
    return yes or (not out.json and sys.stdin.isatty() and click.confirm("Do this?", err=True))


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
    from .library import HIDDEN

    found = [Finding("connection", facts.url, facts.server)]
    if facts.refusal:
        found.append(Finding("configuration", facts.url, facts.refusal, "violation"))
    elif not any(HIDDEN in text for text in facts.warnings):
        found.append(Finding("configuration", facts.url, "nothing is evicted"))
    found += [Finding("configuration", facts.url, text, "warning") for text in facts.warnings]
    off = abs(facts.skew_ms) > SKEW_MAX_MS
    skew = f"the server's clock is {facts.skew_ms} ms ahead of ours" + (": set both by NTP" if off else "")
    found.append(Finding("clock_skew", facts.url, skew, "violation" if off else "ok"))
    if facts.library == "ok":
        found.append(Finding("library", facts.url, "the store and this program go together"))
    else:
        told = "no library is loaded: run `ff library load`" if facts.library == "absent" else facts.library
        # Whether the store is the right one to initialise is not a doctor's guess.
        mends = facts.library == "absent" and not facts.refusal and facts.config is not None
        found.append(Finding("library", facts.url, told, "violation", LOAD if mends else ""))
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
                found.append(Finding("partitions_present", key, str(header), "violation", CREATE))
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
                    found.append(Finding("expired_leases_swept", lease.execution_id, told, "violation", SWEEP))
        if not late:
            found.append(Finding("expired_leases_swept", backend.url, "none is overdue"))
        present = [key for key, header in zip(keys, headers, strict=True) if not isinstance(header, EngineError)]
        found += await _invariants(backend, present)
    return found


async def _invariants(backend: Backend, partitions: Sequence[Any]) -> list[Finding]:
    """The checker over these partitions."""
    from ffengine.check import violations

    found = await violations(backend, partitions=partitions)
    if not found:
        return [Finding("invariants", backend.url, "every record agrees with its indexes, timers and feed")]
    return [Finding(v.invariant, v.id, v.detail, "violation", v.remedy, v) for v in found]


async def _apply(settings: Settings, findings: Sequence[Finding]) -> None:
    """Do what the plan said, and nothing else."""
    from ffengine.check import violations

    from .engine import sweep
    from .library import initialise

    if any(f.repair in (LOAD, CREATE) for f in findings):
        await initialise(settings.store_url(), None)
    async with opened(settings) as backend:
        if any(f.repair == SWEEP for f in findings):
            await sweep(backend, "ff-doctor")
        wanted = [f.violation for f in findings if f.violation is not None and f.repair]
        for _ in range(ROUNDS_MAX):
            if not wanted:
                return
            await _repair(backend, wanted)
            # A record that is back in its place may show that a count was right after all, or wrong.
            known = {(v.invariant, v.id) for v in wanted}
            wanted = [v for v in await violations(backend) if v.remedy and (v.invariant, v.id) in known]


async def _repair(backend: Backend, wanted: Sequence[Violation]) -> None:
    from ffcore.contracts.check import RepairArgs

    # Records first, then what points at them, then what is counted.
    for v in sorted(wanted, key=lambda v: (("", ":", " ").index(v.object[:1]), v)):
        await backend.call(RepairArgs(partition=v.partition, object=v.object or v.id, invariant=v.invariant))
