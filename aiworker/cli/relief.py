"""Memory that a neighbour holds, asked back when a single picture finds none."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import ollama

from aiworker.telemetry.logs import get_logger

_log = get_logger(__name__)
_TIMEOUT_S = 10.0


async def unload_ollama(url: str, on_unloaded: Callable[[], None]) -> None:
    """Asks Ollama to put away each model it holds, once that has finished what it is at. Not heard: nothing happens.

    It loads them again by itself when it is asked the next time.
    """
    try:
        async with ollama.AsyncClient(host=url, timeout=_TIMEOUT_S, trust_env=False) as client:
            names = [model.model for model in (await client.ps()).models if model.model]
            for name in names:
                await client.chat(name, messages=[], keep_alive=0)
    except (ollama.ResponseError, ConnectionError, httpx.HTTPError, ValueError, TypeError, AttributeError) as error:
        _log.warning("ollama not unloaded", reason=type(error).__name__)
    else:
        on_unloaded()
        _log.warning("ollama unloaded for want of memory", models=names)
