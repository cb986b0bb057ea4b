"""Base of every configuration model. Must import nothing but pydantic."""

from pydantic import BaseModel, ConfigDict

WORLD = "world"
"""Selects the embedded world wherever a setting takes a path or a data set."""


class Settings(BaseModel):
    """Base of every configuration model: frozen; rejects unknown keys, infinities and NaN."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
