"""Stages before the loop: the order of examples, steps and evaluation against slow plain torch, alike on two ranks."""

import json
import math
import os
from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from actors.errors import RunError, UsageError
from learner.stages.config import PassesConfig
from learner.stages.stage import Stage, StageTrainer, example_order
from tests.learner.backend.ranks import (
    OPTIMIZER,
    SUPERVISED,
    TOTAL_UPDATES,
    make_model,
    make_supervised,
    random_sequences,
    run_ranks,
    train_supervised,
)

# The order of examples


def test_every_epoch_is_a_permutation_of_its_own():
    epochs = [tuple(example_order(20, range(20 * epoch, 20 * (epoch + 1)), 7)) for epoch in range(4)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert len(set(epochs)) == 4


def test_the_example_at_a_position_does_not_depend_on_what_else_is_asked():
    whole = example_order(7, range(50), 1)
    for start in range(45):
        assert example_order(7, range(start, start + 5), 1) == whole[start : start + 5]
    assert example_order(7, range(50), 2) != whole


def test_a_batch_across_the_border_ends_one_epoch_and_begins_the_next():
    before, after = example_order(7, range(7), 0), example_order(7, range(7, 14), 0)
    assert example_order(7, range(5, 10), 0) == before[5:] + after[:3]


def test_a_batch_larger_than_the_data_holds_each_example_alike():
    assert set(Counter(example_order(3, range(12), 0)).values()) == {4}


# Settings


@pytest.mark.parametrize(
    ("epochs", "batch_size", "examples", "updates"),
    # 200 / 32 = 6.25; 62.4 / 32 = 1.95; 0.32 / 32 rounds to none, and one is taken.
    [(2.0, 32, 100, 6), (0.624, 32, 100, 2), (0.0032, 32, 100, 1), (1.0, 1, 5, 5), (1.0, 8, 3, 1)],
)
def test_steps_are_epochs_of_examples_in_batches(epochs, batch_size, examples, updates):
    assert PassesConfig(epochs=epochs, batch_size=batch_size).updates(examples) == updates


def test_patience_without_evaluations_is_refused():
    with pytest.raises(ValueError, match="patience 2 counts evaluations and evaluate_every 0 makes none"):
        PassesConfig(patience=2, evaluate_every=0)


def test_nothing_to_train_on_is_refused():
    stage = Stage(module=None, objective=None, train=[], validation=[])
    with pytest.raises(UsageError, match="no training example is left"):
        StageTrainer(stage, policy=None, batch_size=1, seed=0)


# Steps and evaluation


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("stage")
    make_model(path / "model")
    return path


@pytest.fixture(scope="module")
def one_process():
    """This process as a group of its own; it is left as it was."""
    before = dict(os.environ)
    os.environ["DS_ACCELERATOR"] = "cpu"
    yield
    if torch.distributed.is_initialized():
        import deepspeed

        # DeepSpeed's own, or it would go on with groups that are gone.
        deepspeed.comm.destroy_process_group()
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def trainer(directory, one_process):
    made = make_supervised(directory, 1)
    yield made
    made.policy.destroy()


@pytest.fixture(scope="module")
def plain(directory):
    """The same five updates without DeepSpeed, packing or chunks: one sequence at a time, full logits, AdamW."""
    model = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32).eval()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=1.0, betas=OPTIMIZER.betas, eps=1e-4, weight_decay=OPTIMIZER.weight_decay
    )

    def mean_loss(examples):
        total = torch.zeros(())
        for prompt, response in examples:
            ids = torch.tensor([*prompt, *response])
            logits = model(input_ids=ids[None]).logits[0]
            total = total + cross_entropy(logits[len(prompt) - 1 : -1], ids[len(prompt) :], reduction="sum")
        return total / sum(len(response) for _, response in examples)

    def held_out():
        with torch.no_grad():
            return float(mean_loss(random_sequences(5, 7)))

    train, history, evaluated = random_sequences(4, 12), [], [held_out()]
    for update in range(5):
        batch = [train[index] for index in example_order(12, range(5 * update, 5 * update + 5), 3)]
        optimizer.zero_grad()
        loss = mean_loss(batch)
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.max_grad_norm)
        # Warm-up of one update at half the peak, then linear to the zero that update 6 would have.
        optimizer.param_groups[0]["lr"] = OPTIMIZER.lr * (0.5 if update == 0 else (TOTAL_UPDATES - update) / 5)
        optimizer.step()
        history.append((float(loss.detach()), float(norm)))
    evaluated.append(held_out())
    state = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    return {"history": history, "held out": evaluated, "state": state}


def assert_same(result, plain):
    assert [stats.loss for stats in result["stats"]] == pytest.approx([loss for loss, _ in plain["history"]], abs=1e-4)
    assert [stats.grad_norm for stats in result["stats"]] == pytest.approx(
        [norm for _, norm in plain["history"]], rel=1e-3
    )
    assert [values["loss"] for values in result["held out"]] == pytest.approx(plain["held out"], abs=1e-4)
    for name, tensor in result["state"].items():
        torch.testing.assert_close(tensor, plain["state"][name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("rows", SUPERVISED.values(), ids=["one row", "packed", "padded"])
def test_five_steps_over_an_epochs_border_are_those_of_plain_torch(directory, one_process, plain, rows):
    result = train_supervised(directory, 1, **rows)
    assert_same(result, plain)
    assert [stats.update for stats in result["stats"]] == [1, 2, 3, 4, 5]
    tokens = [len(prompt) + len(response) for prompt, response in random_sequences(4, 12)]
    for update, stats in enumerate(result["stats"]):
        order = example_order(12, range(5 * update, 5 * update + 5), 3)
        total = sum(tokens[index] for index in order)
        if rows:
            assert stats.tokens == total <= stats.padded_tokens
        else:  # an example that is drawn twice may have its prompt once
            assert stats.tokens == stats.padded_tokens <= total
    assert result["held out"][1]["tokens"] == sum(len(p) + len(r) for p, r in random_sequences(5, 7))


@pytest.mark.slow
def test_two_ranks_reach_the_parameters_of_one_plain_torch_process(directory, plain):
    codes = run_ranks(directory, "supervised")
    assert codes == [0, 0], (directory / "supervised-rank0.log").read_text()[-3000:]
    results = torch.load(directory / "supervised.pt", weights_only=False)
    assert set(results) == set(SUPERVISED)
    for result in results.values():
        assert_same(result, plain)


def test_evaluation_changes_nothing(trainer):
    before = trainer.policy.gather_state()
    assert trainer.evaluate() == trainer.evaluate()
    for name, tensor in trainer.policy.gather_state().items():
        assert torch.equal(tensor, before[name])
    assert trainer.policy.updates == 0


def test_without_held_out_examples_there_is_nothing_to_tell(trainer):
    trainer._stage = replace(trainer._stage, validation=[])
    assert trainer.evaluate() == {}


# Losses that are no number


@pytest.fixture
def spoil(trainer, monkeypatch):
    """The loss of the next micro-batch is not finite."""

    def spoil(value=math.nan):
        objective = trainer._stage.objective
        measure = objective.measure

        def spoilt(*arguments):
            monkeypatch.undo()
            measured = measure(*arguments)
            return replace(measured, loss=measured.loss + value)

        monkeypatch.setattr(objective, "measure", spoilt)

    return spoil


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_skips_the_step_and_saves_its_batch(trainer, spoil, directory, value):
    spoil(value)
    before = trainer.policy.gather_state()
    [stats] = trainer.advance(1)
    assert stats.skipped
    assert (stats.update, stats.skipped_updates) == (1, 1)
    assert not math.isfinite(stats.loss)
    for name, tensor in trainer.policy.gather_state().items():
        assert torch.equal(tensor, before[name]), name
    lines = (directory / "failed" / "skipped-update-000001.jsonl").read_text().splitlines()
    batch = [random_sequences(4, 12)[index] for index in example_order(12, range(5), 3)]
    assert [json.loads(line) for line in lines] == [[list(prompt), list(response)] for prompt, response in batch]

    [following] = trainer.advance(1)
    assert not following.skipped
    assert following.skipped_updates == 1
    assert math.isfinite(following.grad_norm)


def test_too_many_skipped_steps_end_the_run(trainer, spoil):
    trainer.policy.config = trainer.policy.config.model_copy(update={"max_skipped_updates": 1})
    spoil()
    trainer.advance(1)
    spoil()
    with pytest.raises(RunError, match=r"2 updates were skipped so far and learner\.max_skipped_updates allows 1"):
        trainer.advance(1)
