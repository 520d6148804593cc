"""What a URL says about a store; the rule: a password is in `Target.password` and in no text that anyone prints.

    valkey://[user:pass@]host[:port][/db]     redis:// is the same
    valkeys://...?ca=/path.pem                rediss:// is the same; TLS, names and certificates checked
    unix:///path.sock[?db=1]
    valkey+cluster://h1:p1,h2:p2              valkeys+cluster:// with TLS
    embedded://DIR                            relative or absolute
    memory://NAME
"""

from __future__ import annotations

import dataclasses
import os
from typing import Final, Literal
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlsplit

from ffcore.errors import InvalidArgument

Kind = Literal["tcp", "unix", "cluster", "embedded", "memory"]

DEFAULT_PORT: Final = 6379

_TCP: Final = {"valkey": False, "redis": False, "valkeys": True, "rediss": True}
_CLUSTER: Final = {"valkey+cluster": False, "valkeys+cluster": True}
_TLS_OPTIONS: Final = frozenset({"ca", "verify"})

_ACCEPTED: Final = (
    "accepted are valkey://[user:pass@]host:port[/db], valkeys:// (TLS), redis://, rediss://, unix:///path.sock, "
    "valkey+cluster://host:port,host:port, embedded://DIR and memory://NAME"
)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Target:
    """One store, as a URL names it. Text forms carry no password."""

    kind: Kind
    scheme: str
    nodes: tuple[tuple[str, int], ...] = ()
    """Where to connect: one for tcp, the seeds for a cluster, none otherwise."""
    path: str = ""
    """The socket (unix) or the directory (embedded), as written, with ~ expanded."""
    name: str = ""
    """The store's name (memory)."""
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    ca: str | None = None
    verify: bool = True

    @property
    def host(self) -> str:
        return self.nodes[0][0]

    @property
    def port(self) -> int:
        return self.nodes[0][1]

    @property
    def display(self) -> str:
        """The URL with `***` for the password: for messages, logs and tables."""
        if self.kind == "embedded":
            return f"embedded://{self.path}"
        if self.kind == "memory":
            return f"memory://{self.name}"
        user = quote(self.username, safe="") if self.username else ""
        login = f"{user}:***@" if self.password is not None else f"{user}@" if user else ""
        if self.kind == "unix":
            return f"{self.scheme}://{login}{self.path}" + (f"?db={self.db}" if self.db else "")
        where = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.nodes)
        return f"{self.scheme}://{login}{where}" + (f"/{self.db}" if self.db else "")

    def node(self, host: str, port: int) -> Target:
        """One server of a cluster, with the same login and TLS."""
        scheme = self.scheme.removesuffix("+cluster")
        return dataclasses.replace(self, kind="tcp", scheme=scheme, nodes=((host, port),))

    def __repr__(self) -> str:
        return f"Target({self.display})"

    def __str__(self) -> str:
        return self.display


def parse_url(url: str) -> Target:
    """Read a store's URL. InvalidArgument names what is wrong and what would be accepted, never the password."""
    if "://" not in url:
        raise InvalidArgument(f"the store's URL has no scheme; {_ACCEPTED}")
    if any(c.isspace() or not c.isprintable() for c in url):
        raise InvalidArgument("the store's URL holds a space or a control character; percent-encode it")
    scheme = url.partition("://")[0].lower()
    if scheme == "embedded":
        return _embedded(url)
    if scheme == "memory":
        return _memory(url)
    if scheme not in _TCP and scheme not in _CLUSTER and scheme != "unix":
        # What stands before "://" may be a login somebody put there: only what looks like a scheme is repeated.
        named = f"unknown scheme {scheme!r}" if scheme.replace("+", "").isalnum() else "no known scheme"
        raise InvalidArgument(f"{named} in the store's URL; {_ACCEPTED}")
    try:
        parts = urlsplit(url)
    except ValueError:
        # `from None` here and below: the parser's own message quotes the text it could not read, and that may
        # be a password with an unescaped character.
        raise InvalidArgument(f"the {scheme}:// URL cannot be read: unbalanced or misplaced brackets") from None
    if parts.fragment or "#" in url:
        raise InvalidArgument(f"the {scheme}:// URL holds a '#'; in a password write %23")
    return _unix(parts) if scheme == "unix" else _network(parts)


def _embedded(url: str) -> Target:
    path = _decoded(url.partition("://")[2], "directory")
    if not path:
        raise InvalidArgument("embedded:// needs a directory, for example embedded://./.flowfabric")
    return Target(kind="embedded", scheme="embedded", path=os.path.expanduser(path))


def _decoded(text: str, what: str) -> str:
    """Percent-decoded; without characters that no file system shows and some take for the end of a name."""
    path = unquote(text)
    if not path.isprintable():
        raise InvalidArgument(f"the {what} in the store's URL holds a control character")
    return path


def _memory(url: str) -> Target:
    name = unquote(url.partition("://")[2]) or "default"
    if not all(c.isalnum() or c in "-_." for c in name):
        raise InvalidArgument("the name in memory://NAME may hold letters, digits, '-', '_' and '.'")
    return Target(kind="memory", scheme="memory", name=name)


def _unix(parts: SplitResult) -> Target:
    options = _options(parts, {"db"})
    login, _, host = parts.netloc.rpartition("@")
    path = _decoded(parts.path, "path")
    if host or len(path) < 2:
        raise InvalidArgument("unix:// needs an absolute path after two slashes, for example unix:///run/valkey.sock")
    username, password = _login(login)
    return Target(
        kind="unix", scheme="unix", path=path, db=_db(options.get("db", "0")), username=username, password=password
    )


def _network(parts: SplitResult) -> Target:
    clustered = parts.scheme in _CLUSTER
    tls = _CLUSTER[parts.scheme] if clustered else _TCP[parts.scheme]
    options = _options(parts, {"db", *_TLS_OPTIONS} if tls else {"db"})
    login, _, hosts = parts.netloc.rpartition("@")
    named = hosts.split(",")
    if len(named) > 1 and not clustered:
        raise InvalidArgument(f"{parts.scheme}:// names several hosts; for a cluster use valkey+cluster://h1:p1,h2:p2")
    nodes = tuple(_host_port(parts.scheme, one) for one in named)
    number = parts.path.removeprefix("/")
    if number and "db" in options:
        raise InvalidArgument(f"the {parts.scheme}:// URL gives the database twice, as a path and as ?db=")
    db = _db(number or options.get("db", "0"))
    if clustered and db:
        raise InvalidArgument(f"a cluster has only database 0; leave the number out of the {parts.scheme}:// URL")
    verify = options.get("verify", "full")
    if verify not in ("full", "none"):
        raise InvalidArgument("?verify= takes 'full' (the default) or 'none' (any certificate is accepted)")
    username, password = _login(login)
    ca = options.get("ca")
    return Target(
        kind="cluster" if clustered else "tcp", scheme=parts.scheme, nodes=nodes, db=db, tls=tls,
        username=username, password=password, ca=None if ca is None else _decoded(ca, "?ca="), verify=verify == "full",
    )


def _host_port(scheme: str, text: str) -> tuple[str, int]:
    try:
        one = urlsplit(f"//{text}")
        host, port = one.hostname, one.port
    except ValueError:
        raise InvalidArgument(
            f"the {scheme}:// URL has a port that is not a number from 1 to 65535; "
            "in a password percent-encode '/', '?', '#', '@' and '%'"
        ) from None
    if not host:
        raise InvalidArgument(f"the {scheme}:// URL names no host, for example {scheme}://127.0.0.1:6379")
    if port == 0:
        raise InvalidArgument(f"the {scheme}:// URL has port 0; give the port the server listens on")
    return host, DEFAULT_PORT if port is None else port


def _login(text: str) -> tuple[str | None, str | None]:
    """`user:pass`, `:pass` or nothing, percent-decoded. A lone user is a user without a password."""
    username, colon, password = text.partition(":")
    return unquote(username) or None, unquote(password) if colon else None


def _db(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10):
        raise InvalidArgument("the database in the store's URL must be a number, for example valkey://127.0.0.1:6379/0")
    return int(text)


def _options(parts: SplitResult, accepted: set[str]) -> dict[str, str]:
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    for name in options:
        if name in _TLS_OPTIONS and name not in accepted:
            raise InvalidArgument(f"?{name}= needs TLS; use valkeys:// or rediss://")
        if name not in accepted:
            # Not repeated: behind a '?' that was not escaped it is the rest of a password.
            raise InvalidArgument(
                f"the {parts.scheme}:// URL has an unknown option; accepted are {', '.join(sorted(accepted))}; "
                f"in a password write %3F for '?'"
            )
    return options
