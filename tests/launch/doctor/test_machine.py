"""What is measured, against files of known contents and against the machine itself."""

import os
import socket
from pathlib import Path

import pytest

from launch.doctor import machine
from launch.doctor.machine import Gpu, Space

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
    assert machine.memory(meminfo, cgroup) == Space(8 * GIB, 4 * GIB)


@pytest.mark.parametrize(
    ("limit", "used"),
    [("memory.max", "memory.current"), ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes")],
)
def test_a_container_s_limit_counts_and_its_cached_files_do_not(meminfo: Path, cgroup: Path, limit: str, used: str):
    (cgroup / limit).parent.mkdir(exist_ok=True)
    (cgroup / limit).write_text(f"{3 * GIB}\n")
    (cgroup / used).write_text(f"{2 * GIB}\n")
    ((cgroup / used).parent / "memory.stat").write_text(f"anon 5\ninactive_file {GIB}\n")
    assert machine.memory(meminfo, cgroup) == Space(3 * GIB, 2 * GIB)


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


def test_lines_of_nvidia_smi_are_read_and_others_left_out():
    listed = (
        "0, NVIDIA H100 80GB HBM3, 81559, 4, 580.65.06, 9.0\n"
        "1, NVIDIA T4, 15360, 1024, 580.65.06, 7.5\n"
        "2, [Unknown Error], [N/A], [N/A], 580.65.06, [N/A]\n"
        "\n"
    )
    assert machine.parse_gpus(listed) == [
        Gpu(0, "NVIDIA H100 80GB HBM3", 81559 << 20, 4 << 20, "580.65.06", (9, 0)),
        Gpu(1, "NVIDIA T4", 15360 << 20, 1024 << 20, "580.65.06", (7, 5)),
    ]


@pytest.mark.parametrize("script", ["#!/bin/sh\nexit 9\n", "#!/bin/sh\nsleep 5\n"])
def test_a_driver_tool_that_fails_or_hangs_shows_no_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(script)
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(machine, "SMI_SECONDS", 0.2)
    assert machine.gpus() == []


def test_the_driver_tool_is_asked_for_the_fields_that_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tool = tmp_path / "nvidia-smi"
    tool.write_text(f'#!/bin/sh\n[ "$1" = "--query-gpu={machine.SMI_FIELDS}" ] && echo "0, A, 2, 1, 5.1, 8.0"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine.gpus() == [Gpu(0, "A", 2 << 20, 1 << 20, "5.1", (8, 0))]


def test_a_directory_to_be_made_is_measured_where_it_will_be(tmp_path: Path):
    found = machine.folder(tmp_path / "runs" / "new")
    assert found.existing == tmp_path
    assert found.writable
    assert found.space.total == machine.space(tmp_path).total > 0
    assert not (tmp_path / "runs").exists()


def test_a_file_in_the_way_of_a_directory_is_not_writable(tmp_path: Path):
    (tmp_path / "runs").write_text("")
    assert not machine.folder(tmp_path / "runs" / "new").writable


def test_a_folder_takes_the_space_of_its_files(tmp_path: Path):
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "weights-1.safetensors").write_bytes(b"x" * 8192)
    (tmp_path / "lock").write_text("")
    assert machine.space_taken(tmp_path) == 8192


def test_a_port_is_free_until_somebody_listens():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        assert not machine.port_free(port)
        assert machine.connection_problem("127.0.0.1", port, 3.0) is None
    assert machine.port_free(port)
    assert machine.connection_problem("127.0.0.1", port, 3.0) == "Connection refused"


def test_a_package_that_is_not_installed_has_no_version():
    assert machine.installed_version("no-such-package-of-offbeat") is None
    assert machine.installed_version("pydantic") == pytest.importorskip("pydantic").VERSION
