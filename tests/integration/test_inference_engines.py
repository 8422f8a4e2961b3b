"""Each engine against ultralytics' own predict: the same photos, the same weights, in real children."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from average_precision import Row, iou, mean_average_precision
from fakes.shared_data import SHARED_DATA
from PIL import Image

from aiworker.cli.profiles import plan_for, sample_picture
from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detection, Detections
from aiworker.inference.engines.exports import ExportFailed, ensure_export, export_folder
from aiworker.inference.engines.letterbox import prepare
from aiworker.inference.interface import Picture
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import InferencePool
from aiworker.inference.profile import Candidate, Measured, Profile
from aiworker.inference.profiling import Sample, known_or_measured, profile_file
from aiworker.inference.weights import edition_of
from aiworker.settings import load_settings

_LONG = 100.0
_ORANGE = 49
_FAMILIES = ("yolov8", "yolo11", "yolo26", "yolov8-seg")
_ENGINES = {
    "onnx": "aiworker.inference.engines.onnx_engine:OnnxEngine",
    "openvino": "aiworker.inference.engines.openvino_engine:OpenVinoEngine",
    "torch": "aiworker.inference.engines.torch_engine:TorchEngine",
}
_LIBRARIES = {"onnx": "onnxruntime_pybind11", "openvino": "libopenvino", "torch": "libtorch"}
"""What each of them maps."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def reference(folder: Path, yolo_weights: Path, photos: list[Path]) -> dict[str, Any]:
    script = Path(__file__).parent / "ultralytics_reference.py"
    there = [str(photo) for photo in photos if photo.exists()]
    done = subprocess.run(
        [sys.executable, str(script), str(yolo_weights), str(folder), str(SHARED_DATA / "models"), *there],
        capture_output=True,
        text=True,
        timeout=_LONG,
        check=False,
        env={**os.environ, "YOLO_OFFLINE": "true", "YOLO_VERBOSE": "false", "YOLO_AUTOINSTALL": "false"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    answer: dict[str, Any] = json.loads((folder / "expected.json").read_text())
    return answer


async def _detect(spec: ChildSpec, photos: list[str]) -> tuple[list[Detections], str, float]:
    """What the pool's child finds on each photo, the libraries it has mapped, and its RSS in MiB."""
    pool = InferencePool([spec])
    await pool.start()
    try:
        await pool.wait_ready()
        deadline = Deadline.after(_LONG)
        found = [await pool.detect(Path(photo).read_bytes(), deadline) for photo in photos]
        (child,) = pool.snapshot()
        return found, Path(f"/proc/{child['pid']}/maps").read_text(), float(child["rss_mb"] or 0)
    finally:
        await pool.stop()


def _differences(ours: tuple[Detection, ...], theirs: list[list[float]], tolerance: float) -> list[object]:
    left, missing = list(theirs), []
    for each in ours:
        alike = (
            row
            for row in left
            if row[0] == each.class_id and abs(row[1] - each.confidence) <= tolerance and iou(each.box, row[2:]) >= 0.99
        )
        match = next(alike, None)
        if match is None:
            missing.append(each)
        else:
            left.remove(match)
    return [*missing, *left]


@pytest.mark.parametrize(
    ("engine", "family"),
    [*itertools.product(("onnx", "openvino"), _FAMILIES), ("torch", "yolo26"), ("torch", "yolov8-seg")],
)
async def test_detections_are_those_of_ultralytics(
    reference: dict[str, Any], family: str, engine: str, folder: Path
) -> None:
    if family not in reference["families"]:
        pytest.skip(f"no {family} weights at hand")
    weights, expected = reference["families"][family].values()
    spec = ChildSpec(weights, _ENGINES[engine], "cpu", threads=2, confidence=0.25, cache_dir=str(folder))
    found, mapped, rss_mb = await _detect(spec, list(expected))
    assert sum(len(each.items) for each in found) > 5
    for (photo, theirs), ours in zip(expected.items(), found, strict=True):
        assert not _differences(ours.items, theirs, 0.01), photo
        with Image.open(photo) as picture:
            assert (ours.width, ours.height) == picture.size
        assert (ours.engine, ours.model) == (f"{engine}-cpu-fp32", Path(weights).stem)
    loaded = {name for name, library in _LIBRARIES.items() if library in mapped}
    assert loaded == {engine}, "a child that reads an export never loads torch"
    assert rss_mb < (1000 if engine == "torch" else 400)


@pytest.mark.parametrize("engine", ["onnx", "openvino"])
async def test_a_child_stays_small_through_all_shapes(reference: dict[str, Any], folder: Path, engine: str) -> None:
    """Whatever the library keeps for each of them; YOLO11 takes most."""
    family = reference["families"].get("yolo11") or reference["families"]["yolov8"]
    for number, side in enumerate(range(32, 672, 32)):
        Image.new("RGB", (640, side)).save(folder / f"shape{number}.jpg")
        Image.new("RGB", (side, 640)).save(folder / f"shape{number}t.jpg")
    shapes = [str(each) for each in sorted(folder.glob("shape*.jpg"))]
    spec = ChildSpec(family["weights"], _ENGINES[engine], "cpu", threads=1, confidence=0.25, cache_dir=str(folder))
    _, _, rss_mb = await _detect(spec, shapes)
    assert rss_mb < 400


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
async def test_no_engine_costs_average_precision(reference: dict[str, Any], folder: Path, precision: str) -> None:
    """On the photos that come with their truth; whatever single boxes do."""
    if precision == "bf16" and "avx512_bf16" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this CPU has no bf16")
    weights, expected = reference["families"]["yolov8"].values()
    photos = [photo for photo in expected if Path(photo).with_suffix(".txt").exists()]
    if not photos:
        pytest.skip("no photos with their truth at hand")
    spec = ChildSpec(weights, _ENGINES["openvino"], "cpu", precision, 2, confidence=0.25, cache_dir=str(folder))
    found, _, _ = await _detect(spec, photos)
    truth = [_truth(Path(photo), each) for photo, each in zip(photos, found, strict=True)]
    ours = [[(box.class_id, box.confidence, *box.box) for box in each.items] for each in found]
    theirs = [[(int(kind), *rest) for kind, *rest in expected[photo]] for photo in photos]
    reached = mean_average_precision(theirs, truth)
    assert reached > 20, "or the measure says nothing"
    assert mean_average_precision(ours, truth) >= reached - 0.5


def _truth(photo: Path, size: Detections) -> list[Row]:
    """From lines of class and the box's centre, width and height as shares of the photo's."""
    rows = []
    for line in photo.with_suffix(".txt").read_text().splitlines():
        kind, x, y, width, height = map(float, line.split())
        corners = (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        x1, y1, x2, y2 = (share * side for share, side in zip(corners, (size.width, size.height) * 2, strict=True))
        rows.append((int(kind), 1.0, x1, y1, x2, y2))
    return rows


def test_boxes_of_a_segmentation_model_with_an_empty_mask_are_dropped(reference: dict[str, Any]) -> None:
    counts = {
        family: sum(map(len, reference["families"][family]["found"].values())) for family in ("yolov8", "yolov8-seg")
    }
    assert 5 < counts["yolov8-seg"] < counts["yolov8"], "the reference has such boxes, or the test above shows nothing"


def test_the_letterbox_is_that_of_ultralytics(reference: dict[str, Any]) -> None:
    for width, height, expected in reference["letterboxes"]:
        noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
        pixels = prepare(Picture(noise, width, height), 640, 32).pixels
        assert hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).hexdigest() == expected, (width, height)


def test_an_export_that_fails_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    weights = tmp_path / "broken.pt"
    weights.write_bytes(b"not a checkpoint")
    abandoned = tmp_path / "exports" / ".export-killed"
    abandoned.mkdir(parents=True)
    os.utime(abandoned, (0, 0))
    with pytest.raises(ExportFailed, match=r"the export to onnx failed: \w+"):
        ensure_export(str(weights), "onnx", str(tmp_path))
    folder = export_folder(weights, "onnx", str(tmp_path))
    assert not abandoned.exists(), "nor what a killed process left"
    assert [each.name for each in folder.parent.iterdir()] == [f"{folder.name}.lock"]


async def test_what_is_fastest_is_measured_once(folder: Path, yolo_weights: Path, tmp_path: Path) -> None:
    spec = ChildSpec(str(yolo_weights), device="cpu", cache_dir=str(folder))
    broken = [Candidate(engine, "fp64", 1, 1) for engine in ("onnx", "openvino")]
    sound = [Candidate(engine, "fp32", 1, 2) for engine in ("onnx", "openvino")]
    choices = [Candidate("torch", "fp32", 1, 1), *broken, *sound]
    sample, said = Sample(sample_picture(), seconds=0.5), []
    file = profile_file(tmp_path, spec, choices)
    profile = await known_or_measured(file, spec, choices, sample, said.append)
    assert [each.candidate for each in said] == choices
    assert all("fp64" in each.fault for each in profile.measured if each.candidate in broken)
    assert profile.chosen is not None
    assert profile.chosen.candidate not in broken
    served = [each for each in profile.measured if each.candidate not in broken]
    assert all(each.images_per_s > 0 and each.forward_ms > 0 and each.rss_mb > 50 for each in served)
    assert {kind for kind, *_ in profile.on_sample} == {_ORANGE}
    said.clear()
    assert await known_or_measured(file, spec, choices, sample, said.append) == profile
    assert not said


async def test_the_worker_serves_with_what_was_chosen(
    yolo_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = Measured(Candidate("openvino", "fp32", 1, 1, pinned=True), images_per_s=9.0)

    async def known(*arguments: object) -> Profile:
        return Profile((best,), on_sample=((_ORANGE, 0.8, 0.0, 0.0, 9.0, 9.0),))

    monkeypatch.setattr("aiworker.cli.profiles.known_or_measured", known)
    plan = await plan_for(load_settings(inference_engine="auto", models_dir=tmp_path), yolo_weights)
    (spec,) = plan.specs
    assert (spec.engine, spec.threads, spec.pinned, spec.device) == (_ENGINES["openvino"], 1, True, "cpu")
    assert "9.0 images/s" in plan.why
    assert plan.known == {edition_of(str(yolo_weights)): ((_ORANGE, 0.8, 0.0, 0.0, 9.0, 9.0),)}
    best = replace(best, fault="broken")
    fallen = await plan_for(load_settings(inference_engine="auto", models_dir=tmp_path), yolo_weights)
    assert {each.engine for each in fallen.specs} == {_ENGINES["torch"]}
    set_by_hand = await plan_for(
        load_settings(inference_engine="openvino", inference_precision="bf16", inference_processes=3), yolo_weights
    )
    assert [(each.engine, each.precision) for each in set_by_hand.specs] == [(_ENGINES["openvino"], "bf16")] * 3
