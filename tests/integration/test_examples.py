"""The examples do what they say, each as a program of its own on a real server."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import ffsdk as ff
from ffbackend_valkey.stores import connect
from ffcore.backend import StoreConfig
from tests.integration.proxy import own_server, until

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture
async def env() -> dict[str, str]:
    return {**os.environ, "FF_QUIET": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with own_server() as server:
        yield f"valkey://127.0.0.1:{server.port}"


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The secrets of that server: one file, for every program of every test."""
    return str(tmp_path_factory.mktemp("secrets") / "ring")


@pytest.fixture
async def url(server: str, ring: str, env: dict[str, str]) -> str:
    await (await connect(server, init=StoreConfig(fp=4))).close()
    env |= {"FF_URL": server, "FF_SECRET_FILE": ring}
    if not Path(ring).exists():
        run(env, "cli.main", "secret", "seed")
    return server


def run(env: dict[str, str], *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", *words], env=env, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


async def test_hello_says_hello(url: str, env: dict[str, str]) -> None:
    assert run(env, "examples.hello") == "hello world\n"


async def test_an_order_is_charged_once_however_often_it_is_submitted(url: str, env: dict[str, str]) -> None:
    worker = subprocess.Popen([sys.executable, "-m", "examples.checkout_worker"], env=env, cwd=ROOT)
    try:
        for _ in range(2):
            assert run(env, "examples.checkout_submit", "81", "4200") == "charged charge-81\n"
        assert "gave up after 1: order 82 costs nothing" in run(env, "examples.checkout_submit", "82", "0")
    finally:
        worker.send_signal(signal.SIGTERM)
        assert worker.wait(30) == 0, "SIGTERM drains and ends it"


async def test_retries_end_as_the_task_says(url: str, env: dict[str, str]) -> None:
    out = run(env, "examples.retries").splitlines()
    assert "/slow: the page, on attempt 2" in out
    assert "/busy: the page, on attempt 1" in out
    assert "/gone: failed after 1, fatal: 410, and it will not come back" in out
    assert "/down: failed after 4, upstream: 502" in out


async def test_the_higher_priority_goes_first(env: dict[str, str]) -> None:
    """With one partition, where the order is exact."""
    with own_server() as alone:
        env["FF_URL"] = f"valkey://127.0.0.1:{alone.port}"
        await (await connect(env["FF_URL"], init=StoreConfig(fp=1))).close()
        out = run(env, "examples.priorities").splitlines()
    assert out == ["first: urgent 0", "last: draft 7", "jobs: 24"]


async def test_the_tests_of_a_users_own_code_pass(env: dict[str, str]) -> None:
    out = run(env, "pytest", "-q", "-p", "no:cacheprovider", "-rP", "examples/test_invoices.py")
    assert "3 passed" in out and "crash points tried: before and after each of" in out


async def test_a_nightly_schedule_is_made_once_and_its_nights_have_one_run_each(url: str, env: dict[str, str]) -> None:
    words = ("examples.nightly_schedule", "plan")
    assert run(env, *words).startswith("nightly report is made; the next run is at 0")
    assert run(env, *words).startswith("nightly report is as it was")
    with program(env, "examples.nightly_schedule", "work"):
        assert run(env, "examples.nightly_schedule", "now") == "the report of Prague\n"
        nights = run(env, "examples.nightly_schedule", "missed", "3").splitlines()
        assert len(nights) == 3 and all(line.endswith("the report of Prague") for line in nights)
        assert run(env, "examples.nightly_schedule", "missed", "3").splitlines() == nights


@contextmanager
def program(env: dict[str, str], *words: str) -> Iterator[subprocess.Popen[str]]:
    """A program that runs beside the test; killed at the end, if it has not been before."""
    own = subprocess.Popen([sys.executable, "-m", *words], env=env, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        yield own
    finally:
        own.kill()
        own.wait(10)
        assert own.stdout is not None
        own.stdout.close()


async def test_an_order_is_placed_when_a_second_process_approves_it(
    url: str, env: dict[str, str], tmp_path: Path
) -> None:
    env |= {"MAIL_DIR": str(tmp_path)}
    with program(env, "examples.approval", "work"):
        assert run(env, "examples.approval", "order", "80", "900") == "order 80: placed\n"
        with program(env, "examples.approval", "order", "81", "42000") as order:
            mail = tmp_path / "81"
            await until(mail.exists)
            said = run(env, "examples.approval", "approve", str(mail))
            assert order.communicate(timeout=30)[0] == "order 81: placed, approved by dana\n"
            # The click again, after the job has ended: the same answer.
            assert run(env, "examples.approval", "approve", str(mail)) == said


async def test_an_approval_that_nobody_gives_has_a_deadline(url: str, env: dict[str, str], tmp_path: Path) -> None:
    env |= {"MAIL_DIR": str(tmp_path), "APPROVAL_S": "0.3"}
    with program(env, "examples.approval", "work"):
        assert "nobody answered in time" in run(env, "examples.approval", "order", "82", "42000")


async def test_two_of_three_decide(url: str, env: dict[str, str]) -> None:
    assert run(env, "examples.committee").splitlines() == [
        "ada: heard", "ada: heard before", "edsger: heard", "ada: yes", "edsger: if it is simple",
    ]  # fmt: skip


async def test_a_provider_posts_twice_and_the_payment_settles_once(url: str, env: dict[str, str]) -> None:
    out = run(env, "examples.callback")
    # Two threads print: a line of one may fall between the other's text and its end.
    assert out.count("provider: 204") == 2 and out.count("81 settled as ref-81") == 1
    assert "".join(sorted("".join(out.split()))) == "".join(sorted("81settledasref-81" + 2 * "provider:204"))


async def test_an_agent_goes_on_where_its_killed_worker_was(url: str, env: dict[str, str], tmp_path: Path) -> None:
    env |= {"AGENT_LOG": str(tmp_path / "bill"), "AGENT_PACE_S": "0.2"}
    with program(env, "examples.agent", "work") as first, program(env, "examples.agent", "ask", "the box") as asking:
        assert asking.stdout is not None
        assert asking.stdout.readline().startswith("round {'round': 0")
        first.kill()
        with program(env, "examples.agent", "work"):
            rest = asking.communicate(timeout=60)[0].splitlines()
    assert any(line.startswith("superseded") for line in rest), "readers learn that another attempt took over"
    assert rest[-1] == "4 rounds {'rounds': 4}"
    billed = Counter((tmp_path / "bill").read_text().splitlines())
    # What was under way when the worker was killed may run again, under the same effect key; what was recorded never.
    assert len(billed) == 4 and billed.total() <= 5, billed


async def test_a_sleep_outlasts_its_worker(url: str, env: dict[str, str]) -> None:
    with program(env, "examples.reminder", "remind", "dana", "7") as asking:
        assert asking.stdout is not None
        with program(env, "examples.reminder", "work") as first:
            execution_id = asking.stdout.readline().strip()
            async with ff.Client(url) as client:
                job = client.job(execution_id)

                async with asyncio.timeout(20):
                    while (await job.status()).state != "suspended":
                        await asyncio.sleep(0.02)
            first.kill()
        with program(env, "examples.reminder", "work"):
            assert asking.communicate(timeout=60)[0] == "dana: your trial ends\n"


# ---- flows -----------------------------------------------------------------------------------------------


async def test_words_are_counted_file_by_file_and_added_up(url: str, env: dict[str, str]) -> None:
    """Real files, compared with a plain count of them."""
    files = sorted((ROOT / "docs").rglob("*.md"))
    words = Counter(word for path in files for word in re.findall(r"[a-z]+", path.read_text().lower()))
    most = sorted(words, key=lambda word: (-words[word], word))[:3]
    assert run(env, "examples.word_count").splitlines() == [
        f"{len(files)} files, {words.total()} words, {len(words)} of them different",
        f"most of all: {', '.join(most)}",
    ]


async def test_the_first_answer_counts_and_who_is_slower_is_stopped(url: str, env: dict[str, str]) -> None:
    assert run(env, "examples.race").splitlines() == [
        "booked quick: 42.00", "failed: 503", "completed: quick: 42.00", "cancelled: slow", "flow: completed",
    ]  # fmt: skip


async def test_two_of_three_replicas_suffice_and_one_does_not(url: str, env: dict[str, str]) -> None:
    assert run(env, "examples.replicas").splitlines() == [
        "stored on a and b", "then: running", "in the end: completed", "one of three: skipped", "flow: failed",
    ]  # fmt: skip


async def test_a_night_with_a_source_down_is_published_cleaned_up_and_told(url: str, env: dict[str, str]) -> None:
    assert run(env, "examples.nightly").splitlines() == [
        "eu publish: published 328350", "eu alert: skipped",
        "us publish: skipped", "us alert: paged: us is down",
        "scratch is gone", "flow: completed",
    ]  # fmt: skip


async def test_an_agent_spawns_others_and_waits_without_a_slot(url: str, env: dict[str, str]) -> None:
    """One slot for five agents: a parent that held it would wait for ever."""
    assert run(env, "examples.research").splitlines() == [
        "<why is the sky blue> <the grass green> <the sea salt>", "5 agents, 2 levels below the first",
    ]  # fmt: skip


# ---- admission -------------------------------------------------------------------------------------------


async def test_two_hundred_handlers_share_one_budget(url: str, env: dict[str, str]) -> None:
    assert run(env, "examples.one_budget").splitlines() == [
        "200 jobs, never more than the limit: True", "used 8000 of 10000, reserved 0",
    ]  # fmt: skip


async def test_a_tenant_of_weight_four_gets_four_turns_for_one(env: dict[str, str]) -> None:
    """With one partition, where turns are exact. The flood was there first: what it had been given stays."""
    with own_server() as alone:
        env["FF_URL"] = f"valkey://127.0.0.1:{alone.port}"
        await (await connect(env["FF_URL"], init=StoreConfig(fp=1))).close()
        first, then = run(env, "examples.tenants").splitlines()
    shares = {tenant: int(n) for tenant, n in re.findall(r"(\w+) (\d+)", first)}
    assert shares["gold"] == 40 and abs(shares["small"] - shares["flood"]) <= 1, first
    assert then == "then: 560"


async def test_the_limits_of_a_model_hold_for_every_key(url: str, env: dict[str, str]) -> None:
    assert run(env | {"WINDOW_S": "2"}, "examples.llm_limits").splitlines() == [
        "blue: 12 requests, at most 10 in a window: True", "green: 12 requests, at most 10 in a window: True",
        "at most 4 at a time: True",
    ]  # fmt: skip


async def test_models_are_trained_where_the_card_is(url: str, env: dict[str, str]) -> None:
    out = run(env, "examples.gpu_routing").splitlines()
    assert out[:3] == [
        "20 models were trained on: new-gpu", "reported by one of the three: True", "tune m0 can run: False",
    ]  # fmt: skip
    assert out[3].startswith("no_capable_worker") and "cuda>=13" in out[3]
