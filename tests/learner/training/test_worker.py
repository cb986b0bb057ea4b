"""A learner rank as an actor sees it: publication, and checkpoints that outlive the death of a rank."""

import os
import signal
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from actors.generation.config import GeneratorConfig, OpponentConfig
from actors.generation.proof.canary import CanaryCheck
from actors.generation.weights import fingerprint
from actors.records import Canary, Manifest, TensorRecord
from learner.backend import checkpoints
from learner.losses.config import GameLossConfig
from learner.publication.config import PublicationConfig
from learner.training.worker import FRESH_TOKENS, rollout_of
from tests.learner.backend.ranks import CONFIG, full_state, make_model, place_of, random_pairs, run_ranks, spec_of
from tests.learner.losses.games import random_games


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
    assert (canary.token_ids[0], len(canary.token_ids), len(canary.logprobs)) == (0, 33, 32)
    model = AutoModelForCausalLM.from_pretrained(directory / "final").eval()
    ids = torch.tensor(canary.token_ids)
    logp = model(input_ids=ids[None]).logits[0, :-1].log_softmax(-1)
    assert canary.logprobs == pytest.approx(logp.gather(-1, ids[1:, None])[:, 0].tolist(), abs=1e-5)


@pytest.mark.slow
def test_the_final_model_is_the_policy(directory, whole):
    written = load_file(directory / "final" / "model.safetensors")
    assert set(written) == set(whole)
    assert all(torch.equal(written[name], whole[name]) for name in whole)


@pytest.fixture
def lone_worker(tmp_path):
    """The only rank, in this process, training on games against the average of past policies."""
    environment = dict(os.environ)
    from learner.training.worker import LearnerWorker

    model_dir = make_model(tmp_path / "world", vocab_size=18)
    loss = GameLossConfig(opponent=OpponentConfig(kind="ema", ema_decay=0.5))
    spec = spec_of(model_dir, CONFIG.model_copy(update={"loss": loss}))
    worker = LearnerWorker(spec, place_of(), PublicationConfig(transport="object_store"), str(tmp_path / "publish"))
    yield worker
    worker.close()
    os.environ.clear()
    os.environ.update(environment)


def test_a_publication_that_fails_still_gathers_every_weight_with_the_other_ranks(lone_worker, monkeypatch):
    """Under ZeRO-3 they would wait for this rank without end."""
    gathered, weights = [], lone_worker._engine.weights

    def watched():
        for name, tensor in weights():
            yield name, tensor
            gathered.append(name)

    def full(version, outline, tensors):
        next(iter(tensors))
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(lone_worker._engine, "weights", watched)
    monkeypatch.setattr(lone_worker._publisher.sender, "keep", full)
    with pytest.raises(OSError, match="No space"):
        lone_worker.export(1)
    assert gathered == list(lone_worker._engine.outline)


def test_a_publication_carries_the_average_beside_the_policy(lone_worker):
    start = full_state(lone_worker._engine)
    assert lone_worker.update(random_games(0, 3, 3, 2, vocabulary=18), measure_step=True).step_size is not None
    policy = full_state(lone_worker._engine)
    manifest = lone_worker.export(1)
    chunks = [lone_worker.chunk(index) for index in range(lone_worker.chunk_count())]
    published = {name: torch.from_numpy(array) for chunk in chunks for name, array in chunk.items()}
    assert set(published) == set(policy) | {f"reference.{name}" for name in policy}
    assert [record.name for record in manifest.tensors] == list(published)
    for name, tensor in policy.items():
        assert torch.equal(published[name], tensor)
        assert torch.allclose(published[f"reference.{name}"], 0.5 * (start[name] + tensor), atol=1e-7)


def test_a_rollout_that_fills_the_engine_is_scored_without_its_last_token():
    """The engine samples one token after what it scores: the whole rollout was refused as too long."""
    pair, limit = random_pairs(0)[0], 32
    full = replace(pair, prompt_token_ids=(2,) * 20, chosen=replace(pair.chosen, token_ids=tuple(range(12))))
    prompt, answer = rollout_of([full])
    assert answer == tuple(range(11))
    fresh = Canary((*prompt, *answer), (-1.0,) * len(answer))
    check = CanaryCheck(GeneratorConfig(max_model_len=limit))
    check.check_before(Manifest(1, (), Canary((2, 3), (-1.0,)), "shm", fresh=fresh))
    assert rollout_of([replace(full, chosen=replace(pair.chosen, token_ids=(3,)))]) is None
    long = replace(full, chosen=replace(pair.chosen, token_ids=(3,) * 1000))
    assert rollout_of([long])[1] == (3,) * FRESH_TOKENS


def test_the_rollout_that_engines_score_is_the_longest_that_the_judge_prefers():
    """The mean of few tokens scatters, and so do the tokens that an update makes unlikely."""
    pair, game = random_pairs(0)[0], random_games(0, 1, 3, 0, vocabulary=18)[0]
    chosen = [replace(pair.chosen, token_ids=(3,) * length) for length in (5, 9, 7)]
    rejected = replace(pair.rejected, token_ids=(4,) * 20)
    pairs = [replace(pair, prompt_token_ids=(n,), chosen=each, rejected=rejected) for n, each in enumerate(chosen)]
    assert rollout_of(pairs) == ((1,), (3,) * 8)
    players = tuple(replace(pair.chosen, token_ids=(k,) * length) for k, length in enumerate((12, 6, 30)))
    wins = ((0.5, 0.2, 0.9), (0.8, 0.5, 0.7), (0.1, 0.3, 0.5))
    beaten = replace(game, prompt_token_ids=(5,), players=players, opponents=(), preferences=wins)
    assert rollout_of([beaten]) == ((5,), (1,) * 5)
    assert rollout_of([*pairs, beaten]) == ((1,), (3,) * 8)
