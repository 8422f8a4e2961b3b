"""The six bad days of the two providers, the same for everybody. Times in seconds at scale 1; knows nothing of ours."""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

SLO_S = 15.0
OLLAMA_SLOTS = 4
# How long an answer of the server without faults takes.
STEADY_S = 0.5
NEVER = math.inf

Kind = Literal["answer", "hang", "fail", "cut", "limited"]


@dataclass(frozen=True)
class Fate:
    """What becomes of one call: it ends after `seconds`, so; `retry_s` is the delay that a 429 names."""

    kind: Kind
    seconds: float
    retry_s: float = 0.0


Behaviour = Callable[[float], Fate]


@dataclass(frozen=True)
class Scenario:
    """`ollama` None is a port where nobody listens. `order` is what the application wants to ask first."""

    order: tuple[str, str]
    ollama: Behaviour | None
    gemini: Behaviour


def lognormal(rng: random.Random, median_s: float, p95_s: float) -> Behaviour:
    """A server that works."""
    spread = math.log(p95_s / median_s) / 1.645
    return lambda _: Fate("answer", median_s * math.exp(rng.gauss(0, spread)))


def hanging(_now: float) -> Fate:
    return Fate("hang", NEVER)


def limited(per_window: int, window_s: float, fine: Behaviour) -> Behaviour:
    """A quota a window; beyond it 429, with RetryInfo until the next window but at most 5 s."""
    used: Counter[int] = Counter()

    def behave(now: float) -> Fate:
        window = int(now // window_s)
        if used[window] >= per_window:
            return Fate("limited", 0.02, retry_s=min(5.0, window_s * (window + 1) - now))
        used[window] += 1
        return fine(now)

    return behave


def bursts(every_s: float, for_s: float, fine: Behaviour) -> Behaviour:
    """503 for the first `for_s` of each `every_s`."""
    return lambda now: Fate("fail", 0.05) if now % every_s < for_s else fine(now)


def flaky(rng: random.Random, share: float, fine: Behaviour) -> Behaviour:
    """A third of `share` hangs, a third fails at once, a third breaks off in the middle."""

    def behave(now: float) -> Fate:
        draw = rng.random() / share
        if draw >= 1:
            return fine(now)
        if draw < 1 / 3:
            return Fate("hang", NEVER)
        return Fate("fail", 0.1) if draw < 2 / 3 else Fate("cut", fine(now).seconds / 2)

    return behave


def scenarios(seed: int) -> dict[str, Scenario]:
    """Fresh ones. Each provider of each has dice of its own, so that its n-th call has the same fate for everybody."""

    def dice(name: str) -> random.Random:
        return random.Random(f"{seed} {name}")

    def well(name: str) -> Behaviour:
        return lognormal(dice(name), 2, 4)

    def fast(name: str) -> Behaviour:
        return lognormal(dice(name), 1, 2)

    local, cloud = ("ollama", "gemini"), ("gemini", "ollama")
    return {
        "Ollama dead": Scenario(local, None, fast("dead")),
        "Ollama hanging": Scenario(local, hanging, fast("hanging")),
        "Ollama slow (p95 20 s)": Scenario(local, lognormal(dice("slow"), 6, 20), fast("beside slow")),
        "Gemini 429, RetryInfo 5 s": Scenario(cloud, well("beside 429"), limited(10, 10, fast("429"))),
        "Gemini 503 bursts": Scenario(cloud, well("beside 503"), bursts(10, 4, fast("503"))),
        "both flaky": Scenario(
            local,
            flaky(dice("flaky 1"), 0.3, well("flaky well")),
            flaky(dice("flaky 2"), 0.3, fast("flaky fast")),
        ),
    }
