"""`aiworker worker` whose children run the fake engine: `python -m fakes.fake_engine_worker worker --fd N`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from aiworker.cli.__main__ import main
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import InferencePool, PoolRules
from aiworker.telemetry.metrics import Metrics

_init = InferencePool.__init__


def _with_fake_engine(
    self: InferencePool, specs: Sequence[ChildSpec], rules: PoolRules | None = None, metrics: Metrics | None = None
) -> None:
    specs = [dataclasses.replace(spec, engine="fakes.fake_engine:FakeEngine") for spec in specs]
    # The fake engine finds nothing of what a model would find on the canary's picture.
    _init(self, specs, dataclasses.replace(rules or PoolRules(), canary=b""), metrics)


if __name__ == "__main__":
    InferencePool.__init__ = _with_fake_engine  # type: ignore[method-assign]
    main(prog_name="aiworker")
