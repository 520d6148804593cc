"""`make mutants`: break the Lua on purpose, many ways, and see that every break is noticed.

    python -m tests.mutants [--only WORD] [--all] [--sample N] [--list]

Prints one line per mutant as it is judged and a table at the end; exit status 1 if one survived or a patch has drifted.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
import time
from collections import Counter

from ffbackend_valkey.library import assemble
from tests.mutants.mutant import Mutant
from tests.mutants.named import NAMED
from tests.mutants.operators import generated
from tests.mutants.run import PROCESSES, Verdict, run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("--only", default="", help="mutants whose id has one of these words in it (comma between)")
    parser.add_argument("--all", action="store_true", help="every mutant the operators can make, not a sample")
    parser.add_argument("--sample", type=int, default=0, help="so many of them: others with each change of the Lua")
    parser.add_argument("--list", action="store_true", help="say what would be run, and where each one cuts")
    parser.add_argument("--processes", type=int, default=PROCESSES)
    given = parser.parse_args()
    words = given.only.split(",")
    chosen = [m for m in (*NAMED, *generated(everything=given.all)) if any(word in m.id for word in words)]
    if not chosen:
        print(f"no mutant has {given.only!r} in its id; --list shows them", file=sys.stderr)
        return 1
    if 0 < given.sample < len(chosen):
        chosen = sampled(chosen, given.sample)
    if given.list:
        for mutant in chosen:
            print(f"{mutant.invariant:9} {mutant.id}\n          {_cut(mutant)}")
        return 0
    # A run that is told to stop takes its servers along.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    began = time.monotonic()
    verdicts: list[Verdict] = []
    for verdict in run(chosen, processes=given.processes):
        verdicts.append(verdict)
        print(_line(verdict), flush=True)
    return _summary(verdicts, len(chosen), time.monotonic() - began)


def sampled(mutants: list[Mutant], count: int) -> list[Mutant]:
    """Which ones follows from the library as it stands: the same tree judges the same mutants, the next one others."""
    sha = assemble().sha
    ranked = sorted(mutants, key=lambda mutant: hashlib.sha256(f"{sha} {mutant.id}".encode()).digest())
    return sorted(ranked[:count], key=mutants.index)


def _cut(mutant: Mutant) -> str:
    if mutant.kind == "generated":
        return mutant.why
    return "; ".join(f"{p.file}: {p.old!r} -> {p.new!r}" for p in mutant.patches)


def _line(verdict: Verdict) -> str:
    mutant, kill = verdict.mutant, verdict.kill
    invariant, id = (mutant.invariant, mutant.id) if mutant else ("", "the library as it is")
    head = f"{verdict.word:14} {invariant:9} {id:52}"
    if verdict.drift:
        return f"{head} {verdict.drift}"
    if kill:
        return f"{head} {kill.killer:10} {kill.how:11} {kill.steps:5}  {kill.found[:120]}"
    if mutant is None:
        return f"{head} {verdict.seconds:.1f} s"
    return f"{head} {_cut(mutant)[:150]}"


def _summary(verdicts: list[Verdict], wanted_n: int, seconds: float) -> int:
    judged = [v for v in verdicts if v.mutant]
    by_killer = Counter(v.kill.killer for v in judged if v.kill)
    ways = Counter(v.kill.how.partition(" ")[0] for v in judged if v.kill)
    words = Counter(v.word for v in judged)
    print()
    print(f"{len(judged)} mutants in {seconds:.0f} s: " + ", ".join(f"{n} {word}" for word, n in sorted(words.items())))
    print("killed by: " + ", ".join(f"{killer} {n}" for killer, n in by_killer.most_common()))
    print("seen by: " + ", ".join(f"{way} {n}" for way, n in ways.most_common()))
    for v in judged:
        if not v.good:
            print(_line(v))
    return 0 if all(v.good for v in verdicts) and len(judged) == wanted_n else 1


if __name__ == "__main__":
    sys.exit(main())
