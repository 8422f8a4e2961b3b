from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from aiworker.cli import doctor, profiles
from aiworker.cli import placement as placing
from aiworker.cli.placement import placement_for
from aiworker.domain.errors import ConfigurationError
from aiworker.inference.devices import Gpu, Machine
from aiworker.inference.messages import ChildSpec
from aiworker.inference.placement import Placement, Wishes, place
from aiworker.inference.profile import Candidate, Measured, Profile
from aiworker.settings import Settings, load_settings

_CARDS = Machine(8, 32_000.0, 30_000.0, (Gpu(0, "Card", 24_000.0, 23_000.0), Gpu(1, "Card", 24_000.0, 0.0)))


@pytest.mark.parametrize(
    ("installed", "expected"), [("10.1", ["torch", "torch-graph", "tensorrt"]), ("", ["torch", "torch-graph"])]
)
async def test_on_a_card_the_engine_is_measured_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, installed: str, expected: list[str]
) -> None:
    asked: list[tuple[Path, ChildSpec, Sequence[Candidate]]] = []

    def here(settings: Settings, *, processes: int = 0, threads: int = 0) -> tuple[Machine, Placement]:
        return _CARDS, place(_CARDS, Wishes(processes=processes, threads=threads))

    async def measured(file: Path, spec: ChildSpec, choices: Sequence[Candidate], *rest: object) -> Profile:
        asked.append((file, spec, choices))
        return Profile(tuple(Measured(each, images_per_s=rate) for rate, each in enumerate(choices, 1)))

    monkeypatch.setattr(profiles, "placement_for", here)
    monkeypatch.setattr(profiles, "known_or_measured", measured)
    monkeypatch.setattr(profiles, "version", lambda package: installed)
    weights = tmp_path / "a.pt"
    weights.write_bytes(b"numbers")
    plan = await profiles.plan_for(load_settings(inference_engine="auto", models_dir=tmp_path), weights)
    ((file, spec, choices),) = asked
    assert [(each.engine, each.processes, each.threads) for each in choices] == [
        (engine, *split) for engine in expected for split in ((1, 8), (2, 4), (4, 2))
    ]
    assert (spec.device, file.parent.parent) == ("cuda:0", tmp_path / ".cache")
    engine = {"tensorrt": "TensorRtEngine", "torch-graph": "GraphedTorchEngine"}[expected[-1]]
    found = [(child.engine.rpartition(":")[2], child.device, child.threads) for child in plan.specs]
    assert found == [(engine, "cuda:0", 2)] * 4


@pytest.mark.parametrize(("wished", "processes"), [(0, {1}), (4, {1})])
async def test_only_what_fits_into_the_budget_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, wished: int, processes: set[int]
) -> None:
    machine = Machine(2, 16_000.0, 12_000.0)
    asked: list[Candidate] = []

    async def measured(file: Path, spec: ChildSpec, choices: Sequence[Candidate], *rest: object) -> Profile:
        asked.extend(choices)
        return Profile(tuple(Measured(each, images_per_s=each.processes) for each in choices))

    monkeypatch.setattr(placing, "read_machine", lambda *_: machine)
    monkeypatch.setattr(profiles, "known_or_measured", measured)
    weights = tmp_path / "a.pt"
    weights.write_bytes(b"numbers")
    settings = load_settings(
        inference_engine="auto", models_dir=tmp_path, memory_budget_mb=700, inference_processes=wished
    )
    plan = await profiles.plan_for(settings, weights)
    assert {each.processes for each in asked} == processes
    assert [spec.threads for spec in plan.specs] == [2]


async def test_a_wish_that_cards_do_not_share_evenly_is_measured_as_the_fullest_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(8, 32_000.0, 30_000.0, tuple(Gpu(index, "Card", 24_000.0, 23_000.0) for index in range(2)))
    asked: list[Candidate] = []

    async def measured(file: Path, spec: ChildSpec, choices: Sequence[Candidate], *rest: object) -> Profile:
        asked.extend(choices)
        return Profile(tuple(Measured(each, images_per_s=1.0) for each in choices))

    monkeypatch.setattr(placing, "read_machine", lambda *_: machine)
    monkeypatch.setattr(profiles, "known_or_measured", measured)
    weights = tmp_path / "a.pt"
    weights.write_bytes(b"numbers")
    settings = load_settings(
        inference_engine="auto", models_dir=tmp_path, memory_budget_mb=5_000, inference_processes=3
    )
    plan = await profiles.plan_for(settings, weights)
    assert {(each.processes, each.threads) for each in asked} == {(2, 2)}
    assert [(spec.device, spec.threads) for spec in plan.specs] == [("cuda:0", 2), ("cuda:0", 2), ("cuda:1", 2)]


@pytest.mark.parametrize("engine", ["auto", "torch"])
def test_the_placement_that_is_shown_is_the_one_that_was_measured_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    machine = Machine(4, 16_000.0, 12_000.0)
    monkeypatch.setattr(
        profiles,
        "placement_for",
        lambda _, processes=0, threads=0: (machine, place(machine, Wishes(processes=processes, threads=threads))),
    )
    weights = tmp_path / "a.pt"
    weights.write_bytes(b"numbers")
    settings = load_settings(inference_engine=engine, models_dir=tmp_path, yolo_model=str(weights))
    files: list[Path] = []

    def kept(file: Path) -> Profile | None:
        files.append(file)
        choice = Candidate("openvino", "fp32", 2, 2)
        return Profile((Measured(choice, images_per_s=25.0),)) if len(files) > 1 else None

    monkeypatch.setattr(profiles, "read", kept)
    _, before = profiles.foreseen(settings)
    _, after = profiles.foreseen(settings)
    assert [(child.device, child.threads) for child in before.children] == [("cpu", 1)] * 4
    if engine == "torch":
        assert (files, after) == ([], before)
        return
    assert "measures engines" in before.notes[-1]
    assert [(child.device, child.threads) for child in after.children] == [("cpu", 2)] * 2
    assert after.notes[-1] == "measured here: openvino, fp32, 2 x 2; the fastest: 25.0 images/s"


@pytest.mark.parametrize(
    ("missing", "measured", "refused"),
    [
        ("onnx", {"torch"}, {"onnx", "openvino"}),
        ("onnxruntime", {"torch", "openvino"}, {"onnx"}),
        ("openvino", {"torch", "onnx"}, {"openvino"}),
    ],
)
async def test_an_engine_whose_packages_are_missing_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str, measured: set[str], refused: set[str]
) -> None:
    asked: list[Candidate] = []

    async def measure(file: Path, spec: ChildSpec, choices: Sequence[Candidate], *rest: object) -> Profile:
        asked.extend(choices)
        return Profile()

    monkeypatch.setattr(profiles, "known_or_measured", measure)
    monkeypatch.setattr(profiles, "version", lambda package: "" if package == missing else "1.0")
    weights = tmp_path / "a.pt"
    weights.write_bytes(b"numbers")
    settings = load_settings(inference_engine="auto", inference_device="cpu", models_dir=tmp_path)
    await profiles.plan_for(settings, weights)
    assert {each.engine for each in asked} == measured
    for engine in ("torch", "onnx", "openvino"):
        settings = load_settings(inference_engine=engine, inference_device="cpu", models_dir=tmp_path)
        (finding,) = await doctor._check_engine(settings)
        if engine in refused:
            with pytest.raises(ConfigurationError, match=f"INFERENCE_ENGINE is {engine}, but {missing} is not"):
                await profiles.plan_for(settings, weights)
            assert (finding.verdict, missing in finding.found) == (doctor.Verdict.FAIL, True)
        else:
            await profiles.plan_for(settings, weights)
            assert finding.verdict is doctor.Verdict.OK


def test_an_engine_that_is_for_one_kind_of_device_is_placed_there_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = _CARDS
    monkeypatch.setattr(placing, "read_machine", lambda ollama: machine)
    for engine, device in (("auto", "cuda:0"), ("torch", "cuda:0"), ("tensorrt", "cuda:0"), ("onnx", "cpu")):
        _, placement = placement_for(load_settings(inference_engine=engine))
        assert {child.device for child in placement.children} == {device}, engine
    with pytest.raises(ConfigurationError, match="INFERENCE_ENGINE is openvino, which serves CPUs"):
        placement_for(load_settings(inference_engine="openvino", inference_device="cuda"))
    with pytest.raises(ConfigurationError, match="needs a GPU, but INFERENCE_DEVICE is cpu"):
        placement_for(load_settings(inference_engine="torch-graph", inference_device="cpu"))
    machine = Machine(8, 32_000.0, 30_000.0)
    with pytest.raises(ConfigurationError, match="needs a GPU, but no GPU: NVML finds none that"):
        placement_for(load_settings(inference_engine="tensorrt"))
