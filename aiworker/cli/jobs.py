"""`enqueue`, `status` and `cancel`: a client of the gateway like any other."""

from __future__ import annotations

import json
from typing import Any
from uuid import UUID

from rich.console import Console

from aiworker.cli.client import DEMO_USER, gateway_client
from aiworker.cli.demo import DemoFailed, follow, show_result
from aiworker.cli.keys import keys_for
from aiworker.cli.stack import STATE_DIR
from aiworker.domain.errors import ConfigurationError
from aiworker.settings import Settings

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
        raise DemoFailed(f"the job ended {job['status']}: {job.get('error')} ({job.get('code')})")
    show_result(job, console)


async def show_job(target: Target, job_id: str, console: Console) -> None:
    """Prints the job."""
    async with gateway_client(target[0], _service_key(target[1])) as client:
        console.print_json(json.dumps(await client.status(job_id)))


async def cancel_job(target: Target, job_id: str, console: Console) -> None:
    """Prints the job as the cancel left it."""
    async with gateway_client(target[0], _service_key(target[1])) as client:
        console.print_json(json.dumps(await client.cancel(job_id)))


def _service_key(settings: Settings) -> str:
    key = keys_for(settings, STATE_DIR).service_key
    if key is None:
        raise ConfigurationError("set SUPABASE_SERVICE_ROLE_KEY to the key that the gateway was started with")
    return key
