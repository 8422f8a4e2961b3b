"""What crosses the line between the parent and a child, and its framing. Pure.

A frame is: length of the rest (4 bytes, big-endian), length of the header (4 bytes), header (JSON: version, type,
fields and the sizes of the blobs), blobs. Compressed pictures travel as blobs, once, from the parent to the child;
results are plain numbers.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, get_args

import orjson

from aiworker.inference.interface import Box

VERSION = 3
PREFIX_BYTES = 4
MAX_BATCH = 64
MAX_IMAGE_BYTES = 63 << 20
"""So that the largest batch still fits the length field."""
_LENGTH = struct.Struct(">I")


class FrameInvalid(Exception):
    """The other end of the line does not speak this protocol or this version of it."""


@dataclass(frozen=True, slots=True)
class ChildSpec:
    """Everything that a child is told. `engine` is "module:factory", called with this spec.

    `device` is auto, cpu, cuda or cuda:N; `precision` fp32 or bf16, where the engine has a choice; `pinned` binds the
    engine's threads to cores. `max_pixels` bounds a picture before it is decoded; `image_size` is the longer side that
    the model takes. Exports are kept in `cache_dir`, or beside the weights.
    """

    kind: ClassVar[str] = "spec"
    weights: str
    engine: str = "aiworker.inference.engines.torch_engine:TorchEngine"
    device: str = "auto"
    precision: str = "fp32"
    threads: int = 1
    pinned: bool = False
    confidence: float = 0.35
    iou: float = 0.7
    max_detections: int = 300
    image_size: int = 640
    max_pixels: int = 50_000_000
    cache_dir: str = ""

    @property
    def decoders(self) -> int:
        """Threads that decode: a card leaves all to it, on a CPU the engine has the others."""
        return self.threads if self.device.startswith("cuda") else 1


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded and warm. Class ids map to names by position in the two lists.

    `pass_size` is how many pictures the engine gains from putting through the model together; `queues` says that it
    takes a pass while it is at another.
    """

    kind: ClassVar[str] = "ready"
    engine: str
    class_ids: tuple[int, ...]
    class_names: tuple[str, ...]
    load_s: float
    rss_mb: float
    pass_size: int = 64
    queues: bool = False


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The child cannot serve and ends. `reason` is for operators."""

    kind: ClassVar[str] = "start_failed"
    reason: str


@dataclass(frozen=True, slots=True)
class DetectBatch:
    """`images` are encoded pictures, one for each of `items`. A child is sent the next batch before this one is done,
    so that it can decode meanwhile; it finishes them in order."""

    kind: ClassVar[str] = "batch"
    batch: int
    items: tuple[int, ...]
    images: tuple[bytes, ...] = field(repr=False)


@dataclass(frozen=True, slots=True)
class ItemDetected:
    """`forward_ms` and `batch_size` are of the pass through the model that this picture was in."""

    kind: ClassVar[str] = "detected"
    item: int
    width: int
    height: int
    boxes: tuple[Box, ...]
    forward_ms: float
    batch_size: int


@dataclass(frozen=True, slots=True)
class ItemFailed:
    """`code` is that of a domain error; `note` says what went wrong without any content."""

    kind: ClassVar[str] = "failed"
    item: int
    code: str
    note: str


@dataclass(frozen=True, slots=True)
class Progress:
    """Said between two steps of a batch: the child is slow, not stuck."""

    kind: ClassVar[str] = "progress"


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """A pass of `size` pictures found no memory; the child goes on with smaller ones."""

    kind: ClassVar[str] = "out_of_memory"
    size: int


@dataclass(frozen=True, slots=True)
class BatchDone:
    """Every item of the batch has had its answer. `seconds` is what the child spent on it, `decode_s` what decoding
    took, of all threads together."""

    kind: ClassVar[str] = "done"
    batch: int
    seconds: float
    rss_mb: float
    decode_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Ping:
    """Asks an idle child whether it still listens; answered with a Pong of the same number."""

    kind: ClassVar[str] = "ping"
    number: int


@dataclass(frozen=True, slots=True)
class Pong:
    kind: ClassVar[str] = "pong"
    number: int
    rss_mb: float


@dataclass(frozen=True, slots=True)
class Stop:
    kind: ClassVar[str] = "stop"


FromParent = ChildSpec | DetectBatch | Ping | Stop
FromChild = Ready | StartFailed | ItemDetected | ItemFailed | Progress | OutOfMemory | BatchDone | Pong
Message = FromParent | FromChild

_TYPES: dict[str, type[Message]] = {message.kind: message for message in get_args(Message)}

_FIELDS = {message: frozenset(each.name for each in fields(message)) for message in _TYPES.values()}


def encode(message: Message) -> list[bytes]:
    """The parts of one frame, in order; blobs are passed on without a copy. At most MAX_BATCH of MAX_IMAGE_BYTES."""
    blobs: Sequence[bytes] = message.images if isinstance(message, DetectBatch) else ()
    if isinstance(message, DetectBatch):
        body: dict[str, Any] = {"batch": message.batch, "items": message.items}
    else:
        body = {name: getattr(message, name) for name in _FIELDS[type(message)]}
    header = orjson.dumps({"v": VERSION, "type": message.kind, "body": body, "blobs": [len(blob) for blob in blobs]})
    total = _LENGTH.size + len(header) + sum(len(blob) for blob in blobs)
    return [_LENGTH.pack(total), _LENGTH.pack(len(header)), header, *blobs]


def frame_length(prefix: bytes) -> int:
    """How many bytes follow the first four. Raises FrameInvalid."""
    (length,) = _LENGTH.unpack(prefix)
    if length < _LENGTH.size:
        raise FrameInvalid(f"a frame cannot be {length} bytes long")
    return int(length)


def decode(frame: bytes) -> Message:
    """The message in `frame` (what follows the first four bytes). Raises FrameInvalid."""
    try:
        (header_length,) = _LENGTH.unpack_from(frame)
        end = _LENGTH.size + header_length
        header = orjson.loads(frame[_LENGTH.size : end])
        version, kind, body = header["v"], header["type"], header["body"]
        blobs = _split(frame, end, header["blobs"])
        if version != VERSION:
            raise FrameInvalid(f"protocol version {version!r}, this side speaks {VERSION}")
        return _build(_TYPES[kind], body, blobs)
    except (struct.error, orjson.JSONDecodeError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise FrameInvalid(f"not a frame of this protocol ({type(error).__name__})") from error


def _split(frame: bytes, start: int, sizes: Sequence[int]) -> tuple[bytes, ...]:
    if start + sum(sizes) != len(frame) or any(size < 0 for size in sizes):
        raise ValueError("sizes do not add up")
    blobs = []
    for size in sizes:
        blobs.append(frame[start : start + size])
        start += size
    return tuple(blobs)


def _build(message: type[Message], body: dict[str, Any], blobs: tuple[bytes, ...]) -> Message:
    values = {name: _frozen(value) for name, value in body.items()}
    if message is DetectBatch:
        values["images"] = blobs
        if len(blobs) != len(values["items"]):
            raise ValueError("one picture for each item")
    if values.keys() != _FIELDS[message]:
        raise ValueError("fields missing or unknown")
    return message(**values)


def _frozen(value: Any) -> Any:
    return tuple(_frozen(each) for each in value) if isinstance(value, list) else value
