"""When two addresses mean one server."""

from __future__ import annotations

import ipaddress

import pytest

from labelloop.connection.addresses import is_loopback, own_address, reachable_from_outside, same_address


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        pytest.param("http://a:9090", "http://a:9090/", True, id="slash at the end"),
        pytest.param("http://localhost:9090", "http://127.0.0.1:9090", True, id="names of loopback"),
        pytest.param("http://[::1]:9090", "http://127.0.0.1:9090", True, id="IPv6 loopback"),
        pytest.param("HTTP://Host/x/", "http://host:80/x", True, id="case and default port"),
        pytest.param("https://host", "https://host:443", True, id="https default port"),
        pytest.param("http://host", "https://host", False, id="scheme"),
        pytest.param("http://host:1", "http://host:2", False, id="port"),
        pytest.param("http://host/a", "http://host/b", False, id="path"),
        pytest.param("http://host:99999", "http://host:9", False, id="impossible port"),
    ],
)
def test_same_address(first: str, second: str, same: bool) -> None:
    assert same_address(first, second) is same
    assert same_address(second, first) is same


@pytest.mark.parametrize("url", ["http://localhost:1", "http://127.9.9.9", "http://[::1]", "http://0.0.0.0:9"])
def test_loopback(url: str) -> None:
    assert is_loopback(url)
    assert not is_loopback("http://labelloop.internal:9090")


def test_advice_names_port_and_addresses() -> None:
    text = reachable_from_outside("http://127.0.0.1:9191", "http://127.0.0.1:8080")
    assert "--port 9191" in text
    assert "host.docker.internal:9191" in text
    own = own_address("http://127.0.0.1:8080")
    assert own == "" or ipaddress.ip_address(own)
