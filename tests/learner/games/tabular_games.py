"""Games on tabular policies, small enough to enumerate every draw of players and opponents. All in float64."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from learner.losses.config import CorrectionConfig
from learner.losses.games import GameBatch, game_loss
from tests.learner.losses.games import loss_of

TAU = 0.1
HUGE = 1e6
tensor = partial(torch.tensor, dtype=torch.float64)
RPS = tensor([[0.5, 1.0, 0.0], [0.0, 0.5, 1.0], [1.0, 0.0, 0.5]])
WRPS = tensor([[0.5, 0.9, 0.4], [0.1, 0.5, 0.7], [0.6, 0.3, 0.5]])
MU = tensor([[0.7, 0.2, 0.1]]).log()
PI = tensor([[0.5, 0.3, 0.2]]).log()
STALE = tensor([[0.2, 0.3, 0.5]]).log()
MIX = (0.875 * PI + 0.125 * MU).log_softmax(-1)
CONSTANT = CorrectionConfig(baseline="constant")
CENTRED = CorrectionConfig()


@dataclass(frozen=True)
class Tree:
    """All completions of a tabular policy: token `tokens[c, t]` is drawn from the logits of node `nodes[c, t]`."""

    nodes: Tensor
    tokens: Tensor
    mask: Tensor

    def logprobs(self, logits: Tensor) -> Tensor:
        """[completions, t]"""
        return logits.log_softmax(-1)[self.nodes, self.tokens] * self.mask


ONE = Tree(torch.zeros(3, 1, dtype=torch.long), torch.arange(3)[:, None], torch.ones(3, 1, dtype=torch.float64))
SQUARE = Tree(
    torch.tensor([[0, 1], [0, 1], [0, 2], [0, 2]]),
    torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]),
    torch.ones(4, 2, dtype=torch.float64),
)
# Token 0 ends, token 1 goes on: completions of 1, 2, 3 and 3 tokens.
COMB = Tree(
    torch.tensor([[0, 0, 0], [0, 1, 0], [0, 1, 2], [0, 1, 2]]),
    torch.tensor([[0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 1, 1]]),
    tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]]),
)
COMB_P = tensor([[0.5, 0.9, 0.2, 0.6], [0.1, 0.5, 0.8, 0.3], [0.8, 0.2, 0.5, 0.7], [0.4, 0.7, 0.3, 0.5]])
COMB_MU = tensor([[0.3, 0.7], [0.6, 0.4], [0.8, 0.2]]).log()
COMB_PI = tensor([[0.5, 0.5], [0.3, 0.7], [0.4, 0.6]]).log()
COMB_STALE = tensor([[0.2, 0.8], [0.7, 0.3], [0.6, 0.4]]).log()


@dataclass(frozen=True)
class Setting:
    """A game, the policy and what its completions were sampled from; all but `tree` and the matrix are logits."""

    tree: Tree
    preferences: Tensor
    policy: Tensor
    reference: Tensor
    players_from: Tensor
    opponents_from: Tensor
    opponent: Tensor
    scores: Tensor | None = None


def ascent(s: Setting, kind: str, correction: CorrectionConfig, players: int, drawn: int, tau: float = TAU) -> Tensor:
    """Expected ascent direction by the policy's logits: all tuples of completions, weighted by their probability."""
    count = len(s.tree.nodes)
    tuples = torch.cartesian_prod(*[torch.arange(count)] * (players + drawn)).reshape(-1, players + drawn)
    logits = s.policy.clone().requires_grad_()
    sampler = (s.players_from,) * players + (s.opponents_from,) * drawn
    behaviour = torch.stack([s.tree.logprobs(z)[column] for z, column in zip(sampler, tuples.T, strict=True)], 1)
    batch = GameBatch(
        policy=s.tree.logprobs(logits)[tuples],
        reference=s.tree.logprobs(s.reference)[tuples],
        behaviour=behaviour,
        opponent=s.tree.logprobs(s.opponent)[tuples],
        mask=s.tree.mask[tuples],
        preferences=s.preferences[tuples[:, :, None], tuples[:, None, :]],
        scores=torch.zeros(tuples.shape) if s.scores is None else s.scores[tuples],
        players=players,
    )
    losses = game_loss(batch, loss_of(kind, correction, tau=tau)).loss
    expected = (losses * behaviour.sum((1, 2)).exp()).sum()
    return -torch.autograd.grad(expected, logits)[0]


def nash_md_pg(tree: Tree, preferences: Tensor, policy: Tensor, reference: Tensor, opponent: Tensor) -> Tensor:
    """The same by definition, completion by completion: sum of pi(y) A(y) grad log pi(y)."""
    logits = policy.clone().requires_grad_()
    logp = tree.logprobs(logits).sum(-1)
    log_ratio = (logp - tree.logprobs(reference).sum(-1)).detach()
    wins = preferences @ tree.logprobs(opponent).sum(-1).exp()
    advantage = wins - 0.5 - TAU * log_ratio
    return torch.autograd.grad((logp.exp().detach() * advantage * logp).sum(), logits)[0]


def rps(behaviour: Tensor = PI, opponents_from: Tensor = MIX, opponent: Tensor = MIX) -> Setting:
    return Setting(ONE, RPS, PI, MU, behaviour, opponents_from, opponent)


def comb(behaviour: Tensor = COMB_PI, opponents_from: Tensor = COMB_PI, policy: Tensor = COMB_PI) -> Setting:
    opponent = 0.75 * policy.log_softmax(-1) + 0.25 * COMB_MU
    return Setting(COMB, COMB_P, policy, COMB_MU, behaviour, opponents_from, opponent)


def comb_exact() -> Tensor:
    return nash_md_pg(COMB, COMB_P, COMB_PI, COMB_MU, comb().opponent)


def close(actual: Tensor, expected: Tensor, atol: float = 1e-12) -> bool:
    return torch.allclose(actual, expected, rtol=0.0, atol=atol)
