"""Prompts: rows become token ids once, and an endless seeded order offers them by position.

The order is a pure function of position, so one integer is a run's place in the data. Must not know leases or
generators.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from actors.data.config import PromptConfig
from actors.data.rows import check_problems, held_out
from actors.data.tokenised.reading import read_prompts
from actors.data.tokenised.table import PromptTable
from actors.errors import UsageError
from actors.foreign.text import many
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

        Raises UsageError if the source cannot be read, rows are malformed (unless skipped), or no row is left, for
        training or for evaluations.
        """
        self._config = config
        self.notes: list[str] = []
        """Messages for the user about the reading of the prompts."""
        self._table = self._read(config, tokenizer)
        self._places, self._validation_places = _split(self._table, config)
        self._validation = self._table
        if config.validates_elsewhere:
            self._validation = self._read_validation(config, tokenizer)
            self._validation_places = np.arange(len(self._validation))
        tables = [self._table] if self._validation is self._table else [self._table, self._validation]
        self.skipped = [str(problem) for table in tables for problem in table.facts.problems]
        """`place: problem` of each malformed row, in file order."""
        self.largest_token_id = max(table.facts.largest_token_id for table in tables)
        self.bos_token = tokenizer.bos_token
        self.doubled_bos = sum(table.facts.doubled_bos for table in tables)
        """Texts with a beginning-of-sequence token, to which the tokenizer would have added a second one."""
        self._orders: dict[int, np.ndarray] = {}

    def _read(self, config: PromptConfig, tokenizer: Any) -> PromptTable:
        table, notes = read_prompts(config, tokenizer)
        self.notes += notes
        check_problems(table.facts.problems, len(table), config.source, config.on_malformed, "prompts.")
        return table

    def _read_validation(self, config: PromptConfig, tokenizer: Any) -> PromptTable:
        source, split = config.validation_source or config.source, config.validation_split or config.split
        if (source, split) == (config.source, config.split):
            raise UsageError(
                f"evaluations would draw from split {split} of prompts.source '{source}', which is what is trained on; "
                "give other prompts, or set prompts.validation_fraction to hold some of these out"
            )
        if config.validation_split is None and Path(source).expanduser().is_file():
            split = "train"  # because the setting names a split of `source`, not of this file
        try:
            return self._read(config.model_copy(update={"source": source, "split": split}), tokenizer)
        except UsageError as error:
            which = "validation_source" if config.validation_source else "validation_split"
            raise UsageError(f"prompts.{which}: {error}") from error

    def __len__(self) -> int:
        """Return the number of prompts in one epoch."""
        return len(self._places)

    @property
    def evaluation_size(self) -> int:
        """Return the number of prompts that evaluations draw from."""
        return len(self._validation_places)

    @property
    def evaluated(self) -> str:
        """Return the name of the source that evaluations draw from, for messages."""
        config = self._config
        if config.validation_fraction:
            return f"the {config.validation_fraction:.0%} of prompts.source '{config.source}' that is held out"
        if config.validation_source is not None:
            return f"prompts.validation_source '{config.validation_source}'"
        split = "" if config.validation_split is None else f"split '{config.validation_split}' of "
        return f"{split}prompts.source '{config.source}'"

    def prompt(self, position: int) -> Prompt:
        """Return the prompt at `position` (0, 1, 2, ...) of the global order."""
        if position < 0:
            raise ValueError(f"position {position} is negative; the order starts at 0")
        epoch, place = divmod(position, len(self))
        return self._table.prompt(int(self._order(epoch)[place]))

    def evaluation_prompts(self, n: int) -> list[Prompt]:
        """Return `n` prompts, the same at every call and after a resume. Repeats prompts only if there are fewer."""
        order = self._permutation(self._validation_places, EVALUATION_STREAM)
        return [self._validation.prompt(int(order[i % len(order)])) for i in range(n)]

    def different_evaluation_prompts(self, n: int) -> int:
        """Count the different prompts among `evaluation_prompts(n)`, without going over repeats."""
        order = self._permutation(self._validation_places, EVALUATION_STREAM)
        return len({self._validation.prompt(int(place)).token_ids for place in order[:n]})

    def fingerprint(self) -> str:
        """Return the SHA-256 of texts, answers and token ids in file order: positions mean nothing on other data.

        Covers held-out prompts as well.
        """
        own = self._table.facts.fingerprint
        if self._validation is not self._table:
            return hashlib.sha256(f"{own} {self._validation.facts.fingerprint}".encode()).hexdigest()
        if self._config.validation_fraction:
            return hashlib.sha256(f"{own} {self._config.validation_fraction}".encode()).hexdigest()
        return own

    def _order(self, epoch: int) -> np.ndarray:
        if epoch not in self._orders:
            if len(self._orders) == 2:  # leases straddle at most the border between two epochs
                del self._orders[next(iter(self._orders))]
            shuffled = self._config.shuffle
            self._orders[epoch] = self._permutation(self._places, EPOCH_STREAM, epoch) if shuffled else self._places
        return self._orders[epoch]

    def _permutation(self, places: np.ndarray, *stream: int) -> np.ndarray:
        seed = np.random.SeedSequence(self._config.seed, spawn_key=stream)
        return places[np.random.default_rng(seed).permutation(len(places))]


def _split(table: PromptTable, config: PromptConfig) -> tuple[np.ndarray, np.ndarray]:
    """Return the places of prompts to train on, and of prompts for evaluations. Raises UsageError if one is empty."""
    everything = np.arange(len(table))
    if not config.validation_fraction:
        return everything, everything
    held = np.array([held_out(text.encode(), config.validation_fraction) for text in table.texts()])
    if held.all() or not held.any():
        left = "leaves none to train on" if held.all() else "holds none of them out"
        remedy = "lower" if held.all() else "raise"
        raise UsageError(
            f"prompts.validation_fraction {config.validation_fraction:g} of the {many(len(table), 'prompt')} of "
            f"prompts.source '{config.source}' {left}; {remedy} it, or set prompts.validation_source"
        )
    return everything[~held], everything[held]
