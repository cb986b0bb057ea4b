"""Exact optima in the embedded world of Nash-MD, self-play and a Bradley-Terry reward, given the reference.

Solved per prompt by `learner.games.tabular`. Outcomes with equal preferences against all outcomes are merged into one
action, about sixteen instead of 261. This is exact: a solution is mu times a factor, and the factor depends on
preferences only. Must not depend on training.

Throughout, mu [16, 261] holds the reference's outcome probabilities (`ExactPolicy.probabilities`), rows sum to 1, and
tau > 0 is the coefficient of KL(pi || mu). Outcomes without mass under mu have none in any solution.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from actors.errors import UsageError
from actors.world import PROMPTS, World
from learner.games import tabular
from learner.world import exact

Array = NDArray[np.float64]

LOWEST_TAU, HIGHEST_TAU = 1e-3, 1e3  # range that `bradley_terry_tau_at_kl` searches


@dataclass(frozen=True, eq=False)
class Equilibrium(exact.OutcomeTable):
    """A policy over outcomes with its metrics, as means over the 16 prompts."""

    exploitability: float
    """max_y P(y > pi) - 1/2 over all 261 outcomes."""
    regularised_gap: float
    """Duality gap of the game regularised towards mu; see `exact.regularised_gap`."""
    kl: float  # KL(pi || mu) between outcomes (nats)
    preference: float  # P(pi > mu)


def measured(world: World, probabilities: Array, mu: Array, tau: float) -> Equilibrium:
    """Measure a table of outcome probabilities [16, 261]; `tau` is for the regularised gap."""
    policy, reference = exact.OutcomeTable(probabilities), exact.OutcomeTable(mu)
    return Equilibrium(
        probabilities=probabilities,
        exploitability=exact.exploitability(policy, world),
        regularised_gap=exact.regularised_gap(policy, reference, world, tau),
        kl=float(np.mean([tabular.kl(probabilities[x], mu[x]) for x in range(PROMPTS)])),
        preference=exact.expected_preference(policy, reference, world),
    )


def nash(world: World, mu: Array, tau: float) -> Equilibrium:
    """Solve pi = mu exp(P(. > pi) / tau), normalised: the Nash policy of the regularised game.

    Munos et al. 2023, section 4. The limit of online IPO and self-play. Raises UsageError unless tau > 0.
    """
    games = _games(world, mu)
    return measured(world, _table(games, [tabular.regularised_nash(g.preferences, g.mu, tau) for g in games]), mu, tau)


def nash_md_fixed_point(world: World, mu: Array, tau: float, beta: float) -> Equilibrium:
    """Solve pi = mu exp(P(. > pi^(1-beta) mu^beta) / tau), normalised.

    The limit of Nash-MD-PG and IPO-MD with a constant beta. The mixture itself is the Nash policy at tau / (1 - beta).
    Raises UsageError unless tau > 0 and 0 <= beta <= 1.
    """
    games = _games(world, mu)
    solutions = [tabular.nash_md_fixed_point(g.preferences, g.mu, tau, beta) for g in games]
    return measured(world, _table(games, solutions), mu, tau)


def online_dpo_fixed_point(world: World, mu: Array, beta: float) -> Equilibrium:
    """Solve for the limit of online DPO with the world's preferences as soft labels; its gap is at tau = beta.

    Raises UsageError unless beta > 0.
    """
    games = _games(world, mu)
    solutions = [tabular.online_dpo_fixed_point(g.preferences, g.mu, beta) for g in games]
    return measured(world, _table(games, solutions), mu, beta)


def bradley_terry_optimum(world: World, mu: Array, tau: float, pairs: Array | None = None) -> Equilibrium:
    """Compute pi = mu exp(r / tau), normalised, with r the Bradley-Terry fit: the limit of RLHF with a reward model.

    The reward is fitted to pairs of outcomes drawn from `pairs` [16, 261], by default mu; with
    `world.corpus_outcome_probabilities()` it is the reward of the judge `bradley_terry`. Offline DPO with beta = tau on
    the same pairs has the same limit (Rafailov et al. 2023, "Direct Preference Optimization", eq. 4). Raises UsageError
    unless tau > 0, or if `pairs` has no mass on a class of outcomes that mu has.
    """
    return measured(world, _bradley_terry_table(_rewarded(world, mu, pairs), tau), mu, tau)


def bradley_terry_tau_at_kl(world: World, mu: Array, kl: float, pairs: Array | None = None) -> float:
    """Find the tau at which `bradley_terry_optimum` has this KL (nats, mean over prompts), for comparisons at equal KL.

    Raises UsageError if no tau between 1e-3 and 1e3 gives it.
    """
    rewarded = _rewarded(world, mu, pairs)

    def kl_at(tau: float) -> float:
        table = _bradley_terry_table(rewarded, tau)
        return float(np.mean([tabular.kl(table[x], mu[x]) for x in range(PROMPTS)]))

    least, most = kl_at(HIGHEST_TAU), kl_at(LOWEST_TAU)
    if not least < kl < most:
        raise UsageError(
            f"no Bradley-Terry optimum has a KL of {kl:g} nats; with this reference it is between {least:.3g} and "
            f"{most:.4g}: choose a KL in that range"
        )
    low, high = np.log(LOWEST_TAU), np.log(HIGHEST_TAU)
    while high - low > 1e-10:
        middle = 0.5 * (low + high)
        low, high = (middle, high) if kl_at(float(np.exp(middle))) > kl else (low, middle)
    return float(np.exp(0.5 * (low + high)))


@dataclass(frozen=True, eq=False)
class _Game:
    """One prompt's game between classes of outcomes with equal preferences and mass under mu."""

    preferences: Array  # preferences between classes, [k, k]
    mu: Array  # mass of each class, [k]
    kind: NDArray[np.intp]
    """Class of each outcome, [261]; k for outcomes without mass."""
    outcomes: Array  # mu of each outcome, [261]

    def spread(self, pi: Array) -> Array:
        """Expand a policy over classes [k] to outcomes [261], in proportion to mu within a class."""
        return self.outcomes * np.append(pi / self.mu, 0.0)[self.kind]

    def merged(self, probabilities: Array) -> Array:
        """Reduce a distribution over outcomes [261] to one over classes [k], renormalised."""
        mass = np.bincount(self.kind, weights=probabilities, minlength=len(self.mu) + 1)[:-1]
        return mass / mass.sum()


def _games(world: World, mu: Array) -> list[_Game]:
    return [_game(world.preference_matrix(x), mu[x]) for x in range(PROMPTS)]


def _game(preferences: Array, mu: Array) -> _Game:
    # Rounded, because the sigmoid of equal logits may differ in the last bits.
    _, first, kind = np.unique(np.round(preferences, 12), axis=0, return_index=True, return_inverse=True)
    mass = np.bincount(kind.reshape(-1), weights=mu).astype(np.float64)
    held = np.flatnonzero(mass > 0.0)
    place = np.full(len(mass), len(held))
    place[held] = np.arange(len(held))
    among = preferences[np.ix_(first[held], first[held])]
    return _Game(preferences=among, mu=mass[held], kind=place[kind.reshape(-1)], outcomes=mu)


def _table(games: list[_Game], policies: list[Array]) -> Array:
    return np.stack([game.spread(pi) for game, pi in zip(games, policies, strict=True)])


def _rewarded(world: World, mu: Array, pairs: Array | None) -> list[tuple[_Game, Array]]:
    sampled = mu if pairs is None else pairs
    games = _games(world, mu)
    return [(g, tabular.bradley_terry(g.preferences, g.merged(sampled[x]))) for x, g in enumerate(games)]


def _bradley_terry_table(rewarded: list[tuple[_Game, Array]], tau: float) -> Array:
    return np.stack([game.spread(tabular.rlhf_policy(rewards, game.mu, tau)) for game, rewards in rewarded])
