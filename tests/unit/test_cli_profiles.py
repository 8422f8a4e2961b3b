from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from aiworker.cli import profiles
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
