"""``--limit-rate``: a bucket of bytes that everything a run fetches takes from."""

from __future__ import annotations

import threading

READ_STEP = 1024 * 1024


class RateLimiter:
    """A bucket of bytes shared by all connections.

    Parameters
    ----------
    bytes_s : int or None
        Bytes per second for everything together; None for no limit.
    """

    def __init__(self, bytes_s: int | None = None) -> None:
        self.bytes_s = bytes_s
        self._lock = threading.Lock()
        self._free_at = 0.0

    @property
    def read_step(self) -> int:
        """How much to read at once: a tenth of a second's worth when limited."""
        return READ_STEP if self.bytes_s is None else max(4096, min(READ_STEP, self.bytes_s // 10))

    def delay_s(self, count: int, now_s: float) -> float:
        """Book ``count`` bytes that arrived; return how long to wait before reading more."""
        if self.bytes_s is None:
            return 0.0
        with self._lock:
            self._free_at = max(self._free_at, now_s) + count / self.bytes_s
            return self._free_at - now_s
