"""fp32 out of convolutions in bf16. On a CPU without bf16, OpenVINO computes them in fp32, to the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import openvino
from hypothesis import given
from hypothesis import strategies as st
from openvino import opset11, opset13, opset14

from aiworker.inference.engines.threefold import SUFFIX, as_bf16, strays, write_threefold

_FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False, min_value=-(2.0**100), max_value=2.0**100)


@given(st.lists(_FLOATS, min_size=1))
def test_two_of_bf16_hold_sixteen_bits_of_a_number(numbers: list[float]) -> None:
    exact = np.array(numbers, np.float32)
    high = as_bf16(exact)
    low = as_bf16(exact - high)
    assert not np.any((high.view(np.uint32) | low.view(np.uint32)) & 0xFFFF)
    assert np.all(np.abs(exact - high - low) <= np.abs(exact) * 2.0**-16 + 2.0**-126)


def test_halves_are_rounded_to_even() -> None:
    ties = np.array([0x3F808000, 0x3F818000], np.uint32).view(np.float32)
    assert as_bf16(ties).view(np.uint32).tolist() == [0x3F800000, 0x3F820000]


def _network() -> Any:
    """What YOLO is made of: wide and narrow convolutions, SiLU, pooling, enlarging, joining and adding."""
    numbers = np.random.default_rng(1)

    def convolved(source: Any, wide: int, channels: int, size: int) -> Any:
        weights = numbers.normal(0, (wide * size * size) ** -0.5, (channels, wide, size, size)).astype(np.float32)
        pad = [size // 2] * 2
        bias = numbers.normal(0, 0.1, (1, channels, 1, 1)).astype(np.float32)
        made = opset13.convolution(source, opset13.constant(weights), [1, 1], pad, pad, [1, 1])
        return opset13.swish(opset13.add(made, opset13.constant(bias)))

    pixels = opset13.parameter([-1, 3, -1, -1], openvino.Type.f32)
    wide = convolved(pixels, 3, 64, 3)
    deep = opset13.add(convolved(convolved(wide, 64, 64, 3), 64, 64, 3), wide)
    pooled = opset14.max_pool(deep, [2, 2], [1, 1], [0, 0], [0, 0], [2, 2])
    scales, axes = opset13.constant(np.array([2.0, 2.0], np.float32)), opset13.constant(np.array([2, 3], np.int64))
    how = ("nearest", "scales", [0, 0, 0, 0], [0, 0, 0, 0], "asymmetric", "floor")
    enlarged = opset11.interpolate(pooled.output(0), scales, *how, axes=axes)
    joined = opset13.concat([enlarged, deep], 1)
    return openvino.Model([opset13.result(convolved(joined, 128, 80, 3))], [pixels], "network")


def _answer(network: Any, pixels: Any, precision: Any) -> tuple[Any, Any]:
    compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": precision})
    return compiled([pixels])[0].copy(), compiled


def test_it_says_what_fp32_says(tmp_path: Path) -> None:
    pixels = np.random.default_rng(2).integers(0, 256, (1, 3, 32, 48)).astype(np.float32)
    expected, _ = _answer(_network(), pixels / 255, openvino.Type.f32)
    file = tmp_path / "network.xml"
    write_threefold(_network(), file)
    network = openvino.Core().read_model(file)
    threefold = [step for step in network.get_ops() if step.get_friendly_name().endswith(SUFFIX)]
    assert sum(step.get_type_name() == "Convolution" for step in threefold) == 3, "the first one has three channels"
    network.reshape([1, 3, 32, 48])
    found, compiled = _answer(network, pixels, openvino.Type.bf16)
    assert not strays(compiled)
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert error < 1e-4, "bf16 itself is off by some thousandths"


def test_what_runs_in_bf16_without_being_meant_to_is_found(tmp_path: Path) -> None:
    pixels = np.zeros((1, 3, 32, 48), np.float32)
    _, compiled = _answer(_network(), pixels, openvino.Type.bf16)
    rounded = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert bool(strays(compiled)) == rounded
