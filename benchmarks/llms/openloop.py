"""Calls that arrive whether or not earlier ones are answered, the same for everybody. Knows nothing of ours."""

from __future__ import annotations

import asyncio
import random
import time
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

from llms.faults import SLO_S, STEADY_S

Ask = Callable[[float, float], Awaitable[str]]


async def arrive(
    asks: dict[str, Ask], *, scale: float, rate: float, seconds: float, seed: int
) -> dict[str, dict[str, Any]]:
    """`asks[scenario](deadline, slo_s)` gives the answer's text or raises. All scenarios at once, each with `rate`
    calls a second for `seconds`.

    By scenario: calls, in_time, and the milliseconds that each good one took.
    """
    names = list(asks)
    results = await asyncio.gather(*(_arrive(name, asks[name], scale, rate, seconds, seed) for name in names))
    return dict(zip(names, results, strict=True))


async def _arrive(name: str, ask: Ask, scale: float, rate: float, seconds: float, seed: int) -> dict[str, Any]:
    rng = random.Random(zlib.crc32(name.encode()) + seed)
    slo_s = SLO_S * scale
    arrivals = [rng.expovariate(rate)]
    while arrivals[-1] < seconds:
        arrivals.append(arrivals[-1] + rng.expovariate(rate))
    begun = time.monotonic()
    good: list[float] = []

    async def one(due: float) -> None:
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        try:
            async with asyncio.timeout(max(0.0, due + slo_s - time.monotonic())):
                answered = await ask(due + slo_s, slo_s) == "ok"
        except Exception:  # noqa: BLE001 - whatever it is, it is no answer
            answered = False
        took = time.monotonic() - due
        if answered and took <= slo_s:
            good.append(1000 * took)

    await asyncio.gather(*(one(begun + arrival) for arrival in arrivals))
    return {"calls": len(arrivals), "in_time": len(good), "ms": sorted(good)}


async def steadily(call: Callable[[], Awaitable[None]], at_once: int, seconds: float) -> list[float]:
    """Milliseconds of each call to the steady server, whose streams take half a second.

    They begin at moments of chance, so many that `at_once` of them are under way: begun one after the other's end, they
    would bunch together more and more.
    """
    rng = random.Random(at_once)
    taken: list[float] = []

    async def one(delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        started = time.perf_counter()
        await call()
        taken.append(1000 * (time.perf_counter() - started))

    calls = int(at_once * seconds / STEADY_S)
    await asyncio.gather(*(one(rng.uniform(0, seconds)) for _ in range(calls)))
    return taken
