"""Somebody on this host without Ray's token: asks ports for all that Ray's services offer, prints what they answer.

    python -m tests.outsider PORT...

To be run in an environment without a token. With one in OUTSIDER_TOKEN only harmless questions are asked, which shows
that they would be answered.
"""

from __future__ import annotations

import importlib
import json
import os
import pkgutil
import socket
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import ray.core.generated

SECONDS = 10.0
"""The longest wait for an answer of a server of gRPC."""
SILENCE = 5.0
"""The longest wait for a page. A server of torch says nothing at all to a stranger."""
HEALTH, ALIVE = "/grpc.health.v1.Health/Check", "/ray.rpc.NodeInfoGcsService/CheckAlive"
UNDESCRIBED = [f"/ray.rpc.ObjectManagerService/{name}" for name in ("Push", "Pull", "FreeObjects")]
"""Methods of the one service of which Ray's Python package has no description."""
PATHS = ("/metrics", "/api/healthz", "/api/local_raylet_healthz", "/api/jobs/", "/get_or_create_runtime_env")
REFUSALS = (b"HTTP/1.1 401", b"HTTP/1.1 403")
REFUSED = {grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED}
"""Of another status, the server has looked into the question."""


def answers(port: int, token: str | None = None) -> list[str]:
    """What the server at a port of loopback says, refusals left out: `health`, `metrics`, or a method or path."""
    first = asked(port, "/", token)
    if first[3:9] == b"\x04\x00\x00\x00\x00\x00":  # a server of gRPC: the settings of HTTP/2
        return sorted(grpc_answers(port, token))
    # Who says nothing to the first question is not asked again.
    pages = {"/": first} | {path: asked(port, path, token) for path in PATHS} if first else {}
    return sorted({_kind(path, page) for path, page in pages.items() if not page.startswith(REFUSALS)})


def _kind(path: str, page: bytes) -> str:
    if b"# HELP" in page:
        return "metrics"
    return "health" if path.endswith("healthz") else f"{path}: {page[:60].decode('latin-1')}"


def asked(port: int, path: str, token: str | None) -> bytes:
    """What is sent back to a question by HTTP/1.1; empty after a silence or the end of the connection."""
    header = f"Authorization: Bearer {token}\r\n" if token else ""
    page = b""
    try:
        with socket.create_connection(("127.0.0.1", port), SILENCE) as connection:
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n{header}\r\n".encode())
            while b"# HELP" not in page and (part := connection.recv(65536)):
                page += part
    except OSError:
        pass
    return page


def grpc_answers(port: int, token: str | None) -> Iterator[str]:
    """The methods that are not refused, each called with an empty message."""
    metadata = [("authorization", f"Bearer {token}")] if token else None
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        # With a token an empty message would be obeyed.
        for method, streams in [(HEALTH, False), (ALIVE, False)] if token else methods():
            try:
                if streams:
                    next(channel.stream_stream(method)(iter([b""]), timeout=SECONDS, metadata=metadata), None)
                else:
                    channel.unary_unary(method)(b"", timeout=SECONDS, metadata=metadata)
                yield "health" if method == HEALTH else f"{method}: OK"
            except grpc.RpcError as error:
                if error.code() not in REFUSED:
                    yield f"{method}: {error.code().name}"


def methods() -> Iterator[tuple[str, bool]]:
    """Every method of every service that Ray's package describes, and whether it is one of streams."""
    yield from ((name, False) for name in (HEALTH, *UNDESCRIBED))
    for module in pkgutil.iter_modules(ray.core.generated.__path__):
        if module.name.endswith("_pb2"):
            described = importlib.import_module(f"ray.core.generated.{module.name}").DESCRIPTOR
            for service in described.services_by_name.values():
                for method in service.methods:
                    yield f"/{service.full_name}/{method.name}", method.client_streaming or method.server_streaming


if __name__ == "__main__":
    ports, given = sys.argv[1:], os.environ.get("OUTSIDER_TOKEN")
    with ThreadPoolExecutor(len(ports)) as threads:
        print(json.dumps(dict(zip(ports, threads.map(lambda port: answers(int(port), given), ports), strict=True))))
