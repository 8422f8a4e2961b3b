"""What both providers need of HTTP: one session, a deadline on everything, limits on what is read, typed failures."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any

import aiohttp
import orjson

from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import AnswerInvalid, ProviderError, ProviderTimeout, ProviderUnreachable, StreamBroken

CONNECT_S = 3.0
CONNECT_SHARE = 0.25
FIRST_TOKEN_SHARE = 0.8
LONGEST_WAIT_S = 86_400.0
MAX_LINE = 1 << 20
MAX_BODY = 8 << 20
_MAX_ERROR_BODY = 64 << 10
# After a complete answer there is nothing to wait for but the end of the stream; after each event of one that says of
# every event that it is the last, as Gemini's did in 2024, for the next.
_LAST_WORDS_S = 0.5
_JSON = {"Content-Type": "application/json"}

ErrorMap = Callable[[int, bytes, Mapping[str, str]], ProviderError]


class Lines:
    """Splits a byte stream into lines. Raises AnswerInvalid beyond `MAX_LINE` for one or `MAX_BODY` for all."""

    def __init__(self, provider: str) -> None:
        self._provider = provider
        self._rest = b""
        self._total = 0

    def feed(self, chunk: bytes) -> list[bytes]:
        """The lines that `chunk` completes, without their ends; empty lines are left out."""
        self._total += len(chunk)
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        if self._total > MAX_BODY or len(self._rest) > MAX_LINE:
            raise AnswerInvalid("the answer is larger than we read", provider=self._provider, limit_bytes=MAX_BODY)
        return [stripped for line in lines if (stripped := line.strip())]

    def end(self) -> list[bytes]:
        """The last line, where it had no end."""
        return [stripped] if (stripped := self._rest.strip()) else []


class Http:
    """One provider's session. `error_of(status, body, headers)` types an answer that is not 200.

    Redirects and environment proxies are not followed: the key must go to the configured address only. No failure
    carries its cause, since aiohttp's exceptions hold the request's headers.
    """

    def __init__(
        self, provider: str, base_url: str, error_of: ErrorMap, *, keep_connections: bool, headers: Mapping[str, str]
    ) -> None:
        self._provider = provider
        self._base_url = base_url.rstrip("/")
        self._error_of = error_of
        self._keep_connections = keep_connections
        self._headers = dict(headers)
        self._session: aiohttp.ClientSession | None = None

    async def post_lines(
        self, path: str, body: Mapping[str, Any], deadline: Deadline, on_line: Callable[[bytes], bool]
    ) -> None:
        """Streams the answer's lines into `on_line`, which says whether the answer is complete: what comes after
        that is no failure. An error that it raises closes the connection.

        The first line must come within `FIRST_TOKEN_SHARE` of the time left: what starts later would not end in time.
        Leaving early, by error, deadline or cancellation, closes the socket, which frees the provider's slot.
        """
        limit = deadline.remaining() * FIRST_TOKEN_SHARE
        phase = "first_token"
        lines = Lines(self._provider)
        complete = False
        try:
            async with asyncio.timeout(limit) as clock, self._request("POST", path, body, deadline) as response:
                await self._check(response)
                async for chunk in response.content.iter_any():
                    if phase == "first_token":
                        phase = "total"
                        clock.reschedule(asyncio.get_running_loop().time() + deadline.remaining())
                    for line in lines.feed(chunk):
                        if on_line(line):
                            complete = True
                            left_s = min(_LAST_WORDS_S, deadline.remaining())
                            clock.reschedule(asyncio.get_running_loop().time() + left_s)
                for line in lines.end():
                    on_line(line)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            if not complete:
                raise self._failure(error, phase) from None
        except ProviderError:
            if not complete:
                raise

    async def json(self, method: str, path: str, body: Mapping[str, Any] | None, deadline: Deadline) -> dict[str, Any]:
        """One JSON object. Raises ProviderError."""
        try:
            async with asyncio.timeout(deadline.remaining()), self._request(method, path, body, deadline) as response:
                await self._check(response)
                raw = await _read(response, MAX_BODY)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise self._failure(error, "total") from None
        return json_object(raw, self._provider)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    def _request(
        self, method: str, path: str, body: Mapping[str, Any] | None, deadline: Deadline
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, force_close=not self._keep_connections),
                trust_env=False,
            )
        return self._session.request(
            method,
            self._base_url + path,
            data=None if body is None else orjson.dumps(body),
            headers=self._headers if body is None else self._headers | _JSON,
            allow_redirects=False,
            # Of one more than `sock_connect`: looking up the name, which takes as long as it likes.
            timeout=aiohttp.ClientTimeout(total=None, connect=connect_limit(deadline.remaining())),
        )

    async def _check(self, response: aiohttp.ClientResponse) -> None:
        if response.status != 200:
            raise self._error_of(response.status, await _read(response, _MAX_ERROR_BODY), response.headers)

    def _failure(self, error: Exception, phase: str) -> ProviderError:
        if isinstance(error, aiohttp.ConnectionTimeoutError):
            return ProviderTimeout("no connection in time", provider=self._provider, phase="connect")
        if isinstance(error, TimeoutError):
            return ProviderTimeout("no answer in time", provider=self._provider, phase=phase)
        if isinstance(error, aiohttp.ClientConnectorError):
            return ProviderUnreachable("cannot connect", provider=self._provider, phase="connect")
        note = f"the connection broke ({type(error).__name__})"
        return StreamBroken(note, provider=self._provider, phase=phase)


def connect_limit(remaining_s: float) -> float:
    """Seconds that a connection may take to stand: a server that is there answers at once."""
    return max(0.05, min(CONNECT_S, remaining_s * CONNECT_SHARE))


def retry_after_of(headers: Mapping[str, str]) -> float | None:
    """Seconds in a `Retry-After` header, a day at most; a date in it counts as nothing said."""
    said = headers.get("Retry-After", "")
    return min(float(said), LONGEST_WAIT_S) if said.isascii() and said.isdigit() else None


def json_object(raw: bytes, provider: str) -> dict[str, Any]:
    """`raw` as a JSON object. Raises StreamBroken for anything else: a garbled answer may be whole next time."""
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError:
        value = None
    if not isinstance(value, dict):
        raise StreamBroken("answered with something that is not a JSON object", provider=provider)
    return value


async def _read(response: aiohttp.ClientResponse, limit: int) -> bytes:
    body = bytearray()
    async for chunk in response.content.iter_any():
        body += chunk
        if len(body) > limit:
            break
    return bytes(body[:limit])
