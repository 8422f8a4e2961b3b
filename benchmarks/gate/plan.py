"""When each request is meant to be sent. Pure: a plan and a seed give the same requests on every machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Literal

from gate.mix import Kind

DAY_MEAN = 3650 / 86_400
"""Jobs a second, from 3,650 calls a day."""

REST_S = 36.0
"""Longer than unused HTTP connections stay open (15 to 30 s): what is still there after it was not given back."""
_ROUND_S = 150.0
_FEWEST_ROUNDS = 6
_EMPTYING_S = 10.0

Load = Literal["jobs", "requests", "users", "everything"]


@dataclass(frozen=True, slots=True)
class Phase:
    """`rate` is jobs a second (`jobs`), requests a second (`requests`), or how many `users` enqueue and poll;
    `everything` is that many jobs, five times as many requests, and twice as many users.

    `within_capacity` says whether the targets for latency hold in it; `settle` waits for an empty queue first; after
    it, `rest_s` seconds go by without load once the queue is empty.
    """

    name: str
    title: str
    load: Load
    rate: float
    seconds: float
    within_capacity: bool = True
    settle: bool = False
    at_least: int = 0
    rest_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Arrival:
    """One job: seconds after the phase began, and which kind."""

    at: float
    kind: Kind


def phases(scale: Literal["quick", "full"]) -> tuple[Phase, ...]:
    """Warm-up is not judged."""
    full = scale == "full"

    def seconds(quick: float, long: float) -> float:
        return long if full else quick

    return (
        Phase("warm_up", "warm-up", "jobs", 1.0, seconds(6, 15), within_capacity=False),
        Phase("mean", "the day's mean", "jobs", DAY_MEAN, seconds(8, 60), at_least=3),
        Phase("peak", "peak, 10 x the mean", "jobs", 10 * DAY_MEAN, seconds(16, 75), at_least=8),
        Phase("gateway", "gateway, 100 requests/s", "requests", 100.0, seconds(8, 30)),
        Phase("users", "50 users who poll", "users", 50, seconds(14, 40)),
        Phase("steady", "5 jobs/s", "jobs", 5.0, seconds(20, 75)),
        Phase("overload", "overload, 10 jobs/s", "jobs", 10.0, seconds(8, 40), within_capacity=False),
        Phase("recovery", "recovery, 1 job/s", "jobs", 1.0, seconds(10, 30), settle=True),
    )


def soak_phases(seconds: float) -> tuple[Phase, ...]:
    """About that long in rounds of load and rest: memory is compared from rest to rest."""
    rounds = max(_FEWEST_ROUNDS, round(seconds / _ROUND_S))
    load_s = max(1.0, seconds / rounds - REST_S - _EMPTYING_S)
    return (
        Phase("warm_up", "warm-up", "jobs", 1.0, 15, within_capacity=False),
        *(
            Phase(f"round_{number}", f"round {number} of {rounds}", "everything", 2.0, load_s, rest_s=REST_S)
            for number in range(1, rounds + 1)
        ),
    )


def arrivals(phase: Phase, kinds: Sequence[Kind], rng: Random) -> list[Arrival]:
    """Jobs by chance at the phase's rate, as many people who do not know of each other send them."""
    weights = [kind.calls_a_day for kind in kinds]
    times: list[float] = []
    at = rng.expovariate(phase.rate)
    while at < phase.seconds:
        times.append(at)
        at += rng.expovariate(phase.rate)
    while len(times) < phase.at_least:
        times.append(rng.uniform(0.0, phase.seconds))
    chosen = rng.choices(kinds, weights, k=len(times))
    return [Arrival(each, kind) for each, kind in zip(sorted(times), chosen, strict=True)]
