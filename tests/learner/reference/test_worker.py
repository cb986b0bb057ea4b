"""Log-probs of a reference actor against transformers' own logits; one group at a time, cut to fit a pass."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from actors.errors import UsageError
from learner.reference.config import ReferenceConfig, ReferenceSpec
from learner.reference.worker import ReferenceWorker
from learner.tensors.batching import RolloutSequence
from tests.learner.backend.ranks import TEMPERATURE, make_model

PROMPT = (3, 1, 4)
ROLLOUTS: list[RolloutSequence] = [
    (PROMPT, (5, 9, 2, 6), ()),
    (PROMPT, (7,), ()),
    (PROMPT, (8, 9, 7, 9, 3), ((1, 3),)),
]


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("reference") / "model")


@pytest.fixture(autouse=True)
def threads() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def spec_of(directory: Path, *, share_prompts: bool = True, **settings: object) -> ReferenceSpec:
    return ReferenceSpec(
        config=ReferenceConfig(count=1, **settings),
        model_dir=str(directory),
        dtype="float32",
        logprob_chunk=2,
        temperature=TEMPERATURE,
        share_prompts=share_prompts,
    )


@torch.no_grad()
def by_definition(directory: Path) -> list[list[float]]:
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    rows = []
    for prompt, response, given in ROLLOUTS:
        ids = torch.tensor([*prompt, *response])
        logits = model(input_ids=ids[None]).logits[0] / TEMPERATURE
        row = [float(logits[place - 1].log_softmax(-1)[ids[place]]) for place in range(len(prompt), len(ids))]
        rows.append([0.0 if any(a <= n < b for a, b in given) else value for n, value in enumerate(row)])
    return rows


@pytest.mark.parametrize("share_prompts", [True, False])
@pytest.mark.parametrize("budget", [1, 10, 8192])
def test_every_token_gets_its_log_prob_at_the_run_s_temperature_however_the_group_is_cut(
    directory: Path, share_prompts: bool, budget: int
) -> None:
    """Given tokens have none: 0 stands in their place."""
    worker = ReferenceWorker(spec_of(directory, share_prompts=share_prompts, micro_batch_tokens=budget))
    assert worker.shares_prompts == share_prompts
    sizes = []
    worker._model.register_forward_pre_hook(lambda module, inputs: sizes.append(inputs[0].padded_tokens))
    scored = worker.score(ROLLOUTS)
    for found, expected in zip(scored, by_definition(directory), strict=True):
        assert found == pytest.approx(expected, abs=1e-5)
    assert scored[2][1:3] == (0.0, 0.0)
    # By hand, prompts of 3 tokens and responses of 4, 1 and 5. Only one rollout may exceed the budget.
    expected_sizes = {
        (True, 1): [8, 7, 4],
        (True, 10): [8, 8],
        (True, 8192): [13],
        (False, 1): [8, 7, 4],
        (False, 10): [8, 7, 4],
        (False, 8192): [24],
    }
    assert sorted(sizes, reverse=True) == expected_sizes[share_prompts, budget]


def test_the_same_group_has_the_same_bits_whatever_was_scored_before(directory: Path) -> None:
    worker = ReferenceWorker(spec_of(directory))
    first = worker.score(ROLLOUTS)
    worker.score([(PROMPT, (1, 1, 1), ())])
    assert worker.score(ROLLOUTS) == first
    assert worker.seconds() > 0.0


def test_a_pass_that_does_not_end_counts_as_no_progress_and_idleness_does_not(directory: Path) -> None:
    worker = ReferenceWorker(spec_of(directory))
    seen = []

    def slow(module: object, inputs: object) -> None:
        time.sleep(0.2)
        seen.append(worker.pulse().stalled_seconds)

    worker._model.register_forward_pre_hook(slow)
    worker.score(ROLLOUTS)
    assert [0.2 <= each < 5.0 for each in seen] == [True]
    assert worker.pulse().stalled_seconds == 0.0


def test_a_gpu_that_is_not_there_is_refused(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=r"reference\.gpus is 0\.5, but torch finds no CUDA device here; set it to 0"):
        ReferenceWorker(spec_of(directory, gpus=0.5))


def test_a_model_that_is_not_there_is_refused(directory: Path) -> None:
    with pytest.raises(UsageError, match="nowhere"):
        ReferenceWorker(replace(spec_of(directory), model_dir=str(directory / "nowhere")))
