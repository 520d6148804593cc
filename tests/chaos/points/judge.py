"""What must be true of a run of points: the book of all processes held against what the store has at the end.

The rule: a step is recorded from the line on that says so, whether its worker was answered so or the next claim was
told of it, and no function of it begins after that line.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import msgspec

from ffcore.steps import FINAL
from tests.chaos.points import plan
from tests.chaos.points.plan import Order, Receipt
from tests.chaos.verify import Wrong

SIGKILL = -9


class Emitted(NamedTuple):
    """A frame as the store has it."""

    attempt: int
    of: str
    run: int
    epoch: int


class Entry(NamedTuple):
    """A journal entry of the last run."""

    name: str
    status: str
    at_ms: int


class Child(NamedTuple):
    """A child as the store has it at the end."""

    name: str
    state: str
    result: bytes
    made: int
    """How often the feed says that it was created."""
    ends: int
    epoch: int
    """Of the lease that ended it."""


class Stored(NamedTuple):
    """A job as the store has it at the end."""

    execution_id: str
    state: str
    result: bytes
    said: str
    """Why it did not complete."""
    frames: Sequence[Emitted]
    journal: Sequence[Entry]
    ends: int
    """How often its feed says that it ended."""
    continued: int
    """How often that it began anew."""
    flow: tuple[str, int]
    """Public state of its flow, and how many members that has."""
    children: Sequence[Child]


class Begun(NamedTuple):
    epoch: int
    key: str
    at_ms: int


Step = tuple[int, int, str]
"""Job, run, name."""


class Evidence:
    """The book, read from its beginning."""

    def __init__(self) -> None:
        self.begun: dict[Step, list[Begun]] = defaultdict(list)
        self.ended: dict[Step, list[int]] = defaultdict(list)
        """Epochs."""
        self.recorded: dict[Step, set[int]] = defaultdict(set)
        """Steps that are what they came to; epochs of the leases that were answered so."""
        self.reruns: list[tuple[Step, int]] = []
        """Steps begun after they had been recorded, and the epoch."""
        self.stalled_n = 0
        """Steps begun under a lease that another had followed: by a worker that did not know yet."""
        self.passed: dict[int, set[str]] = defaultdict(set)
        """Points of the jobs that nobody kills."""
        self.kills: list[tuple[int, str]] = []
        self.killers: set[int] = set()
        """Process ids."""
        self.beside_n = 0
        """Other jobs that the killed workers held."""
        self.died: list[tuple[int, int]] = []
        self.recoveries: list[float] = []
        """Milliseconds from a kill to the next claim of the job."""
        self.claims_n = 0
        self.frames: dict[int, list[tuple[int, str, int]]] = defaultdict(list)
        """By job: run, what of, epoch of those the store said it has."""
        self.letters: dict[int, set[str]] = defaultdict(set)
        self.born: dict[tuple[int, str], list[tuple[str, bool]]] = defaultdict(list)
        """By job and child: its execution, and whether the answer said that it is new."""
        self.ran: dict[tuple[int, str], set[int]] = defaultdict(set)
        """Epochs under which a child came to its end."""
        self.hatched_n = 0
        """Leases of children."""
        self.sent: dict[tuple[int, str], list[tuple[str, str, bool]]] = defaultdict(list)
        """Answers by job and key: id, effect, whether it was new."""
        self.refused: list[tuple[int, str, str]] = []
        self.fatal: list[str] = []
        self._epochs: dict[int, int] = {}
        self._killed_at: dict[int, int] = {}

    def take(self, lines: Iterable[list[str]]) -> None:
        for words in lines:
            self._take(words)

    def _take(self, words: list[str]) -> None:
        match words:
            case ["claim", n, epoch, _, _, _, at]:
                self.claims_n += 1
                self._epochs[int(n)] = max(int(epoch), self._epochs.get(int(n), 0))
                if (killed := self._killed_at.pop(int(n), None)) is not None:
                    self.recoveries.append(int(at) - killed)
            case ["head", n, run, step, status]:
                if status in FINAL:
                    self.recorded[int(n), int(run), step] |= set()
            case ["ack", n, run, step, status, epoch, _]:
                if status in FINAL:
                    self.recorded[int(n), int(run), step].add(int(epoch))
            case ["at", n, point]:
                self.passed[int(n)].add(point)
            case ["begin", n, run, step, epoch, key, at]:
                self._begin((int(n), int(run), step), Begun(int(epoch), key, int(at)))
            case ["end", n, run, step, epoch, _]:
                self.ended[int(n), int(run), step].append(int(epoch))
            case ["frame", n, run, of, epoch]:
                self.frames[int(n)].append((int(run), of, int(epoch)))
            case ["kill", n, point, pid, beside, at]:
                self.kills.append((int(n), point))
                self.killers.add(int(pid))
                self.beside_n += int(beside)
                if not point.startswith("child:"):
                    self._killed_at[int(n)] = int(at)
            case ["died", pid, code]:
                self.died.append((int(pid), int(code)))
            case ["born", n, child, execution_id, new]:
                self.born[int(n), child].append((execution_id, new == "1"))
            case ["child", *_]:
                self.hatched_n += 1
            case ["ran", n, child, epoch]:
                self.ran[int(n), child].add(int(epoch))
            case ["letter", n, token]:
                self.letters[int(n)].add(token)
            case ["sent", n, key, signal_id, effect, new]:
                self.sent[int(n), key].append((signal_id, effect, new == "1"))
            case ["refused", n, key, code]:
                self.refused.append((int(n), key, code))
            case ["fatal", *text]:
                self.fatal.append(" ".join(text))
            case _:
                raise ValueError(f"the book has a line that nobody writes: {words}")

    def _begin(self, step: Step, begun: Begun) -> None:
        self.begun[step].append(begun)
        if step not in self.recorded:
            return
        if begun.epoch < self._epochs.get(step[0], 0):
            self.stalled_n += 1
        else:
            self.reruns.append((step, begun.epoch))


# ---- the judgement -------------------------------------------------------------------------------------


def judge(
    found: Evidence, stored: Mapping[int, Stored], orders: Sequence[Order], points: Sequence[str], per_point: int
) -> list[Wrong]:
    """Everything that is wrong. points: those that were to be met, per_point times each at least."""
    wrong = [Wrong("process", text) for text in found.fatal]
    wrong += [
        Wrong("process", f"worker {pid} ended with {code}, and did not say that it kills itself")
        for pid, code in found.died if code and (code != SIGKILL or pid not in found.killers)
    ]  # fmt: skip
    for (n, run, step), epoch in found.reruns:
        text = f"job {n} run {run}: {step} was recorded, and began again under epoch {epoch}"
        wrong.append(Wrong("rerun", text, _id(stored, n)))
    for order in orders:
        job = stored.get(order.n)
        if job is None:
            wrong.append(Wrong("lost", f"job {order.n} is unknown"))
            continue
        wrong += [Wrong(sort, f"job {order.n}: {text}", job.execution_id) for sort, text in _of_job(found, order, job)]
    wrong += _coverage(found, orders, points, per_point)
    return wrong


def _id(stored: Mapping[int, Stored], n: int) -> str:
    return stored[n].execution_id if n in stored else ""


def _of_job(found: Evidence, order: Order, job: Stored) -> Iterator[tuple[str, str]]:
    if job.state != "completed":
        yield "lost", f"it is {job.state} at the end: {job.said}"
        return
    if (job.ends, job.continued) != (1, 1):
        yield "twice", f"it ended {job.ends} times and began anew {job.continued} times"
    yield from _result(found, order.n, job)
    for run, steps in plan.BODIES.items():
        for step in steps:
            yield from _step(found, (order.n, run, step))
    for entry in job.journal:
        late = [b for b in found.begun.get((order.n, 1, entry.name), ()) if b.at_ms > entry.at_ms]
        if entry.status in FINAL and late:
            yield "rerun", f"{entry.name} was recorded at {entry.at_ms} by the journal, and began at {late[0].at_ms}"
    yield from _frames(found, order.n, job)
    yield from _signals(found, order.n)
    yield from _children(found, order.n, job)


def _result(found: Evidence, n: int, job: Stored) -> Iterator[tuple[str, str]]:
    """It depends on one thing alone: whether the step that is begun at most once was interrupted."""
    charged = "paid" if (n, 0, plan.ONCE) in found.recorded else "interrupted"
    if charged == "interrupted" and not found.kills:
        yield "result", f"{plan.ONCE} was never recorded, and nobody died"
    try:
        result = msgspec.json.decode(job.result, type=Receipt)
    except msgspec.DecodeError as unfit:
        yield "result", f"{job.result!r:.200}: {unfit}"
        return
    if result != (right := plan.receipt(n, charged)):
        yield "result", f"{result} is not {right}"


def _step(found: Evidence, step: Step) -> Iterator[tuple[str, str]]:
    _, run, name = step
    begun, ended = found.begun.get(step, []), found.ended.get(step, [])
    if name == plan.ONCE:
        if len(begun) > 1:
            yield "at_most_once", f"{name} began {len(begun)} times in run {run}, under {[b.epoch for b in begun]}"
        return
    if step not in found.recorded:
        yield "result", f"{name} of run {run} was never recorded"
    elif found.recorded[step] - set(ended):
        yield "result", f"{name} of run {run} was recorded by {found.recorded[step]}, and ended under {ended} alone"
    if len({one.key for one in begun}) > 1:
        yield "effect_key", f"{name} of run {run} had {len(begun)} keys for its effect"


def _frames(found: Evidence, n: int, job: Stored) -> Iterator[tuple[str, str]]:
    """What the store said it has, it has, once; and a recorded step has what its function emitted."""
    has = Counter((frame.run, frame.of, frame.epoch) for frame in job.frames)
    for key, count in has.items():
        if count > 1:
            yield "frame", f"{count} frames {key}, one was emitted"
    for run, of, epoch in found.frames.get(n, ()):
        if not has[run, of, epoch]:
            yield "frame", f"frame {of} of run {run}, epoch {epoch}, was acknowledged and is not there"
    for run in (0, 1):
        for epoch in found.recorded.get((n, run, "reserve"), ()):
            if not has[run, "reserve", epoch]:
                yield "frame", f"reserve was recorded in run {run} by epoch {epoch}, and its frame is not there"


def _children(found: Evidence, n: int, job: Stored) -> Iterator[tuple[str, str]]:
    """Each is one execution, whoever asked for it how often, and has ended once."""
    for name in plan.CHILDREN:
        answers = found.born.get((n, name), [])
        if len({execution_id for execution_id, _ in answers}) != 1 or sum(new for _, new in answers) > 1:
            yield "child", f"{name} was spawned as {answers}"
    if sorted(child.name for child in job.children) != sorted(plan.CHILDREN):
        yield "child", f"it has the children {[child.name for child in job.children]}"
    for child in job.children:
        if (child.made, child.ends, child.state) != (1, 1, "completed"):
            yield "child", f"{child.name} was made {child.made} times and ended {child.ends} times, as {child.state}"
        elif child.result != str(n + plan.CHILDREN[child.name]).encode() or child.epoch not in found.ran[n, child.name]:
            ran = sorted(found.ran[n, child.name])
            yield "child", f"{child.name} returned {child.result!r} under epoch {child.epoch}, it ran under {ran}"
    if job.flow != ("completed", 1 + len(plan.CHILDREN)):
        yield "child", f"its flow is {job.flow}"


def _signals(found: Evidence, n: int) -> Iterator[tuple[str, str]]:
    if len(tokens := found.letters[n]) != 1:
        yield "signal", f"its gate had {len(tokens)} tokens"
    for number, key, code in found.refused:
        if number == n:
            yield "signal", f"signal {key} was refused: {code}"
    for key, least in (("a", 3), ("b", 3), ("c", 1)):
        answers = found.sent.get((n, key), [])
        if len(answers) < least or len({(signal_id, effect) for signal_id, effect, _ in answers}) > 1:
            yield "signal", f"{key} was answered {answers}"
        elif sum(new for _, _, new in answers) != 1:
            yield "signal", f"{key} was taken {sum(new for _, _, new in answers)} times"


def _coverage(found: Evidence, orders: Sequence[Order], points: Sequence[str], per_point: int) -> Iterator[Wrong]:
    references = [found.passed[order.n] for order in orders if not order.die]
    for at in sorted(set[str]().union(*references)):
        if any(at not in one for one in references):
            yield Wrong("coverage", f"{at} was passed by some of the jobs that nobody kills, not by all")
    for point in sorted(set(plan.must_pass()) - set[str]().union(*references)):
        yield Wrong("coverage", f"nobody passed {point}")
    met = Counter(point for _, point in found.kills)
    for point in points:
        if met[point] < per_point:
            yield Wrong("coverage", f"{met[point]} kills at {point}, wanted {per_point}")


def repeats(found: Evidence) -> int:
    """Functions that began another time: what they had come to before was not recorded."""
    return sum(len(begun) - 1 for begun in found.begun.values() if begun)
