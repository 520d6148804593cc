"""Running `ff` in this process as a shell would, on memory:// and on a real server."""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

import ffsdk
from ffcli.main import main

app = ffsdk.App()


@app.task(name="cli.double", lane="math")
async def double(number: int) -> int:
    return number * 2


@app.task(name="cli.boom", lane="math", retry=ffsdk.Retry(max_attempts=1))
async def boom(number: int) -> int:
    raise ffsdk.Fatal("no good")


class Ran(NamedTuple):
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def records(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def record(self) -> dict[str, Any]:
        [one] = self.records
        return one


FF = Callable[..., Ran]


@pytest.fixture
def bare_ff(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> FF:
    """`ff ARGS`, with what is given on standard input, as the console script runs it."""
    for name in ("FF_URL", "FF_PASSWORD_FILE", "FF_DEV"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("FF_QUIET", "1")

    def run(*args: str, given: str = "") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(given.encode())))
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(list(args))
        said = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return Ran(ended.value.code, said.out, said.err)

    return run


@pytest.fixture(params=["memory", "valkey"])
def store(request: pytest.FixtureRequest, valkey_url: str, key: str) -> str:
    """The URL of an initialised store; on the shared server in a database that only these tests use."""
    if request.param == "memory":
        return "memory://" + key.replace(":", "-")
    return own_database(valkey_url)


def own_database(valkey_url: str) -> str:
    """Functions belong to the server, data to a database of it."""
    return f"{valkey_url}?db=9" if valkey_url.startswith("unix:") else f"{valkey_url}/9"


@pytest.fixture
def ff(bare_ff: FF, store: str, monkeypatch: pytest.MonkeyPatch) -> FF:
    """`ff ARGS` on that store."""
    assert bare_ff("init", "--url", store).code == 0
    monkeypatch.setenv("FF_URL", store)
    return bare_ff


@pytest.fixture
def lane(key: str) -> str:
    """A lane that no other test uses."""
    return key.replace(":", "-")


def work(url: str, *execution_ids: str, app: ffsdk.App = app) -> None:
    """Run a worker of an app, unless told otherwise this module's, until these have ended."""

    async def until_ended() -> None:
        app.url = url
        async with app.client() as client:
            lanes = {(await client.job(i).status()).lane for i in execution_ids}
            worker = app.worker(lanes=sorted(lanes), concurrency=2)
            running = asyncio.ensure_future(worker.run())
            try:
                await asyncio.gather(*(client.job(i).outcome(timeout=30) for i in execution_ids))
            finally:
                await worker.stop()
                await running

    asyncio.run(until_ended())
