"""Corrections for staleness: Nash-MD and online DPO on the intransitive task at an exact lag.

    python -m benchmarks.lag [ROW ...] [--updates 400] [--output benchmarks/results/lag.json]
    python -m benchmarks.lag dpo-lag-16 dpo-lag-16-anchor --schedule constant --groups 32 --updates 1600 --seed 1 \
        --output benchmarks/results/anchor.json

The policy of update u is trained on completions that the policy of update u - LAG sampled (of update 0 before that).
Losses are the product's (`learner.losses`), on a language model with AdamW; sampling is from the exact distributions
of the policy at the prefixes that are reached, so the lag is exact and no time is spent on engines. What whole runs of
the system do is measured by `benchmarks.nash`. Online DPO compares half of a prompt's completions with the other half,
each by the world's own preference as a soft label. One thread per row; `--list` prints the rows.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.func import functional_call

from actors import world as world_module
from actors.world import PROMPTS, SYMBOLS, World
from benchmarks import record
from learner.losses.anchor import anchored, pulled_to
from learner.losses.config import GameLossConfig, PairLossConfig
from learner.losses.games import GameBatch, game_loss
from learner.losses.pairs import preference_loss
from learner.world import exact
from learner.world.equilibria import online_dpo_fixed_point

Lookup = Callable[[NDArray[np.int64], NDArray[np.int64]], torch.Tensor]
"""Takes prompts [n] and prefixes [n, m] (or [n]); returns log-probs [n, m, 18] (or [n, 18])."""
TOKENS = world_module.MAX_NEW_TOKENS
UNCORRECTED = {"baseline": "constant", "kl": "reward_to_go", "opponents": "none"}
"""Self-play on the policy's own samples as if they were fresh: constant baseline, reward-to-go, no weights."""
UNWEIGHTED = {"opponents": "none"}


@dataclass(frozen=True)
class Row:
    """One setting. `fresh`: lag of opponents drawn apart; None splits the players. `anchor`: weight and horizon."""

    lag: int
    correction: dict[str, Any] = field(default_factory=dict)
    fresh: int | None = None
    beta: float = 0.125
    kind: str = "nash_pg"
    anchor: tuple[float, int] | None = None


LAGS = (0, 2, 8, 16, 64, 256)


def _rows_of(lag: int) -> dict[str, Row]:
    """Return the hazard and its cures at one lag; an anchor looks back for twice the lag."""
    horizon = max(8, 2 * lag) if lag else 32
    return {
        f"lag-{lag}": Row(lag),
        f"lag-{lag}-uncorrected": Row(lag, UNCORRECTED),
        f"lag-{lag}-unweighted": Row(lag, UNWEIGHTED),
        f"lag-{lag}-fresh": Row(lag, fresh=0),
        f"lag-{lag}-anchor": Row(lag, UNWEIGHTED, anchor=(0.32, horizon)),
        f"lag-{lag}-weighted-anchor": Row(lag, anchor=(0.32, horizon)),
        f"dpo-lag-{lag}": Row(lag, kind="dpo"),
        f"dpo-lag-{lag}-fresh": Row(lag, fresh=0, kind="dpo"),
        f"dpo-lag-{lag}-anchor": Row(lag, kind="dpo", anchor=(0.8, horizon)),
    }


ROWS = {name: row for lag in LAGS for name, row in _rows_of(lag).items()} | {
    "lag-64-reward-to-go": Row(64, {"kl": "reward_to_go"}),
    "lag-64-cap-10": Row(64, {"opponent_cap": 10.0}),
    "lag-64-weighted-players": Row(64, {"players": "sequence"}),
    "lag-64-token-players": Row(64, {"players": "token", "kl": "reward_to_go"}),
    "lag-64-fresh-1": Row(64, fresh=1),
    "lag-64-fresh-online-ipo": Row(64, fresh=0, kind="online_ipo"),
}


class Experiment:
    """One row, from the starting policy in `start`."""

    def __init__(self, row: Row, start: Path, arguments: argparse.Namespace) -> None:
        from transformers import AutoModelForCausalLM

        self.row, self.arguments = row, arguments
        self.world = World("intransitive", 0)
        self.preferences = np.stack([self.world.preference_matrix(x) for x in range(PROMPTS)])
        self.model = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32).eval()
        self.reference = exact.exact_policy(self.model)
        kept = 1 + max(row.lag, row.fresh or 0)
        self.weights = deque([self._own_weights()], maxlen=kept)
        """Weights of the last `kept` versions, the newest last."""
        self.rng = np.random.default_rng(arguments.seed)
        self.order = np.array([], dtype=int)
        self.slow = copy.deepcopy(self.model).requires_grad_(False)
        self.loss: PairLossConfig | GameLossConfig
        if row.kind == "dpo":
            self.loss = PairLossConfig(kind="dpo", beta=arguments.beta)
        else:
            fields = {"kind": row.kind, "tau": arguments.tau, "correction": row.correction}
            self.loss = GameLossConfig.model_validate(fields)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=arguments.lr, betas=(0.9, 0.95), weight_decay=0.0, foreach=True
        )

    def run(self) -> dict[str, Any]:
        started, curve, ess = time.perf_counter(), [], []
        for update in range(self.arguments.updates):
            ess.append(self._update(update))
            self.weights.append(self._own_weights())
            if (update + 1) % 10 == 0:
                policy = exact.exact_policy(self.model)
                e, kl = exact.exploitability(policy, self.world), exact.exact_kl(policy, self.reference)
                curve.append([update + 1, e, kl, exact.expected_preference(policy, self.reference, self.world)])
        last = [point for point in curve if point[0] > self.arguments.tail * self.arguments.updates]
        return {
            "exploitability_tail": statistics.fmean(point[1] for point in last),
            "exploitability_tail_max": max(point[1] for point in last),
            "kl_tail": statistics.fmean(point[2] for point in last),
            "opponent_ess": statistics.fmean(ess),
            "seconds": time.perf_counter() - started,
            "curve": curve,
        }

    def _update(self, update: int) -> float:
        groups, players, row = self.arguments.groups, self.arguments.players, self.row
        prompts = self._prompts(groups)
        if row.fresh is None:
            drawn = [self._sample(min(row.lag, update), prompts, players)]
        else:
            each = (players // 2, players // 2) if row.kind == "dpo" else (players, self.arguments.opponents)
            lags = (min(row.lag, update), min(row.fresh, update))
            drawn = [self._sample(lag, prompts, count) for lag, count in zip(lags, each, strict=True)]
        tokens, mask, behaviour, outcomes = (np.concatenate(parts, axis=1) for parts in zip(*drawn, strict=True))
        present = torch.from_numpy(mask)
        policy, reference, opponent, slow = (each * present for each in self._logprobs(prompts, tokens))
        loss, weight = self.loss, 0.0 if row.anchor is None else row.anchor[0]
        preferences = torch.from_numpy(
            self.preferences[prompts[:, None, None], outcomes[:, :, None], outcomes[:, None]]
        ).float()
        if isinstance(loss, PairLossConfig):
            ess = 1.0
            half = players // 2
            prior = pulled_to(reference, slow, loss.beta, weight)
            (one, other), (m_one, m_other) = (each.sum(-1).split(half, dim=1) for each in (policy, prior))
            wins = torch.diagonal(preferences[:, :half, half:], dim1=1, dim2=2)
            value = preference_loss(one, other, m_one, m_other, anchored(loss, weight), wins).loss.mean()
        else:
            batch = GameBatch(
                policy=policy,
                reference=reference,
                behaviour=torch.from_numpy(behaviour).float(),
                opponent=opponent,
                mask=present,
                preferences=preferences,
                scores=torch.zeros(outcomes.shape),
                players=players,
                anchor=None if row.anchor is None else slow,
            )
            output = game_loss(batch, loss, anchor_weight=weight)
            value, ess = output.loss.mean(), float(output.metrics["opponent_ess"].mean())
        value.backward()
        self._step(update)
        return ess

    def _step(self, update: int) -> None:
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        left = 1.0 if self.arguments.schedule == "constant" else 1.0 - update / self.arguments.updates
        for group in self.optimizer.param_groups:
            group["lr"] = self.arguments.lr * left
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.row.anchor is not None:
            with torch.no_grad():
                for average, own in zip(self.slow.parameters(), self.model.parameters(), strict=True):
                    average.lerp_(own, 1.0 / self.row.anchor[1])

    def _prompts(self, count: int) -> NDArray[np.int64]:
        """The next `count` prompt indices; every prompt comes once before any comes again."""
        while len(self.order) < count:
            self.order = np.concatenate([self.order, self.rng.permutation(PROMPTS)])
        taken, self.order = self.order[:count], self.order[count:]
        return taken

    def _own_weights(self) -> dict[str, torch.Tensor]:
        return {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def _sample(self, lag: int, prompts: NDArray[np.int64], each: int) -> tuple[NDArray[Any], ...]:
        """`each` completions per prompt by the policy of `lag` updates ago.

        Tokens, mask, log-probs [g, n, 4]; outcomes [g, n].
        """
        weights, rows = self.weights[-1 - lag], prompts.repeat(each)
        count = len(rows)
        tokens, mask = np.zeros((count, TOKENS), dtype=np.int64), np.zeros((count, TOKENS), dtype=np.float32)
        logprobs, node, alive = np.zeros((count, TOKENS)), np.zeros(count, dtype=np.int64), np.ones(count, dtype=bool)
        outcomes = np.full(count, world_module.NOEOS)
        short = np.arange(exact.LEVELS[TOKENS - 1])[None].repeat(len(rows), axis=0)
        with torch.no_grad():
            table = Reached(rows, short).logprobs(self.model, weights)
            for t in range(TOKENS):
                if t == TOKENS - 1:
                    table = Reached(rows, node[:, None]).logprobs(self.model, weights)
                given = table(rows, node)
                cumulative = given.exp().cumsum(-1).numpy()
                token = (self.rng.random((count, 1)) * cumulative[:, -1:] > cumulative).sum(axis=-1)
                tokens[:, t], mask[:, t] = np.where(alive, token, 0), alive
                logprobs[:, t] = np.where(alive, given.numpy()[np.arange(count), token], 0.0)
                symbol = token - world_module.FIRST_SYMBOL
                goes_on = (symbol >= 0) & (symbol < SYMBOLS)
                ended = alive & ~goes_on
                outcomes[ended] = np.where(token == world_module.EOS, node, world_module.INVALID)[ended]
                alive &= goes_on
                node = np.where(alive & (t + 1 < TOKENS), SYMBOLS * node + 1 + symbol, 0)
        shaped = (tokens, mask, logprobs, outcomes)
        return tuple(values.reshape(len(prompts), each, *values.shape[1:]) for values in shaped)

    def _logprobs(self, prompts: NDArray[np.int64], tokens: NDArray[np.int64]) -> tuple[torch.Tensor, ...]:
        """Log-probs [g, n, 4] of policy (with gradient), reference, opponent and slow average."""
        g, n, _ = tokens.shape
        rows, nodes = prompts.repeat(n), _prefixes(tokens.reshape(-1, TOKENS))
        reached = Reached(rows, nodes)
        targets = torch.from_numpy(tokens.reshape(-1, TOKENS, 1))
        logits = reached.logprobs(self.model)(rows, nodes).float()
        given = torch.from_numpy(self.reference.token_logprobs[rows[:, None], nodes]).float()
        beta = self.row.beta
        mixture = ((1.0 - beta) * logits.detach() + beta * given).log_softmax(-1)
        slow = logits.detach()
        if self.row.anchor is not None:
            with torch.no_grad():
                slow = reached.logprobs(self.slow)(rows, nodes).float()
        return tuple(x.gather(-1, targets).reshape(g, n, TOKENS) for x in (logits, given, mixture, slow))


class Reached:
    """The prefixes that a batch reaches, prompt by prompt, each computed once with the beginnings it needs."""

    def __init__(self, rows: NDArray[np.int64], nodes: NDArray[np.int64]) -> None:
        """Collect `nodes` [n, m] (prefix numbers of `world.RESPONSES`) of prompts `rows` [n], and their beginnings."""
        tree_ids, tree_positions, tree_visible = exact._prefix_tree()
        start = tree_ids.shape[1] - exact.PREFIXES + 1
        needed = np.zeros((PROMPTS, exact.PREFIXES), dtype=bool)
        while nodes.any():
            needed[rows[:, None], nodes] = True
            nodes = np.maximum(nodes - 1, 0) // SYMBOLS
        needed[:, 0] = False  # the prompt's last token
        most = int(needed.sum(1).max())
        chosen = np.argsort(~needed, axis=1, kind="stable")[:, :most]
        self.places = np.zeros((PROMPTS, exact.PREFIXES), dtype=np.int64)
        np.put_along_axis(self.places, chosen, np.arange(1, most + 1)[None], axis=1)
        self.places[:, 0] = 0
        columns = torch.from_numpy(np.concatenate([np.arange(start)[None].repeat(PROMPTS, 0), start - 1 + chosen], 1))
        filled = torch.from_numpy(np.take_along_axis(needed, chosen, axis=1))
        visible = tree_visible[0, 0][columns[:, :, None], columns[:, None, :]]
        visible[:, :, start:] &= filled[:, None]
        visible |= torch.eye(columns.shape[1], dtype=torch.bool)
        self.inputs = {
            "input_ids": tree_ids.gather(1, columns),
            "position_ids": tree_positions[0][columns],
            "attention_mask": visible[:, None],
            "use_cache": False,
            "logits_to_keep": most + 1,
        }

    def logprobs(self, model: torch.nn.Module, weights: dict[str, torch.Tensor] | None = None) -> Lookup:
        """Compute the next-token log-probs (nats) of `model`, with `weights` in place of its own if given."""
        output = model(**self.inputs) if weights is None else functional_call(model, weights, (), self.inputs)
        table = output.logits.double().log_softmax(-1)

        def lookup(rows: NDArray[np.int64], nodes: NDArray[np.int64]) -> torch.Tensor:
            rows = rows.reshape(-1, *[1] * (nodes.ndim - 1))
            return table[rows, self.places[rows, nodes]]

        return lookup


def _prefixes(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    """The number of the prefix before each of `tokens` [n, 4]; any past a completion's end."""
    node, inside = np.zeros(tokens.shape, dtype=np.int64), np.ones(len(tokens), dtype=bool)
    for t in range(1, TOKENS):
        symbol = tokens[:, t - 1] - world_module.FIRST_SYMBOL
        inside &= (symbol >= 0) & (symbol < SYMBOLS)
        node[:, t] = np.where(inside, SYMBOLS * node[:, t - 1] + 1 + symbol, 0)
    return node


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help="default: all")
    parser.add_argument("--updates", type=int, default=400)
    parser.add_argument("--groups", type=int, default=64, help="prompts per update")
    parser.add_argument("--players", type=int, default=8)
    parser.add_argument("--opponents", type=int, default=8, help="where they are drawn apart")
    parser.add_argument("--tau", type=float, default=0.05)
    parser.add_argument("--beta", type=float, default=0.2, help="of online DPO")
    parser.add_argument("--lr", type=float, default=3e-4)
    parser.add_argument("--schedule", choices=("linear", "constant"), default="linear")
    parser.add_argument("--tail", type=float, default=0.9, help="share of the run after which its tail begins")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--start", type=Path, help="starting policy; unset: trained here")
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/lag.json"))
    parser.add_argument("--weight", type=float, help="of the anchor, in rows that have one; unset: the row's")
    parser.add_argument("--horizon", type=int, help="of the anchor, in rows that have one; unset: the row's")
    parser.add_argument("--list", action="store_true", help="print the rows, and stop")
    parser.add_argument("--point", action="store_true", help="write online DPO's own fixed point to OUTPUT, and stop")
    arguments = parser.parse_args()
    if arguments.list:
        for name, row in ROWS.items():
            print(f"{name}: {row}")
        return
    unknown = [name for name in arguments.rows if name not in ROWS]
    if unknown:
        parser.error(f"no row {unknown[0]!r}; the rows are {', '.join(ROWS)}")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        start = arguments.start or _start(Path(scratch) / "start", arguments.seed)
        if arguments.point:
            record.write(arguments.output, _point(start, arguments))
            return
        for name in arguments.rows or ROWS:
            row = _with_anchor(ROWS[name], arguments.weight, arguments.horizon)
            result = Experiment(row, start, arguments).run()
            settings = ("updates", "groups", "players", "opponents", "tau", "lr", "seed", "beta", "schedule", "tail")
            entry = {"row": name, **{key: getattr(arguments, key) for key in settings}, **result}
            if row.anchor is not None:
                entry["weight"], entry["horizon"] = row.anchor
            _add(arguments.output, entry, settings)
            print(f"{name}: exploitability {entry['exploitability_tail']:.3f}, KL {entry['kl_tail']:.2f}", flush=True)


def _with_anchor(row: Row, weight: float | None, horizon: int | None) -> Row:
    """Return a row with another weight or horizon of its anchor; a row without an anchor stays."""
    if row.anchor is None:
        return row
    return replace(row, anchor=(weight or row.anchor[0], horizon or row.anchor[1]))


def _start(directory: Path, seed: int) -> Path:
    from learner.world.policy import train_sft

    train_sft(directory, updates=300, seed=seed)
    return directory


def _point(start: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return figures of the start and of the policy where online DPO is at rest, by enumeration."""
    world, policy = World("intransitive", 0), exact.load_policy(start, 1.0)
    rest = online_dpo_fixed_point(world, policy.probabilities, arguments.beta)
    return {
        "beta": arguments.beta,
        "seed": arguments.seed,
        "start": exact.exploitability(policy, world),
        "exploitability": rest.exploitability,
        "kl": rest.kl,
    }


def _add(path: Path, entry: dict[str, Any], settings: tuple[str, ...]) -> None:
    """Put `entry` in the place of an older one of the same row, anchor and settings."""
    runs = json.loads(path.read_text())["runs"] if path.is_file() else []

    def key(run: dict[str, Any]) -> list[Any]:
        weight, horizon = ROWS[run["row"]].anchor or (None, None)
        anchor = [run.get("weight", weight), run.get("horizon", horizon)]
        return [run["row"], *anchor, *(run.get(name) for name in settings)]

    runs = [run for run in runs if key(run) != key(entry)]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"torch": torch.__version__, "runs": [*runs, entry]}) + "\n")


if __name__ == "__main__":
    main()
