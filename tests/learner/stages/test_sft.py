"""Supervised fine-tuning against plain cross-entropy with the prompt masked; packed or not, the same gradient."""

from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from actors.errors import UsageError
from learner.stages.config import SftConfig
from learner.stages.sft import SupervisedObjective, check_packing, make_stage
from learner.tensors.examples import TRAIN, VALIDATION, write_sequences
from learner.tensors.logprobs import PolicyWithLogProbs
from learner.tensors.shared_prompts import adopt
from tests.learner.backend.ranks import make_model, random_sequences

CPU = torch.device("cpu")
SHARED, PACKED, PADDED = {"shares_prompts": True}, {"packing": True}, {"packing": False}
"""All sequences in one row without padding, several to a row, each in its own."""


def config_with(**learner):
    learner = {"dtype": "float32", **learner}
    return SftConfig.model_validate({"model": {"path": "unused"}, "data": {"source": "unused"}, "learner": learner})


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("supervised") / "model")


def policy_of(model_dir):
    policy = PolicyWithLogProbs(AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32).eval(), chunk=5)
    policy.device = CPU
    adopt(policy.model)
    return policy


def slow_loss_and_gradient(model_dir, examples):
    """One sequence at a time, full logits, prompt tokens ignored; the mean over the response tokens of all."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float64).eval()
    total, tokens = torch.zeros((), dtype=torch.float64), 0
    for prompt, response in examples:
        ids = torch.tensor([*prompt, *response])
        labels = ids.clone()
        labels[: len(prompt)] = -100
        total = total + cross_entropy(model(input_ids=ids[None]).logits[0, :-1], labels[1:], reduction="sum")
        tokens += len(response)
    (total / tokens).backward()
    return float(total.detach()) / tokens, {name: p.grad for name, p in model.named_parameters()}


@pytest.mark.parametrize("rows", [SHARED, PACKED, PADDED])
@pytest.mark.parametrize("micro_batch_tokens", [25, 10_000])
def test_loss_and_gradient_are_those_of_cross_entropy_on_the_response(model_dir, rows, micro_batch_tokens):
    examples = random_sequences(0, 9)
    expected, gradient = slow_loss_and_gradient(model_dir, examples)
    policy, objective = policy_of(model_dir), SupervisedObjective(micro_batch_tokens, **rows)
    batches = objective.micro_batches(examples, 0, 1)
    assert (len(batches) == 1) == (micro_batch_tokens == 10_000)
    measured = [objective.measure(policy, batch) for batch in batches]
    loss = sum(each.loss for each in measured) / objective.weight(examples)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    for name, parameter in policy.model.named_parameters():
        torch.testing.assert_close(parameter.grad.double(), gradient[name], rtol=1e-3, atol=1e-5)
    assert sum(each.tokens for each in measured) == sum(len(p) + len(r) for p, r in examples)


def test_packing_needs_less_padding():
    examples = [((1,) * p, (2,) * r) for p, r in ((8, 8), (3, 5), (4, 4), (2, 2), (2, 2), (6, 6))]
    padded = {}
    for packing in (True, False):
        objective = SupervisedObjective(10_000, packing=packing)
        [rows] = objective.micro_batches(examples, 0, 1)
        padded[packing] = objective.collate(rows).input_ids.numel()
    # 16, 12 + 4, 8 + 8, 4 fill four rows of 16; alone there are six.
    assert padded == {True: 4 * 16, False: 6 * 16}


def test_a_shared_row_has_no_padding_and_each_prompt_once():
    objective = SupervisedObjective(20, shares_prompts=True)
    examples = [((1, 2, 3), (4, 5)), ((1, 2, 3), (6,)), ((7,), (8, 9))]
    # Counted with their prompts 5 + 4 + 3, within the budget; in the row 3 + 2 + 1 and 1 + 2.
    [batch] = map(objective.collate, objective.micro_batches(examples, 0, 1))
    assert batch.tokens == batch.padded_tokens == 9
    assert sorted(batch.targets.tolist()) == [4, 5, 6, 8, 9]


@pytest.mark.parametrize("packing", [True, False])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_micro_batches_are_shared_by_ranks_within_the_budget(packing, ranks):
    examples = random_sequences(1, 25)
    objective = SupervisedObjective(40, packing=packing)
    shares = [objective.micro_batches(examples, rank, ranks) for rank in range(ranks)]
    assert len({len(share) for share in shares}) == 1, "every rank takes part in every round"
    found = [id(example) for share in shares for rows in share for row in rows for example in row]
    assert sorted(found) == sorted(map(id, examples))
    for share in shares:
        assert all(share[:-1]), "only the last round leaves a rank without rows"
        for rows in filter(None, share):
            assert objective.collate(rows).input_ids.numel() <= 40
    for batches in zip(*shares, strict=True):
        assert max(map(len, batches)) - min(map(len, batches)) <= 1, "no rank waits for another"


def test_a_rank_with_nothing_passes_the_shortest_example():
    examples = [((1, 2), (3, 4)), ((1,), (2, 3)), ((1, 2, 3), (4,))]
    objective = SupervisedObjective(1)
    assert [objective.micro_batches(examples, rank, 2)[-1] for rank in range(2)] == [[[examples[1]]], []]
    assert objective.filler(examples) == [[examples[1]]]
    objective = SupervisedObjective(1, shares_prompts=True)
    assert objective.collate(objective.filler(examples)).targets.tolist() == [2, 3]


# Architectures that cannot be packed for


class _Deaf(PolicyWithLogProbs):
    """Ignores positions, as a recurrent model would."""

    def forward(self, batch):
        return super().forward(replace(batch, position_ids=None))


def test_an_architecture_that_lets_sequences_see_each_other_is_refused(model_dir):
    check_packing(policy_of(model_dir), 1e-3)
    with pytest.raises(UsageError, match=r"of LlamaForCausalLM change by .* set learner.packing to false"):
        check_packing(_Deaf(policy_of(model_dir).model), 1e-3)


def test_a_stage_is_made_of_what_lies_on_disk(model_dir, tmp_path):
    train, validation = random_sequences(2, 5), random_sequences(3, 2)
    write_sequences(tmp_path / TRAIN, train)
    write_sequences(tmp_path / VALIDATION, validation)
    stage = make_stage(config_with(packing=False), model_dir, tmp_path)
    assert (stage.train, stage.validation) == (train, validation)
    assert stage.objective.micro_batches(train, 0, 1)[0][0] in [[example] for example in train]


@pytest.mark.parametrize(
    ("given", "padding"),
    [({}, 0), ({"share_prompts": False}, 1), ({"packing": False}, 7)],
)
def test_the_settings_say_how_sequences_stand_in_rows(model_dir, tmp_path, given, padding):
    # 6, 3 and 2 tokens: packed, two rows of 6; else three.
    train = [((1, 2), (3, 4, 5, 6)), ((6,), (7, 8)), ((9,), (1,))]
    for name in (TRAIN, VALIDATION):
        write_sequences(tmp_path / name, train)
    objective = make_stage(config_with(**given), model_dir, tmp_path).objective
    [batch] = map(objective.collate, objective.micro_batches(train, 0, 1))
    assert batch.padded_tokens - batch.tokens == padding


def test_an_architecture_that_does_not_share_prompts_is_packed(model_dir, tmp_path, monkeypatch):
    """If attention by layouts changed its log-probs, rows are packed as with share_prompts false."""
    monkeypatch.setattr("learner.backend.models.supports", lambda policy, tolerance: False)
    for name in (TRAIN, VALIDATION):
        write_sequences(tmp_path / name, [((1,), (2, 3))])
    objective = make_stage(config_with(), model_dir, tmp_path).objective
    assert objective.collate(objective.filler([((1,), (2, 3))])).layout is None
