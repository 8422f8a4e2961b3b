"""The system under test: the real stack in a folder of its own, beside its stand-ins."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from aiworker.cli.stack import Stack, running_stack
from aiworker.domain.errors import ConfigurationError, WeightsUnavailable
from aiworker.inference.weights import pull_weights, resolve_weights
from aiworker.settings import load_settings
from gate.stand_ins import OLLAMA_PARALLEL, Addresses

ROOT = Path(__file__).parents[2]

# Most of a job is waiting for a model: that needs slots, not cores.
_SLOTS = "96"


# The driver makes keys of its own, and the database is another one: a server's own settings for both do not fit.
_NOT_FOR_THE_GATE = frozenset(
    {
        *("DATABASE_URL", "DATABASE_POOLER", "SUPABASE_JWT_SECRET", "SUPABASE_SERVICE_ROLE_KEY", "HEALTH_TOKEN"),
        *("HOST", "WORKER_HOST", "WORKER_ID", "TRACES"),
    }
)


@dataclass(frozen=True, slots=True)
class System:
    """What runs, where it answers, and the folder that holds its database and logs."""

    stack: Stack
    places: Addresses
    folder: Path
    weights: Path


def photos_folder(into: Path) -> Path:
    """Real photographs: those beside the checkout where they are, else the package's own and those of ultralytics."""
    into.mkdir()
    found = sorted((ROOT.parent / "shared" / "data" / "images").glob("*.jpg"))
    ultralytics = find_spec("ultralytics")
    if ultralytics and ultralytics.origin:
        found += sorted((Path(ultralytics.origin).parent / "assets").glob("*.jpg"))
    for path in (ROOT / "aiworker" / "cli" / "data" / "fruits.jpg", *found):
        shutil.copy(path, into / path.name)
    return into


@asynccontextmanager
async def stand_ins(photos: Path) -> AsyncIterator[Addresses]:
    """Their own process, so that they do not take the driver's time."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gate.stand_ins", str(photos)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        cwd=ROOT / "benchmarks",
        # Ctrl-C in a terminal reaches the whole group; these end with their standard input.
        start_new_session=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield Addresses(**json.loads(await process.stdout.readline()))
    finally:
        process.stdin.close()
        await process.wait()


def _weights(model: str, models_dir: Path) -> Path:
    try:
        return resolve_weights(model, models_dir).resolve()
    except WeightsUnavailable:
        return pull_weights(model, models_dir).resolve()


def environment(
    before: Mapping[str, str], places: Addresses, weights: Path, models_dir: Path, *, live: bool
) -> dict[str, str]:
    """What the system under test sees. Its database is always one of its own: a load test has no business in another.

    How many slots there are may be set from outside, to see what difference it makes.
    """
    forced = {
        "YOLO_MODEL": str(weights),
        # The system runs in another folder: a relative one would be empty there, and each run measure all engines anew.
        "MODELS_DIR": str(models_dir),
        "MEDIA_ALLOWED_HOSTS": places.media_url.removeprefix("http://"),
    }
    if not live:
        forced |= {
            "OLLAMA_URL": places.ollama_url,
            "GEMINI_URL": places.gemini_url,
            "GEMINI_API_KEY": places.gemini_key,
        }
    usual = {"WORKER_CONCURRENCY": _SLOTS, "GEMINI_SLOTS": _SLOTS, "OLLAMA_SLOTS": str(OLLAMA_PARALLEL)}
    kept = {name: value for name, value in before.items() if name not in _NOT_FOR_THE_GATE}
    return usual | {"LOG_LEVEL": "WARNING"} | kept | forced


@asynccontextmanager
async def running_system(say: Callable[[str], None], *, live: bool) -> AsyncIterator[System]:
    """With `live`, Ollama and Gemini are those of the environment. Variables that are set win over the gate's own.

    Raises ConfigurationError where `live` finds neither, WeightsUnavailable.
    """
    configured = load_settings()
    if live and not (configured.ollama_url or configured.gemini_api_key):
        raise ConfigurationError("--live asks the models of the environment: set OLLAMA_URL, GEMINI_API_KEY or both")
    weights = await asyncio.to_thread(_weights, configured.yolo_model, configured.models_dir)
    home, models_dir = Path.cwd(), configured.models_dir.resolve()
    folder = Path(tempfile.mkdtemp(prefix="aiworker-gate-"))
    # As root, the embedded server runs as another account, which must be able to enter.
    folder.chmod(0o755)
    before = dict(os.environ)
    try:
        async with stand_ins(photos_folder(folder / "photos")) as places:
            os.environ.clear()
            os.environ.update(environment(before, places, weights, models_dir, live=live))
            os.chdir(folder)
            async with running_stack(load_settings(port=0, worker_port=0), say, log_dir=folder / "logs") as stack:
                yield System(stack, places, folder, weights)
    finally:
        os.chdir(home)
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)
