"""Which keys of Ray's runtime environment `cluster.runtime_env` may set. Must not import Ray."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from actors.foreign.passed_on import check_name, refuse_secrets

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
