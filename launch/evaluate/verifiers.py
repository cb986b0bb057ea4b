"""Verifiers of `offbeat evaluate`: models that score answers, to choose among them.

Nothing is loaded but tokenizers until answers are scored.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from actors.data.text import load_tokenizer
from actors.errors import UsageError
from actors.hub import resolve
from actors.records import Group, flatten
from launch.settings.run import RunConfig
from learner.backend import manifest
from learner.backend.models import DPO_FILE

Rank = Literal["likelihood", "reward"]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "tokenizer.model")


@dataclass(frozen=True, slots=True)
class Verifier:
    """A model that scores answers: by log-likelihood or, with `reference`, by implicit reward."""

    directory: Path
    reference: Path | None = None
    beta: float = 1.0

    def check_reads(self, policy: Any) -> None:
        """Raise UsageError unless each token of the policy's tokenizer is the same one for this model.

        A directory without a tokenizer is taken at its word.
        """
        for directory in (self.directory, self.reference):
            if directory is None or not any((directory / name).is_file() for name in TOKENIZER_FILES):
                continue
            own = load_tokenizer(str(directory)).get_vocab()
            other = [(token, number) for token, number in policy.get_vocab().items() if own.get(token) != number]
            if other:
                token, number = min(other, key=lambda each: each[1])
                told = "is not one" if token not in own else f"is token {own[token]}"
                raise UsageError(
                    f"the verifier {directory} has another tokenizer than the model: token {number}, {token!r}, {told} "
                    "there; give a verifier that was trained from this model, or from one with the same tokenizer"
                )

    def scores(self, groups: Sequence[Group], config: RunConfig) -> list[tuple[float, ...]]:
        """Score every completion: log V(y|x) (nats; Hosseini et al. 2024, section 3.1), or with a reference
        beta (log V(y|x) - log mu(y|x)) (Rafailov et al. 2023, eq. 5). Raises UsageError as `PerplexityModel` does."""
        values = _sequence_logprobs(self.directory, groups, config)
        if self.reference is not None:
            ours, theirs = values, _sequence_logprobs(self.reference, groups, config)
            values = [self.beta * (mine - other) for mine, other in zip(ours, theirs, strict=True)]
        rest = iter(values)
        return [tuple(next(rest) for _ in group.completions) for group in groups]


def find_verifier(path: str, rank: Rank) -> Verifier:
    """Return the verifier at a directory or hub name.

    Raises UsageError if it, or its reference, is not found or not as it was written.
    """
    directory = resolve(path)
    manifest.check(directory)
    if rank == "likelihood":
        return Verifier(directory)
    record = directory / DPO_FILE
    try:
        recorded: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        reference, beta = resolve(recorded["reference"]), float(recorded["beta"])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"--rank reward needs the verifier's reference and beta, and {record} does not hold them ({error!r}); "
            "give the final/ directory of `offbeat dpo`, or --rank likelihood"
        ) from error
    manifest.check(reference)
    return Verifier(directory, reference, beta)


def _sequence_logprobs(directory: Path, groups: Sequence[Group], config: RunConfig) -> list[float]:
    """Compute the log-prob (nats, temperature 1) of each completion, summed over its tokens."""
    import torch

    from learner.stages.perplexity import PerplexityModel
    from learner.tensors.batching import rollout

    model = PerplexityModel(
        directory,
        dtype=config.generators.dtype,
        device="cuda" if torch.cuda.is_available() else "cpu",
        micro_batch_tokens=config.learner.micro_batch_tokens,
    )
    completions = flatten(groups)
    prompts = [group.lease.prompt.token_ids for group in groups for _ in group.completions]
    means = model.log_perplexities([rollout(prompt, each) for prompt, each in zip(prompts, completions, strict=True)])
    return [-float(mean) * each.sampled_tokens for mean, each in zip(means, completions, strict=True)]
