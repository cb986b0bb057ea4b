"""Warnings about what others on the network could reach or read; they never stop a run. Also protects Ray's token file.

Must not import Ray: it reads only the environment, files and addresses by which Ray is configured.
"""

import contextlib
import ipaddress
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from actors.foreign.text import shown
from actors.judges.config import HttpJudgeConfig, JudgeKind
from actors.redaction import redact

AUTH_MODE = "RAY_AUTH_MODE"
TOKEN_FILE = Path(".ray") / "auth_token"
"""Ray's file for a generated token, below the home directory."""


def is_loopback(host: str | None) -> bool:
    """Return whether only this machine reaches `host`, a name or an address."""
    if host is None or host == "localhost":
        return host is not None
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def started_ray(environ: Mapping[str, str]) -> str | None:
    """Warn about a Ray that is started here without token authentication, which is on by default."""
    mode = environ.get(AUTH_MODE, "token")
    if mode.lower() == "token":
        return None
    return (
        f"{AUTH_MODE}={mode}: anyone who reaches Ray's ports, at least every user of this machine, can run any command "
        f"as you; unset {AUTH_MODE}"
    )


def joined_ray(address: str, environ: Mapping[str, str], token: str | None) -> str | None:
    """Warn about a Ray at `address` that is on another machine and joined without a token."""
    host = address.rpartition("://")[2].rpartition(":")[0]
    if address == "auto" or is_loopback(host):
        return None
    if token is not None and environ.get(AUTH_MODE, "token").lower() == "token":
        return None
    return (
        f"the Ray at {redact(address)} is joined over the network without a token: anyone who reaches it can run any "
        f"command on its machines; start it with {AUTH_MODE}=token, and see docs/launching.md"
    )


def job_server(address: str, token: str | None) -> str | None:
    """Warn about a job server that receives a token, or the code of a job, unencrypted."""
    url = urlsplit(address)
    if url.scheme == "https" or is_loopback(url.hostname):
        return None
    sent = "its token and the job travel" if token else "the job travels"
    return (
        f"{redact(address)} is neither https nor on this machine: {sent} unencrypted over the network; tunnel the port "
        "with ssh -L 8265:localhost:8265 HOST and submit to http://127.0.0.1:8265"
    )


def http_judge(judge: JudgeKind) -> str | None:
    """Warn about a judge that receives its key unencrypted."""
    if not isinstance(judge, HttpJudgeConfig) or judge.api_key_env is None:
        return None
    url = urlsplit(judge.url)
    if url.scheme == "https" or is_loopback(url.hostname):
        return None
    return (
        f"the key in {judge.api_key_env} travels unencrypted over the network to the judge at {judge.url}; use https, "
        "or tunnel the port"
    )


def warn(*warnings: str | None) -> None:
    """Print the warnings that are not None to standard error."""
    for text in warnings:
        if text is not None:
            print(shown(f"offbeat: warning: {text}"), file=sys.stderr)


def keep_token_private(home: Path) -> None:
    """Make the token that Ray generated unreadable for other users of the machine; Ray leaves it readable."""
    with contextlib.suppress(OSError):
        path = home / TOKEN_FILE
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
