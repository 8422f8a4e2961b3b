"""Our router at the work of benchmarks/llm_peers.py: `python -m llms.ours WHAT JSON`. Prints JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
from collections.abc import Sequence
from typing import Any

import uvloop
from pydantic import SecretStr

from aiworker.cli.serve import leave_imports_alone
from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.llm.gemini import GeminiModel
from aiworker.llm.lane import LaneRules
from aiworker.llm.ollama import OllamaModel
from aiworker.llm.router import ModelRouter
from aiworker.llm.tuning import Tuning
from llms.faults import OLLAMA_SLOTS, scenarios
from llms.openloop import Ask, drive, steadily

RULES = {"ollama": LaneRules(OLLAMA_SLOTS, local=True, keep_alive_s=1800), "gemini": LaneRules(32)}


def router_of(ports: dict[str, int], scale: float) -> ModelRouter:
    """As the worker wires it, on a clock `1 / scale` as fast."""
    ollama = OllamaModel(f"http://127.0.0.1:{ports['ollama']}", "llama3.2:3b", None, 4096)
    gemini = GeminiModel(SecretStr("k"), "gemini-2.5-flash", f"http://127.0.0.1:{ports['gemini']}")
    return ModelRouter({"ollama": ollama, "gemini": gemini}, RULES, tuning=Tuning().scaled(scale))


def prompt(order: Sequence[str], deadline: float) -> PromptRequest:
    return PromptRequest("bench", "s", f"deadline={deadline:.3f}", tuple(order), hedge=True)


async def faults(
    ports: dict[str, dict[str, int]], steady: int, scale: float, rate: float, seconds: float, seed: int
) -> dict[str, Any]:
    """Every scenario at once, each with a router of its own. `steady` is for who has to warm up."""
    del steady
    routers = {name: router_of(ports[name], scale) for name in ports}

    def ask_of(name: str) -> Ask:
        order = scenarios(0)[name].order

        async def ask(deadline: float, _slo_s: float) -> str:
            return (await routers[name].complete(prompt(order, deadline), Deadline(deadline))).text

        return ask

    found = await drive({name: ask_of(name) for name in ports}, scale=scale, rate=rate, seconds=seconds, seed=seed)
    for router in routers.values():
        await router.close()
    return found


class Nothing:
    """A provider that answers at once."""

    name = "gemini"
    sees_images = True

    async def complete(self, request: PromptRequest, deadline: Deadline) -> Completion:
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
        before = _cpu_s()
        await asyncio.gather(*(work(calls // 20) for _ in range(20)))
        spent.append(1e6 * (_cpu_s() - before) / calls)
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


def memory_mb() -> float:
    """Of this process."""
    status = open("/proc/self/status").read()  # noqa: PTH123, SIM115 - pathlib would be measured too
    return int(status.split("VmRSS:")[1].split()[0]) / 1024


async def costs(port: int, at_once: int, waves: int, calls: int) -> dict[str, Any]:
    """Memory with one idle client, then processor time, then streams."""
    idle = router_of({"ollama": 9, "gemini": 9}, 1.0)
    rss_mb = memory_mb()
    await idle.close()
    spent = [await cpu(calls) for _ in range(3)]
    return {"rss_mb": rss_mb, "cpu_us": sorted(spent)[1], **await streams(port, at_once, waves)}


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Runs one measurement and prints its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["faults", "costs"])
    parser.add_argument("how", type=json.loads)
    options = parser.parse_args()
    # As the worker does.
    leave_imports_alone()
    work: dict[str, Any] = {"faults": faults, "costs": costs}
    print(json.dumps(uvloop.run(work[options.what](**options.how))))


if __name__ == "__main__":
    main()
