"""What makes two requests the same: the whole input, nested keys too, the type and the version of its analysis."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from aiworker.domain.job import JsonObject


def cache_key(job_type: str, version: str, job_input: JsonObject) -> str:
    """SHA-256, as 64 hex digits, of the canonical JSON of all three.

    The order of keys does not count, at any depth, and neither does writing 1 as 1.0. Raises ValueError for NaN and
    infinity, TypeError for what JSON does not have.
    """
    canonical = json.dumps(
        [job_type, version, _plain(job_input)],
        sort_keys=True,
        separators=(",", ":"),
        ensure_ascii=True,
        allow_nan=False,
    )
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {_key(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


def _key(key: object) -> str:
    if not isinstance(key, str):
        raise TypeError(f"a JSON object has string keys, not {type(key).__name__}")
    return key
