"""The examples do what they say, each as a program of its own on a real server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ffbackend_valkey.stores import connect
from ffcore.backend import StoreConfig
from tests.integration.proxy import own_server

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
async def env() -> dict[str, str]:
    return {**os.environ, "FF_QUIET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with own_server() as server:
        yield f"valkey://127.0.0.1:{server.port}"


@pytest.fixture
async def url(server: str, env: dict[str, str]) -> str:
    await (await connect(server, init=StoreConfig(fp=4))).close()
    env["FF_URL"] = server
    return server


def run(env: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_hello_says_hello(url: str, env: dict[str, str]) -> None:
    assert run(env, "examples.hello") == "hello world\n"


async def test_an_order_is_charged_once_however_often_it_is_submitted(url: str, env: dict[str, str]) -> None:
    worker = subprocess.Popen([sys.executable, "-m", "examples.checkout_worker"], env=env, cwd=ROOT)
    try:
        for _ in range(2):
            assert run(env, "examples.checkout_submit", "81", "4200") == "charged charge-81\n"
        assert "gave up after 1: order 82 costs nothing" in run(env, "examples.checkout_submit", "82", "0")
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0, "SIGTERM drains and ends it"


async def test_retries_end_as_the_task_says(url: str, env: dict[str, str]) -> None:
    out = run(env, "examples.retries").splitlines()
    assert "/slow: the page, on attempt 2" in out
    assert "/busy: the page, on attempt 1" in out
    assert "/gone: failed after 1, fatal: 410, and it will not come back" in out
    assert "/down: failed after 4, upstream: 502" in out


async def test_the_higher_priority_goes_first(env: dict[str, str]) -> None:
    """With one partition, where the order is exact."""
    with own_server() as alone:
        env["FF_URL"] = f"valkey://127.0.0.1:{alone.port}"
        await (await connect(env["FF_URL"], init=StoreConfig(fp=1))).close()
        out = run(env, "examples.priorities").splitlines()
    assert out == ["first: urgent 0", "last: draft 7", "jobs: 24"]


async def test_the_tests_of_a_users_own_code_pass(env: dict[str, str]) -> None:
    out = run(env, "pytest", "-q", "-p", "no:cacheprovider", "-rP", "examples/test_invoices.py")
    assert "3 passed" in out and "crash points tried: before and after each of" in out
