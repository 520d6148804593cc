"""Partitions: which family, which number. Contracts carry the key's text; this is its parsed form."""

from __future__ import annotations

from enum import StrEnum
from typing import Self

import msgspec

from ffcore import checks, ids
from ffcore.errors import InvalidArgument
from ffcore.ids import PartitionKey


class PartitionFamily(StrEnum):
    FLOW = "flow"
    EXECUTION = "execution"
    """An alias of flow: executions live in the flow family, and parsing a key answers FLOW."""
    BUDGET = "budget"
    QUOTA = "quota"

    @property
    def prefix(self) -> str:
        return {"flow": "fp", "execution": "fp", "budget": "b", "quota": "q"}[self.value]


_BY_PREFIX = {"fp": PartitionFamily.FLOW, "b": PartitionFamily.BUDGET, "q": PartitionFamily.QUOTA}


class Partition(msgspec.Struct, frozen=True):
    family: PartitionFamily
    index: int

    def __post_init__(self) -> None:
        checks.whole(self.index, "partition index", 0, 65_535)

    @property
    def key(self) -> PartitionKey:
        return ids.partition_key(self.index, self.family.prefix)

    @classmethod
    def parse(cls, key: str) -> Self:
        """The partition a key names. Worker registries (`{w:N}`) are this engine's own and have no seed family."""
        checked = ids.check_partition(key)
        family = _BY_PREFIX.get(checked[1 : checked.index(":")])
        if family is None:
            raise InvalidArgument(f"{key} is not a partition of executions, budgets or quotas")
        return cls(family, ids.partition_index(checked))
