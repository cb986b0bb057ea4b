"""Base of every configuration model. Must import nothing but pydantic."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationError

WORLD = "world"
"""Selects the embedded world wherever a setting takes a path or a data set."""


PRETRAINED = "smollm2-135m-instruct"
"""The directory below models/ that `make pretrained` writes, and that the preset `chat` trains."""


def missing_model_remedy(path: str) -> str:
    """Say what to do about a model directory `path` that does not exist."""
    made = path.rstrip("/").endswith(f"models/{PRETRAINED}")
    return f"`make pretrained` writes models/{PRETRAINED} in a checkout" if made else "give an existing directory"


class Settings(BaseModel):
    """Base of every configuration model: frozen; rejects unknown keys, infinities and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


SMALLEST_SHARE = 0.0001
"""Smallest share of a core or a GPU that Ray can reserve."""


def _reservable(share: float) -> float:
    if 0.0 < share < SMALLEST_SHARE:
        raise ValueError(f"{share:g} is below {SMALLEST_SHARE:g}, the smallest share that Ray can reserve; raise it")
    return share


GpuShare = Annotated[float, AfterValidator(_reservable)]
"""A share of one GPU that an actor reserves from Ray; 0 if it runs on CPU."""


def item_mistakes(error: ValidationError, noun: str) -> str:
    """Say what is wrong with a list's items, each a `noun`, without the values: one may be a misplaced secret."""

    def said(detail: Any) -> str:
        index, *path = detail["loc"] or ("",)
        where = f"{noun} {index + 1}" if isinstance(index, int) else f"{noun}s"
        return f"{where}{''.join(f'.{part}' for part in path)}: {detail['msg'].removeprefix('Value error, ')}"

    return "; ".join(map(said, error.errors(include_url=False)))
