import pytest
from hypothesis import given
from hypothesis import strategies as st
from yarl import URL

from aiworker.domain.errors import MediaAddressForbidden, MediaUrlInvalid
from aiworker.media.url import parse_target, redirect_target

NOBODY = frozenset()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "photo.jpg",
        "//example.com/a",
        "http:example.com",
        "http://",
        "http:///a",
        "file:///etc/passwd",
        "ftp://example.com/a.jpg",
        "gopher://example.com:70/_x",
        "javascript:alert(1)",
        "http://user:secret@example.com/",
        "http://user@example.com/",
        "http://@example.com/",
        "http://example.com\\@127.0.0.1/",
        "http://example.com:80:80/",
        "http://example.com:99999/",
        "http://example.com:0/",
        "http://example.com:+80/",
        "http://example.com:\uff18\uff10/",
        "http://example.com:22/",
        "https://example.com:25/",
        "http://exam ple.com/",
        " http://example.com/",
        "http://example.com/a\r\nHost: b",
        "http://example.com/\x00",
        "http://ex%61mple.com/",
        "http://a..b/",
        "http://-a.example/",
        "http://" + "a" * 64 + ".example/",
        "http://" + "a." * 130 + "example/",
        "http://[::1%25eth0]/",
        "http://[::1/",
        "http://[v1.a]/",
        "http://[1::2::3]/",
        "http://example.com/" + "a" * 9000,
    ],
)
def test_not_a_url_that_may_be_asked(text):
    with pytest.raises(MediaUrlInvalid):
        parse_target(text, NOBODY)


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "169.254.169.254",
        "0.0.0.0",
        "2130706433",
        "0x7f000001",
        "0177.0.0.1",
        "127.1",
        "127.0.0.1.",
        "\u2460\u2461\u2466.0.0.1",
        "[::1]",
        "[::]",
        "[::ffff:127.0.0.1]",
        "[::ffff:7f00:1]",
        "[64:ff9b::a9fe:a9fe]",
        "[fd00:ec2::254]",
    ],
)
@pytest.mark.parametrize("port", ["", ":8080"])
def test_an_address_that_is_not_public(host, port):
    with pytest.raises(MediaAddressForbidden):
        parse_target(f"http://{host}{port}/latest/meta-data", NOBODY)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("http://example.com", "example.com", 80),
        ("HTTPS://Example.COM./a", "example.com.", 443),
        ("https://8.8.8.8:8443/a", "8.8.8.8", 8443),
        ("http://[2606:4700::1111]/", "2606:4700::1111", 80),
        ("https://caf\u00e9.example/p\u00e3o.jpg", "xn--caf-dma.example", 443),
        ("http://minio_1:9000/a", "minio_1", 9000),
        ("https://example.com?x=1", "example.com", 443),
    ],
)
def test_a_url_that_may_be_asked(text, host, port):
    url = parse_target(text, NOBODY)
    assert (url.raw_host.lower(), url.port) == (host, port)


def test_a_signed_query_goes_out_byte_for_byte():
    tail = "/a%2Fb%20c.jpg?X-Amz-Credential=K%2F20260101%2Fus&sig=a%2Bb%3D+c"
    assert parse_target("https://example.com" + tail, NOBODY).raw_path_qs == tail


def test_a_listed_host_may_be_private_and_on_any_port():
    listed = frozenset(["127.0.0.1:81", "::1"])
    assert parse_target("http://127.0.0.1:81/", listed).port == 81
    assert parse_target("http://[::1]:25/", listed).port == 25
    with pytest.raises(MediaAddressForbidden):
        parse_target("http://127.0.0.1:82/", listed)


@given(st.text(max_size=60).map("http://".__add__) | st.text(max_size=60))
def test_any_text_is_either_a_url_or_refused(text):
    try:
        url = parse_target(text, NOBODY)
    except (MediaUrlInvalid, MediaAddressForbidden):
        return
    assert url.scheme in ("http", "https")
    assert url.raw_host
    assert url.user is None


@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("/b.jpg", "https://example.com/b.jpg"),
        ("b.jpg?x=%2F", "https://example.com/d/b.jpg?x=%2F"),
        ("//other.example/b", "https://other.example/b"),
        ("https://other.example/b", "https://other.example/b"),
    ],
)
def test_a_redirect_is_followed(location, target):
    assert str(redirect_target(URL("https://example.com/d/a.jpg"), location, NOBODY)) == target


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("http://example.com/b.jpg", MediaUrlInvalid),
        ("file:///etc/passwd", MediaUrlInvalid),
        ("data:image/png;base64,AAAA", MediaUrlInvalid),
        ("https://u:p@example.com/", MediaUrlInvalid),
        ("https://[::1", MediaUrlInvalid),
        ("//169.254.169.254/", MediaAddressForbidden),
        ("https://[::1]/", MediaAddressForbidden),
    ],
)
def test_a_redirect_is_refused(location, error):
    with pytest.raises(error):
        redirect_target(URL("https://example.com/a.jpg"), location, NOBODY)


def test_a_redirect_from_http_to_https_is_followed():
    assert redirect_target(URL("http://example.com/a"), "https://example.com/a", NOBODY).scheme == "https"


def test_an_error_does_not_hold_the_url():
    with pytest.raises(MediaUrlInvalid) as caught:
        parse_target("ftp://example.com/a?token=SECRET", NOBODY)
    assert "SECRET" not in f"{caught.value!r} {caught.value.note} {caught.value.details}"
