"""Offline preference learning against a slow DPO in plain torch on two models; alike on one and two ranks."""

import dataclasses
import json
import math
import os

import pytest
import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

from learner.losses.config import PairLossConfig
from learner.stages.dpo import OfflineObjective, ScoredPair
from learner.tensors.examples import TokenPair, read_pairs, write_pairs
from learner.tensors.logprobs import PolicyWithLogProbs
from tests.learner.backend.ranks import make_model, offline_pairs, run_ranks, train_offline

CPU = torch.device("cpu")
BETA = 0.3


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("offline")
    make_model(path / "model")
    make_model(path / "reference", initializer_range=0.1)
    return path


def sequence_logprob(model, prompt, response):
    """One sequence at a time, full logits."""
    ids = torch.tensor([*prompt, *response])
    logp = model(input_ids=ids[None]).logits[0].log_softmax(-1)
    return sum(logp[t - 1, ids[t]] for t in range(len(prompt), len(ids)))


def load(path, dtype):
    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()


def log_ratios(policy, reference, pair):
    with torch.no_grad():
        mu = [sequence_logprob(reference, pair.prompt, response) for response in (pair.chosen, pair.rejected)]
    pi = [sequence_logprob(policy, pair.prompt, response) for response in (pair.chosen, pair.rejected)]
    return pi[0] - mu[0], pi[1] - mu[1], (float(mu[0]), float(mu[1]))


def f(h, kind):
    return -logsigmoid(BETA * h) if kind == "dpo" else (h - 1 / (2 * BETA)) ** 2


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
@pytest.mark.parametrize("micro_batch_tokens", [30, 10_000])
def test_loss_gradient_and_metrics_are_those_of_two_models_with_soft_labels(directory, kind, micro_batch_tokens):
    policy, reference = (load(directory / name, torch.float64) for name in ("model", "reference"))
    pairs = offline_pairs(0, 5)
    assert {0.0, 0.5, 1.0} < {pair.probability for pair in pairs}
    loss, expected = torch.zeros((), dtype=torch.float64), dict.fromkeys(OfflineObjective.sums, 0.0)
    examples = []
    for pair in pairs:
        chosen, rejected, mu = log_ratios(policy, reference, pair)
        h, p = chosen - rejected, pair.probability
        loss = loss + p * f(h, kind) + (1 - p) * f(-h, kind)
        better = (p > 0.5) - (p < 0.5)
        expected["margin"] += better * BETA * float(h.detach())
        expected["accuracy"] += 0.5 if better == 0 else float(better * float(h.detach()) > 0)
        expected["chosen_log_ratio"] += float(chosen.detach())
        expected["rejected_log_ratio"] += float(rejected.detach())
        examples.append(ScoredPair(pair, mu))
    loss.backward()

    module = PolicyWithLogProbs(load(directory / "model", torch.float32), chunk=7)
    module.device = CPU
    objective = OfflineObjective(PairLossConfig(kind=kind, beta=BETA), micro_batch_tokens)
    measured = [objective.measure(module, batch) for batch in objective.micro_batches(examples, 0, 1)]
    assert (len(measured) == 1) == (micro_batch_tokens == 10_000)
    sum(each.loss for each in measured).backward()
    assert float(sum(each.loss.detach() for each in measured)) == pytest.approx(float(loss.detach()), rel=1e-4)
    totals = {name: float(sum(each.sums[name] for each in measured)) for name in objective.sums}
    assert totals == pytest.approx(expected, rel=1e-4, abs=1e-4)
    slow = dict(policy.named_parameters())
    for name, parameter in module.model.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), slow[name].grad, rtol=1e-3, atol=1e-4)


def test_ranks_share_the_pairs_and_one_without_any_passes_the_shortest(directory):
    examples = [ScoredPair(pair, (0.0, 0.0)) for pair in offline_pairs(1, 3)]
    objective = OfflineObjective(PairLossConfig(), micro_batch_tokens=1)
    shares = [objective.micro_batches(examples, rank, 2) for rank in range(2)]
    assert [len(share) for share in shares] == [2, 2]
    assert sorted(id(example) for share in shares for batch in share for example in batch) == sorted(map(id, examples))
    assert shares[1][-1] == []
    lengths = [len(e.pair.prompt) + max(len(e.pair.chosen), len(e.pair.rejected)) for e in examples]
    assert objective.filler(examples) == [examples[lengths.index(min(lengths))]]


def test_pairs_are_read_as_they_were_written(tmp_path):
    pairs = [*offline_pairs(2, 4), TokenPair((1,), (2, 3), (4,), 0.25)]
    write_pairs(tmp_path / "data" / "train.parquet", pairs)
    assert read_pairs(tmp_path / "data" / "train.parquet") == pairs


@pytest.fixture(scope="module")
def on_two_ranks(directory):
    codes = run_ranks(directory, "offline")
    logs = "\n".join((directory / f"offline-rank{rank}.log").read_text()[-2000:] for rank in range(2))
    assert codes == [0, 0], logs
    return torch.load(directory / "offline.pt", weights_only=False)


@pytest.mark.slow
def test_the_reference_says_the_same_of_every_pair_under_every_stage_and_number_of_ranks(directory, on_two_ranks):
    reference = load(directory / "reference", torch.float64)
    for stage, result in on_two_ranks.items():
        for example in result["examples"]:
            pair = example.pair
            with torch.no_grad():
                slow = [float(sequence_logprob(reference, pair.prompt, y)) for y in (pair.chosen, pair.rejected)]
            assert example.reference == pytest.approx(slow, abs=1e-3), stage


@pytest.fixture(scope="module")
def one(directory):
    """The same on a single rank without ZeRO, in this process, which is left as it was."""
    before = dict(os.environ)
    os.environ["DS_ACCELERATOR"] = "cpu"
    yield train_offline(directory, 0)
    import deepspeed

    deepspeed.comm.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.mark.slow
def test_two_ranks_reach_the_parameters_and_the_held_out_metrics_of_one(one, on_two_ranks):
    for stage, two in on_two_ranks.items():
        assert [stats.loss for stats in two["stats"]] == pytest.approx([s.loss for s in one["stats"]], rel=1e-4), stage
        held_out = {name: value for name, value in two["held out"].items() if name != "padded_tokens"}
        assert held_out == pytest.approx({name: one["held out"][name] for name in held_out}, rel=1e-3, abs=1e-4), stage
        for name, tensor in one["state"].items():
            torch.testing.assert_close(two["state"][name], tensor, rtol=1e-3, atol=2e-4)
    moved = [float((one["state"][name] - tensor).abs().max()) for name, tensor in one["start"].items()]
    assert max(moved) > 1e-3


@pytest.mark.slow
def test_training_lowers_the_held_out_loss_that_it_reports(on_two_ranks):
    """Every example is held out too, so what training lowers is what evaluation reports."""
    for result in on_two_ranks.values():
        assert result["held out"]["loss"] < result["held out at start"]["loss"]
        assert math.isfinite(result["held out"]["margin"])


def test_a_skipped_batch_can_be_written_down():
    """Batches of skipped updates are saved as JSON of their dataclasses."""
    json.dumps(dataclasses.asdict(ScoredPair(offline_pairs(0, 1)[0], (0.0, -1.0))))
