"""TCP ports of this host. Standard library only."""

import socket


def free_port(host: str = "", port: int | None = None) -> int:
    """Return a port that a server can listen on at `host` (all interfaces if empty): `port` itself if given.

    Raises OSError if `port` is taken. Nothing reserves the port: another process may take it before the caller does.
    """
    with socket.socket() as probe:
        probe.bind((host, port or 0))
        return int(probe.getsockname()[1])
