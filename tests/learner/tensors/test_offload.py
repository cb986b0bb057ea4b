"""Weights that are on the device only while their module runs. Here a clone stands for a copy on a GPU."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from learner.tensors import offload
from learner.tensors.offload import keep_on_host, present

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def clones(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """Those that are, or were, on the device."""
    made: list[torch.Tensor] = []

    def clone(value: torch.Tensor, device: torch.device) -> torch.Tensor:
        made.append(value.clone())
        return made[-1]

    monkeypatch.setattr(offload, "copied", clone)
    return made


class Watching(nn.Linear):
    """Notes where its own weights are while it runs, and where those of the module after it are."""

    def __init__(self) -> None:
        super().__init__(4, 4, bias=False)
        self.host = self.weight.data_ptr()
        self.seen: list[tuple[bool, ...]] = []
        self.next: list[Watching] = []

    @property
    def at_home(self) -> bool:
        return self.weight.data_ptr() == self.host

    def forward(self, values: torch.Tensor) -> torch.Tensor:
        self.seen.append((self.at_home, *(other.at_home for other in self.next)))
        return super().forward(values)


class Failing(Watching):
    def forward(self, values: torch.Tensor) -> torch.Tensor:
        raise ValueError("midway")


def test_each_module_has_its_weights_on_the_device_while_it_runs_and_no_other_has() -> None:
    first, second = Watching(), Watching()
    first.next.append(second)
    model = nn.Sequential(first, second).requires_grad_(False)
    values = torch.arange(4.0)
    expected = model(values)
    first.seen.clear(), second.seen.clear()
    assert keep_on_host(model, CPU) is model
    for _ in range(2):
        assert torch.equal(model(values), expected)
    assert first.seen == [(False, True)] * 2
    assert second.seen == [(False,)] * 2
    assert first.at_home
    assert second.at_home


def test_tied_weights_have_one_copy_in_host_memory(clones: list[torch.Tensor]) -> None:
    first, second = Watching(), Watching()
    second.weight = first.weight
    keep_on_host(nn.Sequential(first, second), CPU)
    with present(first):
        assert first.weight.data_ptr() == second.weight.data_ptr() == clones[-1].data_ptr()
    assert first.weight.data_ptr() == second.weight.data_ptr() == first.host


def test_weights_are_present_within_the_context_and_a_module_that_was_not_moved_is_left_alone() -> None:
    layer = keep_on_host(Watching(), CPU)
    with present(layer):
        assert not layer.at_home
    assert layer.at_home
    other = Watching()
    with present(other):
        assert other.at_home


def test_a_pass_that_fails_leaves_its_weights_in_host_memory(clones: list[torch.Tensor]) -> None:
    layer = keep_on_host(Failing(), CPU)
    with pytest.raises(ValueError, match="midway"):
        layer(torch.zeros(4))
    assert len(clones) == 1
    assert layer.at_home
