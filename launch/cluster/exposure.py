"""What of a run others on the network could reach or read, said as warnings; and the token of a Ray started here.

Nothing here stops a run. It must not know Ray's API: only how Ray is told things, by environment, file and address.
"""

from __future__ import annotations

import contextlib
import ipaddress
import sys
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import urlsplit

from actors.judges.config import HttpJudgeConfig, JudgeKind
from actors.redaction import redact

AUTH_MODE = "RAY_AUTH_MODE"
TOKEN_FILE = Path(".ray") / "auth_token"
"""Below the home directory, where Ray writes the token that it makes."""


def is_loopback(host: str | None) -> bool:
    """Whether only this machine reaches `host`, a name or an address."""
    if host is None or host == "localhost":
        return host is not None
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def started_ray(environ: Mapping[str, str]) -> str | None:
    """The warning about a Ray that is started here; None where its ports ask for a token, as they do by default."""
    mode = environ.get(AUTH_MODE, "token")
    if mode.lower() == "token":
        return None
    return (
        f"{AUTH_MODE}={mode}: Ray listens on all interfaces of this machine, and whoever reaches its ports can run any "
        f"command as you; unset {AUTH_MODE}, or close the ports to others"
    )


def joined_ray(address: str, environ: Mapping[str, str], token: str | None) -> str | None:
    """The warning about the Ray at `address`; None where it is on this machine or this user has a token for it."""
    host = address.rpartition("://")[2].rpartition(":")[0]
    if address == "auto" or is_loopback(host):
        return None
    if token is not None and environ.get(AUTH_MODE, "token").lower() == "token":
        return None
    return (
        f"the Ray at {redact(address)} is joined over the network without a token: whoever reaches it can run any "
        f"command on its machines; start it with {AUTH_MODE}=token, and see docs/launching.md"
    )


def job_server(address: str, token: str | None) -> str | None:
    """The warning about a job server that is told a token, or the code of a job, in the clear."""
    url = urlsplit(address)
    if url.scheme == "https" or is_loopback(url.hostname):
        return None
    told = "its token and the job travel" if token else "the job travels"
    return (
        f"{redact(address)} is neither https nor on this machine: {told} unencrypted over the network; tunnel the port "
        "with ssh -L 8265:localhost:8265 HOST and submit to http://127.0.0.1:8265"
    )


def http_judge(judge: JudgeKind) -> str | None:
    """The warning about a judge that is told its key in the clear."""
    if not isinstance(judge, HttpJudgeConfig) or judge.api_key_env is None:
        return None
    url = urlsplit(judge.url)
    if url.scheme == "https" or is_loopback(url.hostname):
        return None
    return (
        f"the judge at {judge.url} is told the key in {judge.api_key_env} unencrypted over the network; use https, or "
        "tunnel the port"
    )


def warn(*warnings: str | None) -> None:
    """Says those that there are on standard error."""
    for text in warnings:
        if text is not None:
            print(f"offbeat: warning: {text}", file=sys.stderr)


def keep_token_private(home: Path) -> None:
    """Takes the token that Ray has made from the eyes of the machine's other users, as which Ray leaves it."""
    with contextlib.suppress(OSError):
        path = home / TOKEN_FILE
        if path.stat().st_mode & 0o077:
            path.chmod(0o600)
