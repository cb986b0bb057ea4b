"""The anchor: a pull of the policy towards the slow average u of its own weights. Pure functions.

With weight kappa, kappa KL(pi || u) joins a loss's pull towards the reference mu. A loss that pulls with strength tau
to mu then pulls with tau + kappa to the geometric mean

    log m = (tau log mu + kappa log u) / (tau + kappa)

At rest u = pi, so the fixed point is the loss's own, whatever kappa. On the way there the anchor damps the rotation
that stale opponents cause. With logits z, A = P - 1/2, a step eta and opponents up to d steps old,

    z' = (1 - eta (tau + kappa)) z + eta (tau log mu + kappa log u) + eta A softmax(z_old)

With u at rest, tau + kappa > 1/2 and eta (tau + kappa) <= 1 this contracts in span(z) = max z - min z, for every game
and every d. Proof: entries of A are at most 1/2, and softmax has Lipschitz constant 1/2 from span to L1, so
span(A softmax z - A softmax w) <= span(z - w) / 2. The new difference of two runs is at most 1 - eta (tau + kappa)
times the newest plus eta / 2 times an old one: less than the largest of the last d + 1.
"""

from typing import TypeVar, cast

from torch import Tensor

from learner.losses.config import GameLossConfig, PairLossConfig, PpoLossConfig, RewardLossConfig

Loss = TypeVar("Loss", bound=PairLossConfig | RewardLossConfig | PpoLossConfig | GameLossConfig)


def anchored(loss: Loss, weight: float) -> Loss:
    """Return `loss` with `weight` added to the strength of its pull: `tau`, or `beta` of losses on pairs."""
    field = "beta" if isinstance(loss, PairLossConfig) else "tau"
    return cast("Loss", loss.model_copy(update={field: getattr(loss, field) + weight}))


def pulled_to(reference: Tensor, anchor: Tensor, strength: float, weight: float) -> Tensor:
    """Return log m (nats, up to its normaliser) of log mu and log u, tensors of one shape."""
    return (strength * reference + weight * anchor) / (strength + weight)
