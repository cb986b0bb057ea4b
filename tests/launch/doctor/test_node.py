"""A node that the user describes stands in for this machine, which may have no GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from actors.errors import UsageError
from launch.doctor import checkup, machine
from launch.doctor.node import described, what
from launch.settings.loading import load_config
from launch.settings.run import RunConfig
from tests.fakes.models import tiny_llama

GPUS = ("learner.gpus_per_rank=1", "learner.ranks=3", "generators.count=4", "publication.transport=nccl")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tiny_llama(tmp_path / "model", seed=0)
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "w5 w6", "answer": "7"}\n')
    path = tmp_path / "config.yaml"
    path.write_text(
        f"model: {{path: {tmp_path}/model}}\n"
        f"prompts: {{source: {tmp_path}/prompts.jsonl, answer_field: answer, max_prompt_tokens: 8}}\n"
        "sampling: {max_new_tokens: 4}\n"
        "generators: {max_model_len: 32}\n"
        "judging: {judge: {kind: verifier}}\n"
        "publication: {canary_tokens: 8}\n"
    )
    return path


def found(config: RunConfig, gpus: str, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any]]:
    """The exit code, and each check's level and text."""
    code = checkup.run_doctor(config, json=True, gpus=gpus)
    listed = json.loads(capsys.readouterr().out)["findings"]
    return code, {each["name"]: (each["level"], each["text"]) for each in listed}


@pytest.mark.parametrize("given", ["8x80", "8X80GB", " 8x80g "])
def test_gpus_are_a_number_and_gigabytes_of_each(given: str) -> None:
    cards = described(given)
    assert [card.total for card in cards] == [80 * 10**9] * 8
    assert what(cards) == "a node with 8 GPUs of 80 GB"


def test_one_gpu_is_one() -> None:
    assert what(described("1x24")) == "a node with 1 GPU of 24 GB"


@pytest.mark.parametrize("given", ["", "8", "x80", "8x", "0x80", "8x0", "65x80", "8x1025", "8 x 80", "8x80x2", "-8x80"])
def test_another_word_is_told_what_to_give(given: str) -> None:
    with pytest.raises(UsageError, match="the number of GPUs of one node, 1 to 64, and the GB of each, 1 to 1024") as e:
        described(given)
    assert str(e.value).startswith(f"--gpus {given}: ")


def test_what_this_machine_has_does_not_count(file: Path, capsys, monkeypatch) -> None:
    """Three ranks of 9 cores and four engines of one need 31 cores and 7 GPUs; a seventh GPU is missed."""
    monkeypatch.setattr(machine, "memory", lambda: machine.Memory(1, 1))
    config = load_config(file, [*GPUS, "learner.cpus_per_rank=9", "generators.cpus=1"])
    code, checks = found(config, "7x80", capsys)
    assert [name for name, (level, _) in checks.items() if level == "error"] == []
    assert code == 0
    assert checks["node"][1].startswith("a node with 7 GPUs of 80 GB, as described")
    assert checks["placement"][1] == "4 generators, 3 learner ranks, 1 judge: 31 CPUs, 7 of 7 GPUs"
    assert checks["prompts"][0] == "ok", "what the run reads is read"
    assert not {"memory", "/dev/shm", "disk", "machine", "gpus", "requirements"} & set(checks)
    code, checks = found(config, "6x80", capsys)
    assert code == 1
    assert [name for name, (level, _) in checks.items() if level == "error"] == ["placement"]


def test_a_node_without_a_run_and_a_run_on_cpu_are_refused(file: Path) -> None:
    with pytest.raises(UsageError, match="--gpus 8x80 is the node of a run; give its configuration too"):
        checkup.run_doctor(None, gpus="8x80")
    with pytest.raises(UsageError, match=r"the run is on CPU \(learner.gpus_per_rank 0\); `offbeat init --gpus 8x80`"):
        checkup.run_doctor(load_config(file), gpus="8x80")
