"""Keeps what a day has cost in the database: a restart does not begin at zero, and several workers share one budget."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date
from typing import Protocol

from aiworker.domain.errors import WorkerError
from aiworker.llm.router import ModelRouter
from aiworker.telemetry.logs import get_logger

_log = get_logger("aiworker.spending")
# What a worker that is killed has spent since is not counted.
_INTERVAL_S = 5.0
_LAST_SAVE_S = 3.0


class Ledger(Protocol):
    async def add_spend(self, day: date, provider: str, usd: float) -> float:
        """Adds it and answers the sum of that day, of all workers, in dollars. Raises DatabaseUnavailable."""
        ...


@asynccontextmanager
async def keeping_spend(router: ModelRouter, ledger: Ledger, interval_s: float = _INTERVAL_S) -> AsyncIterator[None]:
    """At once, every `interval_s` while inside, and at the end. A database that does not answer holds nothing up: until
    it does, the budget is kept by what this process knows."""
    stop = asyncio.Event()
    keeper = asyncio.create_task(_keep(router, ledger, interval_s, stop))
    try:
        yield
    finally:
        # Not cancelled: what was written and not heard of would be written again.
        stop.set()
        await asyncio.wait([keeper], timeout=_LAST_SAVE_S)
        keeper.cancel()


async def _keep(router: ModelRouter, ledger: Ledger, interval_s: float, stop: asyncio.Event) -> None:
    asked = False
    while not stop.is_set():
        asked = await _save(router, ledger, ask=not asked) or asked
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await stop.wait()
    await _save(router, ledger)


async def _save(router: ModelRouter, ledger: Ledger, *, ask: bool = False) -> bool:
    """Of each provider that costs something what is not saved yet; with `ask` also where there is nothing, for the sum.
    False where the ledger could not be reached."""
    try:
        for spend in router.unsaved_spend():
            if spend.usd > 0 or ask:
                router.spend_saved(spend, await ledger.add_spend(spend.day, spend.provider, spend.usd))
    except WorkerError as error:
        _log.warning("spend not saved", exc_info=error)
        return False
    return True
