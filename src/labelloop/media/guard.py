"""Which addresses a task may make this machine talk to.

A task's data is written by whoever may import tasks; the server that fetches it often sits in a private
network beside databases and a cloud metadata service. So a name is looked up once, every address of the
answer is checked, and the caller connects to exactly the addresses returned here: a second look-up could
answer something else (DNS rebinding).
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from labelloop.core.errors import MediaRefused, MediaUnreachable

Resolve = Callable[[str, int], Sequence[str]]
"""Host name and port -> addresses as text, in the order to try. Raises OSError when the name is not known."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# The IANA special-purpose registries, written out: `ipaddress.is_global` has changed between patch releases
# of Python, and a rule of security must not depend on which one is installed.
_CLOSED_V4 = tuple(
    ipaddress.IPv4Network(text)
    for text in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT, and 100.100.100.200 (Alibaba metadata)
        "127.0.0.0/8",  # loopback
        "168.63.129.16/32",  # Azure's host service: a public address that is only seen from inside
        "169.254.0.0/16",  # link-local, and 169.254.169.254 (metadata)
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments, and 192.0.0.192 (Oracle metadata)
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, and broadcast
    )
)
_GLOBAL_V6 = ipaddress.IPv6Network("2000::/3")  # all that is assigned; loopback, fc00::/7, fe80::/10 lie outside
_CLOSED_V6 = tuple(
    ipaddress.IPv6Network(text)
    for text in (
        "2001::/23",  # protocol assignments, Teredo among them
        "2001:db8::/32",  # documentation
        "3fff::/20",  # documentation
    )
)
# Forms that carry an IPv4 address, and how far to shift to find it. A gateway may deliver to that address, and
# networks with IPv6 only reach the whole IPv4 world through NAT64, so the address inside is what is judged.
_CARRIERS = (
    (ipaddress.IPv6Network("::ffff:0:0/96"), 0),  # IPv4-mapped
    (ipaddress.IPv6Network("64:ff9b::/96"), 0),  # NAT64
    (ipaddress.IPv6Network("2002::/16"), 80),  # 6to4
)


def _inside(address: Address) -> Address:
    """The IPv4 address that an IPv6 address carries, else the address itself."""
    if isinstance(address, ipaddress.IPv6Address):
        for network, shift in _CARRIERS:
            if address in network:
                return ipaddress.IPv4Address((int(address) >> shift) & 0xFFFFFFFF)
    return address


def is_public(address: Address) -> bool:
    """Whether any host on the internet may be meant: not private, loopback, link-local, metadata, reserved, …"""
    address = _inside(address)
    if isinstance(address, ipaddress.IPv4Address):
        return not any(address in network for network in _CLOSED_V4)
    return address in _GLOBAL_V6 and not any(address in network for network in _CLOSED_V6)


def system_resolve(host: str, port: int) -> list[str]:
    """The system's look-up. It has its own time limits (resolv.conf) and cannot be interrupted."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Guard:
    """The rules, with the exceptions from `media_allow_hosts`: host names, addresses, networks, or `*` for all."""

    def __init__(self, allow: Sequence[str] = (), *, resolve: Resolve = system_resolve) -> None:
        self._resolve = resolve
        self._all = "*" in allow
        self._names: set[str] = set()
        self._networks: list[Network] = []
        for entry in allow:
            self._add(entry)

    def _add(self, entry: str) -> None:
        try:
            self._networks.append(ipaddress.ip_network(entry.strip("[]"), strict=False))
        except ValueError:
            # people write `minio:9000` and `http://minio:9000` too; the name is what counts
            self._names.add((urlsplit(entry if "//" in entry else f"//{entry}").hostname or entry).rstrip("."))

    def addresses(self, host: str, port: int, *, trusted: bool = False) -> tuple[str, ...]:
        """Look `host` up, once, and return the addresses to connect to.

        `trusted` is for an address that the operator configured. Raises MediaRefused when one of the addresses
        is closed to tasks (one bad among good is how rebinding starts), MediaUnreachable when there are none.
        """
        try:
            found = tuple(self._resolve(host, port))
        except (OSError, UnicodeError) as error:  # UnicodeError: a label that IDNA cannot encode
            raise MediaUnreachable(
                f"The host {host} is not known ({error}).", hint="Check the name and DNS."
            ) from error
        if not found:
            raise MediaUnreachable(f"No address is known for {host}.", hint="Check the name.")
        if not (trusted or self._all or host.rstrip(".") in self._names):
            for text in found:
                self._check(host, text)
        return found

    def _check(self, host: str, text: str) -> None:
        address = ipaddress.ip_address(text)
        if is_public(address) or self._allows(address) or self._allows(_inside(address)):
            return
        what = host if host == text else f"{host} ({text})"
        raise MediaRefused(
            f"{what} is not a public address, and tasks may only name public ones.",
            hint=f"Is it your own storage? Set LABELLOOP_MEDIA_ALLOW_HOSTS={host} (names or networks, by commas).",
        )

    def _allows(self, address: Address) -> bool:
        return any(address in network for network in self._networks if network.version == address.version)
