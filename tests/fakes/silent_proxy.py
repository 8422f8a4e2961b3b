"""A TCP proxy that can go silent: connections stay open and nothing passes any more, as behind a lost network."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit, urlunsplit


class SilentProxy:
    """Forwards to the server of `url`; `self.url` is the same database through the proxy."""

    def __init__(self, url: str) -> None:
        self._target = urlsplit(url)
        self._speaking = asyncio.Event()
        self._speaking.set()
        self._pipes: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        port = self._server.sockets[0].getsockname()[1]
        credentials, _, _ = self._target.netloc.rpartition("@")
        self.url = urlunsplit(self._target._replace(netloc=f"{credentials}@127.0.0.1:{port}"))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for pipe in self._pipes:
            pipe.cancel()
        await asyncio.gather(*self._pipes, return_exceptions=True)

    def go_silent(self) -> None:
        """From now on nothing passes, in either direction, on any connection."""
        self._speaking.clear()

    def forget_and_speak(self) -> None:
        """Connections made from now on work; those that were silent stay so."""
        self._speaking = asyncio.Event()
        self._speaking.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        speaking = self._speaking
        far_reader, far_writer = await asyncio.open_connection(self._target.hostname, self._target.port)
        for source, sink in ((reader, far_writer), (far_reader, writer)):
            pipe = asyncio.create_task(_pump(source, sink, speaking))
            self._pipes.add(pipe)


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter, speaking: asyncio.Event) -> None:
    try:
        while data := await source.read(65536):
            await speaking.wait()
            sink.write(data)
            await sink.drain()
    except ConnectionError:
        pass  # the other pipe closes this one's sink
    finally:
        sink.close()
