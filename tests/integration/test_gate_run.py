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


@pytest.fixture
def interruptible() -> Iterator[None]:
    """A shell that runs the tests in the background has them, and whatever they start, ignore Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.timeout(180)
@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(
    ("until", "number"), [(b"gateway and worker: ready", signal.SIGTERM), (b"warm-up:", signal.SIGINT)]
)
async def test_a_gate_that_is_stopped_leaves_nothing_behind(until: bytes, number: signal.Signals, folder: Path) -> None:
    models = load_settings().models_dir.resolve()
    gate = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gate", "--quick", "--out", str(folder / "out")),
        cwd=BENCHMARKS,
        env=os.environ | {"TMPDIR": str(folder), "MODELS_DIR": str(models)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert gate.stdout is not None
    assert gate.stderr is not None
    async for line in gate.stdout:
        if line.startswith(until):
            break
    started = working_in(folder)
    assert len(started) > 3, "gateway, worker and PostgreSQL are there"
    # To the whole group, as a terminal sends Ctrl-C.
    os.killpg(gate.pid, number)
    assert await gate.wait() == 130
    assert b"Traceback" not in await gate.stderr.read()
    _, alive = await asyncio.to_thread(psutil.wait_procs, started, timeout=20)
    assert [process.cmdline() for process in alive] == []
    assert [path.name for path in folder.rglob("*")] == ["out"]


def test_live_without_a_model_says_what_to_set() -> None:
    without = {name: value for name, value in os.environ.items() if name not in ("OLLAMA_URL", "GEMINI_API_KEY")}
    command = [sys.executable, "-m", "gate", "--quick", "--live"]
    done = subprocess.run(command, cwd=BENCHMARKS, env=without, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    assert "OLLAMA_URL" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--soak", "0s"), "no time"),
        (("--quick", "--out", "{folder}/a-file"), "File exists"),
        (("--quick", "--out", "{folder}/kept"), "kept-quick.json"),
    ],
)
def test_what_would_spoil_a_run_is_said_before_it(arguments: tuple[str, ...], says: str, folder: Path) -> None:
    (folder / "a-file").touch()
    (folder / "kept").mkdir()
    (folder / "kept" / "kept-quick.json").write_text("{}")
    command = [sys.executable, "-m", "gate", *(each.format(folder=folder) for each in arguments)]
    done = subprocess.run(command, cwd=BENCHMARKS, check=False, capture_output=True, text=True, timeout=20)
    assert done.returncode in (1, 2)
    assert says in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
