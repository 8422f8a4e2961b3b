"""A worker whose database is restarted, killed, silenced, slow, or stops to notify: every job ends once.

The same runs as `benchmarks/queue_peers.py --only faults`, short.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from queueing.faults import FAULTS, survive

from aiworker.cli.embedded_postgres import EmbeddedPostgres


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    directory = Path(tempfile.mkdtemp(prefix="aiworker-test-"))
    directory.chmod(0o755)
    server = EmbeddedPostgres(directory, durable=True, outside=directory / "outside")
    server.start()
    yield server
    server.stop()
    shutil.rmtree(directory)


@pytest.mark.parametrize("fault", FAULTS)
async def test_every_job_ends_once(server: EmbeddedPostgres, fault: str) -> None:
    found = await survive(server, fault, jobs=60, scale=0.1, after_s=1.0)

    assert (found["lost"], found["twice"]) == (0, 0)
