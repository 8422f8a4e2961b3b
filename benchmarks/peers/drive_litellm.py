"""LiteLLM's Router at the work of benchmarks/llm_peers.py: `python -m peers.drive_litellm WHAT JSON`. Prints JSON.

Set up as its reliability pages advise: one model group a provider, each with the other as fallback, a time limit that
leaves the fallback its chance, the rest by default; `tuned` counts failures of a lone deployment too, which is not its
default, and retries once instead of twice; `group` is one group of both by order, where cooldowns and retries change
over to the other by themselves; `once` asks each at most once.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

from llms.faults import OLLAMA_SLOTS, SLO_S, scenarios
from llms.openloop import Ask, arrive, steadily
from peers.driving import cpu_s, drive, memory_mb

_FIRST_SHARE = 0.47
_OPTIONS: dict[str, dict[str, Any]] = {"tuned": {"num_retries": 1, "allowed_fails": 3}, "once": {"num_retries": 0}}


def router_of(ports: dict[str, int], scale: float, *, setup: str = "", first: str = "ollama") -> Any:
    """One Router for one scenario, whose groups are named `ollama` and `gemini`, or `both`."""
    from litellm import Router  # noqa: PLC0415 - its import is one of the figures

    limit_s = SLO_S * scale * _FIRST_SHARE
    ollama = {
        "model": "ollama_chat/llama3.2:3b",
        "api_base": f"http://127.0.0.1:{ports['ollama']}",
        "timeout": limit_s,
        "max_parallel_requests": OLLAMA_SLOTS,
    }
    gemini = {
        "model": "gemini/gemini-2.5-flash",
        "api_base": f"http://127.0.0.1:{ports['gemini']}",
        "api_key": "k",
        "timeout": limit_s,
    }
    if setup == "group":
        return Router(
            model_list=[
                {"model_name": "both", "litellm_params": ollama | {"order": 1 if first == "ollama" else 2}},
                {"model_name": "both", "litellm_params": gemini | {"order": 1 if first == "gemini" else 2}},
            ],
            enable_pre_call_checks=True,
            cooldown_time=5 * scale,
        )
    return Router(
        model_list=[
            {"model_name": "ollama", "litellm_params": ollama},
            {"model_name": "gemini", "litellm_params": gemini},
        ],
        fallbacks=[{"ollama": ["gemini"]}, {"gemini": ["ollama"]}],
        cooldown_time=5 * scale,
        **_OPTIONS.get(setup, {}),
    )


async def faults(
    ports: dict[str, dict[str, int]],
    steady: int,
    scale: float,
    rate: float,
    seconds: float,
    seed: int,
    setup: str = "",
) -> dict[str, Any]:
    """Every scenario at once, each with a Router of its own."""
    # Much of it is imported at the first call.
    await steadily(_asking(router_of({"ollama": 9, "gemini": steady}, 1.0)), 3, 0.5)
    order = {name: scenarios(0)[name].order for name in ports}
    routers = {name: router_of(ports[name], scale, setup=setup, first=order[name][0]) for name in ports}

    def ask_of(name: str) -> Ask:
        group = "both" if setup == "group" else order[name][0]

        async def ask(deadline: float, _slo_s: float) -> str:
            messages = [{"role": "user", "content": f"deadline={deadline:.3f}"}]
            answer = await routers[name].acompletion(model=group, messages=messages, max_tokens=1024)
            return str(answer.choices[0].message.content)

        return ask

    asked = counted()
    found = await arrive({name: ask_of(name) for name in ports}, scale=scale, rate=rate, seconds=seconds, seed=seed)
    ollamas = {name: f"http://127.0.0.1:{ports[name]['ollama']}" for name in ports}
    return {name: result | {"ollama_asked": asked[ollamas[name]]} for name, result in found.items()}


def counted() -> Counter[str]:
    """Counts from here on the calls that Routers make, by address: also those that nobody listens to."""
    import litellm  # noqa: PLC0415

    asked: Counter[str] = Counter()
    ask = litellm.acompletion

    async def acompletion(*args: Any, **how: Any) -> Any:
        asked[how["api_base"]] += 1
        return await ask(*args, **how)

    litellm.acompletion = acompletion
    return asked


def _asking(router: Any) -> Callable[[], Awaitable[None]]:
    async def ask() -> None:
        with contextlib.suppress(Exception):
            await router.acompletion(model="ollama", messages=[{"role": "user", "content": "deadline=0"}])

    return ask


async def cpu(calls: int) -> float:
    """Microseconds of processor time of one call that it answers itself."""
    router = router_of({"ollama": 9, "gemini": 9}, 1.0)
    messages = [{"role": "user", "content": "deadline=0"}]

    async def through(number: int) -> None:
        for _ in range(number):
            await router.acompletion(model="gemini", messages=messages, mock_response="ok")

    await through(20)
    before = cpu_s()
    await asyncio.gather(*(through(calls // 20) for _ in range(20)))
    return 1e6 * (cpu_s() - before) / calls


async def streams(port: int, at_once: int, waves: int) -> dict[str, float]:
    """Milliseconds: the p95 of streams of half a second, `at_once` of them at any time."""
    router = router_of({"ollama": 9, "gemini": port}, 1.0)
    messages = [{"role": "user", "content": "deadline=0"}]

    async def through() -> None:
        async for _ in await router.acompletion(model="gemini", messages=messages, stream=True):
            pass

    await steadily(through, at_once, 1)
    taken = await steadily(through, at_once, 1.5 * waves)
    return {"through_p95_ms": sorted(taken)[int(0.95 * len(taken))]}


async def costs(port: int, at_once: int, waves: int, calls: int) -> dict[str, Any]:
    """Memory with one idle client, then processor time, then streams."""
    idle = router_of({"ollama": 9, "gemini": 9}, 1.0)
    rss_mb = memory_mb()
    del idle
    spent = [await cpu(calls) for _ in range(3)]
    return {"rss_mb": rss_mb, "cpu_us": sorted(spent)[1], **await streams(port, at_once, waves)}


if __name__ == "__main__":
    # It would ask a server for prices, and write to the terminal at every failure.
    os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
    logging.disable(logging.CRITICAL)
    # Its threads and loggers may take their time.
    drive({"faults": faults, "costs": costs}, leave=True)
