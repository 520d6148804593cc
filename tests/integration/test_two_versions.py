"""A rolling deploy: programs of the previous release and of the next one on the same store, at the same time.

The previous release is this tree. The next is a copy of it with a higher version, one more function, one more field in
every record, and one more request in its contracts; its programs are processes that run from the copy. The store has
one library at any moment, the newer one once somebody upgraded it, so what is mixed is records and programs.

As a program this file is a worker, a submitter, a reader or an asker of the new function, of whichever tree it runs in.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import pytest

import ffcore.contracts as c
import ffsdk as ff
from ffbackend_valkey.library import Library, assemble, library
from ffbackend_valkey.stores import connect
from ffcore.backend import StoreConfig
from ffcore.ids import ExecutionId
from tests.chaos.tree import ROOT, change, copy_tree
from tests.integration.proxy import own_server, until

OLD: Final = library().version
ME: Final = "tests/integration/test_two_versions.py"

NEW_FUNCTION: Final = """
define {
  name    = "ff_read_stamp",
  args    = { "execution_id:id" },
  returns = { "stamp" },
  errors  = { "execution_not_found" },
  flags   = { "no-writes" },
  run = function(p, a)
    local x = record.load_all(p, a.execution_id)
    if not x then return reply.reject("execution_not_found") end
    return { "stamp", x.stamp or "" }
  end,
}
"""
NEW_REQUEST: Final = '''

class Stamp(Outcome, tag="stamp"):
    stamp: str
    """Empty: the record is of an older release."""


class ReadStampArgs(Args[Stamp]):
    execution_id: ExecutionId
'''


# ---- as a program ---------------------------------------------------------------------------------------------

app = ff.App(None)


@app.task(name="whose", lane="deploy", retry=ff.Retry(max_attempts=3, backoff=0.01))
async def whose(gate: str, ctx: ff.Context) -> dict[str, Any]:
    """Which release ran it. Waits for a file first, if one is named."""
    await ctx.progress(40, "waiting")
    while gate and not os.path.exists(gate):
        await asyncio.sleep(0.01)
    return {"by": library().version, "attempt": ctx.attempt}


@app.task(name="draft", lane="deploy")
async def draft(_: str, ctx: ff.Context) -> dict[str, Any]:
    """Which release did what: before it waits for somebody, and afterwards."""

    async def write() -> int:
        await ctx.emit({"by": library().version})
        return library().version

    begun = await ctx.step("begin", write)
    gate = await ctx.gate("go", str)
    await ctx.summary({"token": gate.token})
    answer = await gate.wait(timeout=300)
    return {"begun": begun, "answer": answer, "ended": await ctx.step("end", write)}


async def work(lane: str) -> None:
    await app.worker(lanes=[lane], concurrency=4, lease=2).run(signals=True)


async def submit(lane: str) -> None:
    async with app.client() as client:
        job = await client.submit(whose, "", lane=lane, tags={"deploy.by": f"v{library().version}"})
        print(job.id)


async def show(execution_id: str) -> None:
    async with app.client() as client:
        job = client.job(execution_id, whose)
        status, outcome = await job.status(), await job.outcome(timeout=10)
        assert isinstance(outcome, ff.Completed)
        stored = await client.backend.call(c.ReadExecutionArgs(execution_id=ExecutionId(execution_id)))
        print(json.dumps({"state": status.state, "value": outcome.value, "tags": stored.tags}))


async def stamp(execution_id: str) -> None:
    from ffcore.contracts.upkeep import ReadStampArgs  # type: ignore[attr-defined]

    async with app.client() as client:
        print((await client.backend.call(ReadStampArgs(execution_id=execution_id))).stamp or "none")


# ---- the next release -----------------------------------------------------------------------------------------


def next_release(root: Path, *, compatible_since: int = OLD, renames: bool = False) -> Path:
    """A tree of the release after this one. `renames`: it also stores `progress` under another name, so that records
    have another schema."""
    tree = copy_tree(root, ME, "tests/integration/proxy.py")
    manifest = tree / "lua/manifest.toml"
    text = manifest.read_text()
    _, _, files = text.partition("# Read in this order")
    manifest.write_text(
        f'name = "flowfabric"\nversion = {OLD + 1}\ncompatible_since = {compatible_since}\n# Read in this order{files}'
    )
    record = tree / "lua/shared/record.lua"
    change(record, "local SHORT = {\n", 'local SHORT = {\n  stamp = "zz",\n')
    if renames:
        change(record, "record.SCHEMA = 1", "record.SCHEMA = 2")
        change(record, "record.STEPS = {}", "record.STEPS = { function(raw) raw.pz, raw.pg = raw.pg, nil end }")
        change(record, 'progress = "pg"', 'progress = "pz"')
    task = '  also("task", a.execution_kind)\n'
    change(tree / "lua/shared/submission.lua", task, f'{task}  also("stamp", "v{OLD + 1}")\n')
    view = tree / "lua/view.lua"
    view.write_text(view.read_text() + NEW_FUNCTION)
    upkeep = tree / "ffcore/contracts/upkeep.py"
    upkeep.write_text(upkeep.read_text() + NEW_REQUEST)
    future = "from __future__ import annotations\n"
    change(upkeep, future, future + "\nfrom ffcore.ids import ExecutionId\n")
    return tree


class Programs:
    """Starts programs of either tree, and ends them."""

    def __init__(self, url: str, directory: Path) -> None:
        self._url, self._directory = url, directory
        self.running: list[subprocess.Popen[bytes]] = []

    def _environment(self, tree: Path) -> dict[str, str]:
        return {**os.environ, "PYTHONPATH": str(tree), "FF_URL": self._url, "FF_QUIET": "1"}

    def run(self, tree: Path, *words: str) -> tuple[int, str]:
        """To its end; exit status and everything it said."""
        done = subprocess.run(
            [sys.executable, "-m", *words], cwd=tree, env=self._environment(tree), timeout=60,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        return done.returncode, done.stdout.strip()

    def ask(self, tree: Path, verb: str, argument: str) -> str:
        """One of this file's programs; its last line."""
        code, said = self.run(tree, "tests.integration.test_two_versions", verb, argument)
        assert code == 0, said
        return said.splitlines()[-1]

    def worker(self, tree: Path, lane: str) -> subprocess.Popen[bytes]:
        log = (self._directory / f"{lane}.log").open("ab")
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.integration.test_two_versions", "work", lane], cwd=tree,
            env=self._environment(tree), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
        log.close()
        self.running.append(process)
        return process

    def said(self, lane: str) -> str:
        return (self._directory / f"{lane}.log").read_text()

    def close(self) -> None:
        for process in self.running:
            process.kill()
            process.wait()


FF: Final = "ffcli.main"


@pytest.fixture
def url() -> Iterator[str]:
    with own_server() as server:
        yield f"valkey://127.0.0.1:{server.port}"


@pytest.fixture
def programs(url: str, tmp_path: Path) -> Iterator[Programs]:
    started = Programs(url, tmp_path)
    yield started
    started.close()


@pytest.fixture
async def client(url: str) -> AsyncIterator[ff.Client]:
    """A client of the previous release, on a store that it has initialised."""
    await (await connect(url, init=StoreConfig(fp=2))).close()
    app.url = url
    async with app.client() as opened:
        yield opened


async def upgraded(programs: Programs, new: Path) -> None:
    code, said = await asyncio.to_thread(programs.run, new, FF, "library", "upgrade")
    assert code == 0, said


async def test_two_releases_share_a_store_while_one_replaces_the_other(
    client: ff.Client, programs: Programs, tmp_path: Path
) -> None:
    new, gate = next_release(tmp_path / "next"), str(tmp_path / "gate")
    programs.worker(ROOT, "for-old")
    done = await client.submit(whose, "", lane="for-old")
    assert await done.result(timeout=30) == {"by": OLD, "attempt": 0}

    # Work in every stage, made and stored by the previous release.
    running = await client.submit(whose, gate, lane="for-old")
    later = await client.submit(whose, "", lane="for-old", delay=1.0)
    waiting = await client.submit(whose, "", lane="for-new")
    await client.hold(tag=("deploy.held", "yes"))
    held = await client.submit(whose, "", lane="for-old", tags={"deploy.held": "yes"})
    async with asyncio.timeout(10):
        while [await _stored(client, job, "state") for job in (running, held)] != ["active", "blocked"]:
            await asyncio.sleep(0.02)

    # A program of the next release does not replace the library by itself.
    code, said = await asyncio.to_thread(programs.run, new, "tests.integration.test_two_versions", "work", "for-new")
    assert code != 0 and f"holds library version {OLD}" in said and "ff library upgrade" in said
    await upgraded(programs, new)
    assert await _stored(client, running, "state") == "active"

    # What the previous release began goes on: the running lease is still good, timers and holds are still known.
    Path(gate).touch()
    assert await running.result(timeout=30) == {"by": OLD, "attempt": 0}, "its lease outlived the change of library"
    assert await later.result(timeout=30) == {"by": OLD, "attempt": 0}
    await client.release(tag=("deploy.held", "yes"))
    assert await held.result(timeout=30) == {"by": OLD, "attempt": 0}
    programs.worker(new, "for-new")
    assert await waiting.result(timeout=30) == {"by": OLD + 1, "attempt": 0}

    # Each release submits to each, reads what the other stored, and awaits it.
    for lane, by in (("for-old", OLD), ("for-new", OLD + 1)):
        ours = await client.submit(whose, "", lane=lane, tags={"deploy.by": f"v{OLD}"})
        theirs = await asyncio.to_thread(programs.ask, new, "submit", lane)
        assert (await ours.result(timeout=30))["by"] == by
        assert (await client.job(theirs, whose).result(timeout=30))["by"] == by
        read = json.loads(await asyncio.to_thread(programs.ask, new, "show", ours.id))
        assert read == {"state": "completed", "value": {"by": by, "attempt": 0}, "tags": {"deploy.by": f"v{OLD}"}}
        stored = await client.backend.call(c.ReadExecutionArgs(execution_id=ExecutionId(theirs)))
        assert stored.tags == {"deploy.by": f"v{OLD + 1}"}, "the previous release reads what the next one wrote"
        assert await asyncio.to_thread(programs.ask, new, "stamp", theirs) == f"v{OLD + 1}"
    assert await asyncio.to_thread(programs.ask, new, "stamp", done.id) == "none", "an older record has no such field"

    # A program of the previous release may still start, and may not go back.
    code, said = await asyncio.to_thread(programs.run, ROOT, FF, "library", "status")
    assert code == 0, said
    assert json.loads(await asyncio.to_thread(programs.ask, ROOT, "show", theirs))["value"]["by"] == OLD + 1
    code, said = await asyncio.to_thread(programs.run, ROOT, FF, "library", "upgrade")
    assert code == 5 and f"holds library version {OLD + 1}, newer than ours, {OLD}" in said
    assert "ff library upgrade" in said, "the refusal says what to do"
    loaded = await _loaded(client)
    assert loaded["version"] == OLD + 1, "and nothing was replaced"
    assert all(process.poll() is None for process in programs.running), "both workers went on through all of it"


async def test_records_get_another_layout_while_programs_of_both_releases_run(
    client: ff.Client, programs: Programs, tmp_path: Path
) -> None:
    new, gate = next_release(tmp_path / "next", renames=True), str(tmp_path / "gate")
    worker = programs.worker(ROOT, "for-old")
    done = await client.submit(whose, "", lane="for-old")
    await done.result(timeout=30)
    running = await client.submit(whose, gate, lane="for-old")
    async with asyncio.timeout(10):
        while (await running.status()).progress is None:
            await asyncio.sleep(0.02)
    await upgraded(programs, new)
    for job in (done, running):
        progress = (await job.status()).progress
        assert progress is not None and progress.pct == 40, "the newer library knows the older record"
    made = await client.submit(whose, "", lane="for-old")
    Path(gate).touch()
    for job in (running, made):
        assert await job.result(timeout=30) == {"by": OLD, "attempt": 0}, "by a worker that knows nothing of it"
        assert json.loads(await asyncio.to_thread(programs.ask, new, "show", job.id))["state"] == "completed"
        partition, _, uuid = job.id.rpartition(":")
        raw = await client.backend.command("HMGET", f"ff:{partition}:x:{uuid}", "sv", "pg", "pz")  # type: ignore[attr-defined]
        assert raw == [b"2", None, b"40"], "brought up when it was touched, or made so"

    # The server loses its functions, and a program of the previous release is the first to call: it is refused by its
    # own library, before that could misread a record.
    worker.kill()
    await client.backend.command("FUNCTION", "FLUSH")  # type: ignore[attr-defined]
    with pytest.raises(ff.EngineBug, match="written by a newer release: upgrade the library"):
        await made.status()
    await upgraded(programs, new)
    assert (await made.status()).state == "completed"


async def test_what_waits_in_one_release_goes_on_in_the_next(
    client: ff.Client, programs: Programs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Recorded steps, an open gate with its token, frames and a summary are data of the store, like records."""
    monkeypatch.setenv("FF_SECRET", f"k1:{'ab' * 32}")
    new = next_release(tmp_path / "next", renames=True)
    worker = programs.worker(ROOT, "drafts")
    waiting, other = [await client.submit(draft, "", lane="drafts") for _ in range(2)]
    async with asyncio.timeout(30):
        while [await _stored(client, job, "state") for job in (waiting, other)] != ["suspended"] * 2:
            await asyncio.sleep(0.02)
    token = (await waiting.summary())["token"]
    await upgraded(programs, new)
    assert (await client.signal((await other.summary())["token"], "yes")).effect == "resume_condition_satisfied"
    assert await other.result(timeout=30) == {"begun": OLD, "answer": "yes", "ended": OLD}, "in the same worker"
    worker.kill()
    programs.worker(new, "drafts")
    assert (await client.signal(token, "yes", key="click")).effect == "resume_condition_satisfied"
    assert await waiting.result(timeout=30) == {"begun": OLD, "answer": "yes", "ended": OLD + 1}
    assert [frame.value async for frame in waiting.stream()] == [{"by": OLD}, {"by": OLD + 1}]
    assert (await client.signal(token, "yes", key="click")).duplicate


async def test_a_running_program_stops_when_the_store_no_longer_answers_it(
    client: ff.Client, programs: Programs, tmp_path: Path
) -> None:
    """The next release has dropped a function and says so. A worker of the previous one ends, with the remedy; it does
    not put its own library back, and what it held is not lost."""
    new = next_release(tmp_path / "next", compatible_since=OLD + 1)
    worker = programs.worker(ROOT, "for-old")
    held = await client.submit(whose, str(tmp_path / "never"), lane="for-old")
    async with asyncio.timeout(30):
        while await _stored(client, held, "state") != "active":
            await asyncio.sleep(0.02)
    claim = new / "lua/claim.lua"
    claim.write_text(claim.read_text().replace('"ff_claim_batch"', '"ff_claim_batch_v2"'))
    changed = assemble(new / "lua")
    assert (changed.version, changed.compatible_since) == (OLD + 1, OLD + 1)
    await client.backend.command("FUNCTION", "LOAD", "REPLACE", changed.source)  # type: ignore[attr-defined]
    await until(lambda: worker.poll() is not None, "the worker's end", within=30)
    assert worker.returncode != 0 and "upgrade this program" in programs.said("for-old")
    assert (await _loaded(client))["version"] == OLD + 1
    with pytest.raises(ff.Incompatible, match="upgrade this program"):
        await connect(client.backend.url)
    assert await _stored(client, held, "state") in ("active", "reclaimable"), "its lease runs out; another may take it"


async def test_records_of_the_next_release_survive_the_previous_library(
    client: ff.Client, url: str, tmp_path: Path
) -> None:
    """A server that lost its functions gets them back from whoever calls first, which may be the previous release. It
    serves records with fields it does not know, and leaves those alone."""
    newer = assemble(next_release(tmp_path / "next") / "lua")
    ours = await connect(url)
    await (unchecked := await connect(url, lib=_known(newer), check=False)).load_library(replace=True)
    made = await client.submit(whose, "", lane="for-old")
    before = await _stamp(unchecked, made)
    assert before == f"v{OLD + 1}".encode(), "the next release's library wrote it"
    await unchecked.command("FUNCTION", "FLUSH")
    claimed = await ours.call(c.ClaimBatchArgs(
        partitions=ours.config.keys("fp"), lanes=["for-old"], capability_sets=[], limit=1, claim_id="w.c.1",
        worker_id="w", worker_instance_id="w", lease_ttl_ms=5_000,
    ))  # fmt: skip
    assert (await _loaded(client))["version"] == OLD, "the first to call brought its own"
    (job,) = claimed.jobs
    fence = f"{job.lease_id} {job.lease_epoch} {job.attempt_id}"
    result = msgspec.json.encode({"by": OLD, "attempt": 0})
    await ours.call(c.CompleteManyArgs(
        partition=ours.config.keys("fp")[int(job.execution_id[4])], lanes=["for-old"], capability_sets=[], limit=0,
        claim_id="w.c.2", worker_id="w", worker_instance_id="w", lease_ttl_ms=5_000,
        items=[c.Completion(job.execution_id, fence, result)],
    ))  # fmt: skip
    assert await made.result(timeout=10) == {"by": OLD, "attempt": 0}
    assert await _stamp(unchecked, made) == before, "what a release does not know it does not touch"
    with pytest.raises(ff.Incompatible, match="ff library upgrade"):
        await connect(url, lib=_known(newer))
    await unchecked.load_library(replace=True)
    assert await made.result(timeout=10) == {"by": OLD, "attempt": 0}, "and the next release reads it again"
    for backend in (ours, unchecked):
        await backend.close()


def _known(newer: Library) -> Library:
    """The newer library as this process can bind it: without the function that only the newer contracts name."""
    return newer._replace(signatures={k: v for k, v in newer.signatures.items() if k != "ff_read_stamp"})


async def _loaded(client: ff.Client) -> dict[str, Any]:
    raw = await client.backend.command("FCALL_RO", "ff_library", 0)  # type: ignore[attr-defined]
    found: dict[str, Any] = json.loads(raw)
    return found


async def _stored(client: ff.Client, job: ff.Job[Any], field: str) -> str:
    """One field of a job's record, by this program's names."""
    found = await client.backend.call(c.ReadExecutionArgs(execution_id=ExecutionId(job.id)))
    return found.fields.get(field, "")


async def _stamp(backend: Any, job: ff.Job[Any]) -> bytes:
    partition, _, uuid = job.id.rpartition(":")
    found: bytes = await backend.command("HGET", f"ff:{partition}:x:{uuid}", "zz")
    return found


if __name__ == "__main__":
    app.url = os.environ["FF_URL"]
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run({"work": work, "submit": submit, "show": show, "stamp": stamp}[sys.argv[1]](sys.argv[2]))
