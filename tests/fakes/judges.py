"""In-process stand-ins for judges, and an HTTP server that answers by a script."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from collections.abc import Sequence
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from actors.records import (
    Failure,
    Group,
    Judgement,
    Pulse,
)


class FakeJudge:
    """Scores a completion by the length of its text."""

    name, vital = "judge", False

    async def pulse(self) -> Pulse:
        return Pulse("a host", 0)

    def kill(self) -> None: ...

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
        await asyncio.sleep(0)
        return [
            replace(group, judgement=Judgement(tuple(float(len(c.text)) for c in group.completions)))
            for group in groups
        ]

    async def ready(self) -> None:
        await asyncio.sleep(0)

    async def seconds(self) -> float:
        return 0.0

    async def figures(self) -> dict[str, float]:
        return {"groups": 7.0, "failed_groups": 0.0}


class FakeServer:
    """An HTTP server on a free port of this machine; a context.

    It answers request n, whose JSON is `body`, by `script(n, body)`: a status, headers and what to send, which is JSON
    unless it is bytes. None is silence until the end.
    """

    def __init__(self, script: Any) -> None:
        self.bodies: list[Any] = []
        self.headers: list[dict[str, str]] = []
        self.paths: list[str] = []
        self.most_at_a_time = 0
        self._script = script
        self._at_a_time = 0
        self._lock = threading.Lock()
        self._end = threading.Event()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet for headers and body, else each answer takes 40 ms

            def do_POST(self) -> None:
                with contextlib.suppress(ConnectionError):
                    server._answer(self)

            def log_message(self, *_: Any) -> None: ...

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> FakeServer:
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._end.set()
        self._http.shutdown()
        self._http.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> None:
        body = json.loads(request.rfile.read(int(request.headers["Content-Length"])))
        with self._lock:
            number = len(self.bodies)
            self.bodies.append(body)
            self.headers.append(dict(request.headers))
            self.paths.append(request.path)
            self._at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self._at_a_time)
        try:
            answer = self._script(number, body)
            if answer is None:
                self._end.wait()
                return
        finally:
            with self._lock:
                self._at_a_time -= 1
        status, headers, content = answer
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        request.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(data)


class ScriptedJudge:
    """Answers call `n` with `script(n, groups)`: judgements, an error to raise, or None for silence."""

    def __init__(self, script: Any) -> None:
        self.calls: list[list[int]] = []
        self._script = script

    async def judge(self, groups: Sequence[Group]) -> Any:
        self.calls.append([group.lease.index for group in groups])
        answer = self._script(len(self.calls) - 1, groups)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, BaseException):
            raise answer
        return answer
