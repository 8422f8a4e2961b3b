"""Convolutions in fp32 on units that multiply bf16 only, such as AMX. Imported by `openvino_engine` only.

A number is nearly the sum of two of bf16, x = hi + lo, and so is a weight: x * w is hi * w_hi + lo * w_hi + hi * w_lo,
up to 2^-16 of it. One convolution of [hi, lo, hi] with [w_hi, w_hi, w_lo], of three times as many channels, therefore
gives in bf16, whose sums are kept in fp32, what one in fp32 gives, in half the time where channels are many.

OpenVINO is asked for bf16, and every step but those convolutions is marked to keep fp32. Some marks are lost where it
replaces a step by one of its own; steps are written here so that it does not, and `strays` finds those where it did.
"""

from __future__ import annotations

import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset1, opset11, opset13

SUFFIX = "/threefold"
"""Ends the names of the convolutions that run in bf16."""
_LEAST_CHANNELS = 64
_KERNEL = 3
_KEEP = {"name": "DisablePrecisionConversion", "version": "0", "value": "dynamic:f16"}
# Below what SiLU gives and above what anything gives: it changes nothing.
_LOW, _HIGH = -1.0, 1e30
# OpenVINO's names for what makes, moves and repeats halves.
_HALVING = frozenset({"Concatenation", "Convert", "Eltwise", "Interpolate", "Reorder", "Subgraph"})


def write_threefold(network: Any, file: Path) -> None:
    """Rewrites `network`, which takes pixels of 0..1, into `file` (.xml, a .bin beside it), which takes 0..255."""
    _scale_first(network)
    packed: dict[tuple[str, int], Any] = {}
    for step in network.get_ordered_ops():
        kind = step.get_type_name()
        if kind == "Swish":
            _follow(step, lambda output: opset13.clamp(output, _LOW, _HIGH))
        elif kind == "MaxPool":
            _pool(step)
        elif kind == "Interpolate":
            _enlarge(step)
    for step in network.get_ordered_ops():
        if step.get_type_name() == "Convolution" and _pays(step):
            _thrice(step, packed)
    network.validate_nodes_and_infer_types()
    openvino.save_model(network, file, compress_to_fp16=False)
    _mark(file)


def strays(compiled: Any) -> list[str]:
    """What runs in bf16 and should not, by name."""
    found = []
    for step in compiled.get_runtime_model().get_ops():
        about = {name: step.get_rt_info()[name].astype(str) for name in ("layerType", "runtimePrecision")}
        if about["runtimePrecision"] != "bf16" or about["layerType"] in _HALVING:
            continue
        if about["layerType"] != "Convolution" or not step.get_friendly_name().endswith(SUFFIX):
            found.append(step.get_friendly_name())
    return found


def as_bf16(numbers: NDArray[np.float32]) -> NDArray[np.float32]:
    """The nearest numbers that bf16 has; ties go to the even one."""
    bits = np.ascontiguousarray(numbers).view(np.uint32)
    rounded: NDArray[np.uint32] = (bits + 0x7FFF + ((bits >> 16) & 1)) & np.uint32(0xFFFF0000)
    return rounded.view(np.float32)


def _scale_first(network: Any) -> None:
    """Pixels become 0..1 in the first convolution's weights. A step of its own would be folded into them later, and the
    convolution would lose its mark."""
    first = next(step for step in network.get_ordered_ops() if step.get_type_name() == "Convolution")
    scaled = opset13.constant(_weights(first) / np.float32(255))
    first.input(1).replace_source_output(scaled.output(0))


def _pays(convolution: Any) -> bool:
    shape = convolution.input_value(1).get_shape()
    return bool(shape[1] >= _LEAST_CHANNELS and shape[2] >= _KERNEL)


def _thrice(convolution: Any, packed: dict[tuple[str, int], Any]) -> None:
    source, weights = convolution.input_value(0), _weights(convolution)
    key = (source.get_node().get_friendly_name(), source.get_index())
    if key not in packed:
        high, low = _halves(source)
        packed[key] = opset13.convert(opset13.concat([high, low, high], 1), "f32")
        packed[key].set_friendly_name(f"{key[0]}/{key[1]}{SUFFIX}")
    high_part = as_bf16(weights)
    triple = np.concatenate([high_part, high_part, as_bf16(weights - high_part)], axis=1)
    convolution.input(0).replace_source_output(packed[key].output(0))
    weights_in_bf16 = opset13.convert(opset13.constant(triple, openvino.Type.bf16), "f32")
    weights_in_bf16.set_friendly_name(f"{convolution.get_friendly_name()}/weights{SUFFIX}")
    convolution.input(1).replace_source_output(weights_in_bf16.output(0))
    convolution.set_friendly_name(convolution.get_friendly_name() + SUFFIX)


def _halves(source: Any) -> tuple[Any, Any]:
    high = opset13.convert(source, "bf16")
    return high, opset13.convert(opset13.subtract(source, opset13.convert(high, "f32")), "bf16")


def _pool(step: Any) -> None:
    """The oldest kind of pooling, which is not replaced by another."""
    how = step.get_attributes()
    sides = [list(how[name]) for name in ("strides", "pads_begin", "pads_end", "kernel")]
    _replace(step, opset1.max_pool(step.input_value(0), *sides, how["rounding_type"], how["auto_pad"]))


def _enlarge(step: Any) -> None:
    """It runs in bf16 whatever its mark. Repeating pixels rounds nothing, so both halves go through."""
    how = step.get_attributes()

    def enlarged(half: Any) -> Any:
        return opset11.interpolate(
            opset13.convert(half, "f32"),
            step.input_value(1),
            how["mode"],
            how["shape_calculation_mode"],
            list(how["pads_begin"]),
            list(how["pads_end"]),
            how["coordinate_transformation_mode"],
            how["nearest_mode"],
            axes=step.input_value(2),
        )

    high, low = _halves(step.input_value(0))
    _replace(step, opset13.add(enlarged(high), enlarged(low)))


def _follow(step: Any, make: Any) -> None:
    """Whoever reads `step` reads what `make` gives of it."""
    readers = list(step.output(0).get_target_inputs())
    _read(readers, make(step.output(0)))


def _replace(step: Any, other: Any) -> None:
    _read(list(step.output(0).get_target_inputs()), other)


def _read(readers: list[Any], step: Any) -> None:
    for reader in readers:
        reader.replace_source_output(step.output(0))


def _weights(convolution: Any) -> NDArray[np.float32]:
    return np.asarray(convolution.input_value(1).get_node().data, np.float32)


def _mark(file: Path) -> None:
    """OpenVINO has no call for it: marks are set in the file."""
    tree = ET.parse(file)  # noqa: S314 - written by us a moment ago
    for layer in _steps(tree):
        if (about := layer.find("rt_info")) is None:
            about = ET.Element("rt_info")
            layer.insert(0 if layer.find("data") is None else 1, about)
        ET.SubElement(about, "attribute", _KEEP)
    tree.write(file)


def _steps(tree: Any) -> Iterator[Any]:
    for layer in tree.getroot().iterfind("layers/layer"):
        if layer.get("type") not in ("Const", "Parameter", "Result") and not layer.get("name").endswith(SUFFIX):
            yield layer
