"""A client that enqueues for one user as fast as it can: `python -m fakes.hammer URL USER REQUESTS`.

It waits for a line on its standard input first, so that several begin together, and prints how many were taken.
"""

from __future__ import annotations

import asyncio
import sys
from uuid import UUID

from aiworker.domain.errors import TooManyActiveJobs
from aiworker.domain.job import NewJob
from aiworker.queue.postgres import PostgresQueue
from fakes.queue_bench import TEXT


def say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


async def hammer(url: str, user: UUID, requests: int) -> int:
    """How many of `requests` were taken; any other answer than "too many" is an error."""
    async with PostgresQueue(url, timeout_s=30) as queue:
        await queue.depth()
        say("ready")
        await asyncio.to_thread(sys.stdin.readline)

        async def one(number: int) -> bool:
            try:
                await queue.enqueue(NewJob(user, TEXT, {"n": number}))
            except TooManyActiveJobs:
                return False
            return True

        return sum(await asyncio.gather(*(one(number) for number in range(requests))))


if __name__ == "__main__":
    say(str(asyncio.run(hammer(sys.argv[1], UUID(sys.argv[2]), int(sys.argv[3])))))
