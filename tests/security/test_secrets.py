"""A password is told to the server and to nobody else: no log, message, traceback, table, argv or slow log has it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import multiprocessing
import os
import subprocess
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

import ffsdk as ff
from ffbackend_valkey.blocking import BlockingConnection
from ffbackend_valkey.stores import connect
from ffbackend_valkey.subscriber import Subscriber
from ffbackend_valkey.url import parse_url
from ffcli.commands.library import initialise
from tests.security.conftest import PASSWORD, ROOT, Guarded

CANARY = "C4naryHorse"
WORKER = PASSWORD.format(role="ff-worker")
BROKEN = [
    f"valkey://me:{CANARY}@127.0.0.1:1", f"valkey://:{CANARY}@127.0.0.1:1/3", f"valkeys://me:{CANARY}@127.0.0.1:1",
    f"rediss://me:{CANARY}@127.0.0.1:1?ca=/no/such.pem", f"valkey+cluster://me:{CANARY}@127.0.0.1:1,127.0.0.1:2",
    f"valkey://me:{CANARY}@no-such-host.invalid:6379", f"valkey://me:{CANARY}@h:x", f"valkey://me:a?{CANARY}@h:1",
    f"valkey://me:a/{CANARY}@h", f"valkey://me:a#{CANARY}@h", f"valkey://me:{CANARY}[@h", f"me:{CANARY}@valkey://h",
    f"valkey://me:{CANARY} x@h", f"http://me:{CANARY}@h", f"valkey://h?{CANARY}=1", f"valkey://me:{CANARY}@h/x",
]  # fmt: skip


def told(error: BaseException) -> str:
    """All that Python would print of it, causes and notes included."""
    return "".join(traceback.format_exception(error)) + repr(error) + repr(getattr(error, "__dict__", ""))


@pytest.mark.parametrize("url", BROKEN)
async def test_no_error_of_a_url_tells_the_password(
    url: str, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """From opening to the traceback; every kind of failure a URL leads to."""
    caplog.set_level(logging.DEBUG)
    with pytest.raises(ff.EngineError) as failed:
        await (await connect(url, patience=0.0)).close()
    client = ff.Client(url)
    texts = [told(failed.value), caplog.text, repr(client), str(client), repr(ff.App(url)), *capfd.readouterr()]
    assert not [text for text in texts if CANARY.lower() in text.lower()]


def run_ff(env: dict[str, str], lines: str) -> subprocess.CompletedProcess[str]:
    """A program around `main`, as the console script is one."""
    path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
    words = [sys.executable, "-c", "import os, sys\nfrom ffcli.main import main\n" + lines]
    env = {**os.environ, "PYTHONPATH": path, **env}
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done


def test_no_output_of_the_cli_tells_it() -> None:
    """As people run it, and with --json; also where the command ends with a traceback."""
    done = run_ff(
        {"BROKEN": json.dumps(BROKEN)},
        """
import json, traceback
for url in json.loads(os.environ["BROKEN"]):
    os.environ["FF_URL"] = url
    for words in (["job", "list"], ["doctor", "--json"], ["config", "show", "--json"]):
        try: main(words)
        except SystemExit as ended: print("ended", ended.code)
        except BaseException: traceback.print_exc()
""",
    )
    assert done.stdout.count("ended") == 3 * len(BROKEN), done.stderr
    assert CANARY.lower() not in (done.stdout + done.stderr).lower()


@pytest.fixture
async def ready(guarded: Guarded, monkeypatch: pytest.MonkeyPatch) -> Guarded:
    guarded.ask("admin", "FLUSHALL")
    guarded.ask("admin", "FUNCTION", "FLUSH")
    await initialise(guarded.url("ff-loader"), 1)
    monkeypatch.delenv("FF_QUIET", raising=False)
    return guarded


async def test_a_working_program_tells_nobody(ready: Guarded, caplog: pytest.LogCaptureFixture) -> None:
    """Logs of a whole run, what the server keeps of commands and clients, what objects say of themselves, and what
    failing handlers leave in the store."""
    caplog.set_level(logging.DEBUG)
    for name, value in (("slowlog-log-slower-than", "0"), ("slowlog-max-len", "10000")):
        ready.ask("admin", "CONFIG", "SET", name, value)
    app = ff.App(ready.url("ff-worker"))

    @app.task(retry=ff.Retry(max_attempts=1))
    async def broken(_: None, ctx: ff.Context) -> None:
        raise RuntimeError(f"{ctx!r} {app!r}")

    worker = app.worker(lease=0.5)
    running = asyncio.create_task(worker.run())
    async with app.client() as client:
        job = await client.submit(broken)
        outcome = await job.outcome(timeout=30)
        assert isinstance(outcome, ff.Failed)
        backend = client.backend
        said = [repr(outcome), repr(worker), repr(client), repr(backend), backend.url, repr(app)]
        with pytest.raises(ff.EngineError) as refused:
            await backend.command("CONFIG", "GET", "requirepass")  # type: ignore[attr-defined]
        said.append(told(refused.value))
    await worker.stop()
    await running
    said.append(caplog.text)
    said.append(repr(ready.ask("admin", "SLOWLOG", "GET", "10000")))
    said.append(repr(ready.ask("admin", "CLIENT", "LIST")) + repr(ready.ask("admin", "ACL", "LOG")))
    said.append(repr(ready.contents()))
    assert "ff_complete_many" not in said[0] and "FCALL" in said[-3], "the slow log saw what was called"
    assert not [text for text in said if WORKER in text]
    assert "***" in backend.url


async def test_a_wrong_password_is_not_repeated(
    ready: Guarded, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.DEBUG)
    target = parse_url(f"unix://ff-worker:{CANARY}@{ready.socket}")
    with pytest.raises(ff.EngineError) as by_loop:
        await connect(f"unix://ff-worker:{CANARY}@{ready.socket}", patience=0.0)
    with pytest.raises(ff.EngineError) as by_thread:
        BlockingConnection(target).call("PING")
    listening = Subscriber(target)
    with contextlib.suppress(ff.EngineError, TimeoutError):
        async with asyncio.timeout(0.3):
            await listening.subscribe("ff:x", lambda *_: None)
    await listening.close()
    texts = [told(by_loop.value), told(by_thread.value), caplog.text, repr(listening), repr(target), f"{target}"]
    texts.append(repr(ready.ask("admin", "ACL", "LOG")))
    assert not [text for text in texts if CANARY in text]


def test_a_password_file_reaches_the_server_and_no_table(ready: Guarded, tmp_path: Path) -> None:
    file = tmp_path / "password"
    file.write_text(WORKER + "\n")
    done = run_ff(
        {"FF_URL": f"unix://ff-worker@{ready.socket}", "FF_PASSWORD_FILE": str(file)},
        """
for words in (["config", "show", "--json"], ["job", "list"], ["lane", "list"]):
    try: main(words)
    except SystemExit as ended: assert ended.code == 0, (words, ended.code)
""",
    )
    assert json.loads(done.stdout.splitlines()[0])["password_file"] is True
    assert WORKER not in done.stdout + done.stderr


def arguments_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()


async def test_no_child_process_is_started_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ready: Guarded
) -> None:
    """`ps` shows argv to everybody on the machine: of the embedded keeper, its server, and children of handlers."""
    monkeypatch.setenv("FF_URL", ready.url("ff-worker"))
    monkeypatch.setenv("FF_EMBEDDED_LINGER", "0.2")
    from ffbackend_valkey.embedded import open_embedded
    from tests.security.handlers import app, wait

    with await asyncio.to_thread(open_embedded, tmp_path / "store") as endpoint:
        lines = {pid: arguments_of(pid) for pid in (endpoint.keeper_pid, endpoint.pid)}
    app.url = None
    worker = app.worker()
    running = asyncio.create_task(worker.run())
    async with app.client() as client:
        job = await client.submit(wait, 20.0)
        children: list[Any] = []
        give_up = time.monotonic() + 30
        while not children and time.monotonic() < give_up:
            children = multiprocessing.active_children()
            await asyncio.sleep(0.01)
        lines |= {child.pid: arguments_of(child.pid) for child in children}
        await job.cancel("seen")
        await job.outcome(timeout=30)
    await worker.stop()
    await running
    assert len(lines) >= 3, "the keeper, its server and a child were looked at"
    assert not [line for line in lines.values() if WORKER in line]
