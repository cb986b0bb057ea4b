"""Training preference models: losses by hand, both orders in one pass against one at a time, and a circle learnt."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from actors import world
from actors.errors import UsageError
from actors.judges.models.preference_network import PreferenceForm, PreferenceModel, PreferenceNetwork
from learner.stages.config import PreferenceConfig
from learner.stages.preference import PreferenceObjective, make_stage, start_network
from learner.tensors.examples import TRAIN, VALIDATION, TokenPair, write_pairs
from learner.world.pairs import world_pairs
from tests.fakes.models import tiny_preference_model

CPU = torch.device("cpu")
KINDS = [("bradley_terry", 0), ("pairwise", 0), ("skew", 2)]
each_kind = pytest.mark.parametrize(("kind", "blocks"), KINDS)


def objective(kind="pairwise", blocks=0, **settings):
    return PreferenceObjective(PreferenceForm(kind, world.EOS, blocks), 60, **settings)


def losses(s, p, **settings):
    return objective(**settings).losses(torch.tensor(s, dtype=torch.float64), torch.tensor(p, dtype=torch.float64))


def minus_log_sigmoid(s):
    return math.log1p(math.exp(-s))


def test_soft_labels_by_hand():
    expected = [minus_log_sigmoid(2.0), 0.7 * minus_log_sigmoid(-1.0) + 0.3 * minus_log_sigmoid(1.0), math.log(2.0)]
    np.testing.assert_allclose(losses([2.0, -1.0, 0.0], [1.0, 0.7, 0.2]), expected)


def test_smoothed_labels_may_be_wrong():
    expected = 0.9 * minus_log_sigmoid(2.0) + 0.1 * minus_log_sigmoid(-2.0)
    assert losses([2.0], [1.0], label_smoothing=0.1).item() == pytest.approx(expected)


def test_a_margin_is_a_multiple_of_the_score_difference_and_makes_labels_hard():
    """p = 3/4 is a score difference of log 3; the winner must lead by half of it."""
    lead = 0.5 * math.log(3.0)
    expected = [minus_log_sigmoid(1.0 - lead), minus_log_sigmoid(1.0 - lead), math.log(2.0)]
    np.testing.assert_allclose(losses([1.0, -1.0, 0.0], [0.75, 0.25, 0.5], margin=0.5), expected)
    assert math.isfinite(losses([1.0], [1.0], margin=0.5).item())


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.2}, {"margin": 0.7}])
def test_the_loss_is_the_same_whichever_response_is_called_chosen(settings):
    s, p = [0.3, -2.0, 1.5, 0.0], [1.0, 0.8, 0.1, 0.5]
    turned = losses([-each for each in s], [1.0 - each for each in p], **settings)
    np.testing.assert_allclose(losses(s, p, **settings), turned)


@each_kind
def test_both_orders_in_one_pass_are_those_of_one_sequence_at_a_time(tmp_path, kind, blocks):
    model = tiny_preference_model(tmp_path, kind, skew_blocks=blocks)
    network = PreferenceNetwork(model)
    pairs = world_pairs("intransitive", 9, "soft", 0, 0.0)[0]

    def outputs(*tokens):
        return model.score(model.model(torch.tensor([tokens])).last_hidden_state[0, -1])

    expected, right = torch.zeros(()), 0.0
    for pair in pairs:
        x, a, b, end = pair.prompt, pair.chosen, pair.rejected, world.EOS
        if kind == "pairwise":
            s = (outputs(*x, *a, end, *b, end) - outputs(*x, *b, end, *a, end))[0] / 2
        else:
            one, other = outputs(*x, *a), outputs(*x, *b)
            rotation = torch.block_diag(*[torch.tensor([[0.0, -1.0], [1.0, 0.0]])] * blocks) if blocks else None
            s = one[0] - other[0] + (one[1:] @ rotation @ other[1:] if blocks else 0.0)
        expected = expected - pair.probability * logsigmoid(s) - (1.0 - pair.probability) * logsigmoid(-s)
        right += float((s > 0) == (pair.probability > 0.5))
    expected.backward()
    slow = network.model.model.embed_tokens.weight.grad.clone()
    network.zero_grad()
    network.device = CPU
    measured = objective(kind, blocks).measure(network, pairs)
    measured.loss.backward()
    torch.testing.assert_close(measured.loss, expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(network.model.model.embed_tokens.weight.grad, slow, rtol=1e-3, atol=1e-4)
    assert float(measured.sums["accuracy"]) == right


def test_micro_batches_hold_every_pair_once_within_the_budget():
    pairs = world_pairs("intransitive", 40, "soft", 0, 0.0)[0]
    shares = [objective().micro_batches(pairs, rank, 2) for rank in range(2)]
    assert len(shares[0]) == len(shares[1])
    found = [pair for share in shares for batch in share for pair in batch]
    assert sorted(map(repr, found)) == sorted(map(repr, pairs))
    for batch in shares[0]:
        longest = max(len(pair.prompt) + len(pair.chosen) + len(pair.rejected) + 2 for pair in batch)
        assert len(batch) == 1 or 2 * len(batch) * longest <= 60


def policy(directory):
    from learner.world.policy import TINY, build_policy

    torch.manual_seed(0)
    model = build_policy(TINY)
    model.save_pretrained(directory)
    world.tokenizer().save_pretrained(directory)
    return model


def test_a_policy_gives_its_body_and_the_seed_the_head(tmp_path):
    body = policy(tmp_path)
    form = PreferenceForm("skew", world.EOS, 2)
    first, again, other = (start_network(tmp_path, form, "float32", seed).model for seed in (0, 0, 1))
    torch.testing.assert_close(first.model.state_dict(), body.model.state_dict())
    assert first.score.weight.shape == (5, 64)
    assert torch.equal(first.score.weight, again.score.weight)
    assert not torch.equal(first.score.weight, other.score.weight)
    deviations = first.score.weight.detach().std(dim=1)
    assert deviations[0].item() == pytest.approx(1 / 65, rel=0.3)
    assert deviations[1:].mean().item() == pytest.approx(1 / 16, rel=0.3)


def test_a_head_of_the_same_size_is_kept_and_one_of_another_refused(tmp_path):
    model = tiny_preference_model(tmp_path, "skew", skew_blocks=2)
    kept = start_network(tmp_path, PreferenceForm("skew", world.EOS, 2), "float32", 0).model
    torch.testing.assert_close(kept.score.weight, model.score.weight)
    with pytest.raises(UsageError, match=r"'score\.weight' .* has the shape \(5, 16\)"):
        start_network(tmp_path, PreferenceForm("pairwise", world.EOS), "float32", 0)


def config(path, **settings):
    document = {"model": {"path": str(path)}, "data": {"source": "world"}, "learner": {"dtype": "float32"}} | settings
    return PreferenceConfig.model_validate(document)


def test_held_out_pairs_are_measured_without_smoothing_and_margin(tmp_path):
    policy(tmp_path / "policy")
    train, held_out = world_pairs("intransitive", 30, "soft", 0, 0.3)
    write_pairs(tmp_path / TRAIN, train)
    write_pairs(tmp_path / VALIDATION, held_out)
    stage = make_stage(config(tmp_path / "policy", preference={"label_smoothing": 0.3}), tmp_path / "policy", tmp_path)
    assert (stage.train, stage.validation) == (train, held_out)
    s, p = torch.tensor([2.0]), torch.tensor([1.0])
    assert stage.held_out_objective.losses(s, p).item() == pytest.approx(minus_log_sigmoid(2.0))
    assert stage.objective.losses(s, p).item() > minus_log_sigmoid(2.0) + 0.5
    assert stage.module.model.config.pad_token_id == world.PAD


def test_a_tokenizer_that_pads_with_its_end_leaves_the_model_without_padding_token(tmp_path):
    """Else readers of reward models would take the token before a response's end for its last."""
    policy(tmp_path)
    tokenizer = world.tokenizer()
    tokenizer.pad_token = "<eos>"
    tokenizer.save_pretrained(tmp_path)
    pair = TokenPair((1,), (5, 2), (6, 2), 1.0)
    for name in (TRAIN, VALIDATION):
        write_pairs(tmp_path / name, [pair])
    assert make_stage(config(tmp_path), tmp_path, tmp_path).module.model.config.pad_token_id is None


def test_a_margin_needs_scores():
    with pytest.raises(ValueError, match=r"preference\.margin 0\.5 is in units of the source's score difference"):
        config("m", preference={"margin": 0.5})


@each_kind
def test_three_answers_in_a_circle_are_learnt_by_all_but_a_reward(tmp_path, kind, blocks):
    """Rock, paper, scissors at 0.9 each: a reward can do no better than one half, log 2 nats per pair."""
    policy(tmp_path)
    learnt = kind != "bradley_terry"
    form = PreferenceForm(kind, world.EOS, blocks)
    network = start_network(tmp_path, form, "float32", 0)
    network.device = CPU
    answers = [(4, world.EOS), (6, world.EOS), (8, world.EOS)]
    prompt = world.prompt_token_ids(0)
    pairs = [TokenPair(prompt, answers[i], answers[(i + 1) % 3], 0.9) for i in range(3)]
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.0)
    for _ in range(100):
        loss = objective(kind, blocks).measure(network, pairs).loss / 3
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
    entropy = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert loss.item() == pytest.approx(entropy if learnt else math.log(2.0), abs=0.02)
    table = PreferenceModel(network, form, 1000).tables([prompt], [answers])[0]
    around = table[0, 1] + table[1, 2] + table[2, 0]
    assert around == (pytest.approx(3 * math.log(9.0), abs=1.5) if learnt else 0.0)
