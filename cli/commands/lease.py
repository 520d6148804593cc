"""`ff lease`: who holds what, and taking it away."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ..options import Group, Settings, pass_settings
from ..render import Column, ago, instant
from ..store import execution_id as checked
from ..store import opened, run

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.contracts.lease import RevokeLeaseResult


@click.group(cls=Group)
def lease() -> None:
    """List leases; take one away."""


@lease.command("list")
@click.option("--expired", is_flag=True, help="Only those that have run out and were not swept yet.")
@click.option("--lane")
@click.option("--limit", type=click.IntRange(1, 1_000), default=1_000, show_default=True, help="Per partition.")
@pass_settings
def list_(settings: Settings, expired: bool, lane: str | None, limit: int) -> None:
    """List leases, the one that runs out first on top."""
    from ffcore.contracts.reads import Leases, ListLeasesArgs
    from ffcore.ids import LaneId, PartitionKey

    async def pages_of(backend: Backend, partition: PartitionKey) -> list[Leases]:
        pages: list[Leases] = []
        found, cursor = 0, None
        while found < limit:
            page = await backend.call(
                ListLeasesArgs(
                    partition=partition, lane_id=LaneId(lane) if lane else None, expired_only=expired,
                    limit=limit - found, cursor=cursor,
                )
            )  # fmt: skip
            pages.append(page)
            found, cursor = found + len(page.items), page.cursor
            if not cursor:
                break
        return pages

    async def read() -> list[Leases]:
        async with opened(settings) as backend:
            return [page for key in backend.config.keys("fp") for page in await pages_of(backend, key)]

    pages = run(read())
    now_ms = max(page.now_ms for page in pages)
    rows: list[dict[str, Any]] = [
        {
            "execution_id": r.execution_id,
            "lane": r.lane_id,
            "worker": r.worker_instance_id,
            "lease_id": r.lease_id,
            "epoch": r.lease_epoch,
            "attempt": r.attempt_index,
            "expires_at": instant(r.lease_expires_at),
            "expired": r.lease_expires_at <= page.now_ms,
            "heard": r.heard,
        }
        for page in pages
        for r in page.items
    ]
    rows.sort(key=lambda row: (row["expires_at"] or "", row["execution_id"]))
    columns = [
        Column("execution_id", "id"),
        Column("lane", "lane"),
        Column("worker", "worker"),
        Column("attempt", "attempt", right=True),
        Column("epoch", "epoch", right=True),
        Column("expires_at", "runs out", ago(now_ms)),
    ]
    settings.out().rows(rows, columns, empty="No lease has run out unswept." if expired else "Nobody holds a lease.")


@lease.command()
@click.argument("execution_id", metavar="ID")
@click.option("--reason", default="revoked by an operator", show_default=True)
@pass_settings
def revoke(settings: Settings, execution_id: str, reason: str) -> None:
    """Take a running job from its worker; it is claimable at once and nothing counts against it."""
    from ffcore.contracts.lease import Revoked, RevokeLeaseArgs
    from ffcore.ids import WorkerInstanceId

    async def change() -> RevokeLeaseResult:
        async with opened(settings) as backend:
            # No instance named: whoever holds it.
            return await backend.call(
                RevokeLeaseArgs(
                    execution_id=checked(execution_id, backend), worker_instance_id=WorkerInstanceId(""), reason=reason
                )
            )

    answer = run(change())
    out = settings.out()
    why = None if isinstance(answer, Revoked) else answer.reason
    if out.json:
        return out.line({"execution_id": execution_id, "answer": why or "revoked"})
    out.say(f"{execution_id} " + (f"has no lease to take: {why}." if why else "is taken from its worker."))
