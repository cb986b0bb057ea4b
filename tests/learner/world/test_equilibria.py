"""Exact targets of the embedded world: against published tables, their own equations, and iteration outcome by outcome.

mu is the prompt-independent corpus where figures to four digits stand, computed with 260 outcomes one by one.
"""

from __future__ import annotations

import numpy as np
import pytest

from actors import world as world_module
from actors.errors import UsageError
from actors.judges.config import BradleyTerryJudgeConfig
from actors.judges.world import BradleyTerryJudge, fit_bradley_terry
from actors.world import INVALID, PROMPTS, World
from learner.world import exact
from learner.world.equilibria import (
    Equilibrium,
    bradley_terry_optimum,
    bradley_terry_tau_at_kl,
    measured,
    nash,
    nash_md_fixed_point,
    online_dpo_fixed_point,
)

WORLD = World("intransitive")
MU = world_module.corpus_outcome_probabilities(prompt_dependent=False)
TRAINED_ON = world_module.corpus_outcome_probabilities()


@pytest.fixture(scope="module")
def nash_05() -> Equilibrium:
    return nash(WORLD, MU, 0.05)


@pytest.fixture(scope="module")
def nash_md() -> Equilibrium:
    return nash_md_fixed_point(WORLD, MU, 0.05, 0.125)


@pytest.fixture(scope="module")
def bradley_terry() -> Equilibrium:
    return bradley_terry_optimum(WORLD, MU, 0.1)


def figures(solution: Equilibrium) -> tuple[float, ...]:
    return solution.exploitability, solution.regularised_gap, solution.kl, solution.preference


def answer_to(opponent: np.ndarray, index: int, tau: float, mu: np.ndarray = MU) -> np.ndarray:
    """mu exp(P(. > opponent) / tau), normalised, over all 261 outcomes."""
    weights = mu[index] * np.exp(WORLD.preference_matrix(index) @ opponent / tau)
    return weights / weights.sum()


def exploitability_at(solution: Equilibrium, index: int) -> float:
    return float((WORLD.preference_matrix(index) @ solution.probabilities[index]).max() - 0.5)


def kl_at(solution: Equilibrium, index: int) -> float:
    pi = solution.probabilities[index]
    held = pi > 0.0
    return float((pi[held] * np.log(pi[held] / MU[index, held])).sum())


def test_the_reference_itself_is_exploitable_by_3308() -> None:
    assert figures(measured(WORLD, MU, MU, 0.05)) == pytest.approx((0.3308, 0.3734, 0.0, 0.5), abs=5e-5)


def test_the_nash_policy_has_its_published_figures(nash_05: Equilibrium) -> None:
    assert nash_05.exploitability == pytest.approx(0.0810, abs=5e-5)
    assert nash_05.kl == pytest.approx(1.981, abs=5e-4)
    assert nash_05.preference == pytest.approx(0.7155, abs=5e-5)
    assert exploitability_at(nash_05, 0) == pytest.approx(0.0721, abs=5e-5)
    assert kl_at(nash_05, 0) == pytest.approx(1.9868, abs=5e-5)
    assert exploitability_at(nash_05, 7) == pytest.approx(0.0473, abs=5e-5)
    assert kl_at(nash_05, 7) == pytest.approx(1.9872, abs=5e-5)


def test_a_lower_temperature_buys_less_exploitability_with_more_divergence() -> None:
    colder = nash(WORLD, MU, 0.02)
    assert colder.exploitability == pytest.approx(0.0264, abs=5e-5)
    assert colder.kl == pytest.approx(2.511, abs=5e-4)
    assert colder.preference == pytest.approx(0.7233, abs=5e-5)
    assert exploitability_at(colder, 0) == pytest.approx(0.0296, abs=5e-5)
    assert kl_at(colder, 0) == pytest.approx(2.483, abs=5e-4)


def test_nash_md_with_a_constant_mixture_ends_beside_the_nash_policy(nash_md: Equilibrium) -> None:
    assert nash_md.exploitability == pytest.approx(0.1018, abs=5e-5)
    assert nash_md.regularised_gap == pytest.approx(0.0200, abs=5e-5)
    assert exploitability_at(nash_md, 0) == pytest.approx(0.133, abs=5e-4)


def test_a_bradley_terry_reward_wins_more_and_is_exploitable(bradley_terry: Equilibrium, nash_05: Equilibrium) -> None:
    """It beats the Nash policy head to head, .5705 on prompt (0, 0), at twice the divergence."""
    assert bradley_terry.exploitability == pytest.approx(0.3646, abs=5e-5)
    assert bradley_terry.kl == pytest.approx(3.116, abs=5e-4)
    assert bradley_terry.preference == pytest.approx(0.8276, abs=5e-5)
    assert exploitability_at(bradley_terry, 0) == pytest.approx(0.3808, abs=5e-5)
    assert kl_at(bradley_terry, 0) == pytest.approx(4.216, abs=5e-4)
    head_to_head = bradley_terry.probabilities[0] @ WORLD.preference_matrix(0) @ nash_05.probabilities[0]
    assert head_to_head == pytest.approx(0.5705, abs=5e-5)


def test_at_the_nash_policys_divergence_a_bradley_terry_reward_is_exploitable_all_the_same(
    nash_05: Equilibrium,
) -> None:
    """Equal divergence on each prompt, by bisection over 261 outcomes: e .2997, gap .3601."""
    table = np.empty_like(MU)
    for x in range(PROMPTS):
        r = fit_bradley_terry(WORLD.preference_matrix(x), MU[x])
        low, high, wanted = 0.02, 2.0, kl_at(nash_05, x)
        for _ in range(60):
            tau = np.sqrt(low * high)
            weights = MU[x] * np.exp((r - r.max()) / tau)
            pi = weights / weights.sum()
            held = pi > 0.0
            kl = (pi[held] * np.log(pi[held] / MU[x, held])).sum()
            low, high = (tau, high) if kl > wanted else (low, tau)
        table[x] = pi
    matched = measured(WORLD, table, MU, 0.05)
    assert matched.exploitability == pytest.approx(0.2997, abs=5e-5)
    assert matched.regularised_gap == pytest.approx(0.3601, abs=5e-5)
    assert matched.kl == pytest.approx(nash_05.kl, abs=1e-6)


@pytest.mark.parametrize("mu", [MU, TRAINED_ON], ids=["prompt-independent", "prompt-dependent"])
def test_solutions_satisfy_their_equations_outcome_by_outcome(mu: np.ndarray) -> None:
    solved, mixtures = nash(WORLD, mu, 0.05).probabilities, nash_md_fixed_point(WORLD, mu, 0.05, 0.25).probabilities
    for index in (0, 5, 10, 15):
        pi, mixed = solved[index], mixtures[index]
        assert np.abs(answer_to(pi, index, 0.05, mu) - pi).sum() < 1e-10
        opponent = mixed**0.75 * mu[index] ** 0.25
        assert np.abs(answer_to(opponent / opponent.sum(), index, 0.05, mu) - mixed).sum() < 1e-10


def test_mirror_descent_over_261_outcomes_ends_at_the_nash_policy() -> None:
    """z <- (1 - eta tau) z + eta tau log mu + eta P softmax(z), a slow path that knows nothing of kinds of outcomes."""
    mu = 0.999 * TRAINED_ON[4] + 0.001 / 261
    p, tau, eta = WORLD.preference_matrix(4), 0.2, 0.5
    z = np.log(mu)
    for _ in range(1000):
        pi = np.exp(z - z.max())
        pi /= pi.sum()
        z = (1 - eta * tau) * z + eta * tau * np.log(mu) + eta * p @ pi
    table = np.tile(mu, (PROMPTS, 1))
    np.testing.assert_allclose(nash(WORLD, table, tau).probabilities[4], pi, atol=1e-12)


def test_online_dpo_is_at_rest_over_all_outcomes() -> None:
    """The mean residual of every outcome against the policy's own, one by one."""
    solution = online_dpo_fixed_point(WORLD, MU, 0.2)
    for index in range(PROMPTS):
        pi, held = solution.probabilities[index], MU[index] > 0
        scores = 0.2 * np.log(pi[held] / MU[index][held])
        wins = WORLD.preference_matrix(index)[np.ix_(held, held)]
        residual = (wins - 1.0 / (1.0 + np.exp(-np.subtract.outer(scores, scores)))) @ pi[held]
        assert np.abs(residual).max() < 1e-9
    assert solution.exploitability < exact.exploitability(exact.OutcomeTable(MU), WORLD)


def test_the_gap_is_zero_at_the_nash_policy_alone(nash_05: Equilibrium, nash_md: Equilibrium) -> None:
    assert abs(nash_05.regularised_gap) < 1e-9
    assert nash_md.regularised_gap > 0.01
    warmer = measured(WORLD, nash_05.probabilities, MU, 0.1)
    assert warmer.regularised_gap > 0.01


def test_without_a_mixture_nash_md_ends_at_the_nash_policy(nash_05: Equilibrium) -> None:
    np.testing.assert_allclose(
        nash_md_fixed_point(WORLD, MU, 0.05, 0.0).probabilities, nash_05.probabilities, atol=1e-12
    )


def test_where_the_preference_has_a_reward_the_optimum_is_its_exponential_tilt() -> None:
    transitive = World("transitive")
    weights = MU * np.exp(transitive.rewards / 0.5)
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(bradley_terry_optimum(transitive, MU, 0.5).probabilities, expected, atol=1e-10)


def test_a_reward_may_be_fitted_on_pairs_of_another_policy_than_the_reference() -> None:
    """Reference and pairs differ: the judge's reward, of the corpus, tilts a flatter reference."""
    mu = 0.5 * TRAINED_ON + 0.5 / 261
    rewards = BradleyTerryJudge(BradleyTerryJudgeConfig(task="intransitive")).rewards
    weights = mu * np.exp(rewards / 0.2)
    expected = weights / weights.sum(axis=1, keepdims=True)
    solution = bradley_terry_optimum(WORLD, mu, 0.2, pairs=TRAINED_ON)
    np.testing.assert_allclose(solution.probabilities, expected, atol=1e-10)
    assert np.abs(bradley_terry_optimum(WORLD, mu, 0.2).probabilities - expected).max() > 0.01
    assert bradley_terry_tau_at_kl(WORLD, mu, solution.kl, pairs=TRAINED_ON) == pytest.approx(0.2, rel=1e-8)


def test_outcomes_that_the_reference_never_says_stay_unsaid(nash_05: Equilibrium, bradley_terry: Equilibrium) -> None:
    """A reference with a billionth of INVALID, with none of it, or without a whole family is solved like another."""
    for solution in (nash_05, bradley_terry):
        assert (solution.probabilities[:, INVALID] == 0.0).all()
        np.testing.assert_allclose(solution.probabilities.sum(axis=1), 1.0, atol=1e-12)
    nearly = MU * (1 - 1e-9)
    nearly[:, INVALID] = 1e-9
    assert figures(nash(WORLD, nearly, 0.05)) == pytest.approx(figures(nash_05), abs=1e-7)
    without = np.where(WORLD.families == 2, 0.0, MU)
    two_families = nash(WORLD, without / without.sum(axis=1, keepdims=True), 0.05)
    shares = exact.family_shares(two_families)
    assert (shares[:, 2] == 0.0).all()
    np.testing.assert_allclose(shares.sum(axis=1), 1.0, atol=1e-12)


def test_the_temperature_for_a_divergence_gives_that_divergence(bradley_terry: Equilibrium) -> None:
    assert bradley_terry_tau_at_kl(WORLD, MU, bradley_terry.kl) == pytest.approx(0.1, rel=1e-8)
    tau = bradley_terry_tau_at_kl(WORLD, TRAINED_ON, 0.7)
    assert bradley_terry_optimum(WORLD, TRAINED_ON, tau).kl == pytest.approx(0.7, abs=1e-8)


def test_a_divergence_out_of_reach_is_refused_with_the_range() -> None:
    """The most is the mean surprise of the best-rewarded outcomes under the reference."""
    rewards = np.stack([fit_bradley_terry(WORLD.preference_matrix(x), MU[x]) for x in range(PROMPTS)])
    best = rewards > rewards.max(axis=1, keepdims=True) - 1e-9
    most = -np.log((MU * best).sum(axis=1)).mean()
    with pytest.raises(UsageError, match=rf"KL of 50 nats; .* between .* and {most:.4g}: choose a KL in that range"):
        bradley_terry_tau_at_kl(WORLD, MU, 50.0)


def test_a_temperature_of_zero_is_refused() -> None:
    for solve in (nash, bradley_terry_optimum):
        with pytest.raises(UsageError, match="tau is 0"):
            solve(WORLD, MU, 0.0)
