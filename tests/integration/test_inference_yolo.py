"""Real children with real weights, against what ultralytics itself finds on the same photos."""

from __future__ import annotations

import asyncio
import io
import json
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
from aiworker.domain.detection import Detection, Detections
from aiworker.domain.errors import ImageUnreadable, InferenceUnavailable, MediaTooLarge
from aiworker.inference.lane import LanePolicy
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import InferencePool
from aiworker.inference.supervision import RestartPolicy

_CONFIDENCE = 0.25
_LONG = 100.0
_YOLO26 = Path(__file__).parents[2].parent / "shared" / "data" / "models" / "yolo26n-dq8.pt"

# `warmup` only imports torchvision and, on a CPU, does nothing else. `nms=False` asks for the head without suppression.
_REFERENCE = """
import json, sys
from ultralytics import YOLO
from ultralytics.nn.autobackend import AutoBackend

AutoBackend.warmup = lambda self, *args, **options: None
weights, confidence, *photos = sys.argv[1:]
model = YOLO(weights)
options = {"nms": False} if "yolo26" in weights else {}
found = {}
for photo in photos:
    boxes = model.predict(photo, conf=float(confidence), device="cpu", verbose=False, **options)[0].boxes
    rows = zip(boxes.cls.tolist(), boxes.conf.tolist(), boxes.xyxy.tolist())
    found[photo] = [[int(kind), conf, *box] for kind, conf, box in rows]
print("\\n" + json.dumps(found))
"""


@asynccontextmanager
async def _pool(spec: ChildSpec, policy: LanePolicy | None = None, **options: int) -> AsyncIterator[InferencePool]:
    pool = InferencePool(spec, policy=policy or LanePolicy(), **options)
    await pool.start()
    try:
        await pool.wait_ready()
        yield pool
    finally:
        await pool.stop()


async def _detect_all(spec: ChildSpec, photos: list[Path]) -> list[Detections]:
    async with _pool(spec) as pool:
        deadline = Deadline.after(_LONG)
        return await asyncio.gather(*(pool.detect(photo.read_bytes(), deadline) for photo in photos))


def _reference(weights: Path, photos: list[Path]) -> dict[str, list[list[float]]]:
    done = subprocess.run(
        [sys.executable, "-c", _REFERENCE, str(weights), str(_CONFIDENCE), *map(str, photos)],
        capture_output=True,
        text=True,
        timeout=_LONG,
        check=False,
        env={**os.environ, "YOLO_OFFLINE": "true"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, list[list[float]]] = json.loads(done.stdout.splitlines()[-1])
    return answer


def _iou(a: tuple[float, ...], b: list[float]) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    areas = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1])
    return width * height / (areas - width * height)


def _same(ours: Detection, theirs: list[float]) -> bool:
    kind, confidence, *box = theirs
    close = abs(ours.confidence - confidence) <= 0.01
    return ours.class_id == kind and close and _iou(ours.box, box) >= 0.99


def _differences(ours: tuple[Detection, ...], theirs: list[list[float]]) -> list[object]:
    left = list(theirs)
    missing: list[object] = []
    for each in ours:
        match = next((row for row in left if _same(each, row)), None)
        if match is None:
            missing.append(each)
        else:
            left.remove(match)
    return missing + list(left)


@pytest.mark.parametrize("family", ["yolov8", "yolo26"])
async def test_detections_equal_those_of_ultralytics(family: str, yolo_weights: Path, photos: list[Path]) -> None:
    weights = yolo_weights if family == "yolov8" else _YOLO26
    if not weights.exists():
        pytest.skip(f"no {family} weights at hand")
    photos = [photo for photo in photos if photo.exists()]
    expected = await asyncio.to_thread(_reference, weights, photos)
    found = await _detect_all(ChildSpec(str(weights), device="cpu", threads=2, confidence=_CONFIDENCE), photos)
    assert sum(len(each.items) for each in found) > 5
    for photo, detections in zip(photos, found, strict=True):
        assert not _differences(detections.items, expected[str(photo)]), photo.name
        with Image.open(photo) as picture:
            assert (detections.width, detections.height) == picture.size
        assert detections.engine == "torch-cpu-fp32"
        assert detections.model == weights.stem


async def test_a_real_child_serves_good_pictures_among_bad_ones_and_survives_a_kill(
    yolo_weights: Path, photos: list[Path]
) -> None:
    photo = next(each for each in photos if each.name == "bus.jpg").read_bytes()
    sizes: list[int] = []
    policy = LanePolicy(restart=RestartPolicy(base_s=0.01))
    pool = InferencePool(
        ChildSpec(str(yolo_weights), device="cpu", max_pixels=2_000_000),
        policy=policy,
        on_batch=lambda size, seconds: sizes.append(size),
    )
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
            while sum(sizes) < 4:
                await asyncio.sleep(0.005)
        assert sum(sizes) == 4

        (before,) = pool.snapshot()
        pending = [asyncio.create_task(pool.detect(photo, Deadline.after(_LONG))) for _ in range(4)]
        while pool.snapshot()[0]["state"] != "busy":
            await asyncio.sleep(0.001)
        psutil.Process(int(before["pid"] or 0)).kill()
        answers = await asyncio.gather(*pending)
        assert all(answer.items == first.items for answer in answers)
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
from aiworker.inference.engine import TorchEngine
from aiworker.inference.messages import ChildSpec
engine = TorchEngine(ChildSpec(sys.argv[1], device="cpu", threads=2))
engine.load()
engine.warm_up()
engine.detect([engine.prepare(np.full((48, 64, 3), 90, np.uint8))])
import torch
print(torch.get_num_threads(), "torch" in sys.modules, "torchvision" in sys.modules)
"""
    assert _run(child, str(yolo_weights)) == "2 True False"


def test_a_slow_machine_never_blanks_the_rest_of_a_batch(yolo_weights: Path, photos: list[Path]) -> None:
    code = """
import itertools, sys
from pathlib import Path
from aiworker.inference.decode import decode
from aiworker.inference.engine import TorchEngine
from aiworker.inference.messages import ChildSpec
from ultralytics.utils import nms

engine = TorchEngine(ChildSpec(sys.argv[1], device="cpu", threads=2))
engine.load()
prepared = engine.prepare(decode(Path(sys.argv[2]).read_bytes(), 10**8))
clock = itertools.count(0, 1000)
nms.time.time = lambda: next(clock)
print(*(len(boxes) > 0 for boxes in engine.detect([prepared] * 3)), next(clock) > 0)
"""
    photo = next(each for each in photos if each.name == "bus.jpg")
    assert _run(code, str(yolo_weights), str(photo)) == "True True True True"


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
