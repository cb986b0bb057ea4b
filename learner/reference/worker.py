"""One reference actor: a frozen model that scores one prompt's rollouts at a time.

A plain class that `launch/cluster/wiring.py` turns into a Ray actor. Torch is imported at construction.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from actors.errors import REFERENCE_MEMORY, UsageError, oom_hint
from actors.records import Pulse
from learner.reference.config import ReferenceSpec

if TYPE_CHECKING:
    from learner.tensors.batching import RolloutSequence


class ReferenceWorker:
    """Computes the reference's log-probs on the learner's own code path.

    Raises UsageError if the model cannot be loaded, or a GPU is configured but missing.
    """

    def __init__(self, spec: ReferenceSpec) -> None:
        import torch

        from actors.hub import resolve
        from learner.backend.models import load_policy

        config = spec.config
        if config.gpus > 0 and not torch.cuda.is_available():
            raise UsageError(f"reference.gpus is {config.gpus:g}, but torch finds no CUDA device here; set it to 0")
        torch.set_num_threads(threads(config.cpus))
        self._micro_batch_tokens = config.micro_batch_tokens
        self._device = torch.device("cuda" if config.gpus > 0 else "cpu")
        self._seconds = 0.0
        self._pass_began: float | None = None
        with oom_hint("a reference actor", REFERENCE_MEMORY):
            model = load_policy(
                resolve(spec.model_dir), spec.dtype, spec.logprob_chunk, spec.temperature, spec.head_dtype
            )
            self._model = model.requires_grad_(False).to(self._device)
        self.shares_prompts = spec.share_prompts and model.shares_prompts

    def ready(self) -> None:
        """Return after construction: the model is loaded."""

    def pulse(self) -> Pulse:
        """Return a sign of life, in a thread of its own: without progress for as long as a pass lasts."""
        since = self._pass_began
        return Pulse.of_this_process(0.0 if since is None else time.monotonic() - since)

    def seconds(self) -> float:
        """Return the seconds spent scoring since the start."""
        return self._seconds

    def score(self, rollouts: Sequence[RolloutSequence]) -> list[tuple[float, ...]]:
        """Compute the log-prob (nats) of each response token of one prompt's rollouts; 0 for given tokens.

        The result depends on `rollouts` alone, not on what else is scored, so that a repeated run gets the same bits.
        """
        started = time.monotonic()
        try:
            with oom_hint("a reference actor", REFERENCE_MEMORY):
                scored = dict(row for part in self._parts(rollouts) for row in self._pass(rollouts, part))
        finally:
            self._pass_began = None
            self._seconds += time.monotonic() - started
        return [scored[index] for index in range(len(rollouts))]

    def _parts(self, rollouts: Sequence[RolloutSequence]) -> list[tuple[int, ...]]:
        """Split rollouts into passes of at most `micro_batch_tokens`, unless one alone exceeds them."""
        from learner.tensors.batching import balance, length_of, schedule

        if self.shares_prompts:
            room = max(1, self._micro_batch_tokens - len(rollouts[0][0]))
            rounds = balance([len(response) for _, response, _ in rollouts], 1, room)
        else:
            rounds = schedule([length_of(each) for each in rollouts], 1, 1, self._micro_batch_tokens)
        return [part for (part,) in rounds]

    def _pass(self, rollouts: Sequence[RolloutSequence], part: Sequence[int]) -> list[tuple[int, tuple[float, ...]]]:
        import torch

        from learner.tensors.batching import collate, sampled_length, spread
        from learner.tensors.shared_prompts import collate_shared

        self._pass_began = time.monotonic()
        own = [rollouts[index] for index in part]
        with torch.no_grad():
            values = self._model((collate_shared if self.shares_prompts else collate)(own, self._device))
        rows = values.split([sampled_length(each) for each in own])
        return [(index, spread(row.tolist(), each)) for index, each, row in zip(part, own, rows, strict=True)]


def threads(cpus: float) -> int:
    """Return the thread count of an actor that reserves `cpus` cores."""
    return max(1, int(cpus))
