"""Everything a user can get wrong: the typed error he sees, and nothing written.

The rule: a refused call leaves the keyspace as it was, byte for byte. PROOFS names the test of every fault that the
engine promises to survive, here or elsewhere, and a test holds that those exist. Fences, and stores that are away or
strange, are in test_store_faults.py.
"""

from __future__ import annotations

import ast
import dataclasses
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import pytest

import ffsdk as ff
from ffbackend_valkey.backend import ValkeyBackend
from ffbackend_valkey.multiplexer import Multiplexer
from ffbackend_valkey.stores import connect
from ffbackend_valkey.url import parse_url
from ffcore.backend import StoreConfig
from ffcore.errors import EngineError
from tests.integration.proxy import own_server
from tests.integration.worker_app import working

ROOT: Final = Path(__file__).resolve().parents[2]
HERE: Final = "tests/integration/test_faults.py"
STORE: Final = "tests/integration/test_store_faults.py"
KILL: Final = "tests/integration/test_kill.py"
FULL: Final = "tests/integration/test_memory_full.py"
WORKER: Final = "tests/integration/test_worker.py"
OUTCOME: Final = "tests/lua/test_outcome.py"
BOOT: Final = "tests/conformance/test_boot.py"
CALLS: Final = "tests/conformance/test_calls.py"
EMBEDDED: Final = "tests/integration/test_embedded.py"

PROOFS: Final[dict[str, list[str]]] = {
    "unknown task name": [
        f"{HERE}::test_bad_input_to_a_submit_is_refused_and_writes_nothing",
        f"{WORKER}::test_an_unknown_task_waits_for_a_worker_that_knows_it_and_counts_nothing",
        "tests/lua/test_control.py::test_a_task_nobody_ever_knows_fails_after_a_while",
    ],
    "payload that does not decode": [
        f"{HERE}::test_a_handler_s_payload_or_result_that_cannot_be_used_ends_the_job_once",
        f"{WORKER}::test_a_payload_that_does_not_fit_fails_at_once_and_is_not_retried",
    ],
    "result that does not encode": [
        f"{HERE}::test_a_handler_s_payload_or_result_that_cannot_be_used_ends_the_job_once",
        f"{WORKER}::test_a_result_that_is_not_json_or_too_large_fails_and_is_not_retried",
    ],
    "payload over the limit": [
        f"{HERE}::test_bad_input_to_a_submit_is_refused_and_writes_nothing",
        f"{HERE}::test_a_payload_of_exactly_the_limit_is_taken_and_one_byte_more_is_not",
        f"{OUTCOME}::test_a_result_that_is_too_large_is_refused_and_the_lease_kept",
        "tests/lua/test_execution.py::test_create_refuses_capabilities_and_sizes_alone",
    ],
    "bad ids": [
        f"{HERE}::test_bad_input_to_a_submit_is_refused_and_writes_nothing",
        f"{HERE}::test_bad_input_to_anything_else_is_refused_and_writes_nothing",
        "tests/lua/test_execution.py::test_bad_input_is_refused_by_name",
    ],
    "negative or absurd numbers": [
        f"{HERE}::test_bad_input_to_a_submit_is_refused_and_writes_nothing",
        f"{HERE}::test_bad_input_to_anything_else_is_refused_and_writes_nothing",
        f"{HERE}::test_a_task_or_worker_that_could_not_work_is_refused_where_it_is_made",
        "tests/lua/test_define.py::test_an_argument_that_cannot_be_read_is_refused_by_name",
    ],
    "wrong fence": [
        f"{STORE}::test_a_wrong_fence_changes_nothing",
        f"{OUTCOME}::test_each_part_of_the_fence_counts",
    ],
    "expired fence": [
        f"{STORE}::test_an_expired_fence_changes_nothing",
        f"{OUTCOME}::test_an_expired_lease_is_refused_before_anybody_sweeps_it",
        "tests/lua/test_lease.py::test_a_fence_is_good_during_the_grace_and_lost_after_it",
    ],
    "double complete": [
        f"{STORE}::test_a_second_complete_answers_the_first_outcome_and_changes_nothing",
        f"{OUTCOME}::test_completing_twice_under_one_fence_answers_the_first_outcome",
    ],
    "complete after cancel": [
        f"{STORE}::test_a_complete_after_the_cancel_is_told_how_it_ended_and_changes_nothing",
        "tests/lua/test_cancel.py::test_a_completion_during_the_grace_wins_and_keeps_the_request_on_record",
        "tests/lua/test_cancel.py::test_the_grace_ends_by_fencing_the_worker_off",
    ],
    "connection refused mid-call": [
        f"{STORE}::test_a_call_cut_off_in_the_middle_says_that_it_may_have_applied_and_can_be_repeated",
        f"{STORE}::test_a_call_refused_a_connection_says_that_it_has_not_applied",
        "tests/integration/test_multiplexer.py::test_a_cut_fails_every_call_in_flight_once_and_the_next_call_works",
    ],
    "server restarted (LOADING)": [
        f"{STORE}::test_a_server_that_reads_its_data_is_waited_for_and_then_said_to_be_loading",
        f"{EMBEDDED}::test_a_server_that_is_loading_is_waited_for",
        f"{EMBEDDED}::test_a_server_that_loads_for_too_long_is_reported",
        "tests/integration/test_worker_faults.py::test_a_worker_goes_on_by_itself_after_a_restart_of_the_server",
    ],
    "library missing": [
        f"{STORE}::test_a_library_that_is_missing_is_loaded_and_the_call_repeated",
        f"{CALLS}::test_a_library_that_is_gone_is_loaded_again",
        f"{BOOT}::test_a_library_lost_while_running_is_not_loaded_over_another",
        "tests/integration/test_connection.py::test_a_refusal_is_read_by_its_words",
    ],
    "wrong partition count": [
        f"{STORE}::test_a_store_with_another_partition_count_is_refused_and_not_changed",
        f"{STORE}::test_partitions_that_are_missing_do_not_look_like_empty_ones",
        f"{BOOT}::test_partition_counts_are_fixed_by_the_first_init",
        f"{BOOT}::test_a_partition_of_another_count_is_not_ours",
    ],
    "older and newer library": [
        f"{STORE}::test_a_library_that_cannot_serve_us_is_refused_with_the_remedy_and_left_alone",
        f"{BOOT}::test_a_library_that_is_too_old_is_refused_until_somebody_upgrades_it",
        f"{BOOT}::test_a_newer_library_that_no_longer_answers_us_is_refused",
        f"{BOOT}::test_a_newer_library_is_never_replaced_by_an_older_one",
    ],
    "results that cannot be heard": [
        f"{STORE}::test_results_come_although_nothing_can_be_heard",
        f"{STORE}::test_what_breaks_while_waiting_is_told_to_who_waits",
        "tests/integration/test_client.py::test_a_lost_notice_costs_a_moment_and_nothing_else",
    ],
    "kill -9 of a worker": [
        f"{KILL}::test_a_worker_killed_at_any_point_loses_nothing_and_ends_nothing_twice",
        "tests/integration/test_worker_faults.py::test_a_worker_killed_in_the_middle_loses_nothing",
    ],
    "kill -9 of the server": [f"{KILL}::test_a_server_killed_under_load_keeps_every_acknowledged_job"],
    "out of memory": [
        f"{FULL}::test_a_full_store_takes_no_new_work_and_says_when_to_try_again",
        f"{FULL}::test_a_full_store_drains_to_empty_and_takes_work_again",
        "tests/lua/test_execution.py::test_a_full_store_takes_no_new_work_and_lets_the_old_finish",
    ],
}


@pytest.mark.parametrize("fault", PROOFS)
def test_every_fault_has_a_test(fault: str) -> None:
    for proof in PROOFS[fault]:
        path, _, name = proof.partition("::")
        tree = ast.parse((ROOT / path).read_text())
        found = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert name in found, f"{fault}: {path} has no {name}"


# ---- a store, and what is in it ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    with own_server() as server:
        yield f"valkey://127.0.0.1:{server.port}"


async def wipe(url: str, partitions: int = 2) -> None:
    direct = await Multiplexer.open(parse_url(url))
    await direct.call("FLUSHALL")
    await direct.call("FUNCTION", "FLUSH")
    await direct.close()
    await (await connect(url, init=StoreConfig(fp=partitions))).close()


@pytest.fixture
async def url(server_url: str, caplog: pytest.LogCaptureFixture) -> str:
    caplog.set_level(logging.ERROR, "flowfabric.store")  # a test server keeps nothing, and says so
    await wipe(server_url)
    return server_url


class Opaque:
    """A type without an encoding."""


@dataclasses.dataclass
class Order:
    n: int


def make_app(url: str) -> ff.App:
    app = ff.App(url)

    @app.task(lane="shop")
    async def order(what: Order) -> int:
        return what.n

    return app


@pytest.fixture
async def client(url: str) -> AsyncIterator[ff.Client]:
    async with make_app(url).client() as client:
        yield client


READ: Final[dict[bytes, tuple[str, ...]]] = {
    b"hash": ("HGETALL",), b"string": ("GET",), b"list": ("LRANGE", "0", "-1"), b"stream": ("XRANGE", "-", "+"),
    b"zset": ("ZRANGE", "0", "-1", "WITHSCORES"), b"set": ("SMEMBERS",),
}  # fmt: skip


async def keyspace(url: str) -> dict[bytes, Any]:
    """All there is, by key: values and the time a key has left."""
    direct = await Multiplexer.open(parse_url(url))
    found: dict[bytes, Any] = {}
    for key in sorted(await direct.call("KEYS", "*")):
        word, *rest = READ[await direct.call("TYPE", key)]
        value = await direct.call(word, key, *rest)
        if word == "HGETALL":
            value = dict(zip(value[::2], value[1::2], strict=True))
        elif word == "SMEMBERS":
            value = sorted(value)
        found[key] = (value, await direct.call("PTTL", key))
    await direct.close()
    return found


async def refused(url: str, call: Callable[[], Awaitable[Any]], kind: type[BaseException], code: str) -> EngineError:
    """What a call raises; the store must be as it was before."""
    before = await keyspace(url)
    with pytest.raises(kind) as caught:
        await call()
    assert await keyspace(url) == before
    raised = caught.value
    assert isinstance(raised, EngineError)
    assert raised.code == code and str(raised)
    return raised


# ---- bad input ---------------------------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
DEEP: list[Any] = []
for _ in range(5_000):
    DEEP = [DEEP]

SUBMITS: Final[list[tuple[str, Any, dict[str, Any], str]]] = [
    # task, payload, options, code
    ("nobody-has-this", 1, {}, "unknown_task"),
    ("no braces {x}", 1, {"lane": "shop"}, "invalid_input"),
    ("order\x00", 1, {"lane": "shop"}, "invalid_input"),
    ("", 1, {"lane": "shop"}, "invalid_input"),
    ("x" * 129, 1, {"lane": "shop"}, "invalid_input"),
    ("order", Opaque(), {}, "invalid_payload"),
    ("order", {"n": "three"}, {}, "invalid_payload"),
    ("other", DEEP, {"lane": "shop"}, "invalid_payload"),
    ("other", "\ud800", {"lane": "shop"}, "invalid_payload"),
    ("other", "x" * (1 << 20), {"lane": "shop"}, "payload_too_large"),
    *(("order", Order(1), {"lane": lane}, "invalid_input") for lane in ("", "{fp:0}", "a b", "a\nb", "ä", "x" * 129)),
    *(("order", Order(1), {"key": key}, "invalid_input") for key in ("", "a\x1bb", "x" * 513, 5, "\ud800")),
    *(("order", Order(1), {"priority": n}, "invalid_input") for n in (-101, 101, 2**70, 1.5, True, NAN, "9")),
    *(("order", Order(1), {"delay": n}, "invalid_input") for n in (-1, -1e-2, NAN, INF, 1e300, True, "5")),
    *(("order", Order(1), {"delay": d}, "invalid_input") for d in (timedelta(seconds=-1), timedelta.max)),
    *(("order", Order(1), {"deadline": n}, "invalid_input") for n in (0, -1, NAN, INF, 1e300)),
    ("order", Order(1), {"at": datetime(2030, 1, 1)}, "invalid_input"),
    ("order", Order(1), {"at": 5}, "invalid_input"),
    *(("order", Order(1), {"tags": tags}, "invalid_tag_key") for tags in ({"t": "1"}, {"{a}.b": "1"}, {"a.b\n": "1"})),
    ("order", Order(1), {"tags": {"a.b": "x" * 257}}, "invalid_input"),
    ("order", Order(1), {"tags": {"a.b": "\ud800"}}, "invalid_input"),
    ("order", Order(1), {"tags": {f"a.{n}": "1" for n in range(65)}}, "invalid_input"),
    *(("order", Order(1), {"requires": [r]}, "invalid_capabilities") for r in ("", "a b", "a,b", "a\x7f")),
    ("order", Order(1), {"durability": "perhaps"}, "invalid_input"),
]  # fmt: skip


async def code_of(call: Callable[[], Awaitable[Any]]) -> str:
    """The code of the InvalidArgument that a call raises, or what else it does."""
    try:
        return f"accepted: {await call()!r:.60}"
    except ff.InvalidArgument as bad:
        return bad.code if str(bad) else "no words"
    except Exception as other:
        return f"{type(other).__name__}: {other}"


async def test_bad_input_to_a_submit_is_refused_and_writes_nothing(url: str, client: ff.Client) -> None:
    before = await keyspace(url)
    wrong: list[str] = []
    for task, payload, options, code in SUBMITS:
        alone = await code_of(lambda t=task, p=payload, o=options: client.submit(t, p, **o))  # type: ignore[misc]
        shared = {name: value for name, value in options.items() if name != "key"}
        keys = [options["key"]] if "key" in options else None
        many = await code_of(lambda t=task, p=payload, k=keys, o=shared: client.submit_many(t, [p], keys=k, **o))  # type: ignore[misc]
        if (alone, many) != (code, code):
            text = "deep" if payload is DEEP else f"{payload!r:.30}"
            wrong.append(f"{task!r:.20} {text} {options!r:.60}: {alone!r} and {many!r} instead of {code!r}")
    assert wrong == []
    assert await keyspace(url) == before


async def test_a_payload_of_exactly_the_limit_is_taken_and_one_byte_more_is_not(url: str, client: ff.Client) -> None:
    largest = "x" * ((1 << 20) - 2)  # and two quotes
    assert (await client.submit("other", largest, lane="shop")).created
    raised = await refused(
        url, lambda: client.submit("other", largest + "x", lane="shop"), ff.InvalidArgument, "payload_too_large"
    )
    assert str(1 << 20) in str(raised)


ID: Final = "{fp:0}:01a1fde2-9924-7d8f-8927-3ae4b401c73e"
OTHERS: Final[dict[str, Callable[[ff.Client], Any]]] = {
    **{
        f"job {bad!r:.30}": lambda k, bad=bad: k.job(bad)  # type: ignore[misc]
        for bad in ("", "{fp:0}", ID + "\n", ID.upper(), "{fp:2}" + ID[6:], "{fp:-1}" + ID[6:], "{b:0}" + ID[5:], 7)
    },
    "lane": lambda k: k.lane("{x}"),
    "hold a task": lambda k: k.hold(task="a b"),
    "hold nothing": lambda k: k.hold(),
    "hold a tag": lambda k: k.hold(tag=("no namespace", "x")),
    "hold for a book": lambda k: k.hold(task="order", reason="x" * 2_000),
    "release": lambda k: k.release(task="\x00"),
    "listing by lane": lambda k: _all(k.jobs(lane="{x}")),
    "listing by state": lambda k: _all(k.jobs(state="running about")),
    "listing of -1": lambda k: _all(k.jobs(limit=-1)),
    "listing of a lot": lambda k: _all(k.jobs(limit=2**70)),
    "cancel all": lambda k: k.cancel_many(),
    "cancel -1": lambda k: k.cancel_many(lane="shop", limit=-1),
    "replay what runs": lambda k: k.replay_many(state="active"),
    "purge the future": lambda k: k.purge_many(older_than=-1),
    "purge for ever": lambda k: k.purge_many(older_than=INF),
    "cancel with a grace of -1": lambda k: k.job(ID).cancel(grace=-1),
    "cancel with a book": lambda k: k.job(ID).cancel("x" * (1 << 20)),
    "wait -1": lambda k: k.job(ID).result(timeout=-1),
    "wait NaN": lambda k: k.job(ID).result(timeout=NAN),
    "replay in a way": lambda k: k.job(ID).replay(mode="somehow"),  # type: ignore[arg-type]
    "follow what is not": lambda k: k.subscribe("rumour"),  # type: ignore[arg-type]
    "follow a lane": lambda k: k.subscribe("completion", lanes=["{x}"]),
    "follow from": lambda k: _next(k.subscribe("completion", after="somewhere")),
}


REFUSALS: Final = {"invalid_input", "invalid_tag_key", "payload_too_large", "invalid_offset"}


async def _all(found: AsyncIterator[Any]) -> list[Any]:
    return [one async for one in found]


async def _next(found: AsyncIterator[Any]) -> Any:
    return await anext(found)


async def test_bad_input_to_anything_else_is_refused_and_writes_nothing(url: str, client: ff.Client) -> None:
    before = await keyspace(url)

    async def run(call: Callable[[ff.Client], Any]) -> Any:
        return await call(client)

    codes = {what: await code_of(lambda call=call: run(call)) for what, call in OTHERS.items()}  # type: ignore[misc]
    assert {what: code for what, code in codes.items() if code not in REFUSALS} == {}
    assert await keyspace(url) == before


def test_a_task_or_worker_that_could_not_work_is_refused_where_it_is_made() -> None:
    app = make_app("valkey://never-asked:1")
    workers: list[dict[str, Any]] = [
        *({"concurrency": n} for n in (0, -1, 2**31, 1.5, True, NAN)), *({"lease": n} for n in (0, -1, 0.01, NAN, 1e9)),
        *({"prefetch": n} for n in (-1, 2**31, "some")), *({"grace": n} for n in (-1, NAN, INF)),
        *({"lanes": lanes} for lanes in ("shop", [], ["{x}"], ["a\x00"], ["x"] + [f"l{n}" for n in range(100)])),
        {"capabilities": ["a b"]}, {"name": "{x}"}, {"name": ""},
    ]  # fmt: skip
    tasks: list[dict[str, Any]] = [
        {"name": "{x}"}, {"name": ""}, {"lane": "a b"}, {"priority": 101}, {"timeout": -1}, {"timeout": NAN},
        {"deadline": 0}, {"lease": -1}, {"version": 0}, {"version": 2**40}, {"requires": ["a b"]},
        {"isolation": "cell"},
    ]  # fmt: skip
    retries: list[dict[str, Any]] = [
        {"max_attempts": 0}, {"max_attempts": -1}, {"max_attempts": 2**40}, {"backoff": -1}, {"backoff": NAN},
        {"factor": 0.5}, {"factor": INF}, {"max_backoff": -1},
    ]  # fmt: skip

    def declare(**options: Any) -> object:
        declared: Any = app.task(**{"name": "fresh", **options})
        return declared(lambda n: n)

    accepted: list[str] = []
    for make, cases in (
        (app.worker, workers), (declare, tasks), (ff.Retry, retries),
        (ff.RetryAfter, [{"delay": n} for n in (-1, NAN, INF, 1e300)]),
    ):  # fmt: skip
        for options in cases:
            try:
                make(**options)
            except ff.InvalidArgument as refusal:
                assert str(refusal)
            else:
                accepted.append(f"{make.__name__} {options}")
    assert accepted == []


async def test_what_only_the_store_can_see_is_typed_and_writes_nothing(url: str, client: ff.Client) -> None:
    await client.submit("order", Order(1), key="one")
    ready = await client.submit("order", Order(2))
    await refused(
        url, lambda: client.submit("order", Order(9), key="one"), ff.IdempotencyConflict, "idempotency_conflict"
    )
    await refused(url, lambda: client.job(ID).status(), ff.NotFound, "execution_not_found")
    await refused(url, lambda: client.job(ID).cancel(), ff.NotFound, "execution_not_found")
    await refused(url, lambda: client.job(ID).result(timeout=5), ff.NotFound, "execution_not_found")
    await refused(url, ready.replay, ff.WrongState, "execution_not_terminal")
    await client.lane("shop").drain()
    await refused(url, lambda: client.submit("order", Order(3)), ff.WrongState, "lane_closed")


async def test_a_handler_s_payload_or_result_that_cannot_be_used_ends_the_job_once(url: str) -> None:
    """The worker cannot do better by trying again: one attempt, one end, told in the category."""
    app = ff.App(url)

    @app.task(lane="shop")
    async def order(what: Order) -> Any:
        return {1: Opaque(), 2: "x" * (1 << 20), 3: "fine"}[what.n]

    async with app.client() as client, ff.App(url).client() as stranger, working(app):
        expected = {"1": "invalid_result", "2": "result_too_large", "no object": "invalid_payload"}
        jobs = {text: await stranger.submit("order", {"n": int(text)}, lane="shop") for text in ("1", "2", "3")}
        jobs["no object"] = await stranger.submit("order", "no object", lane="shop")
        for text, job in jobs.items():
            outcome: ff.Outcome[Any] = await client.job(job.id).outcome(timeout=20)
            if text == "3":
                assert outcome == ff.Completed("fine")
                continue
            assert isinstance(outcome, ff.Failed)
            assert (outcome.category, outcome.attempts) == (expected[text], 1)
            status = await job.status()
            assert (status.state, status.attempts, status.crashes) == ("failed", 1, 0)
        backend = client.backend
        assert isinstance(backend, ValkeyBackend)
        kept = [key for key in await keyspace(url) if b":r:" in key]
        assert kept == [], "a result that was refused is not in the store; the fine one stands in its record"
