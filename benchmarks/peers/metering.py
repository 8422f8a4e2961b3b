"""What is read off the database and the process around a measured stretch of work. Knows nothing of ours."""

from __future__ import annotations

import time
from typing import Any, Self

from peers.driving import cpu_s

_METERS = "select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint, pg_current_xact_id()::text::bigint"


class Metering:
    """An async context manager around `jobs` jobs; `figures` are there when it has ended.

    rate: jobs a second. cpu_us: processor time of this process, a job. wal_bytes and transactions (those that wrote),
    both of the whole server, a job.
    """

    figures: dict[str, float]

    def __init__(self, connection: Any, jobs: int) -> None:
        self._connection = connection
        self._jobs = jobs

    async def __aenter__(self) -> Self:
        # Reading takes one transaction of its own.
        self._before = await self._connection.fetchrow(_METERS)
        self._cpu, self._started = cpu_s(), time.perf_counter()
        return self

    async def __aexit__(self, *_: object) -> None:
        seconds, cpu = time.perf_counter() - self._started, cpu_s() - self._cpu
        after = await self._connection.fetchrow(_METERS)
        self.figures = {
            "rate": self._jobs / seconds,
            "cpu_us": 1e6 * cpu / self._jobs,
            "wal_bytes": (after[0] - self._before[0]) / self._jobs,
            "transactions": (after[1] - self._before[1] - 1) / self._jobs,
        }


async def settle(connection: Any, table: str) -> None:
    """Statistics and a checkpoint, so that no run pays for the one before it."""
    await connection.execute(f"vacuum analyze {table}")
    await connection.execute("checkpoint")
