"""Calibration and model card of a trained preference model: its temperature and its metrics on the held-out set.

Measures the model on disk, through the code that the judge runs. Must not depend on training beyond its configuration.
Throughout, z [n] are logits that the first of two responses is preferred, p [n] the labels: probabilities of the same.
"""

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
from numpy.typing import NDArray

from actors.files import atomic_write
from actors.judges.models.preference_network import PreferenceForm, PreferenceModel, Tokens, write_form
from actors.world import sigmoid
from learner.stages.config import PreferenceConfig
from learner.tensors.examples import TokenPair

Array = NDArray[np.float64]
ECE_BINS = 15
_LARGEST_SCALE = 100.0
"""Temperatures are searched between 1 / this and this."""
CARD_FILE, README_FILE = "model_card.json", "README.md"
TRIPLES = 512
DEGRADED_PAIRS = 256
SEED = 0
"""Seed of triples and degraded answers, which are the same for every model of the same data."""
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
    """Calibrate the model in `directory`, write `preference.json`, `model_card.json` and `README.md`; return the card.

    Raises OSError if the disk refuses.
    """
    write_form(directory, form)
    model = PreferenceModel.load(
        directory, dtype=config.learner.dtype, batch_tokens=config.learner.micro_batch_tokens, device=device
    )
    z, p = logits(model, validation), _labels(validation)
    if config.preference.calibrate and validation:
        model.form = replace(form, temperature=fit_temperature(z, p))
    metrics: dict[str, Any] = {"held_out_pairs": len(validation)}
    metrics |= fit_metrics(z, p, model.form.temperature) if validation else {"fit": None, "fit_why": NOTHING_HELD_OUT}
    metrics |= order_bias(model, validation)
    metrics |= length_baseline(train, validation)
    metrics |= curl_metrics(model, validation)
    metrics["degraded"] = degraded_metrics(model, validation, form.separator)
    calibrated = {name: metrics.get(name) for name in ("ece_before", "ece", "nll_before", "nll")}
    write_form(directory, model.form, calibration=calibrated)
    card = {
        "kind": form.kind,
        "skew_blocks": form.skew_blocks,
        "temperature": model.form.temperature,
        "base_model": config.model.path,
        "data": config.data.source,
        "training_pairs": len(train),
        **metrics,
    }
    atomic_write(directory / CARD_FILE, json.dumps(card, indent=2) + "\n")
    atomic_write(directory / README_FILE, card_text(card))
    return card


def negative_log_likelihood(z: Array, p: Array) -> float:
    """Mean of -p log sigmoid(z) - (1 - p) log sigmoid(-z), nats per pair."""
    return float(np.mean(np.logaddexp(0.0, z) - p * z))


def accuracy(z: Array, p: Array) -> float:
    """Share of pairs whose likelier response is the one that the label prefers; a tie of either counts 1/2."""
    return float(np.mean(0.5 + 0.5 * np.sign(z) * np.sign(p - 0.5)))


def expected_calibration_error(z: Array, p: Array, bins: int = ECE_BINS) -> float:
    """Mean over bins, weighted by size, of |confidence - accuracy| (Guo et al. 2017, equation 3).

    A pair's confidence is the probability of its likelier response, its accuracy the label's probability of that
    response. `bins` equal bins divide [1/2, 1], the range of confidences with two classes.
    """
    gaps, of_bin = _calibration_gaps(z, p, bins)
    return float(np.abs(np.bincount(of_bin, weights=gaps, minlength=bins)).sum() / len(z))


def calibration_noise(z: Array, p: Array, bins: int = ECE_BINS) -> float:
    """Estimate the calibration error that noise alone would give a calibrated model with pairs as noisy as these.

    Its gaps have mean 0 in each bin, so their sum is nearly normal, and E|sum| = sqrt(2 / pi sum of gaps^2).
    """
    gaps, of_bin = _calibration_gaps(z, p, bins)
    return float(np.sqrt(2.0 / np.pi * np.bincount(of_bin, weights=gaps * gaps, minlength=bins)).sum() / len(z))


def _calibration_gaps(z: Array, p: Array, bins: int) -> tuple[Array, NDArray[np.int64]]:
    """Return confidence less accuracy of each pair [n], and its bin [n]."""
    confidence = sigmoid(np.abs(z))
    right = np.where(z >= 0.0, p, 1.0 - p)
    return confidence - right, np.minimum(((confidence - 0.5) * 2.0 * bins).astype(int), bins - 1)


def fit_temperature(z: Array, p: Array) -> float:
    """Find the T in [1/100, 100] that minimises the negative log-likelihood of z / T (Guo et al. 2017, section 4.2).

    1 if all z are 0.
    """
    return 1.0 / _best_slope(z, p, 1.0 / _LARGEST_SCALE, _LARGEST_SCALE) if np.any(z) else 1.0


def fit_slope(x: Array, p: Array) -> float:
    """Find the a that minimises the negative log-likelihood of a x: logistic regression without intercept.

    |a| is at most 100 over the root mean square of x, the value for separable labels. 0 if all x are 0.
    """
    if not np.any(x):
        return 0.0
    largest = _LARGEST_SCALE / float(np.sqrt(np.mean(x * x)))
    return _best_slope(x, p, -largest, largest)


def _best_slope(x: Array, p: Array, low: float, high: float) -> float:
    """Bisect the derivative by a, mean((sigmoid(a x) - p) x), which never falls: the loss is convex in a."""
    for _ in range(60):
        middle = 0.5 * (low + high)
        if np.mean((sigmoid(middle * x) - p) * x) > 0.0:
            high = middle
        else:
            low = middle
    return 0.5 * (low + high)


def curl(tables: Array) -> tuple[float, float]:
    """Return the mean of |s_12 + s_23 + s_31| over antisymmetric logits [n, 3, 3] of triples, and the cyclic share.

    A triple is cyclic if s_12, s_23 and s_31 have one sign: each response is preferred to the next one way round.
    """
    around = np.stack([tables[:, 0, 1], tables[:, 1, 2], tables[:, 2, 0]], axis=1)
    cyclic = (around > 0.0).all(axis=1) | (around < 0.0).all(axis=1)
    return float(np.abs(around.sum(axis=1)).mean()), float(cyclic.mean())


def logits(model: PreferenceModel, pairs: Sequence[TokenPair]) -> Array:
    """Compute s [n] of chosen over rejected, divided by the model's temperature."""
    tables = model.tables([pair.prompt for pair in pairs], [(pair.chosen, pair.rejected) for pair in pairs])
    return np.array([table[0, 1] for table in tables])


def fit_metrics(z: Array, p: Array, temperature: float) -> dict[str, float]:
    """Compute accuracy, NLL and ECE of logits `z` [n] at temperature 1, before and after division by `temperature`."""
    return {
        "accuracy": accuracy(z, p),
        "nll_before": negative_log_likelihood(z, p),
        "nll": negative_log_likelihood(z / temperature, p),
        "ece_before": expected_calibration_error(z, p),
        "ece": expected_calibration_error(z / temperature, p),
        "ece_noise": calibration_noise(z / temperature, p),
        "label_entropy": negative_log_likelihood(_logit(p), p),
    }


def order_bias(model: PreferenceModel, pairs: Sequence[TokenPair]) -> dict[str, Any]:
    """Measure the part of f that does not change sign with a pair's order, b = (f(x, y1, y2) + f(x, y2, y1)) / 2.

    Returns the mean of b (above 0: the first is favoured), the mean of |b|, and the share of pairs whose winner depends
    on the order. All are 0 for models that read responses alone, and s itself, the antisymmetric part, has none.
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
    """Measure a model of the length difference (tokens) alone, fitted on `train`: held-out accuracy and NLL."""
    if not validation:
        return {"length_only": None, "length_only_why": NOTHING_HELD_OUT}
    slope = fit_slope(_length_differences(train), _labels(train))
    z, p = slope * _length_differences(validation), _labels(validation)
    return {"length_only": {"accuracy": accuracy(z, p), "nll": negative_log_likelihood(z, p), "slope": slope}}


def triples(pairs: Sequence[TokenPair], most: int = TRIPLES) -> list[tuple[Tokens, tuple[Tokens, ...]]]:
    """Draw at most `most` prompts with three different responses each, spread over prompts, with a fixed seed."""
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


def curl_metrics(model: PreferenceModel, pairs: Sequence[TokenPair]) -> dict[str, Any]:
    """Measure `curl` on triples of held-out responses."""
    chosen = [each for each in triples(pairs) if all(model.fits(each[0], a, b) for a, b in combinations(each[1], 2))]
    if not chosen:
        return {"curl": None, "curl_why": "no held-out prompt has three different responses"}
    tables = model.tables([prompt for prompt, _ in chosen], [ys for _, ys in chosen])
    mean, cyclic = curl(np.stack(tables))
    return {"curl": {"mean_absolute": mean, "cyclic_share": cyclic, "triples": len(chosen)}}


def degraded(response: Tokens, other: Tokens, eos: int, rng: random.Random) -> dict[str, Tokens | None]:
    """Damage `response` in each of `DEGRADATIONS`; None if that changes nothing. All copies end with end-of-sequence.

    The damage: tokens shuffled, repeated, cut to half, replaced by `other`, the answer to another prompt, or removed.
    """
    body = response[:-1] if response[-1] == eos else response
    shuffled = list(body)
    rng.shuffle(shuffled)
    copies = {
        "shuffled": (*shuffled, eos),
        "repeated": (*body, *body, eos),
        "truncated": (*body[: len(body) // 2], eos),
        "other_prompt": other,
        "empty": (eos,),
    }
    return {name: None if tokens in (response, (*body, eos)) else tokens for name, tokens in copies.items()}


def degraded_metrics(model: PreferenceModel, pairs: Sequence[TokenPair], eos: int) -> dict[str, dict[str, Any]]:
    """Compute, for each degradation, the share of preferred held-out responses that beat their copy; ties count 1/2.

    None, with 0 pairs, if there is nothing to compare: no copy differs, fits the model, or answers another prompt.
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
    """Render the card as Markdown."""

    def shown(*names: str) -> str:
        return ", ".join(_number(card.get(name)) for name in names)

    rows = [
        ("accuracy", shown("accuracy")),
        ("NLL (nats per pair) before and after calibration", shown("nll_before", "nll")),
        ("label entropy, the lowest possible NLL", shown("label_entropy")),
        ("ECE (15 bins) before and after calibration", shown("ece_before", "ece")),
        ("ECE that noise alone gives a calibrated model on as many pairs", shown("ece_noise")),
        ("order bias: mean, mean absolute value, share of pairs decided by order", _group(card, "order_bias")),
        ("model of length alone: accuracy, NLL, slope per token", _group(card, "length_only")),
        ("curl E&#124;s12 + s23 + s31&#124;, share of cyclic triples, triples", _group(card, "curl")),
        *(
            (f"preferred answers that beat their copy: {name.replace('_', ' ')}", _share(card["degraded"][name]))
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
`preference.json` defines its input and the temperature, {card["temperature"]:.4g}, that divides its logits.

Measured on {card["held_out_pairs"]:,} held-out pairs. Early stopping and the temperature used the same pairs: expect
somewhat worse values on new pairs.

| | |
|---|---|
{table}

The last rows compare preferred answers with damaged copies, which end like finished answers. A share near one half
means that the model does not notice the damage, and a policy trained against it can exploit that (reward hacking). An
accuracy near that of length alone means that the model has learnt little else.
"""


def _share(entry: dict[str, Any]) -> str:
    return "nothing to compare" if entry["loses"] is None else f"{entry['loses']:.3f} of {entry['pairs']}"


def _group(card: dict[str, Any], name: str) -> str:
    values = card[name]
    return f"none: {card[f'{name}_why']}" if values is None else ", ".join(map(_number, values.values()))


def _number(value: float | None) -> str:
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
