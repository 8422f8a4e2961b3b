"""One job's whole way, for real: PostgreSQL, gateway and worker processes, an inference child with YOLO, HTTP.

Only Ollama and Gemini are test servers. The tests share one running system and go from good input to bad to killed.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import struct
import time
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aiohttp
import asyncpg
import psutil
import pytest
import pytest_asyncio
from aiohttp import web
from fakes.collector import FakeCollector
from fakes.gemini_server import FakeGemini
from fakes.llm_server import Body, Reply
from fakes.ollama_server import FakeOllama
from PIL import Image
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from aiworker.cli.stack import Stack, running_stack
from aiworker.gateway.auth import user_token
from aiworker.queue.migrate import migrate
from aiworker.settings import load_settings

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(120)]

SECRET_TEXT = "almocei-um-segredo-que-nao-pode-aparecer-nos-logs"
SEEN = {
    "foods": [{"name": "laranja", "grams": 180, "confidence": 0.9}, {"name": "limão", "grams": 60, "confidence": 0.5}],
    "meal_type": "lanche",
    "notes": "",
}
EATEN = {"foods": [{"name": "arroz branco cozido", "grams": 200}, {"name": "ovo frito", "grams": 50}]}
TERMINAL = ("completed", "failed", "cancelled")


def gemini_answer(body: Body) -> str:
    schema = body.get("generationConfig", {}).get("responseJsonSchema")
    if schema is None:
        return "Claro! Aqui vai um plano."
    return json.dumps(SEEN if "confidence" in json.dumps(schema) else EATEN)


@dataclass
class System:
    """A running stack with its test servers, a media server and a user."""

    stack: Stack
    gemini: FakeGemini
    ollama: FakeOllama
    collector: FakeCollector
    media_url: str
    database_url: str
    session: aiohttp.ClientSession
    logs: Path

    def headers(self, user: UUID) -> dict[str, str]:
        token = user_token(self.stack.keys.jwt_secret or "", user, int(time.time()) + 600)
        return {"Authorization": f"Bearer {token}"}

    async def post(self, path: str, body: Any, user: UUID) -> tuple[int, dict[str, Any]]:
        url = f"{self.stack.gateway_url}/functions/v1/{path}"
        async with self.session.post(url, json=body, headers=self.headers(user)) as response:
            return response.status, await response.json()

    async def enqueue(self, job_type: str, body: dict[str, Any], user: UUID | None = None, **fields: Any) -> str:
        order = {"type": job_type, "input": body, "useCache": False, **fields}
        status, reply = await self.post("enqueue-analysis", order, user or USER)
        assert status == 202, reply
        return str(reply["jobId"])

    async def until(self, job_id: str, *statuses: str, user: UUID | None = None) -> dict[str, Any]:
        async with asyncio.timeout(60):
            while True:
                _, job = await self.post("get-analysis-status", {"jobId": job_id}, user or USER)
                if job["status"] in statuses:
                    return job
                await asyncio.sleep(0.02)

    async def run(self, job_type: str, body: dict[str, Any], **fields: Any) -> dict[str, Any]:
        return await self.until(await self.enqueue(job_type, body, **fields), *TERMINAL)

    async def worker_get(self, path: str) -> tuple[int, str]:
        async with self.session.get(f"{self.stack.worker_url}{path}") as response:
            return response.status, await response.text()

    def child(self) -> psutil.Process:
        """The one inference child."""
        (child,) = psutil.Process(self.stack.processes["worker"].pid).children()
        return child


USER = UUID("11111111-1111-4111-8111-111111111111")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def system(
    postgres_server: str, yolo_weights: Path, photos: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[System]:
    folder = tmp_path_factory.mktemp("whole-way")
    home = Path.cwd()
    os.chdir(folder)
    database = await new_database(postgres_server)
    async with (
        FakeGemini(answer=gemini_answer) as gemini,
        FakeOllama(answer=lambda _: "Oi! Tudo bem?") as ollama,
        FakeCollector() as collector,
        media_server(photos[1]) as media_url,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
    ):
        variables = {
            "DATABASE_URL": database,
            "YOLO_MODEL": str(yolo_weights),
            "INFERENCE_PROCESSES": "1",
            "GEMINI_API_KEY": gemini.key,
            "GEMINI_URL": gemini.url,
            "OLLAMA_URL": ollama.url,
            "MEDIA_ALLOWED_HOSTS": media_url.removeprefix("http://"),
            "MEDIA_TIMEOUT_S": "1",
            "WORKER_DRAIN_TIMEOUT_MS": "300",
            "TRACES": "otlp",
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "100",
        }
        os.environ.update(variables)
        try:
            settings = load_settings(port=0, worker_port=0)
            async with running_stack(settings, lambda _: None, log_dir=Path("logs")) as stack:
                yield System(stack, gemini, ollama, collector, media_url, database, session, folder / "logs")
        finally:
            os.chdir(home)
            for name in variables:
                os.environ.pop(name, None)


async def new_database(server: str) -> str:
    name = f"whole_{uuid4().hex}"
    connection = await asyncpg.connect(server)
    await connection.execute(f"CREATE DATABASE {name}")
    await connection.close()
    url = server.rsplit("/", 1)[0] + f"/{name}"
    await migrate(url)
    return url


class media_server:
    """Serves a photo, a redirect into the metadata service, a page, and an address that hangs."""

    def __init__(self, photo: Path) -> None:
        self._photo = photo
        self._hang = asyncio.Event()

    async def __aenter__(self) -> str:
        app = web.Application()
        app.router.add_get("/photo.jpg", self._serve)
        app.router.add_get("/page", self._page)
        app.router.add_get("/redirect", self._redirect)
        app.router.add_get("/hang", self._hanging)
        self._runner = web.AppRunner(app, handler_cancellation=True, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def __aexit__(self, *exc: object) -> None:
        await self._runner.cleanup()

    async def _serve(self, _request: web.Request) -> web.Response:
        return web.Response(body=self._photo.read_bytes(), content_type="image/jpeg")

    async def _page(self, _request: web.Request) -> web.Response:
        return web.Response(text="<html>no picture</html>", content_type="image/jpeg")

    async def _redirect(self, _request: web.Request) -> web.Response:
        raise web.HTTPFound("http://169.254.169.254/latest/meta-data/")

    async def _hanging(self, _request: web.Request) -> web.Response:
        await self._hang.wait()
        return web.Response()


def data_url(content: bytes) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(content).decode()


def huge_png() -> bytes:
    """A PNG whose header says 10,000 x 10,000 pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 10_000, 10_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


async def test_a_photo_with_gemini(system: System, photos: list[Path]) -> None:
    job = await system.run("sofia_image", {"imageUrl": data_url(photos[0].read_bytes())})
    assert job["status"] == "completed", job
    result = job["result"]
    assert result["degraded"] is False
    assert result["provider"]["name"] == "gemini"
    assert result["cost_usd"] > 0
    assert [food["name"] for food in result["foods"]] == ["laranja", "limão"]
    assert result["totals"]["kcal"] > 0
    assert {found["name"] for found in result["detections"]} == {"orange"}
    assert set(result["stages_ms"]) == {"fetch", "detect", "generate", "save"}
    (parts,) = [message["parts"] for message in system.gemini.requests[-1]["contents"]]
    assert any("inlineData" in part for part in parts)
    assert "laranja" in json.dumps(parts, ensure_ascii=False)


async def test_a_phones_photo_in_heic(system: System, photos: list[Path]) -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    heic = BytesIO()
    with Image.open(photos[0]) as photo:
        photo.save(heic, "HEIF", quality=90)
    before = len(system.gemini.requests)
    job = await system.run("sofia_image", {"imageUrl": data_url(heic.getvalue())})
    assert job["status"] == "completed", job
    assert not job["result"]["degraded"]
    assert job["result"]["detections"]
    (part, _) = system.gemini.requests[before]["contents"][-1]["parts"]
    assert base64.b64decode(part["inlineData"]["data"]).startswith(b"\xff\xd8\xff")


async def test_a_photo_from_an_allowed_host(system: System) -> None:
    job = await system.run("sofia_image", {"imageUrl": f"{system.media_url}/photo.jpg"})
    assert job["status"] == "completed", job
    assert {"person", "bus"} <= {found["name"] for found in job["result"]["detections"]}


async def test_a_photo_when_gemini_is_down_and_ollama_has_no_vision(system: System, photos: list[Path]) -> None:
    system.gemini.script(*[Reply(status=503, body={"error": {"code": 503, "status": "UNAVAILABLE"}})] * 40)
    job = await system.run("sofia_image", {"imageUrl": data_url(photos[0].read_bytes())})
    assert job["status"] == "completed", job
    assert job["result"]["degraded"] is True
    assert "gemini" in job["result"]["providers_skipped"]
    assert [food["name"] for food in job["result"]["foods"]] == ["laranja"]
    system.gemini._script.clear()
    await until_up(system, "gemini")


async def until_up(system: System, provider: str) -> None:
    """Waits until the router asks `provider` again."""
    async with asyncio.timeout(40):
        while True:
            _, text = await system.worker_get("/health/detailed")
            if json.loads(text)["providers"][provider]["state"] == "up":
                return
            await asyncio.sleep(0.1)


async def test_text(system: System) -> None:
    job = await system.run("sofia_text", {"text": SECRET_TEXT})
    result = job["result"]
    assert result["source"] == "ai"
    assert [food["grams"] for food in result["foods"]] == [200, 50]
    assert result["total_kcal"] == pytest.approx(376, abs=15)


async def test_a_simple_message_goes_to_ollama_and_another_to_gemini(system: System) -> None:
    simple = await system.run("unified_assistant", {"message": "bom dia"})
    assert simple["result"]["api_used"] == "ollama/llama3.2:3b"
    assert simple["result"]["message"] == "Oi! Tudo bem?"
    other = await system.run("unified_assistant", {"message": "monte um cardápio de 1800 kcal"})
    assert other["result"]["api_used"] == "gemini/gemini-3.5-flash-lite"


async def test_a_second_identical_request_is_answered_from_the_cache(system: System) -> None:
    order = {"type": "sofia_text", "input": {"text": "um pão na chapa"}}
    _, first = await system.post("enqueue-analysis", order, USER)
    await system.until(first["jobId"], "completed")
    status, second = await system.post("enqueue-analysis", order, uuid4())
    assert (status, second["jobId"], second["cached"]) == (200, None, True)
    assert second["result"]["foods"]


async def test_progress_is_in_the_row_while_the_job_runs(system: System, photos: list[Path]) -> None:
    go_on = asyncio.Event()
    hung = system.gemini.hangs
    system.gemini.script(Reply(before=go_on))
    job_id = await system.enqueue("sofia_image", {"imageUrl": data_url(photos[0].read_bytes())})
    await system.gemini.hung(hung + 1)
    async with asyncio.timeout(20):
        while (job := await system.until(job_id, "processing"))["stage"] != "generate":
            await asyncio.sleep(0.02)
    assert job["progress"] == 50
    assert job["workerId"]
    go_on.set()
    await system.until(job_id, "completed")


async def test_cancelling_a_running_job_stops_the_call_to_the_model(system: System) -> None:
    hung, left = system.gemini.hangs, system.gemini.disconnects
    system.gemini.script(Reply(before=asyncio.Event()))
    job_id = await system.enqueue("unified_assistant", {"message": "monte um cardápio de 2000 kcal"})
    await system.gemini.hung(hung + 1)
    status, reply = await system.post("cancel-analysis", {"jobId": job_id}, USER)
    assert (status, reply["status"]) == (200, "cancelled")
    await system.gemini.disconnected(left + 1)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("data:image/jpeg;base64,bm90IGEgcGhvdG8=", "media_type_unsupported"),
        ("data:image/jpeg;base64,%%%", "media_url_invalid"),
        ("ftp://example.org/a.jpg", "media_url_invalid"),
        ("http://169.254.169.254/latest/meta-data/", "media_address_forbidden"),
        ("http://[::1]/a.jpg", "media_address_forbidden"),
        ("http://2130706433/a.jpg", "media_address_forbidden"),
        ("http://localhost/a.jpg", "media_address_forbidden"),
        ("MEDIA/redirect", "media_address_forbidden"),
        ("MEDIA/page", "media_type_unsupported"),
        ("MEDIA/missing", "media_not_found"),
        ("HUGE", "media_too_large"),
        ("TRUNCATED", "image_unreadable"),
    ],
)
async def test_a_bad_photo_fails_at_once_with_its_code_and_the_next_job_runs(
    system: System, photos: list[Path], url: str, code: str
) -> None:
    whole = photos[1].read_bytes()
    url = url.replace("MEDIA", system.media_url)
    url = {"HUGE": data_url(huge_png()), "TRUNCATED": data_url(whole[: len(whole) // 3])}.get(url, url)
    job = await system.run("sofia_image", {"imageUrl": url})
    assert (job["status"], job["code"], job["attempts"]) == ("failed", code, 1)
    assert job["error"].endswith(".")
    assert (await system.run("sofia_text", {"text": "um ovo"}))["status"] == "completed"


async def test_an_address_that_hangs_is_tried_again_later(system: System) -> None:
    job_id = await system.enqueue("sofia_image", {"imageUrl": f"{system.media_url}/hang"})
    async with asyncio.timeout(20):
        while (job := await system.until(job_id, "pending", "processing", "failed"))["attempts"] < 2:
            await asyncio.sleep(0.02)
    assert job["status"] in ("pending", "processing")
    await system.post("cancel-analysis", {"jobId": job_id}, USER)


async def test_an_inference_child_that_is_killed_loses_no_photo(system: System, photos: list[Path]) -> None:
    child = system.child()
    photo = {"imageUrl": data_url(photos[0].read_bytes())}
    ids = [await system.enqueue("sofia_image", photo, user=uuid4_user(n)) for n in range(6)]
    child.kill()
    for number, job_id in enumerate(ids):
        job = await system.until(job_id, *TERMINAL, user=uuid4_user(number))
        assert job["status"] == "completed", job
        assert job["result"]["detections"]
    assert system.child().pid != child.pid


def uuid4_user(number: int) -> UUID:
    return UUID(int=(4 << 76) | (8 << 60) | number)


async def test_health_and_metrics_of_the_worker(system: System) -> None:
    for path in ("/health", "/live", "/ready"):
        assert (await system.worker_get(path))[0] == 200
    detailed = json.loads((await system.worker_get("/health/detailed"))[1])
    assert detailed["checks"] == {"database": True, "leases": True, "inference": True}
    assert detailed["inference"]["children"][0]["restarts"] >= 1
    assert detailed["providers"]["gemini"]["answered"] > 0
    assert detailed["worker"].keys() == {"id", "concurrency", "activeJobs", "queueSize"}
    assert detailed["services"] == {"yolo": "ready", "ollama": "up", "gemini": "up"}
    assert detailed["memory"]["childrenRssMb"] > 50
    assert detailed["versions"]["torch"]
    _, text = await system.worker_get("/metrics")
    families = {family.name: family for family in text_string_to_metric_families(text)}
    done = [sample for sample in families["aiworker_jobs"].samples if sample.labels.get("outcome") == "completed"]
    assert {sample.labels["type"] for sample in done} == {"sofia_image", "sofia_text", "unified_assistant"}


async def test_logs_are_json_and_hold_no_content_and_no_key(system: System) -> None:
    text = "".join(path.read_text() for path in system.logs.glob("*.log"))
    lines = [json.loads(line) for line in text.splitlines()]
    assert any(line["event"] == "job ended" and UUID(line["job_id"]) for line in lines)
    for secret in (SECRET_TEXT, system.gemini.key, "base64", system.stack.keys.service_key, "laranja", "cardápio"):
        assert str(secret) not in text


async def test_spans_of_jobs_and_calls_reach_a_collector_without_content(system: System) -> None:
    job_id = await system.enqueue("sofia_text", {"text": SECRET_TEXT})
    await system.until(job_id, "completed")
    work = await system.collector.until(lambda span: span.attributes.get("aiworker.job.id") == job_id)
    call = await system.collector.until(lambda span: span.parent_id == work.span_id)
    assert (work.name, call.name) == ("job sofia_text", "chat gemini-3.5-flash-lite")
    for secret in (SECRET_TEXT, system.gemini.key, "laranja", "arroz"):
        assert secret.encode() not in system.collector.raw


async def test_sigterm_puts_a_running_job_back_without_costing_an_attempt(system: System) -> None:
    hung = system.gemini.hangs, system.ollama.hangs
    # A chat that is late at one is asked of the other, too.
    for server in (system.gemini, system.ollama):
        server.script(Reply(before=asyncio.Event()))
    job_id = await system.enqueue("unified_assistant", {"message": "monte um cardápio de 2200 kcal"})
    await system.gemini.hung(hung[0] + 1)
    await system.ollama.hung(hung[1] + 1)
    child = system.child()
    worker = system.stack.processes["worker"]
    worker.send_signal(signal.SIGTERM)
    async with asyncio.timeout(20):
        assert await worker.wait() == 0
    job = await system.until(job_id, "pending")
    assert job["attempts"] == 0
    assert not child.is_running()


async def test_what_gemini_has_cost_outlives_the_worker(system: System) -> None:
    assert system.stack.processes["worker"].returncode == 0
    connection = await asyncpg.connect(system.database_url)
    spent = await connection.fetchval("select usd from analysis_spend where provider = 'gemini'")
    await connection.close()
    assert 12 * 0.3 / 1e6 < spent < 1
