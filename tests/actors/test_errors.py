"""What an allocation that failed becomes."""

from __future__ import annotations

import pytest
import torch

from actors.errors import LEARNER_MEMORY, RunError, oom_hint


def _too_much_for_the_host() -> None:
    torch.empty(1 << 60)


def _too_much_for_a_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee documentation")


def _too_much_for_python() -> None:
    raise MemoryError


@pytest.mark.parametrize("allocate", [_too_much_for_the_host, _too_much_for_a_gpu, _too_much_for_python])
def test_memory_that_runs_out_says_where_and_which_settings_to_change(allocate) -> None:
    with pytest.raises(RunError) as error, oom_hint("learner rank 1", LEARNER_MEMORY):
        allocate()
    assert str(error.value).startswith("learner rank 1 ran out of memory: ")
    assert "lower learner.micro_batch_tokens" in str(error.value)
    assert "\n" not in str(error.value)


def test_other_errors_are_left_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="shapes differ"), oom_hint("a", "b"):
        raise RuntimeError("shapes differ")
