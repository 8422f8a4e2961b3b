"""What a worker process is made of."""

from __future__ import annotations

from dataclasses import dataclass

from aiworker.inference.shelf import ModelShelf
from aiworker.llm.router import ModelRouter
from aiworker.queue.postgres import PostgresQueue
from aiworker.scheduler.worker import Worker
from aiworker.telemetry.metrics import Metrics


@dataclass(frozen=True, slots=True)
class WorkerParts:
    """A worker and what its health depends on."""

    worker: Worker
    queue: PostgresQueue
    vision: ModelShelf
    router: ModelRouter
    metrics: Metrics
