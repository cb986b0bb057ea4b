"""Which Ray a run joins and what it reserves there. Imports nothing heavy, and not Ray."""

import os

from launch.settings.run import ClusterConfig, RunConfig


def address_to_join(cluster: ClusterConfig) -> str | None:
    """Return the address of the Ray to join; None to start one."""
    if cluster.address == "auto":
        return os.environ.get("RAY_ADDRESS")
    return None if cluster.address == "local" else cluster.address


def resources_needed(config: RunConfig) -> dict[str, float]:
    """Sum the CPU cores and GPUs that the run's actors reserve at its start."""
    learner = config.learner
    sampling = resources_to_sample(config, config.generators.required)
    return {
        "CPU": sampling["CPU"] + learner.ranks * learner.cpus_per_rank,
        "GPU": sampling["GPU"] + learner.ranks * learner.gpus_per_rank,
    }


def resources_to_sample(config: RunConfig, generators: int) -> dict[str, float]:
    """Sum the CPU cores and GPUs that this number of generators and all judges reserve."""
    judging = config.judging
    return {
        "CPU": generators * config.generators.cpus,
        "GPU": generators * generator_gpus(config) + judging.count * judging.gpus,
    }


def generator_gpus(config: RunConfig) -> float:
    """Return the GPUs that each generator reserves: its tensor parallel size, or 0 if the run uses no GPUs."""
    return float(config.generators.tensor_parallel_size) if config.learner.gpus_per_rank > 0 else 0.0
