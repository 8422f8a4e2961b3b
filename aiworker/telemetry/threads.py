"""Pools of threads that are full from the start, so that a count of threads that grows means a leak."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier


def full_pool(size: int, name: str) -> ThreadPoolExecutor:
    """`size` threads, all there when this returns. Python starts one only when all others happen to be busy."""
    pool = ThreadPoolExecutor(size, name)
    everybody = Barrier(size + 1)
    for _ in range(size):
        pool.submit(everybody.wait)
    everybody.wait()
    return pool
