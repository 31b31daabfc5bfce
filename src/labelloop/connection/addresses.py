"""When two addresses mean the same server, and what to use where localhost does not lead to us."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import SplitResult, urlsplit

_DEFAULT_PORTS = {"http": 80, "https": 443}
_OUR_PORT = 9090


def is_loopback(url: str) -> bool:
    """Whether the host is this machine to itself: localhost, 127/8, ::1, 0.0.0.0."""
    host = (urlsplit(url).hostname or "").lower()
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def same_address(first: str, second: str) -> bool:
    """Whether both URLs lead to the same server and path: case, default ports, a slash at the end and the names of
    loopback do not count."""
    return _canonical(first) == _canonical(second)


def _canonical(url: str) -> tuple[str, str, int, str]:
    parts = urlsplit(url.strip())
    scheme = parts.scheme.lower()
    host = "localhost" if is_loopback(url) else (parts.hostname or "").lower()
    return scheme, host, _port(parts), parts.path.rstrip("/")


def _port(parts: SplitResult) -> int:
    try:
        return parts.port or _DEFAULT_PORTS.get(parts.scheme.lower(), 0)
    except ValueError:
        return 0


def own_address(towards: str) -> str:
    """The address of this machine on the network that leads to the host of `towards`; empty when there is none.

    Connecting a UDP socket sends nothing; it only asks the routing table.
    """
    host = urlsplit(towards).hostname or ""
    # Towards loopback the answer would be loopback; a documentation address (RFC 5737) asks for the default route.
    target = "192.0.2.1" if is_loopback(towards) else host
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        try:
            asking.connect((target, 9))
            return str(asking.getsockname()[0])
        except OSError:
            return ""


def serve_command(backend_url: str) -> str:
    """What starts labelloop at this address."""
    port = _port(urlsplit(backend_url))
    return "labelloop serve" if port in (0, _OUR_PORT) else f"labelloop serve --port {port}"


def reachable_from_outside(backend_url: str, label_studio_url: str) -> str:
    """Advice for a backend on loopback that Label Studio cannot see: which address and which host to listen on."""
    parts = urlsplit(backend_url)
    port = _port(parts)
    own = own_address(label_studio_url)
    network = f"--backend-url {parts.scheme}://{own}:{port}" if own else "--backend-url with this machine's address"
    return (
        f"Start the backend with `labelloop serve --host 0.0.0.0 --port {port}`, then run `labelloop connect` again "
        f"with {network}, or with --backend-url {parts.scheme}://host.docker.internal:{port} if Label Studio runs in a "
        "container on this machine (on Linux that name needs --add-host=host.docker.internal:host-gateway)."
    )
