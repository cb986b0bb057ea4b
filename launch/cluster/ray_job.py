"""A Ray job: upload and entry point, following its log to the end, and its exit code.

`launch.submit.ray_cluster` plans the job and calls `run_ray_job`. Must not know what the job does. Ray's client is
imported only when a job is submitted, so that a dry run needs no Ray.
"""

import asyncio
import json
import os
import re
import shlex
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any, Protocol
from urllib.parse import urlsplit

from actors.errors import INTERRUPTED, RunError, UsageError
from actors.foreign.text import WHOLE, shown
from launch.cluster import security_warnings

EXCLUDED_FOLDERS = (".venv", ".git", "runs", "models", "build", ".mypy_cache", ".pytest_cache", ".ruff_cache")
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)


@dataclass(frozen=True)
class RayJob:
    """The job handed to the cluster. Made by `launch.submit.ray_cluster.plan_ray_job`, submitted by `run_ray_job`."""

    entrypoint: str
    working_dir: Path
    env_vars: Mapping[str, str] = field(default_factory=dict)

    def runtime_env(self) -> dict[str, Any]:
        """Return Ray's runtime environment: upload, excludes and variables; never pip, which can hang."""
        return {
            "working_dir": str(self.working_dir),
            "excludes": [f"/{name}" for name in EXCLUDED_FOLDERS] + ["__pycache__"],
            "env_vars": dict(self.env_vars),
        }


class JobClient(Protocol):
    """The part of `ray.job_submission.JobSubmissionClient` that is used here."""

    def submit_job(self, *, entrypoint: str, runtime_env: dict[str, Any]) -> str: ...
    def get_job_info(self, job_id: str) -> Any: ...
    def tail_job_logs(self, job_id: str) -> Any: ...
    def stop_job(self, job_id: str) -> bool: ...


def ray_command_line(job: RayJob, address: str) -> str:
    """Return the equivalent `ray job submit` command, with secret values of the environment hidden."""
    runtime_env = job.runtime_env()
    runtime_env.pop("working_dir")
    runtime_env["env_vars"] = {
        name: "***" if SECRET_NAME.search(name) else value for name, value in job.env_vars.items()
    }
    words = ["ray", "job", "submit", "--address", address, "--working-dir", str(job.working_dir)]
    return f"{shlex.join([*words, '--runtime-env-json', json.dumps(runtime_env)])} -- {job.entrypoint}"


def job_server(address: str | None, environ: Mapping[str, str]) -> str:
    """Return the job server's URL: `address`, else RAY_API_SERVER_ADDRESS, else an http RAY_ADDRESS, else this machine.

    Raises UsageError if it is not a URL: `ray start` prints two addresses, and the other one does not accept jobs.
    """
    ray_address = environ.get("RAY_ADDRESS", "")
    chosen = address or environ.get("RAY_API_SERVER_ADDRESS") or (ray_address if ray_address.startswith("http") else "")
    chosen = (chosen or DEFAULT_ADDRESS).rstrip("/")
    url = urlsplit(chosen)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(
            f"address {chosen!r} is not the URL of a job server; it looks like http://HOST:8265 (the dashboard's)"
        )
    return chosen


def exit_code(status: str, entrypoint_code: int | None) -> int:
    """Return 0 if the job SUCCEEDED, else its entry point's code (128 + n for signal n), or 1 if that is unknown."""
    if status == "SUCCEEDED":
        return 0
    if not entrypoint_code:
        return 1
    return entrypoint_code if entrypoint_code > 0 else 128 - entrypoint_code


_COLOUR = re.compile(r"\x1b\[[0-9;]*m")


class LogFollower:
    """Print a job's log as it grows. After a broken connection the server sends it again; skip what was printed."""

    def __init__(self, client: JobClient, job_id: str) -> None:
        self._client, self._job_id, self._printed = client, job_id, 0

    async def follow(self) -> None:
        """Return when the server closes the log, which it does once the job has ended."""
        seen = 0
        async for chunk in self._client.tail_job_logs(self._job_id):
            new = _COLOUR.sub("", chunk[max(0, self._printed - seen) :]).replace("\r", "\n")
            print(shown(new, WHOLE, lines=True), end="", flush=True)
            seen += len(chunk)
            self._printed = max(self._printed, seen)


def wait_for_job(
    client: JobClient, job_id: str, *, patience: int = 60, pause: Callable[[float], None] = sleep
) -> tuple[str, int | None]:
    """Follow a job to its end; return its status and its entry point's exit code, or None.

    Raises RunError after `patience` failed attempts in a row, one second apart: the job may still be running.
    """
    log, failures = LogFollower(client, job_id), 0
    while True:
        try:
            asyncio.run(log.follow())
            details = client.get_job_info(job_id)
            if details.status.is_terminal():
                return str(details.status), details.driver_exit_code
            failures = 0
        except (OSError, RuntimeError) as error:
            failures += 1
            if failures > patience:
                raise RunError(
                    f"lost contact with the job server ({error}); {job_id} may still be running: check it with "
                    f"`ray job status {job_id}`, end it with `ray job stop {job_id}`"
                ) from error
        pause(1.0)


def auth_token(environ: Mapping[str, str], home: Path) -> str | None:
    """Return the cluster's token from RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.

    Ray's own client reads these only if RAY_AUTH_MODE=token is set before its import, although its servers require a
    token by default. Raises UsageError if RAY_AUTH_TOKEN_PATH cannot be read.
    """
    if token := environ.get("RAY_AUTH_TOKEN"):
        return token
    named = environ.get("RAY_AUTH_TOKEN_PATH")
    try:
        return (Path(named) if named else home / ".ray" / "auth_token").read_text(encoding="utf-8").strip() or None
    except OSError as error:
        if named:
            raise UsageError(f"RAY_AUTH_TOKEN_PATH={named}: {error.strerror}; name the file with the token") from error
        return None


def connect(address: str) -> JobClient:
    """Return a client of the job server at a URL, with this user's token.

    Raises RunError if nothing answers or the token is refused.
    """
    url = urlsplit(address)
    token = auth_token(os.environ, Path.home())
    try:
        # Ray's client has no timeout: a host that drops packets would block it for minutes.
        socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), timeout=10).close()
    except OSError as error:
        raise RunError(
            f"no Ray job server answers at {address} ({error}); start one with `ray start --head`, or give the URL of "
            "the cluster's dashboard as the address"
        ) from error
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    os.environ["RAY_API_SERVER_ADDRESS"] = address  # Ray would prefer another value to the address passed
    try:
        return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise RunError(
            f"the Ray job server at {address} refused: {str(error).strip().splitlines()[0]}; check the address, and "
            "that RAY_AUTH_TOKEN_PATH names the cluster's token"
        ) from error


def run_ray_job(job: RayJob, address: str) -> int:
    """Submit a job, follow it to its end, and return its exit code, or 130 after Ctrl-C."""
    security_warnings.warn(security_warnings.job_server(address, auth_token(os.environ, Path.home())))
    client = connect(address)
    try:
        job_id = client.submit_job(entrypoint=job.entrypoint, runtime_env=job.runtime_env())
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(
            f"the job was not accepted: {str(error).strip()}; if the upload is too large, keep data and models out of "
            f"{job.working_dir}, or in a folder that is not uploaded ({', '.join(EXCLUDED_FOLDERS)})"
        ) from error
    print(shown(f"submitted {job_id} to {address}"), flush=True)
    try:
        status, code = wait_for_job(client, job_id)
    except KeyboardInterrupt:
        print(shown(f"\ninterrupted: stopping {job_id}", lines=True), flush=True)
        client.stop_job(job_id)
        status, _ = wait_for_job(client, job_id)
        print(shown(f"{job_id} is {status}"), flush=True)
        return INTERRUPTED
    result = exit_code(status, code)
    print(shown(f"{job_id} {status}, exit code {result}"), flush=True)
    return result
