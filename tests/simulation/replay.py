"""The same trace on several servers: answers and keyspaces must agree."""

from __future__ import annotations

from collections.abc import Sequence

from ffbackend_valkey.library import Library
from tests.simulation.wire import Place, dump
from tests.simulation.world import Step, World


def played(trace: Sequence[Step], place: Place, library: Library) -> tuple[list[str], list[str]]:
    """Take the steps on an empty store; every answer, and the dump of what stands there at the end. A restart is
    left out where the server cannot be restarted: it must change nothing."""
    world = World(place, library, model=False)
    try:
        answers = [f"{world.apply(step)!r}" for step in trace if step.what != "restart"]
        return answers, dump(world.wire)
    finally:
        world.close()


def differences(trace: Sequence[Step], here: Place, there: Place, library: Library) -> list[str]:
    """Where two servers part; nothing, if they agree."""
    ours, our_keys = played(trace, here, library)
    theirs, their_keys = played(trace, there, library)
    steps = [step for step in trace if step.what != "restart"]
    out = [
        f"{step}\n    {here.name}: {a}\n    {there.name}: {b}"
        for step, a, b in zip(steps, ours, theirs, strict=True) if a != b
    ]  # fmt: skip
    mine, yours = set(our_keys), set(their_keys)
    return out + [f"only {here.name}: {line}" for line in sorted(mine - yours)] + [
        f"only {there.name}: {line}" for line in sorted(yours - mine)
    ]
