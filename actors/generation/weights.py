"""What a publication of weights is made of: bits with a fingerprint, names, shapes, and a canary sequence.

Shared by the publisher and by every receiver, so it needs torch, numpy and safetensors only. It must not know vllm,
ray, or how the bytes travelled.
"""

from __future__ import annotations

import json
import random
import struct
import warnings
from collections.abc import Iterable, Mapping
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
"""What Hugging Face models call the output projection; a tied model publishes only its embedding."""

REFERENCE_PREFIX = "reference."
"""Before a tensor's name: of the second model in an engine that holds two."""

DTYPE_NAMES = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16",
    "I64": "int64", "I32": "int32", "I16": "int16", "I8": "int8", "U8": "uint8", "BOOL": "bool",
}  # fmt: skip
"""safetensors' names of dtypes, to torch's."""

_CHUNK_WORDS = 1 << 21
_STRIDE = 0x1E3779B97F4A7C15
_MULTIPLIER = 0x3F58476D1CE4E5B9
_MASK = (1 << 64) - 1


def dtype_name(dtype: torch.dtype) -> str:
    """torch's name without the prefix: `float32`, `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def fingerprint(tensor: Tensor) -> str:
    """128-bit fingerprint of a tensor's bits in row-major order; the same on CPU and CUDA.

    The bytes are read as 64-bit words, zero-padded at the end. The first half is the sum of the words modulo 2^64, so
    no single changed word goes unseen; the second half is the sum of the words after each was mixed with its position
    (add, xor-shift, multiply, xor-shift, as in SplitMix64), so swapped and moved words are seen too. It guards against
    faults, not against an adversary. Memory beyond the tensor is bounded by a few chunks of 16 MiB.

    Shape and dtype are not part of it: the manifest states both.
    """
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = data.numel() // 8 * 8
    words = _as_words(data[:whole])
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


def _as_words(data: Tensor) -> Tensor:
    # A view needs an offset that is a multiple of eight bytes; a mapped file does not promise one.
    return (data if data.storage_offset() % 8 == 0 else data.clone()).view(torch.int64)


def _mixed_sum(words: Tensor, start: int) -> int:
    # int64 arithmetic wraps modulo 2^64 on every device; the shifts are arithmetic on every device.
    mixed = torch.arange(start, start + words.numel(), dtype=torch.int64, device=words.device)
    mixed.mul_(_STRIDE).add_(words)
    mixed ^= mixed >> 29
    mixed *= _MULTIPLIER
    mixed ^= mixed >> 32
    return int(mixed.sum())


def canary_tokens(vocab_size: int, length: int) -> tuple[int, ...]:
    """The fixed token sequence that learner and engines both score: the same ids in every process and every run."""
    return tuple(random.Random(20).choices(range(vocab_size), k=length))


def is_tied(model_dir: str | Path) -> bool:
    """Whether the model's output projection is its embedding, by its `config.json`."""
    path = Path(model_dir) / "config.json"
    if not path.is_file():
        return False
    config = json.loads(path.read_text())
    return bool(config.get("tie_word_embeddings", config.get("text_config", {}).get("tie_word_embeddings", False)))


def expected_tensors(model_dir: str | Path, *, with_reference: bool = False) -> dict[str, tuple[Shape, str]]:
    """Names, shapes and dtypes of a Hugging Face directory's weights, from the safetensors headers alone.

    A tied model's output projection is left out, whether or not the files repeat it.

    Args:
        model_dir: the policy's directory.
        with_reference: every tensor a second time as `reference.<name>`, as publications have it whose second model
            moves (opponents of kind ema).

    Raises:
        UsageError: the directory holds no safetensors weights.
    """
    directory = Path(model_dir)
    index = directory / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
        outside = [name for name in names if Path(name).name != name]
        if outside:
            raise UsageError(f"{index} names {outside[0]!r}, which is no file beside it; restore the model's directory")
        files = [directory / name for name in names]
    elif (directory / "model.safetensors").is_file():
        files = [directory / "model.safetensors"]
    else:
        files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise UsageError(
            f"{directory} holds no *.safetensors weights; save the model there with `model.save_pretrained(directory)` "
            "of transformers, or name a directory that has them"
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
    """The header of one safetensors file: `{name: {"dtype", "shape", "data_offsets"}}`.

    Raises:
        UsageError: there is none, or it was cut off.
    """
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(min(length, path.stat().st_size)))
    except (OSError, ValueError, struct.error) as error:
        raise UsageError(
            f"{path} is not readable as safetensors ({error}); restore it from where it came from"
        ) from error
    header.pop("__metadata__", None)
    return header


def check_expected(manifest: Manifest, expected: Mapping[str, tuple[Shape, str]]) -> None:
    """Checks the manifest's names and shapes against the weights that a model was loaded from.

    Dtypes may differ: a float32 engine may be fed by a bfloat16 learner, and the engine casts.

    Raises:
        WeightMismatchError: naming the tensor that is missing, extra or of another shape.
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
    """Checks that the manifest does not take a receiver back from `version`, the one at work.

    Versions may be skipped; the same one again is for a receiver that lives and whose acknowledgement was lost.

    Raises:
        WeightMismatchError: naming both versions.
    """
    if manifest.version < version:
        raise WeightMismatchError(
            f"version {manifest.version} is older than version {version}, which is at work; publish the newest weights "
            "under a version of their own, or restart this generator to go back"
        )


def check_against(manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """Checks what arrived against the manifest: names, shapes, dtypes and bits, in this order.

    Raises:
        WeightMismatchError: naming the first tensor that is missing, extra, or of wrong shape, dtype or fingerprint.
    """
    declared = {record.name for record in manifest.tensors}
    _check_names(manifest, tensors, declared, "the manifest")
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
    """Raises `WeightMismatchError` when the tensor's bits are not those that were published."""
    found = fingerprint(tensor)
    if found != stated:
        raise WeightMismatchError(
            f"version {version}: tensor {name!r} arrived with other bits than were published (fingerprint {found}, "
            f"manifest {stated}); publish again, and check the memory and the network of this host if it recurs"
        )


def _check_names(manifest: Manifest, given: Iterable[str], wanted: Iterable[str], by: str) -> None:
    missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing:
        raise WeightMismatchError(
            f"version {manifest.version}: tensor {missing[0]!r} is missing ({len(missing)} in all); {by} has it. "
            "Publish every tensor under the name it has in the model's safetensors files"
        )
    if extra:
        raise WeightMismatchError(
            f"version {manifest.version}: tensor {extra[0]!r} is extra ({len(extra)} in all); {by} does not have it. "
            "Publish no tensor that is not in the model's safetensors files"
        )


def read_shm(manifest: Manifest) -> dict[str, Tensor]:
    """The tensors of an `shm` publication, mapped from its file, not copied.

    Raises:
        RunError: the file is gone.
        WeightMismatchError: it is not a readable safetensors file.
    """
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
    """The tensors of an `object_store` publication, sharing memory with its chunks.

    numpy has no bfloat16: such a tensor travels as int16 and is viewed back where the manifest says bfloat16.

    Raises:
        WeightMismatchError: two chunks hold the same name.
    """
    dtypes = {record.name: record.dtype for record in manifest.tensors}
    tensors: dict[str, Tensor] = {}
    for chunk in chunks:
        for name, array in chunk.items():
            if name in tensors:
                raise WeightMismatchError(
                    f"version {manifest.version}: tensor {name!r} is in two chunks; pass each chunk once"
                )
            tensors[name] = _to_torch(array, dtypes.get(name, ""))
    return tensors


def _to_torch(array: np.ndarray, stated_dtype: str) -> Tensor:
    with warnings.catch_warnings():
        # Arrays from an object store are read-only; the tensors are only read.
        warnings.filterwarnings("ignore", message=".*not writable.*")
        tensor = torch.from_numpy(array)
    if stated_dtype == "bfloat16" and tensor.dtype == torch.int16:
        return tensor.view(torch.bfloat16)
    return tensor
