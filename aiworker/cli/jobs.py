"""`enqueue`, `status` and `cancel`: a client of the gateway like any other. `pause` and `resume` ask the database."""

from __future__ import annotations

import json
import time
from typing import Any
from uuid import UUID

from rich.console import Console

from aiworker.analyses.registry import OLD_NAMES, find_analysis
from aiworker.cli.client import DEMO_USER, gateway_client
from aiworker.cli.demo import JobNotCompleted, follow, show_result
from aiworker.cli.keys import keys_for
from aiworker.cli.stack import STATE_DIR, with_database
from aiworker.cli.wiring import pause_queue, resume_queue
from aiworker.domain.errors import ConfigurationError
from aiworker.gateway.auth import service_token
from aiworker.queue.postgres import ALL_TYPES
from aiworker.settings import Settings

_TOKEN_S = 3600

Target = tuple[str, Settings]


async def enqueue_job(
    target: Target, job_type: str, body: dict[str, Any], user: UUID | None, wait: bool, console: Console
) -> None:
    """Prints the reply; with `wait`, the result too. Raises when the job fails."""
    async with gateway_client(target[0], _service_key(target[1])) as client:
        reply = await client.enqueue(job_type, body, user or DEMO_USER)
        if not wait or reply["jobId"] is None:
            console.print_json(json.dumps(reply))
            return
        job = await follow(client, reply["jobId"], console)
    if job["status"] != "completed":
        raise JobNotCompleted(f"the job ended {job['status']}: {job.get('error')} ({job.get('code')})")
    show_result(job, console)


async def show_job(target: Target, job_id: str, console: Console) -> None:
    """Prints the job."""
    async with gateway_client(target[0], _service_key(target[1])) as client:
        console.print_json(json.dumps(await client.status(job_id)))


async def cancel_job(target: Target, job_id: str, console: Console) -> None:
    """Prints the job as the cancel left it."""
    async with gateway_client(target[0], _service_key(target[1])) as client:
        console.print_json(json.dumps(await client.cancel(job_id)))


async def pause_jobs(settings: Settings, job_type: str, console: Console) -> None:
    """Raises UnknownJobType: who mistypes a name must not believe that it is paused."""
    name = job_type if job_type == ALL_TYPES else find_analysis(job_type).name
    async with with_database(settings) as found:
        await pause_queue(found, name)
    console.print(f"paused: {name}")


async def resume_jobs(settings: Settings, job_type: str, console: Console) -> None:
    """Any name: a pause may be older than this release's types."""
    name = OLD_NAMES.get(job_type, job_type)
    async with with_database(settings) as found:
        await resume_queue(found, name)
    console.print(f"resumed: {name}")


def _service_key(settings: Settings) -> str:
    keys = keys_for(settings, STATE_DIR)
    if keys.service_key is not None:
        return keys.service_key
    if keys.jwt_secret is None:
        raise ConfigurationError("set SUPABASE_SERVICE_ROLE_KEY to the key that the gateway was started with")
    return service_token(keys.jwt_secret, int(time.time()) + _TOKEN_S)
