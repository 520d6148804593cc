"""The few keys and channels that reads and subscriptions need in Python; `lua/shared/keys.lua` has all.

A test holds the two together.
"""

from __future__ import annotations

from typing import Final

from ffcore.ids import ExecutionId, PartitionKey, partition_of, uuid_of

CONFIG: Final = "ff:config"
"""Hash: how many partitions each family has, fixed by `ff init`."""


def header(partition: str) -> str:
    return f"ff:{partition}"


def pair(partition: str) -> tuple[str, str]:
    """The KEYS of a call: a key that always exists and one that never does, both with the partition's tag.

    With only existing keys declared, a legacy slot migration lets a function fail half-way; with this
    pair the server answers TRYAGAIN or ASK before the first instruction.
    """
    return (f"ff:{partition}", f"ff:{partition}:absent")


def worker_channel(partition: PartitionKey, name: str) -> str:
    return f"ff:{partition}:w:{name}"


def client_channel(partition: PartitionKey, name: str) -> str:
    return f"ff:{partition}:c:{name}"


def stream_channel(execution_id: ExecutionId) -> str:
    return f"ff:{partition_of(execution_id)}:s:{uuid_of(execution_id)}"


def ticker_channel(partition: PartitionKey) -> str:
    return f"ff:{partition}:tick"
