"""0 done, 1 rejected or failed, 2 usage, 3 not found, 4 timeout, 5 unavailable."""

from __future__ import annotations

import json

import click
import pytest

from ffcli.main import exit_code, expected
from ffcore import errors
from ffsdk.errors import JobFailed, NotAccepted, SubmitErrors
from tests.cli.conftest import FF, own_database, work

UNKNOWN = "{fp:0}:00000000-0000-7000-8000-000000000000"


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.WrongState("x"), 1),
        (errors.InvalidRequest("x"), 1),
        (errors.EngineBug("x"), 1),
        (JobFailed("x", execution_id=UNKNOWN, outcome=None), 1),
        (click.UsageError("x"), 2),
        (errors.InvalidArgument("x"), 2),
        (errors.NotFound("x"), 3),
        (TimeoutError("x"), 4),
        (errors.Unavailable("x"), 5),
        (errors.NotInitialised("x"), 5),
        (errors.Incompatible("x"), 5),
        (KeyboardInterrupt(), 130),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else str(value),
)
def test_each_family_has_one_exit_code(error: BaseException, code: int) -> None:
    assert exit_code(error) == code


def test_only_bugs_keep_their_traceback() -> None:
    refused = NotAccepted(0, errors.StoreFull("full"))
    assert expected(SubmitErrors.of("1 of 2", [refused], [None]))
    assert expected(errors.Unavailable("away"))
    assert not expected(errors.EngineBug("the parts disagree"))
    assert not expected(ZeroDivisionError())


def test_a_job_that_failed_is_1(ff: FF, store: str) -> None:
    execution_id = ff("submit", "cli.boom", "1", "--lane", "math").out.strip()
    work(store, execution_id)
    ran = ff("job", "result", execution_id)
    assert ran.code == 1
    assert "no good" in ran.err


def test_a_payload_that_is_no_json_is_2(bare_ff: FF) -> None:
    ran = bare_ff("submit", "t", "{oops", "--url", "memory://x")
    assert ran.code == 2
    assert "not JSON" in ran.err


def test_an_unknown_verb_and_a_bad_url_are_2(bare_ff: FF) -> None:
    assert bare_ff("frobnicate").code == 2
    assert bare_ff("lane", "list", "--url", "nonsense").code == 2


def test_no_url_without_a_terminal_is_2_and_names_ff_url(
    bare_ff: FF, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("empty"))
    ran = bare_ff("lane", "list")
    assert ran.code == 2
    assert "FF_URL" in ran.err


def test_an_id_that_nobody_has_is_3(ff: FF) -> None:
    for verb in ("show", "result", "history", "explain", "export", "cancel", "replay"):
        assert ff("job", verb, UNKNOWN).code == 3, verb
    assert ff("lease", "revoke", UNKNOWN).code == 3
    assert ff("lane", "stats", "nosuchlane").code == 3


def test_a_text_that_is_no_id_is_2(ff: FF) -> None:
    assert ff("job", "show", "81").code == 2


def test_a_result_that_is_not_there_yet_is_4(ff: FF, lane: str) -> None:
    execution_id = ff("submit", "t", "--lane", lane).out.strip()
    ran = ff("job", "result", execution_id)
    assert ran.code == 4
    assert "waiting" in ran.err
    assert ff("job", "result", execution_id, "--wait", "--timeout", "0").code == 4


def test_a_store_that_does_not_answer_is_5(bare_ff: FF) -> None:
    ran = bare_ff("lane", "list", "--url", "valkey://127.0.0.1:1", "--json")
    assert ran.code == 5
    told = json.loads(ran.err)
    assert told["exit_code"] == 5
    assert set(told) == {"error", "message", "exit_code"}


def test_a_store_without_partitions_is_5_and_names_the_remedy(bare_ff: FF, valkey_url: str) -> None:
    ran = bare_ff("lane", "list", "--url", own_database(valkey_url).removesuffix("9") + "10")
    assert ran.code == 5
    assert "ff init" in ran.err
