"""`offbeat dpo`: preferences on disk become a trained model, and a note of what it was trained against.

Runs in the driver; the training itself is `launch/stages/driver.py`, what is learnt is `learner/stages/dpo.py`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from actors.data.preference_files import Collected, Problem, check_problems, collect_preferences
from actors.data.preference_filters import split_of
from actors.data.preference_layouts import MalformedPreferenceError
from actors.data.preference_tokens import TokenLimits, preference_tokens
from actors.data.prompts import load_tokenizer
from actors.errors import RunError, UsageError
from actors.hub import read_config, resolve
from launch.output.run_directory import RunDirectory
from launch.stages.config import DpoRunConfig
from launch.stages.driver import StageRun
from launch.stages.prepared import Prepared, writing_to
from learner.backend.models import DPO_FILE
from learner.stages.config import SCRATCH, PreferenceDataConfig
from learner.tensors.examples import TRAIN, VALIDATION, TokenPair, write_pairs


def run_dpo(config: DpoRunConfig, *, resume: bool = False) -> int:
    """Learns from given preferences. Returns the exit code: 0 at the end, 130 after an interrupt that was checkpointed.

    Beside the model's files the final directory gets `dpo.json`: reference, loss and beta, of which the implicit reward
    beta log(pi/mu) is made (Rafailov et al. 2023, eq. 5).

    Raises:
        UsageError: wrong paths, data or settings; nothing was trained.
        RunError: the run failed; the last checkpoint stands.
    """
    code = StageRun(config, prepare_dpo, resume=resume).run()
    if code == 0:
        loss = config.learner.loss
        reference = str(resolve(config.reference or config.model.path).absolute())
        path = RunDirectory(config.directory).final / DPO_FILE
        try:
            path.write_text(json.dumps({"reference": reference, **loss.model_dump()}, indent=2) + "\n")
        except OSError as error:
            raise RunError(f"cannot write {path}: {error}; the model beside it is whole") from error
    return code


def prepare_dpo(config: DpoRunConfig, directory: Path) -> Prepared:
    """Model directory, `data/train.parquet` and `data/validation.parquet` below `directory`.

    Raises:
        UsageError: a model, the tokenizer or the data cannot be used.
        RunError: the directory cannot be written.
    """
    if config.model.path == SCRATCH:
        raise UsageError(
            "model.path is scratch, and preferences teach nothing to a model that cannot write yet; give a model, such "
            "as `offbeat sft` makes"
        )
    model_dir = resolve(config.model.path)
    if config.reference is not None:
        _check_vocabulary(model_dir, resolve(config.reference))
    pairs, skipped = load_pairs(
        config.data, load_tokenizer(config.model.tokenizer or str(model_dir)), context_of(model_dir)
    )
    with writing_to(directory):
        for name, part in ((TRAIN, pairs[0]), (VALIDATION, pairs[1])):
            write_pairs(directory / "data" / name, part)
    return Prepared(model_dir, len(pairs[0]), len(pairs[1]), skipped)


def load_pairs(
    data: PreferenceDataConfig, tokenizer: Any, context: int | None
) -> tuple[tuple[list[TokenPair], list[TokenPair]], list[str]]:
    """Pairs to train on and held-out ones, and `place: problem` of each row left out. Raises UsageError."""
    found: Collected = collect_preferences(
        data.source, data.split, probability_from=data.probability_from, section="data."
    )
    limits = TokenLimits(data.max_prompt_tokens, data.max_response_tokens, context)
    encoded = preference_tokens(found.rows, tokenizer, template=data.template, limits=limits)
    sides: dict[str, list[TokenPair]] = {"train": [], "validation": []}
    problems = list(found.problems)
    for row, place, tokens in zip(found.rows, found.places, encoded, strict=True):
        if isinstance(tokens, MalformedPreferenceError):
            problems.append(Problem(place, tokens.reason, str(tokens)))
            continue
        pair = TokenPair(tuple(tokens.prompt), tuple(tokens.chosen), tuple(tokens.rejected), row.probability)
        sides[split_of(row, data.validation_fraction, 0)].append(pair)
    good = len(sides["train"]) + len(sides["validation"])
    check_problems(problems, good, data.source, data.on_malformed, "data.")
    if not sides["train"]:
        raise UsageError(
            f"data.source '{data.source}' leaves no preference to train on: all {good} are held out by "
            f"data.validation_fraction {data.validation_fraction:g}; give more prompts, or hold out less"
        )
    return (sides["train"], sides["validation"]), [f"{problem.place}: {problem.message}" for problem in problems]


def _check_vocabulary(model_dir: Path, reference_dir: Path) -> None:
    sizes = [_text_config(directory).vocab_size for directory in (model_dir, reference_dir)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"reference {reference_dir} has a vocabulary of {sizes[1]} tokens and model.path {model_dir} one of "
            f"{sizes[0]}; use a reference of the model's own vocabulary"
        )


def context_of(model_dir: Path) -> int | None:
    """Tokens that the model was made for; None where it does not say."""
    return getattr(_text_config(model_dir), "max_position_embeddings", None)


def _text_config(directory: Path) -> Any:
    try:
        return read_config(directory).get_text_config()
    except (OSError, ValueError) as error:
        raise UsageError(
            f"{directory} cannot be read as a model: {error}; give a Hugging Face model directory"
        ) from error
