"""Files and directories are whole or absent, whichever step fails."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from actors import files
from actors.files import atomic_directory, atomic_file, atomic_write, discard, megabytes, replace_directory


def full(*_: Any) -> None:
    raise OSError(28, "No space left on device")


class Crash(BaseException):
    """The process ends here: no handler of OSError sees it."""


def crash(*_: Any) -> None:
    raise Crash


@pytest.fixture
def flushed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of what is flushed, and where each rename comes between them."""
    events: list[str] = []
    monkeypatch.setattr(files, "sync", lambda path: events.append(path.name))
    for name in ("rename", "replace"):
        real = getattr(Path, name)

        def noted(path: Path, target: Path, real: Any = real) -> Path:
            events.append(f"{path.name} -> {target.name}")
            return real(path, target)

        monkeypatch.setattr(files.Path, name, noted)
    return events


@pytest.mark.parametrize("content", ["é\n", b"\x00\xff"])
def test_a_file_is_written_whole_and_replaces_the_old_one(tmp_path: Path, content: str | bytes) -> None:
    for _ in range(2):
        atomic_write(tmp_path / "a.json", content)
        read = (tmp_path / "a.json").read_bytes()
        assert read == (content.encode() if isinstance(content, str) else content)
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    atomic_write(tmp_path / "a", "old")
    for name in ("fsync", "replace"):
        with monkeypatch.context() as patch:
            patch.setattr(os, name, full)
            with pytest.raises(OSError, match="No space left"):
                atomic_write(tmp_path / "a", "new", durable=True)
        assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_writer_that_fails_half_way_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    atomic_write(tmp_path / "a", "old")

    def write_half() -> None:
        with atomic_file(tmp_path / "a") as temporary:
            temporary.write_text("ne")
            assert (tmp_path / "a").read_text() == "old"
            raise Crash

    with pytest.raises(Crash):
        write_half()
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_a_durable_file_is_flushed_before_its_name_and_its_name_after(tmp_path: Path, flushed: list[str]) -> None:
    atomic_write(tmp_path / "a", "x", durable=True)
    assert flushed == [".tmp-a", ".tmp-a -> a", tmp_path.name]
    flushed.clear()
    atomic_write(tmp_path / "a", "x")
    assert flushed == [".tmp-a -> a"]


def test_a_directory_is_swapped_in_whole(tmp_path: Path) -> None:
    final = tmp_path / "below" / "model"
    for content in ("old", "new"):
        with atomic_directory(final) as stage:
            assert list(stage.iterdir()) == []
            (stage / "weights").write_text(content)
    assert (final / "weights").read_text() == "new"
    assert [path.name for path in final.parent.iterdir()] == ["model"]


def test_a_directory_that_could_not_be_filled_leaves_the_old_one(tmp_path: Path) -> None:
    (tmp_path / ".tmp-model").mkdir()
    (tmp_path / ".tmp-model" / "of a run that was killed").touch()
    (tmp_path / "model").mkdir()

    def fill_half() -> None:
        with atomic_directory(tmp_path / "model") as stage:
            assert list(stage.iterdir()) == []
            raise Crash

    with pytest.raises(Crash):
        fill_half()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_durable_directory_is_flushed_from_the_bottom_up_before_the_old_one_goes(
    tmp_path: Path, flushed: list[str]
) -> None:
    for name in ("stage", "final"):
        (tmp_path / name / "below").mkdir(parents=True)
        (tmp_path / name / "below" / "file").touch()
    replace_directory(tmp_path / "stage", tmp_path / "final", durable=True)
    assert flushed == [
        "file", "below", "stage", "final -> .tmp-replaced-final", "stage -> final", tmp_path.name,
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def two_directories(root: Path) -> tuple[Path, Path]:
    for name in ("stage", "final"):
        (root / name).mkdir()
        (root / name / "content").write_text(name)
    return root / "stage", root / "final"


def test_a_swap_that_is_refused_puts_the_old_directory_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage, final = two_directories(tmp_path)
    real = Path.rename
    monkeypatch.setattr(files.Path, "rename", lambda path, to: full() if path == stage else real(path, to))
    with pytest.raises(OSError, match="No space left"):
        replace_directory(stage, final)
    assert (final / "content").read_text() == "final"


def test_a_crash_in_the_middle_of_a_swap_loses_neither_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage, final = two_directories(tmp_path)
    real = Path.rename
    monkeypatch.setattr(files.Path, "rename", lambda path, to: crash() if path == stage else real(path, to))
    with pytest.raises(Crash):
        replace_directory(stage, final)
    monkeypatch.undo()
    assert (tmp_path / ".tmp-replaced-final" / "content").read_text() == "final"
    replace_directory(stage, final)
    assert (final / "content").read_text() == "stage"
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_files_and_directories_are_discarded_and_what_is_missing_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "file").touch()
    for name in ("folder", "file", "missing"):
        discard(tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_a_size_is_told_in_the_unit_that_shows_it() -> None:
    assert [megabytes(size) for size in (0, 1_500, 99_900, 100_000, 2_345_678)] == [
        "0.0 kB", "1.5 kB", "99.9 kB", "0.1 MB", "2.3 MB",
    ]  # fmt: skip


def test_discarding_a_link_to_a_directory_removes_the_link_alone(tmp_path: Path) -> None:
    """`offbeat data --output LINK` left the link behind, under a hidden name."""
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    discard(tmp_path / "link")
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]
    assert (tmp_path / "kept" / "file").exists()
