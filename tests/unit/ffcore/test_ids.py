"""Identifiers minted here: they route by their own text, also where the partition was chosen first."""

from __future__ import annotations

import uuid
from collections import Counter

import pytest

from ffcore import ids


@pytest.mark.parametrize("partitions", [1, 3, 4, 64, 300])
def test_ids_minted_for_a_partition_belong_there_by_their_own_text(partitions: int) -> None:
    """Whoever recomputes the partition of a uuid must come to the one its id names (D1)."""
    for index in {0, partitions // 2, partitions - 1}:
        found = ids.new_execution_ids(50, index, partitions)
        assert len(set(found)) == 50
        for one in found:
            text = ids.uuid_of(ids.check_id(one, partitions=partitions))
            assert ids.crc16(text.encode()) % partitions == index == ids.partition_index(ids.partition_of(one))
            assert uuid.UUID(text).version == 7 and uuid.UUID(text).variant == uuid.RFC_4122
            assert not ids.is_keyed(one)


def test_choosing_the_partition_leaves_the_ending_random() -> None:
    """Two clients that mint in the same millisecond must not walk through the same endings."""
    endings = Counter(one[-2:] for one in ids.new_execution_ids(5_000, 2, 4))
    assert len(endings) > 50 and max(endings.values()) < 5_000 // 10


def test_an_id_of_its_own_goes_where_its_text_says() -> None:
    found = [ids.new_execution_id(4) for _ in range(400)]
    assert {ids.partition_of(one) for one in found} == {f"{{fp:{n}}}" for n in range(4)}
    assert all(ids.crc16(ids.uuid_of(one).encode()) % 4 == ids.partition_index(ids.partition_of(one)) for one in found)
