from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.domain.deadline import Deadline
from aiworker.domain.detection import Detection, Detections
from aiworker.domain.errors import InferenceUnavailable
from aiworker.inference import profiling
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import PoolRules
from aiworker.inference.profile import Candidate, Measured, Profile, agrees, candidates, card_candidates, has_drifted
from aiworker.inference.profiling import Sample, known_or_measured, profile_file, read, serving, write


def _measured(rate: float, processes: int = 1, fault: str = "") -> Measured:
    return Measured(Candidate("openvino", "fp32", processes, 1), images_per_s=rate, fault=fault)


@given(st.integers(1, 64))
def test_candidates_use_the_cores_that_there_are(cores: int) -> None:
    found = candidates(cores)
    assert found[0].engine == "torch"
    assert len(set(found)) == len(found)
    for each in found:
        assert each.processes * each.threads <= cores
        assert each.processes == 1 or not each.pinned
        assert each.precision == "fp32", "another precision is only for those who ask for it"


def test_on_a_card_torch_is_held_against_its_own_graphs_and_tensorrt() -> None:
    found = card_candidates(8)
    assert list(dict.fromkeys(each.engine for each in found)) == ["torch", "torch-graph", "tensorrt"]
    assert {(each.precision, each.pinned) for each in found} == {("fp16", False)}
    assert {(each.processes, each.threads) for each in found} == {(1, 8), (2, 4), (4, 2)}
    assert {(each.processes, each.threads) for each in card_candidates(1)} == {(1, 1)}
    assert {(each.processes, each.threads) for each in card_candidates(8, processes=3, threads=4)} == {(3, 4)}


def test_what_the_operator_has_set_is_not_measured_away() -> None:
    found = candidates(8, precision="bf16", processes=3, threads=1)
    assert {(each.processes, each.threads) for each in found} == {(3, 1)}
    assert {(each.engine, each.precision) for each in found} == {
        ("torch", "fp32"),
        ("onnx", "fp32"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
    }


def test_the_fastest_is_chosen() -> None:
    slow, fast = _measured(10), _measured(20)
    profile = Profile((slow, fast, _measured(30, fault="detects other things")))
    assert profile.chosen is fast
    assert "20.0 images/s" in profile.why


def test_of_nearly_equals_the_one_that_may_lose_a_process_is_chosen() -> None:
    one, two, slower = _measured(20), _measured(19.2, processes=2), _measured(18, processes=4)
    assert Profile((one, two, slower)).chosen is two
    assert "96%" in Profile((one, two, slower)).why


def test_nothing_that_works_leaves_the_fallback() -> None:
    profile = Profile((_measured(0, fault="no weights"),))
    assert profile.chosen is None
    assert "torch" in profile.why


def _found(*items: tuple[int, float, float]) -> Detections:
    boxes = tuple(Detection(kind, str(kind), conf, (x, 0.0, x + 100, 100.0)) for kind, conf, x in items)
    return Detections(boxes, 640, 480, "m", "e", 1, 1.0)


@pytest.mark.parametrize(
    ("found", "precision", "same"),
    [
        (_found((1, 0.90, 0), (2, 0.50, 300)), "fp32", True),
        (_found((2, 0.505, 300.2), (1, 0.895, 0)), "fp32", True),
        (_found((1, 0.90, 0), (3, 0.50, 300)), "fp32", False),
        (_found((1, 0.90, 0), (2, 0.52, 300)), "fp32", False),
        (_found((1, 0.90, 0), (2, 0.50, 302)), "fp32", False),
        (_found((1, 0.90, 0)), "fp32", False),
        (_found((1, 0.90, 0), (2, 0.50, 300), (2, 0.50, 300)), "fp32", False),
        (_found((1, 0.90, 0), (2, 0.50, 300), (7, 0.355, 200)), "fp32", True),
        (_found((1, 0.85, 0), (2, 0.55, 305)), "bf16", True),
        (_found((1, 0.60, 0), (2, 0.50, 300)), "bf16", False),
        (_found(), "bf16", False),
    ],
)
def test_an_engine_must_detect_what_the_reference_does(found: Detections, precision: str, same: bool) -> None:
    assert agrees(found, _found((1, 0.90, 0), (2, 0.50, 300)), precision, least=0.35) is same


def test_drift_is_a_lasting_change_and_no_hiccup() -> None:
    assert not has_drifted(40, [41, 39, 400])
    assert has_drifted(40, [70, 90, 41])
    assert has_drifted(40, [20, 21, 60])
    assert not has_drifted(40, [])


def test_a_profile_is_read_back_and_a_broken_one_is_none(tmp_path: Path) -> None:
    profile = Profile((_measured(20), _measured(0, fault="no")), 1.5, ((7, 0.5, 0.0, 1.0, 2.0, 3.5),))
    file = tmp_path / "profiles" / "one.json"
    assert read(file) is None
    write(file, profile)
    assert read(file) == profile
    assert [each.name for each in file.parent.iterdir()] == ["one.json"]
    for damage in (
        b"{",
        b"[]",
        b'{"measured": [{"candidate": {}}], "measured_at": 1}',
        b'{"measured": [], "measured_at": 1}',
    ):
        file.write_bytes(damage)
        assert read(file) is None


def test_other_weights_and_other_choices_have_other_profiles(tmp_path: Path) -> None:
    weights = tmp_path / "a.pt"
    weights.write_bytes(b"1")
    names = {profile_file(tmp_path, ChildSpec(str(weights)), choices) for choices in (candidates(2), candidates(4))}
    weights.write_bytes(b"22")
    names.add(profile_file(tmp_path, ChildSpec(str(weights)), candidates(2)))
    names.add(profile_file(tmp_path, ChildSpec(str(weights)), candidates(2), "a card"))
    assert len(names) == 4


def test_a_candidate_becomes_what_its_child_is_told() -> None:
    spec = serving(ChildSpec("w.pt", confidence=0.4), Candidate("openvino", "bf16", 1, 3, pinned=True))
    assert (spec.engine.rpartition(":")[2], spec.precision, spec.threads, spec.pinned, spec.confidence) == (
        "OpenVinoEngine",
        "bf16",
        3,
        True,
        0.4,
    )


async def test_a_folder_that_cannot_be_written_costs_only_the_keeping(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile = Profile((_measured(20),))

    async def measured(*arguments: object) -> Profile:
        return profile

    monkeypatch.setattr("aiworker.inference.profiling.measure_all", measured)
    in_the_way = tmp_path / "profiles"
    in_the_way.write_text("not a folder")
    found = await known_or_measured(in_the_way / "one.json", ChildSpec("w.pt"), [], Sample(b""))
    assert found is profile


async def test_weights_that_torch_cannot_load_are_tried_once_and_that_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Candidate] = []

    async def no_reference(*arguments: object) -> None:
        return None

    async def fails(spec: ChildSpec, candidate: Candidate, *arguments: object) -> Measured:
        tried.append(candidate)
        return Measured(candidate, fault="inference_unavailable")

    monkeypatch.setattr(profiling, "_reference", no_reference)
    monkeypatch.setattr(profiling, "measure", fails)
    for _ in range(2):
        found = await known_or_measured(
            tmp_path / "one.json", ChildSpec("w.pt", device="cpu"), candidates(2), Sample(b"")
        )
        assert found.chosen is None
    assert [each.engine for each in tried] == ["torch", "torch"]


async def test_an_export_that_failed_is_tried_once_and_again_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    disk_is_full = True

    async def reference(*arguments: object) -> Detections:
        return Detections((), 1, 1, "torch", "w", 1.0, 1)

    async def measured(spec: ChildSpec, candidate: Candidate, *arguments: object) -> Measured:
        tried.append(candidate.engine)
        fails = disk_is_full and candidate.engine != "torch"
        fault = "inference_unavailable: ExportFailed: No space left on device" if fails else ""
        return Measured(candidate, images_per_s=1.0 if candidate.engine == "torch" else 2.0, fault=fault)

    monkeypatch.setattr(profiling, "_reference", reference)
    monkeypatch.setattr(profiling, "measure", measured)

    async def start() -> str:
        tried.clear()
        found = await known_or_measured(
            tmp_path / "one.json", ChildSpec("w.pt", device="cpu"), candidates(1), Sample(b"")
        )
        assert [each.candidate for each in found.measured] == candidates(1)
        assert found.chosen is not None
        return found.chosen.candidate.engine

    assert (await start(), tried) == ("torch", ["torch", "onnx"])
    assert (await start(), tried) == ("torch", ["onnx"]), "still full: what is known holds"
    disk_is_full = False
    assert (await start(), tried) == ("onnx", ["onnx", "torch", "onnx", "openvino", "openvino"])
    assert (await start(), tried) == ("onnx", [])


class _FailsUnderLoad:
    """One picture is answered, several at a time are not."""

    def __init__(self, specs: Sequence[ChildSpec], rules: PoolRules) -> None:
        self.asked = 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def wait_ready(self) -> None: ...

    async def detect(self, image: bytes, deadline: Deadline) -> Detections:
        self.asked += 1
        if self.asked > 1:
            raise InferenceUnavailable("AcceleratorError")
        return Detections((), 1, 1, model="m", engine="e", batch_size=1, inference_ms=1.0)


async def test_a_candidate_that_fails_under_load_is_at_fault_and_nobody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "InferencePool", _FailsUnderLoad)
    candidate = Candidate("torch-graph", "fp16", 2, 2)
    found = await profiling.measure(ChildSpec("w", device="cuda:0"), candidate, profiling.Sample(b"", 0.1), None)
    assert found.fault == "inference_unavailable: AcceleratorError"


class _Slow(_FailsUnderLoad):
    memory_mb = 100.0

    async def detect(self, image: bytes, deadline: Deadline) -> Detections:
        await asyncio.sleep(0.03)
        return Detections((), 1, 1, model="m", engine="e", batch_size=1, inference_ms=30.0)


async def test_a_model_that_takes_longer_than_the_sample_is_measured_for_longer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With no answer at all in time, every candidate would be as good as any other."""
    monkeypatch.setattr(profiling, "InferencePool", _Slow)
    found = await profiling.measure(
        ChildSpec("w", device="cpu"), Candidate("torch", "fp32", 1, 1), Sample(b"", 0.01), None
    )
    assert 20 < found.images_per_s <= 100
