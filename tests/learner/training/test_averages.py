"""Averages of the weights in training: an anchored learner against plain torch, under every ZeRO stage; resumes."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.adapters.config import PublishedLoraConfig
from actors.errors import UsageError
from learner.losses.config import Anchor, PairLossConfig
from tests.learner.backend.ranks import (
    ANCHOR,
    CONFIG,
    TEMPERATURE,
    full_state,
    make_model,
    plain_learner,
    random_pairs,
    run_ranks,
    spec_of,
)
from tests.learner.losses.games import loss_of, random_games

pytestmark = pytest.mark.usefixtures("environment")

STAGES = (0, 1, 2, 3)
SPLIT, DRAWN = (4, 0), (3, 2)
"""Games whose opponents are half of the players, and others."""


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("anchored")
    make_model(path / "model")
    make_model(path / "tied", tie_word_embeddings=True)
    return path


@pytest.fixture(scope="module")
def two_ranks(directory):
    codes = run_ranks(directory, "anchored")
    assert codes == [0, 0], (directory / "anchored-rank0.log").read_text()[-3000:]
    return torch.load(directory / "anchored.pt", weights_only=False)


def engine_of(model, config=CONFIG, anchor=ANCHOR, **settings):
    from learner.training.engine import TrainEngine

    return TrainEngine(spec_of(model, config, anchor=anchor, **settings))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_train_as_plain_torch_with_a_third_model_does(directory, two_ranks, stage):
    batches = [random_pairs(seed) for seed in range(3)]
    name = "tied" if stage == 3 else "model"
    weights, history = plain_learner(directory / name, batches, CONFIG, ANCHOR)
    unanchored, _ = plain_learner(directory / name, batches, CONFIG)
    result = two_ranks[stage]
    for update, (loss, norm) in zip(result["updates"], history, strict=True):
        assert update.loss == pytest.approx(loss, rel=1e-4)
        assert update.grad_norm == pytest.approx(norm, rel=1e-3)
    for weight, own in result["state"].items():
        torch.testing.assert_close(own, weights[weight], rtol=0, atol=2e-4)
    apart = max((own - unanchored[weight]).abs().max() for weight, own in result["state"].items())
    assert apart > 2e-3  # the comparison sees the anchor


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_resume_goes_on_to_the_bit(two_ranks, stage):
    result = two_ranks[stage]
    assert result["resumed"].loss == result["went on"].loss
    for name, weights in result["state that went on"].items():
        assert torch.equal(result["resumed state"][name], weights)


@pytest.mark.slow
@pytest.mark.parametrize("stage", [2, 3])
def test_another_number_of_ranks_takes_the_average_over_to_the_bit(directory, two_ranks, stage):
    engine = engine_of(directory / ("tied" if stage == 3 else "model"), CONFIG.model_copy(update={"zero_stage": stage}))
    engine.policy.load(directory / f"anchored{stage}")
    own = engine.policies.anchor.average.whole()
    assert own.keys() == two_ranks[stage]["average"].keys()
    for name, weights in two_ranks[stage]["average"].items():
        assert torch.equal(own[name], weights)
    engine.policy.close()


@pytest.mark.parametrize("stage", [1, pytest.param(2, marks=pytest.mark.long), 3])
def test_in_bfloat16_the_average_is_float32_and_the_weights_come_back_to_the_bit(directory, stage):
    """1/T of a small step is below the resolution of bfloat16: the average would stand still."""
    config = CONFIG.model_copy(update={"zero_stage": stage, "dtype": "bfloat16"})
    engine, anchor = engine_of(directory / "model", config, Anchor(0.5, 100)), None
    states = [full_state(engine)]
    for seed in range(2):
        engine.update(random_pairs(seed))
        states.append(full_state(engine))
    anchor = engine.policies.anchor.average
    expected = {name: weights.float() for name, weights in states[0].items()}
    for state in states[1:]:
        expected = {name: slow + (state[name].float() - slow) / 100 for name, slow in expected.items()}
    for name, slow in anchor.whole().items():
        torch.testing.assert_close(slow, expected[name], rtol=1e-6, atol=1e-8)
    slow = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.bfloat16).eval()
    slow.load_state_dict(expected, strict=False)
    sequences = [(pair.prompt_token_ids, pair.chosen.token_ids) for pair in random_pairs(0)[:3]]
    batch = engine.policies._collate(sequences)
    scored = engine.policies.anchor(batch)
    before = engine.policies.score(sequences, with_reference=False)
    moved = torch.cat([torch.tensor(policy) for policy, _ in before])
    assert (scored - moved).abs().max() > 0.05
    with torch.no_grad():
        for (prompt, answer), own in zip(sequences, scored.split([len(a) for _, a in sequences]), strict=True):
            ids = torch.tensor([[*prompt, *answer]])
            logp = (slow(ids).logits[0].float() / TEMPERATURE).log_softmax(-1)
            rows = torch.arange(len(prompt) - 1, ids.shape[1] - 1)
            torch.testing.assert_close(own.float(), logp[rows, ids[0, len(prompt) :]], rtol=0, atol=0.15)
    for name, weights in full_state(engine).items():
        assert torch.equal(weights, states[-1][name])
    engine.policy.close()


@pytest.mark.parametrize("stage", [pytest.param(1, marks=pytest.mark.long), 3])
def test_with_adapters_their_matrices_are_averaged(directory, stage):
    lora = PublishedLoraConfig(rank=4, alpha=8)
    config = CONFIG.model_copy(update={"zero_stage": stage, "lora": lora})
    engine = engine_of(directory / "model", config)
    expected = {name: weights.clone() for name, weights in engine.policies.anchor.average.whole().items()}
    assert expected
    assert all("lora_" in name for name in expected)
    for seed in range(2):
        engine.update(random_pairs(seed))
        current = {name: weights.cpu() for name, weights in full_state(engine).items()}
        current = {name.removeprefix("base_model.model."): weights for name, weights in current.items()}
        for name, slow in expected.items():
            own = current[name.replace(".default", "").removeprefix("base_model.model.")]
            expected[name] = slow + (own - slow) / ANCHOR.horizon
    for name, slow in engine.policies.anchor.average.whole().items():
        torch.testing.assert_close(slow, expected[name], rtol=1e-5, atol=1e-7)
    engine.policy.close()


@pytest.mark.parametrize(
    ("kind", "shape"),
    [
        ("nash_pg", SPLIT),
        ("rloo", DRAWN),
        ("online_ipo", SPLIT),
        ("ipo_md", DRAWN),
        *(
            pytest.param(*each, marks=pytest.mark.long)
            for each in (("nash_pg", DRAWN), ("rloo", SPLIT), ("online_ipo", DRAWN), ("ipo_md", SPLIT))
        ),
    ],
)
def test_the_first_update_of_a_game_is_the_loss_s_own_and_the_next_is_not(directory, kind, shape):
    """Before a step u = pi = mu, so the anchor changes the loss by its scale alone; after it, it pulls."""
    games = [random_games(seed, 3, *shape, vocabulary=18) for seed in range(2)]
    stats = {}
    for name, anchor in (("none", None), ("anchor", Anchor(0.4, 5))):
        config = CONFIG.model_copy(update={"zero_stage": 1, "loss": loss_of(kind, tau=0.1)})
        engine = engine_of(directory / "model", config, anchor)
        stats[name] = [engine.update(each) for each in games]
        engine.policy.destroy()
    first, after = stats["anchor"]
    assert first.tokens == stats["none"][0].tokens, "a completion counts once, however many passes compute it"
    assert first.kl_anchor == pytest.approx(0.0, abs=1e-4)
    assert stats["none"][0].kl_anchor is None
    assert first.kl_players == pytest.approx(stats["none"][0].kl_players, abs=1e-5)
    if kind in ("nash_pg", "rloo"):
        assert first.grad_norm == pytest.approx(stats["none"][0].grad_norm, rel=1e-4)
        assert after.grad_norm != pytest.approx(stats["none"][1].grad_norm, rel=1e-3)
    assert after.kl_anchor != pytest.approx(after.kl_players, rel=1e-3)
    assert after.kl_anchor != 0.0


def test_a_checkpoint_without_an_average_is_refused_by_name(directory, tmp_path):
    config = CONFIG.model_copy(update={"zero_stage": 1, "loss": PairLossConfig()})
    engine = engine_of(directory / "model", config, None)
    engine.policy.save(tmp_path / "plain", {})
    engine.policy.destroy()
    anchored = engine_of(directory / "model", config)
    with pytest.raises(UsageError, match=r"anchor\.safetensors is missing.*without learner\.anchor"):
        anchored.policy.load(tmp_path / "plain")
    anchored.policy.close()


@pytest.mark.parametrize(("share", "first"), [(0.5, 3), (0.25, 4), (0.01, 5), (0.9, 1)])
def test_the_updates_that_are_averaged_are_the_last_share_of_the_run(share, first):
    from learner.training.engine import first_averaged

    assert first_averaged(6, share) == first


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.long) for stage in (0, 2)), 3])
def test_the_mean_of_the_last_weights_becomes_the_policy(directory, tmp_path, stage):
    """Of six updates the last three, with a resume between them."""
    config = CONFIG.model_copy(update={"zero_stage": stage, "average_last": 0.5})
    engine = engine_of(directory / "model", config, None)
    states = []
    for seed in range(4):
        engine.update(random_pairs(seed))
        states.append({name: weights.clone() for name, weights in full_state(engine).items()})
    engine.policy.save(tmp_path / "middle", {})
    engine.policy.destroy()
    engine = engine_of(directory / "model", config, None)
    engine.policy.load(tmp_path / "middle")
    for seed in range(4, 6):
        engine.update(random_pairs(seed))
        states.append({name: weights.clone() for name, weights in full_state(engine).items()})
    engine.adopt_average()
    for name, weights in full_state(engine).items():
        mean = sum(state[name] for state in states[3:]) / 3
        torch.testing.assert_close(weights, mean, rtol=1e-5, atol=1e-6)
        assert not torch.equal(weights, states[-1][name])
    sequences = [(pair.prompt_token_ids, pair.chosen.token_ids) for pair in random_pairs(0)[:3]]
    engine.policy.save_pretrained(tmp_path / "average")
    scored = engine.policies.score(sequences, with_reference=False)
    engine.policy.close()
    alone = engine_of(tmp_path / "average", CONFIG.model_copy(update={"zero_stage": 0}), None)
    for (own, _), (fresh, _) in zip(scored, alone.policies.score(sequences, with_reference=False), strict=True):
        assert own == pytest.approx(fresh, abs=1e-5)
    with pytest.raises(UsageError, match=r"learner\.average_last is 0"):
        alone.adopt_average()
    alone.policy.close()
