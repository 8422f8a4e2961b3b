"""Real children with real weights: what they do with bad pictures, kills and bad weights."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import psutil
import pytest
from PIL import Image

from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detections
from aiworker.domain.errors import ImageUnreadable, InferenceUnavailable, MediaTooLarge
from aiworker.inference.lanes.lane import LanePolicy
from aiworker.inference.messages import ChildSpec
from aiworker.inference.policy.supervision import RestartPolicy
from aiworker.inference.pool import InferencePool, PoolRules
from aiworker.telemetry.metrics import Metrics

_LONG = 100.0


@asynccontextmanager
async def _pool(spec: ChildSpec, policy: LanePolicy | None = None) -> AsyncIterator[InferencePool]:
    pool = InferencePool([spec], PoolRules(lane=policy or LanePolicy()))
    await pool.start()
    try:
        await pool.wait_ready()
        yield pool
    finally:
        await pool.stop()


async def test_a_real_child_serves_good_pictures_among_bad_ones_and_survives_a_kill(
    yolo_weights: Path, photos: list[Path]
) -> None:
    photo = next(each for each in photos if each.name == "bus.jpg").read_bytes()
    metrics = Metrics()
    rules = PoolRules(lane=LanePolicy(restart=RestartPolicy(base_s=0.01)), canary=photo)
    pool = InferencePool([ChildSpec(str(yolo_weights), device="cpu", max_pixels=2_000_000)], rules, metrics)
    await pool.start()
    try:
        await pool.wait_ready()
        huge = io.BytesIO()
        Image.new("L", (2001, 1000)).save(huge, "PNG")
        deadline = Deadline.after(_LONG)
        results = await asyncio.gather(
            pool.detect(photo, deadline),
            pool.detect(photo[: len(photo) // 2], deadline),
            pool.detect(huge.getvalue(), deadline),
            pool.detect(photo, deadline),
            return_exceptions=True,
        )
        assert [type(each) for each in results] == [Detections, ImageUnreadable, MediaTooLarge, Detections]
        first = results[0]
        assert isinstance(first, Detections)
        assert {"bus", "person"} <= {item.class_name for item in first.items}
        assert [item.confidence for item in first.items] == sorted((i.confidence for i in first.items), reverse=True)
        async with asyncio.timeout(_LONG):
            while metrics.registry.get_sample_value("aiworker_inference_batch_size_sum") != 4:
                await asyncio.sleep(0.005)

        (before,) = pool.snapshot()
        pending = [asyncio.create_task(pool.detect(photo, Deadline.after(_LONG))) for _ in range(4)]
        while pool.snapshot()[0]["state"] != "busy":
            await asyncio.sleep(0.001)
        psutil.Process(int(before["pid"] or 0)).kill()
        answers = await asyncio.gather(*pending)
        # In passes of another size the last digits may differ.
        for answer in answers:
            assert [each.class_name for each in answer.items] == [each.class_name for each in first.items]
            for one, other in zip(answer.items, first.items, strict=True):
                assert one.confidence == pytest.approx(other.confidence, abs=1e-3)
        assert pool.snapshot()[0]["restarts"] == 1
        assert 50 < float(pool.snapshot()[0]["rss_mb"] or 0) < 1000
    finally:
        await pool.stop()


@pytest.mark.parametrize("content", [None, b"not a checkpoint"])
async def test_bad_weights_are_named(content: bytes | None, tmp_path: Path) -> None:
    weights = tmp_path / "broken.pt"
    if content is not None:
        weights.write_bytes(content)
    policy = LanePolicy(restart=RestartPolicy(base_s=0.01, give_up_after=1))
    with pytest.raises(InferenceUnavailable, match=r"broken\.pt"):
        async with _pool(ChildSpec(str(weights)), policy):
            pytest.fail("became ready")


def test_the_parent_stays_light_and_the_child_never_loads_torchvision(yolo_weights: Path) -> None:
    parent = """
import sys
import aiworker.inference.pool, aiworker.cli
print(*sorted({"torch", "ultralytics", "cv2", "numpy", "torchvision"} & set(sys.modules)))
"""
    assert _run(parent) == ""
    child = """
import sys
import numpy as np
from aiworker.inference.engines.torch_engine import TorchEngine
from aiworker.inference.interface import Picture
from aiworker.inference.messages import ChildSpec
engine = TorchEngine(ChildSpec(sys.argv[1], device="cpu", threads=2))
engine.load()
engine.warm_up()
engine.detect([engine.prepare(Picture(np.full((48, 64, 3), 90, np.uint8), 64, 48))])
import torch
print(torch.get_num_threads(), "torch" in sys.modules, "torchvision" in sys.modules)
"""
    assert _run(child, str(yolo_weights)) == "2 True False"


def _run(code: str, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        capture_output=True,
        text=True,
        timeout=_LONG,
        check=False,
        env={**os.environ, "YOLO_VERBOSE": "false"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.strip()
