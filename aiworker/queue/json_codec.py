"""jsonb on the wire: orjson bytes behind the version byte that PostgreSQL wants."""

from __future__ import annotations

from typing import Any

import orjson

_VERSION = b"\x01"
_BACKSLASH = 0x5C
_ESCAPED_NUL = b"\\u0000"
_REPLACEMENT = "\ufffd"


def encode_jsonb(value: Any) -> bytes:
    """PostgreSQL's binary form of a value; bytes are JSON already. Raises TypeError for what JSON cannot hold."""
    return _VERSION + (value if type(value) is bytes else orjson.dumps(value))


def decode_jsonb(data: bytes) -> Any:
    """The value of PostgreSQL's binary form.

    None for what PostgreSQL can hold and nobody here can read, such as 1e400 or a thousand levels of nesting: one such
    row must not keep others from being read, and whoever wants a value refuses None.
    """
    try:
        return orjson.loads(data[1:])
    except orjson.JSONDecodeError:
        return None


def storable(value: Any) -> bytes:
    """JSON that jsonb takes of a result or of its JSON: the NUL characters that models sometimes emit are replaced.

    Raises TypeError for what JSON cannot hold.
    """
    data = value if isinstance(value, bytes) else orjson.dumps(value)
    # A byte is found much faster than bytes. An escaped backslash before "u0000" looks the same: the slow way then
    # changes nothing.
    suspicious = _BACKSLASH in data and _ESCAPED_NUL in data
    return orjson.dumps(_without_nul(orjson.loads(data))) if suspicious else data


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", _REPLACEMENT)
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nul(item) for item in value]
    return value
