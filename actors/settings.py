"""The base of every configuration model. Light by law: it imports pydantic alone."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

WORLD = "world"
"""Names the embedded world where a path or a data set is asked for."""


class Settings(BaseModel):
    """Base of every configuration model: frozen; unknown keys, infinities and NaN are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())
