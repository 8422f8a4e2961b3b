"""A day's budget in the database: kept over a restart, shared by workers, in nobody's way where it is out of reach."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import date

import pytest
from fakes.gemini_server import FakeGemini
from pydantic import SecretStr

from aiworker.cli.spending import keeping_spend
from aiworker.domain.completion import PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import DatabaseUnavailable, NoProvider
from aiworker.llm.gemini import GeminiModel
from aiworker.llm.lane import LaneRules
from aiworker.llm.router import ModelRouter
from aiworker.queue.postgres import PostgresQueue

# Of one answer of the fake Gemini: twelve tokens in, two out.
ANSWER_USD = (12 * 0.3 + 2 * 2.5) / 1e6
OFTEN_S = 0.01


@asynccontextmanager
async def worker(gemini: FakeGemini, url: str, *, budget_usd: float) -> AsyncIterator[ModelRouter]:
    """The part of a worker that pays."""
    rules = {"gemini": LaneRules(4, usd_per_day=budget_usd)}
    router = ModelRouter({"gemini": GeminiModel(SecretStr("k"), "gemini-2.5-flash", gemini.url)}, rules)
    async with PostgresQueue(url) as queue, keeping_spend(router, queue, OFTEN_S):
        yield router
    await router.close()


async def ask(router: ModelRouter) -> None:
    await router.complete(PromptRequest("test", "s", "p", ("gemini",)), Deadline.after(20))


async def knows(router: ModelRouter, usd: float) -> None:
    while router.snapshot()["gemini"]["spent_today_usd"] != pytest.approx(usd, abs=1e-6):
        await asyncio.sleep(OFTEN_S)


async def test_a_restart_does_not_begin_at_zero(database_url: str) -> None:
    async with FakeGemini(key="k") as gemini:
        async with worker(gemini, database_url, budget_usd=1.5 * ANSWER_USD) as router:
            await ask(router)
        async with worker(gemini, database_url, budget_usd=1.5 * ANSWER_USD) as router:
            await knows(router, ANSWER_USD)
            await ask(router)
        async with worker(gemini, database_url, budget_usd=1.5 * ANSWER_USD) as router:
            await knows(router, 2 * ANSWER_USD)
            with pytest.raises(NoProvider) as caught:
                await ask(router)
        assert caught.value.reasons == {"gemini": "budget_spent"}
        assert len(gemini.requests) == 2


async def test_two_workers_share_the_budget(database_url: str) -> None:
    async with (
        FakeGemini(key="k") as gemini,
        worker(gemini, database_url, budget_usd=1) as one,
        worker(gemini, database_url, budget_usd=1) as other,
    ):
        await knows(other, 0)
        await ask(one)
        await ask(one)
        async with asyncio.timeout(20):
            while one.unsaved_spend()[0].usd:
                await asyncio.sleep(OFTEN_S)
        await ask(other)
        await knows(other, 3 * ANSWER_USD)


class Slow:
    """A ledger that is at work on the first sum when the worker stops."""

    def __init__(self) -> None:
        self.asked, self.go_on = asyncio.Event(), asyncio.Event()
        self.sums: list[float] = []

    async def add_spend(self, day: date, provider: str, usd: float) -> float:
        self.sums.append(usd)
        if usd:
            self.asked.set()
            await self.go_on.wait()
        return sum(self.sums)


async def test_a_sum_that_is_being_written_at_the_end_is_not_written_twice() -> None:
    async with FakeGemini(key="k") as gemini:
        router = ModelRouter({"gemini": GeminiModel(SecretStr("k"), "gemini-2.5-flash", gemini.url)}, {})
        slow = Slow()
        async with keeping_spend(router, slow, OFTEN_S):
            await ask(router)
            await slow.asked.wait()
            asyncio.get_running_loop().call_soon(slow.go_on.set)
        await router.close()
    assert sum(slow.sums) == pytest.approx(ANSWER_USD)
    assert router.unsaved_spend()[0].usd == 0


class Gone:
    """A ledger in a database that is not there."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()

    async def add_spend(self, day: date, provider: str, usd: float) -> float:
        self.asked.set()
        raise DatabaseUnavailable


async def test_without_a_database_the_budget_is_kept_all_the_same() -> None:
    async with FakeGemini(key="k") as gemini:
        rules = {"gemini": LaneRules(4, usd_per_day=1.5 * ANSWER_USD)}
        router = ModelRouter({"gemini": GeminiModel(SecretStr("k"), "gemini-2.5-flash", gemini.url)}, rules)
        gone = Gone()
        async with keeping_spend(router, gone, OFTEN_S):
            await gone.asked.wait()
            await ask(router)
            await ask(router)
            with pytest.raises(NoProvider):
                await ask(router)
        await router.close()
