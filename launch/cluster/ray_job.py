"""A Ray job: what is uploaded and started, how its log is followed to its end, and the exit code that comes back.

`launch.cluster.submit` plans the job and calls `run_ray_job`. This module must not know what the job does; Ray's own
client is imported when a job is really submitted, so that a dry run needs no Ray.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import sleep
from typing import Any, Protocol
from urllib.parse import urlsplit

from actors.errors import RunError, UsageError
from launch.cluster import exposure

EXCLUDED_FOLDERS = (".venv", ".git", "runs", "models", "build", ".mypy_cache", ".pytest_cache", ".ruff_cache")
DEFAULT_ADDRESS = "http://127.0.0.1:8265"
INTERRUPTED = 130
SECRET_NAME = re.compile(r"TOKEN|KEY|SECRET|PASSWORD", re.IGNORECASE)


@dataclass(frozen=True)
class RayJob:
    """What is handed to the cluster. Made by `launch.cluster.submit.plan_ray_job`, submitted by `run_ray_job`."""

    entrypoint: str
    working_dir: Path
    env_vars: Mapping[str, str] = field(default_factory=dict)

    def runtime_env(self) -> dict[str, Any]:
        """Ray's runtime environment: the upload, what stays out of it, its variables; never pip, which can hang."""
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
    """The `ray job submit` command that does the same, with secret values of the environment hidden."""
    runtime_env = job.runtime_env()
    runtime_env.pop("working_dir")
    runtime_env["env_vars"] = {
        name: "***" if SECRET_NAME.search(name) else value for name, value in job.env_vars.items()
    }
    words = ["ray", "job", "submit", "--address", address, "--working-dir", str(job.working_dir)]
    return f"{shlex.join([*words, '--runtime-env-json', json.dumps(runtime_env)])} -- {job.entrypoint}"


def job_server(address: str | None, environ: Mapping[str, str]) -> str:
    """The job server's URL: the one given, else RAY_API_SERVER_ADDRESS, else an http RAY_ADDRESS, else this machine's.

    Raises UsageError for an address that is not a URL: `ray start` prints two, and the other one is not for jobs.
    """
    candidates = (address, environ.get("RAY_API_SERVER_ADDRESS"), environ.get("RAY_ADDRESS"))
    chosen = next((a for a in candidates[:2] if a), None)
    if chosen is None and (candidates[2] or "").startswith("http"):
        chosen = candidates[2]
    chosen = (chosen or DEFAULT_ADDRESS).rstrip("/")
    url = urlsplit(chosen)
    if url.scheme not in ("http", "https") or not url.hostname:
        raise UsageError(
            f"address {chosen!r} is not that of a job server; it looks like http://HOST:8265 (the dashboard's)"
        )
    return chosen


def exit_code(status: str, entrypoint_code: int | None) -> int:
    """0 for a job that SUCCEEDED; else its entry point's own code (128 + n for signal n), or 1 where none is known."""
    if status == "SUCCEEDED":
        return 0
    if not entrypoint_code:
        return 1
    return entrypoint_code if entrypoint_code > 0 else 128 - entrypoint_code


class LogFollower:
    """Prints a job's log as it grows. After a broken connection the log starts over; what was printed is left out."""

    def __init__(self, client: JobClient, job_id: str) -> None:
        self._client, self._job_id, self._printed = client, job_id, 0

    async def follow(self) -> None:
        """Returns when the server closes the log, which it does once the job has ended."""
        seen = 0
        async for chunk in self._client.tail_job_logs(self._job_id):
            print(chunk[max(0, self._printed - seen) :], end="", flush=True)
            seen += len(chunk)
            self._printed = max(self._printed, seen)


def wait_for_job(
    client: JobClient, job_id: str, *, patience: int = 60, pause: Callable[[float], None] = sleep
) -> tuple[str, int | None]:
    """Follows a job to its end: (status, entry point's exit code or None).

    Raises RunError after `patience` failed tries in a row, a second apart: the job may well be running on.
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
                    f"lost contact with the job server ({error}); {job_id} may still be running: look with "
                    f"`ray job status {job_id}`, end it with `ray job stop {job_id}`"
                ) from error
        pause(1.0)


def auth_token(environ: Mapping[str, str], home: Path) -> str | None:
    """The cluster's token, from where Ray keeps it: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH, ~/.ray/auth_token.

    Ray's own client looks there only with RAY_AUTH_MODE=token set before it is imported, though its servers ask for a
    token by default. Raises UsageError for a RAY_AUTH_TOKEN_PATH that cannot be read.
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


@contextmanager
def _only_this_address(address: str) -> Iterator[None]:
    """Ray lets the environment's address win over the one given to it; for the while, they are the same."""
    name = "RAY_API_SERVER_ADDRESS"
    before = os.environ.get(name)
    os.environ[name] = address
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def connect(address: str) -> JobClient:
    """A client of the job server at a URL, with the token of this user. The job itself has the cluster's.

    Raises RunError where nothing answers or the token is refused.
    """
    url = urlsplit(address)
    token = auth_token(os.environ, Path.home())
    try:
        # Ray's client has no time limit of its own: a host that drops packets would hold it for minutes.
        socket.create_connection((url.hostname, url.port or (443 if url.scheme == "https" else 80)), timeout=10).close()
    except OSError as error:
        raise RunError(
            f"no Ray job server answers at {address} ({error}); start one with `ray start --head`, or give the URL of "
            "the cluster's dashboard as the address"
        ) from error
    from ray.exceptions import RayError
    from ray.job_submission import JobSubmissionClient

    try:
        with _only_this_address(address):
            return JobSubmissionClient(address, headers={"Authorization": f"Bearer {token}"} if token else None)
    except (OSError, RuntimeError, ValueError, RayError) as error:
        raise RunError(
            f"the Ray job server at {address} refused: {str(error).strip().splitlines()[0]}; check the address, and "
            "that RAY_AUTH_TOKEN_PATH names the cluster's token"
        ) from error


def run_ray_job(job: RayJob, address: str) -> int:
    """Submits a job and follows it to its end. Returns its exit code, 130 where Ctrl-C stopped it."""
    exposure.warn(exposure.job_server(address, auth_token(os.environ, Path.home())))
    client = connect(address)
    try:
        job_id = client.submit_job(entrypoint=job.entrypoint, runtime_env=job.runtime_env())
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(
            f"the job was not accepted: {str(error).strip()}; where the upload is too large, keep data and models "
            f"out of {job.working_dir} or in one of the folders left out ({', '.join(EXCLUDED_FOLDERS)})"
        ) from error
    print(f"submitted {job_id} to {address}", flush=True)
    try:
        status, code = wait_for_job(client, job_id)
    except KeyboardInterrupt:
        print(f"\ninterrupted: stopping {job_id}", flush=True)
        client.stop_job(job_id)
        status, _ = wait_for_job(client, job_id)
        print(f"{job_id} is {status}", flush=True)
        return INTERRUPTED
    result = exit_code(status, code)
    print(f"{job_id} {status}, exit code {result}", flush=True)
    return result
