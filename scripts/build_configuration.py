"""Writes docs/configuration.md from aiworker/settings.py: python scripts/build_configuration.py"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic_core import PydanticUndefined

from aiworker.settings import Settings

TARGET = Path(__file__).parent.parent / "docs" / "configuration.md"

_HEAD = """# Configuration
Every variable that aiworker reads from the environment. Written by `scripts/build_configuration.py`; do not edit.
A bad value stops the start with a sentence that names the variable. Secrets are masked wherever settings are shown.

| variable | default | meaning |
|---|---|---|
"""


def page() -> str:
    """The whole page."""
    rows = [
        f"| `{name.upper()}` | {_default(field)} | {field.description} |\n"
        for name, field in Settings.model_fields.items()
    ]
    return _HEAD + "".join(rows)


def _default(field: Any) -> str:
    if field.default_factory is dict:
        return ""
    if field.default is PydanticUndefined:
        return "host name and process id"
    if field.default in (None, frozenset()):
        return ""
    return f"`{str(field.default).lower() if isinstance(field.default, bool) else field.default}`"


if __name__ == "__main__":
    TARGET.write_text(page())
