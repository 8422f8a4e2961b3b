"""`aiworker doctor`: looks at everything that the worker needs and says what to do about each."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

import asyncpg

from aiworker.analyses.registry import ANALYSES
from aiworker.cli.embedded_postgres import EmbeddedPostgres
from aiworker.cli.keys import is_loopback
from aiworker.cli.placement import placement_for
from aiworker.cli.profiles import missing_packages
from aiworker.cli.stack import STATE_DIR
from aiworker.cli.wiring import local_only_types
from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import ConfigurationError, WorkerError
from aiworker.inference.weights import resolve_weights
from aiworker.llm.gemini import GeminiModel
from aiworker.llm.local_only import ALL
from aiworker.llm.ollama import OllamaModel
from aiworker.queue.connect import Connector, Pooler
from aiworker.queue.migrate import pending
from aiworker.settings import Settings

_NEEDED_MB = 1500
_CLOCK_SKEW_S = 2.0
_IMPORT_S = 60.0
_ENGINE_VERSIONS = (
    "from importlib.metadata import version as v; import torch; "
    "print('torch', torch.__version__, '(CUDA)' if torch.cuda.is_available() else '(CPU)', "
    "'ultralytics', v('ultralytics'))"
)
_PROBE_S = 10.0
_DATABASE_S = 15.0
_FAILED = (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError)


class Verdict(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True, slots=True)
class Finding:
    """`do` is the next step, empty when there is none."""

    check: str
    verdict: Verdict
    found: str
    do: str = ""


Check = Callable[[Settings], Awaitable[list[Finding]]]


async def examine(settings: Settings) -> list[Finding]:
    """All findings, in a fixed order. Never raises for what it examines."""
    checks: list[Check] = [
        _check_database,
        _check_weights,
        _check_engine,
        _check_gpu,
        _check_memory,
        check_ollama,
        _check_gemini,
        check_personal_data,
        _check_secrets,
    ]
    found = await asyncio.gather(*(check(settings) for check in checks))
    return [finding for findings in found for finding in findings]


async def _check_database(settings: Settings) -> list[Finding]:
    if settings.database_url is not None:
        return await _examine_database(settings.database_url.get_secret_value(), pooler=settings.database_pooler)
    data = STATE_DIR / "postgres"
    if not await asyncio.to_thread(data.exists):
        found = "DATABASE_URL is not set, and there is no embedded PostgreSQL yet"
        return [Finding("database", Verdict.WARN, found, "set DATABASE_URL, or run `aiworker up`, which starts one")]
    server = EmbeddedPostgres(data)
    try:
        url = await asyncio.to_thread(server.start)
        return await _examine_database(url, "embedded ")
    except WorkerError as error:
        return [Finding("database", Verdict.FAIL, "the embedded PostgreSQL does not start", error.note)]
    finally:
        await asyncio.to_thread(server.stop)


async def _examine_database(url: str, kind: str = "", pooler: Pooler = "auto") -> list[Finding]:
    connector = Connector(url, timeout_s=_PROBE_S, application_name="aiworker doctor", pooler=pooler)
    try:
        connection = await connector()
    except _FAILED as error:
        do = "check DATABASE_URL, that the server runs, and that this machine may reach it"
        return [Finding("database", Verdict.FAIL, f"no connection ({type(error).__name__})", do)]
    try:
        async with asyncio.timeout(_DATABASE_S):
            version = connection.get_server_version()
            skew = await _clock_skew(connection)
            missing = await pending(url)
            pooled = await connector.through_pooler()
    except WorkerError as error:
        return [Finding("migrations", Verdict.FAIL, error.code, error.note)]
    except _FAILED as error:
        do = "see what the server is busy with, and the network between"
        return [
            Finding("database", Verdict.FAIL, f"it took the connection and fell silent ({type(error).__name__})", do)
        ]
    finally:
        # To say goodbye would be to wait for the answer.
        connection.terminate()
    return [_version(version.major, kind), _connections(pooled), _migrations(missing), _clock(skew)]


def _version(major: int, kind: str) -> Finding:
    if major < 15:
        return Finding("database", Verdict.FAIL, f"PostgreSQL {major}", "use PostgreSQL 15 or newer")
    return Finding("database", Verdict.OK, f"{kind}PostgreSQL {major}")


def _connections(pooled: bool) -> Finding:
    if not pooled:
        return Finding("connections", Verdict.OK, "direct: jobs are picked up when they are enqueued")
    found = "a transaction pooler: no notifications, jobs are found by polling every WORKER_POLL_INTERVAL_MS"
    return Finding(
        "connections", Verdict.WARN, found, "give the worker a direct (or session) connection in DATABASE_URL"
    )


def _migrations(missing: list[str]) -> Finding:
    if missing:
        return Finding("migrations", Verdict.FAIL, f"{len(missing)} not applied", "run `aiworker migrate`")
    return Finding("migrations", Verdict.OK, "all applied")


async def _clock_skew(connection: asyncpg.Connection) -> float:
    before = datetime.now(UTC)
    theirs: datetime = await connection.fetchval("SELECT clock_timestamp()", timeout=_PROBE_S)
    after = datetime.now(UTC)
    return (theirs - (before + (after - before) / 2)).total_seconds()


def _clock(skew_s: float) -> Finding:
    found = f"{skew_s:+.2f} s against the database"
    if abs(skew_s) > _CLOCK_SKEW_S:
        return Finding("clock", Verdict.WARN, found, "run an NTP client (tokens expire by this machine's clock)")
    return Finding("clock", Verdict.OK, found)


async def _check_weights(settings: Settings) -> list[Finding]:
    models = {"weights": settings.yolo_model}
    models |= {f"weights of {name}": model for name, model in settings.yolo_more_models.items()}
    return [await asyncio.to_thread(_weights, name, model, settings) for name, model in models.items()]


def _weights(name: str, model: str, settings: Settings) -> Finding:
    try:
        path = resolve_weights(model, settings.models_dir)
    except WorkerError as error:
        return Finding(name, Verdict.FAIL, model, error.note)
    return Finding(name, Verdict.OK, f"{path} ({path.stat().st_size / 1e6:.1f} MB)")


async def _check_engine(settings: Settings) -> list[Finding]:
    # In a process of its own, as the children are: importing torch costs this one hundreds of megabytes.
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", _ENGINE_VERSIONS),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_IMPORT_S):
            output, errors = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        return [Finding("engine", Verdict.FAIL, f"torch is not imported after {_IMPORT_S:.0f} s", "run `make setup`")]
    if process.returncode != 0:
        last = errors.decode(errors="replace").strip().splitlines()[-1:]
        return [Finding("engine", Verdict.FAIL, " ".join(last), "run `make setup`")]
    found = output.decode().strip()
    if missing := missing_packages(settings.inference_engine):
        found += f"; INFERENCE_ENGINE is {settings.inference_engine}, but {missing} is not installed"
        return [Finding("engine", Verdict.FAIL, found, "run `make setup`, or set INFERENCE_ENGINE=auto")]
    return [Finding("engine", Verdict.OK, found)]


async def _check_gpu(settings: Settings) -> list[Finding]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        wanted = settings.inference_device.startswith("cuda")
        do = "install the NVIDIA driver, or set INFERENCE_DEVICE=auto" if wanted else ""
        return [Finding("gpu", Verdict.FAIL if wanted else Verdict.OK, "none: the CPU is used", do)]
    query = ("--query-gpu=name,memory.free", "--format=csv,noheader")
    process = await asyncio.create_subprocess_exec(
        tool, *query, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL
    )
    output, _ = await process.communicate()
    if process.returncode != 0:
        return [Finding("gpu", Verdict.WARN, "nvidia-smi fails", "reinstall the NVIDIA driver")]
    return [Finding("gpu", Verdict.OK, "; ".join(output.decode().strip().splitlines()))]


async def _check_memory(settings: Settings) -> list[Finding]:
    try:
        machine, placement = await asyncio.to_thread(placement_for, settings)
    except ConfigurationError as error:
        return [Finding("memory", Verdict.FAIL, error.note, "see `aiworker placement`")]
    needed = _NEEDED_MB * len(placement.children)
    found = f"{machine.free_mb:.0f} MB free, about {needed} MB needed"
    if machine.free_mb < needed:
        return [Finding("memory", Verdict.FAIL, found, "free some, or lower INFERENCE_PROCESSES")]
    return [Finding("memory", Verdict.OK, found)]


async def check_ollama(settings: Settings) -> list[Finding]:
    """Whether it answers, and whether its models are there and fit what they are used as."""
    if not settings.ollama_url:
        return [Finding("ollama", Verdict.OK, "OLLAMA_URL is not set: it is not asked")]
    model = OllamaModel(
        settings.ollama_url, settings.ollama_model, settings.ollama_vision_model, settings.ollama_num_ctx
    )
    try:
        seen = await model.probe(Deadline.after(_PROBE_S))
    finally:
        await model.close()
    if not seen["reachable"]:
        do = "start Ollama, or check OLLAMA_URL from this machine"
        return [Finding("ollama", Verdict.WARN, f"no answer ({seen['error']})", do)]
    return [
        Finding("ollama", Verdict.OK, f"version {seen['version']}"),
        *[_ollama_model(name, state, settings) for name, state in seen["models"].items()],
    ]


def _ollama_model(name: str, state: dict[str, bool | None], settings: Settings) -> Finding:
    if not state["present"]:
        return Finding("ollama", Verdict.WARN, f"{name} is not there", f"run `aiworker models pull {name}`")
    if name == settings.ollama_vision_model and state["vision"] is False:
        do = "set OLLAMA_VISION_MODEL to a model that `aiworker models show` says reads pictures, or leave it out"
        return Finding("ollama", Verdict.WARN, f"{name} is OLLAMA_VISION_MODEL, but text only", do)
    if state["remote"] and settings.local_only:
        do = "choose a model that runs on your own server"
        return Finding("ollama", Verdict.WARN, f"{name} runs in Ollama's cloud, which LOCAL_ONLY forbids", do)
    vision = {True: "sees images", False: "text only", None: "vision unknown"}[state["vision"]]
    where = ", in Ollama's cloud, which is told what users write" if state["remote"] else ""
    return Finding("ollama", Verdict.OK, f"{name}: {vision}{where}")


async def _check_gemini(settings: Settings) -> list[Finding]:
    if settings.gemini_api_key is None:
        return [Finding("gemini", Verdict.OK, "GEMINI_API_KEY is not set: it is not asked")]
    model = GeminiModel(settings.gemini_api_key, settings.gemini_model, settings.gemini_url)
    try:
        seen = await model.probe(Deadline.after(_PROBE_S))
    finally:
        await model.close()
    if seen["error"] or not seen["present"]:
        do = "check GEMINI_API_KEY and GEMINI_MODEL, and that this machine reaches the API"
        return [Finding("gemini", Verdict.WARN, f"{settings.gemini_model}: {seen['error']} {seen['note'] or ''}", do)]
    return [Finding("gemini", Verdict.OK, f"the key works, {settings.gemini_model} is there")]


async def check_personal_data(settings: Settings) -> list[Finding]:
    """Which kinds of analysis are sent to Gemini, and whether those that are not can be answered."""
    try:
        kept = local_only_types(settings)
    except ConfigurationError as error:
        return [Finding("personal data", Verdict.FAIL, "LOCAL_ONLY is wrong", error.note)]
    if settings.gemini_api_key is None:
        return [Finding("personal data", Verdict.OK, "nothing is sent to Gemini")]
    here = sorted(ANALYSES if ALL in kept else kept)
    sent = ", ".join(name for name in ANALYSES if name not in here) or "nothing"
    found = f"sent to Gemini: {sent}; kept here: {', '.join(here) or 'nothing'}"
    if here and not settings.ollama_url:
        do = "set OLLAMA_URL, or what is kept here is answered by rule or not at all"
        return [Finding("personal data", Verdict.WARN, found, do)]
    return [Finding("personal data", Verdict.OK, found)]


async def _check_secrets(settings: Settings) -> list[Finding]:
    if settings.supabase_jwt_secret or settings.supabase_service_role_key:
        return [Finding("secrets", Verdict.OK, "the gateway knows its callers")]
    if is_loopback(settings.host):
        return [Finding("secrets", Verdict.OK, "none set: made on the fly, for loopback only")]
    do = "set SUPABASE_JWT_SECRET and SUPABASE_SERVICE_ROLE_KEY, or HOST=127.0.0.1"
    return [Finding("secrets", Verdict.FAIL, f"none set, but HOST={settings.host}", do)]
