"""The content of a weight publication and its verification: names, shapes, fingerprints and a canary sequence.

Shared by the publisher and every receiver. Must import torch, numpy and safetensors only; how the bytes travel is not
decided here. All checks raise WeightMismatchError with the version and the first tensor that does not fit.
"""

import json
import random
import struct
import warnings
from collections.abc import Iterable, Mapping
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from actors.errors import RunError, UsageError, WeightMismatchError
from actors.records import Manifest

Shape = tuple[int, ...]

TIED_HEAD = "lm_head.weight"
"""Hugging Face's name of the output projection; a tied model publishes only its embedding."""

REFERENCE_PREFIX = "reference."
"""Prefix of the tensor names of an engine's second model."""

DTYPE_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""Dtype names of safetensors to those of torch."""

_CHUNK_WORDS = 1 << 21
_STRIDE = 0x1E3779B97F4A7C15
_MULTIPLIER = 0x3F58476D1CE4E5B9
_MASK = (1 << 64) - 1


def dtype_name(dtype: torch.dtype) -> str:
    """Return torch's name without its prefix: `float32`, `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def fingerprint(tensor: Tensor) -> str:
    """Return a 128-bit fingerprint of a tensor's bits in row-major order; the same on CPU and CUDA.

    The bytes are read as 64-bit words, zero-padded at the end. The first half is the sum of the words modulo 2^64: it
    detects any single changed word. The second half is the sum of the words after each was mixed with its position
    (add, xor-shift, multiply, xor-shift, as in SplitMix64): it also detects swapped and moved words. This guards
    against faults, not against an adversary. Needs a few chunks of 16 MiB beyond the tensor.

    Shape and dtype are not included: the manifest states both.
    """
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = data.numel() // 8 * 8
    # A view needs an offset that is a multiple of eight bytes; a mapped file does not guarantee one.
    words = (data if data.storage_offset() % 8 == 0 else data.clone())[:whole].view(torch.int64)
    plain = mixed = 0
    for start in range(0, words.numel(), _CHUNK_WORDS):
        chunk = words[start : start + _CHUNK_WORDS]
        plain += int(chunk.sum())
        mixed += _mixed_sum(chunk, start)
    if whole < data.numel():
        tail = torch.zeros(8, dtype=torch.uint8)
        tail[: data.numel() - whole] = data[whole:].cpu()
        last = tail.view(torch.int64)
        plain += int(last)
        mixed += _mixed_sum(last, words.numel())
    return f"{plain & _MASK:016x}{mixed & _MASK:016x}"


def _mixed_sum(words: Tensor, start: int) -> int:
    # On every device int64 arithmetic wraps modulo 2^64 and shifts are arithmetic.
    mixed = torch.arange(start, start + words.numel(), dtype=torch.int64, device=words.device)
    mixed.mul_(_STRIDE).add_(words)
    mixed ^= mixed >> 29
    mixed *= _MULTIPLIER
    mixed ^= mixed >> 32
    return int(mixed.sum())


def canary_tokens(vocab_size: int, length: int) -> tuple[int, ...]:
    """Return the fixed token sequence that learner and engines score: the same in every process and run."""
    return tuple(random.Random(20).choices(range(vocab_size), k=length))


def is_tied(model_dir: str | Path) -> bool:
    """Return whether the model's `config.json` ties the output projection to the embedding."""
    path = Path(model_dir) / "config.json"
    if not path.is_file():
        return False
    config = json.loads(path.read_text())
    return bool(config.get("tie_word_embeddings", config.get("text_config", {}).get("tie_word_embeddings", False)))


def expected_tensors(model_dir: str | Path, *, with_reference: bool = False) -> dict[str, tuple[Shape, str]]:
    """Read names, shapes and dtypes of a Hugging Face directory's weights from the safetensors headers.

    Leaves out a tied model's output projection, even if the files repeat it. `with_reference` adds every tensor again
    as `reference.<name>`, as in publications with an averaged second model. Raises UsageError if there are no weights.
    """
    directory = Path(model_dir)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise UsageError(f"{index} names {outside[0]!r}, which is not a file beside it; restore the directory")
        files = [directory / name for name in names]
    elif (directory / "model.safetensors").is_file():
        files = [directory / "model.safetensors"]
    else:
        files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UsageError(
            f"{directory} has no *.safetensors weights; save the model there with transformers' "
            "`model.save_pretrained(directory)`, or use a directory that has them"
        )
    expected: dict[str, tuple[Shape, str]] = {}
    for file in files:
        for name, entry in read_header(file).items():
            expected[name] = (tuple(entry["shape"]), DTYPE_NAMES.get(entry["dtype"], entry["dtype"]))
    if is_tied(directory):
        expected.pop(TIED_HEAD, None)
    if with_reference:
        expected |= {REFERENCE_PREFIX + name: entry for name, entry in expected.items()}
    return expected


def read_header(path: Path) -> dict[str, dict]:
    """Return a safetensors file's header, `{name: {"dtype", "shape", "data_offsets"}}`.

    Raises UsageError if it is missing or truncated.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, path.stat().st_size)))
    except (OSError, ValueError, struct.error) as error:
        raise UsageError(f"{path} is not readable as safetensors ({error}); restore it from its source") from error
    header.pop("__metadata__", None)
    return header


def check_expected(manifest: Manifest, expected: Mapping[str, tuple[Shape, str]]) -> None:
    """Check the manifest's names and shapes against the weights that a model was loaded from.

    Dtypes may differ: the engine casts.
    """
    published = {record.name: record.shape for record in manifest.tensors}
    _check_names(manifest, published, expected, "the model that this engine loaded")
    for name, shape in published.items():
        if shape != expected[name][0]:
            raise WeightMismatchError(
                f"version {manifest.version}: tensor {name!r} is published with shape {shape}, the model that this "
                f"engine loaded has {expected[name][0]}; start the generators from the learner's own model"
            )


def check_not_older(manifest: Manifest, version: int) -> None:
    """Check that the manifest is not older than `version`, the receiver's version in use.

    Versions may be skipped. The same one may come again, if the receiver's acknowledgement was lost.
    """
    if manifest.version < version:
        raise WeightMismatchError(
            f"version {manifest.version} is older than version {version}, which is in use; publish the newest weights "
            "under a new version, or restart this generator to go back"
        )


def check_against(manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """Check the tensors that arrived against the manifest: names, shapes, dtypes and bits, in this order."""
    _check_names(manifest, tensors, {record.name for record in manifest.tensors}, "the manifest")
    for record in manifest.tensors:
        tensor = tensors[record.name]
        found, stated = (tuple(tensor.shape), dtype_name(tensor.dtype)), (record.shape, record.dtype)
        if found != stated:
            raise WeightMismatchError(
                f"version {manifest.version}: tensor {record.name!r} arrived as {found[1]} {found[0]}, the manifest "
                f"says {stated[1]} {stated[0]}; publish again"
            )
    for record in manifest.tensors:
        check_bits(manifest.version, record.name, record.fingerprint, tensors[record.name])


def check_bits(version: int, name: str, stated: str, tensor: Tensor) -> None:
    """Check that the tensor's fingerprint is the one `stated` in the manifest."""
    found = fingerprint(tensor)
    if found != stated:
        raise WeightMismatchError(
            f"version {version}: tensor {name!r} arrived with other bits than were published (fingerprint {found}, "
            f"manifest {stated}); publish again, and check this host's memory and network if it recurs"
        )


def _check_names(manifest: Manifest, given: Iterable[str], wanted: Iterable[str], by: str) -> None:
    missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or extra:
        found, has = ("missing", "has") if missing else ("extra", "does not have")
        names = missing or extra
        raise WeightMismatchError(
            f"version {manifest.version}: tensor {names[0]!r} is {found} ({len(names)} in all), {by} {has} it; publish "
            "exactly the tensors of the model's safetensors files, under the same names"
        )


def read_shm(manifest: Manifest) -> dict[str, Tensor]:
    """Map the tensors of an `shm` publication from its file, without a copy. Raises RunError if the file is gone."""
    if not Path(manifest.location).is_file():
        raise RunError(
            f"the weights of version {manifest.version} are no longer at {manifest.location!r}; take the current "
            "version, or use publication.transport object_store if this generator runs on another host"
        )
    try:
        return load_file(manifest.location)
    except (SafetensorError, OSError) as error:
        raise WeightMismatchError(
            f"version {manifest.version}: {manifest.location} is not readable as safetensors ({error}); publish again"
        ) from error


def read_chunks(manifest: Manifest, chunks: Iterable[Mapping[str, np.ndarray]]) -> dict[str, Tensor]:
    """Return the tensors of an `object_store` publication, sharing memory with its chunks.

    numpy has no bfloat16: such a tensor travels as int16 and is viewed as bfloat16 again, as the manifest states.
    """
    bfloat16 = {record.name for record in manifest.tensors if record.dtype == "bfloat16"}
    tensors: dict[str, Tensor] = {}
    with warnings.catch_warnings():
        # Arrays from an object store are read-only; the tensors are only read.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        for name, array in chain.from_iterable(chunk.items() for chunk in chunks):
            if name in tensors:
                raise WeightMismatchError(
                    f"version {manifest.version}: tensor {name!r} is in two chunks; pass each chunk once"
                )
            tensor = torch.from_numpy(array)
            as_int16 = name in bfloat16 and tensor.dtype == torch.int16
            tensors[name] = tensor.view(torch.bfloat16) if as_int16 else tensor
    return tensors
