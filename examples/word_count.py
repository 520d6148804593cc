"""Map and reduce: a job counts the words of each file, one adds the counts up when all of them are there.

python -m examples.word_count [DIR]         # the Markdown files below DIR; without it this project's own docs
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections import Counter
from pathlib import Path

import ffsdk as ff

app = ff.App()
DOCS = Path(__file__).resolve().parent.parent / "docs"


def words_of(path: str) -> Counter[str]:
    return Counter(re.findall(r"[a-z]+", Path(path).read_text(encoding="utf-8").lower()))


@app.task(lane="words")
def count(path: str) -> dict[str, int]:
    return words_of(path)


@app.task(lane="words")
def add_up(counts: list[dict[str, int]]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return total


async def main(directory: Path, files: list[Path]) -> None:
    worker = app.worker()
    running = asyncio.create_task(worker.run())
    async with app.client() as client:
        async with client.flow("words") as flow:
            counts = [flow.add(count, str(path), key=str(path.relative_to(directory))) for path in files]
            total = flow.add(add_up, after=counts)  # no payload: it gets what they returned, in this order
        found = await total.result(timeout=60)
    await worker.stop()
    await running
    print(f"{len(files)} files, {sum(found.values())} words, {len(found)} of them different")
    print("most of all:", ", ".join(sorted(found, key=lambda word: (-found[word], word))[:3]))


if __name__ == "__main__":
    directory = Path(sys.argv[1]) if sys.argv[1:] else DOCS
    asyncio.run(main(directory, sorted(directory.rglob("*.md"))))
