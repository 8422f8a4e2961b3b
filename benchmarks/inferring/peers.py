"""Other model servers as processes of their own, asked over HTTP, in an environment below .benchmarks/."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import subprocess
import sys
import tempfile
import venv
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from aiworker.domain.deadline import Deadline
from aiworker.domain.errors import DeadlineExceeded, InferenceUnavailable

HERE = Path(__file__).parent.parent
HOME = HERE.parent / ".benchmarks" / "servers"
REQUIREMENTS = HERE / "peers" / "servers.txt"
PEERS = ("litserve", "mosec", "bentoml", "fastapi")
_PATHS = {"litserve": "/predict", "mosec": "/inference", "bentoml": "/predict", "fastapi": "/"}
_READY_S = 60.0
_TIMED_OUT = (408, 503, 504)


def install() -> None:
    """Makes the environment at the first run."""
    python = HOME / "bin" / "python"
    if not python.exists():
        venv.create(HOME, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", "--no-deps", "-r", REQUIREMENTS], check=True)


@dataclass(frozen=True)
class Peer:
    """`ask` sends one picture and waits for its answer."""

    name: str
    url: str
    pids: Path
    session: aiohttp.ClientSession

    async def ask(self, picture: bytes, deadline: Deadline) -> None:
        """Raises DeadlineExceeded for an answer that says so, and InferenceUnavailable for any other failure."""
        try:
            async with self.session.post(self.url, **self._body(picture)) as response:
                await response.read()
                if response.status in _TIMED_OUT:
                    raise DeadlineExceeded(str(response.status))
                if response.status != 200:
                    raise InferenceUnavailable(str(response.status))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise InferenceUnavailable(type(error).__name__) from None

    def _body(self, picture: bytes) -> dict[str, Any]:
        match self.name:
            case "litserve":
                return {"json": {"image": base64.b64encode(picture).decode()}}
            case "bentoml":
                return {"json": {"images": [base64.b64encode(picture).decode()]}}
            case _:
                return {"data": picture}

    def workers(self) -> list[int]:
        """Processes that have computed."""
        return [int(each.name) for each in self.pids.iterdir()]


@asynccontextmanager
async def serving(
    name: str,
    *,
    cap: int,
    workers: int,
    slo_s: float,
    program: str = "serve_sleep.py",
    probe: bytes = b"x",
    **more: object,
) -> AsyncIterator[Peer]:
    """The server, ready once it has answered `probe`; it and all that it started are gone afterwards.

    `more` is what its program reads beside the rest, by name (a=0.1 as A).
    """
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="peer-") as folder:
        pids = Path(folder, "pids")
        pids.mkdir()
        variables: dict[str, object] = {"CAP": cap, "WORKERS": workers, "SLO_S": slo_s, "PORT": port, "PIDS": pids}
        variables |= {key.upper(): value for key, value in more.items()}
        environment = os.environ | {key: str(value) for key, value in variables.items()}
        environment |= {"SERVER": name, "PYTHONPATH": str(HERE), "BENTOML_DO_NOT_TRACK": "1", "BENTOML_HOME": folder}
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(
                [HOME / "bin" / "python", HERE / "peers" / program],
                cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            connector = aiohttp.TCPConnector(limit=0)
            async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(total=15)) as session:
                peer = Peer(name, f"http://127.0.0.1:{port}{_PATHS[name]}", pids, session)
                await _ready(peer, Path(folder, "log"), probe)
                yield peer
        finally:
            # Not by group: BentoML's workers have sessions of their own.
            for each in [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]:
                with suppress(psutil.NoSuchProcess):
                    each.kill()
            process.wait()


async def _ready(peer: Peer, log: Path, probe: bytes) -> None:
    try:
        async with asyncio.timeout(_READY_S):
            while True:
                with suppress(InferenceUnavailable, DeadlineExceeded):
                    return await peer.ask(probe, Deadline.after(5.0))
                await asyncio.sleep(0.1)
    except TimeoutError:
        sys.exit(f"{peer.name} did not start: {log.read_text()[-2000:]}")
