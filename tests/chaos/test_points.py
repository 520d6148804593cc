"""A run that kills at every point fails when something recorded is done again, or done twice, or gone: small runs of it
on broken code, one on the right one, and stories told to its judge.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
import pytest

from tests.chaos.__main__ import perform
from tests.chaos.mutants import MUTANTS
from tests.chaos.points import plan
from tests.chaos.points.judge import Child, Emitted, Entry, Evidence, Stored, judge
from tests.chaos.points.plan import Order, Size
from tests.chaos.points.report import Report

SMALL = Size(share=0.25, patience_s=12.0)


def small(mutant: str = "") -> Report:
    _, said = perform(msgspec.structs.replace(SMALL, mutant=mutant), quiet=True)
    assert said, "the run left no report"
    return msgspec.json.decode(said, type=Report)


CAUGHT = {
    "forgotten": "rerun", "nointent": "at_most_once", "doubled": "signal", "oneattempt": "frame", "unheard": "lost",
}  # fmt: skip
"""What each mutant must be caught by. That a run met too little is no proof that it would have noticed."""


@pytest.mark.parametrize("mutant", sorted(name for name, one in MUTANTS.items() if one.run == "points"))
def test_broken_code_does_not_survive_a_run_of_points(mutant: str) -> None:
    report = small(mutant)
    assert not report.ok
    assert CAUGHT[mutant] in {wrong.sort for wrong in report.wrong}, report.wrong


def test_the_right_code_survives_the_same_run() -> None:
    report = small()
    assert report.wrong == [] and report.ok
    assert report.kills >= report.points >= 25 and report.fewest == 1 and report.rerun == 0


# ---- the judge ------------------------------------------------------------------------------------------

EPOCH = 7
SLOW = 100
"""Milliseconds between two lines."""


def book(n: int = 5) -> list[str]:
    """What a job that is killed once leaves behind where all is well."""
    lines = [f"claim {n} 5 0 0 first 0", f"begin {n} 0 reserve 5 key.reserve 10", f"kill {n} first/claimed 77 1 20"]
    lines += ["died 77 -9", f"claim {n} {EPOCH} 0 1 first 30"]
    for run, steps in plan.BODIES.items():
        for at, step in enumerate(steps, 1):
            if step == "reserve":
                lines += [f"frame {n} {run} reserve {EPOCH}"]
            key = "key.reserve" if (step, run) == ("reserve", 0) else f"key.{run}.{step}"
            lines += [f"begin {n} {run} {step} {EPOCH} {key} {at * SLOW + run * 5000}"]
            lines += [f"end {n} {run} {step} {EPOCH} {at * SLOW + run * 5000}"]
            lines += [f"ack {n} {run} {step} {'fatal' if step == 'refuse' else 'ok'} {EPOCH} recorded"]
        lines += [f"claim {n} {EPOCH} 1 2 second 5000"]
    for child in plan.CHILDREN:
        lines += [f"born {n} {child} id-{child} 1", f"child {n} {child} {EPOCH}", f"ran {n} {child} {EPOCH}"]
    lines += [f"letter {n} token"]
    for key in "abc":
        lines += [f"sent {n} {key} id-{key} effect {int(time == 0)}" for time in range(3)]
    return lines


def stored(n: int = 5, charged: str = "paid", frames: Sequence[Emitted] | None = None) -> Stored:
    children = [Child(name, "completed", f"{n + more}".encode(), 1, 1, EPOCH) for name, more in plan.CHILDREN.items()]
    has = [Emitted(1, "reserve", run, EPOCH) for run in (0, 1)] if frames is None else frames
    return Stored(
        execution_id="{fp:0}:x", state="completed", result=msgspec.json.encode(plan.receipt(n, charged)), said="",
        frames=has, journal=[Entry("reserve", "ok", 5000 + SLOW), Entry("last", "ok", 5000 + 2 * SLOW)], ends=1,
        continued=1, flow=("completed", 3), children=children,
    )  # fmt: skip


def sorts(lines: list[str], job: Stored | None = None) -> list[str]:
    found = Evidence()
    found.take(line.split(" ") for line in lines)
    wrong = judge(found, {5: job or stored()}, [Order(n=5, die=["first/claimed"])], ["first/claimed"], 1)
    return sorted({one.sort for one in wrong if not one.what.startswith("nobody passed")})


def without(word: str) -> list[str]:
    kept = [line for line in book() if word not in line]
    assert len(kept) < len(book())
    return kept


def test_a_run_in_which_all_is_well_is_believed() -> None:
    assert sorts(book()) == []


def test_a_recorded_step_that_begins_again_is_noticed() -> None:
    assert sorts([*book(), f"begin 5 0 count {EPOCH} key.0.count 9000"]) == ["rerun"]
    assert sorts([*book(), "begin 5 0 count 9 key.0.count 9000"]) == ["rerun"]


def test_a_step_is_recorded_from_the_claim_on_that_tells_of_it() -> None:
    lost = without("ack 5 0 count")
    assert sorts(lost) == ["result"], "nobody knows of a record"
    at = lost.index("claim 5 7 1 2 second 5000")
    told = [*lost[:at], "head 5 0 count ok", *lost[at:]]
    assert sorts(told) == []
    assert sorts([*told, "begin 5 0 count 9 key.0.count 9000"]) == ["rerun"]


def test_a_worker_that_does_not_know_that_its_lease_is_lost_is_not_blamed_for_beginning() -> None:
    assert sorts([*book(), "begin 5 0 count 5 key.0.count 9000"]) == []


def test_what_the_journal_has_is_recorded_though_nobody_was_told() -> None:
    assert sorts([line.replace("key.1.last 5200", "key.1.last 5300") for line in book()]) == ["rerun"]


def test_a_step_that_is_begun_at_most_once_begins_once() -> None:
    again = book()
    at = next(i for i, line in enumerate(again) if line.startswith("ack 5 0 charge"))
    again.insert(at, f"begin 5 0 charge {EPOCH} key.0.charge 300")
    assert sorts(again) == ["at_most_once"]
    interrupted = without("ack 5 0 charge")
    assert sorts(interrupted) == ["result"] and sorts(interrupted, stored(charged="interrupted")) == []


def test_a_step_that_is_recorded_and_never_ran_is_noticed() -> None:
    assert sorts(without("end 5 0 tell")) == ["result"]


def test_an_effect_has_one_key() -> None:
    assert sorts([line.replace("reserve 5 key.reserve", "reserve 5 key.other") for line in book()]) == ["effect_key"]


def test_a_frame_that_is_gone_or_there_twice_is_noticed() -> None:
    both = [Emitted(1, "reserve", run, EPOCH) for run in (0, 1)]
    assert sorts(book(), stored(frames=both[:1])) == ["frame"]
    assert sorts(book(), stored(frames=[*both, both[0]])) == ["frame"]
    assert sorts(without("frame 5"), stored(frames=[])) == ["frame"], "the step is recorded, its frame must be there"


@pytest.mark.parametrize(
    "line",
    ["sent 5 a id-new effect 1", "sent 5 a id-a other 0", "sent 5 b id-b effect 1", "refused 5 a closed", "letter 5 x"],
)
def test_a_signal_is_one_signal(line: str) -> None:
    assert sorts([*book(), line]) == ["signal"]


@pytest.mark.parametrize("line", ["born 5 a id-new 0", "born 5 b id-b 1"])
def test_a_child_is_spawned_once(line: str) -> None:
    assert sorts([*book(), line]) == ["child"]
    assert sorts([*book(), "born 5 a id-a 0"]) == [], "told again, of the same one"


def test_a_child_that_is_gone_ended_twice_or_never_ran_is_noticed() -> None:
    job = stored()
    first, *rest = job.children
    for other in (
        first._replace(made=2), first._replace(ends=2), first._replace(state="active"), first._replace(result=b"0"),
        first._replace(epoch=9),
    ):  # fmt: skip
        assert sorts(book(), job._replace(children=[other, *rest])) == ["child"]
    assert sorts(book(), job._replace(children=rest)) == ["child"] == sorts(without("ran 5 a"))
    assert sorts(book(), job._replace(flow=("running", 3))) == ["child"] == sorts(without("born 5 b"))


def test_a_worker_that_ends_and_was_not_killed_is_noticed() -> None:
    assert sorts([*book(), "died 78 -9"]) == ["process"] == sorts([*book(), "died 77 1"])
    assert sorts([*book(), "died 79 0"]) == [] and sorts([*book(), "fatal no store"]) == ["process"]


def test_a_job_that_is_lost_ends_twice_or_comes_to_something_else_is_noticed() -> None:
    assert sorts(book(), stored()._replace(state="active")) == ["lost"]
    assert sorts(book(), stored()._replace(ends=2)) == ["twice"] == sorts(book(), stored()._replace(continued=0))
    assert sorts(book(), stored()._replace(result=b"{}")) == ["result"]
    assert sorts(book(), stored(n=6)) == ["child", "result"]


def test_a_point_that_was_not_met_fails_the_run() -> None:
    assert sorts(without("kill 5")) == ["coverage", "process"]


def test_points_are_drawn_from_the_seed_and_each_is_met_as_often_as_asked() -> None:
    points = sorted(plan.must_pass())
    assert plan.chosen(points, Size()) == points and len(set(points)) == len(points)
    assert len(plan.chosen(points, Size(share=0.25))) == round(len(points) / 4)
    wanted = dict.fromkeys(points, 3)
    drawn = plan.orders(wanted, Size(seed=7), first=2)
    assert drawn == plan.orders(wanted, Size(seed=7), first=2) != plan.orders(wanted, Size(seed=8), first=2)
    assert [order.n for order in drawn] == list(range(2, 2 + 3 * len(points)))
    assert all(sum(order.die[0] == point for order in drawn) == 3 for point in points)
    assert any(len(order.die) == 2 for order in drawn)
