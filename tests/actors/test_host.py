"""Usable cores and free ports."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from actors.host import bound_socket, cpu_quota, free_port, threads, usable_cores


def test_a_free_port_can_be_listened_on_and_a_taken_one_is_refused() -> None:
    port = free_port("127.0.0.1")
    assert free_port("127.0.0.1", port) == port
    with socket.create_server(("127.0.0.1", port)):
        with pytest.raises(OSError, match="in use"):
            free_port("127.0.0.1", port)
        assert free_port() != port


def test_a_bound_socket_has_one_address_and_a_taken_port_is_refused() -> None:
    with bound_socket("127.0.0.1") as bound:
        host, port = bound.getsockname()
        assert (host, port > 0) == ("127.0.0.1", True)
        bound.listen()
        with pytest.raises(OSError, match="in use"):
            bound_socket("127.0.0.1", port)


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 4.0),
    ],
)
def test_a_quota_is_read_of_both_versions_of_control_groups(
    tmp_path: Path, files: dict[str, str], quota: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cpu_quota(tmp_path) == quota


def test_usable_cores_are_those_of_the_affinity_within_the_quota(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {1, 4, 5})
    assert usable_cores(tmp_path) == 3
    for quota, cores in ((250_000, 2), (50_000, 1), (900_000, 3)):
        (tmp_path / "cpu.max").write_text(f"{quota} 100000\n")
        assert usable_cores(tmp_path) == cores


@pytest.mark.parametrize(("given", "expected"), [(None, 8), ("", 8), ("0", 8), ("4,2", 8), ("3", 3), ("99", 8)])
def test_there_are_as_many_threads_as_cores_or_as_omp_num_threads_gives(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: int
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert threads(8) == expected
