"""What of the torch engine needs no GPU to be shown: which parts of ultralytics it asks for what."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

_CODE = """
import sys
from pathlib import Path
from types import SimpleNamespace
import numpy as np, torch
from aiworker.inference.engines import torch_engine as engine
from aiworker.inference.engines.exports import Export
from aiworker.inference.engines.heads import Head
from aiworker.inference.interface import Prepared
from aiworker.inference.messages import ChildSpec

asked = {}

class Backend(torch.nn.Module):
    def __init__(self, model, **options):
        super().__init__()
        asked["opened"] = (model, options)
        self.backend = SimpleNamespace(stride=32, names={0: "thing"}, fp16=False, end2end=False, task="detect",
                                       model=SimpleNamespace(task="detect"))
    def forward(self, batch):
        answer = torch.zeros(len(batch), 5, 3)
        answer[:, :, 1] = torch.tensor([32.0, 16.0, 20.0, 10.0, 0.9])
        return [answer]

class Yolo:
    def __init__(self, file):
        self.file = Path(file)
    def export(self, **options):
        asked["exported"] = options
        made = self.file.with_suffix(".engine")
        made.write_bytes(b"plan")
        return str(made)

engine.AutoBackend, engine.YOLO = Backend, Yolo
# No GPU here: the device is said to be one, and its tensors stay where they are.
engine._device = lambda name: SimpleNamespace(type="cuda", index=0)
torch.Tensor.to = lambda self, *to, **options: self
folder = Path(sys.argv[1])
weights = folder / "model.pt"
weights.write_bytes(b"numbers")
head = Head({0: "thing"}, "detect", (8, 16, 32), 16, False)

spec = ChildSpec(str(weights), device="cuda:0")
cuda = engine.TorchEngine(spec)
cuda.load()
_, options = asked["opened"]
assert options["fp16"] is True and options["channels_last"] is True, options
assert (cuda.label, cuda.pass_size) == ("torch-cuda-fp16", 64)
picture = Prepared(np.zeros((32, 64, 3), np.uint8), 128, 64)
((box,),) = cuda.detect([picture])
assert box[0] == 0 and np.allclose(box[2:], [44, 22, 84, 42]), box

out = folder / "export"
out.mkdir()
engine.write_tensorrt(str(weights), out)
assert [each.name for each in out.iterdir()] == ["network.engine"]
assert asked["exported"]["format"] == "engine" and asked["exported"]["dynamic"] is True
engine.ensure_export = lambda weights, kind, cache_dir: Export(out, head)
rt = engine.TensorRtEngine(spec)
rt.load()
assert asked["opened"][0] == str(out / "network.engine")
assert rt.label == "tensorrt-cuda-fp16" and rt.pass_size == asked["exported"]["batch"]
assert len(rt.detect([picture, picture])) == 2
engine._device = lambda name: SimpleNamespace(type="cpu")
try:
    engine.TensorRtEngine(spec)
except ValueError as error:
    print(error)
"""


def test_cuda_runs_in_fp16_and_tensorrt_on_its_export(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _CODE, str(tmp_path)], capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip() == "TensorRT needs a CUDA device"
