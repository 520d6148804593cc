"""What runs beside the jobs: the background loop, by which what is due is done (`tick`), and the checker (`check`)."""

from ffengine.tick import Ticker

__all__ = ["Ticker"]
