"""`aiworker worker` whose children run the fake engine: `python -m fakes.fake_engine_worker worker --fd N`."""

from __future__ import annotations

import dataclasses
from typing import Any

from aiworker.cli.__main__ import main
from aiworker.inference.messages import ChildSpec
from aiworker.inference.pool import InferencePool

_init = InferencePool.__init__


def _with_fake_engine(self: InferencePool, spec: ChildSpec, *args: Any, **more: Any) -> None:
    _init(self, dataclasses.replace(spec, engine="fakes.fake_engine:FakeEngine"), *args, **more)


if __name__ == "__main__":
    InferencePool.__init__ = _with_fake_engine  # type: ignore[method-assign]
    main(prog_name="aiworker")
