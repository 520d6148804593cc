"""One file for the facts of all processes, so that they have an order: who began what after what had been recorded.

A line is one append, so a process may be killed at any moment and what it wrote before stands. The first word says what
the line is; N is the job's number, RUN is 0 until the handler begins anew.

    claim N EPOCH RUN ATTEMPT LEG AT     the store leased the job to a worker
    head N RUN STEP STATUS               what that answer said is recorded
    at N POINT                           a job that nobody kills passed a point
    begin N RUN STEP EPOCH KEY AT        the function of a step begins; KEY: of its effect
    end N RUN STEP EPOCH AT              it has its result, which is not recorded
    ack N RUN STEP STATUS EPOCH WORD     the store answered that the step is recorded; or was, WORD: replayed
    frame N RUN OF EPOCH                 the store answered that it has a frame
    born N CHILD ID NEW                  the store said that a child is spawned; NEW: 0 for one that was there already
    child N CHILD EPOCH                  the store leased a child to a worker
    ran N CHILD EPOCH                    it has its result
    kill N POINT PID BESIDE AT           the worker is about to kill itself; BESIDE: other jobs it holds
    died PID CODE                        a worker has ended
    letter N TOKEN                       the job's gate was told to the other party
    sent N KEY ID EFFECT NEW             a signal was answered; NEW: 0 for one that was there already
    refused N KEY CODE                   a signal was refused
    fatal TEXT                           a process ends because of an error of its own
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Final

NAME: Final = "book"


class Book:
    """Where a process writes."""

    def __init__(self, directory: Path) -> None:
        self._fd = os.open(directory / NAME, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, *words: object) -> None:
        os.write(self._fd, " ".join(map(str, words)).replace("\n", " ").encode(errors="replace") + b"\n")


class Reader:
    """Reads on from where it was."""

    def __init__(self, directory: Path) -> None:
        self._path, self._at = directory / NAME, 0

    def lines(self) -> Iterator[list[str]]:
        """What was written since the last time, whole lines only."""
        if not self._path.exists():
            return
        with self._path.open("rb") as file:
            file.seek(self._at)
            data = file.read()
        whole = data.rfind(b"\n") + 1
        self._at += whole
        for line in data[:whole].split(b"\n")[:-1]:
            yield line.decode(errors="replace").split(" ")
