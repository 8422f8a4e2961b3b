"""Where real weights, photos and recordings lie beside the checkout, if they do."""

from __future__ import annotations

from pathlib import Path

SHARED_DATA = Path(__file__).parents[3] / "shared" / "data"
