"""What a trained preference model is worth: its temperature, its figures on held-out pairs, and its card.

Everything is measured on the model as it lies on disk, by the code that will use it as a judge. It must not know how
the model was trained beyond its configuration.
"""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from actors.files import atomic_write
from actors.judges.models.preference_network import PreferenceForm, PreferenceModel, Tokens, write_form
from learner.stages import calibration
from learner.stages.calibration import Array
from learner.stages.preference_config import PreferenceConfig
from learner.tensors.examples import TokenPair

CARD_FILE, README_FILE = "model_card.json", "README.md"
TRIPLES = 512
DEGRADED_PAIRS = 256
SEED = 0
"""Of the triples and degraded answers, which are the same for every model of the same data."""
NOTHING_HELD_OUT = "no pair was held out (data.validation_fraction)"
DEGRADATIONS = ("shuffled", "repeated", "truncated", "other_prompt", "empty")


def finish(
    directory: Path,
    device: torch.device,
    *,
    config: PreferenceConfig,
    form: PreferenceForm,
    train: Sequence[TokenPair],
    validation: Sequence[TokenPair],
) -> dict[str, Any]:
    """Calibrates the model in `directory`, and writes `preference.json`, `model_card.json` and `README.md` there.

    Returns the figures of the card. Raises OSError when the disk refuses.
    """
    write_form(directory, form)
    model = PreferenceModel.load(
        directory, dtype=config.learner.dtype, batch_tokens=config.learner.micro_batch_tokens, device=device
    )
    z, p = logits(model, validation), _labels(validation)
    if config.preference.calibrate and validation:
        model.form = replace(form, temperature=calibration.fit_temperature(z, p))
    figures: dict[str, Any] = {"held_out_pairs": len(validation)}
    figures |= fit_figures(z, p, model.form.temperature) if validation else {"fit": None, "fit_why": NOTHING_HELD_OUT}
    figures |= order_bias(model, validation)
    figures |= length_baseline(train, validation)
    figures |= curl_figures(model, validation)
    figures["degraded"] = degraded_figures(model, validation, form.separator)
    calibrated = {name: figures.get(name) for name in ("ece_before", "ece", "nll_before", "nll")}
    write_form(directory, model.form, calibration=calibrated)
    card = {
        "kind": form.kind,
        "skew_blocks": form.skew_blocks,
        "temperature": model.form.temperature,
        "base_model": config.model.path,
        "data": config.data.source,
        "training_pairs": len(train),
        **figures,
    }
    atomic_write(directory / CARD_FILE, json.dumps(card, indent=2) + "\n")
    atomic_write(directory / README_FILE, card_text(card))
    return card


def logits(model: PreferenceModel, pairs: Sequence[TokenPair]) -> Array:
    """s [n] of chosen over rejected, divided by the model's temperature."""
    tables = model.tables([pair.prompt for pair in pairs], [(pair.chosen, pair.rejected) for pair in pairs])
    return np.array([table[0, 1] for table in tables])


def fit_figures(z: Array, p: Array, temperature: float) -> dict[str, float]:
    """Accuracy, NLL and ECE of logits `z` [n] at temperature 1, before and after the division by `temperature`."""
    return {
        "accuracy": calibration.accuracy(z, p),
        "nll_before": calibration.negative_log_likelihood(z, p),
        "nll": calibration.negative_log_likelihood(z / temperature, p),
        "ece_before": calibration.expected_calibration_error(z, p),
        "ece": calibration.expected_calibration_error(z / temperature, p),
        "label_entropy": calibration.negative_log_likelihood(_logit(p), p),
    }


def order_bias(model: PreferenceModel, pairs: Sequence[TokenPair]) -> dict[str, Any]:
    """What f says of a pair that does not change sign with its order, b = (f(x, y1, y2) + f(x, y2, y1)) / 2.

    Its mean (above 0: the first is favoured), the mean of |b|, and the share of pairs whose winner depends on the
    order; s itself, the antisymmetric part, has none of it. 0 by construction where responses are read alone.
    """
    both = model.raw_orders([pair.prompt for pair in pairs], [(pair.chosen, pair.rejected) for pair in pairs])
    if not pairs:
        return {"order_bias": None, "order_bias_why": NOTHING_HELD_OUT}
    if both is None:
        return {"order_bias": {"mean": 0.0, "mean_absolute": 0.0, "order_decides": 0.0}}
    b = both.mean(axis=1)
    decides = np.sign(both[:, 0]) == np.sign(both[:, 1])
    values = {"mean": b.mean(), "mean_absolute": np.abs(b).mean(), "order_decides": decides.mean()}
    return {"order_bias": {name: float(value) for name, value in values.items()}}


def length_baseline(train: Sequence[TokenPair], validation: Sequence[TokenPair]) -> dict[str, Any]:
    """Held-out accuracy and NLL of a model that knows the difference of lengths (tokens) alone, fitted on `train`."""
    if not validation:
        return {"length_only": None, "length_only_why": NOTHING_HELD_OUT}
    slope = calibration.fit_slope(_length_differences(train), _labels(train))
    z, p = slope * _length_differences(validation), _labels(validation)
    values = {"accuracy": calibration.accuracy(z, p), "nll": calibration.negative_log_likelihood(z, p)}
    return {"length_only": values | {"slope": slope}}


def triples(pairs: Sequence[TokenPair], most: int = TRIPLES) -> list[tuple[Tokens, tuple[Tokens, ...]]]:
    """At most `most` prompts with three different responses each, prompts in turn, from a fixed seed."""
    responses: defaultdict[Tokens, dict[Tokens, None]] = defaultdict(dict)
    for pair in pairs:
        responses[pair.prompt] |= dict.fromkeys((pair.chosen, pair.rejected))
    rng = random.Random(SEED)
    found: list[tuple[Tokens, tuple[Tokens, ...]]] = []
    able = [(prompt, list(ys)) for prompt, ys in responses.items() if len(ys) >= 3]
    if not able:
        return []
    for prompt, ys in able:
        share = -(-most // len(able))
        some = list(combinations(ys, 3)) if len(ys) <= 8 else [tuple(rng.sample(ys, 3)) for _ in range(share)]
        found += [(prompt, three) for three in rng.sample(some, min(share, len(some)))]
    return found[:most]


def curl_figures(model: PreferenceModel, pairs: Sequence[TokenPair]) -> dict[str, Any]:
    """How much the preference turns: E|s_12 + s_23 + s_31| and the share of cyclic triples of held-out responses."""
    chosen = [each for each in triples(pairs) if all(model.fits(each[0], a, b) for a, b in combinations(each[1], 2))]
    if not chosen:
        return {"curl": None, "curl_why": "no held-out prompt has three different responses"}
    tables = model.tables([prompt for prompt, _ in chosen], [ys for _, ys in chosen])
    mean, cyclic = calibration.curl(np.stack(tables))
    return {"curl": {"mean_absolute": mean, "cyclic_share": cyclic, "triples": len(chosen)}}


def degraded(response: Tokens, other: Tokens, eos: int, rng: random.Random) -> dict[str, Tokens | None]:
    """`response` spoilt in each of `DEGRADATIONS`; None where that leaves it as it was. All end with end-of-sequence.

    Tokens in another order, all said twice, cut to half, the answer `other` to another prompt, nothing at all.
    """
    said = response[:-1] if response[-1] == eos else response
    shuffled = list(said)
    rng.shuffle(shuffled)
    made = {
        "shuffled": (*shuffled, eos),
        "repeated": (*said, *said, eos),
        "truncated": (*said[: len(said) // 2], eos),
        "other_prompt": other,
        "empty": (eos,),
    }
    return {name: None if tokens in (response, (*said, eos)) else tokens for name, tokens in made.items()}


def degraded_figures(model: PreferenceModel, pairs: Sequence[TokenPair], eos: int) -> dict[str, dict[str, Any]]:
    """For each degradation the share of preferred held-out responses that beat their degraded copy; ties one half.

    Null, with no pairs, where nothing could be compared: no response changed, fitted the model, or had another prompt.
    """
    rng = random.Random(SEED)
    some = rng.sample(list(pairs), min(len(pairs), DEGRADED_PAIRS))
    comparisons: dict[str, list[tuple[Tokens, Tokens, Tokens]]] = {name: [] for name in DEGRADATIONS}
    for pair in some:
        best = _preferred(pair)
        others = [other for other in some if other.prompt != pair.prompt]
        other = _preferred(rng.choice(others)) if others else best
        for name, tokens in degraded(best, other, eos, rng).items():
            if tokens is not None and model.fits(pair.prompt, best, tokens):
                comparisons[name].append((pair.prompt, best, tokens))
    result: dict[str, dict[str, Any]] = {}
    for name, compared in comparisons.items():
        tables = model.tables([x for x, *_ in compared], [(best, worse) for _, best, worse in compared])
        wins = [0.5 + 0.5 * float(np.sign(table[0, 1])) for table in tables]
        result[name] = {"loses": float(np.mean(wins)) if wins else None, "pairs": len(wins)}
    return result


def card_text(card: dict[str, Any]) -> str:
    """The card for a reader, with the same figures."""
    fit = {name: card.get(name) for name in ("accuracy", "nll_before", "nll", "ece_before", "ece", "label_entropy")}
    length, bias, curl = card["length_only"], card["order_bias"], card["curl"]
    rows = [
        ("accuracy", _figure(fit["accuracy"])),
        ("NLL, nats per pair: before and after calibration", f"{_figure(fit['nll_before'])}, {_figure(fit['nll'])}"),
        ("entropy of the labels, the least NLL there is", _figure(fit["label_entropy"])),
        ("ECE, 15 bins: before and after calibration", f"{_figure(fit['ece_before'])}, {_figure(fit['ece'])}"),
        ("order bias: mean, mean absolute, share of pairs that order decides", _figures(bias, card, "order_bias")),
        ("a model of length alone: accuracy, NLL, slope per token", _figures(length, card, "length_only")),
        ("curl E&#124;s12 + s23 + s31&#124;, share of cyclic triples, triples", _figures(curl, card, "curl")),
        *(
            (f"preferred answers that beat themselves {name.replace('_', ' ')}", _share(card["degraded"][name]))
            for name in DEGRADATIONS
        ),
    ]
    table = "\n".join(f"| {name} | {value} |" for name, value in rows)
    return f"""---
base_model: {json.dumps(card["base_model"])}
tags: [preference-model, {card["kind"]}]
---

# Preference model ({card["kind"]})

Trained by `offbeat preference` on {card["training_pairs"]:,} pairs of `{card["data"]}`, from `{card["base_model"]}`.
`preference.json` says what it reads and the temperature, {card["temperature"]:.4g}, that its logits are divided by.

Measured on {card["held_out_pairs"]:,} held-out pairs, by which training was stopped and the temperature was fitted:
figures on fresh pairs will be somewhat worse.

| | |
|---|---|
{table}

A share near one half in the last rows means that the model does not notice the damage: do not train against it where a
policy could do such damage. Degraded answers end like finished ones. An accuracy near that of length alone means that
it has learnt little else.
"""


def _share(entry: dict[str, Any]) -> str:
    return "nothing to compare" if entry["loses"] is None else f"{entry['loses']:.3f} of {entry['pairs']}"


def _figures(values: dict[str, float] | None, card: dict[str, Any], name: str) -> str:
    return f"none: {card[f'{name}_why']}" if values is None else ", ".join(map(_figure, values.values()))


def _figure(value: float | None) -> str:
    return "none" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


def _preferred(pair: TokenPair) -> Tokens:
    return pair.chosen if pair.probability >= 0.5 else pair.rejected


def _labels(pairs: Sequence[TokenPair]) -> Array:
    return np.array([pair.probability for pair in pairs], dtype=np.float64)


def _length_differences(pairs: Sequence[TokenPair]) -> Array:
    return np.array([len(pair.chosen) - len(pair.rejected) for pair in pairs], dtype=np.float64)


def _logit(p: Array) -> Array:
    inside = np.clip(p, 1e-12, 1.0 - 1e-12)
    return np.log(inside) - np.log1p(-inside)
