"""`offbeat verify`: compare everything that a run has stored with what was written. Changes nothing, loads nothing."""

import os
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path

from actors.errors import UsageError
from actors.files import megabytes
from actors.foreign.text import many
from actors.hub import ADAPTER_CONFIG
from launch.doctor.findings import Finding, from_exception, graded, report
from launch.output.journal_files import Checksums, require_run, require_whole, segments
from launch.output.run_directory import RunDirectory, no_run
from learner.backend import checkpoints, manifest


def run_verify(directory: Path, *, json: bool = False) -> int:
    """Print a line for each part below `directory`; return 1 if one is not as it was written, else 0.

    Raises UsageError if there is nothing that was written with a checksum, or should have been.
    """
    if not directory.is_dir():
        raise no_run(directory, "", "give the directory of a run, or of a model of one")
    findings = parts(directory)
    first = list(islice(findings, 1))
    if not first:
        raise UsageError(
            f"{directory} holds no checkpoint, no journal and no {manifest.MANIFEST}: nothing in it can be verified; "
            "give the directory of a run, or of a model of one"
        )
    return report(chain(first, findings), as_json=json)


def parts(directory: Path) -> Iterator[Finding]:
    """Verify every checkpoint, journal and sealed directory below `directory`, those of nested runs and replays too."""
    files_of_a_model = {"config.json", ADAPTER_CONFIG}
    for place, folders, files in os.walk(directory):
        path = Path(place)
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if checkpoints.STATE in files:
            folders.clear()  # its parts are verified with it
            yield _checkpoint(path)
        elif manifest.MANIFEST in files:
            yield _directory(path)
        elif path.name in ("final", "final-average", "start") and not files_of_a_model.isdisjoint(files):
            yield graded("model", f"{path}: no {manifest.MANIFEST}, so it cannot be verified", doubtful=True)
        if checkpoints.POINTER in files:
            yield from _pointer(path)
        elif newest := checkpoints.newest(path):
            pointer = path / checkpoints.POINTER
            text = f"{pointer} is missing, so --resume goes on from {newest.name}, the newest one beside it"
            yield graded("checkpoint", text, f"write the name of the wanted one into {pointer}", doubtful=True)
        if segments(path):
            yield _journal(path)


def _checkpoint(path: Path) -> Finding:
    try:
        notes = checkpoints.verify(path, RunDirectory(path.parent.parent).run_id)
    except UsageError as error:
        return from_exception("checkpoint", error)
    return graded("checkpoint", notes[0] if notes else _described(path), doubtful=bool(notes))


def _pointer(root: Path) -> Iterator[Finding]:
    pointer = root / checkpoints.POINTER
    tag = pointer.read_text(encoding="utf-8", errors="replace").strip()
    if not (root / tag / checkpoints.STATE).is_file():
        text = f"{pointer} names {tag[:80]!r}, which is no checkpoint beside it"
        yield graded("checkpoint", text, f"go on with --resume={checkpoints.LAST_GOOD}", fatal=True)


def _directory(path: Path) -> Finding:
    try:
        manifest.check(path)
    except UsageError as error:
        return from_exception("directory", error)
    return graded("directory", _described(path))


def _journal(path: Path) -> Finding:
    found = segments(path)
    try:
        checksums = Checksums(path)
        require_run(checksums, RunDirectory(path.parent).run_id)
        unverified = require_whole(checksums, found)
    except UsageError as error:
        return from_exception("journal", error)
    text = f"{path}: updates {found[0].first} to {found[-1].last}, {megabytes(sum(each.nbytes for each in found))}"
    if unverified:
        text += f"; {len(unverified)} of {many(len(found), 'part')} without checksums, which cannot be verified"
    return graded("journal", text, doubtful=bool(unverified))


def _described(path: Path) -> str:
    found = manifest.read(path)
    assert found is not None
    update = "" if found.update is None else f", after update {found.update}"
    return f"{path}: {many(len(found.files), 'file')}, {megabytes(found.nbytes)}{update}"
