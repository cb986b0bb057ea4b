"""Write tensors as a safetensors file, one after another."""

import json
import struct
from collections.abc import Iterable, Mapping
from io import RawIOBase

import torch
from torch import Tensor

from actors.generation.weights import dtype_name
from actors.hub import DTYPE_NAMES

_SAFETENSORS_NAMES = {torch_name: name for name, torch_name in DTYPE_NAMES.items()}


def write_safetensors(
    file: RawIOBase, outline: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]] | None = None
) -> None:
    """Write the safetensors format: header length, JSON header, then the bytes of each tensor.

    `outline` has the names, shapes and dtypes of the `tensors`, which may come in any order; None: its own. Streams
    tensor by tensor. The library's writer first assembles everything in memory and takes several times longer.
    """
    header, starts, offset = {}, {}, 0
    for name, tensor in outline.items():
        starts[name] = offset
        size = tensor.numel() * tensor.element_size()
        header[name] = {
            "dtype": _SAFETENSORS_NAMES[dtype_name(tensor.dtype)],
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + size],
        }
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the format requires data to start at a multiple of 8 bytes
    _write_all(file, memoryview(struct.pack("<Q", len(text)) + text))
    for name, tensor in outline.items() if tensors is None else tensors:
        file.seek(8 + len(text) + starts[name])
        _write_all(file, memoryview(_bytes(tensor).numpy()))


def _write_all(file: RawIOBase, data: memoryview) -> None:
    # Linux writes at most 2 GiB at a time.
    while data:
        data = data[file.write(data) :]


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
