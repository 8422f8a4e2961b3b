"""Fixtures that everybody shares: a PostgreSQL of our own, weights, photos, a clean environment, no process left."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shutil
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import asyncpg

# Its plugin would load it after the last test, and Python 3.11 then now and then fails to parse it (cpython 106905).
import hypothesis  # noqa: F401
import psutil
import pytest
from fakes.databases import cloned_database, execute, with_database
from fakes.shared_data import SHARED_DATA

from aiworker.cli.embedded_postgres import EmbeddedPostgres
from aiworker.settings import Settings

ROOT = Path(__file__).parent.parent
_TEMPLATE = "aiworker_template"


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the variables of the person who runs it, and no worker that it starts measures engines first."""
    for name in Settings.model_fields:
        for spelling in (name, name.upper()):
            monkeypatch.delenv(spelling, raising=False)
    monkeypatch.setenv("INFERENCE_ENGINE", "torch")


@pytest.fixture(scope="session", autouse=True)
def no_process_left() -> Iterator[None]:
    """Fails the session when a process that a test started outlives it."""
    before = _descendants()
    yield
    left = _descendants() - before
    _, alive = psutil.wait_procs(left, timeout=10)
    described = [f"{process.pid} {process.name()}" for process in alive if process.is_running()]
    assert not described, f"tests left processes: {described}"


def _descendants() -> set[psutil.Process]:
    # The resource tracker of multiprocessing lives as long as its parent, by design.
    return {process for process in psutil.Process().children(recursive=True) if not _is_resource_tracker(process)}


def _is_resource_tracker(process: psutil.Process) -> bool:
    try:
        return any("resource_tracker" in part for part in process.cmdline())
    except psutil.Error:
        return False


@pytest.fixture(scope="session")
def postgres_server(no_process_left: None) -> Iterator[str]:
    """URL of a PostgreSQL that only this session uses; its superuser may do anything."""
    directory = Path(tempfile.mkdtemp(prefix="aiworker-test-"))
    # As root the server runs as another account, which must be able to enter.
    directory.chmod(0o755)
    server = EmbeddedPostgres(directory, durable=False, outside=directory / "outside")
    try:
        with server as url:
            yield url
    finally:
        shutil.rmtree(directory)


@pytest.fixture(scope="session")
def migrated_template(postgres_server: str) -> str:
    """Name of a database with all migrations, to be cloned."""
    from aiworker.queue.migrate import migrate

    async def build() -> None:
        await execute(postgres_server, f"CREATE DATABASE {_TEMPLATE}")
        await migrate(with_database(postgres_server, _TEMPLATE))

    asyncio.run(build())
    return _TEMPLATE


@pytest.fixture
def database_url(postgres_server: str, migrated_template: str) -> Iterator[str]:
    """A fresh, migrated database."""
    with cloned_database(postgres_server, migrated_template) as url:
        yield url


@pytest.fixture
async def admin(database_url: str) -> AsyncIterator[Any]:
    """A connection beside those under test, with every right."""
    connection = await asyncpg.connect(database_url, timeout=10)
    yield connection
    await connection.close()


@pytest.fixture
def empty_database_url(postgres_server: str) -> Iterator[str]:
    """A fresh database without any table."""
    with cloned_database(postgres_server, "template0") as url:
        yield url


@pytest.fixture(scope="session")
def yolo_weights() -> Path:
    """The official yolov8n.pt."""
    from aiworker.inference.weights import pull_weights

    if given := os.environ.get("AIWORKER_TEST_WEIGHTS"):
        return Path(given)
    shared = SHARED_DATA / "models" / "yolov8n.pt"
    return shared if shared.exists() else pull_weights("yolov8n", ROOT / "models")


@pytest.fixture(scope="session")
def photos() -> list[Path]:
    """Real photographs: ours first, then those that ultralytics ships, then what is beside the project."""
    ultralytics = importlib.util.find_spec("ultralytics")
    assert ultralytics is not None
    assert ultralytics.origin is not None
    assets = Path(ultralytics.origin).parent / "assets"
    packaged = [ROOT / "aiworker/cli/data/fruits.jpg", assets / "bus.jpg", assets / "zidane.jpg"]
    return packaged + sorted((SHARED_DATA / "images").glob("*.jpg"))
