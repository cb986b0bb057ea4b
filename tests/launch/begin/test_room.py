"""A run is fitted to a machine by the doctor's own checks. Machines and models are made up; sizes are real ones."""

from __future__ import annotations

from shutil import disk_usage
from typing import Any

import pytest

from launch.begin.lines import Line, tree_of
from launch.begin.place import Machine
from launch.begin.room import Fitted, fit, learning_rate
from launch.doctor import checkup, machine
from launch.doctor.machine import Gpu, Memory
from launch.doctor.model_facts import ModelFacts
from launch.settings.run import RunConfig

SMOL = ModelFacts(134_515_008, 30, 576, 3, 64, 49_152, heads=9, intermediate=1_536)
LLAMA_8B = ModelFacts(8_030_261_248, 32, 4_096, 8, 128, 128_256, heads=32, intermediate=14_336)
GIB = 1 << 30
LINES = [
    Line("model.path", "model"),
    Line("prompts.source", "instructions"),
    Line("prompts.max_prompt_tokens", 512),
    Line("sampling.max_new_tokens", 512),
    Line("generators.max_model_len", 1024),
    Line("learner.optimizer.lr", 1e-6),
]
JUDGE = [Line("judging.judge.kind", "reward_model"), Line("judging.judge.path", "rm")]


@pytest.fixture
def fitted(monkeypatch: pytest.MonkeyPatch):
    """Fit a model to a machine of some cores, memory and GPUs (GiB each)."""

    def on(model: ModelFacts, *, cores: int, memory: int, gpus: int = 0, card: int = 80, judge: bool = False) -> Fitted:
        monkeypatch.setattr(checkup, "read_model", lambda path: model)
        monkeypatch.setattr(machine, "memory", lambda: Memory(memory * GIB, memory * GIB))
        monkeypatch.setattr(checkup, "disk_usage", lambda path: disk_usage("/")._replace(free=1 << 50))
        monkeypatch.setattr(machine, "cpus", lambda: cores)
        monkeypatch.setattr(machine, "visible_gpus", lambda: gpus)
        cards = [Gpu(number, "H100", card * GIB, 0, "580") for number in range(gpus)]
        lines = (
            [*LINES, Line("judging.judge.kind", "reward_model"), Line("judging.judge.path", "rm")] if judge else LINES
        )
        return fit(lines, Machine(cores, cards), model, loads_judge=judge)

    return on


def chosen(result: Fitted, judge: bool) -> RunConfig:
    return RunConfig.model_validate(tree_of([*LINES, *JUDGE * judge, *result.lines]))


def errors(result: Fitted) -> list[str]:
    return [finding.name for finding in result.left if finding.level == "error"]


def values(result: Fitted) -> dict[str, Any]:
    return {line.key: line.value for line in result.lines}


def test_two_cores_train_a_small_model_with_defaults(fitted):
    result = fitted(SMOL, cores=2, memory=24)
    assert not [key for key in values(result) if key.startswith(("learner.", "cluster."))]
    assert errors(result) == []


def test_memory_and_places_of_this_machine_say_nothing_of_another_node(monkeypatch):
    monkeypatch.setattr(checkup, "read_model", lambda path: LLAMA_8B)
    monkeypatch.setattr(machine, "memory", lambda: Memory(4 * GIB, 4 * GIB))
    cards = [Gpu(number, "", 80 * 10**9, 0, "") for number in range(8)]
    node = fit(LINES, Machine(64, cards, "a node", "8x80"), LLAMA_8B, loads_judge=False)
    assert node.left == ()
    assert values(node)["learner.ranks"] == 4
    small = [Gpu(number, "", 8 * 10**9, 0, "") for number in range(2)]
    tight = fit(LINES, Machine(16, small, "a node", "8x80"), LLAMA_8B, loads_judge=False)
    assert "error" in [finding.level for finding in tight.left], "8 billion parameters do not fit on two of 8 GB"
    assert all(finding.name.endswith("GPU") for finding in tight.left), "places there are, whatever cores this one has"


@pytest.mark.parametrize("gpus", [1, 8])
def test_a_model_whose_size_could_not_be_read_is_given_what_takes_least_memory(monkeypatch, gpus):
    monkeypatch.setattr(checkup, "read_model", lambda path: None)
    cards = [Gpu(number, "", 80 * 10**9, 0, "") for number in range(gpus)]
    lines = fit(LINES, Machine(64, cards, "a node", f"{gpus}x80"), None, loads_judge=False).lines
    chosen = {line.key: line.value for line in lines}
    assert (chosen["learner.zero_stage"], chosen["learner.gradient_checkpointing"]) == (3, True)
    assert [line.why for line in lines if line.key == "learner.zero_stage"] == [
        "the model's size could not be read, and this takes the least GPU memory"
    ]


def test_little_memory_takes_smaller_passes_and_then_adapters(fitted):
    assert values(fitted(SMOL, cores=2, memory=10))["learner.micro_batch_tokens"] < 8192
    result = fitted(SMOL, cores=2, memory=6)
    assert values(result)["learner.lora.rank"] == 16


def test_one_core_is_shared_and_many_are_split(fitted):
    assert values(fitted(SMOL, cores=1, memory=24))["cluster.num_cpus"] == 2
    many = values(fitted(SMOL, cores=16, memory=24))
    assert (many["generators.cpus"], many["learner.cpus_per_rank"]) == (8, 8)


def test_the_cache_on_cpu_holds_the_sequences_that_its_reason_says(fitted):
    result = fitted(SMOL, cores=2, memory=24)
    line = next(line for line in result.lines if line.key == "generators.kv_cache_mib")
    one = 2 * 30 * 3 * 64 * 2 * 1024
    assert line.value == 1024
    assert line.why == f"keys and values of {(1024 << 20) // one} sequences of 1024 tokens"


@pytest.mark.parametrize("judge", [False, True])
@pytest.mark.parametrize("gpus", [1, 2, 3, 4, 8])
def test_a_small_model_fits_on_any_number_of_gpus(fitted, gpus, judge):
    result = fitted(SMOL, cores=32, memory=256, gpus=gpus, judge=judge)
    config = chosen(result, judge)
    assert errors(result) == []
    assert config.learner.gpus_per_rank > 0
    used = config.learner.ranks * config.learner.gpus_per_rank + config.generators.count * config.generators.gpus
    assert gpus - 1 <= used <= gpus


def test_eight_billion_parameters_train_whole_on_eight_gpus_and_as_adapters_on_a_small_one(fitted):
    assert "learner.lora.rank" not in values(fitted(LLAMA_8B, cores=64, memory=1024, gpus=8))
    assert values(fitted(LLAMA_8B, cores=16, memory=64, gpus=1, card=40))["learner.lora.rank"] == 16


def test_what_fits_nowhere_is_written_with_what_the_doctor_says(fitted):
    assert errors(fitted(LLAMA_8B, cores=2, memory=8)) == ["memory"]


def test_a_small_model_learns_faster():
    assert learning_rate(SMOL, gpus=False).value > learning_rate(SMOL, gpus=True).value
    assert learning_rate(SMOL, gpus=True).value > learning_rate(LLAMA_8B, gpus=True).value == 1e-6
