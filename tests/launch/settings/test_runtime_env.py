"""The list of keys of Ray's runtime environment against Ray's own, and what is refused."""

from __future__ import annotations

import inspect

import pytest
from pydantic import ValidationError

from launch.settings.run import ClusterConfig, TrainingConfig
from launch.settings.runtime_env import ALLOWED, REFUSED


def test_every_key_of_ray_is_allowed_or_refused_and_no_other_is_named() -> None:
    from ray.runtime_env import RuntimeEnv

    named = {name for name in inspect.signature(RuntimeEnv.__init__).parameters if name not in ("self", "kwargs")}
    known = {name for name in named | RuntimeEnv.known_fields if not name.startswith("_")}
    assert ALLOWED | set(REFUSED) == known
    assert ALLOWED & set(REFUSED) == set()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"env_vars": {"A": "b"}},
            "env_vars cannot be set here: variables belong to a role; set generators.environment",
        ),
        ({"pipp": ["a"]}, "pipp is not one of the keys of Ray's runtime environment; nearest: pip"),
        ({"pip": ["--extra-index-url https://me:pa55word@host/simple"]}, "must hold no secret, and pip looks like one"),
    ],
)
def test_a_key_that_may_not_be_set_is_refused_with_the_reason(given: dict[str, object], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        ClusterConfig(runtime_env=given)


@pytest.mark.parametrize("name", ["working_dir", "py_modules"])
def test_code_is_uploaded_only_to_a_cluster(name: str) -> None:
    ClusterConfig(address="head:6379", runtime_env={name: "."})
    ClusterConfig(address="auto", runtime_env={name: "."})
    with pytest.raises(ValidationError, match=f"runtime_env.{name} takes code to the hosts of a cluster"):
        ClusterConfig(address="local", runtime_env={name: "."})


def test_a_run_s_output_is_never_below_the_copy_that_workers_start_in() -> None:
    """The learner writes checkpoints by the path that it is given."""
    cluster = {"address": "head:6379", "runtime_env": {"working_dir": "."}}
    TrainingConfig(cluster=cluster, output="/shared/runs/a")
    with pytest.raises(
        ValidationError, match=r"would write runs/a there, which Ray removes; set output to an absolute"
    ):
        TrainingConfig(cluster=cluster, name="a")
    TrainingConfig(cluster=cluster | {"runtime_env": {"py_modules": ["."]}}, name="a")
