"""Exact evaluation in the embedded world, by enumeration instead of sampling.

A response is one of 259, so a policy is a table, and preferences, KL and exploitability are sums over it without
sampling error. Must not depend on training or on the source of prompts.
"""

from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from actors import world as world_module
from actors.errors import UsageError
from actors.hub import require_safetensors
from actors.world import EOS, FIRST_COLOUR, FIRST_SYMBOL, INVALID, MAX_SYMBOLS, NOEOS, PROMPTS, SYMBOLS, World
from learner.games import tabular
from learner.world.quiet import silence

PREFIXES = NOEOS
"""Number of prefixes after which a policy chooses a token: the nodes with fewer than four symbols."""
LEVELS = np.cumsum([0] + [SYMBOLS**length for length in range(MAX_SYMBOLS + 2)])
"""Nodes with L symbols are LEVELS[L] .. LEVELS[L + 1] - 1."""


@dataclass(frozen=True, eq=False)
class ExactPolicy:
    """A policy as a table of its next-token distributions."""

    token_logprobs: NDArray[np.float64]
    """Log-prob (nats) of each token after each prefix of `world.RESPONSES`, per prompt, [16, 259, 18]."""

    @cached_property
    def node_logprobs(self) -> NDArray[np.float64]:
        """Log-prob (nats) that a response begins with the symbols of each node of `world.SEQUENCES`, [16, 1555]."""
        nodes = np.zeros((PROMPTS, LEVELS[-1]))
        for length in range(MAX_SYMBOLS + 1):
            parents = slice(LEVELS[length], LEVELS[length + 1])
            steps = self.token_logprobs[:, parents, FIRST_SYMBOL:FIRST_COLOUR]
            children = nodes[:, parents, None] + steps
            nodes[:, LEVELS[length + 1] : LEVELS[length + 2]] = children.reshape(PROMPTS, -1)
        return nodes

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Probability of each outcome, [16, 261]; each row sums to 1."""
        reached = np.exp(self.node_logprobs)
        tokens = np.exp(self.token_logprobs)
        invalid = tokens[..., world_module.STOP_TOKEN_IDS].sum(axis=-1)
        outcomes = np.empty((PROMPTS, world_module.OUTCOMES))
        outcomes[:, :NOEOS] = reached[:, :PREFIXES] * tokens[..., EOS]
        outcomes[:, NOEOS] = reached[:, PREFIXES:].sum(axis=1)
        outcomes[:, INVALID] = (reached[:, :PREFIXES] * invalid).sum(axis=1)
        return outcomes


@dataclass(frozen=True, eq=False)
class OutcomeTable:
    """A policy given only by the probabilities of outcomes, such as the corpus or a Nash policy."""

    probabilities: NDArray[np.float64]
    """Probability of each outcome, [16, 261]; each row sums to 1."""


Policy = ExactPolicy | OutcomeTable  # anything with outcome `probabilities`


@torch.no_grad()
def exact_policy(model: PreTrainedModel, temperature: float = 1.0) -> ExactPolicy:
    """Compute the table of `model` at `temperature` in one forward pass over the tree of all prefixes.

    Each prefix attends only to its prompt and its own beginning, at its usual positions. Raises UsageError if the
    model's vocabulary is not the world's.
    """
    vocabulary = len(world_module.VOCABULARY)
    if model.config.vocab_size != vocabulary:
        raise UsageError(
            f"exact evaluation needs a policy over the embedded world's {vocabulary} tokens, and this model has "
            f"{model.config.vocab_size}; evaluate it by sampling, or use a model trained in the embedded world"
        )
    input_ids, positions, visible = (tensor.to(model.device) for tensor in _prefix_tree())
    logits = model(
        input_ids=input_ids, position_ids=positions, attention_mask=visible, use_cache=False, logits_to_keep=PREFIXES
    ).logits
    return ExactPolicy(torch.log_softmax(logits.double() / temperature, dim=-1).cpu().numpy())


@cache
def _prefix_tree() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return token ids [16, t] of each prompt and its prefixes, positions [1, t] and attention mask [1, 1, t, t].

    The prompt comes first and stands for the empty prefix; then comes the last symbol of every other prefix.
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
    """Compute the table of the Hugging Face model in `directory`, in float32.

    Raises UsageError if there is no model, or its vocabulary is not the world's.
    """
    if not (Path(directory) / "config.json").is_file():
        raise UsageError(
            f"no model in {str(directory)!r}: it has no config.json; give a Hugging Face model directory, such as "
            "final/ of a run"
        )
    require_safetensors(directory)
    silence()
    model = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, use_safetensors=True, trust_remote_code=False
    )
    return exact_policy(model.eval(), temperature)


def exact_kl(policy: ExactPolicy, reference: ExactPolicy) -> float:
    """Compute KL(policy || reference) in nats per response, mean over prompts.

    Uses the chain rule over tokens: the sum over prefixes of the policy's probability of the prefix times the KL of the
    next token. So it is the expectation of the sampled sum of log-ratios, and distinguishes responses that share the
    outcome NOEOS or INVALID.
    """
    reached = np.exp(policy.node_logprobs[:, :PREFIXES])
    probs = np.exp(policy.token_logprobs)
    log_ratio = np.where(probs > 0.0, policy.token_logprobs - reference.token_logprobs, 0.0)
    return float((reached * (probs * log_ratio).sum(axis=-1)).sum(axis=1).mean())


def expected_preference(policy: Policy, reference: Policy, world: World) -> float:
    """Compute P(y > y') for y from the policy and y' from the reference, mean over prompts; 1/2 if they are equal."""
    return float(np.mean([policy.probabilities[x] @ _preferences_over(reference, world, x) for x in range(PROMPTS)]))


def exploitability(policy: Policy, world: World) -> float:
    """Compute the gain of the best response to the policy: max_y P(y > policy) - 1/2, mean over prompts.

    0 for a Nash policy of the preference; at most 1/2. A best response needs no mixing, so the maximum over single
    outcomes is the maximum over all policies.
    """
    return float(np.mean([_preferences_over(policy, world, x).max() - 0.5 for x in range(PROMPTS)]))


def regularised_gap(policy: Policy, reference: Policy, world: World, tau: float) -> float:
    """Compute the duality gap of the regularised game at (policy, policy), mean over prompts.

    The gap is 0 only at the game's Nash policy. The regularised preference is P(pi > pi') - tau KL(pi || reference) +
    tau KL(pi' || reference), with KL between outcomes; NOEOS and INVALID are one outcome each. inf if the policy has
    mass on an outcome and the reference none. Raises UsageError unless tau > 0.
    """
    gaps = np.empty(PROMPTS)
    for x in range(PROMPTS):
        pi, mu = policy.probabilities[x], reference.probabilities[x]
        seen = mu > 0.0
        among = world.preference_matrix(x)[np.ix_(seen, seen)]
        gaps[x] = np.inf if pi[~seen].any() else tabular.regularised_gap(among, pi[seen], mu[seen], tau)
    return float(gaps.mean())


def family_shares(policy: Policy) -> NDArray[np.float64]:
    """Compute the probability of rock, paper, scissors and no family (empty, NOEOS, INVALID) per prompt, [16, 4]."""
    families = world_module.outcome_families()
    shares = [policy.probabilities[:, families == f].sum(axis=1) for f in range(len(world_module.FAMILIES))]
    return np.stack([*shares, policy.probabilities[:, families == world_module.NO_FAMILY].sum(axis=1)], axis=1)


def relative_family_shares(policy: Policy) -> NDArray[np.float64]:
    """Reorder `family_shares` by each prompt's `world.family_cycle`, so that prompts can be averaged, [16, 4].

    The order is the corpus's favourite, the family that beats it, the family that beats that one, none.
    """
    shares = family_shares(policy)
    return np.concatenate([np.take_along_axis(shares, world_module.family_cycle(), axis=1), shares[:, 3:]], axis=1)


def corpus_cross_entropy(policy: ExactPolicy) -> float:
    """Compute the expected supervised loss on the corpus in nats per response, mean over prompts.

    At least `world.corpus_entropy()`.
    """
    responses = np.concatenate(
        [policy.node_logprobs[:, :PREFIXES] + policy.token_logprobs[..., EOS], policy.node_logprobs[:, PREFIXES:]],
        axis=1,
    )
    probs = world_module.corpus_probabilities()
    return float(-(probs * responses).sum(axis=1).mean())


def _preferences_over(policy: Policy, world: World, prompt_index: int) -> NDArray[np.float64]:
    """Compute the probability that each outcome is preferred to a response of the policy, [261]."""
    return world.preference_matrix(prompt_index) @ policy.probabilities[prompt_index]
