"""What the tests of engines in this process need."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests import garbage


@pytest.fixture(scope="module", autouse=True)
def classes_of_transformers() -> Iterator[None]:
    """Undo what vLLM does to a class of transformers when it runs a model through it.

    It changes the class for the whole process: after that, no model of the class can be made outside an engine.
    """
    from vllm.model_executor.models.transformers.base import Base

    garbage.spare_imports()
    before: dict[type, tuple[tuple[type, ...], dict[str, Any]]] = {}
    decorate = Base._decorate_cls_for_torch_compile

    def remember(engine_model: Any, cls: type, *args: Any, **kwargs: Any) -> None:
        before.setdefault(cls, (cls.__bases__, dict(vars(cls))))
        decorate(engine_model, cls, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Base, "_decorate_cls_for_torch_compile", remember)
        yield
    for cls, (bases, attributes) in before.items():
        cls.__bases__ = bases
        for name in set(vars(cls)) - set(attributes):
            delattr(cls, name)
        for name in ("__init__", "__call__"):
            if name in attributes:
                setattr(cls, name, attributes[name])
