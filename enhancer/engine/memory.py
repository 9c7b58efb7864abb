"""What the C library does with memory that tensors leave."""

from __future__ import annotations

import ctypes
import sys

# Parameters of mallopt(3), from glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**31 - 1
_LARGEST_FROM_HEAP_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Let this process keep the memory of freed tensors for the next ones; whether the C library can.

    glibc gives blocks above 32 MB back to the system as soon as they are freed, and takes new ones whose pages are then
    filled with zeros one by one. A training step on the CPU frees and takes the same blocks at every step: without this
    an LSTM spends up to a third of its time there. The process stays at its peak until it ends.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_FROM_HEAP_BYTES) and mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES)
    )
