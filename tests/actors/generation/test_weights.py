import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from actors.errors import RunError, UsageError, WeightMismatchError
from actors.generation import weights
from actors.records import Canary, Manifest, TensorRecord

MASK = (1 << 64) - 1
TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b": torch.tensor([1.5, -2.0, 3.0], dtype=torch.bfloat16),
}


def manifest_of(tensors, **changes) -> Manifest:
    records = tuple(
        TensorRecord(name, tuple(t.shape), weights.dtype_name(t.dtype), weights.fingerprint(t))
        for name, t in tensors.items()
    )
    return Manifest(3, changes.get("records", records), Canary((), ()), "shm", changes.get("location", ""))


def slow_fingerprint(data: bytes) -> str:
    """The same definition in Python integers, word by word."""
    data += b"\0" * (-len(data) % 8)
    plain = mixed = 0
    for i in range(len(data) // 8):
        word = int.from_bytes(data[8 * i : 8 * i + 8], "little")
        plain += word
        z = signed(word + i * 0x1E3779B97F4A7C15)
        z ^= z >> 29
        z = signed(z * 0x3F58476D1CE4E5B9)
        mixed += z ^ (z >> 32)
    return f"{plain & MASK:016x}{mixed & MASK:016x}"


def signed(value: int) -> int:
    value &= MASK
    return value - (1 << 64) if value >> 63 else value


@given(st.binary(min_size=0, max_size=100))
def test_the_fingerprint_equals_its_definition_in_python_integers(data):
    tensor = torch.tensor(list(data), dtype=torch.uint8)
    assert weights.fingerprint(tensor) == slow_fingerprint(data)


def test_the_fingerprint_does_not_depend_on_how_the_tensor_is_cut_into_chunks(monkeypatch):
    tensor = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    whole = weights.fingerprint(tensor)
    monkeypatch.setattr(weights, "_CHUNK_WORDS", 7)
    assert weights.fingerprint(tensor) == whole


@given(st.integers(0, 63), st.integers(0, 31))
def test_every_flipped_bit_changes_the_fingerprint(position, bit):
    words = torch.arange(64, dtype=torch.int32)
    flipped = words.clone()
    flipped[position] ^= torch.tensor(1 << bit if bit < 31 else -(1 << 31), dtype=torch.int32)
    assert weights.fingerprint(flipped) != weights.fingerprint(words)


@given(st.integers(0, 511), st.integers(1, 511))
def test_swapped_words_change_the_fingerprint_even_when_only_their_top_byte_differs(first, distance):
    """A sum weighted by the bare position misses this: (i - j) * (a - b) is a multiple of 2^64 for i - j = 256."""
    values = torch.zeros(512, dtype=torch.int64)
    values[first] = 0x4000000000000000
    swapped = torch.roll(values, distance)
    assert weights.fingerprint(swapped) != weights.fingerprint(values)


def test_a_view_into_a_larger_tensor_has_the_fingerprint_of_its_copy():
    base = torch.randn(9, 7, generator=torch.Generator().manual_seed(1)).to(torch.bfloat16)
    for view in (base.t(), base[1:, 1:], base.reshape(-1)[1:]):
        assert weights.fingerprint(view) == weights.fingerprint(view.contiguous().clone())


def test_negative_zero_and_zero_have_different_fingerprints():
    assert weights.fingerprint(torch.tensor([0.0])) != weights.fingerprint(torch.tensor([-0.0]))


def test_canary_tokens_are_fixed_and_inside_the_vocabulary():
    tokens = weights.canary_tokens(96, 32)
    assert tokens == weights.canary_tokens(96, 32)
    assert weights.canary_tokens(96, 4) == tokens[:4]
    assert len(tokens) == 32
    assert set(tokens) <= set(range(96))


def test_expected_tensors_come_from_every_file_of_the_index(tmp_path):
    save_file({"a": TENSORS["a"]}, tmp_path / "model-1.safetensors")
    save_file({"b": TENSORS["b"]}, tmp_path / "model-2.safetensors")
    save_file({"c": TENSORS["a"]}, tmp_path / "consolidated.safetensors")
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert weights.expected_tensors(tmp_path) == {"a": ((2, 3), "float32"), "b": ((3,), "bfloat16")}


def test_a_tied_head_that_the_files_repeat_is_not_expected(tmp_path):
    save_file({"a": TENSORS["a"], "lm_head.weight": TENSORS["b"]}, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    assert set(weights.expected_tensors(tmp_path)) == {"a"}
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": false}')
    assert set(weights.expected_tensors(tmp_path)) == {"a", "lm_head.weight"}


def test_a_directory_without_safetensors_says_how_to_get_them(tmp_path):
    with pytest.raises(UsageError, match="save_pretrained"):
        weights.expected_tensors(tmp_path)


def test_tensors_that_equal_the_manifest_pass():
    weights.check_against(manifest_of(TENSORS), {name: t.clone() for name, t in TENSORS.items()})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("b"), "'b' is missing"),
        (lambda t: t.update(c=t["a"]), "'c' is extra"),
        (lambda t: t.update(a=t["a"].t()), r"'a' arrived as float32 \(3, 2\)"),
        (lambda t: t.update(a=t["a"].to(torch.float64)), "'a' arrived as float64"),
        (lambda t: t.update(b=t["b"].flip(0)), "'b' arrived with other bits"),
    ],
)
def test_a_wrong_tensor_is_refused_by_name(change, message):
    arrived = dict(TENSORS)
    change(arrived)
    with pytest.raises(WeightMismatchError, match=message):
        weights.check_against(manifest_of(TENSORS), arrived)


@pytest.mark.parametrize(
    ("expected", "message"),
    [
        ({"a": ((2, 3), "float32")}, "'b' is extra"),
        ({"a": ((2, 3), "float32"), "b": ((3,), "float32"), "z": ((1,), "float32")}, "'z' is missing"),
        ({"a": ((6,), "float32"), "b": ((3,), "float32")}, r"'a' is published with shape \(2, 3\)"),
    ],
)
def test_a_publication_that_does_not_fit_the_model_is_refused_by_name(expected, message):
    with pytest.raises(WeightMismatchError, match=message):
        weights.check_expected(manifest_of(TENSORS), expected)


def test_a_publication_may_have_another_dtype_than_the_model_was_saved_in():
    weights.check_expected(manifest_of(TENSORS), {"a": ((2, 3), "bfloat16"), "b": ((3,), "float32")})


def test_chunks_give_back_the_bits_that_went_in():
    chunks = [{"a": TENSORS["a"].numpy()}, {"b": TENSORS["b"].view(torch.int16).numpy()}]
    weights.check_against(manifest_of(TENSORS), weights.read_chunks(manifest_of(TENSORS), chunks))


def test_a_tensor_in_two_chunks_is_refused():
    chunk = {"a": TENSORS["a"].numpy()}
    with pytest.raises(WeightMismatchError, match="'a' is in two chunks"):
        weights.read_chunks(manifest_of(TENSORS), [chunk, chunk])


def test_read_only_arrays_are_read_without_a_warning(recwarn):
    array = np.ones(3, dtype=np.float32)
    array.setflags(write=False)
    assert weights.read_chunks(manifest_of({}), [{"a": array}])["a"].tolist() == [1.0, 1.0, 1.0]
    assert not recwarn.list


def test_a_file_that_is_gone_says_what_to_do(tmp_path):
    with pytest.raises(RunError, match="object_store"):
        weights.read_shm(manifest_of(TENSORS, location=str(tmp_path / "gone")))


@pytest.mark.parametrize("left", [0, 4, 8, 60, -4], ids=["nothing", "half a length", "length", "half a header", "data"])
def test_a_file_that_was_cut_off_is_refused_by_its_name(tmp_path, left):
    path = tmp_path / "w.safetensors"
    save_file(TENSORS, path)
    path.write_bytes(path.read_bytes()[:left])
    with pytest.raises(WeightMismatchError, match=r"version 3: .*w\.safetensors is not readable"):
        weights.read_shm(manifest_of(TENSORS, location=str(path)))
    if left != -4:  # what data there is, the header does not tell
        with pytest.raises(UsageError, match=r"w\.safetensors is not readable"):
            weights.read_header(path)


def test_the_file_of_another_version_is_refused_though_every_name_and_shape_fits(tmp_path):
    """Version 3 follows version 1: a receiver that finds version 2's file must not call it version 3."""
    path = tmp_path / "weights-2.safetensors"
    save_file({name: tensor + 1 for name, tensor in TENSORS.items()}, path)
    manifest = manifest_of(TENSORS, location=str(path))
    with pytest.raises(WeightMismatchError, match="version 3: tensor 'a' arrived with other bits"):
        weights.check_against(manifest, weights.read_shm(manifest))


def test_versions_may_be_skipped_or_repeated_but_never_taken_back():
    for version in (0, 1, 3):
        weights.check_not_older(manifest_of(TENSORS), version)
    with pytest.raises(WeightMismatchError, match="version 3 is older than version 4, which is in use"):
        weights.check_not_older(manifest_of(TENSORS), 4)
