"""Models compared bit for bit."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from learner.backend.compare import WeightComparison, compare_models, compare_weights


def test_the_same_bits_are_identical_also_where_they_are_no_number() -> None:
    weights = {"a": torch.tensor([1.0, math.nan]), "b": torch.zeros(2, 3, dtype=torch.bfloat16), "c": torch.tensor(3)}
    same = {name: tensor.clone() for name, tensor in weights.items()}
    found = compare_weights(weights, same)
    assert found == WeightComparison(3, 0, 0.0, None)


def test_the_largest_difference_and_its_tensor_are_told() -> None:
    first = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([[4.0]]), "c": torch.tensor([7.0])}
    second = {"a": torch.tensor([1.5, 2.0]), "b": torch.tensor([[2.0]]), "c": torch.tensor([7.0])}
    found = compare_weights(first, second)
    assert found == WeightComparison(3, 2, 2.0, "b")


def test_a_zero_of_the_other_sign_has_other_bits() -> None:
    assert compare_weights({"a": torch.tensor([0.0])}, {"a": torch.tensor([-0.0])}) == WeightComparison(1, 1, 0.0, "a")


@pytest.mark.parametrize(
    "other",
    [{}, {"a": torch.zeros(3)}, {"a": torch.tensor([math.nan, 0.0])}],
    ids=["missing", "of another shape", "not a number"],
)
def test_what_cannot_be_compared_differs_without_bound(other: dict[str, torch.Tensor]) -> None:
    assert compare_weights({"a": torch.zeros(2)}, other) == WeightComparison(1, 1, math.inf, "a")


def test_another_dtype_is_another_tensor_whose_values_are_compared() -> None:
    third = torch.tensor([1 / 3])
    found = compare_weights({"a": third}, {"a": third.bfloat16()})
    # bfloat16 keeps 8 bits of 1/3 = 1.0101011|0... x 2^-2, rounded up: 171/512.
    assert found.different == 1
    assert found.largest_difference == pytest.approx(171 / 512 - 1 / 3, rel=1e-4)


def test_all_files_of_a_model_are_compared(tmp_path: Path) -> None:
    for name, last in (("first", 1.0), ("second", 3.0)):
        (tmp_path / name).mkdir()
        save_file({"a": torch.ones(2)}, tmp_path / name / "model-00001-of-00002.safetensors")
        save_file({"b": torch.tensor([last])}, tmp_path / name / "model-00002-of-00002.safetensors")
    assert compare_models(tmp_path / "first", tmp_path / "first").different == 0
    assert compare_models(tmp_path / "first", tmp_path / "second") == WeightComparison(2, 1, 2.0, "b")
