"""The demo's app: one task that reads a file, counts its words and takes its digest.

Loaded by the demo's workers as any user's app is: `ff worker run ffcli.demo.app:app`.
"""

from __future__ import annotations

import asyncio
import hashlib

import ffsdk as ff

LANE = "demo"
LEASE_S = 2.0
"""Short, so that a killed worker's jobs are free again soon."""
SLICE_BYTES = 16 << 10
"""Read between two looks at the event loop, so that a worker has several files open at any moment."""

app = ff.App()


class File(ff.Payload):
    """A file to read."""

    path: str
    linger: float = 0.0
    """Seconds a file takes at least, as one that comes over a network does. Without it a hundred files are read
    faster than anybody can look at the store and kill a worker."""


class Count(ff.Payload):
    """What was found in it."""

    path: str
    sha256: str
    bytes: int
    words: int


@app.task(name="demo.count", lane=LANE, lease=LEASE_S, retry=ff.Retry(max_attempts=3, backoff=0.2))
async def count(file: File) -> Count:
    """Read a file in slices. A word is what ASCII white space separates, as for bytes.split()."""
    digest, size, words, inside = hashlib.sha256(), 0, 0, False
    with open(file.path, "rb") as source:  # noqa: ASYNC230  a local file: shorter than a trip to a thread
        while piece := source.read(SLICE_BYTES):
            digest.update(piece)
            size += len(piece)
            # A word that runs across the border of two slices was counted in the first.
            words += len(piece.split()) - (inside and not piece[:1].isspace())
            inside = not piece[-1:].isspace()
            await asyncio.sleep(0)
    await asyncio.sleep(file.linger)
    return Count(path=file.path, sha256=digest.hexdigest(), bytes=size, words=words)
