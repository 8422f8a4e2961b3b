"""What the router tells the metrics. Labels are provider names and codes, nothing of a prompt or an answer."""

from __future__ import annotations

from typing import get_args

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

    def answered(self, completion: Completion, seconds: float) -> None:
        metrics, name = self._metrics, completion.provider
        metrics.llm_calls.labels(name, "answered").inc()
        metrics.llm_seconds.labels(name).observe(seconds)
        metrics.llm_tokens.labels(name, "prompt").inc(completion.prompt_tokens)
        metrics.llm_tokens.labels(name, "answer").inc(completion.answer_tokens)
        metrics.llm_cost.labels(name).inc(completion.cost_usd)

    def failed(self, provider: str, error: ProviderError) -> None:
        self._metrics.llm_calls.labels(provider, error.code).inc()
        self._metrics.llm_cost.labels(provider).inc(error.cost_usd)
        self.wasted(provider, error.code)

    def wasted(self, provider: str, reason: str) -> None:
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
