"""Keeps a run on one host to the loopback interface: its own Ray, and what torch, NCCL and vLLM open in its actors.

Reads the environment; must not know the run's settings. Ray is imported only to start it.
"""

import contextlib
from collections.abc import Iterator, Mapping

from launch.cluster.security_warnings import is_loopback

SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Ray's own variable: false where its processes shall listen on loopback alone, as on desktops. Read at its import."""


def keeps_to_loopback(environ: Mapping[str, str]) -> bool:
    """Return whether a Ray that a run starts listens on loopback alone: unless the user made Ray's variable true."""
    return environ.get(SWITCH, "0").lower() not in ("1", "true")


@contextlib.contextmanager
def own_ray(environ: Mapping[str, str]) -> Iterator[None]:
    """Let a Ray that is started within take 127.0.0.1 as its address; then all its processes listen there alone.

    `ray.init` has no argument for it: it replaces a loopback address by one that other hosts reach.
    """
    from ray._private import ray_constants

    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = not keeps_to_loopback(environ)
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


def environment(address: str, environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that keep an actor's torch, NCCL and vLLM to loopback; none if `address` is another one.

    `address`: this node's. Settings of the user in `environ` stay.
    """
    if not is_loopback(address):
        return {}
    kept = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": address}
    return {name: environ.get(name, value) for name, value in kept.items()}
