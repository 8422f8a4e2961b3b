"""Runs one attempt of one job and always comes back with an Outcome, but for cancellation."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping

from pydantic_core import PydanticSerializationError

from aiworker.analyses.base import Analysis, AnalysisResult, Attempt, Tools
from aiworker.analyses.registry import ANALYSES, find_analysis, read_input
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import ProviderError, WorkerError
from aiworker.domain.job import ClaimedJob
from aiworker.domain.messages import sentence
from aiworker.domain.outcome import Completed, Failed, Outcome, Retry, outcome_of_error
from aiworker.domain.retry import RetryPolicy
from aiworker.telemetry.logs import get_logger
from aiworker.telemetry.metrics import Metrics
from aiworker.telemetry.traces import Attributes, Traces

_log = get_logger("aiworker.executor")

# A job that is already late is still worth an answer: it gets this long, and the client decides whether it waits.
LATE_BUDGET_S = 15.0


class JobExecutor:
    """`attempt_timeout_s` bounds what an attempt may plan for; `cache_ttl_s` None switches sharing off."""

    def __init__(
        self,
        tools: Tools,
        metrics: Metrics,
        *,
        policy: RetryPolicy,
        attempt_timeout_s: float,
        cache_ttl_s: float | None,
        analyses: Mapping[str, Analysis] = ANALYSES,
        traces: Traces | None = None,
    ) -> None:
        self._traces = traces or Traces()
        self._tools = tools
        self._metrics = metrics
        self._policy = policy
        self._attempt_timeout_s = attempt_timeout_s
        self._cache_ttl_s = cache_ttl_s
        self._analyses = analyses

    def execute(self, job: ClaimedJob, report: Callable[[int, str], None]) -> Awaitable[Outcome]:
        """`report(percent, stage)` is called as stages begin. Raises CancelledError and what ends a process."""
        return self._traced(job, report) if self._traces.kept else self._execute(job, report)

    async def _traced(self, job: ClaimedJob, report: Callable[[int, str], None]) -> Outcome:
        about: Attributes = {
            "aiworker.job.id": str(job.id),
            "aiworker.job.type": job.type,
            "aiworker.job.attempt": job.attempt,
        }
        with self._traces.span(f"job {job.type}", "consumer", about) as span:
            outcome = await self._execute(job, report)
            span.note({"aiworker.outcome": outcome.label})
            if isinstance(outcome, Retry | Failed):
                span.fail(outcome.error_code)
            return outcome

    async def _execute(self, job: ClaimedJob, report: Callable[[int, str], None]) -> Outcome:
        started = time.monotonic()
        budget = min(job.deadline_in_s if job.deadline_in_s > 0 else LATE_BUDGET_S, self._attempt_timeout_s)
        attempt = Attempt(job.lease.job_id, self._tools, Deadline.after(budget), report)
        try:
            analysis = find_analysis(job.type, self._analyses)
            result = await analysis.run(read_input(analysis, job.input), attempt)
            return self._completed(analysis, attempt, result)
        except (asyncio.CancelledError, GeneratorExit, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:  # noqa: BLE001 - the boundary: whatever else, as a panic of Rust, is an outcome
            return self.failed(job, error)
        finally:
            self._metrics.job_seconds.observe(time.monotonic() - started, job.type)
            for stage, spent_ms in attempt.stages_ms.items():
                self._metrics.stage_seconds.observe(spent_ms / 1000, job.type, stage)

    def failed(self, job: ClaimedJob, error: BaseException) -> Retry | Failed:
        """What becomes of a job whose attempt ended in `error`."""
        outcome = outcome_of_error(
            error,
            attempt=job.attempt,
            max_attempts=job.max_attempts,
            policy=self._policy,
            random=random.random(),
        )
        self._metrics.errors.labels(job.type, outcome.error_code).inc()
        log = _log.info if isinstance(error, WorkerError) else _log.error
        # A result says what its answers have cost; this attempt has none.
        paid = error.cost_usd if isinstance(error, ProviderError) else 0.0
        cost = {"cost_microdollars": round(1e6 * paid)} if paid else {}
        log(
            "attempt failed", type=job.type, attempt=job.attempt, outcome=type(outcome).__name__, **cost, exc_info=error
        )
        return outcome

    def _completed(self, analysis: Analysis, attempt: Attempt, result: AnalysisResult) -> Completed | Failed:
        if attempt.stages_ms:
            result.stages_ms = {stage: round(spent, 1) for stage, spent in attempt.stages_ms.items()}
        if result.degraded:
            self._metrics.degraded.labels(analysis.name).inc()
        shareable = analysis.sharing != "never" and not result.degraded
        try:
            # What `model_dump_json` calls, without making a text of its bytes.
            text = result.__pydantic_serializer__.to_json(result, by_alias=True)
        except PydanticSerializationError:
            # Half a surrogate pair in a string, say: no other attempt would be stored either.
            return Failed(sentence(WorkerError.code), WorkerError.code)
        return Completed(text, self._cache_ttl_s if shareable else None)
