"""Checkpoints that are whole or absent: staged, flushed, renamed, and only then pointed to. Must not import torch.

    checkpoints/
      latest                     name of the newest whole checkpoint, replaced in one step
      update-200/
        deepspeed/               engine state, one part per rank
        hf/                      model directory for transformers and vLLM
        run_state.json           the driver's own state
        offbeat-manifest.json    size and checksum of every file, the run and the update; written last, read first
      .tmp-update-300/           a checkpoint being written, or the remains of one after a crash

The driver calls `begin`, every rank writes into the stage, the driver calls `write_state` and `commit`. A crash at any
moment leaves `latest` naming a whole checkpoint. All ranks must share one file system. A run that resumes takes its
checkpoint from `to_resume`, which verifies it: nothing of it is loaded before.
"""

import contextlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

from actors.errors import RunError, UsageError, writing
from actors.files import REPLACED, TEMPORARY, atomic_write, discard, replace_directory
from learner.backend import manifest
from learner.backend.manifest import DamagedError

ENGINE = "deepspeed"
MODEL = "hf"
STATE = "run_state.json"
POINTER = "latest"
LAYOUT = "layout.json"
"""File in `ENGINE`: ranks, ZeRO stage and dtype with which the state was written."""
LAST_GOOD = "last-good"
"""Word for the newest checkpoint that verifies, in place of a path."""
_MANIFEST_KEY = "manifest"  # of a state that was written with one
_THEN = "then use --resume: the last good checkpoint is intact"


class UnusableError(UsageError):
    """A checkpoint cannot be used, for `reason`."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def begin(root: str | Path, tag: str) -> Path:
    """Create an empty stage for the checkpoint `tag`, and remove the remains of crashed saves.

    `tag` must end in the update number, which decides the order of checkpoints. Raises RunError if `root` cannot be
    written.
    """
    if not _is_tag(tag):
        raise UsageError(
            f"checkpoint tag {tag!r} must be letters, digits, '_', '.' or '-' and end in the update number"
        )
    with writing(f"checkpoint {tag} to {root}", _THEN):
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
        with contextlib.suppress(OSError):  # the first error counts
            discard(stage)
        raise


def write_state(stage: str | Path, state: dict[str, Any]) -> None:
    """Write the driver's state (JSON values). Raises RunError, and removes the stage, if the disk refuses."""
    with _discarding(Path(stage)), writing(f"checkpoint {stage}", _THEN):
        text = json.dumps({**state, _MANIFEST_KEY: manifest.MANIFEST})
        (Path(stage) / STATE).write_text(text, encoding="utf-8")


def commit(root: str | Path, tag: str, keep: int, run: str | None = None) -> Path:
    """Make the staged checkpoint `tag` of `run` the latest, remove all but the `keep` newest, return its directory.

    Raises RunError if parts are missing or the disk refuses; the stage is then removed.
    """
    root = Path(root)
    stage, final = _stage(root, tag), root / tag
    with _discarding(stage), writing(f"checkpoint {tag} to {root}", _THEN):
        if missing := _missing_parts(stage):
            raise RunError(f"checkpoint {tag} is incomplete: {', '.join(missing)} missing in {stage}; not used")
        manifest.seal(stage, run=run, update=_update_number(final), layout=layout_of(stage) or None)
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
    """Return the newest whole checkpoint, or None if none was committed. It is not verified.

    Raises UsageError if the pointer names a missing or incomplete one, and lists older ones that could be used.
    """
    path = _pointed(Path(root))
    if path is not None:
        read_state(path)
    return path


def to_resume(root: str | Path, wanted: str | None = None, run: str | None = None) -> tuple[Path | None, list[str]]:
    """Return the verified checkpoint from which `run` continues, and notes to print.

    `wanted` is None for the latest, `LAST_GOOD` for the newest that verifies, or the path or name of one below `root`.
    None if none was committed. Raises UsageError that names the bad file and the checkpoint before it.
    """
    root = Path(root)
    if wanted == LAST_GOOD:
        return _last_good(root, run)
    path = _pointed(root) if wanted is None else _named(root, wanted)
    return path, [] if path is None else verify(path, run)


def verify(checkpoint: str | Path, run: str | None = None) -> list[str]:
    """Compare every file of a checkpoint with its manifest; return a note if it has none, as those of older versions.

    Raises UsageError if a file was changed, is missing or was added, or the checkpoint is another's: of another update
    than its name says, or not of `run`.
    """
    path = Path(checkpoint)
    try:
        found = manifest.read(path)
        problems = [] if found is None else found.problems(path, closed=True)
    except (OSError, DamagedError) as error:
        raise _unusable(path, str(error), path.parent) from error
    if found is None:
        if _MANIFEST_KEY in _read(path):  # it had one
            raise _unusable(path, f"{manifest.MANIFEST} missing", path.parent)
        return [f"checkpoint {path} was written without {manifest.MANIFEST}: it cannot be verified"]
    if problems:
        raise _unusable(path, manifest.summed_up(problems), path.parent)
    if found.update != _update_number(path):
        raise _unusable(path, f"it was written after update {found.update}", path.parent)
    if run is not None and found.run not in (None, run):
        raise _unusable(path, f"run {found.run} wrote it, and this directory is of run {run}", path.parent)
    return []


def run_of(checkpoint: Path) -> str | None:
    """Return which run wrote a verified checkpoint; None for one of an older version."""
    found = manifest.read(checkpoint)
    return None if found is None else found.run


def layout_of(checkpoint: Path) -> dict[str, Any]:
    """Return what a checkpoint's engine state was written with; nothing if it does not say. Raises UsageError."""
    path = checkpoint / ENGINE / LAYOUT
    try:
        written = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    except (OSError, ValueError, RecursionError) as error:
        raise damaged(checkpoint, f"{ENGINE}/{LAYOUT}: {error}") from error
    return written if isinstance(written, dict) else {}


def damaged(checkpoint: Path, cause: str) -> UnusableError:
    """Return the error of a checkpoint that cannot be used, with the one before it."""
    return _unusable(checkpoint, cause, checkpoint.parent)


def point_to(root: str | Path, checkpoint: Path) -> None:
    """Make a checkpoint the latest: the run is rolled back to it. Raises RunError if the disk refuses."""
    pointer = Path(root) / POINTER
    if pointer.is_file() and pointer.read_bytes() == checkpoint.name.encode():
        return
    with writing(pointer, "then use --resume"):
        atomic_write(pointer, checkpoint.name, durable=True)


def read_state(checkpoint: str | Path) -> dict[str, Any]:
    """Return the driver's state of a checkpoint. Raises UsageError with file and cause if any part is missing."""
    return {name: value for name, value in _read(Path(checkpoint)).items() if name != _MANIFEST_KEY}


def _read(path: Path) -> dict[str, Any]:
    if not path.is_dir():
        raise _unusable(path, "there is no such directory", path.parent)
    if missing := _missing_parts(path):
        raise _unusable(path, f"{', '.join(missing)} missing", path.parent)
    try:
        state = json.loads((path / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise _unusable(path / STATE, str(error), path.parent) from error
    if not isinstance(state, dict):
        raise _unusable(path / STATE, f"it holds a {type(state).__name__}, not an object", path.parent)
    return state


def _pointed(root: Path) -> Path | None:
    """Return the checkpoint that the pointer names; without one, the newest. Raises UsageError if it is no name."""
    _restore_replaced(root)
    pointer = root / POINTER
    try:
        tag = pointer.read_text(encoding="utf-8").strip()
    except FileNotFoundError:  # removed, or the run was killed between its first checkpoint and the pointer
        return newest(root)
    except (OSError, UnicodeDecodeError) as error:
        raise _unusable(pointer, str(error), root) from error
    if not _is_tag(tag):
        raise _unusable(pointer, f"it holds {tag[:80]!r}, not the name of a checkpoint", root)
    return root / tag


def newest(root: str | Path) -> Path | None:
    """Return the newest checkpoint below `root`, whether it is whole or not; None if there is none."""
    return next(iter(_committed(Path(root))), None)


def newest_before(root: str | Path, updates: int) -> Path | None:
    """Return the newest whole checkpoint of fewer than `updates` updates; None if there is none."""
    older = (path for path in _committed(Path(root)) if _update_number(path) < updates and not _missing_parts(path))
    return next(older, None)


def go_back(root: str | Path, updates: int) -> Path | None:
    """Make the newest whole checkpoint of fewer than `updates` updates the latest; None if there is none."""
    path = newest_before(root, updates)
    if path is not None:
        with writing(f"the name of the latest checkpoint to {root}", _THEN):
            atomic_write(Path(root) / POINTER, path.name, durable=True)
    return path


def _named(root: Path, wanted: str) -> Path:
    """Return the checkpoint below `root` that a path or a name means."""
    path = Path(wanted)
    if path.resolve().parent != root.resolve() and not (_is_tag(wanted) and (root / wanted).is_dir()):
        raise _unusable(path, f"it is not one of this run's, which are in {root}", root)
    return root / path.name


def _last_good(root: Path, run: str | None) -> tuple[Path | None, list[str]]:
    try:
        pointed = _pointed(root)
    except UnusableError:
        pointed = None
    notes: list[str] = []
    for path in _committed(root):
        if pointed is not None and _update_number(path) > _update_number(pointed):
            continue  # the run has been rolled back to before it
        try:
            return path, [*notes, *verify(path, run)]
        except UnusableError as error:
            notes.append(f"checkpoint {path} is left out: {error.reason}")
    if notes or (root / POINTER).exists():
        raise UsageError(
            f"no checkpoint in {root} can be used: {'; '.join(notes) or 'none is left'}; restore one from a copy, or "
            "start a new run"
        )
    return None, []


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


def _unusable(path: Path, cause: str, root: Path) -> UnusableError:
    """Return the error for a checkpoint, or a file of one, that offers the newest one before it."""
    usable = [item for item in _committed(root) if item not in (path, path.parent) and not _missing_parts(item)]
    bad = next((each for each in (path, path.parent) if each.parent == root and each.name[-1:].isdigit()), None)
    before = [item for item in usable if bad is None or _update_number(item) < _update_number(bad)]
    advice = f"no other checkpoint in {root} could be used; start a new run, or restore the directory from a copy"
    if before:
        which = "newest" if bad is None else "one before it"
        advice = f"go on from the {which} with --resume {shlex.quote(str(before[0]))}, "
        advice += f"or from the newest that verifies with --resume={LAST_GOOD}"
    return UnusableError(f"checkpoint {path} cannot be used: {cause}; {advice}", cause)
