"""`offbeat preference`: prepare the model and the preferences, then train a preference model with a card.

`launch/stages/driver.py` trains; the loss is in `learner/stages/preference.py`.
"""

from pathlib import Path

from actors.data.rows import held_out_notes
from actors.data.text import load_tokenizer
from actors.errors import UsageError
from actors.foreign.text import many
from actors.host import threads, usable_cores
from actors.hub import answer_ends, positions_of, read_text_config, resolve
from actors.settings import WORLD
from launch.output.session import Resume
from launch.run.preflight import check_weights
from launch.stages.config import PreferenceRunConfig
from launch.stages.dpo import load_pairs
from launch.stages.driver import StageRun
from launch.stages.prepared import Prepared, writing_to
from learner.stages.config import SCRATCH
from learner.tensors.examples import TRAIN, VALIDATION, TokenPair, write_pairs

Sides = tuple[list[TokenPair], list[TokenPair]]


def run_preference(config: PreferenceRunConfig, *, resume: Resume = False) -> int:
    """Train a preference model. Returns the exit code: 0 at the end, 130 after an interrupt with a checkpoint.

    Writes `preference.json`, `model_card.json` and `README.md` beside the final model. Raises UsageError before
    training if paths, data or settings are wrong; RunError if the run fails, whose last checkpoint is whole.
    """
    return StageRun(config, prepare_preference, resume=resume).run()


def prepare_preference(config: PreferenceRunConfig, directory: Path) -> Prepared:
    """Write the tokenised preferences, and the embedded world's starting model, below `directory`.

    Raises UsageError if the model, the tokenizer or the data cannot be used; RunError if the directory cannot be
    written.
    """
    with writing_to(directory):
        skipped: list[str] = []
        model_dir = _starting_model(config, directory / "start")
        notes = check_weights("model.path", model_dir, classifier=True, new_head=True)
        context = positions_of(read_text_config("model.path", model_dir))
        if config.data.source == WORLD:
            sides = _world_pairs(config, model_dir)
        else:
            tokenizer = load_tokenizer(config.model.tokenizer or str(model_dir), chats=config.model)
            sides, skipped = load_pairs(config.data, tokenizer, context, answer_ends(model_dir, tokenizer))
        if config.preference.kind == "pairwise" and context is not None:
            sides, skipped = _within(config, sides, skipped, context)
        for name, part in zip((TRAIN, VALIDATION), sides, strict=True):
            write_pairs(directory / "data" / name, part)
    return Prepared(model_dir, len(sides[0]), len(sides[1]), skipped, [*notes, *held_out_notes(config.data)])


def _starting_model(config: PreferenceRunConfig, directory: Path) -> Path:
    """Return the directory of the starting model; the embedded world's is trained in `directory`, once."""
    if config.model.path == SCRATCH:
        raise UsageError(
            "model.path is scratch, and a preference model starts from one that can read; give a model, such as "
            "one from `offbeat sft`"
        )
    if config.model.path != WORLD:
        return resolve(config.model.path)
    from learner.world.policy import train_sft

    world = config.data.world
    train_sft(directory, updates=world.sft_updates, seed=world.seed, threads=threads(usable_cores()))
    return directory


def _world_pairs(config: PreferenceRunConfig, model_dir: Path) -> Sides:
    """Return pairs of the embedded world. Raises UsageError if the model has another vocabulary."""
    from actors.world import tokenizer
    from learner.world.pairs import world_pairs

    if load_tokenizer(config.model.tokenizer or str(model_dir)).get_vocab() != tokenizer().get_vocab():
        raise UsageError(
            f"data.source is world and model.path {config.model.path} has another vocabulary; set model.path to world, "
            "or to a policy that was trained there"
        )
    world = config.data.world
    return world_pairs(world.task, world.pairs, world.labels, world.seed, config.data.validation_fraction)


def _within(config: PreferenceRunConfig, sides: Sides, skipped: list[str], context: int) -> tuple[Sides, list[str]]:
    """Keep the pairs whose two responses fit the model together. Raises UsageError if others may not be skipped."""

    def length(pair: TokenPair) -> int:
        return len(pair.prompt) + len(pair.chosen) + len(pair.rejected) + 2

    train, validation = ([pair for pair in side if length(pair) <= context] for side in sides)
    longer = sum(map(len, sides)) - len(train) - len(validation)
    if longer and (config.data.on_malformed == "error" or not train):
        raise UsageError(
            f"{longer} of {many(sum(map(len, sides)), 'pair')} of data.source '{config.data.source}' are longer than "
            f"the model's context of {context} tokens with prompt, both responses and a separator after each; lower "
            "data.max_response_tokens and set data.on_malformed to skip, or set preference.kind to skew"
        )
    note = [f"{longer} pairs: longer than the model's context of {context} with both responses"] if longer else []
    return (train, validation), [*skipped, *note]
