"""Who may do what in the store: prints `users.acl`, from the commands the library and the clients in fact use.

python deploy/acl.py > deploy/users.acl

Roles are tables here; the commands are read from lua/, the functions from the modules that call them. A test holds the
file to this program, and another runs each role on a real server (tests/security/test_acl.py).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

import ffcore.contracts as contracts  # noqa: E402
from ffbackend_valkey.composed import FUNCTIONS  # noqa: E402
from ffbackend_valkey.library import library  # noqa: E402
from ffcore.args import Args  # noqa: E402

READS = frozenset("""
    exists get hexists hget hgetall hkeys hlen hmget hscan hstrlen info|memory lindex llen lrange pttl scan strlen time
    type xinfo xlen xrange xrevrange zcard zcount zmscore zrange zscan zrank zscore
""".split())
"""Commands of lua/ that only read. A new one counts as one that writes until it stands here; a test asks a server."""

HELLO = ("hello", "select", "ping", "client|setname")
"""What every connection says. AUTH needs no permission."""
BOOT = ("info|server", "time", "hgetall")
"""What a program looks at before it trusts a store."""
CLUSTER = ("cluster|slots", "asking", "role", "wait")
"""Where the slots are, a slot on the move; whether there are replicas, and waiting for them."""
LISTEN = ("ssubscribe", "sunsubscribe")

WORKER = ("awaited", "children", "context", "presence", "renewal", "reports", "slots")
"""Modules of ffsdk whose calls only a worker makes."""
NOBODY = ("crashes", "explain", "virtual")
"""Modules that name calls which they do not make, or make on memory:// alone."""


def commands_of_the_library() -> frozenset[str]:
    """Every command that a library function calls; they run with the rights of whoever calls the function."""
    found: set[str] = set()
    for path in sorted((ROOT / "lua").rglob("*.lua")):
        for word, first in re.findall(r'redis\.p?call\("(\w+)"(?:, "(\w+)")?', path.read_text()):
            # INFO tells all sorts of things about the server: only the sections that are asked for.
            found.add(f"info|{first.lower()}" if word == "INFO" else word.lower())
    return frozenset(found)


def functions_called_by(*paths: str) -> list[str]:
    """Functions that change something and are called from these modules."""
    signatures, found = library().signatures, set[str]()
    for path in paths:
        for name in re.findall(r"\b(\w+Args)\b", (ROOT / path).read_text()):
            args: type[Args[object]] | None = getattr(contracts, name, None)
            called = () if args is None else FUNCTIONS.get(args, (args.function(),))
            found.update(function for function in called if not signatures[function].reads_only)
    return sorted(found)


def roles() -> dict[str, list[str]]:
    """Role -> its rules, apart from login."""
    used = commands_of_the_library()
    reads, every = sorted(used & READS), sorted(used)
    modules = [path.stem for path in sorted((ROOT / "ffsdk").glob("*.py"))]
    shared = [f"ffcore/{path.name}" for path in (ROOT / "ffcore").glob("*.py") if path.stem != "operations"]
    theirs = [f"ffsdk/{name}.py" for name in modules if name not in (*WORKER, *NOBODY)]
    client = functions_called_by(*theirs, *shared)
    worker = sorted({*client, *functions_called_by(*(f"ffsdk/{n}.py" for n in WORKER), "ffengine/tick.py")})
    # A reader hears the bells of streams, which say that there is more, and no others.
    ours, ours_to_read = ["~ff:*", "resetchannels", "&ff:*"], ["%R~ff:*", "resetchannels", "&ff:*:s:*"]

    def allow(*words: str) -> list[str]:
        return ["-@all", *(f"+{word}" for word in dict.fromkeys(words))]

    def calls(functions: list[str]) -> list[str]:
        return ["fcall_ro", *(f"fcall|{name}" for name in functions)]

    return {
        # Lanes, holds, cancels, purges, ticks: everything but what a release or a fresh store needs.
        "ff-engine": ours + allow(*HELLO, *BOOT, *CLUSTER, *LISTEN, "fcall_ro", "fcall", *every),
        "ff-worker": ours + allow(*HELLO, *BOOT, *CLUSTER, *LISTEN, *calls(worker), *every),
        "ff-client": ours + allow(*HELLO, *BOOT, *CLUSTER, *LISTEN, *calls(client), *every),
        "ff-reader": ours_to_read + allow(*HELLO, *BOOT, "cluster|slots", *LISTEN, "fcall_ro", *reads),
        "ff-loader": ours + allow(*HELLO, *BOOT, *CLUSTER, *calls(["ff_init_partition"]), "function|load", *every),
    }


def text() -> str:
    """The file. The placeholders are no hashes, so that a server refuses to start with one that is left."""
    lines = ["user default off resetkeys resetchannels -@all"]
    lines.append("user admin on #SHA256_OF_THE_PASSWORD_OF_admin ~* &* +@all")
    for role, rules in roles().items():
        lines.append(f"user {role} on #SHA256_OF_THE_PASSWORD_OF_{role} sanitize-payload resetkeys {' '.join(rules)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(text())
