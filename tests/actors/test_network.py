"""Free ports."""

from __future__ import annotations

import socket

import pytest

from actors.network import bound_socket, free_port


def test_a_free_port_can_be_listened_on_and_a_taken_one_is_refused() -> None:
    port = free_port("127.0.0.1")
    assert free_port("127.0.0.1", port) == port
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(OSError, match="in use"):
            free_port("127.0.0.1", port)
        assert free_port() != port


def test_a_bound_socket_has_one_address_and_a_taken_port_is_refused() -> None:
    with bound_socket("127.0.0.1") as bound:
        host, port = bound.getsockname()
        assert (host, port > 0) == ("127.0.0.1", True)
        bound.listen()
        with pytest.raises(OSError, match="in use"):
            bound_socket("127.0.0.1", port)
