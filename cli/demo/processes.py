"""The demo's processes and its directory: started here, ended here, whatever happens.

The rule: only what was started here is signalled, by its id, and nothing is left behind.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from pathlib import Path

from .app import LANE

STOP_S = 10.0
"""Bound on each of asking and telling a process to end."""


class Failed(Exception):
    """The demo could not show what it is there to show."""


def child_environment(url: str) -> dict[str, str]:
    """This process's, such that a child finds the same packages and the demo's store."""
    import ffsdk

    packages = {str(Path(__file__).parents[2].absolute()), str(Path(ffsdk.__file__).absolute().parents[1])}
    path = [*sorted(packages), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "FF_URL": url, "FF_QUIET": "1"}


class Workers:
    """The worker processes, each in the demo's own hands until it has ended."""

    def __init__(self, url: str, directory: Path, concurrency: int) -> None:
        self._url, self._directory, self._concurrency = url, directory, concurrency
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, n: int) -> None:
        package = __name__.partition(".")[0]
        command = [
            sys.executable,
            "-m",
            f"{package}.main",
            "worker",
            "run",
            f"{package}.demo.app:app",
            "--lane",
            LANE,
            "--concurrency",
            str(self._concurrency),
        ]
        for number in range(n):
            with (self._directory / f"worker-{number}.log").open("wb") as log:
                self.processes.append(
                    subprocess.Popen(
                        command,
                        env=child_environment(self._url),
                        cwd=self._directory,
                        stdin=subprocess.DEVNULL,
                        stdout=log,
                        stderr=log,
                    )
                )

    def check(self, *, but: int | None = None) -> None:
        """Failed if one ended that nobody killed."""
        for number, process in enumerate(self.processes):
            if process.pid != but and process.poll() is not None:
                said = (self._directory / f"worker-{number}.log").read_text(errors="replace").strip().splitlines()
                raise Failed(f"worker {process.pid} ended with {process.returncode}: " + " | ".join(said[-5:]))

    def stop(self) -> None:
        """Ask, then insist. Only processes started here; a stopped one is woken so that it can hear."""
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.terminate()
        deadline = time.monotonic() + STOP_S
        for process in self.processes:
            try:
                process.wait(max(0.0, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


@contextlib.contextmanager
def directory_with_store() -> Generator[tuple[Path, str]]:
    """A fresh directory and the URL of its embedded store; both are gone afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="ff-demo-"))
    name, before = "FF_EMBEDDED_LINGER", os.environ.get("FF_EMBEDDED_LINGER")
    os.environ[name] = "0.3"  # the server need not wait for anybody else: its directory is ours
    try:
        yield directory, f"embedded://{directory}/store"
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
        _wait_for_server(directory / "store" / "endpoint.json")
        shutil.rmtree(directory, ignore_errors=True)


def _wait_for_server(endpoint: Path) -> None:
    """Until the store's keeper has ended its server, which it publishes by taking this file away."""
    deadline, asked = time.monotonic() + STOP_S, False
    while True:
        try:
            keeper_pid = int(json.loads(endpoint.read_text())["keeper_pid"])
        except (OSError, ValueError, KeyError):
            return
        if time.monotonic() > deadline:
            if asked:
                return
            with contextlib.suppress(ProcessLookupError):
                os.kill(keeper_pid, signal.SIGTERM)
            deadline, asked = time.monotonic() + STOP_S, True
        time.sleep(0.02)
