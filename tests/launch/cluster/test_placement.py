"""What a run reserves, before there is a Ray to ask."""

import pytest

from launch.cluster.placement import address_to_join, resources_needed
from launch.settings.loading import load_config
from launch.settings.run import ClusterConfig

PASSED = ["model.path=/m", "prompts.source=/p.jsonl", "judging.judge.path=/rm"]


def test_a_gpu_run_reserves_for_generators_ranks_and_judge():
    # 3 generators and 4 ranks with 4 cores each; a GPU for each of them and one for the judge.
    assert resources_needed(load_config("node-8gpu", PASSED)) == {"CPU": 28.0, "GPU": 8.0}
    split = [*PASSED, "generators.tensor_parallel_size=2", "judging.judge.gpus=0.5", "judging.count=3"]
    assert resources_needed(load_config("node-8gpu", split)) == {"CPU": 28.0, "GPU": 3 * 2 + 4 + 1.5}


def test_a_cpu_run_reserves_no_gpus():
    config = load_config("embedded", ["generators.count=3", "learner.ranks=2", "learner.cpus_per_rank=0.5"])
    assert resources_needed(config) == {"CPU": 4.0, "GPU": 0.0}


def test_generators_that_may_come_later_reserve_nothing_at_the_start():
    config = load_config("embedded", ["generators.count=3", "generators.min_count=1", "learner.ranks=2"])
    assert resources_needed(config) == {"CPU": 3.0, "GPU": 0.0}


def test_what_is_reserved_is_what_ray_is_asked_for(monkeypatch: pytest.MonkeyPatch):
    """The check with Ray's own figures accepts exactly what is told here, and no less."""
    from actors.errors import UsageError
    from launch.cluster import wiring

    config = load_config("node-8gpu", PASSED)
    needed = resources_needed(config)
    monkeypatch.setattr(wiring.ray, "cluster_resources", lambda: dict(needed))
    monkeypatch.setattr(wiring.ray, "nodes", list)
    wiring.check_resources(config)
    for resource in needed:
        monkeypatch.setattr(wiring.ray, "cluster_resources", lambda less=resource: needed | {less: needed[less] - 0.5})
        with pytest.raises(UsageError, match=f"{resource}s"):
            wiring.check_resources(config)


def test_auto_joins_the_cluster_of_the_job_and_local_none(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    assert address_to_join(ClusterConfig(address="auto")) == "10.0.0.1:6379"
    assert address_to_join(ClusterConfig(address="local")) is None
    assert address_to_join(ClusterConfig(address="10.0.0.2:6379")) == "10.0.0.2:6379"
    monkeypatch.delenv("RAY_ADDRESS")
    assert address_to_join(ClusterConfig(address="auto")) is None
