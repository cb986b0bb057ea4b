"""Read headers and indices of safetensors files, and check them before anything in them is believed.

The format and its limits: https://github.com/huggingface/safetensors#format. A header that is accepted here describes
the whole file: every byte belongs to exactly one tensor.
"""

import math
import re
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from actors.errors import UsageError
from actors.foreign.documents import LFS_POINTER, RESTORE, named, parse_json, read_object, unreadable
from actors.foreign.text import shown

LARGEST_HEADER = 100_000_000  # bytes; the library's own limit
INDEX = "model.safetensors.index.json"
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
    "C64": 64, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip
"""Bits of an element, by the format's names of dtypes."""
WHOLE_NUMBERS = ("BOOL", "U8", "I8", "I16", "U16", "I32", "U32", "I64", "U64")
MOST_READ = 1 << 30
"""Most bytes of weights whose values are checked before a run starts; takes a second or two."""
_EXPONENTS = {"F16": (2, 0x7C00), "BF16": (2, 0x7F80), "F32": (4, 0x7F800000), "F64": (8, 0x7FF << 52)}
"""Bytes of an element, and the bits of its exponent (IEEE 754; bfloat16 is the upper half of a float32)."""
_PART = 1 << 22  # elements that are checked together


def weight_files(directory: Path) -> list[Path]:
    """Return the safetensors files of a Hugging Face directory: those of its index, else model.safetensors, else all.

    Raises UsageError if the index is damaged or names a file elsewhere.
    """
    index, single = directory / INDEX, directory / "model.safetensors"
    if index.is_file():
        return [directory / name for name in _names(index)]
    files = [single] if single.is_file() else sorted(directory.glob("*.safetensors"))
    if shard := next((file.name for file in files if re.search(r"-\d+-of-\d+\.safetensors$", file.name)), None):
        raise UsageError(
            f"{shown(directory)} holds a part of a model, {shown(shard)}, and no {INDEX} that names all parts; "
            "download the model again"
        )
    return files


def require_numbers(directory: Path) -> None:
    """Raise UsageError, naming file and tensor, for a weight of whole numbers, or with NaN or infinity.

    The values are read only if all files together have at most `MOST_READ` bytes.
    """
    files = weight_files(directory)
    small = sum(path.stat().st_size for path in files) <= MOST_READ
    for path in files:
        header = read_header(path)
        start = path.stat().st_size - max((entry["data_offsets"][1] for entry in header.values()), default=0)
        for name, entry in header.items():
            what = f"the tensor {shown(name, 100)!r} of {shown(path)}"
            if name.endswith(("weight", "bias")) and entry["dtype"] in WHOLE_NUMBERS:
                raise UsageError(
                    f"{what} is of the dtype {entry['dtype']}, whole numbers, as quantised weights are; give the model "
                    "that it was made from"
                )
            if small and not _finite(path, start + entry["data_offsets"][0], entry):
                raise UsageError(
                    f"{what} holds NaN or infinity, so every answer would be NaN; {RESTORE}, or use an earlier "
                    "checkpoint"
                )


def _finite(path: Path, start: int, entry: Mapping[str, Any]) -> bool:
    """Return whether all elements are finite: an exponent of ones is NaN or infinity. True for other dtypes."""
    import numpy as np

    size, exponent = _EXPONENTS.get(entry["dtype"], (0, 0))
    if not size or entry["data_offsets"][0] == entry["data_offsets"][1]:
        return True
    count = (entry["data_offsets"][1] - entry["data_offsets"][0]) // size
    bits = np.memmap(path, f"<u{size}", "r", start, (count,))
    return not any(((bits[first : first + _PART] & exponent) == exponent).any() for first in range(0, count, _PART))


def no_weights(directory: Path) -> str:
    """Return an error text: the directory holds no safetensors weights. Names a broken download or GGUF file in it."""
    names = sorted(path.name for path in directory.iterdir())
    halves = [name for name in names if name.endswith((".incomplete", ".part", ".aria2", ".crdownload"))]
    said = f"{shown(directory)} has no *.safetensors weights"
    if halves:
        return f"{said}, and {shown(halves[0])} is a download that did not end; download the model again"
    if any(name.endswith(".gguf") for name in names):
        return f"{said}, but a GGUF file; examples/gguf_to_huggingface.py converts one"
    return (
        f"{said}; save the model there with transformers' `model.save_pretrained(directory)`, or use a directory that "
        "has them"
    )


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return a safetensors file's header, `{name: {"dtype", "shape", "data_offsets"}}`.

    Raises UsageError, naming the file, if the file is missing or cut, or its header does not describe its content.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if LFS_POINTER.startswith(start) and len(start) == 8:
                raise UsageError(f"{shown(path)} is a Git LFS pointer, not the weights; run `git lfs pull`")
            if len(start) < 8 or length > min(LARGEST_HEADER, size - 8):
                why = f"it has {size:,} bytes, and its header would have {length:,}, of at most {LARGEST_HEADER:,}"
                raise _refused(path, why)
            content = file.read(length)
    except OSError as error:
        raise _refused(path, error.strerror or str(error)) from None
    header = parse_json(content, path, largest=LARGEST_HEADER)
    if not isinstance(header, dict):
        raise _refused(path, f"its header is {named(header)}, not an object")
    metadata = header.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise _refused(path, "the metadata of its header are not names of texts")
    for problem in _problems(header, size - 8 - length):
        raise _refused(path, problem)
    return header


def _problems(header: Mapping[str, Any], size: int) -> Iterator[str]:
    """Yield a header's faults: wrong types, dtypes or sizes; then gaps and overlaps in the `size` bytes of data."""
    spans = []
    for name, entry in header.items():
        what = f"the tensor {name[:100]!r}"
        if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
            yield f"{what} is {named(entry)} without dtype, shape and data_offsets"
            return
        dtype, shape, span = entry["dtype"], entry["shape"], entry["data_offsets"]
        if not isinstance(dtype, str) or dtype not in BITS:
            yield f"{what} has the dtype {str(dtype)[:40]!r}, which is none of the format's"
        elif not _whole_numbers(shape) or not _whole_numbers(span) or len(span) != 2:
            yield f"{what} has the shape {str(shape)[:80]} at {str(span)[:80]}: not whole numbers from 0 up"
        elif (span[1] - span[0]) * 8 != math.prod(shape) * BITS[dtype]:
            yield f"{what}, {dtype} {str(shape)[:80]}, does not fill the {span[1] - span[0]:,} bytes of its place"
        spans.append((span, what))
    end = 0
    for (first, last), what in sorted(spans):
        if first != end:
            yield f"{what} begins at byte {first:,}, and what is before it ends at {end:,}"
        end = last
    if end != size:
        yield f"its tensors end at byte {end:,}, and it holds {size:,}"


def _names(index: Path) -> list[str]:
    weights = read_object(index).get("weight_map")
    if not isinstance(weights, dict) or not weights or not all(isinstance(name, str) for name in weights.values()):
        raise unreadable(index, "it has no weight_map from names of weights to files")
    names = sorted(set(weights.values()))
    for name in names:
        if Path(name).name != name or name in ("", "..") or "\0" in name:
            raise UsageError(f"{shown(index)} names {name!r}, which is not a file beside it; restore the directory")
    return names


def _whole_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _refused(path: Path, why: str) -> UsageError:
    return UsageError(f"{shown(path)} cannot be read as safetensors: {shown(why, 300)}; {RESTORE}")
