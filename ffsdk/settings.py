"""What operators set, for a lane or for the whole store: one record with a revision, copied to every partition.

A change is one call to the registry and a fan-out. A partition that is not reached keeps the old values until a worker
or an engine has looked after it, a second later if it can be reached again; `FanOut.not_reached` names it.
"""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import msgspec

from ffcore import settings as names
from ffcore.ids import LaneId
from ffsdk.fanout import ask_all, change_all
from ffsdk.times import from_ms
from ffsdk.views import FanOut

if TYPE_CHECKING:
    from ffcore.backend import Backend
    from ffcore.contracts.settings import SettingsRow


class LaneSettings(msgspec.Struct, frozen=True, kw_only=True):
    """A lane as it was set. Spans are seconds; 0 is no bound."""

    lane: str
    state: str
    aged: int
    """Seconds of waiting a point of priority is worth; 0: strict, higher priorities always go first."""
    keep_age: float
    keep_count: int
    keep_bytes: int
    """What is kept of ended jobs in the whole store."""
    max_count: int
    """Submits are refused while so many jobs stand in line."""
    max_bytes: int
    """Or so many bytes of payload of jobs that have not ended."""
    concurrency: int
    """Its jobs that may run at once, in the whole store."""
    rate: tuple[int, float] | None
    """How many may start in any window, and its seconds; None: any number."""
    revision: int
    """0: nobody has ever set anything."""
    changed_at: datetime | None
    behind: list[str]
    """Partitions that have not heard of it yet, or could not be asked."""


class StoreSettings(msgspec.Struct, frozen=True, kw_only=True):
    """What holds for the whole store."""

    gate_pct: int
    """Submits are refused while the server uses this share of its maxmemory; 0: never for that reason."""
    gate_bytes: int
    """The same in bytes; 0: no such bound."""
    revision: int
    changed_at: datetime | None
    behind: list[str]


async def change(backend: Backend, name: str, changes: dict[str, object], revision: int | None = None) -> FanOut:
    """Change a record and tell every partition. Raises Conflict if `revision` is given and no longer the latest,
    InvalidRequest for values that cannot be; then nothing has changed."""
    from ffcore import wire
    from ffcore.contracts.settings import PutSettingsArgs

    packed = wire.pack_pairs({key: str(value) for key, value in changes.items()})
    record = await backend.call(
        PutSettingsArgs(partition=names.REGISTRY, name=name, changes=packed, expected_revision=revision)
    )
    told = await change_all(backend, lambda partition: names.applying(record, partition))
    return msgspec.structs.replace(told, revision=record.revision)


async def _read(backend: Backend, name: str) -> tuple[SettingsRow | None, list[str]]:
    """A record, and the partitions that are not as far as it is."""
    from ffcore.contracts.settings import ListSettingsArgs
    from ffcore.contracts.upkeep import ReadHeaderArgs

    page = await backend.call(ListSettingsArgs(partition=names.REGISTRY, name=name))
    if not page.records:
        return None, []
    reached, failed = await ask_all(backend, lambda partition: ReadHeaderArgs(partition=partition))
    late = [p for p, header in reached.items() if int(header.fields.get("settings", "0")) < page.records[0].revision]
    return page.records[0], sorted([*late, *failed])


async def lane_settings(backend: Backend, lane: LaneId) -> LaneSettings:
    """What a lane was told; its defaults if nothing."""
    from ffcore import limits

    row, behind = await _read(backend, names.lane_name(lane))
    values = row.values if row is not None else {}
    concurrency, rate = await _quota_of(backend, values.get("quota", ""))
    return LaneSettings(
        lane=lane, state=values.get("state", "active"), aged=int(values.get("aged_s", "0")),
        keep_age=int(values.get("age_ms", limits.RETENTION_AGE_MS)) / 1000, keep_count=int(values.get("count", "0")),
        keep_bytes=int(values.get("bytes", "0")), max_count=int(values.get("max_count", "0")),
        max_bytes=int(values.get("max_bytes", "0")), concurrency=concurrency, rate=rate,
        revision=0 if row is None else row.revision,
        changed_at=None if row is None else from_ms(row.changed_at), behind=behind,
    )  # fmt: skip


async def _quota_of(backend: Backend, quota_id: str) -> tuple[int, tuple[int, float] | None]:
    """The limits of a lane's quota; none of one that somebody has deleted."""
    from ffcore.contracts.quota import ReadQuotaArgs
    from ffcore.errors import NotFound
    from ffcore.ids import QuotaPolicyId

    if not quota_id:
        return 0, None
    try:
        found = await backend.call(ReadQuotaArgs(quota_policy_id=QuotaPolicyId(quota_id)))
    except NotFound:
        return 0, None
    starts = found.max_requests_per_window
    return found.max_concurrent, (starts, float(found.window_seconds)) if starts else None


async def lane_weights(backend: Backend, lane: LaneId) -> dict[str, float]:
    """Fairness keys of a lane that do not weigh 1."""
    from ffcore.contracts.settings import ListSettingsArgs

    page = await backend.call(ListSettingsArgs(partition=names.REGISTRY, name=names.weights_name(lane)))
    return {key: float(weight) for row in page.records for key, weight in sorted(row.values.items())}


async def store_settings(backend: Backend) -> StoreSettings:
    """What the whole store was told; its defaults if nothing."""
    from ffcore import limits

    row, behind = await _read(backend, names.STORE)
    values = row.values if row is not None else {}
    return StoreSettings(
        gate_pct=int(values.get("gate_pct", limits.GATE_PCT)), gate_bytes=int(values.get("gate_bytes", "0")),
        revision=0 if row is None else row.revision, changed_at=None if row is None else from_ms(row.changed_at),
        behind=behind,
    )  # fmt: skip
