"""The fixture users get from the installed plugin; a checkout that is not installed has it too."""

from __future__ import annotations

from ffsdk.testing import ff_engine

__all__ = ["ff_engine"]
