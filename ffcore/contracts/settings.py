"""Settings: what operators say of a lane or of the whole store, under one rising revision. This engine's own.

The records stand in ``{w:0}``; every partition has a copy in its header. Names are ``lane:<name>``,
``weights:<name>`` (of a lane's fairness keys) and ``store``; which values each has, and what they mean, is written in
`lua/settings.lua`.
"""

from __future__ import annotations

from ffcore.args import Args, Outcome, Row
from ffcore.ids import PartitionKey, TimestampMs


class Settings(Outcome, tag="settings"):
    """A record as it stands now."""

    name: str
    revision: int
    changed_at: TimestampMs
    values: dict[str, str]
    """All of them, also those at their default."""
    changed: bool
    """False: the values were there already."""


class PutSettingsArgs(Args[Settings]):
    """Change some values of a record in ``{w:0}``. Partitions hear of it by `ApplySettingsArgs`."""

    partition: PartitionKey
    name: str
    changes: bytes
    """`ffcore.wire.pack_pairs`; values left out stay."""
    expected_revision: int | None = None
    """Only if the record is still at this revision; else `revision_conflict`. 0: there is no record yet."""


class SettingsRow(Row):
    name: str
    revision: int
    changed_at: TimestampMs
    values: dict[str, str]


class SettingsPage(Outcome, tag="settings_page"):
    records: list[SettingsRow]
    """By revision, oldest change first; fewer than asked for where they are large: ask on from the last one."""
    revision: int
    """Of the store: that of the latest change."""


class ListSettingsArgs(Args[SettingsPage]):
    """Records of ``{w:0}`` changed after a revision, or the one of a name."""

    partition: PartitionKey
    name: str | None = None
    after_revision: int = 0
    limit: int = 1000


class SettingsApplied(Outcome, tag="settings_applied"):
    changed: bool
    """False: the partition had this revision, or a later one."""
    reached: int
    """Everything up to this revision is known here."""


class ApplySettingsArgs(Args[SettingsApplied]):
    """Copy a record to one partition. `since`: no record stands between that revision and this one."""

    partition: PartitionKey
    name: str
    revision: int
    since: int
    values: bytes
    """All of them, `ffcore.wire.pack_pairs`."""
