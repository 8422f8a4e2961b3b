"""What of the torch engine needs no GPU to be shown: which parts of ultralytics it asks for what."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from aiworker.inference.lanes.process import child_environment

_CARD = """
import contextlib, itertools, sys
from pathlib import Path
from types import SimpleNamespace
from ultralytics.utils import nms
import numpy as np, torch
from aiworker.inference.engines import torch_engine as engine
from aiworker.inference.engines.exports import Export
from aiworker.inference.engines.heads import Head
from aiworker.inference.interface import Prepared
from aiworker.inference.messages import ChildSpec

asked = {}

class Network(torch.nn.Module):
    task = "detect"
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Identity()
        self.head.stride, self.head.reg_max = torch.tensor([8.0, 16.0, 32.0]), 1
        self.model = [self.head]
    def forward(self, batch):
        asked["ran"] = asked.get("ran", 0) + 1
        self.head.anchors = torch.zeros(batch.shape[2:])
        count = sum(batch.shape[2] // side * (batch.shape[3] // side) for side in (8, 16, 32))
        boxes, scores = torch.zeros(len(batch), 4, count), torch.full((len(batch), 1, count), -9.0)
        # The cell in row 1 and column 3, and a worse one beside it that means the same.
        place = batch.shape[3] // 8 + 3
        boxes[:, :, place] = torch.tensor([0.75, 0.125, 1.75, 1.125])
        boxes[:, :, place + 1] = torch.tensor([1.75, 0.125, 0.75, 1.125])
        scores[:, 0, place], scores[:, 0, place + 1] = 2.2, 2.1
        return None, {"boxes": boxes, "scores": scores}

class Backend(torch.nn.Module):
    def __init__(self, model, **options):
        super().__init__()
        asked["opened"] = (model, options)
        self.backend = SimpleNamespace(names={0: "thing"}, end2end=False, task="detect", model=Network())
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
empty = torch.empty
torch.empty = lambda *shape, dtype=None, **where: empty(*shape, dtype=dtype)
folder = Path(sys.argv[1])
weights = folder / "model.pt"
weights.write_bytes(b"numbers")
spec = ChildSpec(str(weights), device="cuda:0")
"""

_ALL = """
head = Head({0: "thing"}, "detect", (8, 16, 32), 16, False)
cuda = engine.TorchEngine(spec)
cuda.load()
_, options = asked["opened"]
assert options["fp16"] is True and options["channels_last"] is True, options
assert (cuda.label, cuda.pass_size) == ("torch-cuda-fp16", 64)
picture = Prepared(np.zeros((32, 64, 3), np.uint8), 128, 64)
twin = Prepared(np.zeros((32, 64, 3), np.uint8), 128, 64)
(box,), (other,) = cuda.detect([picture, twin])
assert box == other and box[0] == 0 and np.allclose(box[2:], [44, 22, 84, 42]), box

out = folder / "export"
out.mkdir()
engine.write_tensorrt(str(weights), out)
assert [each.name for each in out.iterdir()] == ["network.engine"]
assert asked["exported"]["format"] == "engine" and asked["exported"]["dynamic"] is True
engine.ensure_export = lambda weights, kind, cache_dir: Export(out, head)
rt = engine.TensorRtEngine(spec)
rt.load()
assert asked["opened"][0] == str(out / "network.engine")
assert rt.queue is None, "its suppression waits for the card"
assert rt.label == "tensorrt-cuda-fp16" and rt.pass_size == asked["exported"]["batch"]
clock = itertools.count(0, 1000)
nms.time.time = lambda: next(clock)
for (box,) in rt.detect([picture, picture]):
    # However slow the machine, the rest of a batch is not blanked.
    assert box[0] == 0 and np.allclose(box[2:], [44, 22, 84, 42]), box
assert next(clock) > 0
class Graph:
    played = 0
    def replay(self):
        Graph.played += 1

torch.cuda.CUDAGraph = Graph
torch.cuda.Stream = torch.cuda.current_stream = lambda: SimpleNamespace(wait_stream=lambda other: None)
torch.cuda.stream = lambda of: contextlib.nullcontext()
def recording(graph, *, capture_error_mode):
    # Threads that decode must be free to take pinned memory meanwhile.
    assert capture_error_mode == "thread_local"
    return contextlib.nullcontext()
torch.cuda.graph = recording
graphed = engine.GraphedTorchEngine(spec)
graphed.load()
assert graphed.label == "torch-graph-cuda-fp16"
asked["ran"] = 0
tall = Prepared(np.full((64, 32, 3), 51, np.uint8), 64, 128)
counts = []
for pictures in ([picture] * 3, [picture] * 4, [picture] * 3, [tall], [tall], [tall]):
    assert len(graphed.detect(pictures)) == len(pictures)
    counts.append((asked["ran"], Graph.played))
# 3 pictures are run as 4; the first time as always, the second recorded after three to warm up, then only played.
assert counts == [(1, 0), (5, 1), (5, 2), (6, 2), (10, 3), (10, 4)], counts
wide, high = graphed._recorded.values()
assert wide._given.shape == (4, 32, 64, 3) and torch.all(high._given == 51)
assert (32, 64) in [each.shape for each in wide._held], "what the first graph reads outlives passes of other shapes"
for number in range(engine._MOST_GRAPHS):
    strange = Prepared(np.zeros((32, 32 * (3 + number), 3), np.uint8), 64, 64)
    graphed.detect([strange])
    graphed.detect([strange])
assert len(graphed._recorded) == engine._MOST_GRAPHS and wide not in graphed._recorded.values()

engine._device = lambda name: SimpleNamespace(type="cpu")
try:
    engine.GraphedTorchEngine(spec)
except ValueError as error:
    print(error)
try:
    engine.TensorRtEngine(spec)
except ValueError as error:
    print(error)
exported = weights.with_suffix(".onnx")
exported.write_bytes(b"numbers")
try:
    engine.raw_network(str(exported))
except ValueError as error:
    print(error)
"""


_QUEUED = """
class Event:
    waited = made = 0
    def __init__(self, blocking):
        assert blocking, "a thread that waits takes no core from those that decode"
    def record(self):
        Event.made += 1
    def query(self):
        return Event.waited == Event.made
    def synchronize(self):
        Event.waited += 1

torch.cuda.Event = Event

class Busy(Network):
    def __init__(self, masks):
        super().__init__()
        self.masks, self.crowd = masks, 40
        self.task = "segment" if masks else "detect"
    def forward(self, batch):
        count = sum(batch.shape[2] // side * (batch.shape[3] // side) for side in (8, 16, 32))
        random = torch.Generator().manual_seed(len(batch))
        def numbers(*shape):
            return torch.rand(len(batch), *shape, generator=random) * 6
        scores = torch.full((len(batch), 2, count), -9.0)
        # So many for the first picture, fewer for each that follows, and none for the last.
        for place in range(len(batch) - 1):
            some = torch.randperm(count, generator=random)[: self.crowd >> place]
            scores[place, place % 2, some] = torch.rand(len(some), generator=random) * 4
        raw = {"boxes": numbers(4, count), "scores": scores}
        if self.masks:
            raw |= {"mask_coefficient": numbers(3, count) - 3, "proto": numbers(3, 16, 16).half() - 3}
        return None, raw

for masks in (False, True):
    network = Busy(masks)
    def opened(model, **options):
        names = {0: "thing", 1: "other"}
        inner = SimpleNamespace(names=names, end2end=False, task=network.task, model=network)
        return SimpleNamespace(backend=inner, eval=lambda: None)
    engine.AutoBackend = opened
    card = engine.TorchEngine(spec)
    card.load()
    assert card.queue is card
    card.warm_up()
    assert Event.waited == Event.made > 0, "a card that cannot queue shows at the start"
    groups = [[Prepared(np.full((64, 64, 3), 9 * size, np.uint8), 128, 128)] * size for size in (1, 2, 5)]
    expected = [card.detect(group) for group in groups]
    assert [len(each) for each in expected[2]][-1] == 0 < len(expected[2][0])
    begun = [card.begin(group) for group in groups]
    assert not begun[0].ready(), "nothing has waited for the card yet"
    assert [each.take() for each in begun] == expected
    network.crowd = 84
    for engine._ROOM in (0, 83, 84, 85, 1000):
        engine._ROOM_EACH = 0
        assert card.begin(groups[2]).take() == card.detect(groups[2]), engine._ROOM
    engine._ROOM, engine._ROOM_EACH = 1024, 64

def unknown(*arguments, **options):
    raise NotImplementedError("Could not run 'aten::nonzero_static' with arguments from the 'CUDA' backend")

torch.nonzero_static = unknown
card = engine.TorchEngine(spec)
card.load()
card.warm_up()
assert card.queue is None
"""


def _ran(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-c", _CARD + code, str(folder)],
        env=child_environment(os.environ, threads=1) | {"YOLO_CONFIG_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done


def test_cuda_runs_in_fp16_graphs_are_recorded_once_and_tensorrt_runs_its_export(tmp_path: Path) -> None:
    done = _ran(_ALL, tmp_path)
    assert "the cores decode, not the card" in done.stderr
    assert done.stdout.splitlines() == [
        "CUDA graphs need a CUDA device",
        "TensorRT needs a CUDA device",
        "weights are a checkpoint, NAME.pt, from which exports are made, not model.onnx",
    ]


def test_a_queued_pass_finds_what_one_that_is_waited_for_finds_in_crowds_too(tmp_path: Path) -> None:
    done = _ran(_QUEUED, tmp_path)
    assert "one pass at a time: Could not run 'aten::nonzero_static'" in done.stderr
