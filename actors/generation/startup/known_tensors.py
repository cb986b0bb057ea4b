"""A safetensors loader for vLLM that skips the tensors that the learner does not load either.

vLLM refuses a file with a name that its model does not have, such as the value head of a training library. Registered
as a load format in every process of an engine, by the import of this module.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from torch import Tensor
from vllm.config.load import LoadConfig
from vllm.model_executor.model_loader import register_model_loader
from vllm.model_executor.model_loader.default_loader import DefaultModelLoader

LOAD_FORMAT = "offbeat"
UNUSED = "unused"
"""Key of `model_loader_extra_config` for names to leave out, in the form that the loader passes to the model."""


@register_model_loader(LOAD_FORMAT)
class KnownTensorsLoader(DefaultModelLoader):
    """Loads all tensors of the files except the unused ones."""

    def __init__(self, load_config: LoadConfig) -> None:
        extra = dict(load_config.model_loader_extra_config or {})
        self._unused = frozenset(extra.pop(UNUSED, ()))
        super().__init__(replace(load_config, load_format="safetensors", model_loader_extra_config=extra))

    def get_all_weights(self, model_config: Any, model: Any) -> Iterator[tuple[str, Tensor]]:
        for name, tensor in super().get_all_weights(model_config, model):
            if name not in self._unused:
                yield name, tensor
