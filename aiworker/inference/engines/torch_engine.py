"""YOLO on torch, and the network that other engines' exports are made of. The only module that imports torch and
ultralytics, and it is imported in children only.

ultralytics' `predict` is not used: it sets its own thread count, keeps two copies of the model, warms up through
torchvision, and its suppression step has a time limit after which the rest of a batch comes back empty.
See docs/adr/003-engines-without-torchvision.md.
"""

from __future__ import annotations

import math
import shutil
import sys
import warnings
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from ultralytics.models import YOLO
from ultralytics.nn.autobackend import AutoBackend
from ultralytics.utils import nms

from aiworker.inference.engines.exports import ensure_export
from aiworker.inference.engines.heads import Floats, Head, Limits, RawOutput, find_boxes_of, visible
from aiworker.inference.engines.letterbox import boxes_of, prepare
from aiworker.inference.interface import Answer, Box, PassQueue, Picture, Pixels, Prepared, Reader
from aiworker.inference.messages import MAX_BATCH, ChildSpec

_TASKS = ("detect", "segment")
_TENSORRT = "network.engine"
_TENSORRT_BATCH = 16
_MOST_GRAPHS = 16
_WARM_UPS = 3
_ROOM, _ROOM_EACH = 1024, 64
_Part = TypeVar("_Part")


class TorchEngine:
    """YOLOv8, YOLO11 and YOLO26 weights (.pt) for detection or segmentation: fp32 on a CPU, fp16 on CUDA.

    To a card go bytes, and what comes back are the numbers of those few anchors that may be something.
    """

    _runs_on = "torch"

    def __init__(self, spec: ChildSpec) -> None:
        self._spec = spec
        self._device = _device(spec.device)
        self._limits = Limits(spec.confidence, spec.iou, spec.max_detections)
        self._model: AutoBackend | None = None
        self._head: Head | None = None
        self._reader: Reader | None = None
        self._queues = self._device.type == "cuda"

    def load(self) -> None:
        """Raises FileNotFoundError, and what ultralytics raises for a file that is no checkpoint."""
        cuda = self._device.type == "cuda"
        self._model = _checkpoint(self._spec.weights, self._device, fp16=cuda, channels_last=True if cuda else None)
        self._head = _head_of(self._model.backend)
        self._network = RawNetwork(self._model.backend.model)
        if cuda:
            self._reader = _card_reader(self._device, self._spec.image_size, max(self._head.strides))
        # Loading may change it, so this comes last.
        torch.set_num_threads(self._spec.threads)

    def warm_up(self) -> None:
        size = self._spec.image_size
        pictures = [Prepared(np.zeros((size, size, 3), np.uint8), size, size)]
        self.detect(pictures)
        if self.queue is not None:
            try:
                self.queue.begin(pictures).take()
            except NotImplementedError as error:
                # Releases of torch before 2.6 find so many candidates on a CPU only.
                print(f"one pass at a time: {error}"[:200], file=sys.stderr)  # noqa: T201
                self._queues = False

    @property
    def label(self) -> str:
        cuda = self._device.type == "cuda"
        reading = "-jpeg" if self._reader else ""
        return f"{self._runs_on}-{self._device.type}-{'fp16' if cuda else 'fp32'}{reading}"

    @property
    def pass_size(self) -> int:
        """On a CPU the time per picture is the same for 1 to 8, but memory and the wait for the first answer grow."""
        return MAX_BATCH if self._device.type == "cuda" else 2

    @property
    def reader(self) -> Reader | None:
        """The card's JPEG unit, where it has one and what reads from it is installed."""
        return self._reader

    @property
    def queue(self) -> PassQueue | None:
        return self if self._queues else None

    @property
    def names(self) -> Mapping[int, str]:
        return self._loaded(self._head).names

    def prepare(self, picture: Picture) -> Prepared:
        stride = max(self._loaded(self._head).strides)
        return prepare(picture, self._spec.image_size, stride, _pinned if self._device.type == "cuda" else np.empty)

    def detect(self, images: Sequence[Prepared]) -> list[tuple[Box, ...]]:
        with torch.inference_mode():
            batch = self._together([image.pixels for image in images])
            shape = (batch.shape[1], batch.shape[2])
            rows = self._rows(batch, shape)
        return [boxes_of(each, shape, image) for each, image in zip(rows, images, strict=True)]

    def begin(self, images: Sequence[Prepared]) -> Answer:
        """Waits for nothing, so there is room for so many candidates and no more: with those of crowds, `detect` finds
        the answer when it is taken.
        """
        with torch.inference_mode():
            batch = self._together([image.pixels for image in images])
            outputs = self.forward(batch)
            room = _ROOM + _ROOM_EACH * len(images)
            at = torch.nonzero_static(_may_be_something(outputs, self._limits), size=room)
            parts = (_table(outputs, at), *outputs[3:])
            found = [part.to("cpu", non_blocking=True) for part in parts]
            done = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
            done.record()
        shape = (batch.shape[1], batch.shape[2])

        def take() -> list[tuple[Box, ...]]:
            done.synchronize()
            count = int((found[0][:, 0] >= 0).sum())
            if count == room:
                return self.detect(images)
            rows = self._rows_of([found[0][:count], *found[1:]], len(images), shape)
            return [boxes_of(each, shape, image) for each, image in zip(rows, images, strict=True)]

        return _Queued(done.query, take)

    def _together(self, pictures: Sequence[Pixels]) -> torch.Tensor:
        """(pictures, h, w, 3) on the device, wherever each of them is now."""
        if all(isinstance(each, torch.Tensor) for each in pictures):
            return torch.stack(cast("list[torch.Tensor]", pictures))
        batch = torch.empty((len(pictures), *pictures[0].shape), dtype=torch.uint8, device=self._device)
        for place, each in zip(batch, pictures, strict=True):
            place.copy_(torch.as_tensor(each), non_blocking=True)
        return batch

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """The bare network on (pictures, h, w, 3) uint8: what `RawOutput` describes."""
        outputs: tuple[torch.Tensor, ...] = self._network(self._normalised(batch))
        return outputs

    def _rows(self, batch: torch.Tensor, shape: tuple[int, int]) -> list[Floats]:
        """What `find_boxes_of` gives for the pictures of `shape`."""
        outputs = self.forward(batch)
        table = _table(outputs, _may_be_something(outputs, self._limits).nonzero())
        found = [part.cpu() for part in (table, *(outputs[3:] if len(table) else ()))]
        return self._rows_of(found, len(batch), shape)

    def _rows_of(self, found: list[torch.Tensor], count: int, shape: tuple[int, int]) -> list[Floats]:
        """`found` are a `_table` of `count` pictures and, where it has any rows, the prototypes of their masks."""
        head = self._loaded(self._head)
        table, *prototypes = [each.numpy() for each in found]
        output, pictures = _raw(table, head, next(iter(prototypes), None))
        return find_boxes_of(output, pictures, count, head, shape, self._limits)

    def _normalised(self, batch: torch.Tensor) -> torch.Tensor:
        # On a card the view is what the network's memory format is: channels last.
        batch = batch.permute(0, 3, 1, 2)
        return (batch.half() if self._device.type == "cuda" else batch.contiguous().float()).div_(255)

    @staticmethod
    def _loaded(part: _Part | None) -> _Part:
        if part is None:
            raise RuntimeError("load() comes first")
        return part


@dataclass(frozen=True, slots=True)
class _Queued:
    ready: Callable[[], bool]
    take: Callable[[], list[tuple[Box, ...]]]


def _may_be_something(outputs: tuple[torch.Tensor, ...], limits: Limits) -> torch.Tensor:
    """(pictures, anchors): whether the best score is high enough."""
    return outputs[1].amax(1).float() > limits.least_score


def _table(outputs: tuple[torch.Tensor, ...], at: torch.Tensor) -> torch.Tensor:
    """A row for each (picture, anchor) of `at`: these two, and all that the network says of it, for one transfer."""
    picture, anchor = at.unbind(1)
    columns = [at, *(part[picture, :, anchor] for part in outputs[:3])]
    return torch.cat([column.float() for column in columns], 1)


def _raw(table: Floats, head: Head, prototypes: Floats | None) -> tuple[RawOutput, NDArray[np.intp]]:
    """The same, and whose each anchor is."""
    splits = np.cumsum([1, 1, 4 * head.bins, len(head.names)])
    (pictures,), (anchors,), sides, scores, coefficients = np.split(table.T, splits)
    masks = coefficients if len(coefficients) else None
    return RawOutput(sides, scores, masks, prototypes, anchors.astype(np.intp)), pictures.astype(np.intp)


def _card_reader(device: torch.device, size: int, stride: int) -> Reader | None:
    """None where the cores must decode, with the reason on stderr."""
    try:
        from aiworker.inference.engines.card_reader import CardReader  # noqa: PLC0415

        return CardReader(device, size, stride)
    except (ImportError, OSError, RuntimeError) as error:
        print(f"the cores decode, not the card: {type(error).__name__}: {error}", file=sys.stderr)  # noqa: T201
        return None


def _pinned(shape: tuple[int, ...], kind: type[np.uint8]) -> NDArray[np.uint8]:
    """Memory that a card can copy from while the CPU goes on."""
    memory: NDArray[np.uint8] = torch.empty(shape, dtype=torch.uint8, pin_memory=True).numpy()
    return memory


class GraphedTorchEngine(TorchEngine):
    """The same, with a pass's kernels recorded as a CUDA graph once its size and shape come a second time. They are
    then launched by one call instead of hundreds. Passes are filled up to a power of two, so that few are recorded.
    """

    _runs_on = "torch-graph"

    def __init__(self, spec: ChildSpec) -> None:
        super().__init__(spec)
        if self._device.type != "cuda":
            raise ValueError("CUDA graphs need a CUDA device")
        self._seen: set[tuple[int, ...]] = set()
        self._recorded: OrderedDict[tuple[int, ...], _Recorded] = OrderedDict()

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Valid until the next call."""
        size = len(batch)
        fill = batch[-1:].expand((1 << (size - 1).bit_length()) - size, *batch.shape[1:])
        full = torch.cat((batch, fill))
        return tuple(each[:size] for each in self._run(tuple(full.shape), full))

    def _run(self, shape: tuple[int, ...], full: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if shape not in self._seen:
            self._seen.add(shape)
            return super().forward(full)
        if shape not in self._recorded:
            if len(self._recorded) == _MOST_GRAPHS:
                self._recorded.popitem(last=False)
            self._recorded[shape] = _Recorded(super().forward, full, self._made)
        self._recorded.move_to_end(shape)
        return self._recorded[shape](full)

    def _made(self) -> list[torch.Tensor]:
        """What modules made for the last pass's shape and keep until another shape comes: a head's anchors."""
        modules = self._network.modules()
        return [each for module in modules for each in vars(module).values() if isinstance(each, torch.Tensor)]


class _Recorded:
    """One graph with the memory it reads and writes. An answer is valid until the next call."""

    def __init__(
        self,
        run: Callable[[torch.Tensor], tuple[torch.Tensor, ...]],
        example: torch.Tensor,
        read_by_graph: Callable[[], list[torch.Tensor]],
    ) -> None:
        self._given = example.clone()
        # What a first pass allocates and tunes must not be recorded.
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(_WARM_UPS):
                run(self._given)
        torch.cuda.current_stream().wait_stream(beside)
        self._graph = torch.cuda.CUDAGraph()
        # Threads that decode take pinned memory meanwhile, which would end a recording that forbids it to all threads.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._answer = run(self._given)
        self._held = read_by_graph()

    def __call__(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        self._given.copy_(batch)
        self._graph.replay()
        return self._answer


class TensorRtEngine(TorchEngine):
    """The same on TensorRT in fp16: an export that ultralytics makes, for this card and this TensorRT only."""

    _runs_on = "tensorrt"

    def __init__(self, spec: ChildSpec) -> None:
        super().__init__(spec)
        if self._device.type != "cuda":
            raise ValueError("TensorRT needs a CUDA device")

    @property
    def pass_size(self) -> int:
        return _TENSORRT_BATCH

    @property
    def queue(self) -> None:
        """Its suppression waits for the card, a step at a time."""

    def load(self) -> None:
        """Raises FileNotFoundError, ExportFailed, and what TensorRT raises."""
        export = ensure_export(self._spec.weights, "tensorrt", self._spec.cache_dir)
        self._head = export.head
        self._model = AutoBackend(str(export.folder / _TENSORRT), device=self._device, fp16=True, verbose=False)
        self._reader = _card_reader(self._device, self._spec.image_size, max(self._head.strides))

    def _rows(self, batch: torch.Tensor, shape: tuple[int, int]) -> list[Floats]:
        """The export ends with boxes, so that their suppression is ultralytics' too."""
        head = self._loaded(self._head)
        answer, prototypes = _unpacked(self._loaded(self._model)(self._normalised(batch).contiguous()))
        found = nms.non_max_suppression(
            answer,
            self._limits.confidence,
            self._limits.iou,
            max_det=self._limits.max_detections,
            nc=len(head.names),
            end2end=head.end_to_end,
            max_time_img=math.inf,
        )
        return [_with_mask(rows, prototypes, index, shape) for index, rows in enumerate(found)]


def write_onnx(network: torch.jit.ScriptModule, example: torch.Tensor, file: Path) -> None:
    """What `raw_network` gives, in fp32, for any number of pictures of any size. Raises what torch raises."""
    with warnings.catch_warnings():
        # The exporter that takes a traced network is the older of two, and says so.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (example,),
            str(file),
            dynamo=False,
            input_names=["pictures"],
            dynamic_axes={"pictures": {0: "pictures", 2: "height", 3: "width"}},
        )


def write_tensorrt(weights: str, folder: Path) -> None:
    """For any number of pictures up to a pass, of any size up to 640 pixels. Takes minutes, and a GPU."""
    copy = folder / Path(weights).name
    shutil.copyfile(weights, copy)
    try:
        # `nms=False` keeps the head that needs no suppression, where the checkpoint has one.
        made = YOLO(str(copy)).export(
            format="engine", quantize=16, dynamic=True, batch=_TENSORRT_BATCH, nms=False, device=0, verbose=False
        )
        Path(made).rename(folder / _TENSORRT)
    finally:
        copy.unlink()


class RawNetwork(torch.nn.Module):
    """Answers what `heads.RawOutput` describes, in that order, in front of the steps that `heads` takes."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self._model = model

    def forward(self, batch: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(pictures, 3, h, w) in 0..1."""
        _, raw = self._model(batch)
        raw = raw.get("one2one") or raw.get("one2many") or raw
        outputs = (raw["boxes"], raw["scores"])
        return (*outputs, raw["mask_coefficient"], raw["proto"]) if "proto" in raw else outputs


def raw_network(weights: str) -> tuple[torch.jit.ScriptModule, torch.Tensor, Head]:
    """The traced network in fp32 on the CPU, the input it was traced with, and what to know of its answers."""
    model = _checkpoint(weights, torch.device("cpu"), fp16=False, channels_last=False).backend
    example = torch.zeros(1, 3, 640, 640)
    with torch.no_grad():
        # The check runs the trace twice and compares names that ultralytics' heads make anew each time.
        network: torch.jit.ScriptModule = torch.jit.trace(  # type: ignore[no-untyped-call]
            RawNetwork(model.model), example, strict=False, check_trace=False
        )
    return network, example, _head_of(model)


def _head_of(model: Any) -> Head:
    """Of ultralytics' backend for a checkpoint."""
    last = model.model.model[-1]
    return Head(
        names={int(kind): str(name) for kind, name in model.names.items()},
        task=model.model.task,
        strides=tuple(int(stride) for stride in last.stride),
        bins=int(last.reg_max),
        end_to_end=bool(model.end2end),
    )


def _checkpoint(weights: str, device: torch.device, *, fp16: bool, channels_last: bool | None) -> AutoBackend:
    if not Path(weights).is_file():
        raise FileNotFoundError(f"no weights at {weights}")
    if Path(weights).suffix != ".pt":
        raise ValueError(f"weights are a checkpoint, NAME.pt, from which exports are made, not {Path(weights).name}")
    # `end2end` None keeps the head that the checkpoint was made for: YOLO26 answers without suppression.
    model: AutoBackend = AutoBackend(weights, device=device, fp16=fp16, channels_last=channels_last, verbose=False)
    model.eval()
    task = getattr(model.backend.model, "task", None) or model.backend.task
    if task not in _TASKS:
        raise ValueError(f"weights are for the task {task!r}, not for detection or segmentation")
    return model


def _unpacked(answer: Any) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What the whole network says of a batch, and the prototypes of masks where it has them."""
    if isinstance(answer, (list, tuple)) and isinstance(answer[0], (list, tuple)):
        return answer[0][0], answer[0][1]
    return (answer[0] if isinstance(answer, (list, tuple)) else answer), None


def _with_mask(rows: torch.Tensor, prototypes: torch.Tensor | None, index: int, shape: tuple[int, int]) -> Floats:
    table: Floats = rows.float().cpu().numpy()
    if prototypes is None or not len(table):
        return table[:, :6]
    seen = visible(table[:, 6:].T, prototypes[index].float().cpu().numpy(), table[:, :4], shape)
    return table[seen, :6]


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise RuntimeError(f"device {name} asked for, but torch sees no CUDA device")
    return device
