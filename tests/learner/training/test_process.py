"""The environment of a rank's process, as far as no rank is needed."""

import os

import pytest

from learner.training.process import set_environment
from tests.learner.backend.ranks import CONFIG, place_of


@pytest.mark.parametrize(
    ("gpus", "given", "expected"), [(0.0, {}, "1"), (0.0, {"TORCHDYNAMO_DISABLE": "0"}, "0"), (1.0, {}, None)]
)
def test_torch_compiles_for_gpus_alone_unless_it_is_asked_to(monkeypatch, gpus, given, expected):
    """DeepSpeed compiles a function of an optimizer at import: a second of each start, for nothing on CPU."""
    before = {name: value for name, value in os.environ.items() if name != "TORCHDYNAMO_DISABLE"}
    monkeypatch.setattr(os, "environ", before | given)
    set_environment(CONFIG.model_copy(update={"gpus_per_rank": gpus}), place_of(0, 1, 1))
    assert os.environ.get("TORCHDYNAMO_DISABLE") == expected
