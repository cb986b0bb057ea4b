"""A learner rank as an actor sees it: publication, and checkpoints that outlive the death of a rank."""

import signal

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from actors.records import TensorRecord
from actors.weights import canary_tokens, fingerprint
from learner import checkpoints
from tests.learner.ranks import VOCABULARY, make_model, run_ranks


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """Two ranks of which one is killed while saving, then two new ones that take over."""
    path = tmp_path_factory.mktemp("worker")
    make_model(path / "model")
    codes = run_ranks(path, "crash")
    assert codes[1] == -signal.SIGKILL, (path / "crash-rank1.log").read_text()[-3000:]
    assert codes[0] != 0
    codes = run_ranks(path, "recover")
    assert codes == [0, 0], (path / "recover-rank0.log").read_text()[-3000:]
    return path


@pytest.fixture(scope="module")
def recovered(directory):
    return torch.load(directory / "recovered.pt", weights_only=False)


@pytest.fixture(scope="module")
def whole(directory):
    """The weights at the last good checkpoint."""
    return torch.load(directory / "whole.pt")


@pytest.mark.slow
def test_a_write_refused_on_one_rank_is_an_error_on_every_rank(directory):
    for rank in range(2):
        message = (directory / f"message{rank}").read_text()
        assert "could not be written to" in message
        assert "rank 1: [Errno 28] No space left on device" in message


@pytest.mark.slow
def test_a_rank_killed_while_it_writes_leaves_the_last_checkpoint_as_the_latest(directory, recovered, whole):
    root = directory / "checkpoints"
    assert checkpoints.latest(root) == root / "update-1"
    assert checkpoints.read_state(root / "update-1") == {"updates": 1}
    assert (root / ".tmp-update-2").exists()
    assert recovered["client"] == {"cursor": 17}


@pytest.mark.slow
def test_the_publication_holds_the_policys_weights_under_their_checkpoint_names(recovered, whole):
    published = {name: torch.from_numpy(array) for chunk in recovered["chunks"] for name, array in chunk.items()}
    assert set(published) == set(whole)
    assert all(torch.equal(published[name], whole[name]) for name in whole)
    assert recovered["manifest"].version == 1
    assert set(recovered["manifest"].tensors) == {
        TensorRecord(name, tuple(tensor.shape), "float32", fingerprint(tensor)) for name, tensor in whole.items()
    }


@pytest.mark.slow
def test_the_canary_is_scored_at_temperature_one_by_the_published_weights(directory, recovered):
    canary = recovered["manifest"].canary
    assert canary.token_ids == canary_tokens(VOCABULARY, 32)
    model = AutoModelForCausalLM.from_pretrained(directory / "final").eval()
    ids = torch.tensor(canary.token_ids)
    logp = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    assert canary.logprobs == pytest.approx(logp.gather(-1, ids[1:, None])[:, 0].tolist(), abs=1e-5)


@pytest.mark.slow
def test_the_final_model_is_the_policy(directory, whole):
    written = load_file(directory / "final" / "model.safetensors")
    assert set(written) == set(whole)
    assert all(torch.equal(written[name], whole[name]) for name in whole)
