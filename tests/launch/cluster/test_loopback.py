"""A run's own Ray keeps to loopback unless the user says otherwise, and gives its actors what keeps torch to it."""

from __future__ import annotations

import pytest
from ray._private import ray_constants, services

from launch.cluster import loopback


@pytest.mark.parametrize(
    ("value", "keeps"), [(None, True), ("0", True), ("false", True), ("1", False), ("true", False), ("True", False)]
)
def test_ray_s_own_variable_decides_and_loopback_is_the_default(value: str | None, keeps: bool) -> None:
    environ = {} if value is None else {loopback.SWITCH: value}
    assert loopback.keeps_to_loopback(environ) is keeps


def test_a_ray_started_within_takes_loopback_as_its_address_and_one_started_later_does_not() -> None:
    assert loopback.SWITCH == ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before = ray_constants.ENABLE_RAY_CLUSTER
    with loopback.own_ray({}):
        assert services.get_node_ip_address() == "127.0.0.1"
    with loopback.own_ray({loopback.SWITCH: "1"}):
        assert ray_constants.ENABLE_RAY_CLUSTER
    assert before == ray_constants.ENABLE_RAY_CLUSTER


def test_a_start_that_fails_leaves_ray_as_it_was() -> None:
    before = ray_constants.ENABLE_RAY_CLUSTER
    with pytest.raises(OSError, match="no room"), loopback.own_ray({}):
        raise OSError("no room")
    assert before == ray_constants.ENABLE_RAY_CLUSTER


def test_actors_are_kept_to_loopback_only_where_their_node_is_and_as_the_user_says() -> None:
    kept = {"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo", "VLLM_HOST_IP": "127.0.0.1"}
    assert loopback.environment("127.0.0.1", {}) == kept
    assert loopback.environment("127.0.0.1", {"NCCL_SOCKET_IFNAME": "eth0"}) == kept | {"NCCL_SOCKET_IFNAME": "eth0"}
    assert loopback.environment("10.0.0.1", {}) == {}
