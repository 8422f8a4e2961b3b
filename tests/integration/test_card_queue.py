"""Passes queued on a real card, against passes that are waited for. Needs a card and weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from fakes.shared_data import SHARED_DATA

from aiworker.cli.profiles import sample_picture
from aiworker.inference.child.decode import decode
from aiworker.inference.interface import Prepared
from aiworker.inference.messages import ChildSpec

torch = pytest.importorskip("torch")
if not torch.cuda.is_available():
    pytest.skip("no card", allow_module_level=True)
engines = pytest.importorskip("aiworker.inference.engines.torch_engine", exc_type=ImportError)


@pytest.mark.parametrize("engine", ["TorchEngine", "GraphedTorchEngine"])
def test_what_is_queued_is_found_as_if_waited_for(engine: str) -> None:
    weights = SHARED_DATA / "models" / "yolov8n.pt"
    if not weights.exists():
        pytest.skip("no weights")
    card: Any = getattr(engines, engine)(ChildSpec(str(weights), device="cuda:0", threads=2))
    card.load()
    card.warm_up()
    assert card.queue is card
    photo = card.prepare(decode(sample_picture(), 10**8))
    blank = Prepared(np.zeros_like(photo.pixels), photo.width, photo.height)
    groups = [[photo], [photo, blank, photo], [blank] * 5, [photo] * 8]
    for _ in range(3):
        # Graphs are recorded when a size comes for the second time.
        begun = [card.begin(group) for group in groups]
        found = [each.take() for each in begun]
        for group, boxes in zip(groups, found, strict=True):
            expected = card.detect(group)
            assert [len(each) for each in boxes] == [len(each) for each in expected]
            for one, other in zip(boxes, expected, strict=True):
                assert np.allclose(one, other, atol=0.01)
    assert found[0][0]
