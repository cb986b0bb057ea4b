"""Training preference models on pairs: Bradley-Terry, pairwise and skew-symmetric.

`actors/judges/models/preference_network.py` defines the models, `learner/stages/preference_card.py` evaluates them.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits
from transformers import AutoModelForSequenceClassification

from actors.adapters.peft_form import adapt
from actors.data.text import load_tokenizer
from actors.judges.models.classifier import collate, load_classifier
from actors.judges.models.preference_network import PreferenceForm, PreferenceNetwork
from learner.backend.loading import read_once, without_weights
from learner.stages.config import PreferenceConfig
from learner.stages.preference_card import finish
from learner.stages.stage import Stage
from learner.tensors.examples import TRAIN, VALIDATION, TokenPair, read_pairs
from learner.training.trainer import Measured, Objective

SMALLEST_PROBABILITY = 1e-6
"""Labels are clipped this far from 0 and 1 before the logit that gives the score difference."""


class PreferenceObjective(Objective):
    """Mean cross-entropy (nats) of soft labels over a batch's pairs; one forward pass holds both sequences of a pair.

    L = -p log sigmoid(s - m) - (1 - p) log sigmoid(-s - m), with p smoothed. The margin m is 0, or a multiple of the
    source's score difference |logit p|, with p then rounded to a hard label (Touvron et al. 2023, equation 2).
    """

    sums = ("accuracy",)

    def __init__(
        self, form: PreferenceForm, micro_batch_tokens: int, *, label_smoothing: float = 0.0, margin: float = 0.0
    ) -> None:
        super().__init__(micro_batch_tokens)
        self._form, self._smoothing, self._margin = form, label_smoothing, margin

    def length(self, item: TokenPair) -> int:
        return max(map(len, self._form.sequences(item.prompt, item.chosen, item.rejected)))

    def measure(self, forward: Any, micro_batch: Sequence[TokenPair], prepared: Any = None) -> Measured:
        device = forward.device
        both = [self._form.sequences(pair.prompt, pair.chosen, pair.rejected) for pair in micro_batch]
        sequences = [one for one, _ in both] + [other for _, other in both]
        input_ids, ends = collate(sequences, device)
        s = self._form.logits(*forward(input_ids, ends).chunk(2))
        p = torch.tensor([pair.probability for pair in micro_batch], device=device, dtype=s.dtype)
        right = 0.5 + 0.5 * s.detach().sign() * (p - 0.5).sign()
        return Measured(self.losses(s, p).sum(), {"accuracy": right.sum()}, sum(map(len, sequences)), input_ids.numel())

    def losses(self, s: Tensor, p: Tensor) -> Tensor:
        """Compute losses [b] from logits s [b] and labels p [b]."""
        lead = torch.zeros_like(s)
        if self._margin:
            lead = self._margin * p.clamp(SMALLEST_PROBABILITY, 1.0 - SMALLEST_PROBABILITY).logit().abs()
            p = 0.5 + 0.5 * (p - 0.5).sign()
        p = p + self._smoothing * (1.0 - 2.0 * p)
        won = binary_cross_entropy_with_logits(s - lead, torch.ones_like(s), reduction="none")
        lost = binary_cross_entropy_with_logits(-s - lead, torch.ones_like(s), reduction="none")
        return p * won + (1.0 - p) * lost


def make_stage(config: PreferenceConfig, model_dir: str | Path, data_dir: str | Path) -> Stage:
    """Load the body of the model in `model_dir`, with a new head, and the pairs of `data_dir`.

    Held-out pairs are measured without smoothing and margin. Raises UsageError if the model cannot be loaded or is not
    a decoder.
    """
    settings, tokens = config.preference, config.learner.micro_batch_tokens
    lora, tokenizer = config.learner.lora, load_tokenizer(config.model.tokenizer or str(model_dir))
    form = PreferenceForm(settings.kind, tokenizer.eos_token_id, settings.skew_blocks if settings.kind == "skew" else 0)
    network = start_network(Path(model_dir), form, config.learner.dtype, config.learner.seed)
    if lora is not None:
        adapt(network.model, lora, config.model.path, whole="score")
    # Sequence-classification models read the last token that is not padding, and a finished response ends with
    # end-of-sequence: the two tokens must differ.
    pad = tokenizer.pad_token_id
    network.model.config.get_text_config().pad_token_id = None if pad == tokenizer.eos_token_id else pad
    train, validation = (read_pairs(Path(data_dir) / name) for name in (TRAIN, VALIDATION))
    return Stage(
        module=network,
        objective=PreferenceObjective(form, tokens, label_smoothing=settings.label_smoothing, margin=settings.margin),
        train=train,
        validation=validation,
        held_out_objective=PreferenceObjective(form, tokens),
        finish=partial(finish, config=config, form=form, train=train, validation=validation),
    )


def start_network(directory: Path, form: PreferenceForm, dtype: str, seed: int) -> PreferenceNetwork:
    """Load the model of `directory` with the number of outputs of `form`.

    A missing head, as in a language model, is initialised: normal with standard deviation 1 / (d + 1), d the width of
    the model, for reward and pairwise outputs, and 1 / (2 sqrt(d)) for the entries of u, because products of two small
    numbers have almost no gradient. Collective. Raises UsageError if other weights are missing.
    """

    def load() -> PreferenceNetwork:
        model, missing = load_classifier(directory, form.outputs, dtype, new_head=True)
        network = PreferenceNetwork(model)
        if missing:
            width = model.score.in_features
            deviations = torch.full((form.outputs, 1), 0.5 * width**-0.5)
            deviations[0] = 1.0 / (width + 1)
            generator = torch.Generator().manual_seed(seed)
            with torch.no_grad():
                model.score.weight.copy_(deviations * torch.randn(form.outputs, width, generator=generator))
        return network

    def build() -> PreferenceNetwork:
        options = {"num_labels": form.outputs}
        return PreferenceNetwork(without_weights(AutoModelForSequenceClassification, directory, dtype, **options))

    return read_once(directory, load, build)
