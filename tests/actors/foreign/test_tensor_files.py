"""Safetensors headers and indices: only what the library accepts; the rest is a sentence with the file."""

import json
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from actors.errors import UsageError
from actors.foreign import tensor_files
from actors.foreign.tensor_files import INDEX, read_header, require_numbers, weight_files
from actors.hub import file_tensors
from launch.doctor.model_facts import count_parameters
from tests.timing import assert_quick


def written(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(content) if length is None else length) + content + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


BAD = {
    "a number as a tensor": ({"a": 1}, b"", "a number without dtype"),
    "a list": ([1], b"", "its header is a list, not an object"),
    "null": (None, b"", "its header is null, not an object"),
    "no shape": ({"a": {"dtype": "F32", "data_offsets": [0, 4]}}, b"1234", "without dtype, shape"),
    "unknown dtype": ({"a": entry("F33")}, b"1234", "has the dtype 'F33'"),
    "dtype of another type": ({"a": entry(["F32"])}, b"1234", "has the dtype"),
    "negative shape": ({"a": entry(shape=[-1])}, b"1234", r"has the shape \[-1\]"),
    "two negative sizes": ({"a": entry(shape=[-1, -1])}, b"1234", r"has the shape \[-1, -1\]"),
    "a truth value as size": ({"a": entry(shape=[True])}, b"1234", r"has the shape \[True\]"),
    "a fraction as size": ({"a": entry(shape=[1.0])}, b"1234", r"has the shape \[1\.0\]"),
    "text as shape": ({"a": entry(shape="1")}, b"1234", "has the shape"),
    "a huge size": ({"a": entry(shape=[2**63])}, b"1234", "has the shape"),
    "one offset": ({"a": entry(offsets=[4])}, b"1234", r"at \[4\]"),
    "offsets reversed": ({"a": entry(offsets=[4, 0])}, b"1234", "does not fill the -4 bytes"),
    "offsets too far apart": ({"a": entry(offsets=[0, 8])}, b"12345678", "does not fill the 8 bytes"),
    "offsets beyond the end": ({"a": entry(offsets=[0, 4])}, b"", "end at byte 4, and it holds 0"),
    "bytes of nobody at the end": ({"a": entry()}, b"12345", "end at byte 4, and it holds 5"),
    "a gap": ({"a": entry(), "b": entry(offsets=[8, 12])}, b"1" * 12, "begins at byte 8"),
    "an overlap": ({"a": entry(shape=[2], offsets=[0, 8]), "b": entry(offsets=[4, 8])}, b"1" * 8, "begins at byte 4"),
    "metadata of another type": ({"__metadata__": {"a": 1}}, b"", "metadata"),
    "brackets": (b"[" * 200_000, b"", "nested too deeply"),
    "objects": (b'{"a":' * 200_000, b"", "nested too deeply"),
    "not UTF-8": (b"\xff{}", b"", "utf-8"),
    "cut JSON": (b'{"a": ', b"", "Expecting value"),
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("read", [lambda path: read_header(path), lambda path: count_parameters(path.parent)])
def test_a_header_that_means_nothing_is_a_sentence_with_the_file(name: str, read: Any, tmp_path: Path) -> None:
    header, data, why = BAD[name]
    path = written(tmp_path / "model.safetensors", header, data)
    with pytest.raises((UsageError, ValueError), match=rf"(?s)model\.safetensors cannot be read.*{why}.*; restore it"):
        read(path)
    with pytest.raises((SafetensorError, OSError)):  # the library refuses all of them, too
        safe_open(path, "pt").__enter__()


@pytest.mark.parametrize("length", [2**63, 2**64 - 1, 10**9, 100])
def test_a_length_beyond_the_file_is_refused_before_anything_is_read(length: int, tmp_path: Path) -> None:
    path = written(tmp_path / "a.safetensors", {}, length=length)
    with pytest.raises(UsageError, match=rf"a\.safetensors .*would have {length:,}, of at most 100,000,000"):
        read_header(path)


def test_headers_with_one_changed_byte_are_accepted_only_if_the_library_accepts_them(tmp_path: Path) -> None:
    """Not the reverse: a repeated name is the library's own affair."""
    source, changed = tmp_path / "good.safetensors", tmp_path / "changed.safetensors"
    save_file({"a": torch.zeros(2, 3), "b": torch.zeros(3, dtype=torch.bfloat16), "c": torch.zeros(0)}, source)
    good, draw, accepted = source.read_bytes(), random.Random(0), 0
    (length,) = struct.unpack("<Q", good[:8])
    for _ in range(500):
        content = bytearray(good)
        content[draw.randrange(8 + length)] = draw.choice(b'0123456789{}[]",:aF-. \x00\xff')
        changed.write_bytes(content)
        try:
            read_header(changed)
        except UsageError:
            continue
        accepted += 1
        with safe_open(changed, "pt") as file:
            assert set(file.keys()) == set(read_header(changed))
    assert 0 < accepted < 500


def test_every_dtype_of_the_library_is_known(tmp_path: Path) -> None:
    names = "bool uint8 int8 int16 uint16 int32 uint32 int64 uint64 float16 bfloat16 float32 float64 float8_e4m3fn"
    tensors = {name: torch.zeros(2, 3).to(getattr(torch, name)) for name in [*names.split(), "float8_e5m2"]}
    save_file({**tensors, "empty": torch.zeros(0, 3)}, tmp_path / "model.safetensors")
    assert read_header(tmp_path / "model.safetensors").keys() == {*tensors, "empty"}
    assert file_tensors(tmp_path)["bfloat16"] == ((2, 3), "bfloat16")


@pytest.mark.parametrize(
    ("index", "why"),
    [
        ("[]", "it holds a list, not an object"),
        ("{}", "it has no weight_map"),
        ('{"weight_map": {}}', "it has no weight_map"),
        ('{"weight_map": [1]}', "it has no weight_map"),
        ('{"weight_map": {"a": 1}}', "it has no weight_map"),
        ('{"weight_map": {"a": ["x"]}}', "it has no weight_map"),
        ('{"weight_map": {"a": "x', "Unterminated string"),
        ("null", "it holds null"),
        ("[" * 200_000, "nested too deeply"),
        ("1" * 5000, "digits"),
        ("\xff", "it holds|cannot be read"),
        ('{"weight_map": {"a": "sub/x.safetensors"}}', "not a file beside it"),
        ('{"weight_map": {"a": ".."}}', "not a file beside it"),
        ('{"weight_map": {"a": ""}}', "not a file beside it"),
    ],
)
def test_an_index_that_means_nothing_is_a_sentence_with_the_file(index: str, why: str, tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(index, "latin-1")
    for read in (weight_files, file_tensors):

        def refused(read: Callable[[Path], object] = read) -> None:
            with pytest.raises(UsageError, match=rf"(?s){INDEX}.*({why})"):
                read(tmp_path)

        assert_quick(refused, 2.0)


@pytest.mark.parametrize(("dtype", "largest"), [("float16", 65504.0), ("bfloat16", 3e38), ("float32", 3e38)])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_not_finite_is_found_in_every_dtype(dtype, largest, bad, tmp_path):
    weight = torch.tensor([0.0, -1.0, largest, 1e-7], dtype=getattr(torch, dtype))
    save_file({"a.weight": weight, "b.weight": torch.zeros(0)}, tmp_path / "model.safetensors")
    require_numbers(tmp_path)
    weight[1] = bad
    save_file({"a.weight": weight}, tmp_path / "model.safetensors")
    with pytest.raises(UsageError, match=r"tensor 'a\.weight' of \S+model\.safetensors holds NaN or infinity"):
        require_numbers(tmp_path)


def test_only_weights_must_not_be_whole_numbers_and_large_files_are_not_read(tmp_path, monkeypatch):
    """Buffers, such as positions, are."""
    save_file({"a.position_ids": torch.arange(3), "a.weight": torch.tensor([torch.nan])}, tmp_path / "x.safetensors")
    monkeypatch.setattr(tensor_files, "MOST_READ", 10)
    require_numbers(tmp_path)
    save_file({"a.weight": torch.arange(3)}, tmp_path / "x.safetensors")
    with pytest.raises(UsageError, match="is of the dtype I64, whole numbers"):
        require_numbers(tmp_path)
