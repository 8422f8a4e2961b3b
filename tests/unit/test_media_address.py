from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from aiworker.domain.errors import MediaAddressForbidden
from aiworker.media.address import is_listed, is_public, literal_address

ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))
EMBEDDING = [IPv6Network(n) for n in ("::/96", "::ffff:0:0/96", "64:ff9b::/96", "64:ff9b:1::/96")]


@given(ADDRESSES)
@example(ip_address("::1"))
@example(ip_address("255.255.255.255"))
def test_what_the_standard_library_knows_as_special_is_not_public(address):
    special = (
        address.is_private
        or address.is_loopback
        or address.is_link_local
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
        or not address.is_global
    )
    if special:
        assert not is_public(address)


@given(st.ip_addresses(v=4), st.sampled_from(EMBEDDING))
def test_an_ipv6_address_that_carries_an_ipv4_address_is_not_public(inner, network):
    assert not is_public(IPv6Address(int(network.network_address) + int(inner)))


@given(st.ip_addresses(v=4))
def test_a_6to4_address_is_not_public(inner):
    assert not is_public(IPv6Address((0x2002 << 112) | int(inner) << 80))


@given(st.ip_addresses(v=4, network="8.0.0.0/8"))
def test_ordinary_ipv4_is_public(address):
    assert is_public(address)


@given(st.ip_addresses(v=6, network="2a00::/12"))
def test_ordinary_ipv6_is_public(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "text",
    [
        "0.0.0.0",
        "10.0.0.1",
        "100.64.0.1",
        "127.0.0.1",
        "127.255.255.254",
        "168.63.129.16",
        "169.254.169.254",
        "172.16.0.1",
        "172.31.255.255",
        "192.0.0.8",
        "192.0.2.1",
        "192.88.99.1",
        "192.168.0.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "224.0.0.1",
        "240.0.0.1",
        "255.255.255.255",
        "::",
        "::1",
        "::ffff:127.0.0.1",
        "::ffff:8.8.8.8",
        "64:ff9b::7f00:1",
        "64:ff9b:1::1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fe80::1",
        "fec0::1",
        "ff02::1",
        "2606:4700::1111%eth0",
    ],
)
def test_not_public(text):
    assert not is_public(ip_address(text))


@pytest.mark.parametrize(
    "text",
    [
        "1.1.1.1",
        "9.255.255.255",
        "11.0.0.0",
        "100.63.255.255",
        "100.128.0.0",
        "126.255.255.255",
        "128.0.0.0",
        "169.253.255.255",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "223.255.255.255",
        "2001:200::",
        "2606:4700::1111",
        "2a00:1450::1",
    ],
)
def test_public_up_to_the_edges(text):
    assert is_public(ip_address(text))


@pytest.mark.parametrize(
    "host",
    [
        "2130706433",
        "017700000001",
        "0x7f000001",
        "0x7f.0.0.1",
        "0177.0.0.1",
        "127.1",
        "127.0.1",
        "127.0.0.1.",
        "1.2.3.4.5",
        "256.1.1.1",
        "010.0.0.1",
        "a.0x",
        "8.8.2056",
    ],
)
def test_a_number_in_disguise_is_refused(host):
    with pytest.raises(MediaAddressForbidden):
        literal_address(host)


@given(ADDRESSES)
def test_an_address_is_read_as_itself(address):
    assert literal_address(str(address)) == address


@pytest.mark.parametrize("host", ["localhost", "example.com", "1e100.net", "0x7f.example", "7.cdn.example", "xn--1-x"])
def test_a_name_is_no_address(host):
    assert literal_address(host) is None


@pytest.mark.parametrize(
    ("host", "port", "entry"),
    [
        ("minio", 9000, "minio"),
        ("minio", 9000, "minio:9000"),
        ("MinIO.", 9000, "minio"),
        ("::1", 9000, "::1"),
        ("::1", 9000, "[::1]"),
        ("::1", 9000, "[::1]:9000"),
        ("127.0.0.1", 80, "127.0.0.1:80"),
    ],
)
def test_listed(host, port, entry):
    assert is_listed(host, port, frozenset([entry]))


@pytest.mark.parametrize(
    ("host", "port", "entry"),
    [
        ("minio", 9001, "minio:9000"),
        ("minio.evil.example", 9000, "minio"),
        ("evilminio", 9000, "minio"),
        ("inio", 9000, "minio"),
        ("minio:9000", 80, "minio"),
    ],
)
def test_not_listed(host, port, entry):
    assert not is_listed(host, port, frozenset([entry]))


def test_the_tables_hold_for_ipv4_as_a_whole():
    public = [first for first in range(256) if is_public(IPv4Address(f"{first}.200.200.200"))]
    assert public == [n for n in range(1, 224) if n not in (10, 127)]
