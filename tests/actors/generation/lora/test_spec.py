"""What a generator's description says of adapters, before anything heavy is imported."""

from __future__ import annotations

from dataclasses import replace

import pytest

from actors.adapters import peft_form
from actors.adapters.config import LoraConfig
from actors.errors import WeightMismatchError
from actors.generation.config import OpponentConfig, adapter_problem
from actors.generation.generator import Generator
from actors.records import Canary, Manifest, TensorRecord
from tests.fakes.generators import FakeEngine, spec_of
from tests.fakes.models import tiny_llama, with_adapter

LORA = LoraConfig(rank=2, alpha=4)


@pytest.mark.parametrize(
    ("kind", "reference", "adapter", "beta", "is_base"),
    [
        ("reference", None, LORA, None, True),
        ("reference", "a", LORA, None, True),
        ("reference", "b", LORA, 1.0, False),
        ("reference", None, None, 1.0, False),
        ("mixture", None, LORA, 0.25, False),
        ("weighted", None, LORA, None, False),
    ],
)
def test_a_second_model_is_held_unless_the_base_is_the_reference(kind, reference, adapter, beta, is_base) -> None:
    opponent = OpponentConfig(kind=kind, beta=0.25)
    spec = spec_of("a", opponent=opponent, reference_dir=reference, adapter=adapter)
    assert (spec.engine_beta, spec.opponent_is_base) == (beta, is_base)
    assert replace(spec, opponent=None).engine_beta is None


def test_float32_on_gpus_is_refused_with_what_to_set() -> None:
    assert adapter_problem("float32", gpu=False) is None
    assert adapter_problem("bfloat16", gpu=True) is None
    problem = adapter_problem("float32", gpu=True)
    assert problem is not None
    assert "generators.dtype is float32" in problem
    assert problem.endswith("set it to bfloat16, or learner.lora.publish to merged")


def test_names_and_shapes_of_an_adapter_are_refused_before_a_transfer(tmp_path) -> None:
    tiny_llama(tmp_path, seed=1)
    model = with_adapter(tmp_path, LORA, seed=1)
    shapes = {name: tuple(tensor.shape) for name, tensor in peft_form.tensors(model).items()}
    generator = Generator(spec_of(tmp_path, adapter=LORA), FakeEngine)

    def manifest(own: dict[str, tuple[int, ...]]) -> Manifest:
        records = tuple(TensorRecord(name, shape, "bfloat16", "") for name, shape in own.items())
        return Manifest(1, records, Canary((1, 2), (-0.5,)), "gloo")

    generator.check_weights(manifest(shapes))
    (first, *others) = sorted(shapes)
    with pytest.raises(WeightMismatchError, match=rf"version 1: tensor '{first}' is missing"):
        generator.check_weights(manifest({name: shapes[name] for name in others}))
    with pytest.raises(WeightMismatchError, match=r"is published with shape \(3, 64\), .* has \(2, 64\)"):
        generator.check_weights(
            manifest({name: (3, 64) if shape == (2, 64) else shape for name, shape in shapes.items()})
        )
    generator.close()
