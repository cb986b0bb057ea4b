"""`offbeat dpo`: prepare the model and the preferences, train, and note the reference beside the trained model.

`launch/stages/driver.py` trains; the loss is in `learner/stages/dpo.py`.
"""

import json
from collections.abc import Collection
from pathlib import Path
from typing import Any

from actors.data.preference_filters import split_of
from actors.data.preference_layouts import MalformedPreferenceError
from actors.data.preferences import TokenLimits, collect_preferences, preference_tokens
from actors.data.rows import Problem, check_problems, check_training_rows, held_out_notes, splits_to_read
from actors.data.text import load_tokenizer
from actors.errors import UsageError
from actors.hub import answer_ends, positions_of, read_text_config, resolve
from launch.output.session import Resume
from launch.run.preflight import check_split, check_weights
from launch.stages.config import DpoRunConfig
from launch.stages.driver import StageRun
from launch.stages.prepared import Prepared, writing_to
from learner.backend.models import DPO_FILE
from learner.stages.config import SCRATCH, PreferenceDataConfig
from learner.tensors.examples import TRAIN, VALIDATION, TokenPair, write_pairs


def run_dpo(config: DpoRunConfig, *, resume: Resume = False) -> int:
    """Train on given preferences. Returns the exit code: 0 at the end, 130 after an interrupt with a checkpoint.

    Writes `dpo.json` beside the final model: reference, loss and beta, which the implicit reward beta log(pi/mu) needs
    (Rafailov et al. 2023, eq. 5). Raises UsageError before
    training if paths, data or settings are wrong; RunError if the run fails, whose last checkpoint is whole.
    """
    return StageRun(config, prepare_dpo, resume=resume).run()


def prepare_dpo(config: DpoRunConfig, directory: Path) -> Prepared:
    """Write the tokenised preferences below `directory`.

    Raises UsageError if a model, the tokenizer or the data cannot be used; RunError if the directory cannot be written.
    """
    if config.model.path == SCRATCH:
        raise UsageError(
            "model.path is scratch, and preferences teach nothing to a model that cannot write yet; give a model, such "
            "as one from `offbeat sft`"
        )
    model_dir = resolve(config.model.path)
    notes = check_weights("model.path", model_dir)
    if config.reference is not None:
        _check_vocabulary(model_dir, resolve(config.reference))
        notes += check_weights("reference", resolve(config.reference))
    model = read_text_config("model.path", model_dir)
    check_split(config.learner.sequence_parallel, model, model_dir)
    context = positions_of(model)
    tokenizer = load_tokenizer(config.model.tokenizer or str(model_dir), chats=config.model)
    sides, skipped = load_pairs(config.data, tokenizer, context, answer_ends(model_dir, tokenizer))
    with writing_to(directory):
        for name, part in zip((TRAIN, VALIDATION), sides, strict=True):
            write_pairs(directory / "data" / name, part)
    record = {"reference": str(resolve(config.reference or config.model.path).absolute())}
    return Prepared(
        model_dir,
        len(sides[0]),
        len(sides[1]),
        skipped,
        [*notes, *held_out_notes(config.data)],
        {DPO_FILE: json.dumps(record | config.learner.loss.model_dump(), indent=2) + "\n"},
    )


def load_pairs(
    data: PreferenceDataConfig, tokenizer: Any, context: int | None, ends: Collection[int] = ()
) -> tuple[tuple[list[TokenPair], list[TokenPair]], list[str]]:
    """Return training and held-out pairs, and `place: problem` of each malformed row.

    `ends` are as in `response_token_ids`. Raises UsageError.
    """
    limits = TokenLimits(data.max_prompt_tokens, data.max_response_tokens, context)
    train: list[TokenPair] = []
    validation: list[TokenPair] = []
    problems: list[Problem] = []
    for split, side in splits_to_read(data).items():
        found = collect_preferences(
            data.source,
            split,
            probability_from=data.probability_from,
            columns=data.columns,
            ranked_pairs=data.ranked_pairs,
            section="data.",
        )
        encoded = preference_tokens(found.rows, tokenizer, ends, template=data.template, limits=limits)
        problems += found.problems
        for row, place, tokens in zip(found.rows, found.places, encoded, strict=True):
            if isinstance(tokens, MalformedPreferenceError):
                problems.append(Problem(place, str(tokens), tokens.reason))
                continue
            pair = TokenPair(tuple(tokens.prompt), tuple(tokens.chosen), tuple(tokens.rejected), row.probability)
            chosen_side = side or split_of(row, data.validation_fraction, 0)
            (train if chosen_side == "train" else validation).append(pair)
    check_problems(problems, len(train) + len(validation), data.source, data.on_malformed, "data.")
    check_training_rows(len(train), len(validation), len(problems), data.source, data.validation_fraction)
    return (train, validation), [str(problem) for problem in problems]


def _check_vocabulary(model_dir: Path, reference_dir: Path) -> None:
    model, reference = read_text_config("model.path", model_dir), read_text_config("reference", reference_dir)
    if model.vocab_size != reference.vocab_size:
        raise UsageError(
            f"reference {reference_dir} has a vocabulary of {reference.vocab_size} tokens and model.path {model_dir} "
            f"one of {model.vocab_size}; use a reference with the model's vocabulary"
        )
