"""Known holes of a server's Lua: said for the releases that have them, once, and for no others."""

from __future__ import annotations

import logging

import pytest

from ffbackend_valkey import stores
from ffbackend_valkey.advisories import product_of, warning
from tests.unit.ffbackend_valkey.test_boot_checks import DURABLE, Server


def valkey(version: str) -> str:
    return f"# Server\r\nredis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:{version}\r\n"


def redis(version: str) -> str:
    return f"# Server\r\nredis_version:{version}\r\n"


@pytest.mark.parametrize(
    ("info", "named"),
    [
        (valkey("7.2.10"), "CVE-2025-49844"), (valkey("8.0.5"), "CVE-2025-49844"), (valkey("8.1.3"), "CVE-2025-49844"),
        (valkey("7.2.12"), "CVE-2026-23631"), (valkey("8.1.4"), "CVE-2026-23631"), (valkey("9.0.3"), "CVE-2026-23631"),
        (redis("7.0.15"), "CVE-2025-49844"), (redis("7.2.10"), "CVE-2025-49844"), (redis("8.2.1"), "CVE-2025-49844"),
    ],
)  # fmt: skip
def test_a_release_with_holes_is_named_with_its_remedy(info: str, named: str) -> None:
    said = warning(info)
    assert said is not None and named in said and "fixed are" in said


@pytest.mark.parametrize(
    "info",
    [
        valkey("7.2.13"), valkey("8.0.9"), valkey("8.1.7"), valkey("9.0.4"), valkey("9.1.2"), valkey("10.0.0"),
        redis("7.2.11"), redis("7.4.6"), redis("8.0.4"), redis("8.2.2"), redis("8.4.0"), "# Server\r\n",
    ],
)  # fmt: skip
def test_nothing_is_said_of_others(info: str) -> None:
    assert warning(info) is None


def test_a_valkey_is_not_taken_for_the_redis_it_is_like() -> None:
    assert product_of(valkey("9.1.2")) == ("Valkey", (9, 1, 2))
    assert product_of(redis("7.0.15")) == ("Redis", (7, 0, 15))


async def test_it_is_said_at_boot_and_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FF_QUIET", raising=False)
    monkeypatch.setattr(stores, "_warned", set())
    with caplog.at_level(logging.WARNING, "flowfabric.store"):
        for _ in range(2):
            (told,) = await stores.check_server(Server(DURABLE, version="7.2.4"), "accepted")  # type: ignore[arg-type]
            assert "CVE-2025-49844" in told
    assert len(caplog.records) == 1
