"""The gateway as the commands use it: over HTTP, with the service key, like any other client."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import aiohttp
import orjson

from aiworker.domain.errors import ConfigurationError, WorkerError

_TIMEOUT = aiohttp.ClientTimeout(total=30)

DEMO_USER = UUID("00000000-0000-4000-8000-000000000001")


class GatewayError(WorkerError):
    """The gateway said no. `note` is its sentence and code."""

    code = "gateway_error"


class GatewayClient:
    """`url` without a trailing slash."""

    def __init__(self, url: str, service_key: str, session: aiohttp.ClientSession) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {service_key}", "Accept-Language": "en"}
        self._session = session

    async def enqueue(
        self, job_type: str, body: dict[str, Any], user_id: UUID, *, use_cache: bool = True
    ) -> dict[str, Any]:
        """The reply of `enqueue-analysis`."""
        order = {"type": job_type, "input": body, "userId": str(user_id), "useCache": use_cache}
        return await self._call("enqueue-analysis", order)

    async def status(self, job_id: str) -> dict[str, Any]:
        """The reply of `get-analysis-status`."""
        return await self._call("get-analysis-status", {"jobId": job_id})

    async def cancel(self, job_id: str) -> dict[str, Any]:
        """The reply of `cancel-analysis`."""
        return await self._call("cancel-analysis", {"jobId": job_id})

    async def _call(self, function: str, body: dict[str, Any]) -> dict[str, Any]:
        url = f"{self._url}/functions/v1/{function}"
        try:
            async with self._session.post(url, data=orjson.dumps(body), headers=self._headers) as response:
                reply: dict[str, Any] = orjson.loads(await response.read())
        except (aiohttp.ClientError, TimeoutError) as error:
            raise GatewayError(
                f"no gateway at {self._url} ({type(error).__name__}): start one with `aiworker up`"
            ) from None
        except orjson.JSONDecodeError:
            raise GatewayError(f"{self._url} answers, but is no aiworker gateway") from None
        if response.status >= 400:
            details = "".join(f" {name}: {value}" for name, value in reply.get("details", {}).items())
            raise GatewayError(f"{reply.get('error')} ({reply.get('code')}){details}")
        return reply


@asynccontextmanager
async def gateway_client(url: str, service_key: str) -> AsyncIterator[GatewayClient]:
    """A client with a session of its own."""
    async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
        yield GatewayClient(url.rstrip("/"), service_key, session)


def photo_url(photo: str) -> str:
    """`photo` is an http(s) address, which is passed on, or a file, which becomes a data URL."""
    if photo.startswith(("http://", "https://", "data:")):
        return photo
    path = Path(photo)
    if not path.is_file():
        raise ConfigurationError(f"no photo at {path}: give a file or an http(s) address")
    return "data:application/octet-stream;base64," + base64.b64encode(path.read_bytes()).decode()
