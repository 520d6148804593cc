"""Run mutants against killers, two at a time, and tell who killed whom.

The Lua is copied first: a run judges one state of the source, whatever is edited meanwhile.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing.util import Finalize
from pathlib import Path
from typing import NamedTuple

from ffbackend_valkey.library import lua_root
from tests.mutants import mutant as mutants
from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.killers import Kill, Killer, Server, tests
from tests.mutants.mutant import Drift, Mutant, library_with
from tests.mutants.simulation import simulation
from tests.mutants.walk import walk

PROCESSES = 2
KILLERS: tuple[Killer, ...] = (simulation, walk, tests)
"""In the order in which a mutant meets them."""


class Verdict(NamedTuple):
    mutant: Mutant | None
    """None: the library as it is."""
    kill: Kill | None
    seconds: float
    drift: str = ""

    @property
    def word(self) -> str:
        if self.mutant is None:
            return "control failed" if self.kill else "control ok"
        if self.drift:
            return "drifted"
        listed = self.mutant.id in EQUIVALENT
        if self.kill:
            return "NOT EQUIVALENT" if listed else "killed"
        return "equivalent" if listed else "SURVIVED"

    @property
    def good(self) -> bool:
        return self.word in ("killed", "equivalent", "control ok")


_server: Server | None = None


def _begin(lua: str) -> None:
    """Once per process."""
    global _server
    mutants.ROOT = Path(lua)
    _server = Server()
    # A worker of a pool leaves without its atexit functions; these it calls.
    Finalize(None, _server.close, exitpriority=10)


def judge(mutant: Mutant | None, killers: Iterable[Killer]) -> Verdict:
    """Try the killers in turn until one has killed it."""
    assert _server is not None
    began = time.monotonic()
    try:
        lib = library_with(mutant)
    except Drift as drift:
        return Verdict(mutant, None, 0.0, str(drift))
    for killer in killers:
        if killer is tests and mutant and mutant.id in EQUIVALENT:
            break  # whoever listed it has run them all; the cheap ones look again
        kill = killer(_server, lib, mutant)
        if kill:
            return Verdict(mutant, kill, time.monotonic() - began)
    return Verdict(mutant, None, time.monotonic() - began)


def run(chosen: Iterable[Mutant], *, processes: int = PROCESSES) -> Iterator[Verdict]:
    """The verdicts as they come. The control is begun first, and nothing follows one that failed."""
    with tempfile.TemporaryDirectory(prefix="ff-lua-") as home:
        lua = Path(home, "lua")
        shutil.copytree(lua_root(), lua)
        pool = ProcessPoolExecutor(processes, initializer=_begin, initargs=(str(lua),))
        try:
            # All the tests take one process minutes; the other one need not wait for them.
            control = [pool.submit(judge, None, [killer]) for killer in KILLERS]
            for future in as_completed([*control, *(pool.submit(judge, mutant, KILLERS) for mutant in chosen)]):
                verdict = future.result()
                yield verdict
                if verdict.mutant is None and not verdict.good:
                    return
        finally:
            pool.shutdown(cancel_futures=True)
