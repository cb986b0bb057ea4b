"""Settings as tests write them: what a loss owns may stand beside it."""

from __future__ import annotations

from typing import Any


def nested(settings: dict[str, Any]) -> dict[str, Any]:
    """`settings` with `opponent` and `learner.correction` moved into `learner.loss`, which owns them."""
    settings = dict(settings)
    learner = dict(settings.pop("learner", {}))
    owned = {"opponent": settings.pop("opponent", None), "correction": learner.pop("correction", None)}
    loss = learner.get("loss", {}) | {name: value for name, value in owned.items() if value}
    return settings | {"learner": learner | {"loss": loss}}
