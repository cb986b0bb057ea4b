"""`offbeat data`: read preferences, leave out rows that are not worth training on, say why, and write the others.

Decides on every row before it writes; the output directory appears whole or not at all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from actors.data.preference_filters import (
    PerplexityRules,
    RuleOutcome,
    apply_rules,
    ceiling_of,
    duplicates_among,
    prompt_of,
)
from actors.data.preference_layouts import MalformedPreferenceError, PreferenceRow
from actors.data.preferences import (
    ROWS_PER_GROUP,
    PreferenceColumns,
    PreferenceTokens,
    TokenLimits,
    each_preference,
    preference_tokens,
    read_samples,
)
from actors.data.rows import Problem, check_problems
from actors.data.text import load_tokenizer
from actors.errors import UsageError, writing
from actors.files import atomic_directory, unwritable
from actors.foreign.text import many, shown
from actors.hub import answer_ends, resolve
from launch.data.config import DataConfig
from launch.data.report import MEANINGS, DataReport, OwnSamples, Pair, make_report
from launch.data.store import PairStore
from launch.settings.loading import dump_config
from learner.backend import manifest

if TYPE_CHECKING:
    from learner.tensors.batching import TokenSequence


class Tokenise(Protocol):
    """`preference_tokens` with its settings."""

    def __call__(
        self, rows: Sequence[PreferenceRow], *, limits: TokenLimits = ...
    ) -> list[PreferenceTokens | MalformedPreferenceError]: ...


class Scorer(Protocol):
    """The policy: scores responses and samples. `learner.stages.perplexity.PerplexityModel` implements it."""

    context: int | None

    def log_perplexities(self, sequences: Sequence[TokenSequence]) -> NDArray[np.float64]: ...

    def sample(
        self, prompts: Sequence[Sequence[int]], *, max_new_tokens: int, ends: Sequence[int], seed: int
    ) -> list[TokenSequence]: ...


@dataclass(frozen=True, slots=True)
class Preparation:
    """All rows, the decision on each, and the report."""

    store: PairStore  # of the rows of `pairs`
    pairs: list[Pair]  # well-formed rows, with those left out
    problems: list[Problem]  # rows that never became a pair
    report: DataReport

    def rows(self, split: str) -> list[PreferenceRow]:
        """Return the rows to write for `split`, in file order."""
        return list(self.store.rows(self.numbers(split)))

    def numbers(self, split: str) -> list[int]:
        """Return the numbers in the store of the rows to write for `split`."""
        return [pair.number for pair in _kept(self.pairs) if pair.split == split]

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
    if (problem := unwritable(output)) is not None:
        raise UsageError(f"output {output} cannot be written: {problem}; choose another with --output DIR")
    directory = None if config.model is None else resolve(config.model)
    if directory is not None:
        manifest.check(directory)
    tokenizer_path = config.tokenizer or (None if directory is None else str(directory))
    tokenizer = None if tokenizer_path is None else load_tokenizer(tokenizer_path, chats=config)
    ends = () if directory is None else answer_ends(directory, tokenizer)
    preparation = prepare(config, tokenizer, None if directory is None else _load_scorer(directory, config), ends)
    _require_training(config, preparation.report)
    _write(output, config, preparation)
    console = console or Console(highlight=False)
    console.print(preparation.report.renderable())
    console.print(Text(shown(f"\nwritten to {output}", lines=True)), soft_wrap=True)
    return 0


def _require_training(config: DataConfig, report: DataReport) -> None:
    """Raise UsageError if every row that is kept is held out."""
    held = report.splits["validation"]
    if held and not report.splits["train"]:
        raise UsageError(
            f"validation_fraction {config.validation_fraction:g} holds out all {many(held, 'pair')} that are kept, and "
            "leaves none to train on; lower it, or give more"
        )


def _load_scorer(directory: Path, config: DataConfig) -> Scorer:
    import torch

    from learner.stages.perplexity import PerplexityModel

    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device is cuda, and torch finds no GPU here; set device to cpu or auto")
    return PerplexityModel(directory, dtype=config.dtype, device=device, micro_batch_tokens=config.micro_batch_tokens)


def prepare(
    config: DataConfig, tokenizer: Any = None, scorer: Scorer | None = None, ends: Sequence[int] = ()
) -> Preparation:
    """Decide on every row of `config.source`; write nothing.

    The checks come in this order: well-formed, within the limits (with a `tokenizer`), no duplicate, and the rules on
    perplexity (with a `scorer`). A row is left out for the first that it fails. `ends` are the token ids that end an
    answer.
    Raises UsageError as `read_preferences` does.
    """
    columns = PreferenceColumns(config.columns)
    store, pairs, problems = _read(config, columns)
    tokenise = partial(preference_tokens, tokenizer=tokenizer, ends=ends, template=config.template)
    if tokenizer is not None:
        context = None if scorer is None else scorer.context
        limits = TokenLimits(config.max_prompt_tokens, config.max_response_tokens, context)
        _count_tokens(pairs, partial(tokenise, limits=limits))
    unique = _kept(pairs)
    check_problems([*problems, *_left_out(pairs)], len(unique), config.source, config.on_malformed)
    store.check_one_kind([pair.number for pair in unique])

    decisions = duplicates_among(
        [store.keys[pair.number] for pair in unique],
        duplicates=config.deduplicate,
        contradictory=config.contradictory,
    )
    for pair, decision in zip(unique, decisions, strict=True):
        pair.left_out, pair.why = decision, MEANINGS[decision] if decision else ""

    ceiling, own_samples, outcomes = None, None, []
    scored = _kept(pairs)
    if scorer is not None and scored:
        _score(scored, scorer, tokenise)
        ceiling, own_samples = _ceiling(scored, config, tokenise, ends or (tokenizer.eos_token_id,), scorer)
        outcomes = _judge(scored, PerplexityRules(ceiling, config.filters.max_gap, config.filters.mistakes_only))
    malformed = Counter(problem.reason for problem in problems)
    report = make_report(pairs, malformed, config, columns, ceiling, own_samples, outcomes)
    return Preparation(store, pairs, problems, report)


def _read(config: DataConfig, columns: PreferenceColumns) -> tuple[PairStore, list[Pair], list[Problem]]:
    """Read the source into a store; return it with its pairs and the malformed rows."""
    store, pairs, problems = PairStore(config.validation_fraction, config.seed), list[Pair](), list[Problem]()
    rows = each_preference(
        config.source,
        config.split,
        probability_from=config.probability_from,
        columns=columns,
        ranked_pairs=config.ranked_pairs,
    )
    with writing("the temporary file of the pairs", "or set TMPDIR to a directory with room"):
        for place, found in rows:
            if isinstance(found, Problem):
                problems.append(found)
            else:
                pairs.append(Pair(store, len(store), place))
                store.add(found)
    return store, pairs, problems


def _kept(pairs: Sequence[Pair]) -> list[Pair]:
    return [pair for pair in pairs if pair.left_out is None]


def _left_out(pairs: Sequence[Pair]) -> list[Problem]:
    return [Problem(pair.place, pair.why, pair.left_out) for pair in pairs if pair.left_out is not None]


def _groups(pairs: Sequence[Pair]) -> Iterator[Sequence[Pair]]:
    """Return pairs in groups whose tokens the memory can hold."""
    return (pairs[start : start + ROWS_PER_GROUP] for start in range(0, len(pairs), ROWS_PER_GROUP))


def _count_tokens(pairs: Sequence[Pair], tokenise: Tokenise) -> None:
    for group in _groups(pairs):
        for pair, tokens in zip(group, tokenise([pair.row for pair in group]), strict=True):
            if isinstance(tokens, MalformedPreferenceError):
                pair.left_out, pair.why = tokens.reason, str(tokens)
            else:
                pair.tokens = len(tokens.prompt), len(tokens.chosen), len(tokens.rejected)


def _score(pairs: Sequence[Pair], scorer: Scorer, tokenise: Tokenise) -> None:
    for group in _groups(pairs):
        tokens = _tokens_of(group, tokenise)
        sequences: list[TokenSequence] = [(each.prompt, each.chosen) for each in tokens]
        sequences += [(each.prompt, each.rejected) for each in tokens]
        scores = scorer.log_perplexities(sequences).reshape(2, -1)
        for pair, (chosen, rejected) in zip(group, scores.T.tolist(), strict=True):
            pair.log_perplexities = chosen, rejected


def _tokens_of(pairs: Sequence[Pair], tokenise: Tokenise) -> list[PreferenceTokens]:
    """Tokenise pairs that were tokenised before, without a fault."""
    found = tokenise([pair.row for pair in pairs])
    return [tokens for tokens in found if not isinstance(tokens, MalformedPreferenceError)]


def _judge(pairs: Sequence[Pair], rules: PerplexityRules) -> list[RuleOutcome]:
    scores = np.array([pair.log_perplexities for pair in pairs], dtype=np.float64).reshape(-1, 2)
    decisions, outcomes = apply_rules(scores[:, 0], scores[:, 1], rules)
    for pair, decision, (chosen, rejected) in zip(pairs, decisions, scores.tolist(), strict=True):
        if decision is not None:
            pair.left_out = decision
            pair.why = f"log-perplexity of chosen {chosen:.3f} and of rejected {rejected:.3f} nats per token"
    return outcomes


def _ceiling(
    pairs: Sequence[Pair], config: DataConfig, tokenise: Tokenise, ends: Sequence[int], scorer: Scorer
) -> tuple[float | None, OwnSamples | None]:
    """Return rule 1's threshold, and the model's own samples if it comes from them."""
    settings = config.filters.ceiling
    if settings.kind in ("off", "value"):
        return settings.log_perplexity, None
    if settings.kind == "file":
        sequences = _samples_of_file(
            str(settings.source), partial(tokenise, limits=TokenLimits(context=scorer.context))
        )
    else:
        sequences = _sampled(pairs, config, tokenise, ends, scorer)
    own = scorer.log_perplexities(sequences)
    return ceiling_of(own.tolist(), settings.quantile), OwnSamples(len(own), settings.quantile, float(own.mean()))


def _samples_of_file(path: str, tokenise: Tokenise) -> list[TokenSequence]:
    samples = read_samples(path, "filters.ceiling.")
    rows = [PreferenceRow(prompt, response, response) for prompt, response in samples]
    sequences: list[TokenSequence] = []
    for number, tokens in enumerate(tokenise(rows)):
        if isinstance(tokens, MalformedPreferenceError):
            raise UsageError(f"filters.ceiling.source '{path}', sample {number}: {tokens}; correct it or remove it")
        sequences.append((tokens.prompt, tokens.chosen))
    return sequences


def _sampled(
    pairs: Sequence[Pair], config: DataConfig, tokenise: Tokenise, ends: Sequence[int], scorer: Scorer
) -> list[TokenSequence]:
    """Sample responses to the prompts of the data: in random order, and again from the start if there are too few."""
    settings = config.filters.ceiling
    prompts = list({prompt_of(pair.store.keys[pair.number]): pair for pair in pairs}.values())
    order = np.random.default_rng(config.seed).permutation(len(prompts))[: settings.samples]
    tokens = [each.prompt for each in _tokens_of([prompts[number] for number in order], tokenise)]
    chosen = [tokens[number % len(tokens)] for number in range(settings.samples)]
    return scorer.sample(chosen, max_new_tokens=settings.max_new_tokens, ends=ends, seed=config.seed)


def _write(output: Path, config: DataConfig, preparation: Preparation) -> None:
    """Write the directory `output`, whole or not at all."""
    report = preparation.report
    with writing(output, "or choose another with --output DIR"), atomic_directory(output) as stage:
        for split in report.splits:
            preparation.store.write(stage / f"{split}.parquet", preparation.numbers(split))
        lines = [json.dumps({"place": p.place, "reason": p.reason, "why": p.message}) for p in preparation.left_out()]
        (stage / "left_out.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        (stage / "report.json").write_text(json.dumps(report.as_json(), indent=2) + "\n", encoding="utf-8")
        (stage / "config.yaml").write_text(dump_config(config), encoding="utf-8")
