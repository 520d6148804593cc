"""Who is there, and which tasks they know: worker registry and task descriptors. This engine's own."""

from __future__ import annotations

import msgspec

from ffcore.args import Args, Outcome, Row
from ffcore.ids import PartitionKey, TimestampMs, WorkerInstanceId


class Registered(Outcome, tag="registered"):
    now_ms: TimestampMs


class RegisterWorkerArgs(Args[Registered]):
    """Say that a worker is alive for `ttl_ms` more; 0 says that it leaves. `info` is JSON, at most 16 KiB."""

    partition: PartitionKey
    worker_instance_id: WorkerInstanceId
    info: bytes
    ttl_ms: int


class ListedWorker(Row):
    worker_instance_id: WorkerInstanceId
    alive_until: TimestampMs
    info: bytes
    seen_at: TimestampMs = TimestampMs(0)
    """Its last sign of life; 0: not known."""


class Workers(Outcome, tag="workers"):
    items: list[ListedWorker]
    cursor: str


class ListWorkersArgs(Args[Workers]):
    partition: PartitionKey
    after: str | None = None
    limit: int = 100
    dead: bool = False
    """Those that gave no sign of life in time, within the last hour, instead of those that are alive."""


class TaskRow(Row):
    task: str
    version: int
    descriptor: bytes


class Published(Outcome, tag="published"):
    count: int


class PublishTasksArgs(Args[Published]):
    """Publish task descriptors (JSON, at most 16 KiB each); the newest version of a name wins."""

    partition: PartitionKey
    items: list[TaskRow]


class Tasks(Outcome, tag="tasks"):
    items: list[TaskRow]


class ListTasksArgs(Args[Tasks]):
    """Descriptors by name; no names: all, up to 1,000."""

    partition: PartitionKey
    names: list[str] = msgspec.field(default_factory=list[str])


class Announced(Outcome, tag="announced"):
    count: int
    """Executions that were blocked as unknown and are ready now."""


class AnnounceTasksArgs(Args[Announced]):
    """Tell an execution partition which tasks a starting worker brings, as ``name@version``."""

    partition: PartitionKey
    tasks: list[str]
