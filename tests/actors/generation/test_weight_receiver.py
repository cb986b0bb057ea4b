"""What the receiver does to a worker, seen through a stand-in for vLLM's worker class that records what it is told.

`test_engine.py` runs the same receiver inside real engines.
"""

import contextlib
import ctypes
from types import SimpleNamespace

import psutil
import pytest
import torch

from actors.errors import TransferInterruptedError
from actors.generation import weights
from actors.generation.weights import fingerprint
from actors.hub import Outline
from actors.records import Canary, Manifest, TensorRecord

pytestmark = pytest.mark.vllm

PIECE = 4096  # bytes, so that they come from the heap
PIECES = 50_000
TENSORS = {"a": torch.ones(2, 3), "b": torch.arange(4, dtype=torch.float32)}


def manifest_of(tensors, transport="object_store", location="") -> Manifest:
    records = tuple(TensorRecord(name, tuple(t.shape), "float32", fingerprint(t)) for name, t in tensors.items())
    return Manifest(5, records, Canary((), ()), transport, location)


def chunks_of(tensors):
    return [{name: t.numpy()} for name, t in tensors.items()]


class RecordingWorker:
    """vLLM's worker as far as the receiver goes: a model and a reload."""

    def __init__(self, model_dir):
        untied = SimpleNamespace(tie_word_embeddings=False)
        model_config = SimpleNamespace(model=str(model_dir), hf_config=untied, hf_text_config=untied)
        self.vllm_config = SimpleNamespace(model_config=model_config)
        self.model_runner = SimpleNamespace(get_model=torch.nn.Module)
        self.device, self.rank = "cpu", 0
        self.calls, self.loaded = [], {}

    def reload_weights(self, weights_iterator):
        self.calls.append("reload")
        self.loaded.update(weights_iterator)


@pytest.fixture
def worker(tmp_path, monkeypatch):
    """Of a model that has exactly `TENSORS`."""
    from actors.generation import weight_receiver

    class Worker(RecordingWorker, weight_receiver.WeightReceiver):
        pass

    model = Outline("Stand-in", {name: (tuple(t.shape), "float32") for name, t in TENSORS.items()}, [], [], [])
    monkeypatch.setattr(weights, "outline_once", lambda model_dir: model)
    monkeypatch.setattr(weight_receiver, "set_current_vllm_config", lambda config: contextlib.nullcontext())
    return Worker(tmp_path)


def test_a_checked_publication_is_loaded_once(worker):
    assert worker.check_publication(manifest_of(TENSORS), chunks_of(TENSORS)) is None
    assert worker.calls == []
    worker.load_publication(1.0)
    assert worker.calls == ["reload"]
    assert {name: t.tolist() for name, t in worker.loaded.items()} == {n: t.tolist() for n, t in TENSORS.items()}
    with pytest.raises(RuntimeError, match="without a publication"):
        worker.load_publication(1.0)


def test_freed_memory_is_given_back_now_and_then(worker, monkeypatch):
    """A generator grew by 7 KiB with each publication."""
    given = []
    monkeypatch.setattr("actors.generation.weight_receiver.give_back", lambda: given.append(worker.loads))
    for _ in range(101):
        worker.check_publication(manifest_of(TENSORS), chunks_of(TENSORS))
        worker.load_publication(1.0)
    assert given == [50, 100]


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_free_memory_below_a_piece_in_use_goes_back():
    """200 MB in pieces; the last stays, so that the heap cannot end before it. Half is room for others."""
    from actors.generation.weight_receiver import give_back

    pieces = [b"x" * PIECE + str(number).encode() for number in range(PIECES)]
    del pieces[:-1]
    before = psutil.Process().memory_info().rss
    give_back()
    assert before - psutil.Process().memory_info().rss > PIECE * PIECES / 2
    assert pieces


def test_a_refused_publication_touches_nothing_and_unstages_the_one_before(worker):
    assert worker.check_publication(manifest_of(TENSORS), chunks_of(TENSORS)) is None
    swapped = {"a": TENSORS["a"], "b": TENSORS["b"].flip(0)}
    assert "'b' arrived with other bits" in worker.check_publication(manifest_of(TENSORS), chunks_of(swapped))
    with pytest.raises(RuntimeError, match="without a publication"):
        worker.load_publication(1.0)
    assert worker.calls == []


def test_a_manifest_that_agrees_with_its_tensors_but_not_with_the_model_is_refused(worker):
    short = {"a": TENSORS["a"]}
    assert "'b' is missing" in worker.check_publication(manifest_of(short), chunks_of(short))
    longer = TENSORS | {"c": torch.ones(1)}
    assert "'c' is extra" in worker.check_publication(manifest_of(longer), chunks_of(longer))


def test_where_the_second_model_moves_a_publication_brings_both_models(worker):
    worker.vllm_config.model_config.hf_config.geometric_mixture = {"published_reference": True}
    both = TENSORS | {f"reference.{name}": tensor + 1 for name, tensor in TENSORS.items()}
    assert "'reference.a' is missing" in worker.check_publication(manifest_of(TENSORS), chunks_of(TENSORS))
    assert worker.check_publication(manifest_of(both), chunks_of(both)) is None
    worker.load_publication(1.0)
    assert worker.loaded.keys() == {"a", "b", "reference.a", "reference.b"}


def test_where_it_does_not_move_its_tensors_are_refused(worker):
    worker.vllm_config.model_config.hf_config.geometric_mixture = {"published_reference": False}
    both = TENSORS | {f"reference.{name}": tensor for name, tensor in TENSORS.items()}
    assert "'reference.a' is extra" in worker.check_publication(manifest_of(both), chunks_of(both))


def test_a_publication_whose_file_is_gone_is_refused_not_fatal(worker, tmp_path):
    manifest = manifest_of(TENSORS, "shm", str(tmp_path / "gone.safetensors"))
    assert "no longer at" in worker.check_publication(manifest, None)


def test_an_interrupted_transfer_is_no_refusal_and_touches_nothing(worker):
    from actors.generation.weight_receiver import Interruption

    class Interrupted:
        def fetch(self, manifest, payload):
            raise TransferInterruptedError("generator-1 failed")

    worker.publication_receivers = {"gloo": Interrupted()}
    answer = worker.check_publication(manifest_of(TENSORS, "gloo"), [])
    assert isinstance(answer, Interruption)
    assert answer == "generator-1 failed"
    assert worker.calls == []
