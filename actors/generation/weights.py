"""Describe and verify the content of a weight publication: names, shapes, fingerprints and a canary sequence.

Shared by the publisher and every receiver. Transports decide how the bytes travel. All checks raise
WeightMismatchError with the version and the first tensor that does not fit.
"""

import functools
import warnings
from collections.abc import Iterable, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from actors.adapters import peft_form
from actors.adapters.config import LoraConfig
from actors.errors import RunError, UsageError, WeightMismatchError
from actors.foreign.documents import read_object
from actors.foreign.tensor_files import read_header
from actors.hub import DTYPE_NAMES, Outline, Shape, outline
from actors.records import Manifest

REFERENCE_PREFIX = "reference."
"""Prefix of the tensor names of an engine's second model."""

_MASK = (1 << 64) - 1
_BLOCK = 1 << 17
"""Words of a block. A block, its keys and its result fit a CPU's cache."""
_BLOCKS_AT_ONCE = {"cpu": 1}
"""Blocks computed at once, by type of device; 32 for other types, so that each operation is worth its launch."""


def dtype_name(dtype: torch.dtype) -> str:
    """Return torch's name of a dtype without its prefix: `float32`, `bfloat16`."""
    return str(dtype).removeprefix("torch.")


def fingerprint(tensor: Tensor) -> str:
    """Return a 128-bit fingerprint of a tensor's bits in row-major order; the same on CPU and CUDA.

    The bytes are read as 64-bit words, zero-padded at the end. The first half is the sum of the words modulo 2^64: it
    detects any single changed word. The second half mixes each word with the key of its place in a block of 2^17 words,
    sums each block, mixes the sums with the keys of their blocks, and sums those: it also detects swapped and moved
    words. `_mix` is one-to-one, so no two words, and no two sums, mix to the same at one place. This guards against
    faults, not against an adversary. Needs a few blocks of 1 MiB (CPU) or 32 MiB beyond the tensor.

    Shape and dtype are not included: the manifest states both.
    """
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
    whole = data.numel() // 8 * 8
    # A view needs an offset that is a multiple of eight bytes; a mapped file does not guarantee one.
    words = (data if data.storage_offset() % 8 == 0 else data.clone())[:whole].view(torch.int64)
    plain, sums = int(words.sum()) if whole else 0, _block_sums(words)
    if whole < data.numel():
        last = int.from_bytes(bytes(data[whole:].tolist()), "little")
        block, place = divmod(words.numel(), _BLOCK)
        sums = [*sums, 0][: block + 1]
        plain, sums[block] = plain + last, sums[block] + _mix(last, place)
    mixed = sum(_mix(total, block) for block, total in enumerate(sums))
    return f"{plain & _MASK:016x}{mixed & _MASK:016x}"


def _key(place: Any) -> Any:
    """Return the odd key of a place, a Python integer or an array of uint64: SplitMix64 (Steele et al. 2014)."""
    x = (place + 1) * 0x9E3779B97F4A7C15 & _MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & _MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & _MASK
    return x ^ x >> 31 | 1


def _mix(word: int, place: int) -> int:
    """Mix an integer modulo 2^64 with the key of its place. Each step has an inverse, so that it is one-to-one."""
    x = word & _MASK
    x = (x ^ x >> 32) * _key(place) & _MASK
    return x ^ x >> 32


@lru_cache(maxsize=4)
def _keys(count: int, device: torch.device) -> Tensor:
    return torch.from_numpy(_key(np.arange(count, dtype=np.uint64)).view(np.int64)).to(device)


def _block_sums(words: Tensor) -> list[int]:
    """Sum `_mix` over the words of each block; the last may be shorter. On every device int64 wraps modulo 2^64."""
    keys, at_once = _keys(_BLOCK, words.device), _BLOCKS_AT_ONCE.get(words.device.type, 32)
    whole = words.numel() // _BLOCK * _BLOCK
    rest = [words[None, whole:]] if whole < words.numel() else []
    mixed, shifted = torch.empty((2, min(at_once * _BLOCK, words.numel())), dtype=torch.int64, device=words.device)
    sums = []
    for blocks in [*words[:whole].view(-1, _BLOCK).split(at_once), *rest]:
        x, high = (buffer[: blocks.numel()].view(blocks.shape) for buffer in (mixed, shifted))
        torch.bitwise_xor(blocks, _shifted(blocks, high), out=x)
        x *= keys[: blocks.shape[1]]
        x ^= _shifted(x, high)
        sums.append(x.sum(1))
    return torch.cat(sums).tolist() if sums else []


def _shifted(x: Tensor, out: Tensor) -> Tensor:
    """Return the high halves of 64-bit words. The shift of int64 alone would fill with the sign: x and ~x mix alike."""
    return torch.bitwise_right_shift(x, 32, out=out).bitwise_and_(0xFFFFFFFF)


def is_tied(model_dir: str | Path) -> bool:
    """Return whether the model's `config.json` ties the output projection to the embedding."""
    path = Path(model_dir) / "config.json"
    if not path.is_file():
        return False
    config = read_object(path)
    text = config.get("text_config")
    part = text if isinstance(text, dict) and "tie_word_embeddings" not in config else config
    return bool(part.get("tie_word_embeddings", False))


@functools.cache
def outline_once(model_dir: str) -> Outline:
    """Return the `outline` of a directory that does not change while this process lives.

    Engines call this before vLLM builds its model, because vLLM changes transformers' classes for some architectures.
    """
    return outline(model_dir)


def expected_tensors(
    model_dir: str | Path, *, with_reference: bool = False, adapter: LoraConfig | None = None
) -> dict[str, tuple[Shape, str]]:
    """Return names, shapes and dtypes of the tensors that a learner of this model directory publishes.

    These are the tensors that training saves, by the directory's `config.json`. So an engine can check that the learner
    trains the engine's own model, whatever else the files hold. `with_reference` adds every tensor again as
    `reference.<name>`, as in publications with an averaged second model. With `adapter`, returns only the adapter's
    tensors. Raises UsageError as `outline`.
    """
    if adapter is not None:
        return {name: (shape, "float32") for name, shape in peft_form.outline(model_dir, adapter).items()}
    expected = dict(outline_once(str(model_dir)).tensors)
    if with_reference:
        expected |= {REFERENCE_PREFIX + name: entry for name, entry in expected.items()}
    return expected


def check_expected(manifest: Manifest, expected: Mapping[str, tuple[Shape, str]]) -> None:
    """Check the manifest's names and shapes against those that the engine's model expects.

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

    Versions may be skipped. The same version may come again if the receiver's acknowledgement was lost.
    """
    if manifest.version < version:
        raise WeightMismatchError(
            f"version {manifest.version} is older than version {version}, which is in use; publish the newest weights "
            "under a new version, or restart this generator to go back"
        )


def check_against(manifest: Manifest, tensors: Mapping[str, Tensor]) -> None:
    """Check the arrived tensors against the manifest: names, shapes, dtypes and bits, in this order."""
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
            f"version {manifest.version}: tensor {names[0]!r} is {found} ({len(names)} in all), {by} {has} it; start "
            "the generators from the learner's own model"
        )


def read_shm(manifest: Manifest) -> dict[str, Tensor]:
    """Map the tensors of an `shm` publication from its file, without a copy. Raises RunError if the file is gone."""
    if not Path(manifest.location).is_file():
        raise RunError(
            f"the weights of version {manifest.version} are no longer at {manifest.location!r}; take the current "
            "version, or use publication.transport object_store if this generator runs on another host"
        )
    try:
        return mapped_tensors(Path(manifest.location))
    except (UsageError, OSError, RuntimeError, KeyError) as error:
        raise WeightMismatchError(
            f"version {manifest.version}: {manifest.location} is not readable as safetensors ({error}); publish again"
        ) from error


def mapped_tensors(path: Path) -> dict[str, Tensor]:
    """Map the tensors of a safetensors file into memory. Raises UsageError for a wrong header.

    Avoids safetensors 0.8.0, which leaks 64 bytes with each tensor: a generator reads thousands of publications.
    """
    header = read_header(path)
    size = path.stat().st_size
    start = size - max((entry["data_offsets"][1] for entry in header.values()), default=0)
    whole = torch.UntypedStorage.from_file(str(path), False, size)
    tensors = {}
    for name, entry in header.items():
        first, last = (start + offset for offset in entry["data_offsets"])
        dtype = getattr(torch, DTYPE_NAMES[entry["dtype"]])
        if first == last:
            tensors[name] = torch.empty(entry["shape"], dtype=dtype)
        else:
            tensors[name] = torch.asarray(whole[first:last], dtype=torch.uint8).view(dtype).reshape(entry["shape"])
    return tensors


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
