"""From a failing run to a short trace: drop what is not needed, as long as the same thing goes wrong.

Delta debugging over the applied steps. Fences and instants stand in the steps themselves, so a trace with holes is
still a trace: what a dropped call would have done is simply not there, for the model as for the store.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

import ffcore.contracts as c
from ffbackend_valkey.library import Library
from tests.simulation.rules import READS
from tests.simulation.run import Simulation
from tests.simulation.violation import Violation
from tests.simulation.wire import Place
from tests.simulation.world import Step, World

TRIALS = 600
"""At most so many replays: a fraction of a second each."""


def replayed(steps: Sequence[Step], place: Place, library: Library, *, drain: bool = False) -> Violation | None:
    """What goes wrong when these steps are taken on an empty store, if anything does."""
    world = World(place, library)
    try:
        world.listen(sorted({channel for step in steps for channel in _channels(step)}))
        for step in steps:
            world.apply(step)
            world.hear()
            world.check_touched()
        world.check_all()
        world.check_invariants()
        if drain:
            sim = Simulation.after(world)
            sim.drain()
    except Violation as found:
        return found
    finally:
        world.close()
    return None


def _channels(step: Step) -> list[str]:
    """The channels that matter to a step's caller; everything that could be heard is heard."""
    names = [(kind, getattr(step.what, field, None)) for kind, field in
             (("w", "worker_instance_id"), ("w", "park"), ("c", "client"))]  # fmt: skip
    id = getattr(step.what, "execution_id", None)
    read = [f"ff:{id[:6]}:s:{id[7:]}"] if isinstance(id, str) else []
    return ["ff:{fp:0}:tick", "ff:{fp:1}:tick", *read] + [
        f"ff:{{fp:{n}}}:{kind}:{name}" for kind, name in names if name for n in range(2)
    ]


def shrink(
    steps: Sequence[Step], fails: Callable[[Sequence[Step]], bool], trials: int = TRIALS, about: str = ""
) -> list[Step]:  # fmt: skip
    """The shortest trace found for which `fails` still holds; `steps` itself must fail. `about`: a text that names the
    executions it is probably about."""
    left = trials

    def still(candidate: list[Step]) -> bool:
        nonlocal left
        left -= 1
        return left >= 0 and fails(candidate)

    kept = list(steps)
    near = _near(kept, about)
    if 0 < len(near) < len(kept) and still(near):
        kept = near
    plain = [step for step in kept if isinstance(step.what, str) or not _reads(step)]
    if len(plain) < len(kept) and still(plain):
        kept = plain
    size = max(1, len(kept) // 2)
    while left > 0:
        at, dropped = 0, False
        while at < len(kept) and left > 0:
            candidate = kept[:at] + kept[at + size :]
            if candidate and still(candidate):
                kept, dropped = candidate, True
            else:
                at += size
        if size == 1 and not dropped:
            break
        size = max(1, size // 2) if not dropped or size > 1 else 1
    return kept


def _near(steps: Sequence[Step], about: str) -> list[Step]:
    """What names the same executions, the claims that leased them, and what goes by time or for a whole partition."""
    ids = set(re.findall(r"[0-9a-f]{8}-[0-9a-f]{4}-[78][0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", about))
    texts = [str(step) for step in steps]
    named = [any(id in text for id in ids) for text in texts]
    mine = " ".join(text for text, near in zip(texts, named, strict=True) if near)
    leases = set(re.findall(r"\w+-\d+\.s\.\d+", mine))
    kept: list[Step] = []
    for step, near in zip(steps, named, strict=True):
        whole = isinstance(step.what, str | c.TickArgs) or not hasattr(step.what, "execution_id")
        claim = getattr(step.what, "claim_id", None)
        if near or (whole and claim is None and not hasattr(step.what, "items")) or claim in leases:
            if isinstance(step.what, c.CreateManyArgs):
                # Without those that were created along with it, its claim finds it in the same place.
                rows = [row for row in step.what.items if any(id in row.execution_id for id in ids)]
                step = Step(step.ms, msgspec.structs.replace(step.what, items=rows))
            kept.append(step)
    return kept


def _reads(step: Step) -> bool:
    return not isinstance(step.what, str) and step.what.function().removeprefix("ff_") in READS


def shrunk(steps: Sequence[Step], found: Violation, place: Place, library: Library) -> list[Step]:
    """A short trace that goes wrong in the same way; the whole one where it does not go wrong again."""
    drain = found.kind == "liveness"

    def fails(candidate: Sequence[Step]) -> bool:
        try:
            again = replayed(candidate, place, library, drain=drain)
        except AssertionError:
            return False  # with that hole it leaves what the model covers: nothing can be told of it
        return again is not None and again.kind == found.kind

    return shrink(steps, fails, about=found.text) if fails(list(steps)) else list(steps)
