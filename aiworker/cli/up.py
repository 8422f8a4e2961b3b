"""`aiworker up`: everything, until told to stop."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from rich.console import Console

from aiworker.cli.serve import started, stop_on_signals
from aiworker.cli.stack import running_stack
from aiworker.domain.errors import ConfigurationError
from aiworker.settings import Settings


async def run_up(settings: Settings, console: Console) -> None:
    """Raises ConfigurationError when a process of the stack dies by itself: whoever supervises us starts us again."""
    stop = stop_on_signals()
    async with AsyncExitStack() as cleanup:
        stack = await started(running_stack(settings, console.print), cleanup, stop)
        if stack is None:
            return
        console.print(f"gateway  [bold]{stack.gateway_url}[/bold]   worker health  {stack.worker_url}/health")
        console.print("try: aiworker enqueue sofia_text --text 'comi 200 g de arroz e um ovo frito' --wait")
        stopped = asyncio.create_task(stop.wait())
        ended = asyncio.create_task(stack.ended())
        try:
            await asyncio.wait({stopped, ended}, return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                raise ConfigurationError(
                    f"the {ended.result()} ended by itself: its log above says why, or it was killed (see `dmesg`)"
                )
            console.print("stopping: running jobs finish or go back to the queue")
        finally:
            for task in (stopped, ended):
                task.cancel()
