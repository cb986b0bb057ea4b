"""Base of every configuration model. Must import nothing but pydantic."""

import os
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

WORLD = "world"
"""Selects the embedded world wherever a setting takes a path or a data set."""
STARTS = "OFFBEAT_STARTS"
"""Environment variable that a sweep sets for its runs: directory of the world's policies that the runs start from."""


def _at_home(path: str) -> str:
    return os.path.expanduser(path) if path.startswith("~") else path


def _on_this_machine(path: str) -> str:
    if "://" in path:
        raise ValueError(f"given {path!r}, a URL; allowed: a directory that this machine can write; give one")
    if not path.strip() or path != path.strip() or any(ord(letter) < 32 for letter in path):
        what = "which begins or ends with a space or has a line break" if path.strip() else "which is empty"
        raise ValueError(f"given {path!r}, {what}; allowed: a directory that this machine can write; correct it")
    return _at_home(path)


ModelPath = Annotated[str, AfterValidator(_at_home)]
"""Directory or hub name of a model or tokenizer; `~` is the user's home."""
OutputPath = Annotated[str, AfterValidator(_on_this_machine)]
"""Directory to write; `~` is the user's home."""


class Settings(BaseModel):
    """Base of every configuration model: frozen; rejects unknown keys, infinities and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


MOST_ACTORS = 10_000
"""Most processes of one role: all are listed before any cluster is asked for room."""
SMALLEST_SHARE = 0.0001
"""Smallest share of a core or a GPU that Ray can reserve."""


def _reservable(share: float) -> float:
    if 0.0 < share < SMALLEST_SHARE:
        raise ValueError(f"{share:g} is below {SMALLEST_SHARE:g}, the smallest share that Ray can reserve; raise it")
    return share


GpuShare = Annotated[float, AfterValidator(_reservable)]
"""A share of one GPU that an actor reserves from Ray; 0 if it runs on CPU."""


def item_mistakes(error: ValidationError, noun: str) -> str:
    """Describe the mistakes in a list's items, each a `noun`. Shows no values: one may be a misplaced secret."""

    def said(detail: Any) -> str:
        index, *path = detail["loc"] or ("",)
        where = f"{noun} {index + 1}" if isinstance(index, int) else f"{noun}s"
        return f"{where}{''.join(f'.{part}' for part in path)}: {_said_of(detail)}"

    found = error.errors(include_url=False)
    # If items are wrong, pydantic also reports the list as too short.
    of_items = [each for each in found if each["loc"]]
    return "; ".join(map(said, of_items or found))


def _said_of(detail: Any) -> str:
    """Word one of pydantic's errors about an item."""
    context = detail.get("ctx", {})
    match detail["type"]:
        case "missing":
            return "missing; add it"
        case "extra_forbidden":
            return "no such setting here; remove it, or put it below the setting that it belongs to"
        case "union_tag_invalid":
            return f"given {context.get('tag')!r}; allowed: {context.get('expected_tags')}"
        case "too_short":
            return f"given {context.get('actual_length')}; allowed: {context.get('min_length')} or more; add some"
    return str(detail["msg"]).removeprefix("Value error, ").replace("Input should be", "it should be")
