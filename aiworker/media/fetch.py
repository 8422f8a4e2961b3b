"""`ImageSource` over HTTP: fetch the bytes that a user's URL names, and nothing that it should not reach."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import ThreadedResolver
from yarl import URL

from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import MediaNotFound, MediaTooLarge, MediaTypeUnsupported, MediaUnavailable, MediaUrlInvalid
from aiworker.media.data_url import decode_data_url, is_data_url, is_long
from aiworker.media.image import read_header
from aiworker.media.resolver import GuardedResolver
from aiworker.media.url import parse_target, redirect_target

_MAX_REDIRECTS = 5
_CHUNK_BYTES = 64 * 1024
# A picture gains nothing by compression in transit, and what is not unpacked cannot be a bomb.
_HEADERS = {
    "Accept": "image/jpeg,image/png,image/webp,image/gif,image/heic",
    "Accept-Encoding": "identity",
    "User-Agent": "aiworker",
}
_MAY_WORK_LATER = frozenset((408, 425, 429))


@dataclass(frozen=True, slots=True)
class MediaLimits:
    """`max_bytes` encoded, `max_pixels` width times height, `timeout_s` for a whole fetch with its redirects.

    `allowed_hosts` ("host" or "host:port", lower case) may have a private address.
    """

    max_bytes: int
    max_pixels: int
    timeout_s: float
    allowed_hosts: frozenset[str] = frozenset()


class HttpImageSource:
    """Made and closed inside a running event loop; any number of fetches at a time.

    No cookies, proxies of the environment or credentials are used. Error notes name hosts, never URLs: a URL may be
    signed.
    """

    def __init__(self, limits: MediaLimits, resolver: AbstractResolver | None = None) -> None:
        self._limits = limits
        self._resolver = GuardedResolver(resolver or ThreadedResolver(), limits.allowed_hosts)
        self._session = ClientSession(
            # Without aiohttp's DNS cache every connection goes through the guard.
            connector=TCPConnector(resolver=self._resolver, use_dns_cache=False),
            cookie_jar=DummyCookieJar(),
            headers=_HEADERS,
            timeout=ClientTimeout(total=None),
            auto_decompress=False,
            trust_env=False,
        )

    async def fetch(self, url: str, deadline: Deadline) -> bytes:
        """The bytes of an http, https or data URL, their header checked to be a picture within the limits.

        Raises MediaUrlInvalid, MediaAddressForbidden, MediaTooLarge, MediaTypeUnsupported, MediaNotFound,
        ImageUnreadable, MediaUnavailable.
        """
        data = await self._decode(url) if is_data_url(url) else await self._download(url, deadline)
        read_header(data, self._limits.max_pixels)
        return data

    async def close(self) -> None:
        await self._session.close()
        await self._resolver.close()

    async def _decode(self, url: str) -> bytes:
        if is_long(url):
            return await asyncio.to_thread(decode_data_url, url, self._limits.max_bytes)
        return decode_data_url(url, self._limits.max_bytes)

    async def _download(self, text: str, deadline: Deadline) -> bytes:
        target = parse_target(text, self._limits.allowed_hosts)
        try:
            async with asyncio.timeout(deadline.within(self._limits.timeout_s).remaining()):
                return await self._follow(target)
        except TimeoutError:
            raise MediaUnavailable(f"{target.host} did not answer in time") from None

    async def _follow(self, target: URL) -> bytes:
        for _ in range(_MAX_REDIRECTS + 1):
            answer = await self._get(target)
            if isinstance(answer, bytes):
                return answer
            target = answer
        raise MediaUrlInvalid(f"more than {_MAX_REDIRECTS} redirects")

    async def _get(self, target: URL) -> bytes | URL:
        """The body, or where the server says to go instead."""
        try:
            async with self._session.get(target, allow_redirects=False) as response:
                location = response.headers.get("Location")
                if 300 <= response.status < 400 and location is not None:
                    return redirect_target(target, location, self._limits.allowed_hosts)
                _check_status(response)
                return await self._read(response)
        except ClientError as error:
            # Not chained: aiohttp's messages may hold the URL.
            raise MediaUnavailable(f"{target.host}: {type(error).__name__}") from None

    async def _read(self, response: ClientResponse) -> bytes:
        limit = self._limits.max_bytes
        if response.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise MediaTypeUnsupported(f"{response.url.host} compresses what was asked for uncompressed")
        if (response.content_length or 0) > limit:
            raise MediaTooLarge(limit_bytes=limit, size_bytes=response.content_length)
        body = bytearray()
        async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
            body += chunk
            if len(body) > limit:
                raise MediaTooLarge(limit_bytes=limit)
        return bytes(body)


def _check_status(response: ClientResponse) -> None:
    status, host = response.status, response.url.host
    if 200 <= status < 300:
        return
    if 400 <= status < 500 and status not in _MAY_WORK_LATER:
        raise MediaNotFound(f"{host} answered {status}", status=status)
    raise MediaUnavailable(f"{host} answered {status}", status=status)
