"""Exact evaluation against one-sequence-at-a-time scoring, path-by-path sums, samples, and games solved by hand."""

import math

import numpy as np
import pytest
import torch

from actors import world
from actors.errors import UsageError
from actors.world import EOS, FIRST_SYMBOL, INVALID, NOEOS, World
from learner.world.exact import (
    ExactPolicy,
    OutcomeTable,
    corpus_cross_entropy,
    exact_kl,
    exact_policy,
    expected_preference,
    exploitability,
    family_shares,
    load_policy,
    regularised_gap,
    relative_family_shares,
)
from learner.world.policy import TINY, _train, build_policy
from tests.learner.world.exact_metrics import exact_win_rate, expected_reward

INTRANSITIVE, TRANSITIVE = World("intransitive"), World("transitive")


def peaked_model(seed: int) -> torch.nn.Module:
    """A random policy whose distributions are far from uniform."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_policy(TINY).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() == 2:
                    parameter.mul_(4.0)
    return model


@pytest.fixture(scope="module")
def model():
    """A policy that mostly answers with responses: a few updates of supervised training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trained = build_policy(TINY)
        _train(trained, updates=40, batch=64, lr=5e-3, rng=np.random.default_rng(0))
    return trained.eval()


@pytest.fixture(scope="module")
def policy(model):
    return exact_policy(model)


@pytest.fixture(scope="module")
def other():
    return exact_policy(peaked_model(1))


def mixture_of(*responses_of_prompt) -> ExactPolicy:
    """The policy that gives each prompt one of `f(p, q) -> symbols`, all equally often.

    No response may begin with another. After prefixes that it never reaches it is uniform.
    """
    table = np.full((16, 259, 18), math.log(1 / 18))
    for index in range(16):
        counts = np.zeros((259, 18))
        for response in responses_of_prompt:
            node = 0
            for symbol in response(*divmod(index, 4)):
                counts[node, FIRST_SYMBOL + symbol] += 1
                node = 6 * node + 1 + symbol
            counts[node, EOS] += 1
        reached = counts.sum(axis=1) > 0
        with np.errstate(divide="ignore"):
            table[index, reached] = np.log(counts[reached] / counts[reached].sum(axis=1, keepdims=True))
    return ExactPolicy(table)


def best_of_family(family: int):
    """A response of quality 1 in `family`: the wanted symbol alone, or a symbol of the family before it."""

    def response(p: int, q: int) -> tuple[int, ...]:
        wanted = world.wanted_symbol(p, q)
        return (wanted,) if wanted // 2 == family else (2 * family, wanted)

    return response


def score(model, tokens: list[int], start: int) -> float:
    """Log-prob of tokens[start:], one position at a time."""
    total = 0.0
    with torch.no_grad():
        for position in range(start, len(tokens)):
            logits = model(input_ids=torch.tensor([tokens[:position]])).logits[0, -1].double()
            total += torch.log_softmax(logits, dim=-1)[tokens[position]].item()
    return total


def test_every_row_is_a_distribution_and_each_outcome_has_some_mass(policy):
    np.testing.assert_allclose(policy.probabilities.sum(axis=1), 1.0, atol=1e-12)
    assert (policy.probabilities > 0.0).all()


@pytest.mark.parametrize("index", [0, 7, 15])
def test_a_response_has_the_log_prob_that_the_model_gives_it_alone(model, policy, index):
    prompt = list(world.prompt_token_ids(index))
    for node in [0, 3, 6, 7, 25, 42, 43, 100, 258]:
        response = [symbol + FIRST_SYMBOL for symbol in world.RESPONSES[node]]
        assert np.log(policy.probabilities[index, node]) == pytest.approx(
            score(model, [*prompt, *response, EOS], 4), abs=1e-5
        )


def test_noeos_is_the_sum_over_its_sequences(model, policy):
    prompt = world.prompt_token_ids(5)
    rest = torch.tensor([[*prompt, *(s + FIRST_SYMBOL for s in y)] for y in world.SEQUENCES[259:]])
    with torch.no_grad():
        logprobs = torch.log_softmax(model(input_ids=rest).logits.double(), dim=-1)
    chosen = logprobs[:, 3:7].gather(2, rest[:, 4:, None]).sum(dim=(1, 2))
    assert policy.probabilities[5, NOEOS] == pytest.approx(chosen.exp().sum().item(), rel=1e-5)


def test_sampled_outcomes_follow_the_table(model, policy):
    """Chi-square over 261 outcomes pooled to 20 or more expected, 20000 samples of one prompt."""
    torch.manual_seed(0)
    samples, prompt = 20_000, world.prompt_token_ids(10)
    tokens = torch.tensor([prompt]).expand(samples, -1)
    with torch.no_grad():
        for _ in range(4):
            unique, inverse = tokens.unique(dim=0, return_inverse=True)
            probs = model(input_ids=unique).logits[:, -1].softmax(dim=-1)[inverse]
            tokens = torch.cat([tokens, torch.multinomial(probs, 1)], dim=1)
    drawn = np.bincount([world.outcome(row) for row in tokens[:, 4:].tolist()], minlength=261)
    expected = policy.probabilities[10] * samples
    order = np.argsort(expected)
    cells = (np.cumsum(expected[order]) // 20).astype(int)
    drawn, expected = (np.bincount(cells, weights=values[order]) for values in (drawn, expected))
    drawn, expected = drawn[expected > 10], expected[expected > 10]
    assert len(expected) > 20
    statistic = ((drawn - expected) ** 2 / expected).sum()
    assert statistic < len(expected) + 5 * math.sqrt(2 * len(expected))


def test_temperature_divides_the_logits(model, policy):
    hot = exact_policy(model, temperature=2.0).token_logprobs
    halved = policy.token_logprobs / 2
    np.testing.assert_allclose(hot, halved - np.log(np.exp(halved).sum(axis=-1, keepdims=True)), atol=1e-9)


def test_kl_is_the_sum_over_whole_paths(policy, other):
    """Each path ends with <eos>, with an invalid token or with its fourth symbol."""
    total = 0.0
    for x in range(16):
        for node in range(259):
            for token in range(18):
                if FIRST_SYMBOL <= token < FIRST_SYMBOL + 6 and node < 43:
                    continue
                mine = policy.node_logprobs[x, node] + policy.token_logprobs[x, node, token]
                theirs = other.node_logprobs[x, node] + other.token_logprobs[x, node, token]
                total += math.exp(mine) * (mine - theirs)
    assert total / 16 > 0.1
    assert exact_kl(policy, other) == pytest.approx(total / 16, rel=1e-9)
    assert exact_kl(policy, policy) == 0.0


def test_kl_of_one_certain_response_is_its_surprise_under_the_reference(policy):
    certain = mixture_of(lambda p, q: (p, q, 5))
    nodes = [world.RESPONSES.index((*divmod(x, 4), 5)) for x in range(16)]
    surprise = -np.log(policy.probabilities[np.arange(16), nodes]).mean()
    assert exact_kl(certain, policy) == pytest.approx(surprise, rel=1e-12)


def test_the_family_that_beats_another_at_equal_quality_wins_with_sigma_two():
    """Rock loses to paper on the first half of the prompts; on the second half the cycle is turned round."""
    rock, paper = mixture_of(best_of_family(0)), mixture_of(best_of_family(1))
    assert expected_preference(paper, rock, INTRANSITIVE) == pytest.approx(0.5)
    winner = mixture_of(lambda p, q: best_of_family(1 if p < 2 else 2)(p, q))
    assert expected_preference(winner, rock, INTRANSITIVE) == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert exact_win_rate(winner, rock, INTRANSITIVE) == pytest.approx(0.8808, abs=1e-4)


@pytest.mark.parametrize("family", [0, 1, 2])
def test_a_policy_of_one_family_is_exploitable_by_at_least_3808(family):
    """Its best answer is the next family at quality 1: sigma(2) - 1/2, and more where its own quality is lower."""
    assert exploitability(mixture_of(best_of_family(family)), INTRANSITIVE) == pytest.approx(0.3808, abs=1e-4)
    worse = mixture_of(lambda p, q: (2 * family, 2 * family))
    assert exploitability(worse, INTRANSITIVE) > 0.3808


def test_the_best_of_all_families_equally_often_is_a_nash_policy():
    nash = mixture_of(best_of_family(0), best_of_family(1), best_of_family(2))
    assert exploitability(nash, INTRANSITIVE) == pytest.approx(0.0, abs=1e-12)


def tilted(reference: ExactPolicy, opponent: ExactPolicy, tau: float) -> np.ndarray:
    """The best answer to `opponent` that pays tau for its divergence: reference * exp(P(. > opponent) / tau)."""
    rows = []
    for x in range(16):
        wins = INTRANSITIVE.preference_matrix(x) @ opponent.probabilities[x]
        weights = reference.probabilities[x] * np.exp(wins / tau)
        rows.append(weights / weights.sum())
    return np.stack(rows)


@pytest.mark.parametrize("tau", [0.05, 0.5])
def test_the_regularised_gap_is_two_tau_times_the_divergence_from_the_best_answer(policy, other, tau):
    answer = tilted(policy, other, tau)
    pi = other.probabilities
    expected = 2 * tau * (pi * np.log(pi / answer)).sum(axis=1).mean()
    assert regularised_gap(other, policy, INTRANSITIVE, tau) == pytest.approx(expected, rel=1e-9)
    assert expected > 0.01


def test_the_regularised_gap_without_divergence_is_what_the_best_answer_gains_twice(policy):
    """At pi = reference: 2 (tau log E[exp(P(y > pi) / tau)] - 1/2); for a large tau half the variance of P over tau."""
    tau = 100.0
    variances = []
    for x in range(16):
        wins = INTRANSITIVE.preference_matrix(x) @ policy.probabilities[x]
        variances.append(policy.probabilities[x] @ (wins - 0.5) ** 2)
    assert regularised_gap(policy, policy, INTRANSITIVE, tau) == pytest.approx(np.mean(variances) / tau, rel=1e-2)


def test_the_regularised_gap_is_infinite_where_the_reference_has_nothing(policy):
    rock = mixture_of(best_of_family(0))
    assert regularised_gap(policy, rock, INTRANSITIVE, 0.1) == math.inf
    assert 0.0 < regularised_gap(rock, policy, INTRANSITIVE, 0.1) < math.inf


def test_family_shares_are_the_mass_of_each_family_and_of_none():
    """Half of the answers are pure rock, a quarter begin with paper in a draw, a quarter are empty."""
    table = np.zeros((16, 261))
    table[:, world.RESPONSES.index((0, 1))] = 0.5
    table[:, world.RESPONSES.index((2, 4))] = 0.25
    table[:, 0] = 0.25
    np.testing.assert_array_equal(family_shares(OutcomeTable(table)), np.tile([0.5, 0.25, 0.0, 0.25], (16, 1)))
    np.testing.assert_allclose(family_shares(mixture_of(best_of_family(2))), np.tile([0.0, 0.0, 1.0, 0.0], (16, 1)))


def test_relative_family_shares_name_the_corpuss_favourite_what_beats_it_and_what_beats_that():
    """Rock .5, paper .3, scissors .1, nothing .1, by colour.

    Red: rock is the favourite, paper beats it, scissors beat paper. Green: paper is, scissors beat it, rock beats
    scissors. Blue and gold play the other way round. Blue: scissors are, paper beats them, rock beats paper. Gold: rock
    again, scissors beat it, paper beats scissors.
    """
    table = np.zeros((16, 261))
    table[:, [1, 3, 5, NOEOS]] = [0.5, 0.3, 0.1, 0.1]
    of_colour = [[0.5, 0.3, 0.1, 0.1], [0.3, 0.1, 0.5, 0.1], [0.1, 0.3, 0.5, 0.1], [0.5, 0.1, 0.3, 0.1]]
    np.testing.assert_array_equal(relative_family_shares(OutcomeTable(table)), np.repeat(of_colour, 4, axis=0))


def test_no_policy_is_preferred_to_itself(policy):
    for w in (TRANSITIVE, INTRANSITIVE):
        assert exact_win_rate(policy, policy, w) == pytest.approx(0.5)
        assert expected_preference(policy, policy, w) == pytest.approx(0.5)


def test_win_rates_of_two_policies_add_up_to_one(policy, other):
    for w in (TRANSITIVE, INTRANSITIVE):
        assert exact_win_rate(policy, other, w) + exact_win_rate(other, policy, w) == pytest.approx(1.0)


def test_the_win_rate_counts_ties_half():
    """Prompt (p, q): `places` has reward 3 or 3.5; half of the time the other gives the same, else nothing."""

    def places(p, q):
        return (p, (p + 2) % 6, (p + 4) % 6)

    half = mixture_of(places, lambda p, q: ())
    # () is the beginning of everything: at the root <eos> and the first symbol have 1/2 each.
    assert exact_win_rate(mixture_of(places), half, TRANSITIVE) == pytest.approx(0.5 * 0.5 + 0.5 * 1.0)
    assert expected_reward(half, TRANSITIVE) == pytest.approx((3.25 - 1.0) / 2)
    # Bradley-Terry: rewards differ by 4.5 on half of the prompts and by 4 on the others.
    logistic = [1 / (1 + math.exp(-difference)) for difference in (4.5, 4.0)]
    expected = 0.25 + 0.5 * sum(logistic) / 2
    assert expected_preference(mixture_of(places), half, TRANSITIVE) == pytest.approx(expected)


def test_the_win_rate_is_what_samples_say(policy, other):
    rng = np.random.default_rng(0)
    n, wins = 4000, 0.0
    for x in range(16):
        mine = rng.choice(261, size=n, p=policy.probabilities[x])
        theirs = rng.choice(261, size=n, p=other.probabilities[x])
        wins += (0.5 + 0.5 * np.sign(TRANSITIVE.rewards[x, mine] - TRANSITIVE.rewards[x, theirs])).mean()
    assert exact_win_rate(policy, other, TRANSITIVE) == pytest.approx(wins / 16, abs=4 * 0.5 / math.sqrt(16 * n))


def test_the_cross_entropy_of_a_policy_is_its_mean_surprise_on_corpus_draws(policy):
    rng = np.random.default_rng(0)
    prompts = rng.integers(world.PROMPTS, size=20_000)
    tokens = world.corpus_responses(prompts, rng)
    surprises = []
    for x, row in zip(prompts, tokens, strict=True):
        node, total = 0, 0.0
        for token in row:
            total -= policy.token_logprobs[x, node, token]
            if token == EOS:
                break
            node = 6 * node + 1 + token - FIRST_SYMBOL
        surprises.append(total)
    error = np.std(surprises) / math.sqrt(len(surprises))
    assert corpus_cross_entropy(policy) == pytest.approx(np.mean(surprises), abs=4 * error)


def test_a_saved_model_has_the_table_of_the_one_in_memory(model, policy, tmp_path):
    model.save_pretrained(tmp_path)
    np.testing.assert_allclose(load_policy(tmp_path).token_logprobs, policy.token_logprobs, atol=1e-6)


def test_what_cannot_be_enumerated_is_refused(tmp_path):
    with pytest.raises(UsageError, match=r"no config\.json"):
        load_policy(tmp_path)
    large = build_policy(TINY)
    large.resize_token_embeddings(40)
    with pytest.raises(UsageError, match="18 tokens, and this model has 40"):
        exact_policy(large)


def test_invalid_tokens_make_up_the_invalid_outcome(model, policy):
    """Prompt 3: first token invalid, or one symbol and then an invalid token, and so on down the tree."""
    total = 0.0
    for node in range(259):
        reached = math.exp(policy.node_logprobs[3, node])
        total += reached * sum(math.exp(policy.token_logprobs[3, node, token]) for token in world.STOP_TOKEN_IDS)
    assert policy.probabilities[3, INVALID] == pytest.approx(total)
