"""benchmarks/gpu.py where no GPU is: every part runs, on an engine that fails as CUDA does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[2]


def test_every_part_runs_and_no_picture_is_lost_while_memory_goes(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    program = [sys.executable, str(_ROOT / "benchmarks" / "gpu.py"), "--pretend", "--quick", "--json", str(figures)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(figures.read_text())
    assert found["card"] == "pretended, 2 cores"
    lost = [each["value"] for each in found["figures"] if "failed" in each["name"]]
    assert lost == [0, 0, 0]
    rates = [each["value"] for each in found["figures"] if each["unit"] == "images/s"]
    assert len(rates) == 5
    assert min(rates) > 0
