"""Nash learning from human feedback on games small enough to solve: equilibria, gaps, the algorithms' iterates.

What every estimate of the learner is measured against. Pure NumPy in float64; knows nothing of models or samples.

A game of n actions is a matrix P [n, n]: P[i, j] is the probability that action i is preferred to j, P + P^T = 1. A
policy is a distribution [n]. mu is the reference, tau > 0 the temperature (probability per nat), and the
regularised preference is P(pi > pi') - tau KL(pi || mu) + tau KL(pi' || mu) (Munos et al. 2023, "Nash Learning from
Human Feedback", section 4). beta is the weight of mu in the geometric mixture pi^(1-beta) mu^beta.

Arguments that are no game, no distribution or out of range are a UsageError.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actors.errors import RunError, UsageError
from actors.world import sigmoid

Array = NDArray[np.float64]

RESIDUAL = 1e-13
"""What solvers bring the sum of absolute residuals of their fixed-point equation to."""
_ITERATIONS = 500


def _antisymmetric(n: int, above: dict[tuple[int, int], float]) -> Array:
    P = np.full((n, n), 0.5)
    for (i, j), probability in above.items():
        P[i, j], P[j, i] = probability, 1.0 - probability
    P.setflags(write=False)
    return P


def _bradley_terry_game(reward: list[float]) -> Array:
    P = sigmoid(np.subtract.outer(reward, reward))
    P.setflags(write=False)
    return P


GAMES: dict[str, Array] = {
    "rps": _antisymmetric(3, {(0, 1): 1.0, (1, 2): 1.0, (2, 0): 1.0}),
    "dice": _antisymmetric(3, {(0, 1): 5 / 9, (1, 2): 5 / 9, (2, 0): 5 / 9}),
    "wrps": _antisymmetric(3, {(0, 1): 0.9, (1, 2): 0.7, (2, 0): 0.6}),
    "munos": _antisymmetric(3, {(1, 0): 2 / 3 - 0.05, (0, 2): 2 / 3 + 0.025, (2, 1): 2 / 3 + 0.025}),
    "rps_dominated": _antisymmetric(
        5,
        {(0, 1): 0.8, (1, 2): 0.8, (2, 0): 0.8, (3, 4): 0.8}
        | {(i, 3): 0.7 for i in range(3)}
        | {(i, 4): 0.95 for i in range(3)},
    ),
    "bradley_terry": _bradley_terry_game([0.0, float(np.log(9)), float(np.log(2))]),
}
"""Named games. rps: rock, paper, scissors. dice: intransitive dice {2,4,9}, {1,6,8}, {3,5,7}. wrps: unequal stakes,
raw equilibrium (2, 1, 4)/7. munos: after Munos et al. 2023, raw equilibrium (.3833, .3833, .2333). rps_dominated: a
cycle of three, and two actions that lose to all of it. bradley_terry: rewards (0, log 9, log 2)."""


# Checks


def checked_game(P: ArrayLike) -> Array:
    """P [n, n] in float64. Raises UsageError unless its entries are probabilities with P + P^T = 1."""
    game = np.asarray(P, dtype=np.float64)
    if game.ndim != 2 or game.shape[0] != game.shape[1] or not game.size:
        raise UsageError(f"a game is a square matrix [n, n]; this one has shape {list(game.shape)}")
    if not np.all((game >= 0.0) & (game <= 1.0)):
        raise UsageError("a game holds probabilities in [0, 1]: P[i, j] that i is preferred to j")
    excess = float(np.abs(game + game.T - 1.0).max())
    if excess > 1e-9:
        raise UsageError(
            f"P + P^T must be 1 everywhere (so 1/2 on the diagonal); it is off by up to {excess:.3g}. "
            "Average both orders of each pair: (P + 1 - P.T) / 2"
        )
    return game


def checked_policy(pi: ArrayLike, n: int, name: str = "pi", full_support: bool = False) -> Array:
    """pi [n] in float64. Raises UsageError unless it is a distribution over n actions, positive with `full_support`."""
    policy = np.asarray(pi, dtype=np.float64)
    if policy.shape != (n,):
        raise UsageError(f"{name} must be a distribution over the game's {n} actions; its shape is {policy.shape}")
    if not np.all(policy >= 0.0) or abs(float(policy.sum()) - 1.0) > 1e-6:
        raise UsageError(f"{name} must be non-negative and sum to 1; its sum is {float(policy.sum()):.9g}")
    if full_support and not np.all(policy > 0.0):
        zeros = np.flatnonzero(policy <= 0.0).tolist()
        raise UsageError(f"{name} must give every action a positive probability; leave out those with none: {zeros}")
    return policy


def _checked_tau(tau: float, zero_allowed: bool = False) -> None:
    if not (np.isfinite(tau) and (tau > 0.0 or (zero_allowed and tau == 0.0))):
        raise UsageError(f"tau is {tau}; it must be finite and {'>= 0' if zero_allowed else '> 0'}")


def _checked_beta(beta: float) -> None:
    if not 0.0 <= beta <= 1.0:
        raise UsageError(f"beta is {beta}; the weight of mu in the mixture must be in [0, 1]")


def _checked_steps(steps: int, step_size: float | None, tau: float) -> None:
    if steps < 0:
        raise UsageError(f"steps is {steps}; it must be >= 0")
    if step_size is not None and not (step_size > 0.0 and step_size * tau <= 1.0):
        raise UsageError(f"step_size is {step_size}; it must be > 0 and at most 1 / tau, with tau = {tau:g}")


# Policies and metrics


def softmax(logits: Array) -> Array:
    """exp(logits) normalised over the last axis, any shape."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def kl(p: ArrayLike, q: ArrayLike) -> float:
    """KL(p || q), nats; inf where q misses what p has."""
    a, b = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    held = a > 0.0
    with np.errstate(divide="ignore"):
        return float(np.sum(a[held] * (np.log(a[held]) - np.log(b[held]))))


def geometric_mixture(pi: ArrayLike, mu: ArrayLike, beta: float) -> Array:
    """pi^(1-beta) mu^beta, normalised, [n] (Munos et al. 2023, section 6). pi may lack actions, mu may not."""
    reference = checked_policy(mu, np.size(mu), "mu", full_support=True)
    policy = checked_policy(pi, reference.size)
    _checked_beta(beta)
    if beta == 1.0:
        return reference / reference.sum()
    with np.errstate(divide="ignore"):
        return softmax((1.0 - beta) * np.log(policy) + beta * np.log(reference))


def best_response(P: ArrayLike, pi: ArrayLike) -> int:
    """The action most often preferred to pi; the first of equals."""
    game = checked_game(P)
    return int(np.argmax(game @ checked_policy(pi, len(game))))


def exploitability(P: ArrayLike, pi: ArrayLike) -> float:
    """max_y P(y > pi) - 1/2, in [0, 1/2]: what the best opponent wins beyond a draw. 0 exactly at raw equilibria."""
    game = checked_game(P)
    return float(np.max(game @ checked_policy(pi, len(game)))) - 0.5


def nash_conv(P: ArrayLike, pi: ArrayLike) -> float:
    """Both players' gains from a best response when both play pi: twice the exploitability."""
    return 2.0 * exploitability(P, pi)


def regularised_best_response(P: ArrayLike, pi: ArrayLike, mu: ArrayLike, tau: float) -> Array:
    """argmax over pi' of P(pi' > pi) - tau KL(pi' || mu), which is mu exp(P pi / tau), normalised. [n]"""
    game = checked_game(P)
    policy = checked_policy(pi, len(game))
    reference = checked_policy(mu, len(game), "mu", full_support=True)
    _checked_tau(tau)
    return softmax(np.log(reference) + game @ policy / tau)


def regularised_gap(P: ArrayLike, pi: ArrayLike, mu: ArrayLike, tau: float) -> float:
    """Duality gap of the regularised game at (pi, pi): both players' gains from a regularised best response.

    By definition, with V the regularised preference: max V(., pi) - min V(pi, .). It equals
    2 tau KL(pi || regularised_best_response), and is 0 at the regularised equilibrium alone.
    """
    game = checked_game(P)
    policy = checked_policy(pi, len(game))
    reference = checked_policy(mu, len(game), "mu", full_support=True)
    _checked_tau(tau)
    logits = np.log(reference / reference.sum()) + (game @ policy - 0.5) / tau
    # max over pi' of E_pi'[P(y > pi)] - tau KL(pi' || mu) is tau log sum mu exp(P pi / tau).
    best = tau * (logits.max() + np.log(np.exp(logits - logits.max()).sum()))
    return max(0.0, 2.0 * (float(best) + tau * kl(policy, reference / reference.sum())))


# Equilibria


def _newton(equations: Callable[[Array], tuple[Array, Array, float]], z: Array, hint: str) -> Array:
    """The root of F by Newton's method, damped so that |F| falls at every step.

    equations: z -> F [n], Jacobian [n, n], and the residual that has to come down to RESIDUAL.
    Raises RunError, with the advice `hint`, where it does not.
    """
    F, jacobian, residual = equations(z)
    for _ in range(_ITERATIONS):
        if residual <= RESIDUAL:
            return z
        try:
            direction = np.linalg.solve(jacobian, F)
        except np.linalg.LinAlgError:
            break
        size, length = np.linalg.norm(F), 1.0
        while True:
            trial = z - length * direction
            F, jacobian, residual = equations(trial)
            if np.linalg.norm(F) <= (1.0 - 0.1 * length) * size or length < 1e-10:
                break
            length *= 0.5
        z = trial
    raise RunError(f"the fixed point was not reached: residual {residual:.3g}, allowed {RESIDUAL:g}. {hint}")


def regularised_nash(P: ArrayLike, mu: ArrayLike, tau: float) -> Array:
    """The equilibrium pi = softmax(log mu + P pi / tau) of the regularised game, unique for tau > 0. [n]

    Newton on F(z) = z - log mu - A softmax(z) / tau with A = P - 1/2, from z = log mu. Its Jacobian is I - A D / tau,
    D = diag(pi) - pi pi^T, and A D has imaginary eigenvalues only (those of the antisymmetric D^1/2 A D^1/2): no z is
    singular, and |F| grows with |z|, so that the damped method converges from anywhere. The residual
    |softmax(log mu + P pi / tau) - pi|_1 is at most RESIDUAL; RunError where rounding prevents it (tau below 1e-3).
    """
    game = checked_game(P)
    log_mu = np.log(checked_policy(mu, len(game), "mu", full_support=True))
    _checked_tau(tau)
    A, identity = (game - 0.5) / tau, np.eye(len(game))

    def equations(z: Array) -> tuple[Array, Array, float]:
        pi = softmax(z)
        value = A @ pi
        F = z - log_mu - value
        return F, identity - (A - value[:, None]) * pi, float(np.abs(softmax(log_mu + value) - pi).sum())

    return softmax(_newton(equations, log_mu, f"tau is {tau:g}: use a larger one"))


def nash_md_fixed_point(P: ArrayLike, mu: ArrayLike, tau: float, beta: float) -> Array:
    """Where Nash-MD-PG and IPO-MD with a constant beta converge: pi = mu exp(P pi^(1-beta) mu^beta / tau), normalised.

    Raise the equation to the power 1 - beta and multiply by mu^beta: the mixture is the equilibrium at temperature
    tau / (1 - beta), and pi the regularised best response to it. beta = 0 gives the equilibrium at tau, beta = 1 the
    best response to mu. Constant-step Nash-MD with eta ends at beta = eta tau. [n]
    """
    _checked_beta(beta)
    _checked_tau(tau)
    mixture = mu if beta == 1.0 else regularised_nash(P, mu, tau / (1.0 - beta))
    return regularised_best_response(P, mixture, mu, tau)


# Rewards and DPO


def bradley_terry(P: ArrayLike, weights: ArrayLike) -> Array:
    """The reward r [n] that maximises sum over i, j of w_i w_j P[i, j] log sigmoid(r_i - r_j), with mean 0 under w.

    The population fit of a reward model to pairs sampled from the policy w = `weights` [n]. Raises UsageError where no
    finite maximum exists: some actions always beat all others (Ford 1957).
    """
    game = checked_game(P)
    w = checked_policy(weights, len(game), "weights", full_support=True)
    reached = game > 0.0
    for _ in range(len(game).bit_length()):
        reached = (reached.astype(np.float64) @ reached) > 0.0
    if not reached.all():
        raise UsageError("some actions always beat all others, so their reward is infinite: clip P to [.001, .999]")

    def equations(r: Array) -> tuple[Array, Array, float]:
        sigma = sigmoid(np.subtract.outer(r, r))
        F = (game - sigma) @ w
        slope = sigma * (1.0 - sigma) * w
        # F does not depend on r's mean, which the last term fixes.
        return F - r @ w, slope - np.diag(slope.sum(axis=1)) - w, float(np.abs(F).sum())

    r = _newton(equations, np.zeros(len(game)), "Clip P to [.001, .999]")
    return r - r @ w / w.sum()


def rlhf_policy(reward: ArrayLike, mu: ArrayLike, tau: float) -> Array:
    """argmax over pi of E_pi[reward] - tau KL(pi || mu), which is mu exp(reward / tau), normalised. [n]"""
    reference = checked_policy(mu, np.size(reward), "mu", full_support=True)
    _checked_tau(tau)
    return softmax(np.log(reference) + np.asarray(reward, dtype=np.float64) / tau)


def offline_dpo_fixed_point(P: ArrayLike, mu: ArrayLike, b: float, sampler: ArrayLike | None = None) -> Array:
    """Where DPO with the coefficient b converges on pairs from `sampler` [n] (mu if not given), labelled by P. [n]

    b log(pi / mu) is then the Bradley-Terry reward of those pairs (Rafailov et al. 2023, eq. 5 and 7), so the policy is
    that of RLHF on that reward with tau = b. It depends on the sampler unless P is itself Bradley-Terry.
    """
    return rlhf_policy(bradley_terry(P, mu if sampler is None else sampler), mu, b)


def online_dpo_fixed_point(P: ArrayLike, mu: ArrayLike, b: float) -> Array:
    """Where DPO with the coefficient b converges on pairs from the policy itself, labelled by P. [n]

    The pi with pi = offline_dpo_fixed_point(P, mu, b, sampler=pi). Raises RunError where Newton's method finds none.
    """
    game = checked_game(P)
    log_mu = np.log(checked_policy(mu, len(game), "mu", full_support=True))
    _checked_tau(b)

    def equations(r: Array) -> tuple[Array, Array, float]:
        pi = softmax(log_mu + r / b)
        sigma = sigmoid(np.subtract.outer(r, r))
        F = (game - sigma) @ pi
        slope = sigma * (1.0 - sigma) * pi
        moved = (game - sigma - F[:, None]) * pi / b
        return F - r.mean(), moved + slope - np.diag(slope.sum(axis=1)) - 1.0 / len(r), float(np.abs(F).sum())

    r = _newton(equations, np.zeros(len(game)), f"b is {b:g}: use a larger one, or clip P to [.001, .999]")
    return softmax(log_mu + r / b)


# Algorithms


def _descend(
    P: Array, log_mu: Array, tau: float, start: Array, rates: Array, betas: Array, lag: int = 0, extra: bool = False
) -> Array:
    """Rows softmax(z_t): z_{t+1} = (1 - eta_t tau) z_t + eta_t tau log mu + eta_t (P - 1/2) opponent, z_0 = start."""
    A, steps = P - 0.5, len(rates)
    z = np.empty((steps + 1, len(log_mu)))
    z[0] = start
    for t in range(steps):
        eta, beta = rates[t], betas[t]
        opponent = softmax((1.0 - beta) * z[max(t - lag, 0)] + beta * log_mu)
        kept = (1.0 - eta * tau) * z[t] + eta * tau * log_mu
        if extra:
            opponent = softmax(kept + eta * (A @ opponent))
        z[t + 1] = kept + eta * (A @ opponent)
    return softmax(z)


def nash_md(P: ArrayLike, mu: ArrayLike, tau: float, steps: int, step_size: float | None = None) -> Array:
    """Every iterate of Nash-MD from mu, [steps + 1, n] (Munos et al. 2023, section 6, eq. 4):

        log pi_{t+1} = (1 - eta tau) log pi_t + eta tau log mu + eta P(. > pi_t^mu) + c,

    pi_t^mu the geometric mixture with beta = eta tau. By default eta_t = 2 / (tau (t + 2)), with which theorem 1 bounds
    KL(pi*_tau || pi_T) by 8 / (tau^2 (T + 1)). A constant `step_size` (at most 1 / tau) converges to
    `nash_md_fixed_point` with beta = step_size tau, not to the equilibrium.
    """
    game = checked_game(P)
    log_mu = np.log(checked_policy(mu, len(game), "mu", full_support=True))
    _checked_tau(tau)
    _checked_steps(steps, step_size, tau)
    rates: Array = np.full(steps, step_size or 0.0)
    if step_size is None:
        rates = np.asarray(2.0 / (tau * (np.arange(steps) + 2.0)), dtype=np.float64)
    return _descend(game, log_mu, tau, log_mu, rates, np.minimum(rates * tau, 1.0))


def online_mirror_descent(
    P: ArrayLike,
    mu: ArrayLike,
    tau: float,
    steps: int,
    step_size: float,
    *,
    beta: float = 0.0,
    lag: int = 0,
    start: ArrayLike | None = None,
) -> Array:
    """Every iterate of mirror descent on the regularised game, [steps + 1, n]:

        log pi_{t+1} = (1 - eta tau) log pi_t + eta tau log mu + eta P(. > opponent) + c.

    The opponent is the mixture pi_{t-lag}^(1-beta) mu^beta (pi_0 before the start). beta = 0 is self-play: online IPO,
    INPO; with tau = 0 multiplicative weights. beta > 0 is what Nash-MD-PG does in expectation. `start` [n] is mu if
    not given; `lag` >= 0 counts steps.
    """
    game = checked_game(P)
    log_mu = np.log(checked_policy(mu, len(game), "mu", full_support=True))
    first = log_mu if start is None else np.log(checked_policy(start, len(game), "start", full_support=True))
    _checked_tau(tau, zero_allowed=True)
    _checked_beta(beta)
    _checked_steps(steps, step_size, tau)
    if lag < 0:
        raise UsageError(f"lag is {lag}; it counts steps and must be >= 0")
    return _descend(game, log_mu, tau, first, np.full(steps, step_size), np.full(steps, beta), lag)


def extragradient(
    P: ArrayLike, mu: ArrayLike, tau: float, steps: int, step_size: float, start: ArrayLike | None = None
) -> Array:
    """Every iterate of EGPO from `start` (mu if not given), [steps + 1, n] (Zhou, Fazel, Du 2025, arXiv 2503.08942).

    A step of self-play gives an opponent, against which the step is then taken anew from the same place.
    """
    game = checked_game(P)
    log_mu = np.log(checked_policy(mu, len(game), "mu", full_support=True))
    first = log_mu if start is None else np.log(checked_policy(start, len(game), "start", full_support=True))
    _checked_tau(tau, zero_allowed=True)
    _checked_steps(steps, step_size, tau)
    return _descend(game, log_mu, tau, first, np.full(steps, step_size), np.zeros(steps), extra=True)


def running_average(iterates: Array) -> Array:
    """Row t: the mean of rows 0 to t. [steps + 1, n]"""
    return np.cumsum(iterates, axis=0) / np.arange(1, len(iterates) + 1)[:, None]
