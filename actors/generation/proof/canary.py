"""Decide whether an engine's log-probs are the learner's, and whether an update reached its publication. Pure.

Every publication carries a canary: the policy's own answer to a prompt, with the same tokens at every version, and the
learner's log-probs of it; and, after the first update, the same of a rollout that was just trained on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from actors.errors import UsageError, WeightMismatchError
from actors.generation.config import GeneratorConfig
from actors.records import Canary, Manifest

MOVED = 0.01
"""Difference of a log-prob between two versions above which it has changed, as a fraction of a token's tolerance."""


def newest_canary(manifest: Manifest) -> Canary:
    """Return the sequence that an engine scores under a publication's weights.

    It is a rollout if the publication has one: the canary's answer may have become unlikely under the policy, and
    rounding is larger on unlikely tokens.
    """
    return manifest.fresh or manifest.canary


class CanaryCheck:
    """Compares one engine with the learner, publication by publication."""

    def __init__(self, config: GeneratorConfig) -> None:
        self._config = config
        self._before: Manifest | None = None  # the publication in use
        self.gap: float | None = None
        """Largest difference (nats) on the last rollout that engine and learner scored; None before the first."""

    def changed(self, manifest: Manifest) -> float:
        """Return the fraction of a publication's matrices whose bits differ from those in use; 0 before the first.

        Norms are left out: in bfloat16 they do not change for many updates.
        """
        before = {} if self._before is None else _matrices(self._before)
        now = _matrices(manifest)
        changed = sum(before[name] != fingerprint for name, fingerprint in now.items() if name in before)
        return changed / max(1, len(now))

    def check_before(self, manifest: Manifest) -> None:
        """Check a publication before anything is loaded, without the engine.

        Raises UsageError if its canary does not fit the engine, WeightMismatchError if its tensors are those in use
        although the learner's log-probs changed.
        """
        canary = newest_canary(manifest)
        length, answer = len(canary.token_ids), len(canary.logprobs)
        if not 0 < answer < length < self._config.max_model_len:
            raise UsageError(
                f"a canary of {length} tokens, {answer} of them an answer, cannot be scored: it needs a prompt, an "
                f"answer, and fewer than generators.max_model_len {self._config.max_model_len} tokens; change "
                "publication.canary_tokens"
            )
        moved = self._learner_moved(manifest)
        if self._before is not None and manifest.tensors == self._before.tensors and moved:
            raise WeightMismatchError(
                f"version {manifest.version} holds the tensors of version {self._before.version} to the bit, but the "
                f"learner's log-probs of the canary moved by {moved:.4g} nats: an update did not reach its "
                "publication; use --resume"
            )

    def check(self, manifest: Manifest, scored: Sequence[float]) -> None:
        """Check the engine's log-probs of `newest_canary(manifest)` under its weights. Raises WeightMismatchError."""
        largest = self._agree(manifest.version, scored, newest_canary(manifest).logprobs)
        self.gap = largest if manifest.fresh is not None else self.gap
        self._before = manifest

    def _learner_moved(self, manifest: Manifest) -> float:
        """Return the change (nats) of the learner's canary since the version in use; 0 if none, or not comparable.

        The learner scores the canary in a batch by itself, so equal weights give equal bits.
        """
        if self._before is None or manifest.canary.token_ids != self._before.canary.token_ids:
            return 0.0
        moved = _largest(manifest.canary.logprobs, self._before.canary.logprobs)
        return moved if moved > MOVED * self._config.log_prob_tolerance else 0.0

    def _agree(self, version: int, scored: Sequence[float], expected: Sequence[float]) -> float:
        mean_limit, limit = self._config.canary_limits(len(expected))
        mean, largest = float(np.abs(np.subtract(scored, expected)).mean()), _largest(scored, expected)
        if mean <= mean_limit and largest <= limit:
            return largest
        raise WeightMismatchError(  # also for NaN
            f"version {version}: engine and learner differ by {largest:.4g} nats on the canary, {limit:g} are allowed, "
            f"and by {mean:.4g} in the mean of its {len(expected)} tokens, {mean_limit:.3g} are allowed; rollouts "
            "since then are discarded. Restart this generator; if it recurs, "
            f"compare generators.dtype {self._config.dtype} with learner.dtype, or raise generators.canary_tolerance "
            "if the difference is only rounding"
        )


def _matrices(manifest: Manifest) -> dict[str, str]:
    return {record.name: record.fingerprint for record in manifest.tensors if len(record.shape) > 1}


def _largest(a: Sequence[float], b: Sequence[float]) -> float:
    return float(np.max(np.abs(np.subtract(a, b))))
