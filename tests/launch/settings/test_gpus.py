"""Which shares of GPUs are refused before anything starts, each with its value, its limit and the next step."""

from __future__ import annotations

import pytest

from actors.errors import UsageError
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from launch.settings.verbs import SFT

NODE = ["model.path=/m", "prompts.source=/p.jsonl", "judging.judge.path=/rm"]


def node(*overrides: str) -> RunConfig:
    return load_config("node-8gpu", [*NODE, *overrides])


@pytest.mark.parametrize(
    ("overrides", "reason"),
    [
        (["learner.gpus_per_rank=0"], r"transport nccl needs GPUs, and learner.gpus_per_rank is 0; set"),
        (
            ["learner.gpus_per_rank=0", "publication.transport=ipc", "learner.ranks=1"],
            r"transport ipc needs GPUs, and learner.gpus_per_rank is 0; set",
        ),
        (
            ["learner.gpus_per_rank=0", "publication.transport=shm", "generators.gpus=0.5"],
            r"generators.gpus 0.5 has no effect.*; leave it out",
        ),
        (
            ["learner.gpus_per_rank=0", "publication.transport=shm", "generators.async_scheduling=true"],
            r"generators.async_scheduling is for engines on GPUs, .* run on CPU; leave it out, or set",
        ),
        (["learner.gpus_per_rank=0.5"], r"gpus_per_rank 0.5 with ranks 4: two ranks could get the same GPU.*; set"),
        (["learner.gpus_per_rank=2"], r"gpus_per_rank: 2 is.*less than or equal to 1|gpus_per_rank.*<= 1|at most 1"),
        (["learner.gpus_per_rank=0.00001", "learner.ranks=1"], r"1e-05 is below 0.0001, the smallest share"),
        (["judging.judge.gpus=1.5"], r"judging.judge.*gpus"),
        (["generators.cpus=0.00001"], r"generators.cpus"),
        (
            ["generators.gpus=0.5", "generators.tensor_parallel_size=2"],
            r"tensor_parallel_size 2 with gpus 0.5: .*NCCL.*; set gpus to 1, or tensor_parallel_size to 1",
        ),
        (["generators.gpus=0.5"], r"nccl: two generators \(generators.gpus 0.5\) could get the same GPU"),
        (
            ["generators.gpus=0.4", "learner.gpus_per_rank=0.6"],
            r"nccl: a generator \(generators.gpus 0.4\) and a learner rank \(learner.gpus_per_rank 0.6\) could",
        ),
        (
            ["publication.transport=ipc"],
            r"ipc connects one learner rank.*learner.ranks is 4; set learner.ranks and generators.tensor_parallel_size",
        ),
        (
            ["publication.transport=ipc", "learner.ranks=1", "generators.tensor_parallel_size=2"],
            r"generators.tensor_parallel_size is 2; set",
        ),
        (
            ["publication.transport=ipc", "learner.ranks=1", "learner.gpus_per_rank=0.5", "generators.gpus=0.25"],
            r"add up to 1.25: learner.gpus_per_rank 0.5 and 3 times generators.gpus 0.25; lower them",
        ),
    ],
)
def test_gpus_that_cannot_be_shared_so_are_refused(overrides: list[str], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        node(*overrides)


@pytest.mark.parametrize(
    "overrides",
    [
        ["generators.gpus=0.6"],  # no two of them fit on one card
        ["generators.gpus=0.5", "generators.count=1"],  # beside a judge, say
        ["learner.gpus_per_rank=0.6", "generators.gpus=0.4", "publication.transport=shm"],
        ["learner.gpus_per_rank=0.6", "generators.gpus=0.4", "publication.transport=object_store"],
        ["publication.transport=ipc", "learner.ranks=1", "learner.gpus_per_rank=0.4", "generators.gpus=0.2"],
    ],
)
def test_what_can_share_a_gpu_is_accepted(overrides: list[str]) -> None:
    node(*overrides)


def test_the_ranks_of_a_stage_do_not_share_a_gpu_either() -> None:
    settings = ["data.source=/gsm8k", "learner.ranks=2", "learner.gpus_per_rank=0.5"]
    with pytest.raises(UsageError, match=r"gpus_per_rank 0.5 with ranks 2"):
        load_config("gsm8k", settings, SFT)


def test_an_engine_takes_85_hundredths_of_its_share_unless_told_otherwise() -> None:
    assert node().generators.gpu_memory_share == pytest.approx(0.85)
    assert node("generators.gpus=0.4", "publication.transport=shm").generators.gpu_memory_share == pytest.approx(0.34)
    assert node("generators.gpu_memory_utilization=0.5").generators.gpu_memory_share == 0.5


def test_adapters_are_refused_where_engines_have_no_kernels_for_them() -> None:
    """vLLM's kernels on GPUs know bfloat16; its own assertion would come minutes later, in each engine."""
    with pytest.raises(
        UsageError, match=r"dtype is float32, .* on GPUs in bfloat16 alone; set it to bfloat16, or learner"
    ):
        node("generators.dtype=float32", "learner.lora.rank=8")
    assert node("generators.dtype=float32", "learner.lora.publish=merged").adapter is None
    assert node("generators.dtype=bfloat16", "learner.lora.rank=8").adapter is not None
