"""A bounded number of calls at the same time, granted in the order of their deadlines."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import ProviderTimeout


class Slots:
    """Ollama's own queue is unbounded and first come, first served, so the line is kept here."""

    def __init__(self, provider: str, size: int) -> None:
        self._provider = provider
        self.size = size
        self.in_use = 0
        self._line: list[tuple[Deadline, int, asyncio.Future[None]]] = []
        self._order = itertools.count()

    @property
    def waiting(self) -> int:
        return sum(not granted.done() for _, _, granted in self._line)

    @asynccontextmanager
    async def hold(self, deadline: Deadline) -> AsyncIterator[None]:
        """Raises ProviderTimeout when no slot is free by `deadline`."""
        try:
            await self._take(deadline)
        except TimeoutError:
            raise ProviderTimeout("no free slot in time", provider=self._provider, phase="slot") from None
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, deadline: Deadline) -> None:
        if self.in_use < self.size:
            self.in_use += 1
            return
        granted: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._line, (deadline, next(self._order), granted))
        try:
            async with asyncio.timeout(deadline.remaining()):
                await granted
        except BaseException:
            # The grant and the cancellation may meet: a slot that was already ours goes to the next in line.
            if granted.done() and not granted.cancelled():
                self._give_back()
            granted.cancel()
            raise

    def _give_back(self) -> None:
        while self._line:
            _, _, granted = heapq.heappop(self._line)
            if not granted.done():
                granted.set_result(None)
                return
        self.in_use -= 1
