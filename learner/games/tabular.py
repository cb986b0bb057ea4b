"""Nash learning from human feedback on tabular games: equilibria, duality gaps, and the algorithms' iterates.

The ground truth for the learner's estimates. Pure NumPy in float64; must not depend on models or samples.

A game over n actions is a matrix P [n, n]: P[i, j] is the probability that action i is preferred to j, and
P + P^T = 1. A policy is a distribution [n]. mu is the reference policy, tau > 0 the temperature (probability per nat).
The regularised preference is P(pi > pi') - tau KL(pi || mu) + tau KL(pi' || mu) (Munos et al. 2023, "Nash Learning from
Human Feedback", section 4). beta is the weight of mu in the geometric mixture pi^(1-beta) mu^beta.

Every function raises UsageError if an argument is not a game, not a distribution, or out of range.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray

from actors.errors import RunError, UsageError
from actors.world import sigmoid

Array = NDArray[np.float64]

RESIDUAL = 1e-13
"""Tolerance of the solvers: sum of absolute residuals of the fixed-point equation."""


def _antisymmetric(n: int, above: dict[tuple[int, int], float]) -> Array:
    P = np.full((n, n), 0.5)
    for (i, j), probability in above.items():
        P[i, j], P[j, i] = probability, 1.0 - probability
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
    "bradley_terry": _antisymmetric(3, {(0, 1): 1 / 10, (1, 2): 9 / 11, (2, 0): 2 / 3}),
}
"""Games by name. rps: rock, paper, scissors. dice: intransitive dice {2,4,9}, {1,6,8}, {3,5,7}. wrps: unequal stakes,
raw equilibrium (2, 1, 4)/7. munos: after Munos et al. 2023, raw equilibrium (.3833, .3833, .2333). rps_dominated: a
cycle of three, and two actions that lose to all of it. bradley_terry: rewards (0, log 9, log 2)."""


def checked_game(P: ArrayLike) -> Array:
    """Return P [n, n] in float64. Raises UsageError unless its entries are probabilities with P + P^T = 1."""
    game = np.asarray(P, dtype=np.float64)
    if game.ndim != 2 or game.shape[0] != game.shape[1] or not game.size:
        raise UsageError(f"P has shape {list(game.shape)}; a game is a square matrix [n, n]")
    if not np.all((game >= 0.0) & (game <= 1.0)):
        raise UsageError("P must hold probabilities in [0, 1]: P[i, j] that action i is preferred to j")
    excess = float(np.abs(game + game.T - 1.0).max())
    if excess > 1e-9:
        raise UsageError(
            f"P + P^T must be 1 everywhere (so 1/2 on the diagonal); it is off by up to {excess:.3g}. "
            "Average both orders of each pair: (P + 1 - P.T) / 2"
        )
    return game


def checked_policy(pi: ArrayLike, n: int, name: str = "pi", full_support: bool = False) -> Array:
    """Return pi [n] in float64. Raises UsageError unless it is a distribution, with `full_support` a positive one."""
    policy = np.asarray(pi, dtype=np.float64)
    if policy.shape != (n,):
        raise UsageError(f"{name} must be a distribution over the game's {n} actions; its shape is {policy.shape}")
    if not np.all(policy >= 0.0) or abs(float(policy.sum()) - 1.0) > 1e-6:
        raise UsageError(f"{name} must be non-negative and sum to 1; its sum is {float(policy.sum()):.9g}")
    if full_support and not np.all(policy > 0.0):
        zeros = np.flatnonzero(policy <= 0.0).tolist()
        raise UsageError(f"{name} must give every action a positive probability; remove the actions {zeros}")
    return policy


def check_tau(tau: float, zero_allowed: bool = False) -> None:
    if not (np.isfinite(tau) and (tau > 0.0 or (zero_allowed and tau == 0.0))):
        raise UsageError(f"tau is {tau}; it must be finite and {'>= 0' if zero_allowed else '> 0'}")


def check_beta(beta: float) -> None:
    if not 0.0 <= beta <= 1.0:
        raise UsageError(f"beta is {beta}; the weight of mu in the mixture must be in [0, 1]")


# Policies and gaps


def softmax(logits: Array) -> Array:
    """Normalise exp(logits) over the last axis."""
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def kl(p: ArrayLike, q: ArrayLike) -> float:
    """Return KL(p || q) in nats; inf if q is 0 where p is not."""
    a, b = np.asarray(p, dtype=np.float64), np.asarray(q, dtype=np.float64)
    held = a > 0.0
    with np.errstate(divide="ignore"):
        return float(np.sum(a[held] * (np.log(a[held]) - np.log(b[held]))))


def exploitability(P: ArrayLike, pi: ArrayLike) -> float:
    """Return max_y P(y > pi) - 1/2, in [0, 1/2]: the best response's gain over a draw, 0 at raw equilibria only."""
    game = checked_game(P)
    return float(np.max(game @ checked_policy(pi, len(game)))) - 0.5


def regularised_best_response(P: ArrayLike, pi: ArrayLike, mu: ArrayLike, tau: float) -> Array:
    """Return argmax over pi' of P(pi' > pi) - tau KL(pi' || mu), which is mu exp(P pi / tau), normalised. [n]"""
    game = checked_game(P)
    policy = checked_policy(pi, len(game))
    reference = checked_policy(mu, len(game), "mu", full_support=True)
    check_tau(tau)
    return softmax(np.log(reference) + game @ policy / tau)


def regularised_gap(P: ArrayLike, pi: ArrayLike, mu: ArrayLike, tau: float) -> float:
    """Return the duality gap of the regularised game at (pi, pi): both players' gains from a best response.

    With V the regularised preference it is max V(., pi) - min V(pi, .), which equals
    2 tau KL(pi || regularised_best_response). It is 0 at the regularised equilibrium only.
    """
    game = checked_game(P)
    policy = checked_policy(pi, len(game))
    reference = checked_policy(mu, len(game), "mu", full_support=True)
    check_tau(tau)
    logits = np.log(reference / reference.sum()) + (game @ policy - 0.5) / tau
    # max over pi' of E_pi'[P(y > pi)] - tau KL(pi' || mu) is tau log sum mu exp(P pi / tau).
    best = tau * (logits.max() + np.log(np.exp(logits - logits.max()).sum()))
    return max(0.0, 2.0 * (float(best) + tau * kl(policy, reference / reference.sum())))


# Fixed points


def newton(equations: Callable[[Array], tuple[Array, Array, float]], z: Array, hint: str) -> Array:
    """Find the root of F by Newton's method, damped so that |F| falls at every step.

    `equations` maps z to F [n], its Jacobian [n, n], and the residual to bring down to RESIDUAL.
    Raises RunError, with the advice `hint`, if the residual stays larger.
    """
    F, jacobian, residual = equations(z)
    for _ in range(500):
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
    raise RunError(f"the solver did not converge: residual {residual:.3g}, allowed {RESIDUAL:g}. {hint}")


def regularised_nash(P: ArrayLike, mu: ArrayLike, tau: float) -> Array:
    """Return the equilibrium pi = softmax(log mu + P pi / tau) of the regularised game, unique for tau > 0. [n]

    Newton on F(z) = z - log mu - A softmax(z) / tau with A = P - 1/2, from z = log mu. Its Jacobian is I - A D / tau,
    D = diag(pi) - pi pi^T. A D has only imaginary eigenvalues (those of the antisymmetric D^1/2 A D^1/2), so no z is
    singular, and |F| grows with |z|: the damped method converges from anywhere. Raises RunError if rounding keeps the
    residual |softmax(log mu + P pi / tau) - pi|_1 above RESIDUAL (tau below 1e-3).
    """
    game = checked_game(P)
    log_mu = np.log(checked_policy(mu, len(game), "mu", full_support=True))
    check_tau(tau)
    A, identity = (game - 0.5) / tau, np.eye(len(game))

    def equations(z: Array) -> tuple[Array, Array, float]:
        pi = softmax(z)
        value = A @ pi
        F = z - log_mu - value
        return F, identity - (A - value[:, None]) * pi, float(np.abs(softmax(log_mu + value) - pi).sum())

    return softmax(newton(equations, log_mu, f"tau is {tau:g}: use a larger one"))


def nash_md_fixed_point(P: ArrayLike, mu: ArrayLike, tau: float, beta: float) -> Array:
    """Return the limit of Nash-MD-PG and IPO-MD at constant beta: pi = mu exp(P pi^(1-beta) mu^beta / tau). [n]

    Raise the equation to the power 1 - beta and multiply by mu^beta: the mixture is the equilibrium at temperature
    tau / (1 - beta), and pi is the regularised best response to it. beta = 0 gives the equilibrium at tau, beta = 1 the
    best response to mu. Nash-MD with a constant step eta ends at beta = eta tau.
    """
    check_beta(beta)
    check_tau(tau)
    mixture = mu if beta == 1.0 else regularised_nash(P, mu, tau / (1.0 - beta))
    return regularised_best_response(P, mixture, mu, tau)


def online_dpo_fixed_point(P: ArrayLike, mu: ArrayLike, beta: float) -> Array:
    """Return the limit of DPO on pairs from the policy itself, labelled by P; beta here is DPO's own. [n]

    With r = beta log pi / mu it solves sum_j pi_j (P_ij - sigmoid(r_i - r_j)) = 0 for each i (Rafailov et al. 2023,
    eq. 7).
    """
    check_tau(beta)
    game = checked_game(P)
    log_mu = np.log(checked_policy(mu, len(game), "mu", full_support=True))

    def equations(r: Array) -> tuple[Array, Array, float]:
        pi = softmax(log_mu + r / beta)
        sigma = sigmoid(np.subtract.outer(r, r))
        F = (game - sigma) @ pi
        slope = sigma * (1.0 - sigma) * pi
        moved = (game - sigma - F[:, None]) * pi / beta
        return F - r.mean(), moved + slope - np.diag(slope.sum(axis=1)) - 1.0 / len(r), float(np.abs(F).sum())

    return softmax(log_mu + newton(equations, np.zeros(len(game)), f"beta is {beta:g}: use a larger one") / beta)


def bradley_terry(P: ArrayLike, weights: ArrayLike) -> Array:
    """Return the reward r [n] that maximises sum over i, j of w_i w_j P[i, j] log sigmoid(r_i - r_j), with w-mean 0.

    This is a reward model's population fit to pairs sampled from the policy w = `weights` [n]. Raises UsageError if
    some actions always beat all others, because no finite maximum exists then (Ford 1957).
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
        # F does not depend on r's mean; the last term fixes it.
        return F - r @ w, slope - np.diag(slope.sum(axis=1)) - w, float(np.abs(F).sum())

    r = newton(equations, np.zeros(len(game)), "Clip P to [.001, .999]")
    return r - r @ w / w.sum()


def rlhf_policy(reward: ArrayLike, mu: ArrayLike, tau: float) -> Array:
    """Return argmax over pi of E_pi[reward] - tau KL(pi || mu), which is mu exp(reward / tau), normalised. [n]"""
    reference = checked_policy(mu, np.size(reward), "mu", full_support=True)
    check_tau(tau)
    return softmax(np.log(reference) + np.asarray(reward, dtype=np.float64) / tau)


# Algorithms


def nash_md(P: ArrayLike, mu: ArrayLike, tau: float, steps: int, step_size: float | None = None) -> Array:
    """Return every iterate of Nash-MD from mu, [steps + 1, n] (Munos et al. 2023, section 6, eq. 4):

        log pi_{t+1} = (1 - eta tau) log pi_t + eta tau log mu + eta P(. > pi_t^mu) + c,

    with pi_t^mu the geometric mixture at beta = eta tau. The default is eta_t = 2 / (tau (t + 2)), for which theorem 1
    bounds KL(pi*_tau || pi_T) by 8 / (tau^2 (T + 1)). A constant `step_size` (at most 1 / tau) converges to
    `nash_md_fixed_point` with beta = step_size tau instead.
    """
    check_tau(tau)
    if steps < 0:
        raise UsageError(f"steps is {steps}; it must be >= 0")
    rates = 2.0 / (tau * (np.arange(steps) + 2.0)) if step_size is None else np.full(steps, step_size)
    return online_mirror_descent(P, mu, tau, rates, beta=np.minimum(rates * tau, 1.0))


def online_mirror_descent(
    P: ArrayLike,
    mu: ArrayLike,
    tau: float,
    step_sizes: ArrayLike,
    *,
    beta: ArrayLike = 0.0,
    lag: int = 0,
    start: ArrayLike | None = None,
) -> Array:
    """Return every iterate of mirror descent on the regularised game from `start` (default mu), [steps + 1, n]:

        log pi_{t+1} = (1 - eta tau) log pi_t + eta tau log mu + eta P(. > opponent) + c,

    with eta from `step_sizes` [steps]. The opponent is the mixture pi_{t-lag}^(1-beta) mu^beta (pi_0 if t < lag). With
    beta = 0 this is self-play: online IPO, INPO; at tau = 0 multiplicative weights. With beta > 0 it is the expectation
    of Nash-MD-PG. `beta` may be [steps]; `lag` counts steps.
    """
    game = checked_game(P)
    log_mu = np.log(checked_policy(mu, len(game), "mu", full_support=True))
    first = log_mu if start is None else np.log(checked_policy(start, len(game), "start", full_support=True))
    check_tau(tau, zero_allowed=True)
    etas, betas = np.broadcast_arrays(np.asarray(step_sizes, dtype=np.float64), beta)
    for weight in np.unique(betas):
        check_beta(weight)
    wrong = etas[~((etas > 0.0) & (etas * tau < 1.0 + 1e-9))]
    if wrong.size:
        raise UsageError(f"step_size is {wrong[0]}; it must be > 0 and at most 1 / tau, with tau = {tau:g}")
    if lag < 0:
        raise UsageError(f"lag is {lag}; it counts steps and must be >= 0")
    A, z = game - 0.5, np.empty((len(etas) + 1, len(game)))
    z[0] = first
    for t, (eta, weight) in enumerate(zip(etas, betas, strict=True)):
        opponent = softmax((1.0 - weight) * z[max(t - lag, 0)] + weight * log_mu)
        z[t + 1] = (1.0 - eta * tau) * z[t] + eta * tau * log_mu + eta * (A @ opponent)
    return softmax(z)


def running_average(iterates: Array) -> Array:
    """Return the mean of rows 0 to t in row t. [steps + 1, n]"""
    return np.cumsum(iterates, axis=0) / np.arange(1, len(iterates) + 1)[:, None]
