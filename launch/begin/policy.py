"""The model that a configuration starts from: its sizes, its tokenizer, and what could not be read of it."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from actors.errors import UsageError
from actors.foreign.model_place import PRETRAINED, missing_model_remedy
from actors.settings import WORLD
from launch.doctor.machine import connection_problem
from launch.doctor.model_facts import ModelFacts, is_hub_name, local_directory, read_model

HUB = "https://huggingface.co"
CHECKOUT = Path(__file__).resolve().parents[2]
"""The directory above our packages; in a checkout it has a Makefile, and may hold models/."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Facts of a model, from the files that are on this machine."""

    path: str
    """Path as the user wrote it."""
    facts: ModelFacts | None = None
    tokenizer: Any = None
    positions: int | None = None  # longest sequence in tokens; None if unknown
    notes: tuple[str, ...] = ()

    @property
    def chats(self) -> bool:
        """Return whether the policy's tokenizer has a chat template."""
        return bool(self.tokenizer is not None and self.tokenizer.chat_template)


def own_model() -> str:
    """Return the directory of the model that comes with the project. Raises UsageError if it is not here."""
    below = f"models/{PRETRAINED}"
    for path, name in ((Path(below), f"./{below}"), (CHECKOUT / below, str(CHECKOUT / below))):
        if (path / "config.json").is_file():
            return name
    looked = f"{Path.cwd()} and {CHECKOUT}" if (CHECKOUT / "Makefile").is_file() else str(Path.cwd())
    raise UsageError(
        f"no --model is given, and {below} is not here (looked in {looked}); pass "
        "--model with a directory or hub name, or run `make pretrained` in a checkout"
    )


def read_policy(path: str) -> Policy:
    """Read a model's sizes and tokenizer; of a hub name that is neither here nor reachable only the name.

    Raises UsageError if a directory is missing or holds no model that can be trained.
    """
    if path == WORLD:
        raise UsageError(
            f"--model {WORLD} needs no file of its own: run `offbeat train embedded`, or `offbeat config embedded` for "
            "its settings"
        )
    directory = local_directory(path)
    if Path(path).expanduser().is_file():
        raise UsageError(f"--model {path} is a file; give a Hugging Face directory, with config.json and *.safetensors")
    if directory is None and not may_be_on_the_hub(path):
        raise UsageError(f"--model {path} does not exist (looked in {Path.cwd()}); {missing_model_remedy(path)}")
    if directory is None and not _hub_answers():
        if "/" not in path:
            raise UsageError(
                f"--model {path} is no directory (looked in {Path.cwd()}), and the hub, which may have a model of that "
                "name, does not answer; correct the path"
            )
        said = f"{path} is not on this machine and the hub does not answer: lengths and memory are common values"
        return Policy(path, notes=(said,))
    return _read(path, directory)


def _read(path: str, directory: Path | None) -> Policy:
    from actors.data.text import load_tokenizer
    from actors.hub import positions_of, read_text_config, resolve

    local = directory is not None
    directory = resolve(path, weights=False) if directory is None else directory
    config = read_text_config("--model", directory)
    tokenizer = load_tokenizer(str(directory))
    notes, facts = [], None
    try:
        facts = read_model(str(directory))
    except ValueError as error:
        if local:
            raise UsageError(f"--model {path}: {error}; give a directory with the model's weights") from None
        notes.append(f"the weights of {path} are not on this machine: its memory is not estimated")
    return Policy(path, facts, tokenizer, positions_of(config), tuple(notes))


def may_be_on_the_hub(path: str) -> bool:
    """Return whether a name that is not here may be the hub's; below a directory that is here it is mistyped."""
    return is_hub_name(path) and not ("/" in path and Path(path).parent.is_dir())


def _hub_answers() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        return False
    return connection_problem(os.environ.get("HF_ENDPOINT", HUB)) is None
