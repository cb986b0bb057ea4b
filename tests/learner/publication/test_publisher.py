import io
import multiprocessing
import os
import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from actors.errors import RunError, UsageError, WeightMismatchError
from actors.generation import weights
from actors.generation.transfer_group import views
from actors.records import Canary
from learner.publication import safetensors_file
from learner.publication.config import PublicationConfig
from learner.publication.publisher import Publisher
from learner.publication.safetensors_file import write_safetensors
from learner.publication.senders import MIB

CANARY = Canary((1, 2), (-0.5,))


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "embed": torch.randn(10, 6, generator=generator),
        "half": torch.randn(5, generator=generator).to(torch.bfloat16),
        "transposed": torch.randn(4, 3, generator=generator).t(),
        "scalar": torch.tensor(2.0),
    }


def publisher(tmp_path: Path, **settings) -> Publisher:
    return Publisher(PublicationConfig(**settings), tmp_path / "run")


def test_a_shm_publication_is_a_safetensors_file_that_equals_its_manifest(tmp_path):
    tensors = some_tensors()
    manifest = publisher(tmp_path).publish(4, tensors, CANARY)
    by_the_library = load_file(manifest.location)
    assert {name: t.tolist() for name, t in by_the_library.items()} == {n: t.tolist() for n, t in tensors.items()}
    weights.check_against(manifest, weights.read_shm(manifest))
    assert (manifest.version, manifest.transport, manifest.canary) == (4, "shm", CANARY)


def test_a_write_that_takes_less_than_it_was_given_goes_on(tmp_path):
    """Linux writes at most 2 GiB at a time; here it is three bytes."""

    class ShortWrites(io.FileIO):
        def write(self, data):
            return super().write(bytes(data[:3]))

    with ShortWrites(tmp_path / "w.safetensors", "w") as file:
        write_safetensors(file, some_tensors())
    written = load_file(tmp_path / "w.safetensors")
    assert {name: t.tolist() for name, t in written.items()} == {n: t.tolist() for n, t in some_tensors().items()}


def test_later_training_does_not_change_a_publication(tmp_path):
    for transport in ("shm", "object_store"):
        tensors = some_tensors()
        made = publisher(tmp_path, transport=transport)
        manifest = made.publish(1, tensors, CANARY)
        for tensor in tensors.values():
            tensor.zero_()
        chunks = [made.chunk(i) for i in range(made.chunk_count)]
        arrived = weights.read_shm(manifest) if transport == "shm" else weights.read_chunks(manifest, chunks)
        weights.check_against(manifest, arrived)


@pytest.mark.parametrize("transport", ["shm", "object_store", "gloo"])
def test_weights_are_taken_one_at_a_time_in_any_order_from_memory_that_is_used_again(tmp_path, transport):
    """So the learner never holds a second copy of them all, which took as long as the file itself."""
    tensors = some_tensors()
    outline = {name: tensor.to("meta") for name, tensor in tensors.items()}

    def gathered():
        for name in reversed(tensors):
            whole = tensors[name].clone(memory_format=torch.preserve_format)
            yield name, whole
            whole.fill_(torch.nan)

    made = publisher(tmp_path, transport=transport)
    manifest = made.publish(1, outline, CANARY, gathered())
    if transport == "shm":
        arrived = weights.read_shm(manifest)
    elif transport == "object_store":
        arrived = weights.read_chunks(manifest, [made.chunk(i) for i in range(made.chunk_count)])
    else:
        arrived = views(made.sender._versions[1], manifest.tensors)
    weights.check_against(manifest, arrived)
    assert all(torch.equal(arrived[name], tensor) for name, tensor in tensors.items())


def test_a_broadcast_s_memory_is_that_of_a_version_which_is_retired_and_never_of_one_that_is_not(tmp_path):
    """Fresh memory for each version slowed the learner's next step by 4%."""
    made = publisher(tmp_path, transport="gloo")
    manifests, places = {}, {}
    for version in (1, 2, 3):
        tensors = {name: (tensor + version).to(tensor.dtype) for name, tensor in some_tensors().items()}
        manifests[version] = made.publish(version, tensors, CANARY)
        places[version] = made.sender._versions[version].data_ptr()
        for kept in made.sender._versions:
            weights.check_against(manifests[kept], views(made.sender._versions[kept], manifests[kept].tensors))
        made.retire(version - 1)
    assert places[3] == places[1] != places[2]


def test_a_version_whose_weights_are_not_those_of_its_outline_is_never_published(tmp_path):
    tensors = some_tensors()
    made = publisher(tmp_path)
    with pytest.raises(RunError, match=r"did not gather 1 weights, among them 'scalar'"):
        made.publish(1, tensors, CANARY, list(tensors.items())[:-1])
    with pytest.raises(RunError, match=r"'embed' twice or as float32 \(10, 6\)"):
        made.publish(1, tensors, CANARY, [*list(tensors.items())[:1], *tensors.items()])
    with pytest.raises(RunError, match=r"'half' .* as float32 \(5,\) instead of bfloat16 \(5,\)"):
        made.publish(1, tensors, CANARY, [("half", torch.ones(5))])
    assert list((tmp_path / "run").iterdir()) == []


def test_chunks_are_split_between_tensors_and_a_large_tensor_is_its_own(tmp_path):
    words = MIB // 4
    sizes = {"a": words // 2, "b": words // 2, "c": 1, "large": 3 * words, "d": 1}
    made = publisher(tmp_path, transport="object_store", chunk_mib=1)
    manifest = made.publish(1, {name: torch.ones(size) for name, size in sizes.items()}, CANARY)
    chunks = [made.chunk(i) for i in range(made.chunk_count)]
    assert [list(chunk) for chunk in chunks] == [["a", "b"], ["c"], ["large"], ["d"]]
    weights.check_against(manifest, weights.read_chunks(manifest, chunks))


def test_bfloat16_travels_as_int16(tmp_path):
    made = publisher(tmp_path, transport="object_store")
    made.publish(1, {"half": torch.tensor([1.0], dtype=torch.bfloat16)}, CANARY)
    assert made.chunk(0)["half"].dtype == np.int16
    assert made.chunk(0)["half"].tolist() == [0x3F80]  # 1.0 is sign 0, exponent 127, mantissa 0


def test_retire_removes_one_version_and_close_removes_all(tmp_path):
    made = publisher(tmp_path)
    locations = [Path(made.publish(version, some_tensors(), CANARY).location) for version in (1, 2, 3)]
    made.retire(1)
    made.retire(99)
    assert [path.exists() for path in locations] == [False, True, True]
    made.close()
    assert not (tmp_path / "run").exists()


def test_a_mapped_publication_outlives_its_retirement(tmp_path):
    made = publisher(tmp_path)
    manifest = made.publish(1, some_tensors(), CANARY)
    mapped = weights.read_shm(manifest)
    made.retire(1)
    weights.check_against(manifest, mapped)


def test_retire_frees_the_chunks_of_its_version_only(tmp_path):
    made = publisher(tmp_path, transport="object_store")
    made.publish(1, some_tensors(), CANARY)
    made.publish(2, some_tensors(), CANARY)
    made.retire(1)
    assert made.chunk_count == 1
    made.retire(2)
    assert made.chunk_count == 0


def test_a_device_that_is_too_small_is_refused_with_both_sizes_and_a_remedy(tmp_path, monkeypatch):
    made = publisher(tmp_path)
    monkeypatch.setattr(os, "statvfs", lambda path: SimpleNamespace(f_bavail=3, f_frsize=4096))
    with pytest.raises(RunError, match=f"needs {MIB + 400} bytes .* has 12288 free; .*--shm-size.*object_store"):
        made.publish(1, {"a": torch.ones(100)}, CANARY)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_write_that_fails_leaves_no_file(tmp_path, monkeypatch):
    made = publisher(tmp_path)

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(RunError, match="No space left"):
        made.publish(1, some_tensors(), CANARY)
    assert list((tmp_path / "run").iterdir()) == []


def test_a_publisher_killed_while_it_writes_leaves_nothing_that_a_receiver_takes(tmp_path, monkeypatch):
    tensors, calls = some_tensors(), []

    def bytes_until_killed(tensor):
        calls.append(tensor)
        if len(calls) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return whole(tensor)

    whole = safetensors_file._bytes
    made = publisher(tmp_path)
    monkeypatch.setattr(safetensors_file, "_bytes", bytes_until_killed)
    killed = multiprocessing.get_context("fork").Process(target=made.publish, args=(7, tensors, CANARY))
    killed.start()
    killed.join()
    assert killed.exitcode == -signal.SIGKILL
    monkeypatch.undo()

    (left,) = (tmp_path / "run").iterdir()
    assert left.name == ".tmp-weights-7.safetensors"
    manifest = made.publish(8, tensors, CANARY)
    named = replace(manifest, version=7, location=manifest.location.replace("8", "7"))
    with pytest.raises(RunError, match=r"version 7 are no longer at .*weights-7\.safetensors"):
        weights.read_shm(named)
    with pytest.raises(WeightMismatchError, match=r"version 7: .*\.tmp-weights-7\.safetensors is not readable"):
        weights.read_shm(replace(named, location=str(left)))

    again = made.publish(7, tensors, CANARY)
    weights.check_against(again, weights.read_shm(again))
    made.close()
    assert not (tmp_path / "run").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.parametrize("transport", ["nccl", "ipc"])
def test_transports_of_gpus_say_what_to_set_when_there_is_none(tmp_path, transport):
    with pytest.raises(UsageError, match=rf"transport {transport} needs a CUDA GPU.*learner\.gpus_per_rank.*gloo"):
        publisher(tmp_path, transport=transport)
