"""`offbeat sft`: prepare the model and the demonstrations, then fine-tune.

Preparation runs in the driver before any actor starts, so that every mistake in the request is reported at once.
"""

from pathlib import Path

from actors.data.demonstrations import Demonstrations, load_demonstrations, texts_of
from actors.data.rows import held_out_notes
from actors.data.text import load_tokenizer
from actors.errors import UsageError
from actors.hub import answer_ends, positions_of, read_text_config, resolve
from launch.output.session import Resume
from launch.run.preflight import check_split, check_weights
from launch.stages.config import SftRunConfig
from launch.stages.driver import StageRun
from launch.stages.prepared import Prepared, writing_to
from learner.stages.config import SCRATCH
from learner.tensors.examples import TRAIN, VALIDATION, write_sequences


def run_sft(config: SftRunConfig, *, resume: Resume = False) -> int:
    """Fine-tune on demonstrations. Returns the exit code: 0 at the end, 130 after an interrupt with a checkpoint.

    Raises UsageError before training if paths, data or settings are wrong; RunError if the run fails, whose last
    checkpoint is whole.
    """
    return StageRun(config, prepare_sft, resume=resume).run()


def prepare_sft(config: SftRunConfig, directory: Path) -> Prepared:
    """Write the starting model and the tokenised demonstrations below `directory`.

    Raises UsageError if model, tokenizer or data cannot be used; RunError if the directory cannot be written.
    """
    with writing_to(directory):
        model_dir = starting_model(config, directory / "start")
        notes = check_weights("model.path", model_dir)
        check_split(config.learner.sequence_parallel, read_text_config("model.path", model_dir), model_dir)
        tokenizer = load_tokenizer(config.model.tokenizer or str(model_dir), chats=config.model)
        demonstrations = load_demonstrations(config.data, tokenizer, answer_ends(model_dir, tokenizer))
        check_fit(config, model_dir, demonstrations)
        write_sequences(directory / "data" / TRAIN, demonstrations.train)
        write_sequences(directory / "data" / VALIDATION, demonstrations.validation)
    notes += held_out_notes(config.data)
    return Prepared(model_dir, len(demonstrations.train), len(demonstrations.validation), demonstrations.skipped, notes)


def starting_model(config: SftRunConfig, directory: Path) -> Path:
    """Return the directory of the starting model; `scratch` makes it in `directory`, once."""
    if config.model.path != SCRATCH:
        return resolve(config.model.path)
    if config.model.tokenizer is not None:
        raise UsageError(
            f"model.tokenizer {config.model.tokenizer!r} is set and model.path is scratch, which trains its own "
            "tokenizer; leave model.tokenizer out, or give a model"
        )
    if config.data.max_tokens > config.model.scratch.max_tokens:
        raise UsageError(
            f"data.max_tokens {config.data.max_tokens} exceeds model.scratch.max_tokens "
            f"{config.model.scratch.max_tokens}; lower the first or raise the second"
        )
    if not (directory / "config.json").is_file():
        from learner.stages.scratch import make_model

        make_model(directory, texts_of(config.data), config.model.scratch)
    return directory


def check_fit(config: SftRunConfig, model_dir: Path, demonstrations: Demonstrations) -> None:
    """Raise UsageError if the model cannot be read, or has too few positions or tokens for the demonstrations."""
    model = read_text_config("model.path", model_dir)
    positions = positions_of(model)
    if positions is not None and config.data.max_tokens > positions:
        raise UsageError(
            f"data.max_tokens {config.data.max_tokens} exceeds the {positions} positions of model.path "
            f"{config.model.path}; lower it to {positions} or less"
        )
    examples = demonstrations.train + demonstrations.validation
    largest = max(max(*prompt, *response) for prompt, response in examples)
    if largest >= model.vocab_size:
        raise UsageError(
            f"the tokenizer {config.model.tokenizer or config.model.path} has token {largest}, and model.path "
            f"{config.model.path} only {model.vocab_size} tokens; set model.tokenizer to the model's own"
        )
