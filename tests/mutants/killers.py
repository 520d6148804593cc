"""What is run against a mutant, and how its death is told.

A killer takes a server of its own, the mutated library and the mutant that is in it (None: the library as it is).
It answers how the mutant died, or None: it has seen nothing wrong.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine, Generator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from ffbackend_valkey import library as library_module
from ffbackend_valkey.library import Library
from tests.lua import engine as lua_engine
from tests.mutants import mutant as mutants
from tests.mutants.mutant import Mutant, mutated
from tests.simulation.wire import ValkeyPlace

TESTS = Path(__file__).resolve().parents[1]
HANG_S = 20.0
"""Longer than any killer takes; a mutant that is not done by then loops."""


class Kill(NamedTuple):
    killer: str
    """walk, simulation or tests."""
    found: str
    """An invariant and what is wrong, a disagreement with the model, an error, or the name of a test."""
    steps: int
    """Calls made until then; for tests, how many were run."""

    @property
    def how(self) -> str:
        """Who saw it: the checker and its invariant, the model, liveness, what the walk asks, a crash, a test."""
        if self.killer == "tests":
            return "test"
        if rule := re.search(r"^seed \d+: (?:(?:invariant|Wrong:) )?(I\d+)\b", self.found):
            return f"{'asked' if 'Wrong:' in self.found else 'checker'} {rule[1]}"
        if "liveness" in self.found:
            return "liveness"
        return "crash" if re.search(r"\bERR\b|\w+Error |EngineBug|no end within", self.found) else "model"


class Server(ValkeyPlace):
    """A Valkey of our own on a socket; also a place of the simulation. One that hangs is killed and started anew."""

    @property
    def url(self) -> str:
        return f"unix://{self._path}"

    def again(self) -> None:
        self._process.kill()
        self._process.wait()
        self._process = self._start()


Killer = Callable[[Server, Library, Mutant | None], Kill | None]


def bounded(server: Server, killer: str, work: Coroutine[Any, Any, Kill | None]) -> Kill | None:
    """Run to the end, or find that there is none."""

    async def run() -> Kill | None:
        return await asyncio.wait_for(work, HANG_S)

    try:
        return asyncio.run(run())
    except TimeoutError:
        server.again()
        return Kill(killer, f"no end within {HANG_S:g} s", 0)


# ---- the tests of tests/lua --------------------------------------------------------------------------------


class _Endless(BaseException):
    """A test that does not end. Of no kind that a test catches."""


def _stop(*_: object) -> None:
    raise _Endless(f"no end within {HANG_S:g} s")


class _Watcher:
    """A pytest plugin: the first failure, and how many tests ran."""

    def __init__(self) -> None:
        self.failed: str | None = None
        self.run_n = 0

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        signal.setitimer(signal.ITIMER_REAL, HANG_S)
        try:
            return (yield)
        except _Endless as endless:
            self.failed = self.failed or f"{item.name}: {endless}"
            pytest.exit(self.failed)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.run_n += report.when == "call"
        if report.failed and self.failed is None:
            crash = getattr(report.longrepr, "reprcrash", None)
            message = crash.message.splitlines()[0] if crash else ""
            self.failed = f"{report.nodeid.removeprefix('tests/lua/').partition('[')[0]}: {message}"

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed and self.failed is None:
            self.failed = f"{report.nodeid} cannot be collected"


_now: dict[str, Any] = {}
"""The library that tests load, and its files: what tests bound by name answers what stands here now."""


def _show(lib: Library, mutant: Mutant | None) -> None:
    """Let tests find this library and these files wherever they look."""
    if "home" not in _now:
        _now["home"] = tempfile.TemporaryDirectory(prefix="ff-mutant-")
        lua_engine.library_of = lambda: _now["library"]  # type: ignore[assignment]
        library_module.lua_root = lambda: Path(_now["home"].name)
    _now["library"] = lib
    shutil.copytree(mutants.ROOT, _now["home"].name, dirs_exist_ok=True)
    for file, text in mutated(mutant.patches).items() if mutant else ():
        Path(_now["home"].name, file).write_text(text)
    for name, module in list(sys.modules.items()):
        for value in vars(module).values() if name.startswith("tests.lua.") else ():
            if hasattr(value, "cache_clear"):
                value.cache_clear()


_NEAR = {
    "attempt": "lease outcome cancel bounds", "cascade": "flow_replay random_dags", "claim": "bounds",
    "control": "lease cancel", "dependency": "graph flow_check", "due": "tick", "fence": "outcome",
    "flow": "whole_flow", "flows": "flow graph random_dags", "grant": "replays",
    "graph": "submit_flow submit_refusals dependency random_dags", "holds": "hold", "lanes": "lane",
    "partition": "tick lease gate migration", "policy": "execution", "purge": "flow_retention retention",
    "queue": "order claim", "record": "outcome migration", "repair": "check", "retention": "worker flow_retention",
    "state": "terminal_door control outcome", "submission": "execution submit_flow", "timers": "tick",
    "wake": "bells waiter", "walk": "migration",
}  # fmt: skip
_SLOW = {"test_outbox.py", "test_view.py", "test_any_order.py", "test_hold.py", "test_check.py"}


def _near_and_far(file: str) -> tuple[list[str], list[str]]:
    """The files of tests/lua: those about the nouns of a Lua file, and the others, the slow ones last."""
    noun = Path(file).stem
    near = {f"test_{name}.py" for name in (noun, *_NEAR.get(noun, "").split())}
    # That every outcome was seen is a promise about the tests.
    paths = sorted((TESTS / "lua").glob("test_*.py"), key=lambda p: (p.name in _SLOW, p.name))
    paths = [path for path in paths if path.name != "test_every_outcome.py"]
    return [str(p) for p in paths if p.name in near], [str(p) for p in paths if p.name not in near]


def tests(server: Server, lib: Library, mutant: Mutant | None) -> Kill | None:
    """The tests of tests/lua, stopping at the first that fails, inside this process."""
    _show(lib, mutant)
    os.environ["FF_TEST_URL"] = server.url
    run_n = 0
    for paths in _near_and_far(mutant.patches[0].file if mutant else ""):
        watcher = _run(paths) if paths else _Watcher()
        run_n += watcher.run_n
        if watcher.failed:
            if "no end within" in watcher.failed:
                server.again()
            return Kill("tests", watcher.failed, run_n)
    if not run_n:
        raise RuntimeError("no test of tests/lua ran")
    return None


def _run(paths: list[str]) -> _Watcher:
    watcher, before = _Watcher(), signal.signal(signal.SIGALRM, _stop)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        pytest.main(["-x", "-q", "-p", "no:cacheprovider", *paths], plugins=[watcher])
    signal.signal(signal.SIGALRM, before)
    return watcher
