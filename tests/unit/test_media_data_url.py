from base64 import b64decode, b64encode
from urllib.parse import quote_from_bytes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiworker.domain.errors import MediaTooLarge, MediaUrlInvalid
from aiworker.media import data_url
from aiworker.media.data_url import decode_data_url, is_data_url


@given(st.binary(max_size=300))
def test_base64_round_trip(data):
    text = b64encode(data).decode()
    assert decode_data_url("data:image/png;base64," + text, 300) == data
    assert decode_data_url("DATA:;Base64," + text.rstrip("="), 300) == data
    escaped = text.replace("+", "%2B").replace("/", "%2f").replace("=", "%3D")
    assert decode_data_url("data:image/png;charset=x;base64," + escaped, 300) == data


@given(st.binary(max_size=300))
def test_percent_encoding_round_trip(data):
    assert decode_data_url("data:image/png," + quote_from_bytes(data), 300) == data


def test_white_space_inside_base64_is_ignored():
    assert decode_data_url("data:;base64,QU\r\nJD RA==", 4) == b"ABCD"


@pytest.mark.parametrize(
    "text",
    [
        "data:",
        "data:image/png;base64",
        "data:image/png;base64,A",
        "data:image/png;base64,A@BC",
        "data:image/png;base64,QQ==QQ==",
        "data:image/png;base64,\u00e9",
        "data:image/png,\ud800",
        "data:" + "x" * 2000 + ",A",
    ],
)
def test_malformed(text):
    with pytest.raises(MediaUrlInvalid) as caught:
        decode_data_url(text, 1000)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


@given(st.integers(0, 40), st.integers(1, 40))
def test_the_limit_is_exact(limit, beyond):
    exact, over = b"x" * limit, b"x" * (limit + beyond)
    for encode in (lambda b: ";base64," + b64encode(b).decode(), lambda b: "," + "".join(f"%{c:02x}" for c in b)):
        assert decode_data_url("data:" + encode(exact), limit) == exact
        with pytest.raises(MediaTooLarge) as caught:
            decode_data_url("data:" + encode(over), limit)
        assert caught.value.details["limit_bytes"] == limit


def test_millions_of_escapes_are_refused_without_unquoting():
    with pytest.raises(MediaTooLarge) as caught:
        decode_data_url("data:," + "%41" * 60_000, 100_000)
    assert caught.value.details["limit_escapes"] == 50_000


@pytest.mark.parametrize(
    ("text", "expected"), [("data:,", True), ("DaTa:,", True), ("dat:,", False), ("http://data:1", False)]
)
def test_is_data_url(text, expected):
    assert is_data_url(text) is expected


@given(st.text("QRA+/= \n@", max_size=40))
def test_pieces_decode_as_the_whole_does(text):
    compact = text.replace(" ", "").replace("\n", "")
    padded = compact + "=" * (-len(compact) % 4)
    try:
        # Three marks of padding stand for no byte, but Python lets them pass.
        wanted = None if padded.count("=") > 2 else b64decode(padded, validate=True)
    except ValueError:
        wanted = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data_url, "_PIECE", 4)
        try:
            assert decode_data_url("data:;base64," + text, 1000) == wanted
        except MediaUrlInvalid:
            assert wanted is None


def test_a_photo_is_decoded_in_pieces():
    photo = bytes(range(256)) * 2000
    assert decode_data_url("data:;base64," + b64encode(photo).decode(), len(photo)) == photo
