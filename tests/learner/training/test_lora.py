"""Training of adapters against peft's own, one sequence at a time, under every ZeRO stage and on two ranks."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from actors.adapters import peft_form
from tests.learner.backend.ranks import CONFIG, TEMPERATURE, TOTAL_UPDATES, make_model, random_pairs, run_ranks
from tests.learner.training.lora_ranks import ALPHA, RANK, UPDATES, lora_config

pytestmark = pytest.mark.slow
STAGES = (0, 1, 2, 3)
PROGRAM = "tests.learner.training.lora_ranks"


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora")
    make_model(path / "model")
    make_model(path / "tied", tie_word_embeddings=True)
    shutil.copytree(path / "model", path / "copy")
    return path


def ran(directory, scenario, world=2):
    codes = run_ranks(directory, scenario, world, PROGRAM)
    assert codes == [0] * world, (directory / f"{scenario}-rank0.log").read_text()[-3000:]


@pytest.fixture(scope="module")
def two_ranks(directory):
    ran(directory, "stages")
    return torch.load(directory / "lora.pt", weights_only=False)


def plain_peft(model_dir, start, batches):
    """DPO with peft alone: one sequence at a time, full logits, the base with its adapters disabled as the reference.

    Returns the adapters by peft's names, and loss and gradient norm of each update.
    """
    base = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval()
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    policy = get_peft_model(base, PeftConfig(r=RANK, lora_alpha=ALPHA, target_modules=targets, task_type="CAUSAL_LM"))
    named = {name.replace(".default.", "."): each for name, each in policy.named_parameters() if each.requires_grad}
    assert set(named) == set(start)
    with torch.no_grad():
        for name, tensor in start.items():
            named[name].copy_(tensor)
    settings = lora_config(1).optimizer
    optimizer = torch.optim.AdamW(
        named.values(), lr=1.0, betas=settings.betas, eps=settings.eps, weight_decay=settings.weight_decay
    )

    def logprob(pair, completion):
        ids = torch.tensor([*pair.prompt_token_ids, *completion.token_ids])
        logp = (policy(input_ids=ids[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        return sum(logp[t - 1, ids[t]] for t in range(len(pair.prompt_token_ids), len(ids)))

    history = []
    for update, pairs in enumerate(batches):
        loss = torch.zeros(())
        for pair in pairs:
            with torch.no_grad(), policy.disable_adapter():
                mu = logprob(pair, pair.chosen) - logprob(pair, pair.rejected)
            h = logprob(pair, pair.chosen) - logprob(pair, pair.rejected) - mu
            h = h * 0.0 if pair.tie else h
            loss = loss - torch.nn.functional.logsigmoid(CONFIG.loss.beta * h) / len(pairs)
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(list(named.values()), settings.max_grad_norm)
        # Warm-up of one update at half the peak, then linear to the zero that update 6 would have.
        optimizer.param_groups[0]["lr"] = settings.lr * (0.5 if update == 0 else (TOTAL_UPDATES - update) / 5)
        optimizer.step()
        history.append((float(loss.detach()), float(norm)))
    return {name: tensor.detach() for name, tensor in named.items()}, history


@pytest.mark.parametrize("stage", STAGES)
def test_adapters_train_as_peft_s_do(directory, two_ranks, stage):
    result = two_ranks[stage]
    batches = [random_pairs(seed) for seed in range(UPDATES)]
    state, history = plain_peft(directory / ("tied" if stage == 3 else "model"), result["start"], batches)
    for stats, (loss, norm) in zip(result["updates"], history, strict=True):
        assert stats.loss == pytest.approx(loss, rel=1e-4)
        assert stats.grad_norm == pytest.approx(norm, rel=1e-3)
    for name, tensor in state.items():
        torch.testing.assert_close(result["state"][name], tensor, atol=2e-5, rtol=1e-3)
    assert max(float(tensor.abs().max()) for name, tensor in state.items() if "lora_B" in name) > 1e-3


@pytest.mark.parametrize("stage", STAGES)
def test_the_base_stays_and_is_not_published(directory, two_ranks, stage):
    result = two_ranks[stage]
    assert result["base"] == result["base after"]
    shapes = {name: tuple(tensor.shape) for name, tensor in result["state"].items()}
    assert shapes == peft_form.outline(directory / "model", lora_config(stage).lora)


@pytest.mark.parametrize("stage", STAGES)
def test_an_adapter_goes_on_from_a_checkpoint_to_the_bit(two_ranks, stage):
    result = two_ranks[stage]
    assert result["resumed"].loss == result["went on"].loss
    for name, tensor in result["state that went on"].items():
        assert torch.equal(tensor, result["resumed state"][name]), name


def test_a_checkpoint_goes_on_with_another_number_of_ranks(directory, two_ranks):
    ran(directory, "alone", world=1)
    alone = torch.load(directory / "alone.pt", weights_only=False)
    for stage in STAGES:
        assert alone[stage]["update"].loss == pytest.approx(two_ranks[stage]["went on"].loss, rel=1e-5)
        for name, tensor in two_ranks[stage]["state that went on"].items():
            torch.testing.assert_close(alone[stage]["state"][name], tensor, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_holds_no_frozen_weights(directory, two_ranks, stage):
    held = set()
    for path in (directory / f"stage{stage}" / "deepspeed").rglob("*model_states.pt"):
        held |= set(torch.load(path, weights_only=False)["module"])
    assert len(held) == len(two_ranks[stage]["state"])
    assert [name for name in held if ".lora_" not in name] == []


@pytest.mark.parametrize("stage", STAGES)
def test_peft_loads_what_is_saved(directory, two_ranks, stage):
    saved, result = directory / f"adapter{stage}", two_ranks[stage]
    assert set(load_file(saved / "adapter_model.safetensors")) == set(result["state"])
    base = AutoModelForCausalLM.from_pretrained(directory / ("tied" if stage == 3 else "model"), dtype=torch.float32)
    model = PeftModel.from_pretrained(base, saved).eval()
    ids = torch.tensor([[1, 2, 3, 4, 5, 6, 7]])
    logp = model(input_ids=ids).logits[0].log_softmax(-1)
    ((policy, _),) = result["score"]
    assert policy == pytest.approx([float(logp[t - 1, ids[0, t]]) for t in range(3, 7)], abs=1e-4)
    described = json.loads((saved / "adapter_config.json").read_text())
    assert described["base_model_name_or_path"] == str(directory / ("tied" if stage == 3 else "model"))
    assert (saved / "tokenizer.json").is_file()
    assert not (saved / "config.json").exists()


@pytest.mark.parametrize("case", [("mixture", 3), ("mixture", 1), ("reference", 2)])
def test_the_base_is_the_reference_that_a_copy_of_it_would_be(directory, case):
    if not (directory / "games.pt").exists():
        ran(directory, "games")
    results = torch.load(directory / "games.pt", weights_only=False)
    own, copied = results[*case, None], results[*case, "copy"]
    for ours, theirs in zip(own["stats"], copied["stats"], strict=True):
        assert ours.loss == pytest.approx(theirs.loss, rel=1e-6)
        assert ours.step_size == pytest.approx(theirs.step_size, rel=1e-4)
    for name, tensor in copied["state"].items():
        torch.testing.assert_close(own["state"][name], tensor, atol=1e-6, rtol=1e-5)
    assert own["base"] == copied["base"]


def test_weights_in_host_memory_train_to_the_same_bits(directory, two_ranks):
    ran(directory, "offloaded")
    result = torch.load(directory / "offloaded.pt", weights_only=False)
    assert result["device"] == "cpu"
    assert [stats.loss for stats in result["updates"]] == [stats.loss for stats in two_ranks[3]["updates"]]
    for name, tensor in two_ranks[3]["state"].items():
        assert torch.equal(result["state"][name], tensor), name
