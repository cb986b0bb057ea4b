"""The embedded world: 16 prompts, 259 complete responses, and two preferences known in closed form.

It is so small that enumeration gives exact win rates, divergences and exploitability. This module holds the language,
the gold preferences and the corpus for supervised training. Must not import torch or know policies;
`learner.world.exact` does.

A prompt is `<bos> P Q <sep>`, P a colour (p = 0..3) and Q a direction (q = 0..3). A response is up to three of six
symbols and then `<eos>`. The symbols form a tree: node 0 is the empty response and node i has the children
6i + 1 .. 6i + 6. Nodes 0..258 are the complete responses in order of length; nodes 259..1554 are the four-symbol
sequences, which reached the length limit without `<eos>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import pairwise, product
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from actors.errors import UsageError
from actors.records import Completion, Prompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Task = Literal["transitive", "intransitive"]

PAD, BOS, EOS, SEP = range(4)
SPECIAL_WORDS = ("<pad>", "<bos>", "<eos>", "<sep>")
RESPONSE_WORDS = ("stone", "granite", "paper", "page", "scissors", "shears")
FAMILIES = ("rock", "paper", "scissors")
"""Family f holds the symbols 2f and 2f + 1."""
COLOURS = ("red", "green", "blue", "gold")
DIRECTIONS = ("north", "east", "south", "west")
VOCABULARY = (*SPECIAL_WORDS, *RESPONSE_WORDS, *COLOURS, *DIRECTIONS)

SYMBOLS = len(RESPONSE_WORDS)
FIRST_SYMBOL = len(SPECIAL_WORDS)
FIRST_COLOUR = FIRST_SYMBOL + SYMBOLS
FIRST_DIRECTION = FIRST_COLOUR + len(COLOURS)
PROMPTS = len(COLOURS) * len(DIRECTIONS)
MAX_SYMBOLS = 3
MAX_NEW_TOKENS = MAX_SYMBOLS + 1
POLICY_SETTINGS_FILE = "sft.json"
"""Marks a model directory as a policy of this world; written by its supervised training."""
STOP_TOKEN_IDS = tuple(i for i in range(len(VOCABULARY)) if i != EOS and not FIRST_SYMBOL <= i < FIRST_COLOUR)
"""Tokens that no response may contain. A generator stops at one, and the completion is INVALID."""

SEQUENCES: tuple[tuple[int, ...], ...] = tuple(
    symbols for length in range(MAX_NEW_TOKENS + 1) for symbols in product(range(SYMBOLS), repeat=length)
)
"""The 1555 nodes of the tree as symbols 0..5, node i at index i."""
RESPONSES = SEQUENCES[: sum(SYMBOLS**length for length in range(MAX_NEW_TOKENS))]
NOEOS = len(RESPONSES)
"""Outcome of a completion whose first four tokens are symbols."""
INVALID = NOEOS + 1  # outcome of a completion with any other token
OUTCOMES = INVALID + 1

NO_FAMILY = -1
WORST_REWARD = -1.0
WORST_QUALITY = -3.0
FAMILY_LOGIT = 2.0
QUALITY_LOGIT = 1.5

LENGTH_PROBS = (0.01, 0.19, 0.40, 0.40)
FAMILY_PROBS = (0.6, 0.3, 0.1)
SAME_FAMILY_PROB = 0.7
WANTED_PROB = 0.3
NOEOS_PROB = 0.02


def wanted_symbol(p: int, q: int) -> int:
    """Return the symbol (0..5) that prompt (p, q) rewards."""
    return (p + q) % SYMBOLS


def _repeats(symbols: Sequence[int]) -> int:
    return sum(left == right for left, right in pairwise(symbols))


def reward(p: int, q: int, symbols: Sequence[int]) -> float:
    """Compute the transitive task's gold reward r* of a complete response, in -1 .. 3.5.

    r* = sum_t 1[y_t = (p + 2t) mod 6] + 0.5 * 1[wanted in y] - 0.5 * (adjacent repeats), t from 0; the empty
    response gets -1.
    """
    if not symbols:
        return WORST_REWARD
    hits = sum(symbol == (p + 2 * t) % SYMBOLS for t, symbol in enumerate(symbols))
    return hits + 0.5 * (wanted_symbol(p, q) in symbols) - 0.5 * _repeats(symbols)


def quality(p: int, q: int, symbols: Sequence[int]) -> float:
    """Compute the intransitive task's quality: 1[wanted in y] - 0.5 * (adjacent repeats); -3 if empty."""
    if not symbols:
        return WORST_QUALITY
    return float(wanted_symbol(p, q) in symbols) - 0.5 * _repeats(symbols)


def family(symbols: Sequence[int]) -> int:
    """Return the family (0 rock, 1 paper, 2 scissors) with most symbols. On a tie the first symbol's; -1 if empty."""
    if not symbols:
        return NO_FAMILY
    families = [symbol // 2 for symbol in symbols]
    return max(families, key=families.count)


def _read_only(table: NDArray[Any]) -> NDArray[Any]:
    """Make a cached table read-only, so that readers cannot change it."""
    table.flags.writeable = False
    return table


@cache
def outcome_families() -> NDArray[np.intp]:
    """Return the family of every outcome, [261]; -1 for none."""
    return _read_only(np.array([family(y) for y in RESPONSES] + [NO_FAMILY, NO_FAMILY]))


def cycle_direction(prompt_index: int) -> int:
    """Return s(x) of the intransitive task: 1 if paper beats rock, scissors paper and rock scissors; else -1."""
    return 1 if prompt_index // len(DIRECTIONS) < 2 else -1


def sigmoid(x: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute 1 / (1 + exp(-x)) without overflow."""
    return 0.5 * (1.0 + np.tanh(0.5 * x))


def prompt_rows() -> list[dict[str, str]]:
    """Return the 16 prompts in order of `4p + q`, as rows such as `{"prompt": "red north"}`."""
    return [{"prompt": f"{colour} {direction}"} for colour, direction in product(COLOURS, DIRECTIONS)]


def prompt_token_ids(prompt_index: int) -> tuple[int, ...]:
    """Return `<bos> P Q <sep>` of prompt `4p + q`."""
    p, q = divmod(prompt_index, len(DIRECTIONS))
    return BOS, FIRST_COLOUR + p, FIRST_DIRECTION + q, SEP


def prompt_index_of(prompt: Prompt) -> int:
    """Return the index `4p + q` of a prompt, by its tokens. Raises UsageError if it is not one of the world's."""
    for index in range(PROMPTS):
        if prompt.token_ids == prompt_token_ids(index):
            return index
    raise UsageError(
        f"prompt {prompt.id!r} ({prompt.text!r}, tokens {list(prompt.token_ids)}) is not one of the embedded world's "
        f"{PROMPTS}, such as 'red north' with tokens {list(prompt_token_ids(0))}; the judges gold and bradley_terry "
        "judge no others: set prompts.source and model.path to 'world', or choose another judge"
    )


def outcome(token_ids: Sequence[int]) -> int:
    """Return the outcome (0..260) of a completion: a complete response, NOEOS or INVALID, by its first four tokens."""
    node = 0
    for token in token_ids[:MAX_NEW_TOKENS]:
        if token == EOS:
            return node
        if not FIRST_SYMBOL <= token < FIRST_COLOUR:
            return INVALID
        node = SYMBOLS * node + 1 + token - FIRST_SYMBOL
    return NOEOS


class World:
    """The gold preference of one task.

    `transitive`: P(y > y' | x) = sigmoid(r*(x, y) - r*(x, y')), a Bradley-Terry preference.
    `intransitive`: P(y > y' | x) = sigmoid(2 s(x) C[c(y), c(y')] + 1.5 (q(x, y) - q(x, y'))), where c is the family,
    C[i, j] is +1 if i beats j (paper beats rock, scissors paper, rock scissors), -1 if j beats i, else 0, and s(x) is
    +1 for p < 2, else -1: half of the prompts play the game the other way round. No reward explains this preference.

    `seed` fixes only the noise of `proxy_rewards`.
    """

    def __init__(self, task: Task, seed: int = 0) -> None:
        if task not in get_args(Task):
            raise UsageError(
                f"unknown world task {task!r}; allowed are {', '.join(get_args(Task))}: set world.task to one"
            )
        self.task = task
        self.seed = seed
        prompts = [divmod(index, len(DIRECTIONS)) for index in range(PROMPTS)]
        self.rewards = _table([[reward(p, q, y) for y in RESPONSES] for p, q in prompts], WORST_REWARD)
        """r* of every outcome, [16, 261]."""
        self.qualities = _table([[quality(p, q, y) for y in RESPONSES] for p, q in prompts], WORST_QUALITY)
        """q of every outcome, [16, 261]."""
        self.families = outcome_families()  # family of every outcome, [261]; -1 for none

    def preference_matrix(self, prompt_index: int) -> NDArray[np.float64]:
        """Return P [261, 261]: entry [i, j] is the probability that outcome i is preferred to outcome j."""
        return self._preferences(prompt_index, np.arange(OUTCOMES))

    def scores(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[float, ...] | None:
        """Return the gold reward r* of each completion; None in the intransitive task, which has no reward."""
        if self.task == "intransitive":
            return None
        rewards = self.rewards[prompt_index_of(prompt)]
        return tuple(float(rewards[outcome(completion.token_ids)]) for completion in completions)

    def preferences(self, prompt: Prompt, completions: Sequence[Completion]) -> tuple[tuple[float, ...], ...]:
        """Return P [K][K]: entry [i][j] is the probability that completion i is preferred to j; 1/2 on the diagonal."""
        found = np.array([outcome(completion.token_ids) for completion in completions], dtype=np.intp)
        matrix = self._preferences(prompt_index_of(prompt), found)
        return tuple(tuple(map(float, row)) for row in matrix)

    def proxy_rewards(self, noise: float = 0.5) -> NDArray[np.float64]:
        """Return r* [16, 261] plus `noise` times a normal fixed by the seed, a reward model's systematic error.

        NOEOS and INVALID get no noise: a rule, not a model, assigns their reward.
        """
        errors = np.random.default_rng(self.seed).standard_normal(self.rewards.shape)
        errors[:, NOEOS:] = 0.0
        return self.rewards + noise * errors

    def _preferences(self, prompt_index: int, found: NDArray[np.intp]) -> NDArray[np.float64]:
        """Compute the preferences among the outcomes `found`, [k] -> [k, k]."""
        if self.task == "transitive":
            rewards = self.rewards[prompt_index, found]
            return sigmoid(rewards[:, None] - rewards[None, :])
        qualities, families = self.qualities[prompt_index, found], self.families[found]
        lead = (families[:, None] - families[None, :]) % len(FAMILIES)
        beats = np.select([lead == 1, lead == 2], [1.0, -1.0], 0.0)
        beats[families == NO_FAMILY, :] = 0.0
        beats[:, families == NO_FAMILY] = 0.0
        beats *= cycle_direction(prompt_index)
        return sigmoid(FAMILY_LOGIT * beats + QUALITY_LOGIT * (qualities[:, None] - qualities[None, :]))


def _table(responses: list[list[float]], worst: float) -> NDArray[np.float64]:
    """Append `worst` for NOEOS and INVALID to the values of the 259 responses per prompt: [16, 261]."""
    return np.pad(np.array(responses), ((0, 0), (0, 2)), constant_values=worst)


@cache
def corpus_probabilities(prompt_dependent: bool = True) -> NDArray[np.float64]:
    """Compute the probability of each of the 1555 nodes as a corpus response, [16, 1555]; rows sum to 1.

    Lengths 0..3 have the probabilities .01 .19 .40 .40, and 2% of the responses are four symbols without `<eos>`. The
    first symbol's family is drawn with the probabilities .6 .3 .1; each later symbol comes from the same family with
    probability .7, else from all six. A prompt-dependent corpus rotates the families by p and, with probability .3,
    replaces one symbol by the wanted one, so that a policy trained on it learns to read the prompt.
    """
    lengths = [(1.0 - NOEOS_PROB) * prob for prob in LENGTH_PROBS] + [NOEOS_PROB]
    table = np.zeros((PROMPTS, len(SEQUENCES)))
    for index in range(PROMPTS):
        p, q = divmod(index, len(DIRECTIONS))
        turn, wanted = (p, wanted_symbol(p, q)) if prompt_dependent else (0, None)
        of_length = [prob * _symbol_probabilities(length, turn, wanted) for length, prob in enumerate(lengths)]
        table[index] = np.concatenate([probs.reshape(-1) for probs in of_length])
    return _read_only(table)


@cache
def corpus_outcome_probabilities(prompt_dependent: bool = True) -> NDArray[np.float64]:
    """Compute the probability of each outcome of a corpus response, [16, 261]; rows sum to 1, INVALID has 0."""
    table = np.zeros((PROMPTS, OUTCOMES))
    nodes = corpus_probabilities(prompt_dependent)
    table[:, :NOEOS] = nodes[:, :NOEOS]
    table[:, NOEOS] = nodes[:, NOEOS:].sum(axis=1)
    return _read_only(table)


@cache
def family_cycle() -> NDArray[np.intp]:
    """Return each prompt's families around its cycle, [16, 3]: first the corpus's favourite; each next beats the last.

    Prompts differ in the favourite and in the cycle's direction; in this order their games are alike.
    """
    families = outcome_families()
    corpus_table = corpus_outcome_probabilities()
    cycle = np.empty((PROMPTS, len(FAMILIES)), dtype=np.intp)
    for index in range(PROMPTS):
        shares = [corpus_table[index, families == f].sum() for f in range(len(FAMILIES))]
        favourite, direction = int(np.argmax(shares)), cycle_direction(index)
        cycle[index] = [(favourite + step * direction) % len(FAMILIES) for step in range(len(FAMILIES))]
    return _read_only(cycle)


def _symbol_probabilities(length: int, turn: int, wanted: int | None) -> NDArray[np.float64]:
    """Compute the joint probability of `length` corpus symbols, one axis of 6 per symbol."""
    if length == 0:
        return np.ones(())
    families = np.arange(SYMBOLS) // 2
    joint = np.array(FAMILY_PROBS)[(families - turn) % len(FAMILIES)] / 2
    later = SAME_FAMILY_PROB * (families[:, None] == families[None, :]) / 2 + (1.0 - SAME_FAMILY_PROB) / SYMBOLS
    for position in range(1, length):
        joint = joint[..., None] * later.reshape(SYMBOLS, *(1,) * (position - 1), SYMBOLS)
    if wanted is None:
        return joint
    replaced = np.zeros_like(joint)
    for axis in range(length):
        np.moveaxis(replaced, axis, 0)[wanted] += joint.sum(axis=axis) / length
    return (1.0 - WANTED_PROB) * joint + WANTED_PROB * replaced


def corpus_entropy(prompt_dependent: bool = True) -> float:
    """Return the entropy of a corpus response given its prompt (nats, mean over prompts): the lowest reachable loss."""
    probs = corpus_probabilities(prompt_dependent)
    return float(-(probs * np.log(np.where(probs > 0.0, probs, 1.0))).sum(axis=1).mean())


def corpus_responses(
    prompts: NDArray[np.int64], rng: np.random.Generator, prompt_dependent: bool = True
) -> NDArray[np.int64]:
    """Sample a corpus response for each of the prompt indices [n]: tokens [n, 4].

    A response is its symbols and `<eos>`, padded with `<pad>`, or four symbols without `<eos>`.
    """
    cumulative = np.cumsum(corpus_probabilities(prompt_dependent), axis=1)
    # Row x shifted by x: the rows become one increasing array, and one search serves all prompts.
    shifted = (cumulative / cumulative[:, -1:] + np.arange(PROMPTS)[:, None]).reshape(-1)
    nodes = np.searchsorted(shifted, prompts + rng.random(len(prompts)), side="right") - prompts * len(SEQUENCES)
    return response_tokens()[nodes]


@cache
def response_tokens() -> NDArray[np.int64]:
    """Return the tokens of every node as a response, [1555, 4]: symbols, `<eos>` if it fits, `<pad>`."""
    tokens = np.full((len(SEQUENCES), MAX_NEW_TOKENS), PAD, dtype=np.int64)
    for node, symbols in enumerate(SEQUENCES):
        tokens[node, : len(symbols)] = np.array(symbols, dtype=np.int64) + FIRST_SYMBOL
        if len(symbols) < MAX_NEW_TOKENS:
            tokens[node, len(symbols)] = EOS
    return _read_only(tokens)


def tokenizer() -> PreTrainedTokenizerFast:
    """Make the tokenizer: one token per word, no unknown words. "red north" becomes `<bos> red north <sep>`."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(WordLevel({word: index for index, word in enumerate(VOCABULARY)}))
    words.pre_tokenizer = WhitespaceSplit()
    words.post_processor = TemplateProcessing(single="<bos> $A <sep>", special_tokens=[("<bos>", BOS), ("<sep>", SEP)])
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        sep_token="<sep>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )
