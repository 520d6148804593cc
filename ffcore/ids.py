"""Identifiers: how they look, how they are minted, which partition they live in.

An execution id is ``{fp:N}:<uuid>`` and routes itself: the braces are the cluster hash tag, so every
key of an execution lives in one slot. With a key the id is a pure function of (kind, namespace, key),
which is what makes every keyed submit repeatable.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from binascii import crc_hqx
from typing import Final, NewType

from ffcore.errors import InvalidArgument

ExecutionId = NewType("ExecutionId", str)
FlowId = NewType("FlowId", str)
BudgetId = NewType("BudgetId", str)
QuotaPolicyId = NewType("QuotaPolicyId", str)
ScheduleId = NewType("ScheduleId", str)
LaneId = NewType("LaneId", str)
Namespace = NewType("Namespace", str)
WorkerId = NewType("WorkerId", str)
WorkerInstanceId = NewType("WorkerInstanceId", str)
LeaseId = NewType("LeaseId", str)
LeaseEpoch = NewType("LeaseEpoch", int)
AttemptId = NewType("AttemptId", str)
AttemptIndex = NewType("AttemptIndex", int)
SuspensionId = NewType("SuspensionId", str)
WaitpointId = NewType("WaitpointId", str)
WaitpointToken = NewType("WaitpointToken", str)
SignalId = NewType("SignalId", str)
EdgeId = NewType("EdgeId", str)
PartitionKey = NewType("PartitionKey", str)
TimestampMs = NewType("TimestampMs", int)

_VARIANT: Final = {f"{n:x}": "89ab"[n & 3] for n in range(16)}
"""A random digit as the one that carries a uuid's variant."""
_ENDINGS: Final = [b"%02x" % (n & 255) for n in range(512)]
"""All endings of two digits, twice, so that a walk may begin anywhere."""
_PARTITION: Final = r"\{(fp|b|q|w):(0|[1-9][0-9]{0,4})\}"
"""One spelling each: with \\d or leading zeros, other texts would name a partition that no key of the store has."""
_ID: Final = re.compile(_PARTITION + r":([0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12})")
_PARTITION_KEY: Final = re.compile(_PARTITION)
_NAME: Final = re.compile(r"[A-Za-z0-9_.:/@+=,~-]{1,128}")
_TAG_KEY: Final = re.compile(r"[a-z][a-z0-9_]*\.[A-Za-z0-9_.-]{1,127}")
"""The seed's rule: a lower-case namespace, a dot, and a name (`shop.tenant`)."""


def crc16(data: bytes) -> int:
    """The cluster's hash of a tag (CRC16/XMODEM)."""
    return crc_hqx(data, 0)


def slot_of(partition: str) -> int:
    """Cluster slot of a partition key such as ``{fp:3}``."""
    return crc16(partition.strip("{}").encode()) % 16384


def partition_key(index: int, family: str = "fp") -> PartitionKey:
    return PartitionKey(f"{{{family}:{index}}}")


def partition_of(any_id: str) -> PartitionKey:
    """The partition an id routes to."""
    return PartitionKey(any_id[: any_id.index("}") + 1])


def partition_index(partition: str) -> int:
    return int(partition[partition.index(":") + 1 : -1])


def uuid_of(any_id: str) -> str:
    return any_id[any_id.index("}") + 2 :]


def check_id(value: str, *, partitions: int | None = None, family: str = "fp") -> str:
    """Return the id, or raise InvalidArgument: never let user text near a hash tag unchecked."""
    match = _ID.fullmatch(value) if isinstance(value, str) else None
    if match is None or match[1] != family:
        raise InvalidArgument(f"{value!r:.80} is not an id of the form {{{family}:N}}:<uuid>")
    if partitions is not None and int(match[2]) >= partitions:
        raise InvalidArgument(f"{value} names partition {match[2]}, the store has {partitions}")
    return value


def check_together(first: str, *others: str) -> None:
    """Ids that one call must find in one partition: a flow and its members."""
    home = partition_of(check_id(first))
    for other in others:
        if partition_of(check_id(other)) != home:
            raise InvalidArgument(
                f"{other} lives in another partition than {first}: create members with an id of their flow's partition"
            )


def check_partition(value: str) -> PartitionKey:
    if not isinstance(value, str) or not _PARTITION_KEY.fullmatch(value):
        raise InvalidArgument(f"{value!r:.80} is not a partition key of the form {{fp:N}}")
    return PartitionKey(value)


def check_name(value: str, what: str) -> str:
    """Lane, task, namespace, worker: an allow-list without braces, white space or control characters."""
    if not isinstance(value, str) or not _NAME.fullmatch(value):
        raise InvalidArgument(f"{what} {value!r:.80}: use 1 to 128 of A-Z a-z 0-9 _ . : / @ + = , ~ -")
    return value


def is_tag_key(value: str) -> bool:
    return isinstance(value, str) and len(value) <= 128 and _TAG_KEY.fullmatch(value) is not None


def uuid7() -> str:
    """A time-ordered random id (Python 3.11 has none in its standard library)."""
    head, tail = f"{time.time_ns() // 1_000_000:012x}", os.urandom(10).hex()
    return f"{head[:8]}-{head[8:]}-7{tail[:3]}-{_VARIANT[tail[3]]}{tail[4:7]}-{tail[7:19]}"


def uuid8(seed: bytes) -> str:
    """A deterministic id: version and variant set, the rest from sha256."""
    return derived_uuid(seed, "8")


def derived_uuid(seed: bytes, version: str) -> str:
    """The same with another digit for the version: `8` says that the id stands for a key (`is_keyed`)."""
    raw = hashlib.sha256(seed).hexdigest()
    return f"{raw[:8]}-{raw[8:12]}-{version}{raw[13:16]}-{_VARIANT[raw[16]]}{raw[17:20]}-{raw[20:32]}"


def is_keyed(any_id: str) -> bool:
    """Whether an id was derived from a key (version 8); only such ids leave a tombstone."""
    return uuid_of(any_id)[14] == "8"


def new_execution_id(partitions: int) -> ExecutionId:
    """A fresh id, spread over the partitions by its own text."""
    uuid = uuid7()
    return ExecutionId(f"{{fp:{crc16(uuid.encode()) % partitions}}}:{uuid}")


def new_execution_ids(count: int, index: int, partitions: int) -> list[ExecutionId]:
    """Fresh ids that all belong to one partition by their own text, so that one call can create them.

    The last two digits are chosen, from a random start, so that the text hashes to the partition; the other 66
    random bits are as they fell. That takes about as many tries as there are partitions, a tenth of a
    microsecond each; call it from where the partition matters.
    """
    head = f"{time.time_ns() // 1_000_000:012x}"
    head = f"{head[:8]}-{head[8:]}-7"
    found: list[ExecutionId] = []
    while len(found) < count:  # where none of the 256 endings fits, that id is drawn again
        drawn = os.urandom(10 * (count - len(found))).hex()
        for at in range(0, len(drawn), 20):
            tail = drawn[at : at + 20]
            text = f"{head}{tail[:3]}-{_VARIANT[tail[3]]}{tail[4:7]}-{tail[7:17]}"
            state, start = crc_hqx(text.encode(), 0), int(tail[17:19], 16)
            for n in range(start, start + 256):
                if crc_hqx(_ENDINGS[n], state) % partitions == index:
                    found.append(ExecutionId(f"{{fp:{index}}}:{text}{n & 255:02x}"))
                    break
    return found


def keyed_id(kind: str, namespace: str, key: str, partitions: int, family: str = "fp") -> str:
    """The id a key names. `kind` is execution, flow, schedule, budget or quota."""
    raw_namespace, raw_key = namespace.encode(), key.encode()
    index = crc16(raw_namespace + b"\0" + raw_key) % partitions
    seed = b"\0".join((kind.encode(), raw_namespace, raw_key))
    return f"{{{family}:{index}}}:{uuid8(seed)}"
