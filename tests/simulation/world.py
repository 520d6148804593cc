"""One simulated store: applies calls, asks the model first, and says what disagrees.

A trace is a list of `Step`s: a call with the server's time of it, or something done to the server. It is all that is
needed to repeat a run: the same steps give the same answers and the same keyspace, on every server.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import msgspec

from ffbackend_valkey import keys
from ffbackend_valkey.backend import bindings_of
from ffbackend_valkey.binding import Binding
from ffbackend_valkey.library import Library
from ffcore import ids
from ffcore.args import Args
from ffcore.backend import StoreConfig
from ffengine.check import Memory
from tests.simulation import audit
from tests.simulation.model import Expected, No
from tests.simulation.rules import Model
from tests.simulation.violation import Violation
from tests.simulation.wire import CLOCK_KEY, MISSING, Command, Place, Refused, Wire, one, tightened

START_MS = 1_800_000_000_000
FP = [ids.partition_key(0), ids.partition_key(1)]
WP = ids.partition_key(0, "w")
BP, QP = ids.partition_key(0, "b"), ids.partition_key(0, "q")
CONFIG = StoreConfig(fp=2)
COUNTS = msgspec.json.encode(CONFIG).decode()


class Step(NamedTuple):
    """`what`: a call's Args, ``restart`` or ``flush`` (of the functions). `ms`: the server's time."""

    ms: int
    what: Args[Any] | str

    def __str__(self) -> str:
        return f"{self.ms - START_MS:+} ms  {self.what if isinstance(self.what, str) else brief(self.what)}"


def brief(args: Args[Any]) -> str:
    """A call without what it leaves at its default."""
    given = [
        f"{field.name}={getattr(args, field.name)!r}"
        for field in msgspec.structs.fields(args)
        if field.default is msgspec.NODEFAULT or getattr(args, field.name) != field.default
    ]
    return f"{type(args).__name__}({', '.join(given)})"


class Refusal(NamedTuple):
    """An answer that is a refusal."""

    code: str
    detail: str


class World:
    """A store and its model, in step. `model=False` drives the store alone (replay, speed)."""

    def __init__(self, place: Place, library: Library, *, model: bool = True) -> None:
        self.place = place
        self.library, bounds = tightened(library)
        self.wire: Wire = place.open()
        self._bindings = bindings_of(self.library)
        self.checked = model
        self.model = Model(COUNTS, [*FP, WP, BP, QP], START_MS, bounds)
        self.ms = START_MS
        self._stored_ms = 0
        self.trace: list[Step] = []
        self.seen: Counter[tuple[str, str]] = Counter()
        self.channels: set[str] = set()
        self.calls = 0
        self.memory = Memory()
        """What the checker remembers from pass to pass."""
        self.cursors: dict[str, str] = {}
        """Last entry of each partition's feed that was looked at."""
        self._fresh()

    def _fresh(self) -> None:
        wire = self.wire
        one(wire, "FLUSHALL")
        one(wire, "SET", CLOCK_KEY, START_MS)
        self._load()
        for partition in [*CONFIG.keys("fp"), *CONFIG.keys("b"), *CONFIG.keys("q"), *CONFIG.keys("w")]:
            one(wire, "FCALL", "ff_init_partition", 2, *keys.pair(partition), COUNTS)
        self._stored_ms = START_MS

    def _load(self) -> None:
        if self.place.loaded != self.library.sha:
            one(self.wire, "FUNCTION", "LOAD", "REPLACE", self.library.source)
            self.place.loaded = self.library.sha

    def close(self) -> None:
        self.wire.close()

    # ---- steps

    def apply(self, step: Step) -> Any:
        """Do one step; answers the outcome or a Refusal. Raises Violation where the answer is not the model's."""
        self.trace.append(step)
        self.ms = step.ms
        if isinstance(step.what, str):
            getattr(self, f"_do_{step.what}")()
            return None
        return self._call(step.what)

    def _do_flush(self) -> None:
        one(self.wire, "FUNCTION", "FLUSH")
        self.place.loaded = ""

    def _do_restart(self) -> None:
        self.wire.close()
        self.place.restart()
        self.wire = self.place.open()
        if self.channels:
            self.wire.subscribe(sorted(self.channels))  # type: ignore[attr-defined]

    def listen(self, channels: list[str]) -> None:
        """Hear what is published there from now on."""
        if channels:
            self.channels.update(channels)
            self.wire.subscribe(channels)  # type: ignore[attr-defined]

    def _call(self, args: Args[Any]) -> Any:
        self.calls += 1
        binding = self._bindings[type(args)]
        expected = None
        if self.checked:
            self.model.touched.clear()
            expected = self.model.predict(args, binding.partitions(args), self.ms)
        commands: list[Command] = []
        if self.ms != self._stored_ms:
            commands.append(("SET", CLOCK_KEY, self.ms))
            self._stored_ms = self.ms
        commands.append(binding.request(args))
        raw = self.wire.pipe(commands)[-1]
        if isinstance(raw, Refused) and str(raw) == MISSING:
            # What the backend does where the functions are gone: nothing ran, so load them and repeat.
            self._load()
            self.seen["reload", "library"] += 1
            raw = self.wire.pipe(commands[-1:])[-1]
        if isinstance(raw, Refused):
            raise Violation(f"{binding.signature.name} error", self.library.locate(str(raw)))
        answer, word = self._read(binding, raw)
        self.seen[binding.signature.name, word] += 1
        if expected is not None:
            self._compare(binding.signature.name, expected, answer, word, args)
        return answer

    @staticmethod
    def _read(binding: Binding, raw: Any) -> tuple[Any, str]:
        try:
            if raw[0] == b"error":
                refusal = Refusal(raw[1].decode(), raw[2].decode(errors="replace"))
                return refusal, refusal.code
            return binding._variants[raw[0]](raw), raw[0].decode()
        except (TypeError, ValueError, LookupError, AttributeError) as wrong:
            raise Violation(f"{binding.signature.name} unreadable", f"answered {raw!r:.300}") from wrong

    # ---- answers against expectations

    def _compare(self, function: str, expected: Expected, answer: Any, word: str, args: Args[Any]) -> None:
        if isinstance(expected, No):
            if not isinstance(answer, Refusal) or answer.code != expected.code:
                raise Violation(f"{function} answer", f"answered {answer}, the model refuses {expected.code}: {args}")
            return
        if isinstance(answer, Refusal) or expected.tag not in ("*", word):
            raise Violation(f"{function} answer", f"answered {answer}, the model says {expected}: {args}")
        for name, wanted in expected.fields.items():
            got = answer
            for part in name.split("."):
                got = getattr(got, part)
            if not same(wanted, got):
                raise Violation(f"{function} {name}", f"answered {name} {got}, the model says {wanted}: {args}")
        if expected.learn is not None:
            wrong = expected.learn(answer)
            if wrong:
                raise Violation(f"{function} answer", f"{wrong}: {args}")

    def hear(self) -> list[tuple[str, str]]:
        """Messages since the last look, after they were compared with what the model wants sent."""
        heard, self.wire.pushed = self.wire.pushed, []
        if self.checked:
            told = [message for message in heard if not message[0].endswith(":tick") and ":s:" not in message[0]]
            wanted = [m for m in self.model.messages if m[0] in self.channels]
            if sorted(told) != sorted(wanted):
                raise Violation("messages", f"heard {sorted(told)}, the model says {sorted(wanted)}")
            for channel, due in self.model.rings:
                rung = [int(text) for name, text in heard if name == channel]
                if channel in self.channels and not any(at <= due for at in rung):
                    raise Violation("ticker bell", f"{channel} was not told of {due}, heard {rung}")
            readers = {channel for channel, _ in heard if ":s:" in channel}
            if readers != self.channels & set(self.model.streamed):
                raise Violation("readers", f"{sorted(readers)} were told, should be {sorted(set(self.model.streamed))}")
            self.model.messages.clear()
            self.model.rings.clear()
            self.model.streamed.clear()
        return heard

    def check_touched(self) -> None:
        """Records that the last call changed are as the model has them."""
        if self.model.touched:
            audit.records(self, list(self.model.touched.values()))

    def check_all(self, *, whole: bool = True) -> None:
        """Every record, timer, the feed and the header against the model."""
        if self.checked:
            audit.everything(self, whole=whole)

    def check_invariants(self) -> None:
        """Every relation within the store, by the engine's own checker."""
        audit.checked(self, [*FP, WP, BP, QP])

    def peek(self, args: Args[Any]) -> Any:
        """The answer to a read, outside of the trace."""
        binding = self._bindings[type(args)]
        self._load()
        (raw,) = self.wire.pipe([binding.request(args)])
        if isinstance(raw, Refused):
            raise Violation(f"{binding.signature.name} error", self.library.locate(str(raw)))
        return self._read(binding, raw)[0]


def same(wanted: Any, got: Any) -> bool:
    """Whether an answer is what was expected: a dict names some fields of a struct, a tuple its first ones."""
    if isinstance(wanted, list):
        return len(wanted) == len(got) and all(map(same, wanted, got))
    if isinstance(wanted, dict) and isinstance(got, msgspec.Struct):
        return all(same(value, getattr(got, name)) for name, value in wanted.items())
    if isinstance(wanted, tuple):
        return all(map(same, wanted, msgspec.structs.astuple(got)))
    return bool(wanted == got)


__all__ = ["BP", "COUNTS", "FP", "QP", "START_MS", "WP", "Refusal", "Step", "Violation", "World", "same"]
