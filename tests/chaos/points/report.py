"""What a run of points prints."""

from __future__ import annotations

from collections import Counter

import msgspec

from tests.chaos.points.plan import Size
from tests.chaos.verify import Wrong

SHOWN = 20


class Report(msgspec.Struct, kw_only=True):
    """Spans are seconds unless the name says ms."""

    size: Size
    ok: bool
    library: str
    seconds: float
    points: int
    kills: int
    fewest: int
    """Kills at the point that was met least."""
    beside: int
    jobs: int
    claims: int
    children: int
    hatched: int
    """Leases of these."""
    bodies: int
    """Functions of steps begun."""
    repeated: int
    """Of these, begun again because they had not been recorded."""
    rerun: int
    interrupted: int
    """Steps begun at most once of which nobody knows how they ended: the handler was told so."""
    stalled: int
    signals: int
    frames: int
    violations: dict[str, int]
    checker_passes: int
    recovery_ms: dict[str, float]
    wrong: list[Wrong]


def table(report: Report) -> str:
    """As docs/chaos.md keeps it."""
    took = report.recovery_ms
    rows: list[tuple[str, object]] = [
        ("points at which a worker dies", report.points),
        ("SIGKILLs, each by the worker itself at its point", f"{report.kills}, at least {report.fewest} at each"),
        ("other jobs those workers held", report.beside),
        ("jobs", f"{report.jobs} in {report.seconds:.0f} s, leased {report.claims} times"),
        ("children, each spawned once and ended once", f"{report.children}, leased {report.hatched} times"),
        ("functions of steps begun", f"{report.bodies}, {report.repeated} of them again: not recorded before the kill"),
        ("**recorded steps that ran again**", report.rerun),
        ("at_most_once steps interrupted, and told so", report.interrupted),
        ("signals answered, frames acknowledged", f"{report.signals}, {report.frames}"),
        ("**violations of invariants**", ", ".join(f"{n} {i}" for i, n in sorted(report.violations.items())) or "0"),
        ("passes of the checker", report.checker_passes),
        ("kill to claimed again", f"p50 {took['p50']:.0f} ms, p99 {took['p99']:.0f} ms, of {took['n']:.0f}"),
    ]
    if report.stalled:
        rows.append(("steps begun by a worker that did not know yet that its lease was lost", report.stalled))
    width = max(len(name) for name, _ in rows)
    lines = [f"| {'figure':{width}} | value |", f"| {'-' * width} | --- |"]
    return "\n".join([*lines, *(f"| {name:{width}} | {value} |" for name, value in rows)])


def complaints(report: Report, book: dict[str, list[str]]) -> str:
    """Everything that is wrong; book: what stands there of the executions it is about."""
    sorts = Counter(wrong.sort for wrong in report.wrong)
    lines = [f"WRONG: {', '.join(f'{n} {sort}' for sort, n in sorts.most_common())}"]
    shown: set[str] = set()
    for wrong in report.wrong[:SHOWN]:
        lines.append(f"  {wrong.sort}: {wrong.id} {wrong.what}".replace("  ", " "))
        if wrong.id not in shown:
            shown.add(wrong.id)
            lines += [f"      {line}" for line in book.get(wrong.id, ())]
    if len(report.wrong) > SHOWN:
        lines.append(f"  ... and {len(report.wrong) - SHOWN} more")
    return "\n".join(lines)
