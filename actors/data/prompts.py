"""Prompts: rows become token ids once, and an endless seeded order offers them by position.

The order is a pure function of position, so one integer is a run's place in the data. Must not know leases or
generators.
"""

from typing import Any

import numpy as np

from actors.data.config import PromptConfig
from actors.data.rows import check_problems
from actors.data.tokenised.reading import read_prompts
from actors.records import Prompt

EPOCH_STREAM, EVALUATION_STREAM = 0, 1


class PromptSource:
    """All prompts of a source, in an endless seeded order.

    Position `p` is in epoch `p // len(self)`. Each epoch has its own permutation, drawn by `numpy.random.Generator`
    with the seed (seed, epoch). Positions can be read in any order.
    """

    def __init__(self, config: PromptConfig, tokenizer: Any) -> None:
        """Read, check and tokenise every row.

        Args:
            config: the source, and whether malformed rows are skipped.
            tokenizer: the policy's transformers tokenizer.

        Raises UsageError if the source cannot be read, rows are malformed (unless skipped), or no row is left.
        """
        self._config = config
        self._table, self.notes = read_prompts(config, tokenizer)
        """And what to say of how they were read."""
        facts = self._table.facts
        check_problems(facts.problems, len(self._table), config.source, config.on_malformed, "prompts.")
        self.skipped = [str(problem) for problem in facts.problems]
        """`place: problem` of each malformed row, in file order."""
        self.largest_token_id = facts.largest_token_id
        self.bos_token = tokenizer.bos_token
        self.doubled_bos = facts.doubled_bos
        """Texts with a beginning-of-sequence token, to which the tokenizer would have added a second one."""
        self._orders: dict[int, np.ndarray] = {}

    def __len__(self) -> int:
        """Return the number of prompts in one epoch."""
        return len(self._table)

    def prompt(self, position: int) -> Prompt:
        """Return the prompt at `position` (0, 1, 2, ...) of the global order."""
        if position < 0:
            raise ValueError(f"position {position} is negative; the order starts at 0")
        epoch, place = divmod(position, len(self))
        return self._table.prompt(int(self._order(epoch)[place]))

    def evaluation_prompts(self, n: int) -> list[Prompt]:
        """Return `n` prompts, the same at every call and after a resume; repeated only if `n` exceeds the epoch."""
        order = self._permutation(EVALUATION_STREAM)
        return [self._table.prompt(int(order[i % len(self)])) for i in range(n)]

    def fingerprint(self) -> str:
        """Return the SHA-256 of texts, answers and token ids in file order: positions mean nothing on other data."""
        return self._table.facts.fingerprint

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) == 2:  # leases straddle at most the border between two epochs
                del self._orders[next(iter(self._orders))]
            shuffled = self._config.shuffle
            self._orders[epoch] = self._permutation(EPOCH_STREAM, epoch) if shuffled else np.arange(len(self))
        return self._orders[epoch]

    def _permutation(self, *stream: int) -> np.ndarray:
        seed = np.random.SeedSequence(self._config.seed, spawn_key=stream)
        return np.random.default_rng(seed).permutation(len(self))
