"""TCP ports of this host. Standard library only."""

import errno
import secrets
import socket

_CANDIDATES = range(20_000, 32_768)
"""Above the ports of Ray's workers and below those that Linux gives to outgoing connections."""
_ATTEMPTS = 50


def free_port(host: str = "", port: int | None = None) -> int:
    """Return a port that a server can listen on at `host` (all interfaces if empty): `port` itself if given.

    Raises OSError if `port` is taken. Nothing reserves the port, but no outgoing connection takes it before the caller.
    """
    if port is not None:
        return _bound(host, port)
    for candidate in secrets.SystemRandom().sample(_CANDIDATES, _ATTEMPTS):
        try:
            return _bound(host, candidate)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
    return _bound(host, 0)


def _bound(host: str, port: int) -> int:
    with socket.socket() as probe:
        probe.bind((host, port))
        return int(probe.getsockname()[1])


def bound_socket(host: str, port: int = 0) -> socket.socket:
    """Return a socket for a server that shall listen at `host` alone; port 0 is any. Raises OSError if it is taken."""
    bound = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        # As torch's servers do: connections of an earlier server may still be waiting for their end.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
    except OSError:
        bound.close()
        raise
    return bound
