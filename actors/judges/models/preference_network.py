"""Preference models: what one reads of a prompt and two responses, and the preference that its outputs stand for.

Three forms of the logit s(x, y1, y2) of "y1 is preferred to y2 as an answer to x", each antisymmetric by construction,
so that P(y1 > y2) + P(y2 > y1) = 1 and P(y > y) = 1/2:

- `bradley_terry`: r(x, y1) - r(x, y2) (Bradley and Terry 1952). One forward pass per response, no cycles.
- `pairwise`: (f(x, y1, y2) - f(x, y2, y1)) / 2 of a model f that reads both responses, as the preference model of Munos
  et al. 2023 (section 3.1) does. Two forward passes per pair.
- `skew`: r_1 - r_2 + u_1^T R u_2 with R block-diagonal of rotations [[0, -1], [1, 0]], so R^T = -R (Zhang et al. 2024,
  equation 6, with a transitive term). One forward pass per response, and cycles.

It must not know how such a model is trained, nor who asks for its preferences.
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
from transformers import AutoModelForSequenceClassification

from actors.errors import JUDGE_MEMORY, RunError, UsageError, saying_what_to_lower
from actors.hub import require_safetensors, resolve
from actors.judges.models.reward_model import batches_by_length

Kind = Literal["bradley_terry", "pairwise", "skew"]
Tokens = tuple[int, ...]
Outputs = NDArray[np.float64]
FORM_FILE = "preference.json"


@dataclass(frozen=True, slots=True)
class PreferenceForm:
    """How a model's outputs make a preference. In its directory as `preference.json`."""

    kind: Kind
    separator: int
    """Token after each response of a pair: end-of-sequence, in which a finished response ends already, so that an
    unfinished one is told apart."""
    skew_blocks: int = 0
    """k: the rotations in R; u has 2k entries. 0 for the other kinds."""
    temperature: float = 1.0
    """Logits are divided by it."""

    @property
    def outputs(self) -> int:
        """Outputs of the model: f or r, and after it u."""
        return 1 + 2 * self.skew_blocks

    def sequences(self, prompt: Tokens, first: Tokens, second: Tokens) -> tuple[Tokens, Tokens]:
        """The two sequences that a comparison reads: both orders of a pair, or each response alone."""
        if self.kind != "pairwise":
            return (*prompt, *first), (*prompt, *second)
        end = self.separator
        return (*prompt, *first, end, *second, end), (*prompt, *second, end, *first, end)

    def logits(self, first: Any, second: Any) -> Any:
        """s [...] before the temperature from the outputs [..., 1 + 2k] of the two `sequences`; NumPy or torch.

        Exactly antisymmetric in floating point: exchanged arguments give the same terms with the other sign.
        """
        if self.kind == "pairwise":
            return 0.5 * (first[..., 0] - second[..., 0])
        turned = first[..., 2::2] * second[..., 1::2] - first[..., 1::2] * second[..., 2::2]
        return first[..., 0] - second[..., 0] + turned.sum(-1)


class PreferenceNetwork(nn.Module):
    """A sequence-classification model, read at the last token of each sequence whatever its padding token is."""

    def __init__(self, model: Any) -> None:
        """Raises UsageError when the model has no linear head `score` on single tokens."""
        super().__init__()
        if not isinstance(getattr(model, "score", None), nn.Linear):
            raise UsageError(
                f"{type(model).__name__} has no head `score` that reads the last token; give a decoder model, such as "
                "Llama or Qwen"
            )
        self.model = model

    def forward(self, input_ids: Tensor, ends: Tensor) -> Tensor:
        """Outputs [b, labels], float32, at the positions `ends` [b] of right-padded sequences [b, t].

        Attention is causal, so that no sequence sees its padding.
        """
        hidden = self.model.base_model(input_ids=input_ids, use_cache=False).last_hidden_state
        return self.model.score(hidden[torch.arange(len(ends), device=ends.device), ends]).float()


def collate(sequences: Sequence[Tokens], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Right-padded token ids [b, t] and the position [b] of each sequence's last token."""
    input_ids = torch.zeros(len(sequences), max(map(len, sequences)), dtype=torch.int64)
    for row, sequence in enumerate(sequences):
        input_ids[row, : len(sequence)] = torch.tensor(sequence)
    ends = torch.tensor([len(sequence) - 1 for sequence in sequences])
    return input_ids.to(device), ends.to(device)


class PreferenceModel:
    """Preferences among responses to prompts. Each different sequence is read once, in batches of like length."""

    def __init__(
        self, network: PreferenceNetwork, form: PreferenceForm, batch_tokens: int, device: torch.device | str = "cpu"
    ) -> None:
        self.form = form
        self._network, self._batch_tokens, self._device = network.to(device).eval(), batch_tokens, device
        self._longest = getattr(network.model.config.get_text_config(), "max_position_embeddings", None)

    @classmethod
    def load(
        cls, path: str | Path, *, dtype: str = "float32", batch_tokens: int = 16384, device: torch.device | str = "cpu"
    ) -> PreferenceModel:
        """The model of a directory or hub name. Raises UsageError when there is none, or no `preference.json`."""
        directory = resolve(path)
        form = read_form(directory)
        model, missing = load_classifier(directory, form.outputs, dtype)
        if missing:
            raise UsageError(
                f"'{path}' lacks the weights {missing}, which would be random; give the directory final/ of a run of "
                "`offbeat preference`"
            )
        return cls(PreferenceNetwork(model), form, batch_tokens, device)

    def fits(self, prompt: Tokens, first: Tokens, second: Tokens) -> bool:
        """Whether the model has positions for a comparison."""
        longest = max(map(len, self.form.sequences(prompt, first, second)))
        return self._longest is None or longest <= self._longest

    def tables(self, prompts: Sequence[Tokens], responses: Sequence[Sequence[Tokens]]) -> list[Outputs]:
        """Per prompt the logits [n, n] of its n responses: [i, j] that i is preferred to j, divided by the temperature.

        Exactly antisymmetric: s_ij = -s_ji, 0 on the diagonal and between equal responses. With `bradley_terry` also
        exactly without curl: s_ij + s_jk + s_ki = 0.

        Raises:
            RunError: a sequence is longer than the model's positions.
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
        """r [n] of each prompt's responses, divided by the temperature. `bradley_terry` and `skew` only."""
        return [out[:, 0] for out in self._each_alone(prompts, responses)]

    def raw_orders(self, prompts: Sequence[Tokens], pairs: Sequence[tuple[Tokens, Tokens]]) -> Outputs | None:
        """f of both orders of each pair, [n, 2], before temperature; None for models that read responses alone."""
        if self.form.kind != "pairwise":
            return None
        both = [self.form.sequences(prompt, *pair) for prompt, pair in zip(prompts, pairs, strict=True)]
        outputs = self._outputs(sequence for orders in both for sequence in orders)
        return np.array([[outputs[sequence][0] for sequence in orders] for orders in both]).reshape(-1, 2)

    def _each_alone(self, prompts: Sequence[Tokens], responses: Sequence[Sequence[Tokens]]) -> list[Outputs]:
        """Outputs [n, 1 + 2k] of each prompt's responses, scaled so that their logits are divided by the temperature.

        Rounded to float32, whose sums and differences float64 holds without rounding: a reward then has no curl at all.
        """
        outputs = self._outputs((*p, *y) for p, ys in zip(prompts, responses, strict=True) for y in ys)
        scale = np.full(self.form.outputs, self.form.temperature**-0.5)
        scale[0] = 1.0 / self.form.temperature
        return [
            (np.array([outputs[(*p, *y)] for y in ys]) * scale).astype(np.float32).astype(np.float64)
            for p, ys in zip(prompts, responses, strict=True)
        ]

    @torch.inference_mode()
    def _outputs(self, wanted: Iterable[Tokens]) -> dict[Tokens, Outputs]:
        """Outputs [1 + 2k] of each different sequence."""
        sequences = list(dict.fromkeys(wanted))
        found: dict[Tokens, Outputs] = {}
        for batch in batches_by_length([len(sequence) for sequence in sequences], self._batch_tokens):
            part = [sequences[index] for index in batch]
            if self._longest is not None and len(part[0]) > self._longest:
                raise RunError(
                    f"a prompt with its {'two responses' if self.form.kind == 'pairwise' else 'response'} is "
                    f"{len(part[0])} tokens, and the preference model has {self._longest} positions; shorten prompts "
                    "or responses"
                )
            with saying_what_to_lower("the preference model", JUDGE_MEMORY):
                values = self._network(*collate(part, self._device)).cpu().numpy().astype(np.float64)
            found.update(zip(part, values, strict=True))
        return found


def probabilities(logits: Outputs) -> Outputs:
    """P [n, n] from antisymmetric logits; P_ij + P_ji = 1 and 1/2 on the diagonal, exactly."""
    upper = np.triu(0.5 + 0.5 * np.tanh(0.5 * logits), 1)
    return upper + np.tril(1.0 - upper.T, -1) + 0.5 * np.eye(len(logits))


def load_classifier(directory: Path, outputs: int, dtype: str) -> tuple[Any, list[str]]:
    """A sequence-classification model of `outputs` labels on the CPU, and the names of weights that it lacks.

    Raises UsageError when it cannot be loaded.
    """
    require_safetensors(directory)
    try:
        model, loading = AutoModelForSequenceClassification.from_pretrained(
            str(directory),
            num_labels=outputs,
            dtype=getattr(torch, dtype),
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise UsageError(
            f"no sequence-classification model can be loaded from '{directory}': {error}; give the directory of a "
            "decoder model"
        ) from error
    return model.eval(), sorted(loading["missing_keys"])


def read_form(directory: Path) -> PreferenceForm:
    """The form in `preference.json`. Raises UsageError when it is missing or damaged."""
    try:
        written = json.loads((directory / FORM_FILE).read_text(encoding="utf-8"))
        form = PreferenceForm(**{name: written[name] for name in PreferenceForm.__dataclass_fields__})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"'{directory}' is no preference model: {FORM_FILE} is missing or damaged ({error}); give the directory "
            "final/ of a run of `offbeat preference`, or use the judge reward_model for other reward models"
        ) from error
    if form.kind not in get_args(Kind) or not form.temperature > 0.0:
        raise UsageError(
            f"{directory / FORM_FILE} has kind {form.kind!r} and temperature {form.temperature}; allowed are "
            f"{', '.join(get_args(Kind))} and temperatures above 0"
        )
    return form


def write_form(directory: Path, form: PreferenceForm, **beside: Any) -> None:
    """Writes `preference.json`, with further entries that a reader may want. Raises OSError."""
    pair = "prompt + first + separator + second + separator"
    assembly = pair if form.kind == "pairwise" else "prompt + response"
    document = {**asdict(form), "assembly": assembly, **beside}
    temporary = directory / f".tmp-{FORM_FILE}"
    temporary.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    temporary.replace(directory / FORM_FILE)
