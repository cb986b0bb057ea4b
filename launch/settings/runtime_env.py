"""Check the addresses and runtime environments of Ray in `cluster`. Must not import Ray."""

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from actors.foreign.passed_on import check_name, refuse_secrets
from actors.redaction import redact

UPLOADS = ("working_dir", "py_modules")
"""Keys with which Ray takes code to the hosts of a cluster."""
ALLOWED = frozenset(
    {*UPLOADS, "conda", "config", "container", "excludes", "image_uri", "nsight", "pip", "py_executable", "rocprof_sys"}
    | {"uv", "worker_process_setup_hook"}
)
REFUSED: Mapping[str, str] = MappingProxyType(
    {
        "env_vars": "variables belong to a role; set generators.environment, learner.environment, "
        "judging.environment or reference.environment",
        "java_jars": "workers are Python alone; leave it out",
    }
)


DEFAULT_PORT = 6379
"""Port of `ray start --head`."""
_HOST_AND_PORT = re.compile(r"(?P<host>\[[0-9A-Fa-f:.%\w]+\]|[^\s:/\[\]]+):(?P<port>\d+)")


def address_problem(address: str) -> str | None:
    """Return why no Ray can be at an address, and what to write; None for `auto`, `local` and HOST:PORT."""
    found = _HOST_AND_PORT.fullmatch(address)
    if address in ("auto", "local") or (found is not None and 0 < int(found["port"]) < 1 << 16):
        return None
    scheme, _, rest = address.rpartition("://")
    host = rest.rpartition("@")[2].partition(":")[0].strip("/") or "HOST"  # without a name or a password
    meant = f"write {host}:{DEFAULT_PORT}, or the port that `ray start --head` printed"
    if scheme == "ray":
        meant = f"ray:// is of Ray's client, which cannot run a training: {meant}"
    elif scheme in ("http", "https"):
        meant = f"a URL takes jobs: use `offbeat submit ray`, or {meant}"
    elif found is not None:
        meant = "correct the port, which is 1 to 65535"
    return f"given {redact(address)!r}; allowed: auto, local or HOST:PORT; {meant}"


def checked_runtime_env(given: Any) -> Any:
    """Return a runtime environment. Raises ValueError that names the first key which is refused or unknown."""
    if not isinstance(given, Mapping):
        return {} if given is None else given
    for name in given:
        check_name(name, ALLOWED, REFUSED, "the keys of Ray's runtime environment")
    refuse_secrets(given, "keep it in a file of the nodes, such as pip's own configuration")
    return dict(given)


def upload_problem(given: Mapping[str, Any]) -> str | None:
    """Return why a runtime environment does not fit a Ray that the run starts on this host; None if it does."""
    uploads = [name for name in UPLOADS if name in given]
    if not uploads:
        return None
    return (
        f"cluster.runtime_env.{uploads[0]} takes code to the hosts of a cluster, and this run starts its own Ray "
        "here, whose workers import what the run does; set cluster.address to HOST:PORT, or leave it out"
    )
