"""Checkpoints that are whole or absent: staged, synced, renamed, and only then pointed to. Plain Python, no torch.

    checkpoints/
      latest                 name of the newest whole checkpoint, replaced in one step
      update-200/
        deepspeed/           engine state, one part per rank
        hf/                  model directory for transformers and vLLM
        run_state.json       the driver's own state, written last
      .tmp-update-300/       a checkpoint being written, or what a crash left of one

The driver calls `begin`, has every rank write into the stage, calls `write_state`, then `commit`. A crash at any
moment leaves `latest` naming a whole checkpoint. Every rank must see the same file system.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from actors.errors import RunError, UsageError

ENGINE = "deepspeed"
MODEL = "hf"
STATE = "run_state.json"
POINTER = "latest"
_STAGE = ".tmp-"
_REPLACED = f"{_STAGE}replaced-"


def begin(root: str | Path, tag: str) -> Path:
    """An empty directory to write the checkpoint `tag` into. Removes what crashed saves left behind.

    `tag` must end in digits, the number of the update: they decide which checkpoint is newer.
    Raises RunError when `root` cannot be written.
    """
    if not _is_tag(tag):
        raise UsageError(
            f"checkpoint tag {tag!r} must be letters, digits, '_', '.' or '-' and end in the update number"
        )
    try:
        Path(root).mkdir(parents=True, exist_ok=True)
        clear_stale(root)
        stage = Path(root) / f"{_STAGE}{tag}"
        stage.mkdir()
    except OSError as error:
        raise _not_written(root, error) from error
    return stage


def clear_stale(root: str | Path) -> None:
    """Removes every unfinished checkpoint below `root`. Never call it while one is being written."""
    _restore_replaced(Path(root))
    for path in Path(root).glob(f"{_STAGE}*"):
        discard(path)


def discard(stage: str | Path) -> None:
    """Removes a stage whose saving failed."""
    path = Path(stage)
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_state(stage: str | Path, state: dict[str, Any]) -> None:
    """Writes the driver's state, JSON values only. Raises RunError, and removes the stage, when the disk refuses."""
    try:
        (Path(stage) / STATE).write_text(json.dumps(state), encoding="utf-8")
    except OSError as error:
        discard(stage)
        raise _not_written(stage, error) from error


def commit(root: str | Path, tag: str, keep: int) -> Path:
    """Makes the staged checkpoint `tag` the latest one and removes all but the `keep` newest. Returns its directory.

    Raises RunError when parts are missing or the disk refuses; the stage is then removed and the last good checkpoint
    stands.
    """
    root = Path(root)
    stage, final = root / f"{_STAGE}{tag}", root / tag
    try:
        missing = _missing_parts(stage)
        if missing:
            raise RunError(
                f"checkpoint {tag} was not finished: {', '.join(missing)} missing in {stage}; it is not used"
            )
        # Order matters: data, then the name, then the pointer. A pointer that reached the disk before the data
        # would, after a power loss, name a checkpoint of empty files.
        _sync_tree(stage)
        if final.exists():
            final.rename(root / f"{_REPLACED}{tag}")
        stage.rename(final)
        _sync(root)
        pointer = root / f"{_STAGE}{POINTER}"
        pointer.write_text(tag, encoding="utf-8")
        _sync(pointer)
        pointer.replace(root / POINTER)
        _sync(root)
    except OSError as error:
        discard(stage)
        raise _not_written(root, error) from error
    except RunError:
        discard(stage)
        raise
    # The checkpoint is safe: that old ones cannot be removed must not fail the run.
    with contextlib.suppress(OSError):
        clear_stale(root)
        _prune(root, tag, keep)
    return final


def latest(root: str | Path) -> Path | None:
    """The newest whole checkpoint, or None where none was ever committed.

    Raises UsageError when the pointer names one that is gone or incomplete, listing older ones that could be used.
    """
    root = Path(root)
    _restore_replaced(root)
    pointer = root / POINTER
    try:
        tag = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _unreadable(pointer, str(error), root) from error
    if not _is_tag(tag):
        raise _unreadable(pointer, f"it holds {tag[:80]!r}, not the name of a checkpoint", root)
    validate(root / tag)
    return root / tag


def validate(checkpoint: str | Path) -> None:
    """Raises UsageError unless every part of `checkpoint` is there and its state can be read."""
    read_state(checkpoint)


def read_state(checkpoint: str | Path) -> dict[str, Any]:
    """The driver's state of a checkpoint. Raises UsageError naming file and cause when it is not whole."""
    path = Path(checkpoint)
    if not path.is_dir():
        raise _unreadable(path, "there is no such directory", path.parent)
    missing = _missing_parts(path)
    if missing:
        raise _unreadable(path, f"{', '.join(missing)} missing", path.parent)
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unreadable(path / STATE, str(error), path.parent) from error
    if not isinstance(state, dict):
        raise _unreadable(path / STATE, f"it holds a {type(state).__name__}, not an object", path.parent)
    return state


def _is_tag(tag: str) -> bool:
    """Whether `tag` is a checkpoint's name, and no path that leads elsewhere."""
    return re.fullmatch(r"[A-Za-z0-9_.-]*\d", tag) is not None and not tag.startswith(".")


def _missing_parts(path: Path) -> list[str]:
    parts = [name for name in (ENGINE, MODEL) if not (path / name).is_dir() or not any((path / name).iterdir())]
    return parts + ([] if (path / STATE).is_file() else [STATE])


def _update_number(path: Path) -> int:
    return int(re.search(r"\d+$", path.name).group())  # type: ignore[union-attr]


def _committed(root: Path) -> list[Path]:
    """Checkpoint directories below `root`, newest first."""
    found = [path for path in root.glob("[!.]*") if path.name[-1].isdigit() and (path / STATE).is_file()]
    return sorted(found, key=_update_number, reverse=True)


def _restore_replaced(root: Path) -> None:
    """Undoes a replacement that a crash stopped between its two renames."""
    for path in root.glob(f"{_REPLACED}*"):
        final = root / path.name.removeprefix(_REPLACED)
        if not final.exists():
            path.rename(final)


def _prune(root: Path, newest: str, keep: int) -> None:
    """Removes old checkpoints. Newer ones, which a run that has gone back left behind, are not ours to remove."""
    older = [path for path in _committed(root) if _update_number(path) < _update_number(root / newest)]
    for path in older[keep - 1 :]:
        # Renamed first: a crash half way through the removal must not leave a directory that looks like a checkpoint.
        doomed = root / f"{_STAGE}pruned-{path.name}"
        path.rename(doomed)
        discard(doomed)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync_tree(root: Path) -> None:
    for directory, _, names in os.walk(root, topdown=False):
        for name in names:
            _sync(Path(directory) / name)
        _sync(Path(directory))


def _not_written(path: str | Path, error: OSError) -> RunError:
    return RunError(
        f"checkpoint could not be written to {path}: {error}. The last good checkpoint stands; free space or make the "
        "directory writable, then resume"
    )


def _unreadable(path: Path, cause: str, root: Path) -> UsageError:
    usable = [item.name for item in _committed(root) if item not in (path, path.parent) and not _missing_parts(item)]
    advice = (
        f"write one of these names into {root / POINTER} to use it: {', '.join(usable)}"
        if usable
        else f"no other checkpoint in {root} could be used; start a new run, or restore the directory from a copy"
    )
    return UsageError(f"checkpoint {path} cannot be used: {cause}; {advice}")
