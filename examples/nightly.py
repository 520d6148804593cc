"""A nightly pipeline: one source is down. Its branch is skipped and somebody is told, the rest is published, and the
scratch directory is removed whatever has happened.

python -m examples.nightly
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from pathlib import Path

import ffsdk as ff

app = ff.App()


class Source(ff.Payload):
    name: str
    scratch: str
    rows: int
    """What it delivers; none: it is down."""


@app.task(lane="nightly", retry=ff.Retry(max_attempts=2, backoff=0.05))
def extract(source: Source) -> str:
    if not source.rows:
        raise ff.Failure(f"{source.name} does not answer", category="upstream")
    path = Path(source.scratch) / f"{source.name}.csv"
    path.write_text("".join(f"{n},{n * n}\n" for n in range(source.rows)))
    return str(path)


@app.task(lane="nightly")
def add_up(path: str) -> int:
    return sum(int(line.partition(",")[2]) for line in Path(path).read_text().splitlines())


@app.task(lane="nightly")
def publish(total: int) -> str:
    return f"published {total}"


@app.task(lane="nightly")
def page(source: str) -> str:
    return f"paged: {source} is down"


@app.task(lane="nightly")
def clean_up(scratch: str) -> str:
    shutil.rmtree(scratch)
    return "scratch is gone"


async def main() -> None:
    scratch = tempfile.mkdtemp(prefix="nightly-")
    worker = app.worker()
    running = asyncio.create_task(worker.run())
    async with app.client() as client:
        branches: dict[str, dict[str, ff.Node[str]]] = {}
        async with client.flow("nightly") as flow:
            for name, rows in (("eu", 100), ("us", 0)):
                rows_of = flow.add(extract, Source(name, scratch, rows), key=f"extract-{name}")
                total = flow.add(add_up, after=rows_of, key=f"add-up-{name}")
                branches[name] = {
                    "publish": flow.add(publish, after=total, key=f"publish-{name}"),
                    "alert": flow.add(page, name, after=rows_of, on="failure", key=f"alert-{name}"),
                }
            published = [branch["publish"] for branch in branches.values()]
            gone = flow.add(clean_up, scratch, after=published, on="always", key="clean-up")
        outcome = await flow.outcome(timeout=60)
        for name, branch in branches.items():
            for what, job in branch.items():
                ended = await job.outcome(timeout=30)
                print(f"{name} {what}:", ended.value if isinstance(ended, ff.Completed) else "skipped")
        print(await gone.result(timeout=30))
        # The failure had somebody to answer it, so the night as a whole did not fail.
        print("flow:", outcome.state)
    await worker.stop()
    await running


if __name__ == "__main__":
    asyncio.run(main())
