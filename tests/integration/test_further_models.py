"""Several models in one worker, for real: jobs ask by name, a cap of memory decides who stays, a hangup reloads."""

from __future__ import annotations

import asyncio
import base64
import shutil
import signal
import time
from pathlib import Path
from typing import Any
from uuid import uuid4

import aiohttp
import psutil
import pytest

from aiworker.cli.stack import Stack, running_stack
from aiworker.gateway.auth import user_token
from aiworker.settings import load_settings

_ENOUGH_S = 90
_ROOM_FOR_ONE_MB = "500"


class _Client:
    def __init__(self, stack: Stack, session: aiohttp.ClientSession) -> None:
        self._stack = stack
        self._session = session
        token = user_token(stack.keys.jwt_secret or "", uuid4(), int(time.time()) + 600)
        self._headers = {"Authorization": f"Bearer {token}"}

    async def enqueue(self, photo: bytes, **fields: str) -> str:
        url = "data:image/jpeg;base64," + base64.b64encode(photo).decode()
        body = {"type": "sofia_image", "input": {"imageUrl": url, **fields}, "useCache": False}
        return str((await self._post("enqueue-analysis", body))["jobId"])

    async def ended(self, job_id: str) -> dict[str, Any]:
        async with asyncio.timeout(_ENOUGH_S):
            while (job := await self._post("get-analysis-status", {"jobId": job_id}))["status"] in (
                "pending",
                "processing",
            ):
                await asyncio.sleep(0.05)
        return job

    async def run(self, photo: bytes, **fields: str) -> dict[str, Any]:
        return await self.ended(await self.enqueue(photo, **fields))

    async def states(self) -> dict[str, str]:
        """Of the further models, by name."""
        async with self._session.get(f"{self._stack.worker_url}/health/detailed") as response:
            return {each["name"]: each["state"] for each in (await response.json())["inference"]["furtherModels"]}

    async def until(self, expected: dict[str, str]) -> None:
        async with asyncio.timeout(_ENOUGH_S):
            while await self.states() != expected:
                await asyncio.sleep(0.1)

    async def _post(self, path: str, body: Any) -> dict[str, Any]:
        url = f"{self._stack.gateway_url}/functions/v1/{path}"
        async with self._session.post(url, json=body, headers=self._headers) as response:
            answer: dict[str, Any] = await response.json()
            return answer


@pytest.mark.timeout(240)
async def test_jobs_ask_for_further_models_which_share_a_cap_of_memory(
    database_url: str, yolo_weights: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    main = tmp_path / yolo_weights.name
    for copy in (main, *(tmp_path / f"{name}-7.pt" for name in ("plates", "bowls"))):
        shutil.copyfile(yolo_weights, copy)
    variables = {
        "DATABASE_URL": database_url,
        "YOLO_MODEL": str(main),
        "YOLO_MORE_MODELS": "plates=plates-7.pt, bowls=bowls-7.pt",
        "YOLO_MORE_MODELS_MB": _ROOM_FOR_ONE_MB,
        "INFERENCE_PROCESSES": "1",
        "WORKER_DRAIN_TIMEOUT_MS": "300",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    photo = photos[0].read_bytes()
    async with (
        running_stack(load_settings(port=0, worker_port=0), lambda _: None, log_dir=Path("logs")) as stack,
        aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session,
    ):
        client = _Client(stack, session)
        await client.until({"plates": "ready", "bowls": "put away"})

        # The main model and a further one at once, then the one that was put away, while the others serve on.
        jobs = [await client.enqueue(photo, detector=name) for name in ("plates", "", "plates", "")]
        results = [(await client.ended(job))["result"] for job in jobs]
        assert [result["detector"] for result in results] == ["plates-7", "yolov8n"] * 2
        assert all(result["detections"] == results[0]["detections"] for result in results)
        assert results[0]["detections"]
        job = await client.run(photo, detector="bowls")
        assert job["result"]["detector"] == "bowls-7", job
        assert await client.states() == {"plates": "put away", "bowls": "ready"}

        unknown = await client.run(photo, detector="forks")
        assert (unknown["status"], unknown["code"]) == ("failed", "detector_unknown")

        (tmp_path / "bowls-7.pt").write_bytes(b"no weights")
        shutil.copyfile(yolo_weights, tmp_path / "plates-7.pt")
        stack.processes["worker"].send_signal(signal.SIGHUP)
        log = Path("logs", "worker.log")
        async with asyncio.timeout(_ENOUGH_S):
            while "the old ones serve on" not in log.read_text():
                await asyncio.sleep(0.1)
        assert log.read_text().count("weights reloaded") == 2, "the main ones, and those for when they are asked for"
        for name in ("bowls", "plates", ""):
            job = await client.run(photo, detector=name)
            assert job["status"] == "completed", job

        main.write_bytes(b"no weights")
        for hang_up in (False, True):
            # Whether or not somebody asked for it to be taken up: a child that starts again has the weights it had.
            if hang_up:
                refused = log.read_text().count("the old ones serve on")
                stack.processes["worker"].send_signal(signal.SIGHUP)
                async with asyncio.timeout(_ENOUGH_S):
                    while log.read_text().count("the old ones serve on") == refused:
                        await asyncio.sleep(0.1)
            for child in psutil.Process(stack.processes["worker"].pid).children():
                child.kill()
            job = await client.run(photo)
            assert job["result"]["detections"] == results[1]["detections"], job
