"""Reading `data:` URLs (RFC 2397). Pure, and fast enough for an event loop: a photo is one, and is megabytes long."""

from __future__ import annotations

from base64 import b64decode
from urllib.parse import unquote_to_bytes

from aiworker.domain.errors import MediaTooLarge, MediaUrlInvalid

_MAX_HEADER = 1024
# Python's unquoting takes about a second and half a gigabyte for a few million of them.
_MAX_ESCAPES = 50_000
_BASE64_ESCAPES = (("%2B", "+"), ("%2F", "/"), ("%3D", "="), ("%2b", "+"), ("%2f", "/"), ("%3d", "="))
_WHITESPACE = b" \t\r\n\f"


def is_data_url(text: str) -> bool:
    """Whether the scheme of `text` is `data`."""
    return text[:5].lower() == "data:"


def decode_data_url(text: str, max_bytes: int) -> bytes:
    """The bytes in `text`; the declared media type is ignored, the bytes themselves are judged later.

    Base64 may lack its padding and hold white space, as browsers accept it. Raises MediaUrlInvalid, MediaTooLarge (the
    length is judged before anything is decoded).
    """
    comma = text.find(",", 0, _MAX_HEADER)
    if comma < 0:
        raise MediaUrlInvalid("a data URL without a comma")
    in_base64 = text[5:comma].rstrip().lower().endswith(";base64")
    # A byte takes at most three characters (%41); in base64, whose every character may be escaped too, four.
    if len(text) - comma - 1 > max_bytes * (4 if in_base64 else 3) + 4:
        raise _too_large(max_bytes)
    payload = text[comma + 1 :]
    try:
        data = _decode_base64(payload) if in_base64 else _unquote(payload)
    except ValueError:
        # Not chained: the codec's error carries the payload.
        raise MediaUrlInvalid("a data URL whose payload cannot be decoded") from None
    if len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def _decode_base64(payload: str) -> bytes:
    for escape, character in _BASE64_ESCAPES:
        payload = payload.replace(escape, character)
    compact = payload.encode("ascii").translate(None, _WHITESPACE)
    return b64decode(compact + b"=" * (-len(compact) % 4), validate=True)


def _unquote(payload: str) -> bytes:
    if payload.count("%") > _MAX_ESCAPES:
        raise MediaTooLarge("a percent-encoded data URL of this size must be base64", limit_escapes=_MAX_ESCAPES)
    return unquote_to_bytes(payload)


def _too_large(max_bytes: int) -> MediaTooLarge:
    return MediaTooLarge("the data URL holds too much", limit_bytes=max_bytes)
