"""The value head in the engine: what it is trained on, that it learns, and what holds it."""

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from learner.losses.config import PpoLossConfig
from tests.learner.backend.ranks import CONFIG, full_state, make_model, spec_of
from tests.learner.losses.games import random_games

pytestmark = pytest.mark.usefixtures("environment")


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("ppo")
    make_model(path / "model")
    return path


def engine_of(directory, stage, **loss):
    from learner.training.engine import TrainEngine

    optimizer = CONFIG.optimizer.model_copy(update={"schedule": "constant", "warmup_updates": 0})
    config = CONFIG.model_copy(update={"zero_stage": stage, "loss": PpoLossConfig(**loss), "optimizer": optimizer})
    return TrainEngine(spec_of(directory / "model", config))


def test_at_first_every_token_s_return_is_its_completion_s_score(directory):
    """The policy is its reference and the head says 0, so with lambda 1 the error is the square of the score."""
    games = random_games(1, 5, 4, 0, vocabulary=50)
    engine = engine_of(directory, 1, decay=1.0)
    stats = engine.update(games)
    by_game = []
    for game in games:
        lengths = [len(player.token_ids) for player in game.players]
        squares = [length * score**2 for length, score in zip(lengths, game.scores, strict=True)]
        by_game.append(sum(squares) / sum(lengths))
    assert stats.value_error == pytest.approx(sum(by_game) / 5, rel=1e-5)
    assert stats.player_preference is None
    engine.policy.close()


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.long) for stage in (0, 2)), 3])
def test_the_head_learns_the_score_and_its_error_falls(directory, stage):
    level = [replace(game, scores=(2.0,) * 4) for game in random_games(0, 4, 4, 0, vocabulary=50)]
    engine = engine_of(directory, stage, decay=1.0, value_weight=5.0)
    errors = [engine.update(level).value_error for _ in range(25)]
    assert errors[0] == pytest.approx(4.0, rel=0.01)
    assert errors[-1] < 0.5 * errors[0]
    engine.policy.close()


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.long), 3])
def test_a_resume_goes_on_to_the_bit_and_the_saved_model_has_no_value_head(directory, tmp_path, stage):
    games = [random_games(seed, 3, 4, 0, vocabulary=50) for seed in range(3)]
    engine = engine_of(directory, stage)
    for each in games[:2]:
        engine.update(each)
    engine.policy.save(tmp_path / "middle", {})
    expected, weights = engine.update(games[2]), full_state(engine)
    engine.policy.save_pretrained(tmp_path / "final")
    engine.policy.destroy()
    resumed = engine_of(directory, stage)
    resumed.policy.load(tmp_path / "middle")
    found = resumed.update(games[2])
    assert (found.loss, found.value_error) == (expected.loss, expected.value_error)
    for name, own in full_state(resumed).items():
        assert torch.equal(own, weights[name])
    resumed.policy.close()
    saved = load_file(tmp_path / "final" / "model.safetensors")
    assert not [name for name in saved if "value" in name]
