"""Manifest of a stored directory: each file's size and checksum, and the run and update that wrote it.

`offbeat-manifest.json` is written last and read first. Its checksums are xxHash's XXH3 of 128 bits, as `xxhsum -H2`
prints them; that of a file over 64 MiB is the checksum of its pieces' checksums, one after another. They show a
fault of disk, memory or copy, and an exchanged file; no adversary, who could write a manifest too. Must not import
torch.
"""

import json
import mmap
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import xxhash

from actors.errors import UsageError
from actors.files import TEMPORARY, atomic_write

MANIFEST = "offbeat-manifest.json"
_FORMAT = 1
_BLOCK = 1 << 20
"""Bytes read at a time; smaller files are not mapped."""
_PIECE = 64 << 20
"""Bytes hashed as one. Part of the format: a larger file's checksum is over its pieces'."""
_POPULATE_READ = 22
"""MADV_POPULATE_READ of Linux 5.14: map all pages, or fail if one cannot be read."""
_THREADS = 8  # xxhash and reads release the interpreter's lock
_WEIGHTS = (".safetensors", ".safetensors.index.json")
_SHOWN = 3  # bad files named in one error


class DamagedError(UsageError):
    """A stored file is not what was written."""


@dataclass(frozen=True, slots=True)
class FileSum:
    """Size and checksum of a file."""

    bytes: int
    xxh3_128: str

    @property
    def text(self) -> str:
        return f"{self.bytes:,} bytes, xxh3_128 {self.xxh3_128}"


@dataclass(frozen=True, slots=True)
class Manifest:
    """The files of a directory, by path below it, and whose they are."""

    files: Mapping[str, FileSum]
    run: str | None = None  # identifies the run
    update: int | None = None
    layout: Mapping[str, Any] | None = None  # ranks, ZeRO stage and dtype of an engine state

    @property
    def nbytes(self) -> int:
        return sum(each.bytes for each in self.files.values())

    def below(self, name: str) -> "Manifest":
        """Return the part of the manifest that describes the sub-directory `name`."""
        inside = {path: each for path, each in self.files.items() if path.startswith(f"{name}/")}
        return Manifest({path.removeprefix(f"{name}/"): each for path, each in inside.items()}, self.run, self.update)

    def problems(self, directory: Path, *, closed: bool = False) -> list[str]:
        """Read every file, in parallel; return one sentence for each that is not as it was written.

        In a `closed` directory a file that the manifest does not name is one too. The manifest itself, and hidden
        files, are not looked at.
        """
        present = {name: directory / name for name in self.files if (directory / name).is_file()}
        # Without reading: a file of another size is another file.
        same_size = {name: path for name, path in present.items() if path.stat().st_size == self.files[name].bytes}
        found = dict(zip(same_size, sums(same_size.values()), strict=True))
        told = []
        for name, expected in self.files.items():
            if name not in present:
                told.append(f"{name} is missing ({expected.text} expected)")
            elif name not in found:
                told.append(f"{name} has {present[name].stat().st_size:,} bytes, expected {expected.text}")
            elif found[name] != expected:
                told.append(f"{name} has other content: found {found[name].text}, expected {expected.xxh3_128}")
        extra = sorted(set(_names(directory)) - set(self.files)) if closed else []
        return told + [f"{name} is not part of it" for name in extra]

    def text(self) -> str:
        body: dict[str, Any] = {"format": _FORMAT, "run": self.run, "update": self.update, "layout": self.layout}
        body["files"] = {name: asdict(self.files[name]) for name in sorted(self.files)}
        check = xxhash.xxh3_128_hexdigest(json.dumps(body).encode())
        return json.dumps(body | {"xxh3_128": check}, indent=1) + "\n"


def sums(paths: Iterable[Path]) -> list[FileSum]:
    """Hash whole files: their pieces in parallel, then those of a large file as one. Raises OSError."""
    paths = list(paths)
    sizes = [path.stat().st_size for path in paths]
    pieces = [
        (path, offset) for path, size in zip(paths, sizes, strict=True) for offset in range(0, max(size, 1), _PIECE)
    ]
    if sum(sizes) < _BLOCK:  # sooner read than threads are started
        hashed = iter([_sum(*piece) for piece in pieces])
    else:
        with ThreadPoolExecutor(_THREADS) as pool:
            hashed = iter(list(pool.map(_sum, *zip(*pieces, strict=True))))
    return [_joined(list(islice(hashed, max(1, -(-size // _PIECE))))) for size in sizes]


def _sum(path: Path, offset: int) -> FileSum:
    """Hash one piece of a file."""
    with open(path, "rb", buffering=0) as file:
        length = min(_PIECE, os.fstat(file.fileno()).st_size - offset)
        if length >= _BLOCK:
            # Without a copy. Where the system cannot say that all of it is readable, touching it could end the process.
            try:
                with mmap.mmap(file.fileno(), length, offset=offset, access=mmap.ACCESS_READ) as mapped:
                    mapped.madvise(_POPULATE_READ)
                    return _hashed([mapped])
            except (OSError, ValueError):
                pass  # reading it raises what is wrong, if anything is
        file.seek(offset)
        buffer = memoryview(bytearray(_BLOCK))
        blocks = (range(start, min(start + _BLOCK, length)) for start in range(0, length, _BLOCK))
        return _hashed(buffer[: file.readinto(buffer[: len(block)])] for block in blocks)


def _hashed(blocks: Iterable[Any]) -> FileSum:
    digest, size = xxhash.xxh3_128(), 0
    for block in blocks:
        digest.update(block)
        size += len(block)
    return FileSum(size, digest.hexdigest())


def _joined(pieces: list[FileSum]) -> FileSum:
    if len(pieces) == 1:
        return pieces[0]
    digests = b"".join(bytes.fromhex(each.xxh3_128) for each in pieces)
    return FileSum(sum(each.bytes for each in pieces), xxhash.xxh3_128_hexdigest(digests))


def seal(
    directory: Path, *, run: str | None = None, update: int | None = None, layout: Mapping[str, Any] | None = None
) -> Manifest:
    """Write the manifest of everything in `directory`, which must be complete. Raises OSError."""
    names = sorted(_names(directory))
    found = sums(directory / name for name in names)
    manifest = Manifest(dict(zip(names, found, strict=True)), run, update, layout)
    atomic_write(directory / MANIFEST, manifest.text(), durable=True)
    return manifest


def read(directory: Path) -> Manifest | None:
    """Return the manifest of a directory, None if it has none. Raises DamagedError if it is not as it was written."""
    path = directory / MANIFEST
    try:
        text = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise DamagedError(f"{path} cannot be read: {error}; restore it from a copy") from error
    try:
        body = json.loads(text)
        files = {str(name): FileSum(**each) for name, each in body["files"].items()}
        manifest = Manifest(files, body["run"], body["update"], body["layout"])
        if manifest.text().encode() != text:
            raise ValueError("its own checksum does not fit")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise DamagedError(f"{path} is not as it was written ({error}); restore it from a copy") from error
    return manifest


def of_model(directory: Path) -> Manifest | None:
    """Return the manifest of a model directory: its own, or the part of the checkpoint's that it belongs to."""
    own = read(directory)
    if own is not None:
        return own
    whole = read(directory.parent)
    part = whole.below(directory.name) if whole is not None else None
    return part if part is not None and part.files else None


def content(directory: Path) -> str:
    """Identify a model by its configuration and weights, wherever they lie: 32 hexadecimal digits.

    Reads them whole, unless a manifest that `check` has verified names them. Raises OSError.
    """
    files = [path.name for path in directory.iterdir() if path.is_file()]
    names = sorted(name for name in files if name == "config.json" or name.endswith(_WEIGHTS))
    known = of_model(directory)
    if known is not None and known.files.keys() >= set(names):
        found = [known.files[name] for name in names]
    else:
        found = sums(directory / name for name in names)
    listed = [f"{name} {each.bytes} {each.xxh3_128}\n" for name, each in zip(names, found, strict=True)]
    return xxhash.xxh3_128_hexdigest("".join(listed).encode())


def check(directory: Path) -> Manifest | None:
    """Verify a directory that has a manifest, and return it. Raises DamagedError, naming the files.

    Files that were added since are not looked at.
    """
    manifest = of_model(directory)
    if manifest is not None and (found := manifest.problems(directory)):
        raise DamagedError(
            f"{directory} is not as it was written: {summed_up(found)}; restore it from a copy, or, if you "
            f"changed it on purpose, remove {MANIFEST} there"
        )
    return manifest


def summed_up(problems: list[str]) -> str:
    """Return the first few problems as one text, and how many more there are."""
    more = len(problems) - _SHOWN
    return "; ".join(problems[:_SHOWN]) + (f"; and {more} more" if more > 0 else "")


def _names(directory: Path) -> Iterator[str]:
    """Yield the paths below `directory` of all files but the manifest, unfinished ones and hidden ones."""
    for folder, folders, files in os.walk(directory):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = Path(folder, name).relative_to(directory).as_posix()
            if path != MANIFEST and not name.startswith((TEMPORARY, ".")):
                yield path
