"""Checkpoints that are whole or absent: staged, flushed, renamed, and only then pointed to. Must not import torch.

    checkpoints/
      latest                 name of the newest whole checkpoint, replaced in one step
      update-200/
        deepspeed/           engine state, one part per rank
        hf/                  model directory for transformers and vLLM
        run_state.json       the driver's own state, written last
      .tmp-update-300/       a checkpoint being written, or the remains of one after a crash

The driver calls `begin`, every rank writes into the stage, the driver calls `write_state` and `commit`. A crash at any
moment leaves `latest` naming a whole checkpoint. All ranks must share one file system.
"""

import contextlib
import json
import re
from pathlib import Path
from typing import Any

from actors.errors import RunError, UsageError, writing
from actors.files import REPLACED, TEMPORARY, atomic_write, discard, replace_directory

ENGINE = "deepspeed"
MODEL = "hf"
STATE = "run_state.json"
POINTER = "latest"
_REMEDY = "the last good checkpoint is intact: free space or make the directory writable, then resume"


def begin(root: str | Path, tag: str) -> Path:
    """Create an empty stage for the checkpoint `tag`, and remove the remains of crashed saves.

    `tag` must end in the update number, which decides the order of checkpoints. Raises RunError if `root` cannot be
    written.
    """
    if not _is_tag(tag):
        raise UsageError(
            f"checkpoint tag {tag!r} must be letters, digits, '_', '.' or '-' and end in the update number"
        )
    with writing(f"checkpoint {tag} to {root}", _REMEDY):
        Path(root).mkdir(parents=True, exist_ok=True)
        clear_stale(root)
        stage = _stage(Path(root), tag)
        stage.mkdir()
    return stage


def clear_stale(root: str | Path) -> None:
    """Remove every unfinished checkpoint below `root`. Do not call it while one is being written."""
    _restore_replaced(Path(root))
    for path in Path(root).glob(f"{TEMPORARY}*"):
        discard(path)


@contextlib.contextmanager
def _discarding(stage: Path) -> Any:
    """Remove `stage` after any error."""
    try:
        yield
    except Exception:
        discard(stage)
        raise


def write_state(stage: str | Path, state: dict[str, Any]) -> None:
    """Write the driver's state (JSON values). Raises RunError, and removes the stage, if the disk refuses."""
    with _discarding(Path(stage)), writing(f"checkpoint {stage}", _REMEDY):
        (Path(stage) / STATE).write_text(json.dumps(state), encoding="utf-8")


def commit(root: str | Path, tag: str, keep: int) -> Path:
    """Make the staged checkpoint `tag` the latest, remove all but the `keep` newest, and return its directory.

    Raises RunError if parts are missing or the disk refuses; the stage is then removed.
    """
    root = Path(root)
    stage, final = _stage(root, tag), root / tag
    with _discarding(stage), writing(f"checkpoint {tag} to {root}", _REMEDY):
        if missing := _missing_parts(stage):
            raise RunError(f"checkpoint {tag} is incomplete: {', '.join(missing)} missing in {stage}; not used")
        # Data, name, pointer, each flushed before the next. A pointer that reached the disk before the data would,
        # after a power loss, name a checkpoint of empty files.
        replace_directory(stage, final, durable=True)
        atomic_write(root / POINTER, tag, durable=True)
    # The checkpoint is safe: a failure to remove old ones must not fail the run.
    with contextlib.suppress(OSError):
        clear_stale(root)
        _prune(root, tag, keep)
    return final


def latest(root: str | Path) -> Path | None:
    """Return the newest whole checkpoint, or None if none was committed.

    Raises UsageError if the pointer names a missing or incomplete one, and lists older ones that could be used.
    """
    root = Path(root)
    _restore_replaced(root)
    pointer = root / POINTER
    try:
        tag = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(pointer, str(error), root) from error
    if not _is_tag(tag):
        raise _unusable(pointer, f"it holds {tag[:80]!r}, not the name of a checkpoint", root)
    read_state(root / tag)
    return root / tag


def read_state(checkpoint: str | Path) -> dict[str, Any]:
    """Return the driver's state of a checkpoint. Raises UsageError with file and cause if any part is missing."""
    path = Path(checkpoint)
    if not path.is_dir():
        raise _unusable(path, "there is no such directory", path.parent)
    if missing := _missing_parts(path):
        raise _unusable(path, f"{', '.join(missing)} missing", path.parent)
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise _unusable(path / STATE, str(error), path.parent) from error
    if not isinstance(state, dict):
        raise _unusable(path / STATE, f"it holds a {type(state).__name__}, not an object", path.parent)
    return state


def _stage(root: Path, tag: str) -> Path:
    return root / f"{TEMPORARY}{tag}"


def _is_tag(tag: str) -> bool:
    """Return whether `tag` can name a checkpoint; a path to elsewhere cannot."""
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
    """Undo a replacement that a crash stopped between its two renames."""
    for path in root.glob(f"{REPLACED}*"):
        final = root / path.name.removeprefix(REPLACED)
        if not final.exists():
            path.rename(final)


def _prune(root: Path, newest: str, keep: int) -> None:
    """Remove old checkpoints, but none newer than `newest`: those belong to a run that was since rolled back."""
    older = [path for path in _committed(root) if _update_number(path) < _update_number(root / newest)]
    for path in older[keep - 1 :]:
        # Renamed first: a crash half way through the removal must not leave what looks like a checkpoint.
        doomed = root / f"{TEMPORARY}pruned-{path.name}"
        path.rename(doomed)
        discard(doomed)


def _unusable(path: Path, cause: str, root: Path) -> UsageError:
    usable = [item.name for item in _committed(root) if item not in (path, path.parent) and not _missing_parts(item)]
    advice = (
        f"write one of these names into {root / POINTER} to use it: {', '.join(usable)}"
        if usable
        else f"no other checkpoint in {root} could be used; start a new run, or restore the directory from a copy"
    )
    return UsageError(f"checkpoint {path} cannot be used: {cause}; {advice}")
