"""Every metric of a process, declared in one place, in one registry of its own.

Labels have few values: job types, stages, providers, outcomes and route names, never ids or users.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable
from importlib.metadata import version

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector
from prometheus_client.openmetrics.exposition import CONTENT_TYPE_LATEST, generate_latest

from aiworker.telemetry.tally import Tally

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 15, 20, 30, 60, 120)

CONTENT_TYPE = CONTENT_TYPE_LATEST


class Metrics:
    """Times in seconds, sizes in bytes, as Prometheus wants them. What alerts divide is there from the start for each
    of `types`: a series that is born with its first failure has no rate yet, and one without a hit is no 0 %."""

    def __init__(self, types: Iterable[str] = ()) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.jobs = Counter("aiworker_jobs", "Attempts that ended, by how", ["type", "outcome"], registry=r)
        self.errors = Counter("aiworker_errors", "Attempts that ended in an error", ["type", "code"], registry=r)
        self.job_seconds = Tally("aiworker_job_seconds", "Claim to outcome", ["type"], bounds=_SECONDS, registry=r)
        self.pickup_seconds = Tally(
            "aiworker_pickup_seconds", "Enqueued (or due) to claimed", ["type"], bounds=_SECONDS, registry=r
        )
        self.stage_seconds = Tally(
            "aiworker_stage_seconds", "Time in one stage", ["type", "stage"], bounds=_SECONDS, registry=r
        )
        self.degraded = Counter("aiworker_degraded_results", "Answered by rule", ["type"], registry=r)
        self.active_jobs = Gauge("aiworker_active_jobs", "Jobs running in this worker", registry=r)
        self.slots = Gauge("aiworker_slots", "Jobs that this worker may run at once", registry=r)
        self.leases_lost = Counter("aiworker_leases_lost", "Attempts whose lease was gone", registry=r)
        self.rescued = Counter("aiworker_jobs_rescued", "Jobs taken from silent workers", registry=r)
        self.pruned = Counter("aiworker_rows_pruned", "Old jobs and cache entries that were removed", registry=r)
        self.queue_jobs = Gauge("aiworker_queue_jobs", "Unfinished jobs", ["status"], registry=r)
        self.queue_oldest = Gauge("aiworker_queue_oldest_seconds", "Age of the oldest job that could run", registry=r)
        self.database_up = Gauge("aiworker_database_up", "1 when the last call worked", registry=r)
        self.checks = Gauge("aiworker_health_check", "1 when the check of /health holds", ["check"], registry=r)
        self.cache_lookups = Counter(
            "aiworker_cache_lookups", "Enqueued with a result to share, or not", ["type", "result"], registry=r
        )
        self.batch_size = Tally(
            "aiworker_inference_batch_size", "Images in a batch", [], bounds=(1, 2, 4, 8, 16, 32, 64), registry=r
        )
        self.batch_seconds = Tally(
            "aiworker_inference_batch_seconds", "Batch sent to answered", [], bounds=_SECONDS, registry=r
        )
        self.batch_released = Counter(
            "aiworker_inference_batches_released", "Batches, by what set their size", ["reason"], registry=r
        )
        self.batch_prediction = Tally(
            "aiworker_inference_batch_time_ratio",
            "Seconds that a batch took, to those predicted",
            [],
            bounds=(0.25, 0.5, 0.75, 0.9, 1.1, 1.25, 1.5, 2, 4, 8),
            registry=r,
        )
        self.batch_slack = Tally(
            "aiworker_inference_slack_seconds",
            "What the most urgent picture of a batch had left at dispatch, by the prediction; none is 0",
            [],
            bounds=(0, *_SECONDS),
            registry=r,
        )
        self.taken_out = Counter(
            "aiworker_inference_taken_out", "Pictures taken out without an answer, by cause", ["cause"], registry=r
        )
        self.out_of_memory = Counter(
            "aiworker_inference_out_of_memory", "Passes that found no memory, in a batch or alone", ["pass"], registry=r
        )
        self.child_ends = Counter("aiworker_inference_child_ends", "Children that ended, by how", ["how"], registry=r)
        self.recycled = Counter(
            "aiworker_inference_recycled", "Children replaced while serving", ["reason"], registry=r
        )
        self.admission_pauses = Counter(
            "aiworker_inference_admission_pauses", "Times that memory kept new pictures outside", registry=r
        )
        self.children = Gauge("aiworker_inference_children", "Inference processes by state", ["state"], registry=r)
        self.child_restarts = Gauge(
            "aiworker_inference_child_restarts",
            "Restarts of the children that there are; one that was replaced starts at none",
            registry=r,
        )
        self.child_rss = Gauge("aiworker_inference_child_rss_bytes", "Memory of all children", registry=r)
        self.llm_calls = Counter(
            "aiworker_llm_calls", "Answers of language models", ["provider", "outcome"], registry=r
        )
        self.llm_seconds = Histogram(
            "aiworker_llm_seconds", "One answer, waiting included", ["provider"], buckets=_SECONDS, registry=r
        )
        self.llm_tokens = Counter("aiworker_llm_tokens", "Tokens", ["provider", "direction"], registry=r)
        self.llm_cost = Counter("aiworker_llm_cost_usd", "Cost by list price", ["provider"], registry=r)
        self.provider_up = Gauge(
            "aiworker_llm_provider_up", "0 while its circuit breaker is open", ["provider"], registry=r
        )
        self.llm_wait_seconds = Histogram(
            "aiworker_llm_wait_seconds", "In our line for a slot", ["provider"], buckets=_SECONDS, registry=r
        )
        self.llm_wasted = Counter(
            "aiworker_llm_wasted_calls", "Calls that gave no answer, by why", ["provider", "reason"], registry=r
        )
        self.llm_spills = Counter(
            "aiworker_llm_spills", "Answers by another than this provider, by why", ["provider", "reason"], registry=r
        )
        self.llm_unanswered = Counter("aiworker_llm_unanswered", "Requests that nobody could answer", registry=r)
        self.llm_breaker = Gauge("aiworker_llm_breaker", "1 in the state it is in", ["provider", "state"], registry=r)
        self.llm_slots = Gauge("aiworker_llm_slots", "Calls by where they are", ["provider", "place"], registry=r)
        self.llm_cost_today = Gauge(
            "aiworker_llm_cost_today_usd",
            "Of all workers since midnight in California: take the largest, not the sum",
            ["provider"],
            registry=r,
        )
        self.http_seconds = Histogram(
            "aiworker_http_request_seconds", "Requests", ["route", "status"], buckets=_SECONDS, registry=r
        )
        self.rss = Gauge("aiworker_process_rss_bytes", "Memory of this process", registry=r)
        self.memory_limit = Gauge("aiworker_memory_limit_bytes", "What the container or machine has", registry=r)
        self.build = Info("aiworker_build", "What runs", registry=r)
        self.build.info({"version": version("aiworker"), "python": platform.python_version()})
        # process_*: CPU time, open files, start time, by their usual names.
        ProcessCollector(registry=r)
        for job_type in types:
            self._at_zero(job_type)

    def _at_zero(self, job_type: str) -> None:
        for outcome in ("completed", "failed"):
            self.jobs.labels(job_type, outcome)
        for result in ("hit", "miss"):
            self.cache_lookups.labels(job_type, result)

    def render(self) -> bytes:
        """OpenMetrics text."""
        text: bytes = generate_latest(self.registry)  # type: ignore[no-untyped-call]
        return text
