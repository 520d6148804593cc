"""What goes wrong, how often, and what it does to one call."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Faults:
    """Chances per call (or per step, for what happens to the server or its clock)."""

    crash_before: float = 0.004
    """The caller dies before it sends."""
    crash_after: float = 0.006
    """Applied; the caller dies before it reads the answer."""
    lost_before: float = 0.01
    """The connection breaks before the call leaves; the caller cannot tell."""
    lost_after: float = 0.02
    """Applied, the reply is lost; the caller sends it again or gives up."""
    duplicate: float = 0.015
    """Delivered twice at once."""
    late_duplicate: float = 0.01
    """Delivered once more some steps later."""
    delayed_reply: float = 0.02
    """Applied now, answered later; others run meanwhile."""
    delayed_request: float = 0.02
    """Sent now, applied later."""
    pause: float = 0.01
    """A worker stops, mostly past its leases, and then goes on as if nothing had been (a zombie)."""
    jump_forward: float = 0.002
    jump_back: float = 0.002
    sleep: float = 0.0005
    """More than a minute passes."""
    flush: float = 0.001
    """The server loses its functions."""
    dropped_bell: float = 0.1
    """Of each message."""
    restart: float = 0.0
    """The server is killed and restarted on its file; only where it keeps one."""


USUAL = Faults()
NONE = Faults(**dict.fromkeys(Faults.__dataclass_fields__, 0.0))
CALL_KINDS = ("crash_before", "crash_after", "lost_before", "lost_after", "duplicate", "late_duplicate",
              "delayed_reply", "delayed_request")  # fmt: skip
