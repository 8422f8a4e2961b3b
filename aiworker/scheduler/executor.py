"""Runs one attempt of one job and always comes back with an Outcome, but for cancellation."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Mapping

from aiworker.analyses.base import Analysis, AnalysisResult, Attempt, StageClock, Tools
from aiworker.analyses.registry import checked_input, find_analysis
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import DeadlineExceeded, WorkerError
from aiworker.domain.job import ClaimedJob
from aiworker.domain.outcome import Completed, Outcome, outcome_of_error
from aiworker.domain.retry import RetryPolicy
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics

_log = get_logger("aiworker.executor")

# A job that is already late is still worth an answer: it gets this long, and the client decides whether it waits.
LATE_BUDGET_S = 15.0


class JobExecutor:
    """`attempt_timeout_s` ends an attempt however patient its deadline; `cache_ttl_s` None switches sharing off."""

    def __init__(
        self,
        tools: Tools,
        metrics: Metrics,
        *,
        policy: RetryPolicy,
        attempt_timeout_s: float,
        cache_ttl_s: float | None,
        find: Callable[[str], Analysis] = find_analysis,
    ) -> None:
        self._tools = tools
        self._metrics = metrics
        self._policy = policy
        self._attempt_timeout_s = attempt_timeout_s
        self._cache_ttl_s = cache_ttl_s
        self._find = find

    async def execute(self, job: ClaimedJob, report: Callable[[int, str], None]) -> Outcome:
        """`report(percent, stage)` is called as stages begin. Raises nothing but CancelledError."""
        clock = StageClock(report)
        started = time.perf_counter()
        try:
            analysis = self._find(job.type)
            return self._completed(analysis, job, clock, await self._run(analysis, job, clock))
        except Exception as error:  # noqa: BLE001 - the boundary: whatever an analysis raises becomes an outcome
            return self._failed(job, error)
        finally:
            self._observe(job, clock.elapsed_ms, time.perf_counter() - started)

    def _completed(self, analysis: Analysis, job: ClaimedJob, clock: StageClock, result: AnalysisResult) -> Completed:
        result.stages_ms = {stage: round(spent, 1) for stage, spent in clock.elapsed_ms.items()}
        if result.degraded:
            self._metrics.degraded.labels(analysis.name).inc()
        shareable = analysis.cacheable and not result.degraded and job.cache_key is not None
        return Completed(
            result=result.model_dump(mode="json", by_alias=True),
            cache_ttl_s=self._cache_ttl_s if shareable else None,
        )

    async def _run(self, analysis: Analysis, job: ClaimedJob, clock: StageClock) -> AnalysisResult:
        budget = min(job.deadline_in_s if job.deadline_in_s > 0 else LATE_BUDGET_S, self._attempt_timeout_s)
        attempt = Attempt(job.id, self._tools, Deadline.after(budget), clock)
        try:
            async with asyncio.timeout(self._attempt_timeout_s):
                return await analysis.run(checked_input(analysis, job.input), attempt)
        except TimeoutError:
            raise DeadlineExceeded("attempt timeout") from None

    def _failed(self, job: ClaimedJob, error: Exception) -> Outcome:
        outcome = outcome_of_error(
            error,
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            policy=self._policy,
            random=random.random(),
        )
        self._metrics.errors.labels(job.type, outcome.error_code).inc()
        log = _log.info if isinstance(error, WorkerError) else _log.error
        log("attempt failed", type=job.type, attempt=job.attempt, outcome=type(outcome).__name__, exc_info=error)
        return outcome

    def _observe(self, job: ClaimedJob, stages_ms: Mapping[str, float], seconds: float) -> None:
        self._metrics.job_seconds.labels(job.type).observe(seconds)
        for stage, spent in stages_ms.items():
            self._metrics.stage_seconds.labels(job.type, stage).observe(spent / 1000)
