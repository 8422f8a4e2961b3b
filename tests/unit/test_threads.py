"""Threads that are there before they are needed."""

from __future__ import annotations

import asyncio
import threading

from aiworker.cli.serve import run
from aiworker.telemetry.threads import full_pool


def test_a_full_pool_starts_no_thread_when_it_is_busy() -> None:
    before = threading.active_count()
    with full_pool(3, "test") as pool:
        assert threading.active_count() == before + 3
        everybody = threading.Barrier(3)
        assert sorted(pool.map(lambda _: everybody.wait(), range(3))) == [0, 1, 2]
        assert threading.active_count() == before + 3
    assert threading.active_count() == before


def test_a_process_has_its_threads_from_the_start() -> None:
    counts = []

    async def main() -> None:
        counts.append(threading.active_count())
        await asyncio.gather(*(asyncio.to_thread(sum, ()) for _ in range(20)))
        counts.append(threading.active_count())

    run(main())
    assert counts[0] == counts[1]
