"""What the router tells the metrics. Labels are provider names and codes, nothing of a prompt or an answer."""

from __future__ import annotations

import math
from typing import Any, get_args

from aiworker.domain.completion import Completion
from aiworker.domain.errors import ProviderError
from aiworker.llm.breaker import State
from aiworker.llm.lane import Lane, Moment
from aiworker.telemetry.metrics import Metrics


class Measures:
    """Times in seconds."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def waited(self, provider: str, seconds: float) -> None:
        self._metrics.llm_wait_seconds.labels(provider).observe(seconds)

    def answered(self, completion: Completion, seconds: float, cost_usd: float) -> None:
        metrics, name = self._metrics, completion.provider
        metrics.llm_calls.labels(name, "answered").inc()
        metrics.llm_seconds.labels(name).observe(seconds)
        metrics.llm_tokens.labels(name, "prompt").inc(completion.prompt_tokens)
        metrics.llm_tokens.labels(name, "answer").inc(completion.answer_tokens)
        metrics.llm_cost.labels(name).inc(cost_usd)

    def failed(self, provider: str, error: ProviderError, cost_usd: float) -> None:
        self._metrics.llm_calls.labels(provider, error.code).inc()
        self.left(provider, error.code, cost_usd)

    def left(self, provider: str, reason: str, cost_usd: float) -> None:
        """A call that was sent in vain."""
        self._metrics.llm_cost.labels(provider).inc(cost_usd)
        self._metrics.llm_wasted.labels(provider, reason).inc()

    def spilled(self, provider: str, reason: str) -> None:
        self._metrics.llm_spills.labels(provider, reason).inc()

    def unanswered(self) -> None:
        self._metrics.llm_unanswered.inc()

    def refresh(self, lane: Lane, moment: Moment) -> None:
        """Gauges, when somebody scrapes."""
        now = lane.breaker.state(moment.now)
        for state in get_args(State):
            self._metrics.llm_breaker.labels(lane.name, state).set(state == now)
        self._metrics.llm_slots.labels(lane.name, "running").set(lane.slots.in_use)
        self._metrics.llm_slots.labels(lane.name, "waiting").set(lane.slots.waiting)
        self._metrics.llm_cost_today.labels(lane.name).set(lane.budget.spent_usd(moment.wall))


def described(lane: Lane, moment: Moment) -> dict[str, Any]:
    """One provider for a person who looks. Times in seconds."""
    now = moment.now
    state = lane.breaker.state(now)
    speed = lane.forecast.tokens_per_s()
    return {
        "state": "resting" if state == "open" or lane.budget.closed_for_s(moment.wall) else "up",
        "breaker": state,
        "resting_s": round(max(0.0, lane.breaker.ready_at(now) - now), 1),
        "reason": lane.rests_because(moment) or None,
        "slots": lane.slots.size,
        "in_use": lane.slots.in_use,
        "waiting": lane.slots.waiting,
        "predicted_wait_s": round(lane.slots.wait_s(now, math.inf), 1),
        "tokens_per_s": round(speed, 1) if speed else None,
        "text_model_loaded": lane.residence.loaded(now, vision=False),
        "spent_today_usd": round(lane.budget.spent_usd(moment.wall), 6),
        "budget_usd": lane.budget.limit_usd,
        "answered": lane.answers,
        "failed": lane.failures,
    }
