"""What an engine leaves behind: nothing, however it ends."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from actors.generation.startup import start_files
from tests.fakes.models import tiny_llama
from tests.house import ROOT

MAPS = """\
7f1c00000000-7f1c0f000000 rw-s 00000000 00:1a 11 /dev/shm/psm_35775d77
7f1c10000000-7f1c1f000000 rw-s 00000000 00:1a 12 /dev/shm/psm_b959cba9 (deleted)
7f1c20000000-7f1c2f000000 rw-s 00000000 00:1a 13 /dev/shm/vllm_dist_17dd03eb-tp:0-[0-1]-cpushm_0
7f1c20000000-7f1c2f000000 rw-s 00001000 00:1a 13 /dev/shm/vllm_dist_17dd03eb-tp:0-[0-1]-cpushm_0
7f1c30000000-7f1c30001000 rw-s 00000000 00:1a 14 /dev/shm/sem.mp-r7g8ofbj
7f1c40000000-7f1c40001000 r--s 00000000 00:1a 15 /dev/shm/offbeat-259ze82m/version-3
7f1c50000000-7f1c50001000 rw-s 00000000 00:1a 16 /dev/shm/somebody-psm_else
7f1c60000000-7f1c60001000 rw-p 00000000 00:00 0
7f1c70000000-7f1c70001000 r-xp 00000000 08:01 17 /opt/psm_lib/psm_x.so
"""
UUID = "336e3806-c12a-4822-b41a-e5fa10858b2d"


def unix(*rows: tuple[int, str]) -> str:
    """A /proc/net/unix with these inodes and paths."""
    lines = [f"0000000000000000: 00000002 00000000 00010000 0001 01 {inode} {path}".rstrip() for inode, path in rows]
    return "\n".join(["Num       RefCount Protocol Flags    Type St Inode Path", *lines, ""])


def test_vllm_s_named_segments_are_found_among_what_a_process_maps() -> None:
    assert start_files.segments_in(MAPS) == {
        "/dev/shm/psm_35775d77",
        "/dev/shm/vllm_dist_17dd03eb-tp:0-[0-1]-cpushm_0",
    }


def test_only_a_process_s_own_sockets_are_found() -> None:
    table = unix((7, f"/tmp/{UUID}"), (8, f"/tmp/{UUID.replace('3', '4')}"), (10, ""))
    assert start_files.sockets_in(table, [7, 10]) == {f"/tmp/{UUID}"}


def test_a_process_s_names_are_read_from_its_maps_its_sockets_and_where_its_workers_met(tmp_path: Path) -> None:
    temporary = tempfile.gettempdir()
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "unix").write_text(unix((7, f"{temporary}/{UUID}"), (8, f"{temporary}/plasma_store")))
    (tmp_path / "self" / "fd").mkdir(parents=True)
    (tmp_path / "self" / "maps").write_text(MAPS)
    for number, target in enumerate(("socket:[7]", "socket:[8]", "pipe:[9]", "/dev/null")):
        (tmp_path / "self" / "fd" / str(number)).symlink_to(target)
    names = start_files.of_process("self", "file:///tmp/vllm_dist_17dd", tmp_path)
    assert names == sorted([*start_files.segments_in(MAPS), f"{temporary}/{UUID}", "/tmp/vllm_dist_17dd"])
    assert "/tmp/vllm_dist_17dd" not in start_files.of_process("self", "tcp://127.0.0.1:29500", tmp_path)


def test_a_name_that_is_gone_already_is_no_failure(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    start_files.remove([str(tmp_path / "a"), str(tmp_path / "a"), str(tmp_path / "b")])
    assert list(tmp_path.iterdir()) == []


def test_destructors_miss_vllm_s_segments_in_silence_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: shown.append(unraisable.exc_value.filename))
    start_files.expect_missing()

    class Dying:
        def __init__(self, filename: str) -> None:
            self.filename = filename

        def __del__(self) -> None:
            raise FileNotFoundError(2, "No such file or directory", self.filename)

    for filename in ("/psm_d240dc11", "/other"):
        Dying(filename)
    assert shown == ["/other"]


STARTING = """
import os, socket, tempfile, time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path
from actors.generation.startup import start_files

with start_files.noted(0.02):
    segment = SharedMemory(create=True, size=4096)
    bound = socket.socket(socket.AF_UNIX)
    bound.bind(f"{tempfile.gettempdir()}/336e3806-c12a-4822-b41a-e5fa10858b2d")
    [note] = Path(tempfile.gettempdir()).glob("offbeat-*.names")
    while len(note.read_text().splitlines()) < 2:
        time.sleep(0.02)
    print(segment.name, flush=True)
    os.kill(resource_tracker._resource_tracker._pid, 9)  # it would clean up
    os.kill(os.getpid(), 9)
"""


def test_what_a_killed_start_left_is_removed_by_the_next(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(short_dir))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(short_dir)}
    done = subprocess.run([sys.executable, "-c", STARTING], env=environment, capture_output=True, text=True, timeout=60)
    segment = Path("/dev/shm") / done.stdout.strip()
    assert (done.returncode, segment.is_file(), (short_dir / UUID).is_socket()) == (-9, True, True), done.stderr
    with start_files.noted():
        assert not segment.exists()
        start_files.remove_dead()
        assert len(list(short_dir.iterdir())) == 1, "its own note, which is locked"
    assert list(short_dir.iterdir()) == []


def test_a_note_removes_nothing_but_what_vllm_makes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    note, mine = f"offbeat-{os.getuid()}-engine-x.names", tmp_path / "mine"
    mine.touch()
    (tmp_path / note).write_text(f"{mine}\n/dev/shm/../..{mine}\n/dev/shm/psm_/../../..{mine}\n\n")
    os.mkfifo(tmp_path / note.replace("x", "y"))
    (tmp_path / note.replace("x", "z")).symlink_to(mine)
    start_files.remove_dead()
    assert mine.exists()
    assert not (tmp_path / note).exists()


def left_by_engines(temporary: Path) -> set[str]:
    """What vLLM has in shared memory, and its sockets and files in a temporary directory."""
    shared = {name for name in os.listdir("/dev/shm") if name.startswith(("psm_", "vllm_dist_"))}
    return shared | {
        path.name for path in temporary.iterdir() if path.name.startswith("vllm_dist_") or path.is_socket()
    }


ENGINE = """
import os, sys
from pathlib import Path
from actors.generation.config import GeneratorConfig, SamplingConfig
from actors.generation.engine import Engine
from tests.fakes.generators import spec_of

if __name__ == "__main__":
    settings = GeneratorConfig(
        dtype="float32", max_model_len=256, max_running_prompts=8, kv_cache_mib=32, tensor_parallel_size=2
    )
    engine = Engine(spec_of(Path(sys.argv[1]), settings, SamplingConfig(max_new_tokens=8), seed=3))
    for number in range(4):
        engine.add(str(number), [5, 6, 7 + number])
    finished = 0
    while engine.busy:
        finished += len(engine.step())
    print(f"finished {finished}", flush=True)
    os.kill(os.getpid(), 9)
"""


@pytest.mark.slow
@pytest.mark.vllm
@pytest.mark.long
def test_an_engine_of_two_processes_that_is_killed_leaves_nothing(tmp_path: Path, short_dir: Path) -> None:
    """With two workers on CPU vLLM left 0.7 GB in /dev/shm, and sockets and a file in the temporary directory."""
    tiny_llama(tmp_path / "model", seed=1)
    script, temporary = tmp_path / "engine.py", short_dir  # a socket's path may have 107 characters
    script.write_text(ENGINE)
    before = left_by_engines(temporary)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(temporary)}
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "model")],
        env=environment, capture_output=True, text=True, timeout=250, cwd=ROOT,
    )  # fmt: skip
    assert (done.returncode, done.stdout.strip()) == (-9, "finished 4"), done.stderr[-2000:]
    assert left_by_engines(temporary) <= before
