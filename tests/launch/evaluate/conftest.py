"""Two models of random weights for the tests of evaluation."""

import json

import pytest

from learner.stages.config import ScratchConfig
from learner.stages.scratch import make_model


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(("verifier", "reference")):
        size = ScratchConfig(vocabulary=300, layers=1, heads=1, max_tokens=64, seed=seed)
        make_model(path / name, ["5+7=12"], size)
    record = {"reference": str(path / "reference"), "kind": "dpo", "beta": 0.2, "label_smoothing": 0.0}
    (path / "verifier" / "dpo.json").write_text(json.dumps(record))
    return path
