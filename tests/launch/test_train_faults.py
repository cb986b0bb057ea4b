"""Whole runs while their surroundings fail: the disk, descriptors, the output directory, the clock, other runs.

Whatever fails, and whenever: one sentence tells which path, why and what to do; what is stored is whole; and a run that
goes on afterwards trains each lease once and in its place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed
from safetensors.torch import load_file

from actors.errors import UsageError
from actors.files import TEMPORARY
from actors.records import Canary, Manifest
from actors.replay_buffer.ledger import imbalance
from launch import cli, train
from launch.output import run_directory, summary
from launch.output.run_directory import SharedMemory
from launch.run import loop
from launch.run.protocols import Publication
from launch.settings.run import RunConfig
from launch.verify import run_verify
from learner.backend import collective
from learner.publication.senders import SharedMemorySender
from tests.fakes.disks import FaultyDisk
from tests.fakes.generators import FakeGenerator
from tests.launch.sessions import Learner, config_of, in_place_of_ray, journaled, summary_of

UPDATES = 4
REMEDIES = {
    errno.ENOSPC: "free space there, ",
    errno.EROFS: "make that file system writable again, ",
    errno.EMFILE: "let a process open more files (`ulimit -n`), ",
}
"""What a run says to do about each fault."""


class SavingLearner(Learner):
    """Writes more than nothing, and reports a failure as the ranks of a real one do; `during` is called in updates."""

    during: Callable[[int], None] = staticmethod(lambda update: None)
    """With the number of the update, from 1."""

    async def update(self, items: Any, measure_step: bool = False) -> Any:
        stats = await super().update(items, measure_step)
        self.during(len(self.batches))
        return stats

    async def save(self, stage: Path) -> None:
        def write() -> None:
            for part in ("deepspeed", "hf"):
                (stage / part).mkdir()
                (stage / part / "data").write_text("weights")

        collective.agree(collective.error_of(write), f"the checkpoint could not be written to {stage}")

    async def save_pretrained(self, directory: Path) -> None:
        def write() -> None:
            directory.mkdir(exist_ok=True)
            (directory / "config.json").write_text("{}")

        collective.agree(collective.error_of(write), f"the model could not be written to {directory}")


@dataclass
class Trial:
    """A run in `place / "run"`, started by the command line as often as wanted."""

    place: Path
    actors: Any
    config: RunConfig
    capture: pytest.CaptureFixture[str]

    @property
    def path(self) -> Path:
        return self.place / "run"

    def train(self, *arguments: str, learner: Learner | None = None, seconds: float = 0.001) -> tuple[int, str]:
        """Start it, or go on; return the exit code and what was said. A generator takes `seconds` for what it holds."""
        self.actors.learner = learner or SavingLearner()
        self.actors.generators = [FakeGenerator("a", seconds=seconds)]
        code = cli.main(["train", "embedded", *arguments])
        output = self.capture.readouterr()
        return code, output.out + output.err

    def go_on(self) -> None:
        """Resume it to its end, or start it if there is nothing to resume; it must be as if nothing had happened."""
        arguments = ["--resume"] if (self.path / "config.yaml").exists() else []
        code, said = self.train(*arguments)
        assert code == 0, said
        assert journaled(self.place) == [(update, list(range(4 * update, 4 * update + 4))) for update in range(UPDATES)]
        ledger = summary_of(self.place)["ledger"]
        assert (ledger["trained"], imbalance(ledger)) == (4 * UPDATES, "")
        assert self.verified() == 0
        assert not list(self.path.rglob(".tmp*"))

    def verified(self) -> int:
        """Return what `offbeat verify` returns; 0 also if nothing is stored yet."""
        try:
            return run_verify(self.path)
        except UsageError:
            return 0
        finally:
            self.capture.readouterr()


@pytest.fixture
def trial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Trial:
    monkeypatch.setattr(collective, "gather", lambda value: [value])
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 0)
    made = Trial(tmp_path, in_place_of_ray(monkeypatch), _config(tmp_path), capsys)
    monkeypatch.setattr(cli, "_load", lambda *_, **__: made.config)
    # What takes longer than a whole run, and writes nothing.
    monkeypatch.setattr(train, "check_machine", lambda config: None)
    monkeypatch.setattr(train, "meet_judges", lambda *_, **__: [])
    monkeypatch.setattr(summary, "package_versions", dict)
    return made


def _config(place: Path, **settings: Any) -> RunConfig:
    return config_of(place, updates=UPDATES, checkpoints={"every_updates": 2}, evaluation={"prompts": 2}, **settings)


def _sample(operations: Sequence[tuple[str, str]], most: int) -> list[int]:
    """The first of each kind of operation at each kind of place; every third if they are more than `most`."""
    first: dict[tuple[str, str], int] = {}
    for number, (kind, path) in enumerate(operations):
        first.setdefault((kind, re.sub(r"\d+.*", "", path)), number)
    return sorted(first.values())[slice(0, None) if len(first) <= most else slice(1, None, 3)]


# ---------------------------------------------------------------- disk and descriptors


@pytest.mark.parametrize(
    ("fault", "most"),
    [(errno.ENOSPC, 25), (errno.EROFS, 1), (errno.EMFILE, 1), pytest.param(errno.ENOSPC, 100, marks=pytest.mark.long)],
)
def test_a_disk_that_fails_at_any_moment_ends_the_run_with_a_sentence_and_it_goes_on_once_it_is_repaired(
    trial: Trial, fault: int, most: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        disk = FaultyDisk(trial.path, fault, patch)
        assert trial.train()[0] == 0
    for number in _sample(disk.operations, most):
        shutil.rmtree(trial.path)
        with pytest.MonkeyPatch.context() as patch:
            failing = FaultyDisk(trial.path, fault, patch)
            failing.first = number
            code, said = trial.train()
        moment = f"operation {number}, {failing.refused}: {said}"
        assert code == 1, moment
        told = [line for line in said.splitlines() if line.startswith("offbeat: error: ")]
        assert len(told) == 1, moment
        assert str(trial.path) in told[0], moment
        assert os.strerror(fault) in told[0], moment
        assert REMEDIES[fault] in told[0], moment
        assert "--resume" in told[0] or "--output" in told[0], moment
        assert "Traceback" not in said, moment
        assert trial.verified() == 0, moment
        trial.path.mkdir(exist_ok=True)
        trial.go_on()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "offbeat-test", place], capture_output=True, text=True, check=False
    )
    if mount.returncode:
        pytest.skip(f"no small file system can be mounted here: {mount.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_real_disk_that_becomes_full_ends_the_run_and_it_goes_on_once_there_is_space(
    trial: Trial, small_disk: Path
) -> None:
    trial.place, trial.config = small_disk, _config(small_disk)
    ballast = small_disk / "ballast"

    def fill(update: int) -> None:
        if update == 3:
            with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as file:
                while True:
                    file.write(b"x" * 512)

    learner = SavingLearner()
    learner.during = fill  # type: ignore[method-assign]
    code, said = trial.train(learner=learner)
    assert code == 1
    assert re.search(rf"offbeat: error: .* {trial.path}.*: .*No space left on device.*; free space there, then", said)
    assert "Traceback" not in said
    assert trial.verified() == 0
    ballast.unlink()
    trial.go_on()


def test_a_process_that_may_open_no_more_files_says_so_and_goes_on_once_it_may(trial: Trial) -> None:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)

    def lower(update: int) -> None:
        if update == 3:
            next_one = os.open(os.devnull, os.O_RDONLY)
            os.close(next_one)
            resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, limits[1]))

    learner = SavingLearner()
    learner.during = lower  # type: ignore[method-assign]
    try:
        code, said = trial.train(learner=learner)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert code == 1
    assert re.search(rf"offbeat: error: cannot write .*{trial.path}.*: .*Too many open files; let a process open", said)
    assert "Traceback" not in said
    assert trial.verified() == 0
    trial.go_on()


class PublishingLearner(SavingLearner):
    """Publishes weights of 4 KiB in shared memory, as rank 0 does."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self._sender = SharedMemorySender(directory)

    async def export(self, version: int) -> Publication:
        weights = {"a": torch.full((512,), float(version)), "b": torch.full((512,), float(version))}
        place = self._sender.keep(version, weights, iter(weights.items()))
        return Publication(Manifest(version, (), Canary((), ()), "shm", place))


def test_shared_memory_that_is_full_at_any_moment_of_a_publication_ends_the_run_and_leaves_no_half_weights(
    trial: Trial,
) -> None:
    shared = trial.place / "shm"
    with pytest.MonkeyPatch.context() as patch:
        disk = FaultyDisk(shared, errno.ENOSPC, patch)
        assert trial.train(learner=PublishingLearner(shared))[0] == 0
    of_a_publication = ["open", *["write"] * 3, "rename"]  # the header, and each of two tensors
    assert [kind for kind, _ in disk.operations] == ["mkdir", *of_a_publication * (UPDATES + 1)]
    for number in range(11, 16):  # of the third version: the second update's
        shutil.rmtree(trial.path)
        shutil.rmtree(shared)
        with pytest.MonkeyPatch.context() as patch:
            FaultyDisk(shared, errno.ENOSPC, patch).first = number
            code, said = trial.train(learner=PublishingLearner(shared))
        assert code == 1
        remedy = "No space left on device; free space there, or set publication.transport to object_store"
        assert f"offbeat: error: cannot write {shared}/weights-2.safetensors: {remedy}" in said
        left = {path.name: load_file(path)["b"][0] for path in shared.iterdir()}
        assert left == {f"weights-{version}.safetensors": version for version in (0, 1)}
        assert trial.verified() == 0
        trial.go_on()


# ---------------------------------------------------------------- the output directory


@pytest.mark.parametrize("what", ["removed", "moved", "replaced"])
def test_a_directory_that_is_taken_from_a_run_is_missed_at_the_next_update(trial: Trial, what: str) -> None:
    elsewhere = trial.place / "elsewhere"

    def take(update: int) -> None:
        if update == 3:
            trial.path.rename(elsewhere)
            if what == "removed":  # at once: the run writes into it meanwhile
                shutil.rmtree(elsewhere)
            if what == "replaced":
                (trial.path / "checkpoints").mkdir(parents=True)

    learner = SavingLearner()
    learner.during = take  # type: ignore[method-assign]
    code, said = trial.train(learner=learner)
    assert code == 1
    assert f"offbeat: error: the run's directory {trial.path} is not the one that this run began in" in said
    assert "give its new place with --output DIR, and use --resume" in said
    assert len(learner.batches) == 3
    if what != "replaced":
        assert not trial.path.exists(), "nothing is made anew where it was"
        if what == "moved":
            elsewhere.rename(trial.path)
            trial.go_on()
    else:
        assert [path.name for path in trial.path.rglob("*")] == ["checkpoints", "error.txt"]


# ---------------------------------------------------------------- the clock


@pytest.mark.parametrize("jump", [-3600.0, 3600.0])
def test_a_clock_that_jumps_by_an_hour_at_every_update_changes_nothing(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, jump: float
) -> None:
    real, shift = time.time, [0.0]
    monkeypatch.setattr(time, "time", lambda: real() + shift[0])
    monkeypatch.setattr(loop, "WATCH_SECONDS", 0.001)  # leases expire there
    trial.config = _config(trial.place, replay={"prompts_per_update": 4, "lease_seconds": 200.0})

    def move(update: int) -> None:
        shift[0] += jump

    for arguments in ((), ("--resume",)):
        learner = SavingLearner()
        learner.during = move  # type: ignore[method-assign]
        learner.interrupt_at = None if arguments else 2
        # Slow, so that leases are held while the clock jumps.
        code, said = trial.train(*arguments, learner=learner, seconds=0.05)
        assert code == (0 if arguments else 130), said
    trial.go_on()
    end = summary_of(trial.place)
    assert end["ledger"]["returned"].keys() <= {"restart"}, "no lease has expired"
    assert 0.0 <= end["wall_seconds"] < 1000.0
    lines = (trial.path / "metrics.jsonl").read_text().splitlines()
    assert [line.split(",")[0] for line in lines] == [f'{{"step": {step}' for step in range(1, UPDATES + 1)]


# ---------------------------------------------------------------- other runs


def test_a_second_driver_in_a_directory_is_refused_and_the_first_goes_on_untouched(trial: Trial) -> None:
    def files() -> dict[str, bytes]:
        # The first one writes to its journal meanwhile.
        found = (path for path in trial.path.rglob("*") if path.is_file() and not path.name.startswith(TEMPORARY))
        return {str(path): path.read_bytes() for path in found}

    def start_another(update: int) -> None:
        if update == 3:
            before = files()
            for resume in (False, True):
                with pytest.raises(UsageError, match=rf"process {os.getpid()} on .* is running in {trial.path}; wait"):
                    train.run_training(trial.config, resume=resume)
            assert files() == before

    learner = SavingLearner()
    learner.during = start_another  # type: ignore[method-assign]
    assert trial.train(learner=learner)[0] == 0
    assert len(journaled(trial.place)) == UPDATES


@pytest.mark.parametrize("break_at", [None, 2])
def test_a_run_removes_its_own_folder_in_shared_memory_and_those_of_the_dead_but_not_another_run_s(
    trial: Trial, monkeypatch: pytest.MonkeyPatch, break_at: int | None
) -> None:
    root = trial.place / "shm"
    root.mkdir()
    monkeypatch.setattr(run_directory, "SHARED_MEMORY", root)
    other = SharedMemory(trial.place / "other run", root)
    (other.path / "weights-0.safetensors").write_text("weights")
    dead = root / "offbeat-dead"
    dead.mkdir()

    folders: list[int] = []
    learner = SavingLearner()
    learner.break_at = break_at
    learner.during = lambda update: folders.append(len(list(root.iterdir())))  # type: ignore[method-assign]
    assert trial.train(learner=learner)[0] == (0 if break_at is None else 1)
    assert set(folders) <= {2}, "its own and the other's"
    assert [path.relative_to(other.path).name for path in other.path.iterdir() if path.suffix] == [
        "weights-0.safetensors"
    ]
    assert list(root.iterdir()) == [other.path]
    other.close()
