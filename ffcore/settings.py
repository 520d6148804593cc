"""What a record of settings becomes on its way to the partitions; shared by who changes one and by the ticker."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from ffcore import wire
from ffcore.contracts.settings import ApplySettingsArgs, Settings, SettingsRow
from ffcore.ids import PartitionKey

REGISTRY: Final = PartitionKey("{w:0}")
"""Where the records stand."""


def lane_name(lane: str) -> str:
    """The record's name of a lane."""
    return f"lane:{lane}"


def weights_name(lane: str) -> str:
    """The record's name of its fairness weights."""
    return f"weights:{lane}"


STORE: Final = "store"


def applying(record: Settings | SettingsRow, partition: PartitionKey, since: int | None = None) -> ApplySettingsArgs:
    """The call that brings one record to one partition. `since` None: only its own revision is known of."""
    return ApplySettingsArgs(
        partition=partition, name=record.name, revision=record.revision,
        since=record.revision - 1 if since is None else since, values=wire.pack_pairs(record.values),
    )  # fmt: skip


def catching_up(records: Iterable[SettingsRow], partition: PartitionKey, reached: int) -> list[ApplySettingsArgs]:
    """The calls that bring a partition which has everything up to `reached` all that came later, in their order."""
    calls: list[ApplySettingsArgs] = []
    for record in records:
        calls.append(applying(record, partition, since=reached))
        reached = record.revision
    return calls
