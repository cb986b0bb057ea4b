"""What the receiver does to a worker, seen through a stand-in for vLLM's worker class that records what it is told.

`test_engine.py` runs the same receiver inside real engines.
"""

from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from actors.errors import WeightMismatchError
from actors.generation.weights import fingerprint
from actors.records import Canary, Manifest, TensorRecord

pytestmark = pytest.mark.vllm

TENSORS = {"a": torch.ones(2, 3), "b": torch.arange(4, dtype=torch.float32)}


def manifest_of(tensors, transport="object_store", location="") -> Manifest:
    records = tuple(TensorRecord(name, tuple(t.shape), "float32", fingerprint(t)) for name, t in tensors.items())
    return Manifest(5, records, Canary((), ()), transport, location)


def chunks_of(tensors):
    return [{name: t.numpy()} for name, t in tensors.items()]


def update_of(tensors):
    return {
        "names": list(tensors),
        "shapes": [list(t.shape) for t in tensors.values()],
        "dtype_names": ["float32"] * len(tensors),
    }


class RecordingWorker:
    """vLLM's worker as far as the receiver goes: a model, a reload, a transfer engine with a redirectable target."""

    def __init__(self, model_dir, sent):
        untied = SimpleNamespace(tie_word_embeddings=False)
        model_config = SimpleNamespace(model=str(model_dir), hf_config=untied, hf_text_config=untied)
        self.vllm_config = SimpleNamespace(model_config=model_config)
        self.calls, self.loaded, self.sent = [], {}, sent
        self.model = SimpleNamespace(load_weights=self.loaded.update)
        self.weight_transfer_engine = SimpleNamespace(
            model=self.model,
            model_config="config",
            set_weight_update_target=lambda target, config: self.calls.append("redirect") or self._target(target),
            reset_weight_update_target=lambda: self.calls.append("reset") or self._target(self.model),
        )

    def _target(self, model):
        self.weight_transfer_engine.model = model

    def reload_weights(self, weights_iterator):
        self.calls.append("reload")
        self.loaded.update(weights_iterator)

    def start_weight_update(self):
        self.calls.append("start")

    def update_weights(self, update):
        self.calls.append("update")
        # Two batches, as a packed broadcast hands them over.
        for item in self.sent.items():
            self.weight_transfer_engine.model.load_weights([item])

    def finish_weight_update(self):
        self.calls.append("finish")


@pytest.fixture
def worker(tmp_path):
    from actors.generation.weight_receiver import WeightReceiver

    class Worker(RecordingWorker, WeightReceiver):
        pass

    save_file(TENSORS, tmp_path / "model.safetensors")
    return Worker(tmp_path, dict(TENSORS))


def test_a_checked_publication_is_loaded_once(worker):
    assert worker.check_publication(manifest_of(TENSORS), chunks_of(TENSORS)) is None
    assert worker.calls == []
    worker.load_publication()
    assert worker.calls == ["reload"]
    assert {name: t.tolist() for name, t in worker.loaded.items()} == {n: t.tolist() for n, t in TENSORS.items()}
    with pytest.raises(RuntimeError, match="without a publication"):
        worker.load_publication()


def test_a_refused_publication_touches_nothing_and_unstages_the_one_before(worker):
    assert worker.check_publication(manifest_of(TENSORS), chunks_of(TENSORS)) is None
    swapped = {"a": TENSORS["a"], "b": TENSORS["b"].flip(0)}
    assert "'b' arrived with other bits" in worker.check_publication(manifest_of(TENSORS), chunks_of(swapped))
    with pytest.raises(RuntimeError, match="without a publication"):
        worker.load_publication()
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
    worker.load_publication()
    assert worker.loaded.keys() == {"a", "b", "reference.a", "reference.b"}


def test_where_it_does_not_move_its_tensors_are_refused(worker):
    worker.vllm_config.model_config.hf_config.geometric_mixture = {"published_reference": False}
    both = TENSORS | {f"reference.{name}": tensor for name, tensor in TENSORS.items()}
    assert "'reference.a' is extra" in worker.check_publication(manifest_of(both), chunks_of(both))


def test_a_publication_whose_file_is_gone_is_refused_not_fatal(worker, tmp_path):
    manifest = manifest_of(TENSORS, "shm", str(tmp_path / "gone.safetensors"))
    assert "no longer at" in worker.check_publication(manifest, None)


def test_a_transfer_is_checked_tensor_by_tensor_and_finished_on_the_real_model(worker):
    assert worker.receive_publication(manifest_of(TENSORS, "nccl"), update_of(TENSORS)) is None
    assert worker.calls == ["start", "redirect", "update", "reset", "finish"]
    assert worker.weight_transfer_engine.model is worker.model
    assert worker.loaded.keys() == TENSORS.keys()


def test_a_transfer_that_announces_other_tensors_is_refused_before_it_starts(worker):
    update = update_of(TENSORS | {"b": torch.ones(5)})
    refusal = worker.receive_publication(manifest_of(TENSORS, "nccl"), update)
    assert "'b' is announced as ((5,), 'float32')" in refusal
    assert worker.calls == []


def test_a_transfer_with_wrong_bits_names_the_tensor_and_restores_the_target(worker):
    worker.sent["b"] = TENSORS["b"] + 1
    with pytest.raises(WeightMismatchError, match="'b' arrived with other bits"):
        worker.receive_publication(manifest_of(TENSORS, "nccl"), update_of(TENSORS))
    assert "finish" not in worker.calls
    assert worker.weight_transfer_engine.model is worker.model


def test_a_transfer_that_ends_early_names_what_never_arrived(worker):
    del worker.sent["b"]
    with pytest.raises(WeightMismatchError, match="'b' never arrived"):
        worker.receive_publication(manifest_of(TENSORS, "nccl"), update_of(TENSORS))
    assert "finish" not in worker.calls
