"""A plain connection for a thread: no event loop is involved, and a call is sent at most once.

The renewal thread owns one, so that leases are kept while a handler blocks the loop.
"""

from __future__ import annotations

import threading
from typing import Final, cast

from redis.exceptions import RedisError, ResponseError

from ffbackend_valkey.connection import CONNECT_TIMEOUT_S, Reply, Word, sync_connection, translate
from ffbackend_valkey.url import Target
from ffcore.errors import EngineError, Unavailable

_TIMEOUT_S: Final = 5.0


class BlockingConnection:
    """Thread-safe; callers take turns. Opens on the first call and again on the first call after a failure."""

    def __init__(
        self, target: Target, *, role: str = "renewal", timeout: float = _TIMEOUT_S,
        connect_timeout: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self.target = target
        self._connection = sync_connection(target, role=role, timeout=timeout, connect_timeout=connect_timeout)
        self._lock = threading.Lock()
        self._connected = False
        self._closed = False

    def call(self, *command: Word, timeout: float | None = None) -> Reply:
        """Send one command and wait for its raw reply; `timeout` seconds (else the connection's) for each part."""
        with self._lock:
            if self._closed:
                raise Unavailable("the connection is closed", code="closed", may_have_applied=False)
            self._ready()
            try:
                self._connection.send_command(*command, check_health=False)
                limit = {} if timeout is None else {"timeout": timeout}
                reply = self._connection.read_response(disable_decoding=True, **limit)
            except Exception as exc:
                raise self._failed(exc, may_have_applied=True) from exc
        return _plain(reply)

    def close(self) -> None:
        """Hang up; waits for a call under way."""
        with self._lock:
            self._closed = True
            self._drop()

    def _ready(self) -> None:
        """Connect if need be. A connection the server has hung up on looks readable: replace it before anything
        is sent, so that a restart of the server does not cost a renewal."""
        if self._connected and self._stale():
            self._drop()
        try:
            if not self._connected:
                self._connection.connect()
                self._connected = True
        except Exception as exc:
            raise self._failed(exc, may_have_applied=False) from exc

    def _stale(self) -> bool:
        try:
            return self._connection.can_read(0)
        except (RedisError, OSError):  # how some releases of redis-py tell the end of the stream
            return True

    def _failed(self, exc: Exception, *, may_have_applied: bool) -> EngineError:
        # After a refusal the connection is in step: its reply was read to the end. After anything else it may not be.
        if not isinstance(exc, ResponseError):
            self._drop()
        return translate(exc, may_have_applied=may_have_applied, where=self.target.display)

    def _drop(self) -> None:
        self._connected = False
        self._connection.disconnect()


def _plain(reply: Reply) -> Reply:
    """Errors inside lists become EngineErrors, as in the multiplexer."""
    if isinstance(reply, list):
        return [_plain(one) for one in cast("list[object]", reply)]
    return translate(reply, may_have_applied=False) if isinstance(reply, Exception) else reply
