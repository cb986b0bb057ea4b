"""`offbeat data`: read preferences, leave out what is not worth training on, say why, and write the rest.

Decides on every row before it writes; the output directory appears whole or not at all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from actors.data.preference_filters import (
    PerplexityRules,
    RuleOutcome,
    apply_rules,
    ceiling_of,
    find_duplicates,
    split_of,
)
from actors.data.preference_layouts import MalformedPreferenceError, PreferenceRow, prompt_key
from actors.data.preferences import (
    TokenLimits,
    check_one_kind,
    collect_preferences,
    preference_tokens,
    read_samples,
    write_preferences,
)
from actors.data.rows import Problem, check_problems
from actors.data.text import load_tokenizer
from actors.errors import UsageError, writing
from actors.files import atomic_directory
from actors.hub import resolve
from launch.data.config import DataConfig
from launch.data.report import MEANINGS, DataReport, OwnSamples, Pair, make_report
from launch.settings.loading import dump_config

if TYPE_CHECKING:
    from learner.tensors.batching import TokenSequence


class Scorer(Protocol):
    """The policy: scores responses and samples. `learner.stages.perplexity.PerplexityModel` implements it."""

    context: int | None

    def log_perplexities(self, sequences: Sequence[TokenSequence]) -> NDArray[np.float64]: ...

    def sample(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, eos: int, seed: int
    ) -> list[TokenSequence]: ...


@dataclass(frozen=True, slots=True)
class Preparation:
    """All rows, the decision on each, and the report."""

    pairs: list[Pair]  # well-formed rows, with those left out
    problems: list[Problem]  # rows that never became a pair
    report: DataReport

    def rows(self, split: str) -> list[PreferenceRow]:
        """Return the rows to write for `split`, in file order."""
        return [pair.row for pair in _kept(self.pairs) if pair.split == split]

    def left_out(self) -> Iterator[Problem]:
        """Return every row that is not written."""
        yield from self.problems
        yield from _left_out(self.pairs)


def run_data(config: DataConfig, console: Console | None = None) -> int:
    """Prepare and write `config.source`; return the exit code 0.

    Raises UsageError before writing if paths, data or settings are wrong; RunError if the disk refuses.
    """
    output = Path(config.output).expanduser()
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"output {output} exists and is not an empty directory; choose another with --output DIR")
    directory = None if config.model is None else resolve(config.model)
    tokenizer_path = config.tokenizer or (None if directory is None else str(directory))
    tokenizer = None if tokenizer_path is None else load_tokenizer(tokenizer_path)
    preparation = prepare(config, tokenizer, None if directory is None else _load_scorer(directory, config))
    _write(output, config, preparation)
    console = console or Console(highlight=False)
    console.print(preparation.report.renderable())
    console.print(f"\nwritten to {output}", soft_wrap=True)
    return 0


def _load_scorer(directory: Path, config: DataConfig) -> Scorer:
    import torch

    from learner.stages.perplexity import PerplexityModel

    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, and torch finds no GPU here; set device to cpu or auto")
    return PerplexityModel(directory, dtype=config.dtype, device=device, micro_batch_tokens=config.micro_batch_tokens)


def prepare(config: DataConfig, tokenizer: Any = None, scorer: Scorer | None = None) -> Preparation:
    """Decide on every row of `config.source`; write nothing.

    The checks come in this order: well-formed, within the limits (with a `tokenizer`), no duplicate, and the rules on
    perplexity (with a `scorer`). A row is left out for the first that it fails.
    Raises UsageError as `read_preferences` does.
    """
    collected = collect_preferences(config.source, config.split, probability_from=config.probability_from)
    pairs = [Pair(row, place) for row, place in zip(collected.rows, collected.places, strict=True)]
    if tokenizer is not None:
        context = None if scorer is None else scorer.context
        _tokenise(pairs, tokenizer, config, TokenLimits(config.max_prompt_tokens, config.max_response_tokens, context))
    unique = _kept(pairs)
    check_problems([*collected.problems, *_left_out(pairs)], len(unique), config.source, config.on_malformed)
    check_one_kind([pair.row for pair in unique])

    decisions = find_duplicates(
        [pair.row for pair in unique], duplicates=config.deduplicate, contradictory=config.contradictory
    )
    for pair, decision in zip(unique, decisions, strict=True):
        pair.left_out, pair.why = decision, MEANINGS[decision] if decision else ""

    ceiling, own_samples, outcomes = None, None, []
    scored = _kept(pairs)
    if scorer is not None and scored:
        _score(scored, scorer)
        ceiling, own_samples = _ceiling(scored, config, tokenizer, scorer)
        outcomes = _judge(scored, PerplexityRules(ceiling, config.filters.max_gap, config.filters.mistakes_only))
    for pair in _kept(pairs):
        pair.split = split_of(pair.row, config.validation_fraction, config.seed)
    malformed = Counter(problem.reason for problem in collected.problems)
    report = make_report(pairs, malformed, config, ceiling, own_samples, outcomes)
    return Preparation(pairs, collected.problems, report)


def _kept(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair.left_out is None]


def _left_out(pairs: Sequence[Pair]) -> list[Problem]:
    return [Problem(pair.place, pair.why, pair.left_out) for pair in pairs if pair.left_out is not None]


def _tokenise(pairs: Sequence[Pair], tokenizer: Any, config: DataConfig, limits: TokenLimits) -> None:
    found = preference_tokens([pair.row for pair in pairs], tokenizer, template=config.template, limits=limits)
    for pair, tokens in zip(pairs, found, strict=True):
        if isinstance(tokens, MalformedPreferenceError):
            pair.left_out, pair.why = tokens.reason, str(tokens)
        else:
            pair.tokens = tokens


def _score(pairs: Sequence[Pair], scorer: Scorer) -> None:
    tokens = [pair.tokens for pair in pairs if pair.tokens is not None]
    sequences: list[TokenSequence] = [(each.prompt, each.chosen) for each in tokens]
    sequences += [(each.prompt, each.rejected) for each in tokens]
    scores = scorer.log_perplexities(sequences).reshape(2, -1)
    for pair, (chosen, rejected) in zip(pairs, scores.T.tolist(), strict=True):
        pair.log_perplexities = chosen, rejected


def _judge(pairs: Sequence[Pair], rules: PerplexityRules) -> list[RuleOutcome]:
    scores = np.array([pair.log_perplexities for pair in pairs], dtype=np.float64).reshape(-1, 2)
    decisions, outcomes = apply_rules(scores[:, 0], scores[:, 1], rules)
    for pair, decision, (chosen, rejected) in zip(pairs, decisions, scores.tolist(), strict=True):
        if decision is not None:
            pair.left_out = decision
            pair.why = f"log-perplexity of chosen {chosen:.3f} and of rejected {rejected:.3f} nats per token"
    return outcomes


def _ceiling(
    pairs: Sequence[Pair], config: DataConfig, tokenizer: Any, scorer: Scorer
) -> tuple[float | None, OwnSamples | None]:
    """Return rule 1's threshold, and the model's own samples if it comes from them."""
    settings = config.filters.ceiling
    if settings.kind in ("off", "value"):
        return settings.log_perplexity, None
    if settings.kind == "file":
        sequences = _samples_of_file(str(settings.source), config, tokenizer, scorer)
    else:
        sequences = _sampled(pairs, config, tokenizer, scorer)
    own = scorer.log_perplexities(sequences)
    return ceiling_of(own.tolist(), settings.quantile), OwnSamples(len(own), settings.quantile, float(own.mean()))


def _samples_of_file(path: str, config: DataConfig, tokenizer: Any, scorer: Scorer) -> list[TokenSequence]:
    samples = read_samples(path, "filters.ceiling.")
    rows = [PreferenceRow(prompt, response, response) for prompt, response in samples]
    limits = TokenLimits(context=scorer.context)
    sequences: list[TokenSequence] = []
    for number, tokens in enumerate(preference_tokens(rows, tokenizer, template=config.template, limits=limits)):
        if isinstance(tokens, MalformedPreferenceError):
            raise UsageError(f"filters.ceiling.source '{path}', sample {number}: {tokens}; correct it or remove it")
        sequences.append((tokens.prompt, tokens.chosen))
    return sequences


def _sampled(pairs: Sequence[Pair], config: DataConfig, tokenizer: Any, scorer: Scorer) -> list[TokenSequence]:
    """Sample responses to the prompts of the data: in random order, and again from the start if there are too few."""
    settings = config.filters.ceiling
    prompts = list({prompt_key(pair.row.prompt): pair.tokens.prompt for pair in pairs if pair.tokens}.values())
    order = np.random.default_rng(config.seed).permutation(len(prompts))
    chosen = [prompts[order[number % len(order)]] for number in range(settings.samples)]
    return scorer.sample(chosen, max_new_tokens=settings.max_new_tokens, eos=tokenizer.eos_token_id, seed=config.seed)


def _write(output: Path, config: DataConfig, preparation: Preparation) -> None:
    """Write the directory `output`, whole or not at all."""
    report = preparation.report
    with writing(output, "choose another with --output DIR"), atomic_directory(output) as stage:
        for split in report.splits:
            write_preferences(stage / f"{split}.parquet", preparation.rows(split))
        lines = [json.dumps({"place": p.place, "reason": p.reason, "why": p.message}) for p in preparation.left_out()]
        (stage / "left_out.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (stage / "report.json").write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
        (stage / "config.yaml").write_text(dump_config(config), encoding="utf-8")
