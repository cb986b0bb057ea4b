"""The acceptance of a GPU, in small on CPU: what it finds, what it leaves out and why, and that it leaves nothing."""

from __future__ import annotations

import inspect
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actors.errors import UsageError
from benchmarks.gpu_acceptance.__main__ import FOR_CPU
from benchmarks.gpu_acceptance.children import Child, ChildGoneError, gpu_environment
from benchmarks.gpu_acceptance.learners import engine_of
from benchmarks.gpu_acceptance.learning import flops_per_token, peak_flops
from benchmarks.gpu_acceptance.models import random_model
from benchmarks.gpu_acceptance.parts import PARTS, Setup, reason_to_skip
from benchmarks.gpu_acceptance.runner import run_part
from launch.doctor.model_facts import ModelFacts
from launch.output.run_directory import LOCK, SHARED_MEMORY, SHM_PREFIX, SharedMemory
from tests.house import ROOT
from tests.processes import Marked

ENDING = (signal.SIGTERM, signal.SIGINT)
"""Signals upon which the command cleans up itself."""
COMMAND = [sys.executable, "-m", "benchmarks.gpu_acceptance"]


def left_in_memory(out: Path) -> list[Path]:
    """Folders in shared memory whose lock names `out`."""
    return [lock for lock in SHARED_MEMORY.glob(f"*{SHM_PREFIX}*/{LOCK}") if str(out) in lock.read_text()]


def accept(out: Path, *arguments: str) -> tuple[int, dict[tuple[str, str], dict[str, Any]], str]:
    """Runs the command; returns its exit code, the JSON's parts by name and dtype, and what it printed."""
    marked = Marked()
    done = subprocess.run(
        [*COMMAND, "--out", str(out), *arguments], cwd=ROOT, env=marked.environ, capture_output=True, text=True
    )
    assert not marked.running()
    assert not left_in_memory(out)
    assert out.is_file(), done.stderr
    return done.returncode, {(p["part"], p["dtype"]): p for p in json.loads(out.read_text())["parts"]}, done.stdout


def run_in_small(out: Path, names: list[str]) -> tuple[dict[str, dict[str, Any]], str]:
    """Run these parts, of which none may fail; return the figures by part and dtype, and what was printed."""
    options = ["--jobs", "2", "--publications", "3", "--rounds", "1", "--kill-mib", "192", "--dtypes", "float32"]
    code, parts, printed = accept(out, "--parts", *names, *options)
    reasons = {name: part["reason"] for name, part in parts.items() if part["status"] == "failed"}
    assert (code, reasons) == (0, {})
    skipped = {name for (name, _), part in parts.items() if part["status"] == "skipped"}
    assert skipped == {"nccl", "ipc", "sleep"}
    assert {name for name, _ in parts} == set(names)
    assert "3 skipped" in printed
    return {f"{name} {dtype}": part["figures"] for (name, dtype), part in parts.items()}, printed


def assert_transported(figures: dict[str, Any]) -> None:
    assert figures["versions"] == 2
    assert figures["wrong_bits"] == "refused"
    assert min(figures[name] for name in ("publish", "transfer", "load", "bytes_per_second")) > 0.0


@pytest.mark.slow
@pytest.mark.vllm
def test_on_cpu_a_transport_a_killed_receiver_and_a_learner_run_in_small(tmp_path: Path) -> None:
    found, printed = run_in_small(tmp_path / "new" / "cpu.json", ["ipc", "nccl", "sleep", "learner", "kill", "gloo"])
    assert_transported(found["gloo bfloat16"])
    killed = found["kill bfloat16"]
    assert (killed["others"], killed["reason"]) == (2, "killed died")
    assert killed["sender_held"] < 10.0
    learner = found["learner bfloat16"]
    assert 0.5 < learner["estimate_over_peak"] < 2.0
    assert learner["tokens_per_second"] > 0.0
    assert learner["mfu"] is None, "nobody knows this CPU's peak"
    assert "kill" in printed


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.long
def test_on_cpu_everything_that_is_there_runs_in_small(tmp_path: Path) -> None:
    names = [name for name in PARTS if name != "shm"]  # by which the canary's versions travel
    found, _ = run_in_small(tmp_path / "cpu.json", names)
    for transport in ("object_store", "gloo"):
        assert_transported(found[f"{transport} bfloat16"])
    assert found["canary bfloat16"] == {"publications": 3, "wanted": 3, "refusals": 0, "lr": 5e-7, "reasons": []}
    mixture = found["mixture float32"]
    assert max(mixture["beta_0"], mixture["beta_0.5"], mixture["beta_1"]) == mixture["largest"] < 1e-4
    assert mixture["models_apart"] > 1.0
    assert found["generation bfloat16"]["tokens_per_second"] > 0.0


@pytest.mark.slow
@pytest.mark.vllm
def test_sleep_mode_is_asked_of_vllm_which_has_none_on_cpu(tmp_path: Path) -> None:
    """As far as the part `sleep` goes without a GPU; the two methods that it calls are there."""
    from vllm.v1.engine.llm_engine import LLMEngine

    assert set(inspect.signature(LLMEngine.sleep).parameters) >= {"level"}
    assert callable(LLMEngine.wake_up)
    random_model(tmp_path / "model", "tiny", seed=0)
    with engine_of(setup_of(tmp_path), sleeps=True) as engine, pytest.raises(UsageError, match="Sleep mode is not"):
        engine.ready()


def setup_of(folder: Path) -> Setup:
    """A part's, on CPU, with a model in `folder`."""
    model = str(folder / "model")
    names = {"part": "sleep", "model": model, "reference": model, "scratch": str(folder), "dtype": "bfloat16"}
    on_cpu = {"cuda": False, "seconds": 60.0, "engine_memory": 0.3, "peak_flops": None}
    return Setup(**names, **on_cpu, **FOR_CPU, eager=True, offload_optimizer=False)


@pytest.mark.slow
def test_parts_that_no_longer_fit_are_left_out_with_the_reason(tmp_path: Path) -> None:
    code, parts, _ = accept(tmp_path / "late.json", "--parts", "canary", "kill", "--minutes", "0.01")
    assert code == 0
    for part in parts.values():
        assert part["status"] == "skipped"
        assert part["reason"] == "0 s are left of the 0.01 minutes"


def test_a_part_that_hangs_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    """Its limit is over before Python has imported torch."""
    found = run_part("machine", {}, tmp_path / "hangs", seconds=0.2)
    assert found["status"] == "failed"
    assert found["reason"].startswith("it was stopped after 0 s")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, *(pytest.param(each, marks=pytest.mark.long) for each in ENDING)])
def test_no_process_outlives_the_command(number: int, tmp_path: Path) -> None:
    """Killed with -9 it leaves a folder in shared memory, which the next run removes, as a run's."""
    marked = Marked()
    command = [*COMMAND, "--parts", "kill", "--out", str(tmp_path / "ended.json")]
    process = subprocess.Popen(command, cwd=ROOT, env=marked.environ, stderr=subprocess.DEVNULL)
    _until(lambda: len(marked.running()) >= 5)  # the command, its part and three receivers
    process.send_signal(number)
    _until(lambda: not marked.running())
    assert process.wait() != 0
    assert number == signal.SIGKILL or not left_in_memory(tmp_path)
    SharedMemory(tmp_path).close()
    assert not left_in_memory(tmp_path)


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.slow
def test_a_part_whose_model_is_broken_fails_alone_and_the_command_says_so_by_its_exit_code(tmp_path: Path) -> None:
    broken = tmp_path / "model"
    broken.mkdir()
    (broken / "config.json").write_text("{")
    options = ["--model", str(broken), "--parts", "learner", "nccl"]
    code, parts, printed = accept(tmp_path / "broken.json", *options)
    assert code == 1
    assert parts["learner", "bfloat16"]["status"] == "failed"
    assert "config.json" in parts["learner", "bfloat16"]["reason"]
    assert parts["nccl", "bfloat16"]["status"] == "skipped"
    assert "1 failed" in printed


def test_a_directory_without_a_model_is_refused_at_once(tmp_path: Path) -> None:
    done = subprocess.run([*COMMAND, "--model", str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert f"{tmp_path} has no config.json" in done.stderr


# ---------------------------------------------------------------- which GPU a process sees


def test_a_child_has_its_environment_before_it_imports_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first question about GPUs settles which ones CUDA shows, and the engine shared the sender's GPU."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    with Child("receiver", "shm", False, environment=gpu_environment(1)) as child:
        assert child.ready().hello == {"visible": "5", "torch": False}


@pytest.mark.parametrize(("visible", "expected"), [(None, "1"), ("", "1"), ("3,5", "5"), ("GPU-a, GPU-b", "GPU-b")])
def test_a_gpu_is_one_of_those_that_this_process_sees(
    visible: str | None, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_environment(1) == {"CUDA_VISIBLE_DEVICES": expected}


def test_a_child_that_was_killed_is_reported_with_its_exit_code() -> None:
    with Child("receiver", "shm", False) as child:
        os.kill(child.ready().pid, signal.SIGKILL)
        with pytest.raises(ChildGoneError, match="exit code -9"):
            child.call("fetch", None, None)


@pytest.mark.parametrize(
    ("gpus", "runs"),
    [(0, {"shm", "object_store", "gloo"}), (1, {"ipc", "sleep"}), (2, {"ipc", "nccl"})],
)
def test_what_needs_gpus_is_left_out_with_the_reason(gpus: int, runs: set[str]) -> None:
    reasons = {name: reason_to_skip(part, {"gpus": gpus}) for name, part in PARTS.items()}
    assert all(reasons[name] is None for name in runs)
    left_out = {0: {"nccl", "ipc", "sleep"}, 1: {"nccl"}, 2: set()}[gpus]
    assert {name for name, reason in reasons.items() if reason} == left_out
    if gpus == 1:
        assert reasons["nccl"] is not None
        assert "two ranks on one device" in reasons["nccl"]
        assert reasons["nccl"].endswith("this process sees 1")


# ---------------------------------------------------------------- arithmetic


@pytest.mark.parametrize(
    ("card", "flops"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA A10", 125e12),
        ("NVIDIA L4", 121e12),
        ("NVIDIA GeForce RTX 4090", 165e12),
        ("NVIDIA L40", None),  # neither an L4 nor an L40S
    ],
)
def test_a_card_is_found_by_its_name(card: str, flops: float | None) -> None:
    assert peak_flops(card) == flops


def test_the_flops_of_a_token_count_what_multiplies_it() -> None:
    """By hand: 1000 weights, of which 10 x 8 are an embedding; 2 layers of 2 heads of 4; rows of 5 tokens."""
    facts = ModelFacts(1000, layers=2, hidden=8, kv_heads=2, head_size=4, vocabulary=10, heads=2)
    attention = 12 * 2 * 2 * 4 * 5
    assert flops_per_token(facts, tied=True, row_tokens=5) == pytest.approx((6000 + attention) * 4 / 3)
    assert flops_per_token(facts, tied=False, row_tokens=5) == pytest.approx((5520 + attention) * 4 / 3)
