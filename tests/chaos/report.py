"""What a chaos run prints: a table, and where something is wrong, the ids with their histories."""

from __future__ import annotations

from collections import Counter

import msgspec

from tests.chaos.feed import Feed
from tests.chaos.plan import KINDS, Size
from tests.chaos.verify import Wrong

SHOWN: int = 20
"""Violations printed in full; the rest is counted."""


class Report(msgspec.Struct, kw_only=True):
    """What happened. Spans are seconds unless the name says ms."""

    size: Size
    ok: bool
    library: str
    seconds: float
    drained_s: float
    """From the last fault until the last job had ended."""
    jobs: int
    jobs_per_s: float
    ended: dict[str, int]
    flows: int
    flows_ended: dict[str, int]
    members: int
    members_ended: dict[str, int]
    children_ended: dict[str, int]
    handler_runs: int
    overlapping_runs: int
    faults: dict[str, int]
    missed: list[str]
    poisoned_kills: int
    kills_with_leases: int
    pauses_with_losses: int
    outage_s: float
    graces: int
    coverage: dict[str, int]
    refused_late: int
    lost: int
    duplicated: int
    violations: dict[str, int]
    checker_passes: int
    requeued_ms: dict[str, float]
    recovery_ms: dict[str, float]
    recovery_apart_ms: dict[str, float]
    disk: str
    wrong: list[Wrong]


def table(report: Report) -> str:
    """The report as Markdown, as docs/chaos.md keeps it."""
    rows: list[tuple[str, object]] = [
        ("jobs submitted and acknowledged", report.jobs),
        ("... alone", _words(report.ended)),
        ("... in flows", f"{report.members} in {report.flows} flows: {_words(report.members_ended)}"),
        ("... spawned by these", _words(report.children_ended)),
        ("flows ended", _words(report.flows_ended)),
        ("runs of handlers", f"{report.handler_runs}, {report.overlapping_runs} beside a run of the same job"),
        ("jobs per second", f"{report.jobs_per_s:.1f} over {report.seconds:.0f} s"),
    ]
    rows += [(f"fault: {KINDS[kind]}", report.faults.get(kind, 0)) for kind in KINDS]
    rows += [
        ("fault: poisoned job kills its worker", report.poisoned_kills),
        ("kills of workers that held leases", report.kills_with_leases),
        ("stopped workers that lost leases", report.pauses_with_losses),
        ("server away", f"{report.outage_s:.1f} s in all, {report.graces} graces given"),
        ("met", ", ".join(f"{name} {n}" for name, n in report.coverage.items())),
        ("reports without a lease, refused", report.refused_late),
        ("**lost**", report.lost),
        ("**completed twice, or by two**", report.duplicated),
        ("**violations of invariants**", _counted(report.violations)),
        ("passes of the checker", report.checker_passes),
        ("kill to requeued", _quantiles(report.requeued_ms)),
        ("**kill to claimed again**", _quantiles(report.recovery_ms)),
        ("... across an outage or its grace, counted apart", _quantiles(report.recovery_apart_ms)),
        ("full disk", report.disk),
        ("drained after the last fault", f"{report.drained_s:.1f} s"),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"| {'figure':{width}} | value |", f"| {'-' * width} | --- |"]
    return "\n".join([*lines, *(f"| {name:{width}} | {value} |" for name, value in rows)])


def complaints(report: Report, feed: Feed | None) -> str:
    """Everything that is wrong, with the histories of the executions it is about."""
    if not report.wrong:
        return ""
    sorts = Counter(wrong.sort for wrong in report.wrong)
    lines = [f"WRONG: {', '.join(f'{n} {sort}' for sort, n in sorts.most_common())}"]
    for wrong in report.wrong[:SHOWN]:
        lines.append(f"  {wrong.sort}: {wrong.id} {wrong.what}".replace("  ", " "))
        if feed is not None and wrong.id:
            lines += [f"      {move}" for move in feed.moves.get(wrong.id, ())]
    if len(report.wrong) > SHOWN:
        lines.append(f"  ... and {len(report.wrong) - SHOWN} more")
    return "\n".join(lines)


def _words(found: dict[str, int]) -> str:
    return ", ".join(f"{n} {state}" for state, n in sorted(found.items())) or "none"


def _counted(found: dict[str, int]) -> str:
    return ", ".join(f"{n} {name}" for name, n in sorted(found.items())) or "0"


def _quantiles(found: dict[str, float]) -> str:
    if not found.get("n"):
        return "none"
    return f"p50 {found['p50']:.0f} ms, p99 {found['p99']:.0f} ms, most {found['max']:.0f} ms, of {found['n']:.0f}"
