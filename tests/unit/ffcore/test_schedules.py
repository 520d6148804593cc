"""Instants: cron in its zone and across changes of the clock, intervals without drift, what is missed, and jitter."""

from __future__ import annotations

from datetime import UTC, datetime
from itertools import islice, pairwise, takewhile
from zoneinfo import ZoneInfo

import pytest

from ffcore import limits
from ffcore.errors import InvalidArgument
from ffcore.ids import ScheduleId
from ffcore.schedules import (
    BROKEN_MS,
    Missed,
    Spec,
    acted_at,
    after,
    between,
    check,
    firings,
    instants,
    label,
    latest,
    passing,
    run_id,
    schedule_id,
    unpack,
)

PRAGUE = "Europe/Prague"
ID = schedule_id("default", "nightly", 4)
HOUR = 3_600_000


def ms(text: str) -> int:
    """An instant, UTC unless the text says otherwise."""
    at = datetime.fromisoformat(text)
    return round((at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp() * 1000)


def first(spec: Spec, since: str, n: int) -> list[str]:
    zone = ZoneInfo(spec.tz)
    found = islice(instants(check(spec), ms(since)), n)
    return [datetime.fromtimestamp(at / 1000, zone).isoformat() for at in found]


# ---- cron ------------------------------------------------------------------------------------------------


def test_a_cron_expression_is_read_in_its_zone() -> None:
    assert first(Spec(cron="0 3 * * *", tz=PRAGUE), "2026-01-10", 2) == [
        "2026-01-10T03:00:00+01:00", "2026-01-11T03:00:00+01:00",
    ]  # fmt: skip
    assert first(Spec(cron="0 9 * * mon-fri"), "2026-01-09T09:00", 1) == ["2026-01-12T09:00:00+00:00"]
    assert first(Spec(cron="0 0 L * *"), "2026-02-01", 1) == ["2026-02-28T00:00:00+00:00"]
    assert first(Spec(cron="*/10 * * * * *"), "2026-02-01", 2)[1] == "2026-02-01T00:00:20+00:00"
    assert first(Spec(cron="@daily"), "2026-02-01", 1) == ["2026-02-02T00:00:00+00:00"]


def test_an_hour_that_is_left_out_runs_right_after_it() -> None:
    """At two the clocks of Prague go on to three: what is due at half past two is due at three."""
    assert first(Spec(cron="30 2 * * *", tz=PRAGUE), "2026-03-28", 3) == [
        "2026-03-28T02:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00",
    ]  # fmt: skip


def test_an_hour_that_comes_twice_runs_once() -> None:
    assert first(Spec(cron="30 2 * * *", tz=PRAGUE), "2026-10-24T12:00", 2) == [
        "2026-10-25T02:30:00+02:00", "2026-10-26T02:30:00+01:00",
    ]  # fmt: skip
    # Asked in the second of the two hours, the instant of the first has passed.
    assert after(check(Spec(cron="30 2 * * *", tz=PRAGUE)), ms("2026-10-25T02:10+01:00")) == ms("2026-10-26T01:30")


def test_a_star_goes_by_real_time_through_both() -> None:
    """Every half hour is every half hour, also when the clock is set."""
    for since in ("2026-03-28T23:00", "2026-10-24T23:00"):
        spec = check(Spec(cron="*/30 * * * *", tz=PRAGUE))
        found = list(islice(instants(spec, ms(since)), 10))
        assert [b - a for a, b in pairwise(found)] == [30 * 60_000] * 9


def test_two_readings_of_one_instant_are_one_instant() -> None:
    """The run of two is put off to three, where there is one already."""
    found = first(Spec(cron="0 2,3 * * *", tz=PRAGUE), "2026-03-29T00:30", 2)
    assert found == ["2026-03-29T03:00:00+02:00", "2026-03-30T02:00:00+02:00"]


@pytest.mark.parametrize("zone", ["UTC", PRAGUE, "America/New_York", "Asia/Kolkata", "Australia/Lord_Howe"])
@pytest.mark.parametrize("cron", ["*/7 * * * *", "30 2 * * *", "15 1-3 * * 0", "0 0 1 * *"])
def test_instants_do_not_depend_on_where_one_begins(zone: str, cron: str) -> None:
    """A ticker that comes late and one that was always there come to the same ones."""
    spec = check(Spec(cron=cron, tz=zone))
    for middle in ("2026-03-29T00:50", "2026-10-25T00:50", "2026-11-01T05:40", "2026-04-04T15:10"):
        begin = ms(middle) - 2 * 24 * HOUR
        whole = list(islice(instants(spec, begin), 620))
        assert whole == sorted(set(whole))
        for since in range(begin, ms(middle) + 24 * HOUR, 257 * 60_000):
            later = [at for at in whole if at > since]
            if later:
                assert after(spec, since) == later[0]


@pytest.mark.parametrize(
    "cron", ["* * * *", "60 * * * *", "x", "", "0 0 31 2 *", "0 0 * * 9", "* * * * * * *", "a" * 300]
)
def test_an_expression_that_means_nothing_is_refused(cron: str) -> None:
    with pytest.raises(InvalidArgument, match="cron"):
        check(Spec(cron=cron))


@pytest.mark.parametrize("zone", ["Europe/Nowhere", "", "../etc/passwd", "/etc/passwd", "Europe"])
def test_a_zone_there_is_not_is_refused(zone: str) -> None:
    with pytest.raises(InvalidArgument, match="time zone"):
        check(Spec(cron="0 3 * * *", tz=zone))


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        (Spec(), "exactly one"), (Spec(cron="* * * * *", every_ms=1_000), "cron and every"),
        (Spec(every_ms=99), "every"), (Spec(every_ms=1_000, jitter_ms=1_000), "less jitter"),
        (Spec(cron="* * * * *", jitter_ms=25 * HOUR), "jitter"), (Spec(at_ms=5, start_ms=1), "one instant"),
        (Spec(every_ms=1_000, start_ms=5, end_ms=4), "ends before"),
        (Spec(every_ms=1_000, catch_up="some"), "none, one or all"),  # type: ignore[arg-type]
    ],
)  # fmt: skip
def test_a_spec_that_means_nothing_is_refused(spec: Spec, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said):
        check(spec)


# ---- intervals, one instant, bounds ------------------------------------------------------------------------


def test_an_interval_counts_from_its_start_and_never_drifts() -> None:
    spec = check(Spec(every_ms=7_000, start_ms=1_000))
    assert list(islice(instants(spec, 0), 3)) == [1_000, 8_000, 15_000]
    assert after(spec, 8_000) == 15_000
    far = 1_000 + 7_000 * 10**9
    assert after(spec, far + 3) == far + 7_000
    made = check(Spec(every_ms=7_000, anchor_ms=1_000))
    assert after(made, 1_000) == 8_000
    assert between(made, -7_000, 0, 10) == [-6_000]


def test_nothing_is_due_outside_its_bounds() -> None:
    spec = check(Spec(cron="0 * * * *", start_ms=ms("2026-01-01T10:00"), end_ms=ms("2026-01-01T12:00")))
    assert [label(at) for at in instants(spec, 0)] == [f"2026-01-01T{hour}:00:00Z" for hour in (10, 11, 12)]
    assert after(spec, ms("2026-01-01T12:00")) is None


def test_one_instant_is_due_once() -> None:
    spec = check(Spec(at_ms=5_000))
    assert list(instants(spec, 0)) == [5_000]
    assert after(spec, 5_000) is None


def test_what_lies_between_two_times_includes_both() -> None:
    spec = check(Spec(every_ms=1_000, start_ms=0))
    assert between(spec, 1_000, 3_000, 10) == [1_000, 2_000, 3_000]
    assert len(between(spec, 0, 10**9, 10)) == 11, "one more says that there are more"


@pytest.mark.parametrize("spec", [
    Spec(cron="*/5 * * * *", tz=PRAGUE), Spec(cron="30 2 * * *", tz=PRAGUE), Spec(cron="0 0 1 * *"),
    Spec(cron="0 0 29 2 *"), Spec(every_ms=90_000, anchor_ms=17),
])  # fmt: skip
def test_the_last_instant_of_a_span_is_the_last_of_all_of_them(spec: Spec) -> None:
    check(spec)
    low = after(spec, ms("2026-03-27"))
    assert low is not None
    for until in (low, low + 1, low + 3 * HOUR, low + 40 * 24 * HOUR + 12_345):
        expected = list(takewhile(until.__ge__, instants(spec, low - 1)))[-1]
        assert latest(spec, low, until) == expected


# ---- jitter and ids ----------------------------------------------------------------------------------------


def test_jitter_follows_from_the_schedule_and_the_instant_and_stays_within_its_bound() -> None:
    spec = check(Spec(cron="0 * * * *", jitter_ms=60_000))
    late = [acted_at(spec, ID, at) - at for at in islice(instants(spec, 0), 500)]
    assert late == [acted_at(spec, ID, at) - at for at in islice(instants(spec, 0), 500)]
    assert min(late) >= 0 and max(late) <= 60_000 and len(set(late)) > 400
    other = schedule_id("default", "other", 4)
    assert acted_at(spec, other, HOUR) != acted_at(spec, ID, HOUR)
    assert acted_at(check(Spec(cron="0 * * * *")), ID, HOUR) == HOUR


def test_a_run_has_an_id_of_its_schedule_and_instant() -> None:
    assert run_id(ID, 5) == run_id(ID, 5)
    assert len({run_id(ID, 5), run_id(ID, 6), run_id(schedule_id("default", "other", 4), 5)}) == 3
    assert run_id(ID, 5).partition("}")[0] == ID.partition("}")[0], "it lives where its schedule does"
    assert schedule_id("default", "nightly", 4) == ID != schedule_id("team", "nightly", 4)


def test_a_label_is_the_instant_as_people_read_it() -> None:
    assert label(ms("2026-01-01T03:00")) == "2026-01-01T03:00:00Z"
    assert label(ms("2026-01-01T03:00") + 5) == "2026-01-01T03:00:00.005Z"


# ---- what is missed ----------------------------------------------------------------------------------------

EVERY = Spec(every_ms=HOUR, start_ms=0)


def test_on_time_there_is_one_run_and_the_next_instant() -> None:
    for catch_up in ("none", "one", "all"):
        spec = check(Spec(every_ms=HOUR, start_ms=0, catch_up=catch_up))
        assert passing(spec, ID, HOUR, HOUR + 40, 100) == [Missed(HOUR, True, 2 * HOUR)]


def test_one_run_stands_for_all_that_were_missed() -> None:
    assert passing(EVERY, ID, HOUR, 5 * HOUR + 30 * 60_000, 100) == [Missed(5 * HOUR, True, 6 * HOUR)]


def test_none_runs_nothing_that_was_missed() -> None:
    spec = check(Spec(every_ms=HOUR, start_ms=0, catch_up="none"))
    assert passing(spec, ID, HOUR, 5 * HOUR + 30 * 60_000, 100) == [Missed(5 * HOUR, False, 6 * HOUR)]
    assert passing(spec, ID, HOUR, 5 * HOUR + 30_000, 100) == [Missed(5 * HOUR, True, 6 * HOUR)]
    once = check(Spec(at_ms=HOUR, catch_up="none"))
    assert passing(once, ID, HOUR, 2 * HOUR, 100) == [Missed(HOUR, False, None)]


def test_all_runs_each_in_order_and_so_many_at_a_time() -> None:
    spec = check(Spec(every_ms=HOUR, start_ms=0, catch_up="all"))
    found = passing(spec, ID, HOUR, 4 * HOUR + 5, 100)
    assert found == [Missed(n * HOUR, True, (n + 1) * HOUR) for n in (1, 2, 3, 4)]
    assert passing(spec, ID, HOUR, 400 * HOUR, 3)[-1] == Missed(3 * HOUR, True, 4 * HOUR)


def test_the_end_is_the_last_instant() -> None:
    for catch_up in ("one", "all"):
        spec = check(Spec(every_ms=HOUR, start_ms=0, end_ms=2 * HOUR, catch_up=catch_up))
        assert passing(spec, ID, HOUR, 9 * HOUR, 100)[-1] == Missed(2 * HOUR, True, None)


def test_an_instant_whose_jitter_is_not_over_is_not_missed() -> None:
    spec = check(Spec(every_ms=HOUR, start_ms=0, jitter_ms=HOUR - 1))
    now = 5 * HOUR
    [found] = passing(spec, ID, HOUR, now, 100)
    assert acted_at(spec, ID, found.instant_ms) <= now < acted_at(spec, ID, found.instant_ms + HOUR)


def test_much_jitter_for_short_steps_costs_no_search() -> None:
    spec = check(Spec(cron="* * * * * *", jitter_ms=24 * HOUR))
    [found] = passing(spec, ID, HOUR, 60 * HOUR, 100)
    assert HOUR < found.instant_ms <= 60 * HOUR
    assert acted_at(spec, ID, found.instant_ms) <= 60 * HOUR


def test_a_firing_goes_from_the_stored_instant_to_the_next() -> None:
    spec = check(Spec(every_ms=HOUR, start_ms=0, jitter_ms=1_000))
    [row] = firings(ID, spec.pack(), HOUR, 5 * HOUR + 60_000, 100)
    assert (row.due_ms, row.instant_ms, row.next_ms) == (HOUR, 5 * HOUR, 6 * HOUR)
    assert row.execution_id == run_id(ID, 5 * HOUR)
    assert row.next_at_ms == acted_at(spec, ID, 6 * HOUR)
    [last] = firings(ID, Spec(at_ms=HOUR).pack(), HOUR, HOUR, 100)
    assert (last.next_ms, last.next_at_ms) == (0, 0)


@pytest.mark.parametrize("packed", ["", "{}", '{"moon":"full"}', '{"cron":"0 3 * * *","tz":"Mars/Olympus"}'])
def test_a_spec_of_another_program_is_left_alone_and_looked_at_again(packed: str) -> None:
    """A newer release may know more, or another machine more zones: its schedules are not ours to break."""
    with pytest.raises(InvalidArgument):
        unpack(packed)
    [row] = firings(ScheduleId(ID), packed, 5, 1_000, 100)
    assert (row.due_ms, row.next_ms, row.next_at_ms, row.execution_id) == (5, 5, 1_000 + BROKEN_MS, None)


def test_a_spec_is_what_it_was_after_its_way_through_the_store() -> None:
    spec = check(Spec(cron="0 3 * * *", tz=PRAGUE, catch_up="all", jitter_ms=5, start_ms=1, end_ms=HOUR))
    assert unpack(spec.pack()) == spec
    assert len(spec.pack()) < limits.SCHEDULE_SPEC_BYTES
    assert spec.timing != Spec(cron="0 4 * * *", tz=PRAGUE).timing


def test_the_far_end_of_the_calendar_is_an_end() -> None:
    assert after(check(Spec(cron="0 0 1 1 *")), ms("9999-06-01")) is None
