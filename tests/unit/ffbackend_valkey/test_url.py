"""A URL either names a store or is refused with the remedy; no text form holds the password."""

from __future__ import annotations

import copy
import os
import pickle
import traceback

import pytest

from ffbackend_valkey.url import Target, parse_url
from ffcore.errors import EngineError, InvalidArgument


@pytest.mark.parametrize(("url", "nodes", "db", "tls"), [
    ("valkey://example.org:7000/3", (("example.org", 7000),), 3, False),
    ("redis://example.org", (("example.org", 6379),), 0, False),
    ("valkeys://example.org:7000/", (("example.org", 7000),), 0, True),
    ("rediss://example.org:7000/2", (("example.org", 7000),), 2, True),
    ("valkey://[::1]:7000", (("::1", 7000),), 0, False),
    ("VALKEY://127.0.0.1?db=4", (("127.0.0.1", 6379),), 4, False),
])
def test_a_tcp_url_names_one_server(url: str, nodes: tuple[tuple[str, int], ...], db: int, tls: bool) -> None:
    target = parse_url(url)
    assert (target.kind, target.nodes, target.db, target.tls) == ("tcp", nodes, db, tls)
    assert (target.host, target.port) == nodes[0]


def test_a_cluster_url_names_its_seeds_and_each_node_keeps_the_login() -> None:
    target = parse_url("valkey+cluster://worker:s3cret@h1:7001,h2:7002,[::1]:7003")
    assert target.kind == "cluster"
    assert target.nodes == (("h1", 7001), ("h2", 7002), ("::1", 7003))
    node = target.node("h9", 7009)
    assert (node.kind, node.host, node.port) == ("tcp", "h9", 7009)
    assert (node.username, node.password) == ("worker", "s3cret")
    assert parse_url(node.display.replace("worker:***", "worker:s3cret")) == node


def test_a_cluster_url_may_ask_for_tls() -> None:
    target = parse_url("valkeys+cluster://h1,h2?ca=/etc/ca.pem")
    assert (target.tls, target.ca, target.node("h1", 1).scheme) == (True, "/etc/ca.pem", "valkeys")


def test_a_unix_url_names_a_socket_and_perhaps_a_database() -> None:
    target = parse_url("unix:///run/my%20valkey.sock?db=2")
    assert (target.kind, target.path, target.db) == ("unix", "/run/my valkey.sock", 2)
    assert parse_url("unix://:pw@/run/v.sock").password == "pw"


@pytest.mark.parametrize(("url", "path"), [
    ("embedded://./.flowfabric", "./.flowfabric"),
    ("embedded://.flowfabric", ".flowfabric"),
    ("embedded:///var/lib/ff", "/var/lib/ff"),
    ("embedded://../a%20b", "../a b"),
    ("embedded://~/ff", os.path.expanduser("~/ff")),
])
def test_an_embedded_url_names_a_directory_as_written(url: str, path: str) -> None:
    assert (parse_url(url).kind, parse_url(url).path) == ("embedded", path)


def test_a_memory_url_names_a_store_and_has_a_default() -> None:
    assert (parse_url("memory://tests-1").kind, parse_url("memory://tests-1").name) == ("memory", "tests-1")
    assert parse_url("memory://").name == "default"


def test_the_login_is_percent_decoded() -> None:
    target = parse_url("valkey://a%40b:p%2Fw%3A%23%25@h:1")
    assert (target.username, target.password) == ("a@b", "p/w:#%")
    assert (parse_url("valkey://:pw@h").username, parse_url("valkey://:pw@h").password) == (None, "pw")
    assert (parse_url("valkey://me@h").username, parse_url("valkey://me@h").password) == ("me", None)


def test_tls_checks_names_and_certificates_unless_told_not_to() -> None:
    assert parse_url("valkeys://h").verify
    assert parse_url("valkeys://h").ca is None
    assert not parse_url("valkeys://h?verify=none").verify
    assert parse_url("valkeys://h?ca=/etc/ca.pem").ca == "/etc/ca.pem"


@pytest.mark.parametrize("url", [
    "valkey://me:CANARY@h:7000/1", "valkeys://:CANARY@h", "unix://me:CANARY@/run/v.sock?db=1",
    "valkey+cluster://me:CANARY@h1:1,h2:2",
])
def test_no_text_form_holds_the_password(url: str) -> None:
    target = parse_url(url)
    texts = [repr(target), str(target), target.display, f"{target}", f"{[target]}"]
    assert not any("CANARY" in text for text in texts)
    assert all("***" in text for text in texts)
    assert pickle.loads(pickle.dumps(target)) == copy.copy(target) == target


@pytest.mark.parametrize("url", [
    "valkey://h:7000/1", "valkeys://h:7000", "unix:///run/v.sock?db=1", "valkey+cluster://h1:1,h2:2",
    "embedded://./x", "memory://x", "valkey://[::1]:7000",
])
def test_what_is_displayed_without_a_password_can_be_parsed_again(url: str) -> None:
    assert parse_url(url).display == url
    assert parse_url(parse_url(url).display) == parse_url(url)


@pytest.mark.parametrize(("url", "remedy"), [
    ("localhost:6379", "accepted are valkey://"),
    ("", "accepted are valkey://"),
    ("http://h", "accepted are valkey://"),
    ("postgres://me:CANARY@h", "accepted are valkey://"),
    ("valkey://", "names no host"),
    ("valkey://me:CANARY@:6379", "names no host"),
    ("valkey://h:notaport", "not a number from 1 to 65535"),
    ("valkey://h:70000", "not a number from 1 to 65535"),
    ("valkey://h:0", "port 0"),
    ("valkey://me:CANARY/rest@h", "percent-encode"),
    ("valkey://me:CANARY#rest@h", "%23"),
    ("valkey://me:CANARY[@h", "brackets"),
    ("valkey://h/one", "must be a number"),
    ("valkey://h/-1", "must be a number"),
    ("valkey://h/1?db=2", "twice"),
    ("valkey://h1,h2", "valkey+cluster://"),
    ("valkey+cluster://h1,h2/3", "only database 0"),
    ("valkey://h?timeout=3", "accepted are db"),
    ("valkey://h?ca=/x", "use valkeys://"),
    ("valkeys://h?verify=maybe", "'none'"),
    ("unix://relative.sock", "absolute path"),
    ("unix://", "absolute path"),
    ("unix:///run/v.sock?ca=/x", "needs TLS"),
    ("embedded://", "needs a directory"),
    ("memory://a/b", "letters"),
    ("valkey://h\n", "control character"),
    ("valkey://me:CANARY h", "percent-encode"),
    ("valkey://me:pass?CANARY@h:1", "%3F"),
    ("me:CANARY@valkey://h", "no known scheme"),
    ("valkey://h/" + "9" * 5000, "must be a number"),
    ("embedded://a%00b", "control character"),
    ("unix:///a%0ab", "control character"),
    ("valkeys://h?ca=%00", "control character"),
])
def test_a_wrong_url_is_refused_with_the_remedy_and_without_the_password(url: str, remedy: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        parse_url(url)
    assert isinstance(refused.value, EngineError) and isinstance(refused.value, ValueError)
    assert remedy in str(refused.value)
    printed = "".join(traceback.format_exception_only(refused.value)) + repr(refused.value.__cause__)
    assert "CANARY" not in printed
    assert refused.value.__suppress_context__ or refused.value.__context__ is None


def test_a_target_cannot_be_changed() -> None:
    target: Target = parse_url("valkey://h")
    with pytest.raises(AttributeError):
        target.db = 3  # type: ignore[misc]
