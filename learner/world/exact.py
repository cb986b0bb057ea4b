"""Exact evaluation in the embedded world: probabilities by enumeration instead of samples.

A response is one of 259, so a policy is a table and win rates, divergences and exploitability are sums over it,
without sampling error. This module must not know how a policy was trained or where prompts come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from actors import world as world_module
from actors.errors import UsageError
from actors.hub import require_safetensors
from actors.world import EOS, FIRST_COLOUR, FIRST_SYMBOL, INVALID, MAX_SYMBOLS, NOEOS, PROMPTS, SYMBOLS, World
from learner.games import tabular

PREFIXES = NOEOS
"""A policy decides after each of the 259 nodes with fewer than four symbols."""
LEVELS = np.cumsum([0] + [SYMBOLS**length for length in range(MAX_SYMBOLS + 2)])
"""The nodes with L symbols are LEVELS[L] .. LEVELS[L + 1] - 1."""


@dataclass(frozen=True, eq=False)
class ExactPolicy:
    """A policy as a table of its next-token distributions."""

    token_logprobs: NDArray[np.float64]
    """[16, 259, 18]: log-prob (nats) of each token after each prefix, per prompt; prefixes are `world.RESPONSES`."""

    @cached_property
    def node_logprobs(self) -> NDArray[np.float64]:
        """[16, 1555]: log-prob that a response begins with the symbols of each node of `world.SEQUENCES`."""
        nodes = np.zeros((PROMPTS, LEVELS[-1]))
        for length in range(MAX_SYMBOLS + 1):
            parents = slice(LEVELS[length], LEVELS[length + 1])
            steps = self.token_logprobs[:, parents, FIRST_SYMBOL:FIRST_COLOUR]
            children = nodes[:, parents, None] + steps
            nodes[:, LEVELS[length + 1] : LEVELS[length + 2]] = children.reshape(PROMPTS, -1)
        return nodes

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """[16, 261]: probability of each outcome; each row sums to 1."""
        reached = np.exp(self.node_logprobs)
        tokens = np.exp(self.token_logprobs)
        invalid = tokens[..., world_module.STOP_TOKEN_IDS].sum(axis=-1)
        outcomes = np.empty((PROMPTS, world_module.OUTCOMES))
        outcomes[:, :NOEOS] = reached[:, :PREFIXES] * tokens[..., EOS]
        outcomes[:, NOEOS] = reached[:, PREFIXES:].sum(axis=1)
        outcomes[:, INVALID] = (reached[:, :PREFIXES] * invalid).sum(axis=1)
        return outcomes

    @property
    def logprobs(self) -> NDArray[np.float64]:
        """[16, 261]: log-prob (nats) of each outcome."""
        with np.errstate(divide="ignore"):
            return np.log(self.probabilities)


@dataclass(frozen=True, eq=False)
class OutcomeTable:
    """A policy of which only the probabilities of outcomes are known, such as the corpus or a Nash policy."""

    probabilities: NDArray[np.float64]
    """[16, 261]; each row sums to 1."""


Policy = ExactPolicy | OutcomeTable
"""What metrics over outcomes read: anything with `probabilities`."""


@torch.no_grad()
def exact_policy(model: PreTrainedModel, temperature: float = 1.0) -> ExactPolicy:
    """The table of `model`, sampled at `temperature`, from one forward pass over the tree of all prefixes.

    Every prefix sees its prompt and its own beginning alone, at the positions that it would have by itself.

    Raises UsageError when the model's vocabulary is not the world's.
    """
    vocabulary = len(world_module.VOCABULARY)
    if model.config.vocab_size != vocabulary:
        raise UsageError(
            f"exact evaluation needs a policy over the embedded world's {vocabulary} tokens, and this model has "
            f"{model.config.vocab_size}; evaluate it by sampling, or train one with `offbeat sft` on the world"
        )
    input_ids, positions, visible = (tensor.to(model.device) for tensor in _prefix_tree())
    logits = model(
        input_ids=input_ids, position_ids=positions, attention_mask=visible, use_cache=False, logits_to_keep=PREFIXES
    ).logits
    return ExactPolicy(torch.log_softmax(logits.double() / temperature, dim=-1).cpu().numpy())


@cache
def _prefix_tree() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Token ids [16, t] of each prompt and its prefixes, positions [1, t] and who sees whom [1, 1, t, t].

    The prompt comes first, then the last symbol of each prefix but the empty one, which the prompt itself stands for.
    """
    prompts = torch.tensor([world_module.prompt_token_ids(index) for index in range(PROMPTS)])
    start = prompts.shape[1]
    symbols = torch.tensor([FIRST_SYMBOL + prefix[-1] for prefix in world_module.RESPONSES[1:]])
    lengths = torch.tensor([len(prefix) for prefix in world_module.RESPONSES[1:]])
    size = start + len(symbols)
    visible = torch.zeros(size, size, dtype=torch.bool)
    visible[:start, :start] = torch.ones(start, start).tril().bool()
    visible[start:, :start] = True
    for node in range(1, PREFIXES):
        row, parent = start + node - 1, (node - 1) // SYMBOLS
        if parent:
            visible[row] |= visible[start + parent - 1]
        visible[row, row] = True
    positions = torch.cat([torch.arange(start), start - 1 + lengths])
    return torch.cat([prompts, symbols.expand(PROMPTS, -1)], dim=1), positions[None], visible[None, None]


def load_policy(directory: str | Path, temperature: float = 1.0) -> ExactPolicy:
    """The table of the Hugging Face model in `directory`, computed in float32.

    Raises UsageError when there is no model, or not one of the embedded world's.
    """
    if not (Path(directory) / "config.json").is_file():
        raise UsageError(
            f"no model in {str(directory)!r}: it has no config.json; give a Hugging Face model directory, such as a "
            "run's final/"
        )
    require_safetensors(directory)
    disable_progress_bar()  # it would run through what a run shows
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    return exact_policy(model.eval(), temperature)


def exact_kl(policy: ExactPolicy, reference: ExactPolicy) -> float:
    """KL(policy || reference) in nats per response, mean over prompts.

    By the chain rule over tokens: the sum over prefixes of the policy's probability to get there times the divergence
    of the next token there. NOEOS and INVALID are thus not lumped together; it is the expectation of the sampled
    sum of log-ratios over up to four tokens.
    """
    reached = np.exp(policy.node_logprobs[:, :PREFIXES])
    probs = np.exp(policy.token_logprobs)
    log_ratio = np.where(probs > 0.0, policy.token_logprobs - reference.token_logprobs, 0.0)
    return float((reached * (probs * log_ratio).sum(axis=-1)).sum(axis=1).mean())


def expected_preference(policy: Policy, reference: Policy, world: World) -> float:
    """P(y > y') for y of the policy and y' of the reference, mean over prompts; 1/2 when they are the same."""
    return float(np.mean([policy.probabilities[x] @ _preferences_over(reference, world, x) for x in range(PROMPTS)]))


def exact_win_rate(policy: Policy, reference: Policy, world: World) -> float:
    """How often the policy's response is the better one, mean over prompts.

    Transitive task: P(r* > r*') + P(r* = r*') / 2. Intransitive task, where no response is better in itself: the
    expected preference.
    """
    if world.task == "intransitive":
        return expected_preference(policy, reference, world)
    wins = 0.0
    for x in range(PROMPTS):
        rewards = world.rewards[x]
        better = 0.5 * (1.0 + np.sign(rewards[:, None] - rewards[None, :]))
        wins += policy.probabilities[x] @ better @ reference.probabilities[x]
    return float(wins / PROMPTS)


def expected_reward(policy: Policy, world: World) -> float:
    """Mean gold reward r* of the policy's outcomes, over prompts."""
    return float((policy.probabilities * world.rewards).sum(axis=1).mean())


def exploitability(policy: Policy, world: World) -> float:
    """How far the best answer to the policy beats it: max_y P(y > policy) - 1/2, mean over prompts.

    0 for a Nash policy of the preference, which no competitor beats; at most 1/2. A best response needs no mixing,
    so the maximum over single outcomes is the maximum over all policies.
    """
    return float(np.mean([_preferences_over(policy, world, x).max() - 0.5 for x in range(PROMPTS)]))


def regularised_gap(policy: Policy, reference: Policy, world: World, tau: float) -> float:
    """Duality gap of the regularised game at (policy, policy), mean over prompts; 0 at its Nash policy alone.

    The regularised preference is P(pi > pi') - tau KL(pi || reference) + tau KL(pi' || reference), with divergences
    between outcomes, in which all of NOEOS is one and all of INVALID another. inf where the policy has mass and the
    reference none.

    Raises UsageError unless tau > 0.
    """
    gaps = np.empty(PROMPTS)
    for x in range(PROMPTS):
        pi, mu = policy.probabilities[x], reference.probabilities[x]
        seen = mu > 0.0
        among = world.preference_matrix(x)[np.ix_(seen, seen)]
        gaps[x] = np.inf if pi[~seen].any() else tabular.regularised_gap(among, pi[seen], mu[seen], tau)
    return float(gaps.mean())


def family_shares(policy: Policy) -> NDArray[np.float64]:
    """[16, 4]: per prompt the probability of rock, paper, scissors and of no family (empty, NOEOS, INVALID)."""
    families = world_module.outcome_families()
    shares = [policy.probabilities[:, families == f].sum(axis=1) for f in range(len(world_module.FAMILIES))]
    return np.stack([*shares, policy.probabilities[:, families == world_module.NO_FAMILY].sum(axis=1)], axis=1)


def relative_family_shares(policy: Policy) -> NDArray[np.float64]:
    """[16, 4]: `family_shares` with each prompt's families in the order of `world.family_cycle`.

    The corpus's favourite, the family that beats it, the family that beats that, none: in this order prompts can be
    averaged, though their favourites and the direction of the game differ.
    """
    shares = family_shares(policy)
    return np.concatenate([np.take_along_axis(shares, world_module.family_cycle(), axis=1), shares[:, 3:]], axis=1)


def corpus_cross_entropy(policy: ExactPolicy) -> float:
    """Expected supervised loss on the corpus, in nats per response, mean over prompts; at least `corpus_entropy()`."""
    responses = np.concatenate(
        [policy.node_logprobs[:, :PREFIXES] + policy.token_logprobs[..., EOS], policy.node_logprobs[:, PREFIXES:]],
        axis=1,
    )
    probs = world_module.corpus_probabilities()
    return float(-(probs * responses).sum(axis=1).mean())


def _preferences_over(policy: Policy, world: World, prompt_index: int) -> NDArray[np.float64]:
    """[261]: probability that each outcome is preferred to a response of the policy."""
    return world.preference_matrix(prompt_index) @ policy.probabilities[prompt_index]
