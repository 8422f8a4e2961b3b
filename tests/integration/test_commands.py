"""The commands as a user types them."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from fakes.ollama_server import FakeOllama
from fakes.silent_proxy import SilentProxy
from PIL import Image

from aiworker.cli import doctor
from aiworker.cli.embedded_postgres import EmbeddedPostgres
from aiworker.queue.migrate import migrate
from aiworker.queue.postgres import PostgresQueue

COMMANDS = [
    "demo",
    "up",
    "worker",
    "gateway",
    "migrate",
    "enqueue",
    "status",
    "cancel",
    "models",
    "models list",
    "models pull",
    "models show",
    "placement",
    "doctor",
]


def aiworker(*arguments: str, cwd: Path, timeout: float = 100, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "aiworker.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "COLUMNS": "200", **variables},
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_help_says_what_a_command_does(tmp_path: Path, command: str) -> None:
    shown = aiworker(*command.split(), "--help", cwd=tmp_path)
    assert shown.returncode == 0
    assert "Usage: aiworker" in shown.stdout
    assert len(shown.stdout.splitlines()) > 4


def test_help_is_light(tmp_path: Path) -> None:
    code = "import sys, aiworker.cli.__main__; print({'torch', 'asyncpg', 'aiohttp', 'cv2'} & sys.modules.keys())"
    shown = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path, timeout=60
    )
    assert shown.stdout.strip() == "set()"


def test_the_demo_from_photo_to_picture(
    postgres_server: str, yolo_weights: Path, photos: list[Path], tmp_path: Path
) -> None:
    variables = {"DATABASE_URL": postgres_server, "YOLO_MODEL": str(yolo_weights)}
    shown = aiworker("demo", str(photos[1]), cwd=tmp_path, **variables)
    assert shown.returncode == 0, shown.stdout + shown.stderr
    for expected in ("enqueued", "Detections", "ônibus", "Foods", "not_configured", "fetch", "picture with boxes"):
        assert expected in shown.stdout
    with Image.open(tmp_path / "output" / "bus-detections.png") as picture, Image.open(photos[1]) as photo:
        assert picture.format == "PNG"
        assert picture.size == photo.size


@pytest.mark.parametrize(
    ("content", "code"), [(b"this is no photo", "media_type_unsupported"), (None, "configuration_error")]
)
def test_the_demo_fails_when_the_photo_cannot_be_analysed(
    postgres_server: str, yolo_weights: Path, tmp_path: Path, content: bytes | None, code: str
) -> None:
    photo = tmp_path / "photo.jpg"
    if content is not None:
        photo.write_bytes(content)
    shown = aiworker("demo", str(photo), cwd=tmp_path, DATABASE_URL=postgres_server, YOLO_MODEL=str(yolo_weights))
    assert shown.returncode == 1
    assert code in shown.stdout + shown.stderr
    assert "Traceback" not in shown.stderr


def test_migrate_and_doctor(empty_database_url: str, yolo_weights: Path, tmp_path: Path) -> None:
    variables = {"DATABASE_URL": empty_database_url, "YOLO_MODEL": str(yolo_weights)}
    before = aiworker("doctor", "--json", cwd=tmp_path, **variables)
    assert before.returncode == 1
    findings = {finding["check"]: finding for finding in json.loads(before.stdout)}
    assert findings["migrations"]["verdict"] == "fail"
    assert "aiworker migrate" in findings["migrations"]["do"]
    assert "would apply 0001" in aiworker("migrate", "--dry-run", cwd=tmp_path, **variables).stdout
    assert "applied 0001" in aiworker("migrate", cwd=tmp_path, **variables).stdout
    assert "up to date" in aiworker("migrate", cwd=tmp_path, **variables).stdout
    gone = aiworker("doctor", "--json", cwd=tmp_path, **variables, YOLO_MORE_MODELS="plates=gone.pt")
    findings = {finding["check"]: finding for finding in json.loads(gone.stdout)}
    assert (findings["weights"]["verdict"], findings["weights of plates"]["verdict"]) == ("ok", "fail")
    after = aiworker("doctor", "--json", cwd=tmp_path, **variables)
    assert after.returncode == 0, after.stdout
    findings = {finding["check"]: finding for finding in json.loads(after.stdout)}
    assert {
        "database",
        "migrations",
        "clock",
        "weights",
        "engine",
        "gpu",
        "memory",
        "ollama",
        "gemini",
    } <= findings.keys()
    assert findings["engine"]["found"].startswith("torch")


async def test_placement_says_what_it_would_start_and_why(tmp_path: Path) -> None:
    async with FakeOllama({"llama3.2:3b": ("completion",)}) as ollama:
        ollama.loaded["llama3.2:3b"] = 4096
        variables = {"OLLAMA_URL": ollama.url, "INFERENCE_PROCESSES": "1", "INFERENCE_DEVICE": "cpu"}
        shown = await asyncio.to_thread(aiworker, "placement", "--json", cwd=tmp_path, **variables)
    placed = json.loads(shown.stdout)
    assert [(child["device"], child["maxBatch"]) for child in placed["children"]] == [("cpu", 8)]
    assert "Ollama holds" in placed["notes"][0]
    assert placed["budgetMb"] < placed["memoryMb"]
    refused = aiworker("placement", cwd=tmp_path, MEMORY_BUDGET_MB="100")
    assert refused.returncode == 1
    assert "raise MEMORY_BUDGET_MB" in refused.stderr
    shared = aiworker("placement", "--json", cwd=tmp_path, MEMORY_BUDGET_MB="4000", YOLO_MORE_MODELS="a=b")
    assert json.loads(shared.stdout)["budgetMb"] == 2500
    assert "1500 of it for further models" in json.loads(shared.stdout)["notes"][0]


async def test_doctor_says_that_a_database_fell_silent(database_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with SilentProxy(database_url) as proxy:
        clock_skew = doctor._clock_skew

        async def silent_from_here(connection: Any) -> float:
            proxy.go_silent()
            return await clock_skew(connection)

        monkeypatch.setattr(doctor, "_clock_skew", silent_from_here)
        monkeypatch.setattr(doctor, "_DATABASE_S", 0.5)
        [finding] = await doctor._examine_database(proxy.url)
    assert (finding.check, finding.verdict) == ("database", doctor.Verdict.FAIL)
    assert "fell silent" in finding.found


async def test_doctor_asks_ollama(tmp_path: Path, yolo_weights: Path) -> None:
    async with FakeOllama({"llama3.2:3b": ("completion",)}) as ollama:
        shown = await asyncio.to_thread(
            aiworker,
            "doctor",
            "--json",
            cwd=tmp_path,
            YOLO_MODEL=str(yolo_weights),
            OLLAMA_URL=ollama.url,
            OLLAMA_VISION_MODEL="qwen2.5vl:3b",
        )
    found = [
        (finding["verdict"], finding["found"]) for finding in json.loads(shown.stdout) if finding["check"] == "ollama"
    ]
    assert found == [
        ("ok", "version 0.13.5"),
        ("ok", "llama3.2:3b: text only"),
        ("warn", "qwen2.5vl:3b is not there"),
    ]


def test_pause_and_resume_reach_the_database_that_up_keeps() -> None:
    folder = Path(tempfile.mkdtemp(prefix="aiworker-test-"))
    folder.chmod(0o755)
    without = {"DATABASE_URL": ""}
    try:
        with EmbeddedPostgres(folder / ".aiworker" / "postgres") as url:
            asyncio.run(migrate(url))
            assert aiworker("pause", "food_image", cwd=folder, **without).stdout == "paused: sofia_image\n"
            mistyped = aiworker("pause", "sofia_imag", cwd=folder, **without)
            assert (mistyped.returncode, "sofia_text" in mistyped.stderr) == (1, True)
            assert asyncio.run(paused(url)) == ["sofia_image"]
            assert aiworker("resume", "sofia_image", cwd=folder, **without).returncode == 0
            assert asyncio.run(paused(url)) == []
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def paused(url: str) -> list[str]:
    async with PostgresQueue(url) as queue:
        return sorted((await queue.depth()).paused)


def test_beyond_loopback_the_gateway_wants_a_secret(tmp_path: Path) -> None:
    shown = aiworker("gateway", cwd=tmp_path, HOST="0.0.0.0", PORT="0", DATABASE_URL="postgresql://x@127.0.0.1:1/x")
    assert shown.returncode == 1
    assert "SUPABASE_JWT_SECRET" in shown.stderr


def test_a_worker_that_still_measures_its_engines_says_so_and_stops_at_once(
    database_url: str, yolo_weights: Path, tmp_path: Path
) -> None:
    """That takes half a minute at the first start, longer than Docker waits before it kills, and probes for answers."""
    variables = {"DATABASE_URL": database_url, "YOLO_MODEL": str(yolo_weights), "WORKER_PORT": "0"}
    with subprocess.Popen(
        [sys.executable, "-m", "aiworker.cli", "worker"],
        cwd=tmp_path,
        env={**os.environ, **variables, "MODELS_DIR": str(tmp_path / "models"), "INFERENCE_ENGINE": "auto"},
        stderr=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stderr is not None
        try:
            listens = next(line for line in worker.stderr if "worker health listens" in line)
            assert any("inference child ready" in line for line in worker.stderr)
            address = re.search(r"http://[0-9.:]+", listens)
            assert address is not None
            assert _asked(address[0], "/live") == (200, {"status": "alive"})
            assert _asked(address[0], "/health") == (503, {"status": "unhealthy", "checks": {"inference": False}})
            status, detailed = _asked(address[0], "/health/detailed")
            assert (status, detailed["services"]) == (503, {"yolo": "starting"})
            worker.terminate()
            _, rest = worker.communicate(timeout=60)
        finally:
            worker.kill()
    assert worker.returncode == 0
    assert "measured" not in rest
    assert "worker started" not in rest


def _asked(address: str, path: str) -> tuple[int, dict[str, Any]]:
    try:
        with urllib.request.urlopen(f"{address}{path}", timeout=30) as answer:
            return answer.status, json.loads(answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.loads(error.read())


@pytest.mark.parametrize(
    ("arguments", "variables", "says"),
    [
        (("worker",), {}, "set DATABASE_URL"),
        (("migrate",), {}, "set DATABASE_URL"),
        (("worker",), {"PORT": "banana"}, "PORT"),
        (("status", "x"), {"PORT": "1"}, "aiworker up"),
        (("models", "pull", "yolo99"), {}, "yolov8n"),
        (("worker",), {"DATABASE_URL": "postgresql://x@127.0.0.1:1/x", "YOLO_MODEL": "nope.pt"}, "nope.pt"),
        (("enqueue", "sofia_text", "--input", "{"), {}, "not JSON"),
    ],
)
def test_a_command_that_cannot_work_says_what_to_do(
    tmp_path: Path, arguments: tuple[str, ...], variables: dict[str, str], says: str
) -> None:
    shown = aiworker(*arguments, cwd=tmp_path, **variables)
    assert shown.returncode in (1, 2)
    assert says in shown.stderr.replace("\n", " ")
    assert "Traceback" not in shown.stderr


@pytest.mark.parametrize("password", ["hush/quiet", "hush?quiet", "hush#quiet"])
def test_a_password_that_breaks_the_address_is_told_and_not_shown(tmp_path: Path, password: str) -> None:
    """`openssl rand -base64` makes such, and Compose puts it into DATABASE_URL as it is."""
    shown = aiworker("migrate", cwd=tmp_path, DATABASE_URL=f"postgresql://aiworker:{password}@127.0.0.1:1/x")
    assert shown.returncode == 1
    assert "%2F" in shown.stderr
    assert re.findall(r"Traceback|hush|quiet", shown.stderr) == []
