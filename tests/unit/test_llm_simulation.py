"""The router itself, hours of it, on a clock that jumps: who answers in time, what is wasted, what is never lost."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from fakes.virtual_time import run_virtually
from hypothesis import given, settings
from hypothesis import strategies as st

from aiworker.domain.completion import Completion, PromptRequest
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import (
    NoProvider,
    ProviderError,
    ProviderRateLimited,
    ProviderTimeout,
    ProviderUnavailable,
    ProviderUnreachable,
    StreamBroken,
)
from aiworker.llm.allowance import TokenBucket
from aiworker.llm.bill import Bill
from aiworker.llm.flight import Flight, Surroundings
from aiworker.llm.forecast import Size
from aiworker.llm.lane import Lane, LaneRules, Moment
from aiworker.llm.measures import Measures
from aiworker.llm.router import ModelRouter
from aiworker.llm.tuning import Tuning
from aiworker.telemetry.metrics import Metrics

SLO_S = 15.0
NEVER = 1e9


@dataclass
class Scripted:
    """A provider whose `behave(now)` says how long it takes and how that ends: an error, or None for an answer; and
    `loads(now)` for how long its model takes to be there before that."""

    name: str
    behave: Callable[[float], tuple[float, ProviderError | None]]
    sees_images: bool = True
    cost_usd: float = 0.0
    loads: Callable[[float], float] = lambda _now: 0.0
    calls: int = 0
    wasted: int = 0
    most_at_once: int = 0
    at_once: int = 0
    ends: Counter[str] = field(default_factory=Counter)

    async def complete(self, request: PromptRequest, deadline: Deadline, bill: Bill) -> Completion:
        loop = asyncio.get_running_loop()
        load_s = self.loads(loop.time())
        answer_s, error = self.behave(loop.time())
        seconds = load_s + answer_s
        self.calls += 1
        self.wasted += error is not None or loop.time() + seconds > deadline.at
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            async with asyncio.timeout_at(deadline.at):
                await asyncio.sleep(seconds)
        except TimeoutError:
            raise ProviderTimeout("late", provider=self.name, phase="total") from None
        except asyncio.CancelledError:
            self.ends["cancelled"] += 1
            raise
        finally:
            self.at_once -= 1
        bill.charge(self.cost_usd)
        if error is not None:
            raise error
        self.ends["answered"] += 1
        return Completion(
            text="x",
            provider=self.name,
            model="m",
            finish="stop",
            prompt_tokens=100,
            answer_tokens=50,
            load_ms=1000 * load_s,
            answer_ms=1000 * answer_s,
            cost_usd=self.cost_usd,
        )

    async def close(self) -> None:
        """Nothing to close."""


@dataclass
class Outcome:
    in_time: int = 0
    late: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    by: Counter[str] = field(default_factory=Counter)

    @property
    def all(self) -> int:
        return self.in_time + self.late + self.errors.total()


def lognormal(rng: random.Random, median: float, p95: float) -> Callable[[float], tuple[float, None]]:
    spread = math.log(p95 / median) / 1.645
    return lambda _now: (median * math.exp(rng.gauss(0, spread)), None)


async def load(
    providers: list[Scripted],
    *,
    rate: float,
    seconds: float,
    rng: random.Random,
    order: tuple[str, ...] = ("ollama", "gemini"),
    slots: int = 4,
    hedge: bool = False,
    local_only: bool = False,
    budget_usd: float | None = None,
    rpm: int | None = None,
    gemini_slots: int = 32,
    usd_per_job: float | None = None,
) -> tuple[Outcome, ModelRouter]:
    loop = asyncio.get_running_loop()
    rules = {
        "ollama": LaneRules(slots, local=True, keep_alive_s=1800),
        "gemini": LaneRules(gemini_slots, usd_per_day=budget_usd, requests_per_minute=rpm, usd_per_job=usd_per_job),
    }
    router = ModelRouter(
        {p.name: p for p in providers},
        rules,
        clock=loop.time,
        wall=lambda: 1.8e9 + loop.time(),
        dice=random.Random(7).random,
    )
    outcome = Outcome()

    async def one() -> None:
        deadline = Deadline(loop.time() + SLO_S)
        request = PromptRequest("sofia_text", "s", "p", order, hedge=hedge, local_only=local_only)
        try:
            completion = await router.complete(request, deadline)
        except ProviderError as error:
            outcome.errors[error.code] += 1
        else:
            outcome.by[completion.provider] += 1
            outcome.in_time += loop.time() <= deadline.at
            outcome.late += loop.time() > deadline.at
        # A caller that can answer by rule must be told before it is too late for that.
        assert loop.time() <= deadline.at

    async with asyncio.TaskGroup() as group:
        while loop.time() < seconds:
            group.create_task(one())
            await asyncio.sleep(rng.expovariate(rate))
    for seen in router.snapshot().values():
        assert (seen["in_use"], seen["waiting"]) == (0, 0)
    assert len(asyncio.all_tasks()) == 1
    return outcome, router


def simulate(*providers: Scripted, rng: random.Random, **how) -> tuple[Outcome, ModelRouter]:
    return run_virtually(load(list(providers), rng=rng, **how))


def scripted(rng: random.Random, *, ollama=None, gemini=None) -> tuple[Scripted, Scripted]:
    return (
        Scripted("ollama", ollama or lognormal(rng, 2, 4)),
        Scripted("gemini", gemini or lognormal(rng, 1, 2), cost_usd=0.001),
    )


def dead(_now: float) -> tuple[float, ProviderError | None]:
    return 0.001, ProviderUnreachable(phase="connect")


def hanging(_now: float) -> tuple[float, ProviderError | None]:
    return NEVER, None


def window_quota(per_window: int, window_s: float, fine) -> Callable[[float], tuple[float, ProviderError | None]]:
    used: Counter[int] = Counter()

    def behave(now: float) -> tuple[float, ProviderError | None]:
        window = int(now // window_s)
        used[window] += 1
        if used[window] <= per_window:
            return fine(now)
        return 0.01, ProviderRateLimited(retry_after=window_s * (window + 1) - now)

    return behave


def bursts(every_s: float, for_s: float, fine) -> Callable[[float], tuple[float, ProviderError | None]]:
    return lambda now: (0.05, ProviderUnavailable(status=503)) if now % every_s < for_s else fine(now)


def flaky(rng: random.Random, share: float, fine) -> Callable[[float], tuple[float, ProviderError | None]]:
    def behave(now: float) -> tuple[float, ProviderError | None]:
        draw = rng.random() / share
        if draw >= 1:
            return fine(now)
        if draw < 1 / 3:
            return NEVER, None
        return (
            (0.1, ProviderUnavailable(status=503)) if draw < 2 / 3 else (fine(now)[0] / 2, StreamBroken(phase="total"))
        )

    return behave


@pytest.mark.parametrize("hedge", [False, True])
@pytest.mark.parametrize(
    ("fault", "most_wasted"), [("dead", 0.05), ("hanging", 0.08), ("slow", 0.1), ("limited", 0.1), ("bursts", 0.15)]
)
def test_somebody_who_can_make_it_is_found(fault: str, most_wasted: float, hedge: bool) -> None:
    rng = random.Random(7)
    fine = lognormal(rng, 1, 2)
    ollama, gemini = {
        "dead": lambda: scripted(rng, ollama=dead),
        "hanging": lambda: scripted(rng, ollama=hanging),
        "slow": lambda: scripted(rng, ollama=lognormal(rng, 6, 20)),
        "limited": lambda: scripted(rng, gemini=window_quota(15, 10, fine)),
        "bursts": lambda: scripted(rng, gemini=bursts(10, 4, fine)),
    }[fault]()
    order = ("gemini", "ollama") if fault in ("limited", "bursts") else ("ollama", "gemini")
    outcome, _ = simulate(ollama, gemini, rng=rng, rate=2, seconds=300, order=order, hedge=hedge)
    assert outcome.all > 500
    assert outcome.in_time >= 0.99 * outcome.all, (outcome, ollama, gemini)
    assert ollama.wasted + gemini.wasted <= most_wasted * outcome.all, (outcome, ollama, gemini)


def test_one_lucky_answer_is_not_taken_for_what_a_rescue_takes() -> None:
    good = total = 0
    for seed in range(4):
        rng = random.Random(seed)
        ollama, gemini = scripted(rng, ollama=hanging)
        # So seldom that the answer before is all that is known of Gemini, if anything is.
        outcome, _ = simulate(ollama, gemini, rng=rng, rate=0.03, seconds=10_000)
        good, total = good + outcome.in_time, total + outcome.all
    assert total > 1000
    assert good >= 0.995 * total


@pytest.mark.parametrize(("hedge", "share"), [(True, 0.99), (False, 0.985)])
def test_bad_luck_of_both_shuts_neither(hedge: bool, share: float) -> None:
    good = total = 0
    for seed in range(20):
        rng = random.Random(seed)
        ollama, gemini = scripted(
            rng, ollama=flaky(rng, 0.3, lognormal(rng, 2, 4)), gemini=flaky(rng, 0.3, lognormal(rng, 1, 2))
        )
        outcome, _ = simulate(ollama, gemini, rng=rng, rate=2, seconds=45, hedge=hedge)
        good, total = good + outcome.in_time, total + outcome.all
        assert outcome.in_time >= 0.93 * outcome.all, (seed, outcome)
    assert good >= share * total


def test_both_down_are_found_again_in_a_second_or_two() -> None:
    rng = random.Random(2)
    fine = lognormal(rng, 1, 2)
    down = bursts(1000, 25, fine)
    ollama, gemini = scripted(rng, ollama=down, gemini=down)
    outcome, router = simulate(ollama, gemini, rng=rng, rate=2, seconds=60)
    # Who comes in the first ten seconds cannot be answered by anybody.
    assert outcome.in_time >= 0.98 * (outcome.all - 25), outcome
    assert router.snapshot()["ollama"]["breaker"] == "closed"
    # It may not have been needed since.
    assert router.snapshot()["gemini"]["breaker"] != "open"


def test_line_in_front_of_ollama_spills_what_would_be_late_and_keeps_it_busy() -> None:
    rng = random.Random(5)
    ollama, gemini = scripted(rng)
    outcome, router = simulate(ollama, gemini, rng=rng, rate=3, seconds=300, slots=2)
    assert ollama.most_at_once == 2
    # Two slots of about 2.2 s give 0.9 answers a second of the 3 that are asked for.
    assert outcome.by["ollama"] > 200
    assert outcome.in_time >= 0.99 * outcome.all, (outcome, ollama, gemini)
    assert router.snapshot()["ollama"]["tokens_per_s"]


def test_local_only_never_leaves_and_degrades_early_when_the_line_is_too_long() -> None:
    rng = random.Random(5)
    ollama, gemini = scripted(rng)
    outcome, _ = simulate(ollama, gemini, rng=rng, rate=3, seconds=200, slots=2, local_only=True)
    assert gemini.calls == 0
    assert outcome.errors["no_provider"] > 100
    assert outcome.by["ollama"] > 120
    # What was sent was nearly always worth sending.
    assert ollama.wasted < 0.1 * ollama.calls


def test_who_waits_in_line_when_the_budget_is_spent_is_not_paid_for() -> None:
    rng = random.Random(5)
    ollama, gemini = scripted(rng)
    gemini.cost_usd = 1.0
    outcome, router = simulate(
        ollama, gemini, rng=rng, rate=50, seconds=1, order=("gemini", "ollama"), budget_usd=0.5, gemini_slots=1
    )
    assert gemini.calls == 1
    assert outcome.by["gemini"] == 1
    assert router.snapshot()["gemini"]["reason"] == "budget_spent"


def test_budget_switches_the_paid_provider_off() -> None:
    rng = random.Random(5)
    ollama, gemini = scripted(rng)
    outcome, router = simulate(
        ollama, gemini, rng=rng, rate=0.5, seconds=400, order=("gemini", "ollama"), budget_usd=0.05
    )
    assert 50 <= gemini.calls <= 60
    assert outcome.by["ollama"] > 100
    assert router.snapshot()["gemini"]["spent_today_usd"] >= 0.05
    assert outcome.in_time == outcome.all


@pytest.mark.parametrize(("limit", "calls"), [(None, 6), (0.0015, 2), (0.0005, 1)])
def test_one_job_does_not_spend_more_than_it_may(limit: float | None, calls: int) -> None:
    rng = random.Random(5)
    _, gemini = scripted(rng, gemini=lambda _: (0.1, StreamBroken(phase="total")))
    simulate(gemini, rng=rng, rate=0.001, seconds=1, usd_per_job=limit)
    assert gemini.calls == calls


def test_a_server_that_names_tiny_delays_is_neither_hammered_nor_given_up() -> None:
    rng = random.Random(5)
    fine = lognormal(rng, 1, 2)

    def busy(now: float) -> tuple[float, ProviderError | None]:
        return (0.01, ProviderRateLimited(retry_after=0.01)) if now < 3 else fine(now)

    alone = Scripted("gemini", busy)
    outcome, _ = simulate(alone, rng=rng, rate=5, seconds=4)
    assert outcome.all > 10
    assert outcome.in_time == outcome.all, outcome
    assert alone.wasted <= 12


def test_requests_a_minute_are_kept() -> None:
    rng = random.Random(5)
    ollama, gemini = scripted(rng)
    outcome, _ = simulate(ollama, gemini, rng=rng, rate=2, seconds=120, order=("gemini", "ollama"), rpm=30)
    assert gemini.calls <= 65
    assert outcome.in_time >= 0.99 * outcome.all


def test_dead_server_is_found_again() -> None:
    rng = random.Random(1)
    fine = lognormal(rng, 2, 4)
    ollama, gemini = scripted(rng, ollama=lambda now: dead(now) if now < 100 else fine(now))
    outcome, router = simulate(ollama, gemini, rng=rng, rate=1, seconds=300)
    assert outcome.by["ollama"] > 120
    assert router.snapshot()["ollama"]["breaker"] == "closed"


def test_hanging_server_that_recovers_is_found_again() -> None:
    rng = random.Random(1)
    fine = lognormal(rng, 2, 4)
    ollama, gemini = scripted(rng, ollama=lambda now: hanging(now) if 60 < now < 120 else fine(now))
    outcome, _ = simulate(ollama, gemini, rng=rng, rate=1, seconds=400)
    assert outcome.in_time >= 0.99 * outcome.all
    assert outcome.by["ollama"] > 200


@given(
    seed=st.integers(0, 10_000),
    faults=st.tuples(st.sampled_from(["fine", "dead", "hanging", "flaky", "bursts", "slow"]), st.floats(0.2, 4)),
    hedge=st.booleans(),
    slots=st.integers(1, 4),
)
@settings(deadline=None, max_examples=15)
def test_no_slot_is_lost_and_nobody_is_told_too_late(seed: int, faults, hedge: bool, slots: int) -> None:
    fault, rate = faults
    rng = random.Random(seed)
    fine = lognormal(rng, 1, 3)
    behave = {
        "fine": fine,
        "dead": dead,
        "hanging": hanging,
        "flaky": flaky(rng, 0.5, fine),
        "bursts": bursts(7, 3, fine),
        "slow": lognormal(rng, 8, 25),
    }[fault]
    ollama, gemini = scripted(rng, ollama=behave, gemini=flaky(rng, 0.4, fine))
    outcome, _ = simulate(ollama, gemini, rng=rng, rate=rate, seconds=40, hedge=hedge, slots=slots)
    assert outcome.late == 0


def test_a_wait_too_short_for_the_clock_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    start, looks = 45.27494170013807, 0

    def ready_at(bucket: TokenBucket, now: float, amount: float = 1.0) -> float:
        nonlocal looks
        looks += 1
        assert looks < 100
        return max(now, math.nextafter(start, math.inf))

    monkeypatch.setattr(TokenBucket, "ready_at", ready_at)

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        await asyncio.sleep(start)
        _, gemini = scripted(random.Random(5))
        router = ModelRouter({"gemini": gemini}, {"gemini": LaneRules(2, requests_per_minute=60)}, clock=loop.time)
        request = PromptRequest("p", "s", "p", ("gemini",))
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(router.complete(request, Deadline(start + SLO_S)))
                # In turn, the one's work keeps the clock from moving for the other's timer.
                await asyncio.sleep(0)

    run_virtually(scenario())


def test_a_load_longer_than_the_deadline_costs_one_request_and_not_all_that_come() -> None:
    load_s, keep_alive_s = 16.0, 1800.0

    async def a_day() -> tuple[int, list[str]]:
        loop = asyncio.get_running_loop()
        there_at, gone_at = math.inf, -math.inf

        def loads(now: float) -> float:
            nonlocal there_at, gone_at
            if now >= gone_at:
                # Once begun, it goes on.
                there_at, gone_at = now + load_s, now + load_s + keep_alive_s
            return max(0.0, there_at - now)

        ollama = Scripted("ollama", lambda _now: (3.0, None), loads=loads)
        rules = {"ollama": LaneRules(1, local=True, keep_alive_s=keep_alive_s)}
        router = ModelRouter({"ollama": ollama}, rules, clock=loop.time, wall=lambda: 1.8e9 + loop.time())

        async def ask(seconds: float) -> str:
            request = PromptRequest("sofia_text", "s", "p", ("ollama",))
            try:
                return (await router.complete(request, Deadline(loop.time() + seconds))).provider
            except ProviderError as error:
                return error.code

        seen = [await ask(60.0)]
        await asyncio.sleep(1.5 * keep_alive_s)
        for _ in range(5):
            seen.append(await ask(SLO_S))
            await asyncio.sleep(30.0)
        return ollama.calls, seen

    calls, seen = run_virtually(a_day())
    assert seen == ["ollama", ProviderTimeout.code, *["ollama"] * 4]
    assert calls == 6


def test_bursts_after_quiet_minutes_are_served_by_one_alone() -> None:
    """The first answer of each burst is the only one known: those behind a slow one have time all the same."""

    async def day(alone: Scripted, rng: random.Random) -> tuple[int, int]:
        asked = served = 0
        loop = asyncio.get_running_loop()
        router = ModelRouter(
            {"ollama": alone},
            {"ollama": LaneRules(2, local=True, keep_alive_s=1800)},
            clock=loop.time,
            wall=lambda: 1.8e9 + loop.time(),
            dice=random.Random(7).random,
        )

        async def one() -> None:
            nonlocal served
            request = PromptRequest("sofia_text", "s", "p", ("ollama", "gemini"))
            with contextlib.suppress(NoProvider, ProviderTimeout):
                await router.complete(request, Deadline(loop.time() + SLO_S))
                served += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(60):
                for _ in range(6):
                    asked += 1
                    group.create_task(one())
                    await asyncio.sleep(rng.expovariate(2))
                await asyncio.sleep(75)
        return asked, served

    rng = random.Random(3)
    alone = Scripted("ollama", lognormal(rng, 4, 8))
    asked, served = run_virtually(day(alone, rng))
    assert served >= 0.95 * asked
    assert alone.wasted <= 0.04 * asked


def test_nobody_waits_for_a_long_outage() -> None:
    rng = random.Random(1)
    alone = Scripted("ollama", dead)

    async def scenario() -> float:
        await load([alone], rate=1, seconds=60, rng=rng)
        loop = asyncio.get_running_loop()
        _, router = await load([alone], rate=1, seconds=loop.time() + 60, rng=rng)
        started = loop.time()
        with pytest.raises((NoProvider, ProviderUnreachable)):
            await router.complete(PromptRequest("p", "s", "p", ("ollama", "gemini")), Deadline(started + SLO_S))
        return loop.time() - started

    assert run_virtually(scenario()) < 1


async def test_a_call_that_never_began_gives_its_slot_back_also_where_taking_it_back_is_cancelled() -> None:
    lane = Lane("gemini", LaneRules(1), Tuning())
    provider = Scripted("gemini", lambda _now: (1.0, None))
    around = Surroundings(
        {"gemini": provider},
        {"gemini": lane},
        Tuning(),
        lambda: Moment(0.0, 0.0),
        Measures(Metrics()),
        changed=lambda: None,
        dice=lambda: 0.0,
    )
    request = PromptRequest("test", "s", "p", ("gemini",))
    flight = Flight(
        around,
        "gemini",
        request,
        Size("test", 2, 0, 1),
        Deadline.after(9),
        likely_s=1,
        unknown_s=1,
        nudge=lambda *_: None,
    )
    assert lane.slots.in_use == 1
    taking = Flight.take_back([flight])
    taking.send(None)
    with pytest.raises(asyncio.CancelledError):
        taking.throw(asyncio.CancelledError())
    assert lane.slots.in_use == 0
