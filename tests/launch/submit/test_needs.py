"""The GPUs that a job asks for: counted by hand from what presets share out, and refused before a job is queued."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from actors.errors import UsageError
from launch.cli import main
from launch.settings.loading import load_config
from launch.submit.needs import MOST_GPUS, cores_per_node, gpus_per_node, memory_notes

GIVEN = ("model.path=m", "prompts.source=p", "judging.judge.path=j")
"""What presets for GPUs leave to the user."""


def needed(preset: str, nodes: int = 1, asked: int | None = None, *overrides: str) -> tuple[int, list[str]]:
    given = () if preset == "embedded" else GIVEN
    return gpus_per_node(load_config(preset, (*given, *overrides)), nodes, asked, "--gpus-per-node")


@pytest.mark.parametrize(
    ("preset", "nodes", "overrides", "expected"),
    [
        ("gpu-1", 1, (), 1),
        ("node-8gpu", 1, (), 8),
        ("cluster-2node", 2, (), 8),
        ("node-8gpu", 1, ("generators.count=2",), 7),
        ("node-8gpu", 1, ("generators.count=5", "generators.min_count=1", "publication.transport=object_store"), 10),
    ],
)
def test_unset_it_is_what_the_run_needs_with_all_its_generators(preset, nodes, overrides, expected):
    assert needed(preset, nodes, None, *overrides) == (expected, [])


def test_shares_of_a_gpu_are_not_summed_up():
    """0.6 and 0.6 are 1.2 GPUs, and no two of them fit on one."""
    shares = ("learner.ranks=2", "learner.gpus_per_rank=0.6", "generators.gpus=0.4", "generators.count=2")
    shares += ("judging.judge.gpus=0",)
    assert needed("gpu-1", 1, None, *shares)[0] == 2
    assert needed("gpu-1", 1, None, *shares, "generators.count=1", "learner.ranks=3")[0] == 3


def test_more_are_the_user_s_own_choice():
    assert needed("node-8gpu", 1, 9) == (9, [])


def test_too_few_are_refused_before_the_job_is_queued():
    with pytest.raises(UsageError, match="--gpus-per-node 4 is too few: the run needs 8 on the node; ask for more"):
        needed("node-8gpu", 1, 4)
    with pytest.raises(UsageError, match="--gpus-per-node 7 is too few: the run needs 8 on each of the 2 nodes"):
        needed("cluster-2node", 2, 7)


def test_an_engine_that_no_node_holds_is_refused():
    with pytest.raises(UsageError, match="generator 1 of 3 needs"):
        needed("node-8gpu", 1, None, f"generators.tensor_parallel_size={2 * MOST_GPUS}")


def test_a_run_on_cpu_asks_for_none_and_says_so():
    assert needed("embedded", 1) == (
        0,
        ["the run is on CPU and asks for no GPU: `offbeat init --gpus 8x80` writes one for GPUs"],
    )
    gpus, (note,) = needed("embedded", 1, 8)
    assert gpus == 8
    assert note == "the run is on CPU (learner.gpus_per_rank 0) and uses none of the GPUs of --gpus-per-node 8"


def test_cores_are_those_of_the_node_that_needs_most():
    """Ranks and generators of 4 cores each, two of 8 GPUs: rank 0 to 3 and a judge on one, four generators on both."""
    config = load_config("node-8gpu", (*GIVEN, "learner.cpus_per_rank=4", "generators.cpus=5", "judging.judge.gpus=0"))
    assert cores_per_node(config, 1, 8, None, "--cpus") == 4 * 4 + 3 * 5
    assert cores_per_node(config, 2, 4, None, "--cpus") == 16, "the ranks fill one node, the generators the other"
    assert cores_per_node(config, 2, 4, 16.0, "--cpus") == 16
    with pytest.raises(UsageError, match=r"--cpus 15\.5 is too few: the run needs 16 on each of the 2 nodes"):
        cores_per_node(config, 2, 4, 15.5, "--cpus")


def test_a_pod_has_the_cores_that_the_run_needs_and_sixteen_at_least(capsys):
    words = ["submit", "kuberay", "node-8gpu", "--image", "r/o:1", *GIVEN, "--dry-run"]
    assert main([*words, "learner.cpus_per_rank=8", "generators.cpus=4"]) == 0
    assert "cpu: '44'" in capsys.readouterr().out, "4 ranks of 8 and 3 generators of 4"
    assert main([*words, "learner.cpus_per_rank=1", "generators.cpus=1"]) == 0
    assert "cpu: '16'" in capsys.readouterr().out
    assert main([*words, "--cpus", "4", "learner.cpus_per_rank=8"]) == 2
    assert "--cpus 4 is too few" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (["slurm", "node-8gpu", "--gpus-per-node", "4"], "--gpus-per-node 4"),
        (["kuberay", "node-8gpu", "--image", "r/o:1", "--gpus-per-worker", "4"], "--gpus-per-worker 4"),
    ],
)
def test_launchers_ask_before_they_print_a_script(words, option, capsys):
    assert main(["submit", *words, *GIVEN, "--dry-run"]) == 2
    captured = capsys.readouterr()
    assert f"{option} is too few" in captured.err
    assert captured.out == ""


GIB = 1 << 30


@pytest.fixture
def policy(tmp_path):
    """A Llama of 2 layers, 134M parameters by its headers: 0.25 GiB in bfloat16."""
    sizes = {"hidden_size": 1024, "num_attention_heads": 16, "num_hidden_layers": 2, "vocab_size": 2**17}
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "intermediate_size": 4096, **sizes}
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file({"embed": torch.zeros(2**17, 1024, dtype=torch.bfloat16)}, tmp_path / "model.safetensors")
    return tmp_path


def memory(policy, pods: int, each: int, *overrides: str) -> list[str]:
    config = load_config("chat", [f"model.path={policy}", "learner.dtype=float32", *overrides])
    return memory_notes(config, pods, each, 100, f"--memory {each // GIB}Gi")


def test_a_pod_s_memory_is_compared_with_what_the_run_takes(policy):
    """Training in float32 takes 16 bytes a parameter, 2 GiB, before engine, reference and processes of a GiB each."""
    assert memory(policy, 1, 64 * GIB) == []
    (note,) = memory(policy, 1, 6 * GIB)
    assert note.startswith("--memory 6Gi is 6.0 GiB for the pod, and the run takes learner ")
    assert note.endswith("; ask for more, or lower generators.count or learner.ranks")
    with pytest.raises(UsageError, match=r"--memory 1Gi is 1\.0 GiB for each of 2 pods, and the run takes learner "):
        memory(policy, 2, GIB)


def test_a_model_that_is_not_here_is_not_counted(tmp_path):
    assert memory(tmp_path / "none", 1, GIB) == []


def test_memory_without_a_unit_is_told_as_bytes(policy):
    with pytest.raises(UsageError, match=r"--memory 0Gi is 128 bytes for the pod, and its /dev/shm of 100 MiB counts"):
        memory(policy, 1, 128)
