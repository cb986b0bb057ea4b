"""Adapters in every stage: a worker trains and saves them, and peft or transformers read what it measured."""

import os

import pytest
import torch
from peft import PeftModel
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from actors import world
from actors.hub import unique_tensors
from learner.stages.config import DpoConfig, PreferenceConfig, SftConfig, StageSpec
from learner.stages.worker import StageWorker
from learner.tensors.examples import TRAIN, VALIDATION, TokenPair, write_pairs, write_sequences
from learner.world.policy import TINY, build_policy
from tests.learner.backend.ranks import place_of

LORA = {"rank": 3, "alpha": 6}
PAIRS = [TokenPair((1, 2), (5 + i % 3, 6, world.EOS), (8, 9 - i % 2, world.EOS), 1.0) for i in range(6)]


@pytest.fixture
def made(tmp_path):
    """Workers of one rank in this process; the process is left as it was."""
    before = dict(os.environ)
    torch.manual_seed(0)
    build_policy(TINY).save_pretrained(tmp_path / "model")
    world.tokenizer().save_pretrained(tmp_path / "model")
    workers = []

    def make(config_class, **settings):
        learner = {"dtype": "float32", "lora": LORA, "optimizer": {"lr": 0.02, "schedule": "constant"}}
        config = config_class.model_validate(
            {"model": {"path": str(tmp_path / "model")}, "data": {"source": "unused.jsonl"}, "learner": learner}
            | settings
        )
        for name in (TRAIN, VALIDATION):
            if config_class is SftConfig:
                write_sequences(tmp_path / "data" / name, [(pair.prompt, pair.chosen) for pair in PAIRS])
            else:
                write_pairs(tmp_path / "data" / name, PAIRS)
        spec = StageSpec(config, str(tmp_path / "model"), str(tmp_path / "data"), 8, str(tmp_path / "failed"))
        workers.append(StageWorker(spec, place_of()))
        return workers[0]

    yield make
    if workers:
        workers.pop().close()
    os.environ.clear()
    os.environ.update(before)


def trained(worker, tmp_path):
    start = worker.evaluate()["loss"]
    worker.advance(8)
    loss = worker.evaluate()["loss"]
    assert loss < start - 0.1
    worker.save_pretrained(str(tmp_path / "final"))
    return loss


def loaded(tmp_path):
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32)
    return PeftModel.from_pretrained(base, tmp_path / "final").eval()


@torch.no_grad()
def logprob(model, prompt, response):
    ids = torch.tensor([*prompt, *response])
    logp = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return sum(float(logp[t - 1, ids[t]]) for t in range(len(prompt), len(ids)))


def test_fine_tuning_saves_the_adapters_that_it_measured(made, tmp_path):
    loss = trained(made(SftConfig), tmp_path)
    model = loaded(tmp_path)
    total = sum(logprob(model, pair.prompt, pair.chosen) for pair in PAIRS)
    assert loss == pytest.approx(-total / sum(len(pair.chosen) for pair in PAIRS), abs=1e-4)


def test_dpo_has_the_base_as_its_reference(made, tmp_path):
    loss = trained(made(DpoConfig), tmp_path)
    model = loaded(tmp_path)

    def margin(pair):
        return logprob(model, pair.prompt, pair.chosen) - logprob(model, pair.prompt, pair.rejected)

    policy = torch.tensor([margin(pair) for pair in PAIRS])
    with model.disable_adapter():
        reference = torch.tensor([margin(pair) for pair in PAIRS])
    assert loss == pytest.approx(float(-logsigmoid(0.1 * (policy - reference)).mean()), abs=1e-4)


def test_a_preference_model_trains_its_head_whole_and_is_saved_merged(made, tmp_path):
    preference = {"kind": "bradley_terry", "calibrate": False}
    worker = made(PreferenceConfig, preference=preference)
    head = worker._model.model.score.weight.detach().clone()
    loss = trained(worker, tmp_path)
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final", dtype=torch.float32).eval()
    assert not torch.equal(model.score.weight, head)
    assert not [name for name in unique_tensors(model) if "lora" in name]

    @torch.no_grad()
    def reward(prompt, response):
        return float(model(input_ids=torch.tensor([[*prompt, *response]])).logits[0, 0])

    gaps = [reward(pair.prompt, pair.chosen) - reward(pair.prompt, pair.rejected) for pair in PAIRS]
    assert loss == pytest.approx(float(-logsigmoid(torch.tensor(gaps)).mean()), abs=1e-4)


def test_a_stage_can_save_the_whole_model(made, tmp_path):
    worker = made(
        SftConfig, learner={"dtype": "float32", "lora": {**LORA, "save": "merged"}, "optimizer": {"lr": 0.02}}
    )
    loss = trained(worker, tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "final", dtype=torch.float32).eval()
    total = sum(logprob(model, pair.prompt, pair.chosen) for pair in PAIRS)
    assert loss == pytest.approx(-total / sum(len(pair.chosen) for pair in PAIRS), abs=1e-4)
