"""Stands for the classes that wiring makes actors of: reports where Ray put it. Starts in a second, without torch."""

from __future__ import annotations

from typing import Any


class Probe:
    """Takes any arguments, does nothing, and says where it is."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        self.arguments = (arguments, settings)

    def where(self) -> tuple[str, tuple[int, ...]]:
        """Its node's id, and the numbers of its GPUs there."""
        import ray

        context = ray.get_runtime_context()
        return context.get_node_id(), tuple(sorted(int(card) for card in context.get_accelerator_ids()["GPU"]))

    def variable(self, name: str) -> str | None:
        """An environment variable of its process."""
        import os

        return os.environ.get(name)

    def value(self, module: str) -> Any:
        """`VALUE` of a module that its process can import."""
        import importlib

        return importlib.import_module(module).VALUE

    def ready(self) -> None:
        pass

    def seconds(self) -> float:
        return 0.0
