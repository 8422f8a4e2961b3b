"""DNS answers, each address judged before a connection is made to exactly that address."""

from __future__ import annotations

import socket
from collections.abc import Collection
from ipaddress import ip_address

from aiohttp.abc import AbstractResolver, ResolveResult

from aiworker.domain.errors import MediaAddressForbidden, MediaNotFound
from aiworker.media.address import is_listed, is_public


class GuardedResolver(AbstractResolver):
    """Asks `inner` once per connection. One address that is not public condemns the whole answer.

    Raises MediaAddressForbidden, MediaNotFound when there is no such name, OSError when DNS does not work.
    """

    def __init__(self, inner: AbstractResolver, allowed_hosts: Collection[str]) -> None:
        self._inner = inner
        self._allowed_hosts = allowed_hosts

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """The addresses of `host`; aiohttp connects to these and does not ask again."""
        try:
            answers = await self._inner.resolve(host, port, family)
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, socket.EAI_NODATA):
                raise MediaNotFound(f"there is no host {host}") from None
            raise
        if is_listed(host, port, self._allowed_hosts) or all(_leads_out(answer) for answer in answers):
            return answers
        raise MediaAddressForbidden(f"{host} resolves to an address that is not public")

    async def close(self) -> None:
        await self._inner.close()


def _leads_out(answer: ResolveResult) -> bool:
    try:
        return is_public(ip_address(answer["host"]))
    except ValueError:
        return False
