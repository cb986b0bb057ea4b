"""One rank of a stage as an actor sees it: from directories on disk to a trained one, and on from a checkpoint."""

import os

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from learner.backend import checkpoints
from learner.stages.config import ScratchConfig, StageSpec
from learner.stages.scratch import make_model
from learner.stages.worker import StageWorker
from learner.tensors.examples import TRAIN, VALIDATION, write_sequences
from tests.learner.backend.ranks import place_of, random_sequences, supervised_config


@pytest.fixture
def make_worker(tmp_path):
    """Workers of one rank in this process, one after the other; the process is left as it was."""
    before = dict(os.environ)
    make_model(tmp_path / "model", [], ScratchConfig(vocabulary=300, layers=1, heads=1, max_tokens=32))
    for name, seed in ((TRAIN, 0), (VALIDATION, 1)):
        write_sequences(tmp_path / "data" / name, random_sequences(seed, 9))
    workers = []

    def make():
        if workers:
            workers.pop().close()
        spec = StageSpec(
            supervised_config(1), str(tmp_path / "model"), str(tmp_path / "data"), 6, str(tmp_path / "failed")
        )
        workers.append(StageWorker(spec, place_of()))
        return workers[0]

    yield make
    if workers:
        workers.pop().close()
    os.environ.clear()
    os.environ.update(before)


def weights(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()


def test_a_worker_that_goes_on_from_a_checkpoint_ends_with_the_same_bits(make_worker, tmp_path):
    worker = make_worker()
    worker.ready()
    start = worker.evaluate()["loss"]
    worker.advance(2)
    stage = checkpoints.begin(tmp_path / "checkpoints", "update-2")
    worker.save(str(stage), {"note": 1})
    checkpoints.write_state(stage, {})
    checkpoints.commit(tmp_path / "checkpoints", "update-2", keep=1)
    worker.advance(4)
    assert worker.evaluate()["loss"] < start
    worker.save_pretrained(str(tmp_path / "straight"))

    resumed = make_worker()
    assert resumed.load(str(checkpoints.latest(tmp_path / "checkpoints"))) == {"note": 1}
    assert [stats.update for stats in resumed.advance(4)] == [3, 4, 5, 6]
    resumed.save_pretrained(str(tmp_path / "resumed"))
    straight = weights(tmp_path / "straight")
    for name, tensor in weights(tmp_path / "resumed").items():
        assert torch.equal(tensor, straight[name]), name
    assert AutoTokenizer.from_pretrained(tmp_path / "resumed").eos_token == "<|end|>"
