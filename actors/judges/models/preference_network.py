"""Preference models: the sequences that a model reads, and the preference between two responses that it computes.

Three forms of the logit s(x, y1, y2) of "y1 is preferred to y2 as an answer to x", each antisymmetric by construction,
so that P(y1 > y2) + P(y2 > y1) = 1 and P(y > y) = 1/2:

- `bradley_terry`: r(x, y1) - r(x, y2) (Bradley and Terry 1952). One forward pass per response; no cycles.
- `pairwise`: (f(x, y1, y2) - f(x, y2, y1)) / 2 of a model f that reads both responses, as the preference model of Munos
  et al. 2023 (section 3.1) does. Two forward passes per pair.
- `skew`: r_1 - r_2 + u_1^T R u_2 with R block-diagonal of rotations [[0, -1], [1, 0]], so R^T = -R (Zhang et al. 2024,
  equation 6, with a transitive term). One forward pass per response; cycles.

Must not know how such a model is trained or what its preferences are used for.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from actors.errors import JUDGE_MEMORY, UsageError, oom_hint
from actors.files import atomic_write
from actors.hub import resolve
from actors.judges.models.classifier import check_lengths, collate, in_batches, load_classifier, positions
from actors.judges.models.inputs import Tokens

Kind = Literal["bradley_terry", "pairwise", "skew"]
Outputs = NDArray[np.float64]
FORM_FILE = "preference.json"


@dataclass(frozen=True, slots=True)
class PreferenceForm:
    """The form in which a model's outputs give a preference. Stored in its directory as `preference.json`."""

    kind: Kind
    separator: int
    """Token id after each response of a pair: end-of-sequence. A finished response has one of its own before it, unlike
    an unfinished response."""
    skew_blocks: int = 0
    """k: rotations in R; u has 2k entries. 0 for the other kinds."""
    temperature: float = 1.0  # divides the logits

    @property
    def outputs(self) -> int:
        """Number of model outputs: f or r, then u."""
        return 1 + 2 * self.skew_blocks

    def sequences(self, prompt: Tokens, first: Tokens, second: Tokens) -> tuple[Tokens, Tokens]:
        """Return the two sequences that a comparison reads: both orders of a pair, or each response alone."""
        if self.kind != "pairwise":
            return (*prompt, *first), (*prompt, *second)
        end = self.separator
        return (*prompt, *first, end, *second, end), (*prompt, *second, end, *first, end)

    def logits(self, first: Any, second: Any) -> Any:
        """Compute s [...], before the temperature, from the outputs [..., 1 + 2k] of the two `sequences`.

        Takes NumPy arrays or torch tensors. Exactly antisymmetric in floating point: exchanging the arguments only
        flips the sign of each term.
        """
        if self.kind == "pairwise":
            return 0.5 * (first[..., 0] - second[..., 0])
        turned = first[..., 2::2] * second[..., 1::2] - first[..., 1::2] * second[..., 2::2]
        return first[..., 0] - second[..., 0] + turned.sum(-1)


class PreferenceNetwork(nn.Module):
    """A sequence-classification model, read at the last token of each sequence, whatever the padding token is."""

    def __init__(self, model: Any) -> None:
        """Take a transformers model. Raises UsageError if it has no linear head `score` on single tokens."""
        super().__init__()
        if not isinstance(getattr(model, "score", None), nn.Linear):
            raise UsageError(
                f"{type(model).__name__} has no head `score` that reads the last token; give a decoder model, such as "
                "Llama or Qwen"
            )
        self.model = model

    def forward(self, input_ids: Tensor, ends: Tensor) -> Tensor:
        """Return the outputs [b, labels], float32, at the positions `ends` [b] of right-padded sequences [b, t].

        Attention is causal, so no token sees the padding after it.
        """
        hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.model.score(hidden[torch.arange(len(ends), device=ends.device), ends]).float()


class PreferenceModel:
    """Computes preferences among responses to prompts. Each different sequence is read once."""

    def __init__(
        self, network: PreferenceNetwork, form: PreferenceForm, batch_tokens: int, device: torch.device | str = "cpu"
    ) -> None:
        self.form = form
        self._network, self._batch_tokens, self._device = network.to(device).eval(), batch_tokens, device
        self._longest = positions(network.model)

    @classmethod
    def load(
        cls, path: str | Path, *, dtype: str = "float32", batch_tokens: int = 16384, device: torch.device | str = "cpu"
    ) -> PreferenceModel:
        """Load a directory or hub name. Raises UsageError if it holds no model or no `preference.json`."""
        directory = resolve(path)
        form = read_form(directory)
        model, _ = load_classifier(directory, form.outputs, dtype)
        return cls(PreferenceNetwork(model), form, batch_tokens, device)

    def fits(self, prompt: Tokens, first: Tokens, second: Tokens) -> bool:
        """Return whether the model has enough positions for a comparison."""
        longest = max(map(len, self.form.sequences(prompt, first, second)))
        return self._longest is None or longest <= self._longest

    def tables(self, prompts: Sequence[Tokens], responses: Sequence[Sequence[Tokens]]) -> list[Outputs]:
        """Return logits [n, n] per prompt, divided by the temperature: [i, j] that response i is preferred to j.

        Exactly antisymmetric: s_ij = -s_ji, 0 on the diagonal and between equal responses. `bradley_terry` is also
        exactly free of curl: s_ij + s_jk + s_ki = 0.

        Raises RunError if a sequence is longer than the model's positions.
        """
        if self.form.kind != "pairwise":
            return [self.form.logits(out[:, None], out[None, :]) for out in self._each_alone(prompts, responses)]
        pairs = [
            (number, i, j, self.form.sequences(prompt, ys[i], ys[j]))
            for number, (prompt, ys) in enumerate(zip(prompts, responses, strict=True))
            for i in range(len(ys))
            for j in range(i)
        ]
        outputs = self._outputs(sequence for *_, both in pairs for sequence in both)
        tables = [np.zeros((len(ys), len(ys))) for ys in responses]
        for number, i, j, (one, other) in pairs:
            logit = self.form.logits(outputs[one], outputs[other]) / self.form.temperature
            tables[number][i, j], tables[number][j, i] = logit, -logit
        return tables

    def rewards(self, prompts: Sequence[Tokens], responses: Sequence[Sequence[Tokens]]) -> list[Outputs]:
        """Return r [n] per prompt, divided by the temperature. Only for `bradley_terry` and `skew`."""
        return [out[:, 0] for out in self._each_alone(prompts, responses)]

    def raw_orders(self, prompts: Sequence[Tokens], pairs: Sequence[tuple[Tokens, Tokens]]) -> Outputs | None:
        """Return f of both orders of each pair [n, 2], before the temperature; None unless the form is `pairwise`."""
        if self.form.kind != "pairwise":
            return None
        both = [self.form.sequences(prompt, *pair) for prompt, pair in zip(prompts, pairs, strict=True)]
        outputs = self._outputs(sequence for orders in both for sequence in orders)
        return np.array([[outputs[sequence][0] for sequence in orders] for orders in both]).reshape(-1, 2)

    def _each_alone(self, prompts: Sequence[Tokens], responses: Sequence[Sequence[Tokens]]) -> list[Outputs]:
        """Return outputs [n, 1 + 2k] per prompt, scaled so that their logits are divided by the temperature.

        They are rounded to float32, whose differences are exact in float64, so that rewards have no curl at all.
        """
        outputs = self._outputs((*p, *y) for p, ys in zip(prompts, responses, strict=True) for y in ys)
        scale = np.full(self.form.outputs, self.form.temperature**-0.5)
        scale[0] = 1.0 / self.form.temperature
        return [
            (np.array([outputs[(*p, *y)] for y in ys]) * scale).astype(np.float32).astype(np.float64)
            for p, ys in zip(prompts, responses, strict=True)
        ]

    def _outputs(self, wanted: Iterable[Tokens]) -> dict[Tokens, Outputs]:
        """Return the outputs [1 + 2k] of each different sequence."""
        sequences = list(dict.fromkeys(wanted))
        read = "two responses" if self.form.kind == "pairwise" else "response"
        check_lengths(sequences, self._longest, read, "the preference model")
        return dict(zip(sequences, in_batches(self._forward, sequences, self._batch_tokens), strict=True))

    @torch.inference_mode()
    def _forward(self, sequences: Sequence[Tokens]) -> Sequence[Outputs]:
        with oom_hint("the preference model", JUDGE_MEMORY):
            return self._network(*collate(sequences, self._device)).cpu().numpy().astype(np.float64)


def probabilities(logits: Outputs) -> Outputs:
    """Compute P [n, n] from antisymmetric logits; P_ij + P_ji = 1 and 1/2 on the diagonal, exactly."""
    upper = np.triu(0.5 + 0.5 * np.tanh(0.5 * logits), 1)
    return upper + np.tril(1.0 - upper.T, -1) + 0.5 * np.eye(len(logits))


def read_form(directory: Path) -> PreferenceForm:
    """Read `preference.json`. Raises UsageError if it is missing or damaged."""
    try:
        written = json.loads((directory / FORM_FILE).read_text(encoding="utf-8"))
        form = PreferenceForm(**{name: written[name] for name in PreferenceForm.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UsageError(
            f"'{directory}' is not a preference model: {FORM_FILE} is missing or damaged ({error}); give the directory "
            "final/ of a run of `offbeat preference`, or use the judge reward_model for other reward models"
        ) from error
    if form.kind not in get_args(Kind) or not form.temperature > 0.0:
        raise UsageError(
            f"{directory / FORM_FILE} has kind {form.kind!r} and temperature {form.temperature}; allowed are "
            f"{', '.join(get_args(Kind))} and temperatures above 0"
        )
    return form


def write_form(directory: Path, form: PreferenceForm, **beside: Any) -> None:
    """Write `preference.json`, with the entries `beside` added for readers. Raises OSError."""
    pair = "prompt + first + separator + second + separator"
    assembly = pair if form.kind == "pairwise" else "prompt + response"
    document = {**asdict(form), "assembly": assembly, **beside}
    atomic_write(directory / FORM_FILE, json.dumps(document, indent=2) + "\n")
