"""Reading `data:` URLs (RFC 2397). Pure. A photo is one, and is megabytes long: `is_long` says which ones belong in a
thread, and decoding goes in pieces, so that the event loop gets its turn in between them."""

from __future__ import annotations

from binascii import a2b_base64
from urllib.parse import unquote_to_bytes

from aiworker.domain.errors import MediaTooLarge, MediaUrlInvalid

_MAX_HEADER = 1024
# Python's unquoting takes about a second and half a gigabyte for a few million of them.
_MAX_ESCAPES = 50_000
_BASE64_ESCAPES = (("%2B", "+"), ("%2F", "/"), ("%3D", "="), ("%2b", "+"), ("%2f", "/"), ("%3d", "="))
_WHITESPACE = " \t\r\n\f"
# Of characters: whole groups of four.
_PIECE = 1 << 16
_LONG = 1 << 16


def is_data_url(text: str) -> bool:
    """Whether the scheme of `text` is `data`."""
    return text[:5].lower() == "data:"


def is_long(text: str) -> bool:
    """Whether decoding `text` takes longer than an event loop should be held."""
    return len(text) > _LONG


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
    if "%" in payload:
        for escape, character in _BASE64_ESCAPES:
            payload = payload.replace(escape, character)
    for blank in _WHITESPACE:
        if blank in payload:
            payload = payload.replace(blank, "")
    payload += "=" * (-len(payload) % 4)
    if payload.find("=", 0, -2) >= 0:
        raise ValueError("something follows the padding")
    pieces = (payload[start : start + _PIECE] for start in range(0, len(payload), _PIECE))
    return b"".join([a2b_base64(piece, strict_mode=True) for piece in pieces])


def _unquote(payload: str) -> bytes:
    if payload.count("%") > _MAX_ESCAPES:
        raise MediaTooLarge("a percent-encoded data URL of this size must be base64", limit_escapes=_MAX_ESCAPES)
    return unquote_to_bytes(payload)


def _too_large(max_bytes: int) -> MediaTooLarge:
    return MediaTooLarge("the data URL holds too much", limit_bytes=max_bytes)
