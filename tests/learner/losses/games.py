"""Random games, and a game update computed slowly: one completion at a time, full logits, float64, plain loops."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from actors.generation.config import OpponentConfig
from actors.records import Completion, Game
from learner.losses.config import CorrectionConfig, GameLossConfig, PlayerCorrectionConfig, RewardLossConfig

Loss = RewardLossConfig | GameLossConfig
LogProbs = Callable[[Game, Completion], Tensor]
"""[t, v] next-token log-probs (nats) at each token of a completion."""


def loss_of(
    kind: str, correction: CorrectionConfig | None = None, *, tau: float = 0.05, opponent: OpponentConfig | None = None
) -> Loss:
    """A loss on games; one on scores leaves out what concerns opponents."""
    fix = correction or CorrectionConfig()
    if kind == "rloo":
        players = fix.model_dump(include=set(PlayerCorrectionConfig.model_fields))
        return RewardLossConfig(tau=tau, correction=PlayerCorrectionConfig(**players))
    return GameLossConfig(kind=kind, tau=tau, correction=fix, opponent=opponent or OpponentConfig())


def random_games(seed: int, count: int, players: int, opponents: int, vocabulary: int) -> list[Game]:
    """Games of uneven lengths with arbitrary recorded log-probs, preferences and scores."""
    rng = random.Random(seed)
    n = players + opponents

    def tokens(longest: int) -> tuple[int, ...]:
        return tuple(rng.randrange(vocabulary) for _ in range(rng.randint(1, longest)))

    def completion(opponent: bool) -> Completion:
        ids = tokens(5)
        return Completion(ids, tuple(-rng.uniform(1, 6) for _ in ids), (0,) * len(ids), "", True, opponent)

    def preferences() -> tuple[tuple[float, ...], ...]:
        upper = [[rng.random() for _ in range(n)] for _ in range(n)]
        rows = [[upper[i][j] if i < j else 1.0 - upper[j][i] if i > j else 0.5 for j in range(n)] for i in range(n)]
        return tuple(map(tuple, rows))

    return [
        Game(
            lease_index=index,
            prompt_token_ids=tokens(4),
            players=tuple(completion(False) for _ in range(players)),
            opponents=tuple(completion(True) for _ in range(opponents)),
            preferences=preferences(),
            scores=tuple(rng.uniform(-1, 1) for _ in range(n)),
        )
        for index in range(count)
    ]


def sampled_near(games: Sequence[Game], logprobs: LogProbs, seed: int, spread: float = 0.3) -> list[Game]:
    """`games` whose recorded log-probs are those of `logprobs`, off by up to `spread` nats: weights around 1."""
    rng = random.Random(seed)

    def recorded(game: Game, completion: Completion) -> Completion:
        own = chosen(logprobs(game, completion), completion).tolist()
        return replace(completion, logprobs=tuple(value + rng.uniform(-spread, spread) for value in own))

    return [
        replace(
            game,
            players=tuple(recorded(game, completion) for completion in game.players),
            opponents=tuple(recorded(game, completion) for completion in game.opponents),
        )
        for game in games
    ]


def conversed(games: Sequence[Game], seed: int) -> list[Game]:
    """`games` in which an environment wrote some tokens between the first and the last of each completion of three."""
    rng = random.Random(seed)

    def with_given(completion: Completion) -> Completion:
        start, length = rng.randint(1, 2), len(completion.token_ids)
        given = ((start, rng.randint(start + 1, length - 1)),) if length > start + 1 else ()
        return replace(completion, given=given)

    return [
        replace(game, players=tuple(map(with_given, game.players)), opponents=tuple(map(with_given, game.opponents)))
        for game in games
    ]


def of_model(model: torch.nn.Module, temperature: float) -> LogProbs:
    """The next-token log-probs of a transformers model, from its own logits.

    Of a completion they are computed once, and once more with a gradient: the model's weights must stay.
    """
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], Tensor] = {}

    def logprobs(game: Game, completion: Completion) -> Tensor:
        key = (game.prompt_token_ids, completion.token_ids)
        if key not in known or (torch.is_grad_enabled() and not known[key].requires_grad):
            start = len(game.prompt_token_ids)
            ids = torch.tensor([*game.prompt_token_ids, *completion.token_ids])
            logits = model(input_ids=ids[None]).logits[0, start - 1 : len(ids) - 1]
            known[key] = (logits.double() / temperature).log_softmax(-1)
        return known[key]

    return logprobs


def mixed(policy: LogProbs, reference: LogProbs, beta: float) -> LogProbs:
    """(1 - b) log pi + b log mu - log sum_v pi^(1-b) mu^b."""

    def logprobs(game: Game, completion: Completion) -> Tensor:
        mix = (1.0 - beta) * policy(game, completion) + beta * reference(game, completion)
        return mix - mix.exp().sum(-1, keepdim=True).log()

    return logprobs


def chosen(logprobs: Tensor, completion: Completion) -> Tensor:
    """[n] log-probs of the tokens that the policy sampled, one by one."""
    given = {t for start, end in completion.given for t in range(start, end)}
    return torch.stack([logprobs[t, token] for t, token in enumerate(completion.token_ids) if t not in given])


@dataclass
class SlowGame:
    """One game's loss, carrying the gradient, its players' advantages and their mean preference and log-ratio.

    `rloo` has no preference to tell; what stands there means nothing.
    """

    loss: Tensor
    advantages: list[float]
    preference: float
    kl: float


def slow_game(game: Game, policy: LogProbs, reference: LogProbs, opponent: LogProbs, config: Loss) -> SlowGame:
    """The game's loss by its definition (docs/losses.md), term by term."""
    fix, players, drawn = config.correction, len(game.players), bool(game.opponents)
    half = players // 2
    everyone = range(len(game.completions))
    rivals = [
        list(everyone[players:]) if drawn else [j for j in everyone if (j < half) != (i < half)] for i in range(players)
    ]
    pi = [chosen(policy(game, c), c) for c in game.completions]
    with torch.no_grad():
        mu = [chosen(reference(game, c), c) for c in game.completions]
        now = [chosen(opponent(game, c), c) for c in game.completions]
    recorded = [
        [x for t, x in enumerate(c.logprobs) if not any(s <= t < e for s, e in c.given)] for c in game.completions
    ]
    b = [torch.tensor(values, dtype=torch.float64) for values in recorded]
    w = [_token_weights(pi[i].detach() - b[i], fix.players, fix.player_cap, fix.beyond_cap) for i in everyone]
    level, cap = (fix.opponents, fix.opponent_cap) if isinstance(fix, CorrectionConfig) else ("none", 1.0)
    w_rival = [_whole(_token_weights(now[i] - b[i], level, cap, fix.beyond_cap), level) for i in everyone]
    w_player = [_whole(w[i], fix.players) for i in everyone]
    ratio = [(pi[i].detach() - mu[i]) for i in everyone]
    h = [(pi[i] - mu[i]).sum() for i in everyone]
    if config.kind == "rloo":
        value = list(game.scores)
        peers = [[j for j in range(players) if j != i] for i in range(players)]
    else:
        value = [
            sum(w_rival[j] * (game.preferences[i][j] - 0.5) for j in rivals[i]) / len(rivals[i]) for i in range(players)
        ]
        peers = [[j for j in range(players) if j != i and rivals[j] == rivals[i]] for i in range(players)]
    advantage = [value[i] - config.tau * float(ratio[i].sum()) for i in range(players)]

    if config.kind == "online_ipo":
        terms = [
            w_player[i] * w_player[j] * (h[i] - h[j] - (value[i] - value[j]) / config.tau) ** 2
            for i in range(players)
            for j in peers[i]
        ]
        loss = sum(terms) / len(terms)
    elif config.kind == "ipo_md":
        both = [(i, j) for i in everyone for j in everyone if i != j and (not drawn or min(i, j) >= players)]
        margin = 1.0 / (2.0 * config.tau)
        terms = [
            w_rival[i] * w_rival[j] * (
                game.preferences[i][j] * (h[i] - h[j] - margin) ** 2
                + game.preferences[j][i] * (h[j] - h[i] - margin) ** 2
            )
            for i, j in both
        ]  # fmt: skip
        loss = sum(terms) / len(terms)
    else:
        loss = torch.zeros((), dtype=torch.float64)
        for i in range(players):
            base = sum(advantage[j] for j in peers[i]) / len(peers[i]) if fix.baseline == "leave_one_out" else 0.0
            for t in range(len(pi[i])):
                charged = ratio[i].sum() if fix.kl == "sequence" else ratio[i][t:].sum()
                loss = loss - w[i][t] * (value[i] - config.tau * charged - base) * pi[i][t] / players
    kl = sum(float(ratio[i].sum()) for i in range(players)) / players
    return SlowGame(loss, advantage, sum(value[:players]) / players + 0.5, kl)


def _whole(weights: Tensor, level: str) -> float:
    """A completion's weight from those of its tokens."""
    return math.prod(weights.tolist()) if level == "token" else float(weights[0])


def _token_weights(log_ratio: Tensor, level: str, cap: float, beyond: str) -> Tensor:
    if level == "none":
        return torch.ones_like(log_ratio)
    ratio = (log_ratio if level == "token" else log_ratio.sum().expand_as(log_ratio)).exp()
    if beyond == "mask":
        return torch.where((ratio > cap) | (ratio < 1.0 / cap), 0.0, ratio)
    return torch.minimum(ratio, torch.tensor(cap))
