"""What any Backend checks before it serves: partitions, library versions, and settings that could lose work."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import ffcore.contracts as c
from ffbackend_valkey.library import Library, library
from ffcore import limits
from ffcore.backend import StoreConfig
from ffcore.errors import Incompatible, NotInitialised
from ffcore.ids import partition_key
from tests.conformance.conftest import STORES, Opener, stores_that
from tests.conformance.test_calls import creation

Version = Callable[..., Library]


# ---- partitions --------------------------------------------------------------------------------------


async def test_a_store_nobody_initialised_is_refused_with_the_remedy(open_backend: Opener) -> None:
    with pytest.raises(NotInitialised, match="ff init"):
        await open_backend(init=False)


async def test_only_a_private_store_initialises_itself(open_backend: Opener, store: str) -> None:
    if STORES[store].initialise_itself:
        assert (await open_backend(init=None)).config == StoreConfig(fp=limits.PARTITIONS)
    else:
        with pytest.raises(NotInitialised, match="ff init"):
            await open_backend(init=None)


async def test_partition_counts_are_fixed_by_the_first_init(open_backend: Opener) -> None:
    first = await open_backend(init=StoreConfig(fp=3, w=2))
    assert [await first.call(c.ReadHeaderArgs(partition=key)) for key in first.config.keys("w")]
    assert (await open_backend(init=StoreConfig(fp=3, w=2))).config == first.config
    assert (await open_backend(init=None)).config == first.config
    assert (await open_backend(init=True)).config == first.config
    for other in (StoreConfig(fp=4, w=2), StoreConfig(fp=2, w=2), StoreConfig(fp=3)):
        with pytest.raises(Incompatible, match="never change"):
            await open_backend(init=other)


async def test_an_init_that_was_interrupted_can_be_repeated(open_backend: Opener) -> None:
    """The config is written last: partitions without it are a store that is not initialised yet."""
    first = await open_backend()
    made = await first.call(creation())
    await first.command("DEL", "ff:config")
    again = await open_backend()
    assert (await again.call(c.ReadExecutionArgs(execution_id=made.execution_id))).fields["state"] == "ready"


# ---- the library -------------------------------------------------------------------------------------


async def test_the_first_to_connect_loads_the_library_and_the_next_finds_it(open_backend: Opener) -> None:
    first = await open_backend()
    loaded = await first.loaded()
    assert loaded is not None and (loaded.version, loaded.sha) == (library().version, library().sha)
    assert await (await open_backend()).load_library() == loaded


async def test_another_library_of_the_same_version_is_never_overwritten(
    open_backend: Opener, library_version: Version
) -> None:
    """Two programs would take turns at replacing each other's."""
    await open_backend()
    other = library_version(library().version, extra="patched")
    with pytest.raises(Incompatible, match="ff library upgrade"):
        await open_backend(lib=other)
    unchecked = await open_backend(lib=other, check=False)
    with pytest.raises(Incompatible, match="ff library upgrade"):
        await unchecked.load_library()


async def test_a_library_that_is_too_old_is_refused_until_somebody_upgrades_it(
    open_backend: Opener, library_version: Version
) -> None:
    old = await open_backend()
    newer = library_version(library().version + 1)
    with pytest.raises(Incompatible, match="ff library upgrade"):
        await open_backend(lib=newer)
    upgrader = await open_backend(lib=newer, check=False)
    before = await upgrader.load_library(replace=True)
    assert before is not None and before.version == library().version
    loaded = await upgrader.loaded()
    assert loaded is not None and loaded.version == newer.version
    assert isinstance(await old.call(creation()), c.Created), "a running program goes on with the newer one"
    assert isinstance(await (await open_backend()).call(creation()), c.Created), "and one that starts accepts it"


async def test_a_newer_library_that_no_longer_answers_us_is_refused(
    open_backend: Opener, library_version: Version
) -> None:
    newer = library_version(library().version + 2, compatible_since=library().version + 1)
    await open_backend(lib=newer)
    with pytest.raises(Incompatible, match="upgrade this program"):
        await open_backend()


async def test_a_newer_library_is_never_replaced_by_an_older_one(
    open_backend: Opener, library_version: Version
) -> None:
    newer = library_version(library().version + 1)
    await open_backend(lib=newer)
    ours = await open_backend(check=False)
    with pytest.raises(Incompatible, match="newer"):
        await ours.load_library(replace=True)
    loaded = await ours.loaded()
    assert loaded is not None and loaded.version == newer.version


async def test_a_library_lost_while_running_is_not_loaded_over_another(
    open_backend: Opener, library_version: Version
) -> None:
    ours = await open_backend()
    await ours.command("FUNCTION", "FLUSH")
    newer = library_version(library().version + 1)
    await (await open_backend(lib=newer, check=False)).load_library()
    await ours.call(creation())
    loaded = await ours.loaded()
    assert loaded is not None and loaded.version == newer.version


# ---- settings ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("store", stores_that("evict"), indirect=True)
async def test_a_server_that_may_drop_keys_is_refused(open_backend: Opener) -> None:
    backend = await open_backend()
    await backend.command("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(Incompatible, match="noeviction"):
            await open_backend()
    finally:
        await backend.command("CONFIG", "SET", "maxmemory-policy", "noeviction")


async def test_durability_is_promised_only_by_a_store_that_has_it(open_backend: Opener, store: str) -> None:
    if STORES[store].keep:
        assert isinstance(await (await open_backend(durability="fsync")).call(creation()), c.Created)
    else:
        with pytest.raises(Incompatible, match="appendfsync always"):
            await open_backend(durability="fsync")


async def test_a_partition_of_another_count_is_not_ours(open_backend: Opener) -> None:
    backend = await open_backend(init=StoreConfig(fp=1))
    header = await backend.call(c.ReadHeaderArgs(partition=partition_key(0)))
    assert '"fp":1' in header.fields["counts"]
