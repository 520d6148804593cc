"""The demo shows what it says it shows, and would say so if it did not."""

from __future__ import annotations

import asyncio
import os
import sysconfig
import tempfile
from pathlib import Path

import pytest

import ffsdk
from ffcli.demo import app as demo_app
from ffcli.demo.proof import examine, plainly
from ffcli.demo.run import pick_files
from ffcore.errors import InvalidArgument
from ffcore.ids import ExecutionId
from tests.cli.conftest import FF


def test_the_demo_kills_a_worker_and_loses_nothing(bare_ff: FF) -> None:
    before = set(Path(tempfile.gettempdir()).glob("ff-demo-*"))
    ran = bare_ff("demo", "--files", "150", "--json")
    assert ran.code == 0, ran.err
    report = ran.record
    assert (report["files"], report["completed"], report["wrong"]) == (150, 150, [])
    assert report["recovered"] >= report["leases_held"] >= 1
    assert not Path(f"/proc/{report['killed_pid']}").exists()
    assert set(Path(tempfile.gettempdir()).glob("ff-demo-*")) <= before


def test_too_few_files_are_refused_before_anything_starts(bare_ff: FF, tmp_path: Path) -> None:
    (tmp_path / "one.txt").write_text("one")
    ran = bare_ff("demo", "--dir", str(tmp_path))
    assert ran.code == 2
    assert "too few" in ran.err
    assert bare_ff("demo", "--dir", str(tmp_path / "missing")).code == 2


def test_files_are_regular_readable_and_in_order(tmp_path: Path) -> None:
    for name in ("b/2", "a/1", "a/0"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "a" / "link").symlink_to(tmp_path / "b" / "2")
    os.mkfifo(tmp_path / "a" / "pipe")
    assert [str(p.relative_to(tmp_path)) for p in pick_files(tmp_path, 9)] == ["a/0", "a/1", "b/2"]
    assert len(pick_files(tmp_path, 2)) == 2
    with pytest.raises(InvalidArgument):
        pick_files(tmp_path / "none", 1)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 14])
def test_reading_in_slices_counts_what_reading_at_once_counts(
    size: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Words run across the borders of slices, and so does white space."""
    monkeypatch.setattr(demo_app, "SLICE_BYTES", size)
    texts = [b"", b" ", b"one", b" one  two\n", b"a bb ccc dddd eeeee\t\tffffff\n\n", bytes(range(256)) * 3]
    for number, text in enumerate(texts):
        path = tmp_path / str(number)
        path.write_bytes(text)
        assert asyncio.run(demo_app.count.fn(demo_app.File(path=str(path)))) == plainly(path)


def test_the_proof_notices_a_file_that_changed_and_a_recovery_that_was_none(tmp_path: Path, key: str) -> None:
    """A proof that cannot fail proves nothing."""
    paths = [tmp_path / str(n) for n in range(3)]
    for path in paths:
        path.write_text("two words")

    async def run() -> list[str]:
        app = ffsdk.App(url="memory://" + key.replace(":", "-"))
        app.tasks.update(demo_app.app.tasks)
        async with app.client() as client:
            jobs = await client.submit_many(demo_app.count, [demo_app.File(path=str(path)) for path in paths])
            worker = app.worker()
            running = asyncio.ensure_future(worker.run())
            await asyncio.gather(*(job.result(timeout=30) for job in jobs))
            await worker.stop()
            await running
            paths[1].write_text("three words now")
            ids = {ExecutionId(job.id): path for job, path in zip(jobs, paths, strict=True)}
            return (await examine(client.backend, ids, 2, "nobody")).wrong

    wrong = asyncio.run(run())
    assert [text.partition(":")[0] for text in wrong[:1]] == [str(paths[1])]
    assert wrong[1:] == ["the lane counts 2 completed jobs for 3 files", "no job of the killed worker was recovered"]


def test_the_default_tree_is_large_enough() -> None:
    assert len(pick_files(Path(sysconfig.get_paths()["stdlib"]), 1_000)) == 1_000
