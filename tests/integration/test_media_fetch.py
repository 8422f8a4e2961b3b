import asyncio
import gzip
import socket
import threading
from base64 import b64encode
from contextlib import asynccontextmanager
from io import BytesIO

import pytest
from aiohttp import ClientSession, web
from aiohttp.abc import AbstractResolver
from PIL import Image

from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import (
    ImageUnreadable,
    MediaAddressForbidden,
    MediaNotFound,
    MediaTooLarge,
    MediaTypeUnsupported,
    MediaUnavailable,
    MediaUrlInvalid,
)
from aiworker.media import fetch
from aiworker.media.data_url import decode_data_url
from aiworker.media.fetch import HttpImageSource, MediaLimits

MAX_BYTES = 200_000
SECRET = "signature=SECRET"


def jpeg() -> bytes:
    out = BytesIO()
    Image.effect_noise((64, 48), 80).save(out, "jpeg")
    return out.getvalue()


PHOTO = jpeg()


class Names(AbstractResolver):
    """Answers each name with the next of its scripted address lists, the last one for ever."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): list(lists) for name, lists in answers.items()}
        self.asked: list[str] = []

    async def resolve(self, host, port=0, family=socket.AF_INET):
        self.asked.append(host)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        lists = self.answers[host]
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": socket.AF_INET6 if ":" in address else socket.AF_INET,
                "proto": 0,
                "flags": socket.AI_NUMERICHOST,
            }
            for address in (lists.pop(0) if len(lists) > 1 else lists[0])
        ]

    async def close(self):
        pass


@asynccontextmanager
async def serving(handler):
    """The port of an aiohttp server on loopback, and the requests that it saw."""
    seen: list[web.BaseRequest] = []

    async def record(request):
        seen.append(request)
        return await handler(request)

    runner = web.ServerRunner(web.Server(record), shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1], seen
    finally:
        await runner.cleanup()


@asynccontextmanager
async def talking(say):
    """The port of a raw TCP server that reads a request's head and then does `say(writer)`."""

    async def connected(reader, writer):
        try:
            await reader.readuntil(b"\r\n\r\n")
            await say(writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def source(*allowed, resolver=None, max_pixels=1_000_000, timeout_s=20.0):
    limits = MediaLimits(MAX_BYTES, max_pixels, timeout_s, frozenset(allowed))
    images = HttpImageSource(limits, resolver)
    try:
        yield images
    finally:
        await images.close()


def soon() -> Deadline:
    return Deadline.after(20)


def answering(status=200, body=PHOTO, **headers):
    async def handler(_request):
        return web.Response(status=status, body=body, headers=headers)

    return handler


async def refusal(error, handler, path="/photo.jpg"):
    """Fetches from a listed server that answers with `handler`; the error, which must not hold the URL."""
    async with serving(handler) as (port, _), source("127.0.0.1") as images:
        with pytest.raises(error) as caught:
            await images.fetch(f"http://127.0.0.1:{port}{path}?{SECRET}", soon())
    assert SECRET not in f"{caught.value} {caught.value.note} {caught.value.details} {caught.value.__cause__}"
    return caught.value


async def test_a_listed_loopback_server_is_asked_plainly():
    async with serving(answering()) as (port, seen), source(f"127.0.0.1:{port}") as images:
        assert await images.fetch(f"http://127.0.0.1:{port}/a%2Fb.jpg?x=%2F", soon()) == PHOTO
    request = seen[0]
    assert request.raw_path == "/a%2Fb.jpg?x=%2F"
    assert request.headers["Accept-Encoding"] == "identity"
    assert not {"Authorization", "Cookie", "Referer"} & set(request.headers)


async def test_loopback_is_refused_without_a_connection():
    async with serving(answering()) as (port, seen), source(f"127.0.0.1:{port + 1}") as images:
        for host in ("127.0.0.1", "localhost", "2130706433", "0x7f.1", "[::1]", "[::ffff:127.0.0.1]", "0.0.0.0"):
            with pytest.raises(MediaAddressForbidden):
                await images.fetch(f"http://{host}:{port}/photo.jpg", soon())
    assert seen == []


@pytest.mark.parametrize(
    "answer", [["127.0.0.1"], ["10.0.0.1"], ["::1"], ["::ffff:127.0.0.1"], ["8.8.8.8", "127.0.0.1"], ["fe80::1%lo"]]
)
async def test_a_name_that_resolves_to_a_private_address_is_refused(answer):
    async with (
        serving(answering()) as (port, seen),
        source(resolver=Names(photos_example=[answer])) as images,
    ):
        with pytest.raises(MediaAddressForbidden):
            await images.fetch(f"http://photos.example:{port}/photo.jpg", soon())
    assert seen == []


async def test_the_name_is_resolved_once_and_the_checked_address_is_the_one_connected_to():
    # The listed name stands for a public one: were it resolved again to connect, the second answer would fail.
    names = Names(photos_example=[["127.0.0.1"], ["192.0.2.1"]])
    async with serving(answering()) as (port, seen), source("photos.example", resolver=names) as images:
        assert await images.fetch(f"http://photos.example:{port}/photo.jpg", soon()) == PHOTO
    assert names.asked == ["photos.example"]
    assert seen[0].host == f"photos.example:{port}"


async def test_a_name_that_turns_private_between_two_fetches_is_refused(monkeypatch):
    monkeypatch.setattr("aiworker.media.resolver.is_public", lambda address: str(address) == "127.0.0.1")
    names = Names(photos_example=[["127.0.0.1"], ["127.0.0.2"]])
    async with serving(answering(Connection="close")) as (port, seen), source(resolver=names) as images:
        url = f"http://photos.example:{port}/photo.jpg"
        assert await images.fetch(url, soon()) == PHOTO
        with pytest.raises(MediaAddressForbidden):
            await images.fetch(url, soon())
    assert len(seen) == 1


async def test_an_unknown_name_is_not_found():
    async with source(resolver=Names()) as images:
        with pytest.raises(MediaNotFound):
            await images.fetch("http://nowhere.example/photo.jpg", soon())


async def test_dns_that_does_not_work_may_work_later():
    class Broken(Names):
        async def resolve(self, host, port=0, family=socket.AF_INET):
            raise socket.gaierror(socket.EAI_AGAIN, "try again")

    async with source(resolver=Broken()) as images:
        with pytest.raises(MediaUnavailable):
            await images.fetch("http://photos.example/photo.jpg", soon())


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_followed(status):
    async def handler(request):
        if request.path == "/photo.jpg":
            return web.Response(body=PHOTO)
        return web.Response(status=status, headers={"Location": "../photo.jpg", "Set-Cookie": "a=b; Path=/"})

    async with serving(handler) as (port, seen), source("127.0.0.1") as images:
        assert await images.fetch(f"http://127.0.0.1:{port}/d/old", soon()) == PHOTO
    assert "Cookie" not in seen[1].headers


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("http://169.254.169.254/latest/meta-data", MediaAddressForbidden),
        ("http://[::1]/", MediaAddressForbidden),
        ("http://localhost/", MediaAddressForbidden),
        ("//2130706433/", MediaAddressForbidden),
        ("file:///etc/passwd", MediaUrlInvalid),
        ("http://user:secret@example.com/", MediaUrlInvalid),
        ("/again", MediaUrlInvalid),
    ],
)
async def test_a_redirect_is_judged_like_a_url(location, error):
    await refusal(error, answering(302, b"", Location=location))


async def test_a_redirect_to_another_port_of_a_listed_host_is_refused():
    async with serving(answering()) as (inner_port, inner_seen):
        to_inner = answering(302, b"", Location=f"http://127.0.0.1:{inner_port}/photo.jpg")
        async with serving(to_inner) as (port, _), source(f"127.0.0.1:{port}") as images:
            with pytest.raises(MediaAddressForbidden):
                await images.fetch(f"http://127.0.0.1:{port}/", soon())
    assert inner_seen == []


async def test_redirects_end():
    async with (
        serving(answering(302, b"", Location="/again")) as (port, seen),
        source("127.0.0.1") as images,
    ):
        with pytest.raises(MediaUrlInvalid):
            await images.fetch(f"http://127.0.0.1:{port}/", soon())
    assert len(seen) == 6


@pytest.mark.parametrize(
    ("status", "error"),
    [
        (400, MediaNotFound),
        (401, MediaNotFound),
        (403, MediaNotFound),
        (404, MediaNotFound),
        (410, MediaNotFound),
        (408, MediaUnavailable),
        (429, MediaUnavailable),
        (500, MediaUnavailable),
        (503, MediaUnavailable),
        (304, MediaUnavailable),
    ],
)
async def test_status(status, error):
    caught = await refusal(error, answering(status, b""))
    assert caught.details == {"status": status}
    assert caught.retryable is (error is MediaUnavailable)


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", ImageUnreadable),
        (b"<html>sign in</html>", MediaTypeUnsupported),
        (PHOTO[:60], ImageUnreadable),
    ],
)
async def test_a_body_that_is_no_picture(body, error):
    await refusal(error, answering(body=body, **{"Content-Type": "image/jpeg"}))


async def test_too_many_pixels():
    async with serving(answering()) as (port, _), source("127.0.0.1", max_pixels=64 * 48 - 1) as images:
        with pytest.raises(MediaTooLarge):
            await images.fetch(f"http://127.0.0.1:{port}/", soon())


async def test_a_body_over_the_limit_is_refused_by_its_announced_length():
    async def say(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (MAX_BYTES + 1))
        await writer.drain()
        await asyncio.Event().wait()

    async with talking(say) as port, source("127.0.0.1") as images:
        with pytest.raises(MediaTooLarge) as caught:
            await images.fetch(f"http://127.0.0.1:{port}/", soon())
    assert caught.value.details == {"limit_bytes": MAX_BYTES, "size_bytes": MAX_BYTES + 1}


async def test_an_endless_chunked_body_is_cut_off_and_its_connection_closed():
    hung_up = asyncio.Event()

    async def say(writer):
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            while True:
                writer.write(b"1000\r\n" + bytes(0x1000) + b"\r\n")
                await writer.drain()
        except ConnectionError:
            hung_up.set()

    async with talking(say) as port, source("127.0.0.1") as images:
        with pytest.raises(MediaTooLarge):
            await images.fetch(f"http://127.0.0.1:{port}/", soon())
        await hung_up.wait()


async def test_a_body_of_exactly_the_limit_passes():
    body = PHOTO + bytes(MAX_BYTES - len(PHOTO))
    async with serving(answering(body=body)) as (port, _), source("127.0.0.1") as images:
        assert await images.fetch(f"http://127.0.0.1:{port}/", soon()) == body


async def test_a_compressed_body_is_not_unpacked():
    bomb = gzip.compress(bytes(50_000_000))
    assert len(bomb) < MAX_BYTES
    await refusal(MediaTypeUnsupported, answering(body=bomb, **{"Content-Encoding": "gzip"}))


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + PHOTO[:100],
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX-Long: " + b"a" * 20_000 + b"\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"",
    ],
)
async def test_a_server_that_breaks_the_protocol(answer):
    async def say(writer):
        writer.write(answer)
        await writer.drain()

    async with talking(say) as port, source("127.0.0.1") as images:
        with pytest.raises(MediaUnavailable) as caught:
            await images.fetch(f"http://127.0.0.1:{port}/?{SECRET}", soon())
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"])
@pytest.mark.parametrize(("limit_s", "deadline_s"), [(0.2, 60), (60, 0.2)])
async def test_a_server_that_hangs_is_left_when_the_time_is_up(start, limit_s, deadline_s):
    hung_up = asyncio.Event()

    async def connected(reader, writer):
        writer.write(start)
        await reader.read()
        hung_up.set()
        writer.close()

    async with (
        await asyncio.start_server(connected, "127.0.0.1", 0) as server,
        source("127.0.0.1", timeout_s=limit_s) as images,
    ):
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(MediaUnavailable):
            await images.fetch(f"http://127.0.0.1:{port}/", Deadline.after(deadline_s))
        await hung_up.wait()


async def test_a_deadline_in_the_past_asks_nobody():
    async with serving(answering()) as (port, seen), source("127.0.0.1") as images:
        with pytest.raises(MediaUnavailable):
            await images.fetch(f"http://127.0.0.1:{port}/", Deadline.after(-1))
    assert seen == []


async def test_nobody_listens():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        async with source("127.0.0.1") as images:
            with pytest.raises(MediaUnavailable):
                await images.fetch(f"http://127.0.0.1:{free.getsockname()[1]}/", soon())


async def test_a_cancelled_fetch_hangs_up():
    asked, hung_up = asyncio.Event(), asyncio.Event()

    async def connected(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        assert await reader.read() == b""
        hung_up.set()
        writer.close()

    async with (
        await asyncio.start_server(connected, "127.0.0.1", 0) as server,
        source("127.0.0.1") as images,
    ):
        port = server.sockets[0].getsockname()[1]
        fetching = asyncio.create_task(images.fetch(f"http://127.0.0.1:{port}/", soon()))
        await asked.wait()
        fetching.cancel()
        with pytest.raises(asyncio.CancelledError):
            await fetching
        await hung_up.wait()


async def test_the_environments_proxy_and_credentials_are_ignored(monkeypatch, tmp_path):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with serving(answering()) as (port, seen), source("127.0.0.1") as images:
        assert await images.fetch(f"http://127.0.0.1:{port}/", soon()) == PHOTO
    assert "Authorization" not in seen[0].headers


async def test_a_data_url_is_checked_like_a_download():
    async with source() as images:
        assert await images.fetch("data:image/jpeg;base64," + b64encode(PHOTO).decode(), soon()) == PHOTO
        for payload, error in (
            (b"not an image", MediaTypeUnsupported),
            (PHOTO[:60], ImageUnreadable),
            (bytes(MAX_BYTES + 1), MediaTooLarge),
        ):
            with pytest.raises(error):
                await images.fetch("data:image/jpeg;base64," + b64encode(payload).decode(), soon())


async def test_a_long_data_url_is_decoded_beside_the_event_loop(monkeypatch):
    photo = PHOTO + bytes(100_000)
    threads = []

    def noted(text, max_bytes):
        threads.append(threading.current_thread())
        return decode_data_url(text, max_bytes)

    monkeypatch.setattr(fetch, "decode_data_url", noted)
    async with source() as images:
        assert await images.fetch("data:image/jpeg;base64," + b64encode(photo).decode(), soon()) == photo
    assert threads != [threading.main_thread()]


async def test_many_fetches_share_one_source():
    async with serving(answering()) as (port, seen), source("127.0.0.1") as images:
        got = await asyncio.gather(*(images.fetch(f"http://127.0.0.1:{port}/{n}", soon()) for n in range(50)))
    assert got == [PHOTO] * 50
    assert len(seen) == 50


async def test_closing_ends_the_session():
    async with serving(answering()) as (port, _):
        async with source("127.0.0.1") as images:
            await images.fetch(f"http://127.0.0.1:{port}/", soon())
            session: ClientSession = images._session
        assert session.closed
