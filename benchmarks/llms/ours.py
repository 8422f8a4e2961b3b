"""Our router at the work of benchmarks/llm_peers.py: `python -m llms.ours WHAT JSON`. Prints JSON."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Sequence
from typing import Any

import uvloop
from peers.driving import cpu_s, drive, memory_mb
from pydantic import SecretStr

from aiworker.cli.serve import leave_imports_alone
from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.llm.bill import Bill
from aiworker.llm.gemini import GeminiModel
from aiworker.llm.lane import LaneRules
from aiworker.llm.ollama import OllamaModel
from aiworker.llm.router import ModelRouter
from aiworker.llm.tuning import Tuning
from llms.faults import OLLAMA_SLOTS, scenarios
from llms.openloop import Ask, arrive, steadily

RULES = {"ollama": LaneRules(OLLAMA_SLOTS, local=True, keep_alive_s=1800), "gemini": LaneRules(32)}


class CountedOllama(OllamaModel):
    """Knows how often it was asked, also where nobody listens who could count."""

    asked = 0

    async def complete(self, request: PromptRequest, deadline: Deadline, bill: Bill | None = None) -> Completion:
        self.asked += 1
        return await super().complete(request, deadline, bill)


def ollama_of(ports: dict[str, int]) -> CountedOllama:
    return CountedOllama(f"http://127.0.0.1:{ports['ollama']}", "llama3.2:3b", None, 4096)


def router_of(ollama: OllamaModel, ports: dict[str, int], scale: float) -> ModelRouter:
    """As the worker wires it, on a clock `1 / scale` as fast."""
    gemini = GeminiModel(SecretStr("k"), "gemini-2.5-flash", f"http://127.0.0.1:{ports['gemini']}")
    return ModelRouter({"ollama": ollama, "gemini": gemini}, RULES, tuning=Tuning().scaled(scale))


def prompt(order: Sequence[str], deadline: float) -> PromptRequest:
    return PromptRequest("bench", "s", f"deadline={deadline:.3f}", tuple(order), hedge=True)


async def faults(
    ports: dict[str, dict[str, int]], steady: int, scale: float, rate: float, seconds: float, seed: int
) -> dict[str, Any]:
    """Every scenario at once, each with a router of its own. `steady` is for who has to warm up."""
    del steady
    ollamas = {name: ollama_of(ports[name]) for name in ports}
    routers = {name: router_of(ollamas[name], ports[name], scale) for name in ports}

    def ask_of(name: str) -> Ask:
        order = scenarios(0)[name].order

        async def ask(deadline: float, _slo_s: float) -> str:
            return (await routers[name].complete(prompt(order, deadline), Deadline(deadline))).text

        return ask

    found = await arrive({name: ask_of(name) for name in ports}, scale=scale, rate=rate, seconds=seconds, seed=seed)
    for router in routers.values():
        await router.close()
    return {name: result | {"ollama_asked": ollamas[name].asked} for name, result in found.items()}


class Nothing:
    """A provider that answers at once."""

    name = "gemini"
    sees_images = True

    async def complete(self, request: PromptRequest, deadline: Deadline, bill: Bill | None = None) -> Completion:
        await asyncio.sleep(0)
        return Completion(text="ok", provider="gemini", model="m", finish="stop", prompt_tokens=9, answer_tokens=9)

    async def close(self) -> None:
        """Nothing to close."""


async def cpu(calls: int) -> float:
    """Microseconds of processor time that the router adds to one call."""
    nothing = Nothing()
    router = ModelRouter({"gemini": nothing}, RULES)

    async def through(number: int) -> None:
        for _ in range(number):
            await router.complete(prompt(("ollama", "gemini"), 0), Deadline.after(15))

    async def direct(number: int) -> None:
        for _ in range(number):
            await nothing.complete(prompt(("ollama", "gemini"), 0), Deadline.after(15))

    await through(200)
    spent = []
    for work in (direct, through):
        before = cpu_s()
        await asyncio.gather(*(work(calls // 20) for _ in range(20)))
        spent.append(1e6 * (cpu_s() - before) / calls)
    return spent[1] - spent[0]


async def streams(port: int, at_once: int, waves: int) -> dict[str, float]:
    """Milliseconds: the p95 of streams of half a second, `at_once` at any time, and what the router adds to it."""
    gemini = GeminiModel(SecretStr("k"), "gemini-2.5-flash", f"http://127.0.0.1:{port}")
    # Chance puts more of them there now and then; the line for slots is not what is measured.
    router = ModelRouter({"gemini": gemini}, {"gemini": LaneRules(2 * at_once)})

    async def direct() -> None:
        await gemini.complete(prompt(("gemini",), 0), Deadline.after(15))

    async def through() -> None:
        await router.complete(prompt(("gemini",), 0), Deadline.after(15))

    await steadily(direct, at_once, 1)
    await steadily(through, at_once, 1)
    # Other processes come and go: only what is measured side by side can be compared.
    direct_ms: list[float] = []
    through_ms: list[float] = []
    for number in range(waves):
        for way in (direct, through) if number % 2 == 0 else (through, direct):
            taken = sorted(await steadily(way, at_once, 1.5))
            (direct_ms if way is direct else through_ms).append(taken[int(0.95 * len(taken))])
    await router.close()
    added = statistics.median(after - before for before, after in zip(direct_ms, through_ms, strict=True))
    return {"through_p95_ms": statistics.median(through_ms), "added_p95_ms": added}


async def costs(port: int, at_once: int, waves: int, calls: int) -> dict[str, Any]:
    """Memory with one idle client, then processor time, then streams."""
    nowhere = {"ollama": 9, "gemini": 9}
    idle = router_of(ollama_of(nowhere), nowhere, 1.0)
    rss_mb = memory_mb()
    await idle.close()
    spent = [await cpu(calls) for _ in range(3)]
    return {"rss_mb": rss_mb, "cpu_us": sorted(spent)[1], **await streams(port, at_once, waves)}


if __name__ == "__main__":
    # As the worker does.
    leave_imports_alone()
    drive({"faults": faults, "costs": costs}, uvloop.run)
