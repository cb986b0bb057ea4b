"""Sequence-classification models as judges: loading, padding, batching, threads. Must not know what outputs mean."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification

from actors.errors import RunError, UsageError
from actors.hub import CLASSIFIER_HEAD, load_complete, positions_of
from actors.judges.config import ModelJudgeConfig
from actors.judges.threads import in_daemon_thread
from actors.records import Completion, Group, Judgement, Prompt

S = TypeVar("S", bound=Sequence[int])
T = TypeVar("T")


class ModelJudge(ABC):
    """A judge with a model in its own process. Forward passes run in a thread, one batch of groups at a time."""

    def __init__(self, config: ModelJudgeConfig, token_ids: Callable[[Prompt, Completion], Any]) -> None:
        """Take a function that returns the model's input. Raises UsageError if a GPU is configured but missing."""
        if config.gpus > 0 and not torch.cuda.is_available():
            raise UsageError(f"judging.judge.gpus is {config.gpus:g}, but torch finds no CUDA device here; set it to 0")
        self.token_ids = token_ids
        self._device = torch.device("cuda" if config.gpus > 0 else "cpu")
        self._forward_lock = threading.Lock()

    async def judge(self, groups: Sequence[Group]) -> list[Judgement]:
        """Judge all groups together. Raises RunError if a sequence is longer than the model's positions."""
        read = [[self.token_ids(group.lease.prompt, one) for one in group.completions] for group in groups]

        def judgements() -> list[Judgement]:
            # After a timeout the abandoned pass still runs; the next pass waits for it instead of competing with it.
            with self._forward_lock:
                return self._judgements(read)

        return await in_daemon_thread(judgements)

    @abstractmethod
    def _judgements(self, read: Sequence[Sequence[Any]]) -> list[Judgement]:
        """Judge groups of `token_ids`. Runs outside the event loop."""


def load_classifier(
    path: str | Path, outputs: int | None, dtype: str, *, new_head: bool = False
) -> tuple[Any, list[str]]:
    """Load a sequence-classification model on the CPU; return it with the names of missing weights.

    `path` is a directory or hub name; `outputs` is the number of labels, or None to take the model's own. With
    `new_head` the head may be missing. Raises UsageError if the model cannot be loaded or lacks other weights.
    """
    try:
        return load_complete(
            AutoModelForSequenceClassification,
            path,
            dtype,
            may_lack=(CLASSIFIER_HEAD,) if new_head else (),
            **({} if outputs is None else {"num_labels": outputs}),
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no sequence-classification model can be loaded from '{path}': {error}; give the directory or hub name of "
            "one"
        ) from error


def positions(model: Any) -> int | None:
    """Return the longest sequence (tokens) that the model can read; None if it states no limit."""
    return positions_of(model.config.get_text_config())


def check_lengths(sequences: Sequence[Sequence[int]], limit: int | None, read: str, model: str) -> None:
    """Raise RunError if a sequence, described as `read`, is longer than the model's positions."""
    longest = max(map(len, sequences), default=0)
    if limit is not None and longest > limit:
        raise RunError(
            f"a prompt with its {read} is {longest} tokens, and {model} has {limit} positions; shorten prompts or "
            "completions, as with prompts.max_prompt_tokens and sampling.max_new_tokens"
        )


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices of sequences of similar length, longest first, whose count x longest is at most `batch_tokens`.

    A sequence longer than `batch_tokens` is a batch by itself.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    while order:
        count = max(1, batch_tokens // max(1, lengths[order[0]]))
        yield order[:count]
        order = order[count:]


def in_batches(forward: Callable[[list[S]], Sequence[T]], sequences: Sequence[S], batch_tokens: int) -> list[T]:
    """Run `forward`, one output per sequence, over batches; return the outputs in order of `sequences`."""
    outputs: dict[int, T] = {}
    for batch in batches_by_length(list(map(len, sequences)), batch_tokens):
        outputs.update(zip(batch, forward([sequences[index] for index in batch]), strict=True))
    return [outputs[index] for index in range(len(sequences))]


def collate(
    sequences: Sequence[Sequence[int]], device: torch.device | str = "cpu", pad: int = 0
) -> tuple[Tensor, Tensor]:
    """Pad on the right: token ids [b, t], and the position [b] of each sequence's last token."""
    input_ids = torch.full((len(sequences), max(map(len, sequences))), pad)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = torch.tensor(sequence)
    ends = torch.tensor([len(sequence) - 1 for sequence in sequences])
    return input_ids.to(device), ends.to(device)
