"""The gate as a process: what it leaves behind when it is stopped, and what it says when it cannot start."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from aiworker.settings import load_settings

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def folder() -> Iterator[Path]:
    """One that the account of an embedded PostgreSQL may enter, unlike pytest's own."""
    made = Path(tempfile.mkdtemp(prefix="aiworker-test-"))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made, ignore_errors=True)


def working_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd().startswith(str(folder)):
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.mark.timeout(180)
async def test_a_gate_that_is_stopped_leaves_nothing_behind(folder: Path) -> None:
    models = load_settings().models_dir.resolve()
    gate = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gate", "--quick", "--out", str(folder / "out")),
        cwd=BENCHMARKS,
        env=os.environ | {"TMPDIR": str(folder), "MODELS_DIR": str(models)},
        stdout=asyncio.subprocess.PIPE,
    )
    assert gate.stdout is not None
    async for line in gate.stdout:
        if line.startswith(b"gateway and worker: ready"):
            break
    started = working_in(folder)
    assert len(started) > 3, "gateway, worker and PostgreSQL are there"
    gate.send_signal(signal.SIGTERM)
    assert await gate.wait() == 130
    _, alive = await asyncio.to_thread(psutil.wait_procs, started, timeout=20)
    assert [process.cmdline() for process in alive] == []
    assert list(folder.iterdir()) == []


def test_live_without_a_model_says_what_to_set() -> None:
    without = {name: value for name, value in os.environ.items() if name not in ("OLLAMA_URL", "GEMINI_API_KEY")}
    command = [sys.executable, "-m", "gate", "--quick", "--live"]
    done = subprocess.run(command, cwd=BENCHMARKS, env=without, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "OLLAMA_URL" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
