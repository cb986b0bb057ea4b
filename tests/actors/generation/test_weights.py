import ctypes
import gc
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from actors.errors import RunError, WeightMismatchError
from actors.generation import weights
from actors.records import Canary, Manifest, TensorRecord
from tests.fakes.architectures import rewrite
from tests.fakes.models import tiny_llama

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


def slow_fingerprint(data: bytes, block: int = 1 << 17) -> str:
    """The same definition in Python integers, word by word."""
    data += b"\0" * (-len(data) % 8)
    words = [int.from_bytes(data[i : i + 8], "little") for i in range(0, len(data), 8)]
    blocks = [words[i : i + block] for i in range(0, len(words), block)]
    sums = [sum(mix(word, place) for place, word in enumerate(each)) for each in blocks]
    mixed = sum(mix(total, number) for number, total in enumerate(sums))
    return f"{sum(words) & MASK:016x}{mixed & MASK:016x}"


def key(position: int) -> int:
    """SplitMix64's output number `position` from state 0, made odd."""
    z = (position + 1) * 0x9E3779B97F4A7C15 & MASK
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return (z ^ (z >> 31)) | 1


def mix(word: int, position: int) -> int:
    z = word & MASK
    z = (z ^ (z >> 32)) * key(position) & MASK
    return z ^ (z >> 32)


def unmix(mixed: int, position: int) -> int:
    """The word that `mix` takes to `mixed`: every step has an inverse."""
    z = mixed ^ (mixed >> 32)
    z = z * pow(key(position), -1, 1 << 64) & MASK
    return z ^ (z >> 32)


def test_keys_are_those_of_splitmix64():
    """Its first three outputs from state 0, as its authors' C code prints them."""
    outputs = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]
    assert [key(place) for place in range(3)] == [each | 1 for each in outputs]
    assert [weights._key(place) for place in range(3)] == [each | 1 for each in outputs]
    assert weights._keys(3, torch.device("cpu")).numpy().view(np.uint64).tolist() == [each | 1 for each in outputs]


WORDS = st.integers(0, MASK)
POSITIONS = st.integers(0, 1 << 40)


@given(WORDS, POSITIONS)
def test_the_mix_of_a_word_is_one_to_one_at_every_position(word, position):
    """With arithmetic shifts x and ~x mixed to the same."""
    assert unmix(mix(word, position), position) == word
    assert mix(word, position) != mix(~word & MASK, position)


def tensor_of(words):
    return torch.from_numpy(np.array(words, dtype=np.uint64).view(np.int64))


def test_two_thousand_random_corruptions_all_change_the_fingerprint():
    """One to eight flipped bits, anywhere."""
    draw = random.Random(0)
    words = tensor_of([draw.getrandbits(64) for _ in range(257)])
    whole, missed = weights.fingerprint(words), 0
    for _ in range(2000):
        other = words.clone()
        data = other.view(torch.uint8)
        for bit in draw.sample(range(64 * 257), draw.randint(1, 8)):
            data[bit // 8] ^= 1 << bit % 8
        missed += weights.fingerprint(other) == whole
    assert missed == 0


OLD_KEY = 0x1E3779B97F4A7C15


def sum_kept(words, draw, kind):
    """Change `words` so that their sum is kept, some as an earlier mix did not see."""
    p, q, r, s = sorted(draw.sample(range(len(words)), 4))
    d = draw.getrandbits(64) | 1
    if kind == "complements":
        words[q] = ~words[p] & MASK
        change = {p: words[q], q: words[p]}
    elif kind == "complements with the old keys":  # x and ~x at their places mixed alike, and the sum was kept
        words[q] = (~(words[p] + p * OLD_KEY) - q * OLD_KEY) & MASK
        change = {p: ~(words[p] + p * OLD_KEY) - p * OLD_KEY, q: ~(words[q] + q * OLD_KEY) - q * OLD_KEY}
    elif kind == "swapped with the old keys":
        change = {p: words[q] + (q - p) * OLD_KEY, q: words[p] + (p - q) * OLD_KEY}
    elif kind == "swapped with their keys":
        change = {p: words[q] + key(q) - key(p), q: words[p] + key(p) - key(q)}
    elif kind == "swapped":
        change = {p: words[q], q: words[p]}
    elif kind == "opposite":
        change = {p: words[p] + d, q: words[q] - d}
    elif kind == "second difference":
        s = q + r - p if q + r - p < len(words) else s
        change = {p: words[p] + d, q: words[q] - d, r: words[r] - d, s: words[s] + d}
    elif kind == "top bits":
        change = {p: words[p] ^ 1 << 63, q: words[q] ^ 1 << 63}
    elif kind == "moved block":
        change = dict(zip(range(p, r), words[q:r] + words[p:q], strict=True))
    else:  # reversed block
        change = dict(zip(range(p, s), words[p:s][::-1], strict=True))
    changed = list(words)
    for place, word in change.items():
        changed[place] = word & MASK
    return words, changed


KINDS = [
    "complements",
    "complements with the old keys",
    "swapped with the old keys",
    "swapped with their keys",
    "swapped",
    "opposite",
    "second difference",
    "top bits",
    "moved block",
    "reversed block",
]


@pytest.mark.parametrize("kind", KINDS)
def test_corruptions_constructed_to_keep_the_sum_of_the_words_change_the_fingerprint(kind):
    """100 of each kind, 1,000 in all; small words too, as of tensors that are mostly zeros."""
    draw, missed = random.Random(kind), 0
    for number in range(100):
        size = 8 if number % 2 else 64
        words, changed = sum_kept([draw.getrandbits(size) for _ in range(99)], draw, kind)
        before, after = weights.fingerprint(tensor_of(words)), weights.fingerprint(tensor_of(changed))
        assert words == changed or before[:16] == after[:16]
        missed += before == after and words != changed
    assert missed == 0


@given(st.binary(min_size=0, max_size=100))
def test_the_fingerprint_equals_its_definition_in_python_integers(data):
    tensor = torch.tensor(list(data), dtype=torch.uint8)
    assert weights.fingerprint(tensor) == slow_fingerprint(data)


@given(st.binary(min_size=0, max_size=600))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.parametrize("at_once", [1, 3])
def test_the_fingerprint_of_many_blocks_equals_its_definition(monkeypatch, at_once, data):
    """A GPU takes several blocks at once; both take a shorter one at the end."""
    monkeypatch.setattr(weights, "_BLOCK", 7)
    monkeypatch.setattr(weights, "_BLOCKS_AT_ONCE", {"cpu": at_once})
    tensor = torch.tensor(list(data), dtype=torch.uint8)
    assert weights.fingerprint(tensor) == slow_fingerprint(data, 7)


def test_words_that_are_swapped_between_blocks_at_one_place_change_the_fingerprint():
    words = torch.arange(1 << 18)
    swapped = words.clone()
    swapped[5], swapped[5 + (1 << 17)] = words[5 + (1 << 17)], words[5]
    assert weights.fingerprint(swapped) != weights.fingerprint(words)
    assert weights.fingerprint(torch.roll(words, 1 << 17)) != weights.fingerprint(words)


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


def test_the_tensors_of_a_publication_are_expected_by_the_model_not_by_its_files(tmp_path):
    """An export with rotary frequencies, which nothing loads, was refused at version 0 after the whole start."""
    trained = tiny_llama(tmp_path, seed=0)
    rewrite(tmp_path, lambda t: t | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(16)})
    published = {name: tensor.detach() for name, tensor in trained.named_parameters()}
    weights.check_expected(manifest_of(published), weights.expected_tensors(tmp_path))


def test_an_averaged_second_model_is_expected_under_its_prefix(tmp_path):
    tiny_llama(tmp_path, seed=0, tied=True)
    policy, both = weights.expected_tensors(tmp_path), weights.expected_tensors(tmp_path, with_reference=True)
    assert "lm_head.weight" not in policy
    assert both == policy | {f"reference.{name}": entry for name, entry in policy.items()}


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


def test_a_file_is_mapped_to_what_safetensors_reads(tmp_path):
    tensors = {
        "bf16": torch.randn(3, 5).bfloat16(),
        "f32": torch.randn(2, 1, 7),
        "f64": torch.randn(3, dtype=torch.float64),
        "i64": torch.tensor([-(2**62), 7]),
        "bool": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4, dtype=torch.float16),
    }
    save_file(tensors, tmp_path / "w.safetensors", metadata={"format": "pt"})
    mapped = weights.mapped_tensors(tmp_path / "w.safetensors")
    read = load_file(tmp_path / "w.safetensors")
    assert mapped.keys() == read.keys()
    for name, tensor in read.items():
        assert (mapped[name].dtype, mapped[name].shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(mapped[name], tensor)


def test_reading_publications_loses_no_memory(tmp_path):
    """safetensors 0.8.0 keeps 64 bytes of each tensor: 4,700 KiB here."""
    save_file({f"{n}": torch.ones(4) for n in range(50)}, tmp_path / "w.safetensors")
    for _ in range(150):
        weights.mapped_tensors(tmp_path / "w.safetensors")
    before = allocated()
    for _ in range(1500):
        weights.mapped_tensors(tmp_path / "w.safetensors")
    assert allocated() - before < 2000


def allocated() -> int:
    """KiB of this process's memory that no file backs."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Anonymous:"))


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
