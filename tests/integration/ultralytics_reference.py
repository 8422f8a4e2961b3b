"""What ultralytics itself finds, in a process of its own: WEIGHTS OUTPUT_FOLDER SHARED_MODELS PHOTO...

Writes expected.json: for each family of weights its file and the boxes on each photo; and the checksum of LetterBox's
result for some sizes. YOLO11 comes from an ONNX file's numbers, the segmentation model has YOLOv8's boxes with masks
that mean nothing.
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
import openvino
import torch
from ultralytics import YOLO
from ultralytics.data.augment import LetterBox
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.nn.tasks import DetectionModel, SegmentationModel

# `warmup` only imports torchvision and, on a CPU, does nothing else.
AutoBackend.warmup = lambda self, *args, **options: None
CONFIDENCE = 0.25
SIZES = [(640, 480), (481, 640), (100, 75), (3000, 1), (333, 500), (1920, 1080), (427, 640), (37, 1000), (2, 2)]


def main(weights: Path, folder: Path, shared: Path, photos: list[Path]) -> None:
    yolo8 = YOLO(str(weights)).model
    files = {"yolov8": weights, "yolov8-seg": _saved(_segmentation(yolo8), yolo8, "segment", folder)}
    if (numbers := shared / "yolo11n.onnx").exists():
        files["yolo11"] = _saved(_yolo11(numbers), yolo8, "detect", folder)
    if (yolo26 := shared / "yolo26n-dq8.pt").exists():
        files["yolo26"] = yolo26
    families = {
        name: {"weights": str(file), "found": {str(photo): found for photo, found in _found(file, name, photos)}}
        for name, file in files.items()
    }
    letterboxes = [[*size, _letterbox(*size)] for size in SIZES]
    (folder / "expected.json").write_text(json.dumps({"families": families, "letterboxes": letterboxes}))


def _found(file: Path, name: str, photos: list[Path]) -> list[tuple[Path, list[list[float]]]]:
    model = YOLO(str(file))
    # Asks for YOLO26's head without suppression.
    options = {"nms": False} if name == "yolo26" else {}
    found = []
    for photo in photos:
        boxes = model.predict(str(photo), conf=CONFIDENCE, device="cpu", verbose=False, **options)[0].boxes
        rows = zip(boxes.cls.tolist(), boxes.conf.tolist(), boxes.xyxy.tolist(), strict=True)
        found.append((photo, [[int(kind), conf, *box] for kind, conf, box in rows]))
    return found


def _segmentation(yolo8: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(0)
    model = SegmentationModel("yolov8n-seg.yaml", nc=80, verbose=False)
    state = model.state_dict()
    state.update({name: value for name, value in yolo8.float().state_dict().items() if name in state})
    # So that some masks are empty and their boxes have to go.
    state["model.22.proto.cv3.bn.bias"] -= 0.02
    model.load_state_dict(state)
    return model


def _yolo11(numbers: Path) -> torch.nn.Module:
    """The file's convolutions have their normalisation in them already; here it does nothing more."""
    nodes = openvino.Core().read_model(numbers).get_ops()
    kept = {node.get_friendly_name(): node.data for node in nodes if node.get_type_name() == "Constant"}
    model = DetectionModel("yolo11n.yaml", nc=80, verbose=False)
    state = model.state_dict()
    for name, value in state.items():
        if name in kept and kept[name].shape == tuple(value.shape):
            state[name] = torch.from_numpy(np.array(kept[name]))
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            state[f"{name}.weight"] = torch.full_like(module.weight, (1 + module.eps) ** 0.5)
            state[f"{name}.bias"] = torch.from_numpy(np.array(kept[f"{name.removesuffix('.bn')}.conv.bias"]))
    model.load_state_dict(state)
    return model


def _saved(model: torch.nn.Module, named_like: torch.nn.Module, task: str, folder: Path) -> Path:
    model.names, model.args, model.task = named_like.names, {}, task
    file = folder / f"{'yolo11n' if task == 'detect' else 'yolov8n-seg'}.pt"
    torch.save({"model": model.eval()}, file)
    return file


def _letterbox(width: int, height: int) -> str:
    noise = np.random.default_rng(1).integers(0, 256, (height, width, 3), np.uint8)
    boxed = LetterBox((640, 640), auto=True, stride=32)(image=noise)
    return hashlib.sha256(repr(boxed.shape).encode() + np.ascontiguousarray(boxed).tobytes()).hexdigest()


if __name__ == "__main__":
    given = [Path(argument) for argument in sys.argv[1:]]
    main(given[0], given[1], given[2], given[3:])
