"""A prepared stage for the driver: a model and tokenised examples on disk."""

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from actors.errors import writing


@dataclass(frozen=True)
class Prepared:
    """A stage's model and data on disk."""

    model_dir: Path
    train: int  # training examples
    validation: int  # held-out examples
    skipped: list[str]  # malformed rows that were left out
    notes: list[str] = field(default_factory=list)  # printed once, at the start
    beside: Mapping[str, str] = field(default_factory=dict)  # text files to write into the trained model's directory


def writing_to(directory: Path) -> contextlib.AbstractContextManager[None]:
    """Turn an error of writing below `directory` into a RunError that names it."""
    return writing(f"to {directory}", "or choose another directory with --output DIR")
