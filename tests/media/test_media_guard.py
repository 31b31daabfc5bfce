"""The address rules."""

from __future__ import annotations

import ipaddress

import pytest

from labelloop.core.errors import MediaRefused, MediaUnreachable
from labelloop.media.guard import Guard, is_public, system_resolve

CLOSED = [
    ("127.0.0.1", "loopback"),
    ("127.8.9.10", "all of loopback"),
    ("0.0.0.0", "this host"),
    ("10.1.2.3", "private"),
    ("172.16.0.1", "private, first"),
    ("172.31.255.255", "private, last"),
    ("192.168.1.1", "private"),
    ("169.254.169.254", "metadata"),
    ("169.254.170.2", "container credentials"),
    ("100.64.0.1", "carrier-grade NAT"),
    ("100.100.100.200", "metadata of another cloud"),
    ("168.63.129.16", "a cloud's host service"),
    ("192.0.0.192", "metadata of a third cloud"),
    ("198.18.0.1", "benchmarking"),
    ("203.0.113.7", "documentation"),
    ("224.0.0.1", "multicast"),
    ("255.255.255.255", "broadcast"),
    ("240.0.0.1", "reserved"),
    ("::1", "loopback"),
    ("::", "unspecified"),
    ("fe80::1", "link-local"),
    ("fe80::1%eth0", "link-local with a zone"),
    ("fec0::1", "site-local"),
    ("fd00:ec2::254", "metadata"),
    ("fc00::1", "unique local"),
    ("ff02::1", "multicast"),
    ("2001:db8::1", "documentation"),
    ("2001::1", "Teredo"),
    ("::ffff:127.0.0.1", "IPv4-mapped"),
    ("::ffff:a9fe:a9fe", "IPv4-mapped metadata"),
    ("::127.0.0.1", "IPv4-compatible"),
    ("64:ff9b::7f00:1", "NAT64"),
    ("64:ff9b:1::a00:1", "NAT64, local prefix"),
    ("2002:7f00:1::", "6to4"),
    ("2002:a9fe:a9fe::1", "6to4 metadata"),
]
PUBLIC = [
    ("93.184.216.34", "a web server"),
    ("172.15.255.255", "below the private range"),
    ("172.32.0.1", "above the private range"),
    ("100.63.255.255", "below carrier-grade NAT"),
    ("2606:4700::1111", "a web server"),
    ("64:ff9b::5db8:d822", "a web server behind NAT64"),
    ("::ffff:93.184.216.34", "a web server, IPv4-mapped"),
]


@pytest.mark.parametrize(("address", "what"), CLOSED)
def test_closed_addresses(address: str, what: str) -> None:
    assert not is_public(ipaddress.ip_address(address)), what
    with pytest.raises(MediaRefused, match=r"LABELLOOP_MEDIA_ALLOW_HOSTS=host\.example"):
        Guard(resolve=lambda host, port: [address]).addresses("host.example", 80)


@pytest.mark.parametrize(("address", "what"), PUBLIC)
def test_public_addresses(address: str, what: str) -> None:
    assert Guard(resolve=lambda host, port: [address]).addresses("host.example", 80) == (address,), what


def test_one_private_address_among_public_ones_refuses_the_name() -> None:
    guard = Guard(resolve=lambda host, port: ["93.184.216.34", "10.0.0.1"])
    with pytest.raises(MediaRefused, match=r"10\.0\.0\.1"):
        guard.addresses("host.example", 80)


@pytest.mark.parametrize(
    ("allow", "host", "address", "allowed"),
    [
        ("minio", "minio", "10.0.0.9", True),
        ("MinIO.example", "minio.example", "10.0.0.9", True),
        ("minio:9000", "minio", "10.0.0.9", True),
        ("http://minio:9000", "minio", "10.0.0.9", True),
        ("minio", "minio.", "10.0.0.9", True),
        ("minio", "evil", "10.0.0.9", False),
        ("minio", "minio.evil.example", "10.0.0.9", False),
        ("10.0.0.0/8", "minio", "10.0.0.9", True),
        ("10.0.0.0/8", "minio", "::ffff:10.0.0.9", True),
        ("10.0.0.0/8", "minio", "11.0.0.9", True),
        ("10.0.0.0/8", "minio", "127.0.0.1", False),
        ("10.0.0.9", "minio", "10.0.0.9", True),
        ("10.0.0.9", "minio", "10.0.0.8", False),
        ("fd00::/8", "minio", "fd12::1", True),
        ("[fd12::1]", "fd12::1", "fd12::1", True),
        ("*", "anything", "169.254.169.254", True),
    ],
)
def test_allowed_hosts(allow: str, host: str, address: str, allowed: bool) -> None:
    guard = Guard([allow], resolve=lambda host, port: [address])
    if allowed:
        assert guard.addresses(host, 80) == (address,)
    else:
        with pytest.raises(MediaRefused):
            guard.addresses(host, 80)


@pytest.mark.parametrize("spelling", ["2130706433", "0x7f.1", "127.1", "0177.0.0.1", "localhost"])
def test_other_spellings_of_loopback_end_up_as_an_address(spelling: str) -> None:
    with pytest.raises(MediaRefused):
        Guard(resolve=system_resolve).addresses(spelling, 80)


def test_names_that_cannot_be_looked_up() -> None:
    with pytest.raises(MediaUnreachable):
        Guard(resolve=system_resolve).addresses("a" * 70 + ".example", 80)
    with pytest.raises(MediaUnreachable):
        Guard(resolve=lambda host, port: []).addresses("host.example", 80)


def test_configured_addresses_may_be_private() -> None:
    guard = Guard(resolve=lambda host, port: ["127.0.0.1"])
    assert guard.addresses("label-studio", 8080, trusted=True) == ("127.0.0.1",)
