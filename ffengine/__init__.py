"""The background loop: what is due is done, by whoever runs one of these; see `ffengine.tick`."""

from ffengine.tick import Ticker

__all__ = ["Ticker"]
