"""The training engine against a plain-torch learner, on two ranks and under every ZeRO stage; and what it refuses."""

import json
import math
import os
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from actors.errors import RunError, UsageError
from actors.generation.config import OpponentConfig
from learner.backend.deepspeed_config import learning_rate
from learner.config import OptimizerConfig
from learner.losses.config import CorrectionConfig, GameLossConfig, PairLossConfig
from learner.losses.pairs import tie_loss
from learner.tensors.sampling import sample_answer
from tests.learner.backend.ranks import (
    CONFIG,
    TEMPERATURE,
    VOCABULARY,
    average_state,
    full_state,
    make_model,
    plain_learner,
    random_pairs,
    run_ranks,
    spec_of,
)
from tests.learner.losses.games import of_model, random_games

STAGES = (0, 1, 2, 3)
ENDS = (2, 5)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    path = tmp_path_factory.mktemp("ranks")
    make_model(path / "model")
    make_model(path / "tied", tie_word_embeddings=True)
    make_model(path / "dropout", attention_dropout=0.5)
    return path


@pytest.fixture(scope="module")
def two_ranks(directory):
    codes = run_ranks(directory, "train")
    assert codes == [0, 0], (directory / "train-rank0.log").read_text()[-3000:]
    return torch.load(directory / "results.pt", weights_only=False)


@pytest.fixture(scope="module")
def plain(directory):
    batches = [random_pairs(seed) for seed in range(3)]
    return {name: plain_learner(directory / name, batches) for name in ("model", "tied")}


@pytest.mark.slow
def test_only_rank_0_reads_a_model_s_weights(directory, two_ranks):
    """Every rank read them into host memory at the same time: 60 GiB for 8 billion parameters on four ranks. Here rank
    1 has a directory without weights, and scores and trains to the same bits."""
    for name in ("model", "tied"):
        bare = directory / f"{name}-bare"
        bare.mkdir()
        for path in (directory / name).glob("*.json"):
            (bare / path.name).write_bytes(path.read_bytes())
    codes = run_ranks(directory, "once")
    assert codes == [0, 0], (directory / "once-rank1.log").read_text()[-3000:]
    first, second = (torch.load(directory / f"once{rank}.pt", weights_only=False) for rank in (0, 1))
    assert "safetensors" in first["refused"]
    assert second["refused"] == first["refused"]
    for stage in STAGES:
        assert second[stage]["score"] == first[stage]["score"]
        assert first[stage]["score"] == two_ranks[stage]["score"]
        assert first[stage]["update"].loss == two_ranks[stage]["updates"][0].loss
        assert first[stage]["update"].grad_norm == pytest.approx(two_ranks[stage]["updates"][0].grad_norm, rel=1e-6)


@pytest.mark.slow
def test_gradients_added_in_bfloat16_are_those_of_float32_to_its_rounding(directory):
    """Of 8 bits: a sum of two gradients is rounded by at most 1/256 of it."""
    codes = run_ranks(directory, "reduced")
    assert codes == [0, 0], (directory / "reduced-rank0.log").read_text()[-3000:]
    results = torch.load(directory / "reduced.pt", weights_only=False)
    for stage in (1, 2, 3):
        whole, half = (results[stage, dtype] for dtype in ("float32", "bfloat16"))
        assert (whole["reached"], half["reached"]) == ("torch.float32", "torch.bfloat16")
        assert half["update"].grad_norm == pytest.approx(whole["update"].grad_norm, rel=1 / 256)
        assert half["update"].grad_norm != whole["update"].grad_norm
        assert half["update"].loss == whole["update"].loss


@pytest.fixture
def make_engine(directory, tmp_path):
    """Engines of one rank in this process; the process is left as it was."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from learner.training.engine import TrainEngine

    environment = dict(os.environ)
    engines = []

    def make(model="model", **settings):
        config = CONFIG.model_copy(update={"zero_stage": 2} | settings)
        failed = str(tmp_path / "failed")
        engine = TrainEngine(spec_of(directory / model, config, failed_batches_dir=failed, ends=ENDS))
        engines.append(engine)
        return engine

    yield make
    if engines:
        for engine in engines[1:]:
            engine.policy.destroy()
        engines[0].policy.close()
    os.environ.clear()
    os.environ.update(environment)


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_two_ranks_reach_the_parameters_of_one_plain_torch_process(two_ranks, plain, stage):
    """Uneven lengths, several micro-batches, ties, an idle rank, weight decay, clipping and warm-up are all in play."""
    expected, history = plain["tied" if stage == 3 else "model"]
    result = two_ranks[stage]
    # Clipping and Adam hide a wrong scale of the gradient from the parameters; the norm does not.
    for stats, (loss, norm) in zip(result["updates"], history, strict=True):
        assert (stats.loss, stats.grad_norm) == (pytest.approx(loss, abs=1e-5), pytest.approx(norm, rel=1e-4))
    assert {name for name in expected if not (stage == 3 and name == "lm_head.weight")} == set(result["state"])
    for name, tensor in result["state"].items():
        assert torch.allclose(tensor, expected[name], atol=1e-5), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_loss_that_is_no_number_on_one_rank_skips_the_step_on_all(two_ranks, directory, stage):
    result = two_ranks[stage]
    stats = result["skipped"]
    assert stats.skipped
    assert stats.skipped_updates == 1
    assert stats.grad_norm == math.inf
    for name, tensor in result["state after skip"].items():
        assert torch.equal(tensor, result["state"][name]), name
    assert not result["went on"].skipped
    saved = (directory / "failed" / "skipped-update-000004.jsonl").read_text().splitlines()
    assert [json.loads(line)["lease_index"] for line in saved] == list(range(7))


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_all_ranks_answer_as_the_whole_model_does_and_train_on_as_if_they_had_not(two_ranks, directory, stage):
    """What follows is compared with a resumed run, which gave no answer."""
    prompt, answer = two_ranks[stage]["answer"]
    model = AutoModelForCausalLM.from_pretrained(directory / f"stage{stage}" / "hf")
    assert (prompt, len(answer)) == ((0,), 32)
    assert answer == sample_answer(model, prompt, 32, ())


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_resumed_run_is_bit_identical_to_one_that_went_on(two_ranks, stage):
    result = two_ranks[stage]
    assert result["client state"] == {"note": stage}
    assert replace(result["resumed"], seconds=0.0) == replace(result["went on"], seconds=0.0)
    for name, tensor in result["state that went on"].items():
        assert torch.equal(tensor, result["resumed state"][name]), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_holds_a_model_directory_that_transformers_loads(two_ranks, directory, stage):
    path = directory / f"stage{stage}" / "hf"
    written = load_file(path / "model.safetensors")
    expected = two_ranks[stage]["state after skip"]
    assert set(written) == set(expected)
    assert all(torch.equal(written[name], expected[name]) for name in written)
    model = AutoModelForCausalLM.from_pretrained(path)
    assert torch.equal(model.get_input_embeddings().weight, expected["model.embed_tokens.weight"])
    assert (path / "tokenizer.json").read_text() == "{}"


@pytest.mark.slow
def test_scores_are_in_the_order_of_the_sequences_whatever_rank_computed_them(two_ranks, directory):
    model = AutoModelForCausalLM.from_pretrained(directory / "model").eval()
    for pair, (policy, reference) in zip(random_pairs(0)[:3], two_ranks[1]["score"], strict=True):
        ids = torch.tensor([*pair.prompt_token_ids, *pair.chosen.token_ids])
        logp = (model(input_ids=ids[None]).logits[0] / TEMPERATURE).log_softmax(-1)
        start = len(pair.prompt_token_ids)
        expected = [float(logp[t - 1, ids[t]]) for t in range(start, len(ids))]
        assert policy == pytest.approx(expected, abs=1e-5)
        assert reference == pytest.approx(expected, abs=1e-5)


def test_deepspeed_s_own_keys_reach_it(make_engine):
    zero = {"reduce_bucket_size": 1000, "round_robin_gradients": True}
    engine = make_engine(deepspeed={"zero_optimization": zero, "wall_clock_breakdown": True})
    config = engine.policy._engine._config
    assert (config.zero_config.reduce_bucket_size, config.zero_config.round_robin_gradients) == (1000, True)
    assert (config.zero_config.stage, config.wall_clock_breakdown) == (2, True)
    assert engine.update(random_pairs(0)).grad_norm > 0.0


def test_a_value_that_deepspeed_refuses_is_named_with_the_section(make_engine):
    with pytest.raises(
        UsageError, match=r"learner\.deepspeed \(zero_optimization\.overlap_comm='perhaps'\).*valid bool"
    ):
        make_engine(deepspeed={"zero_optimization": {"overlap_comm": "perhaps"}})


def test_scores_without_reference_are_the_policy_s_alone(make_engine):
    engine = make_engine()
    sequences = [(pair.prompt_token_ids, pair.chosen.token_ids) for pair in random_pairs(0)[:3]]
    both = engine.policies.score(sequences)
    assert all(reference for _, reference in both)
    assert engine.policies.score(sequences, with_reference=False) == [(policy, []) for policy, _ in both]


def test_statistics_follow_their_definitions(make_engine):
    """Policy and reference are one model here, so every h is 0; ratios are computed again from scored log-probs."""
    engine = make_engine()
    pairs = random_pairs(5, count=5)
    active = [pair for pair in pairs if not pair.tie]
    completions = [(pair, completion) for pair in active for completion in (pair.chosen, pair.rejected)]
    scores = engine.policies.score([(pair.prompt_token_ids, completion.token_ids) for pair, completion in completions])
    differences = [
        ours - theirs
        for (policy, _), (_, completion) in zip(scores, completions, strict=True)
        for ours, theirs in zip(policy, completion.logprobs, strict=True)
    ]
    stats = engine.update(pairs)
    assert stats.loss == pytest.approx(math.log(2.0))
    assert (stats.margin, stats.accuracy) == (pytest.approx(0.0, abs=1e-6), pytest.approx(0.0))
    assert (stats.kl_chosen, stats.kl_rejected) == (pytest.approx(0.0, abs=1e-5), pytest.approx(0.0, abs=1e-5))
    assert stats.log_ratio_max == pytest.approx(max(map(abs, differences)), rel=1e-4)
    assert stats.log_ratio_mean == pytest.approx(sum(map(abs, differences)) / len(differences), rel=1e-4)
    k3 = [math.exp(d) - 1.0 - d for d in differences]
    assert stats.behaviour_kl == pytest.approx(sum(k3) / len(k3), rel=1e-4)
    # Each prompt once, and nothing padded.
    lengths = [len(p.prompt_token_ids) + len(p.chosen.token_ids) + len(p.rejected.token_ids) for p in active]
    assert (stats.pairs, stats.ties, stats.tokens, stats.padded_tokens) == (5, 1, sum(lengths), sum(lengths))
    assert stats.lr == CONFIG.optimizer.lr / 2
    second = engine.update(pairs)
    assert second.margin > 0.0
    assert second.kl_chosen > second.kl_rejected


def test_ties_alone_change_nothing_and_cost_the_tie_loss(make_engine):
    optimizer = CONFIG.optimizer.model_copy(update={"weight_decay": 0.0})
    engine = make_engine(optimizer=optimizer, loss=PairLossConfig(kind="ipo", beta=0.5))
    before = full_state(engine)
    stats = engine.update([replace(pair, margin=0.0) for pair in random_pairs(6)])
    assert stats.loss == pytest.approx(tie_loss(PairLossConfig(kind="ipo", beta=0.5)))
    assert (stats.ties, stats.accuracy, stats.grad_norm) == (7, 0.0, 0.0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in full_state(engine).items())


def test_too_many_skipped_updates_stop_the_run_naming_the_saved_batch(make_engine, tmp_path):
    engine = make_engine(max_skipped_updates=1)
    policies, whole = engine.policies, engine.policies.reference
    policies.reference = lambda *inputs: whole(*inputs) * math.nan
    assert engine.update(random_pairs(0)).skipped
    path = tmp_path / "failed" / "skipped-update-000002.jsonl"
    with pytest.raises(RunError, match=rf"max_skipped_updates allows 1.*saved to {path}"):
        engine.update(random_pairs(0))
    assert path.exists()


def test_bfloat16_weights_are_trained_with_float32_master_weights(make_engine):
    """A step of 1e-4 on weights near 1 is below bfloat16's grid of 0.0078; only master weights can add it up."""
    constant = OptimizerConfig(lr=1e-4, schedule="constant", betas=(0.0, 0.0), eps=1e-20)
    engine = make_engine(dtype="bfloat16", optimizer=constant)
    norm = "model.norm.weight"
    start = full_state(engine)[norm]
    assert start.dtype == torch.bfloat16
    for _ in range(3):
        engine.update(random_pairs(0, 2))
    assert torch.equal(full_state(engine)[norm], start)
    for _ in range(60):
        engine.update(random_pairs(0, 2))
    assert not torch.equal(full_state(engine)[norm], start)


@pytest.mark.parametrize(
    ("stage", "offload"),
    [
        (1, True),
        (3, False),
        *(pytest.param(*each, marks=pytest.mark.long) for each in ((1, False), (2, False), (2, True), (3, True))),
    ],
)
def test_bfloat16_and_offloaded_runs_skip_and_resume_like_the_others(make_engine, tmp_path, stage, offload):
    """DeepSpeed keeps the offloaded gradients of a step it skipped: they would spoil every later one."""
    settings = {"dtype": "bfloat16", "zero_stage": stage, "offload_optimizer": offload}
    engine = make_engine(**settings)
    engine.update(random_pairs(0))
    policies, whole = engine.policies, engine.policies.reference
    policies.reference = lambda *inputs: whole(*inputs) * math.nan
    assert engine.update(random_pairs(1)).skipped
    policies.reference = whole
    engine.policy.save(tmp_path / "update-2")
    ahead = engine.update(random_pairs(2))
    assert not ahead.skipped
    state = full_state(engine)
    other = make_engine(**settings)
    other.policy.load(tmp_path / "update-2")
    assert replace(other.update(random_pairs(2)), seconds=0.0) == replace(ahead, seconds=0.0)
    assert all(torch.equal(tensor, state[name]) for name, tensor in full_state(other).items())
    assert all(tensor.dtype == torch.bfloat16 for tensor in state.values())


def test_gradient_checkpointing_recomputes_each_layer_and_keeps_dropout_off(make_engine):
    """The model's own configuration asks for dropout; the policy must still equal its reference: loss log 2 exactly."""
    calls = []
    for recompute in (False, True):
        engine = make_engine(gradient_checkpointing=recompute, micro_batch_tokens=10_000, model="dropout")
        layer = engine.policy.model.model.layers[0]
        layer.register_forward_hook(lambda *_, recompute=recompute: calls.append(recompute))
        stats = engine.update(random_pairs(0))
        assert stats.loss == pytest.approx(math.log(2.0), abs=1e-7)
    assert (calls.count(False), calls.count(True)) == (1, 2)


def test_the_final_model_is_replaced_as_a_whole(make_engine, tmp_path):
    engine = make_engine()
    (tmp_path / "final").mkdir()
    (tmp_path / "final" / "old").write_text("")
    engine.policy.save_pretrained(tmp_path / "final")
    names = {path.name for path in (tmp_path / "final").iterdir()}
    assert names == {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json"}
    assert [path.name for path in tmp_path.iterdir()] == ["final"]


def test_the_final_model_samples_as_the_run_did_and_names_what_ends_its_answers(make_engine, tmp_path):
    make_engine().policy.save_pretrained(tmp_path / "final")
    settings = json.loads((tmp_path / "final" / "generation_config.json").read_text())
    wanted = {"do_sample": True, "temperature": TEMPERATURE, "top_k": 0, "top_p": 1.0, "eos_token_id": list(ENDS)}
    assert settings == settings | wanted


def test_a_write_that_fails_for_whatever_reason_is_told_and_training_goes_on(make_engine, tmp_path, monkeypatch):
    """Only a few kinds of error were caught: with others rank 0 raised, and the other ranks waited for it."""
    engine = make_engine()

    def refuse(*_, **__):
        raise ValueError("GenerationConfig is invalid: \n- `temperature`: whole message")

    with monkeypatch.context() as patch:
        patch.setattr("learner.backend.models.write_model", refuse)
        for save in (engine.policy.save_pretrained, engine.policy.save):
            with pytest.raises(RunError, match=r"could not be written(.|\n)*`temperature`: whole message"):
                save(tmp_path / "update-1")
    assert not engine.update(random_pairs(0)).skipped


def test_a_model_that_could_not_be_saved_is_refused_before_the_first_update(make_engine, monkeypatch):
    make_engine()  # which closes the process group that both join

    def refuse(*_, **__):
        raise TypeError("not JSON serializable")

    monkeypatch.setattr("transformers.LlamaForCausalLM.save_pretrained", refuse)
    with pytest.raises(UsageError, match=r"could not be saved: TypeError: not JSON serializable"):
        make_engine()


def test_a_checkpoint_of_other_settings_or_with_a_torn_file_is_refused(make_engine, tmp_path):
    engine = make_engine()
    engine.policy.save(tmp_path / "update-1")
    layout = tmp_path / "update-1" / "deepspeed" / "layout.json"
    written = layout.read_text()
    for name, other in (("zero_stage", 3), ("dtype", "bfloat16")):
        layout.write_text(json.dumps(json.loads(written) | {"ranks": 4, name: other}))
        with pytest.raises(
            UsageError, match=rf"was written with .*learner\.{name} {other}.*this run has learner\.ranks 1"
        ):
            engine.policy.load(tmp_path / "update-1")
    layout.write_text(written)
    shard = next((tmp_path / "update-1" / "deepspeed" / "engine").glob("*optim_states.pt"))
    shard.write_bytes(shard.read_bytes()[:1000])
    with pytest.raises(UsageError, match=r"update-1 cannot be read: .*resume from an older one"):
        engine.policy.load(tmp_path / "update-1")


def test_a_path_that_is_a_pattern_to_deepspeed_is_loaded_from(make_engine, tmp_path):
    """DeepSpeed looks for its files with the whole path as a pattern, in which [b] is a b."""
    engine = make_engine()
    engine.policy.save(tmp_path / "a[b]" / "update-0", {"note": 1})
    assert engine.policy.load(tmp_path / "a[b]" / "update-0") == {"note": 1}


def test_a_full_disk_fails_the_save_with_a_clear_error_and_training_goes_on(make_engine, tmp_path, monkeypatch):
    engine = make_engine()

    real_save = torch.save

    def full(state, target, **options):
        if isinstance(target, str):  # a file; messages between ranks are made by the same function
            raise OSError(28, "No space left on device")
        real_save(state, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(RunError, match=r"could not be written to .*update-1: rank 0: .*No space left"):
            engine.policy.save(tmp_path / "update-1")
    assert not engine.update(random_pairs(0)).skipped
    engine.policy.save(tmp_path / "update-2")


def test_wrong_requests_are_refused_before_anything_is_loaded(make_engine, tmp_path):
    engine = make_engine()
    with pytest.raises(UsageError, match="needs at least one pair"):
        engine.update([])
    (tmp_path / "empty").mkdir()
    from learner.training.engine import TrainEngine

    with pytest.raises(
        UsageError,
        match=r"empty' has no config\.json, so it holds no model \(it is empty\); give a Hugging Face directory",
    ):
        TrainEngine(spec_of(tmp_path / "empty", CONFIG))
    with pytest.raises(RunError, match=r"gpus_per_rank is 1 but DeepSpeed chose the device 'cpu'"):
        TrainEngine(spec_of(tmp_path / "empty", CONFIG.model_copy(update={"gpus_per_rank": 1.0})))


def against_average(decay):
    opponent = OpponentConfig(kind="ema", ema_decay=decay)
    return GameLossConfig(correction=CorrectionConfig(opponents="none"), opponent=opponent)


@pytest.mark.parametrize("kind", ["dpo", "ipo"])
def test_the_step_size_of_pairs_is_the_slope_of_their_change_on_the_residual(make_engine, directory, kind):
    """From the weights before and after each step: sum(r dh) / sum(2 r^2) over pairs that are no ties."""
    engine, pairs = make_engine(loss=PairLossConfig(kind=kind, beta=0.5, label_smoothing=0.1)), random_pairs(3)
    states = [full_state(engine)]
    for _ in range(2):
        measured = engine.update(pairs, measure_step=True).step_size
        states.append(full_state(engine))
        start, before, after = (of_model(_loaded(directory, state), TEMPERATURE) for state in (states[0], *states[-2:]))
        above = below = 0.0
        for pair in (pair for pair in pairs if not pair.tie):
            with torch.no_grad():
                reference, old, new = (_difference(policy, pair) for policy in (start, before, after))
            margin = 0.5 * (old - reference)
            left = 0.9 - 1.0 / (1.0 + math.exp(-margin)) if kind == "dpo" else 0.4 - margin
            above, below = above + left * (new - old), below + 2.0 * left * left
        assert measured == pytest.approx(above / below, rel=1e-3)


def _loaded(directory, state):
    model = AutoModelForCausalLM.from_pretrained(directory / "model", dtype=torch.float32).eval()
    model.load_state_dict(state)
    return model.double()


def _difference(logprobs, pair):
    chosen, rejected = (
        float(logprobs(pair, side).gather(-1, torch.tensor(side.token_ids)[:, None]).sum()) for side in pair.completions
    )
    return chosen - rejected


def test_pairs_that_are_all_ties_have_no_step_size(make_engine):
    ties = [replace(pair, margin=0.0) for pair in random_pairs(0)]
    assert math.isnan(make_engine().update(ties, measure_step=True).step_size)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_average_is_checkpointed_and_stands_still_when_a_step_is_skipped(make_engine, tmp_path, dtype):
    engine = make_engine(loss=against_average(0.75), dtype=dtype)
    games = random_games(0, 3, 4, 0, VOCABULARY)
    engine.update(games)
    average = average_state(engine)
    assert any(not torch.equal(average[name], tensor) for name, tensor in full_state(engine).items())
    policies, whole = engine.policies, engine.policies.reference
    policies.reference = lambda *inputs: whole(*inputs) * math.nan
    assert engine.update(games, measure_step=True).step_size is None
    policies.reference = whole
    assert all(torch.equal(tensor, average[name]) for name, tensor in average_state(engine).items())

    engine.policy.save(tmp_path / "update-2")
    other = make_engine(loss=against_average(0.75), dtype=dtype)
    other.policy.load(tmp_path / "update-2")
    for each in (engine, other):
        each.update(games)
    ahead, resumed = average_state(engine), average_state(other)
    assert any(not torch.equal(tensor, average[name]) for name, tensor in ahead.items())
    assert all(torch.equal(tensor, ahead[name]) for name, tensor in resumed.items())
    assert {str(tensor.dtype) for tensor in ahead.values()} == {f"torch.{dtype}"}

    (tmp_path / "update-2" / "deepspeed" / "average.safetensors").unlink()
    with pytest.raises(UsageError, match=r"average\.safetensors is missing: .*without learner\.loss\.opponent\.kind"):
        other.policy.load(tmp_path / "update-2")


def test_small_changes_add_up_in_the_average_of_bfloat16_weights(make_engine):
    """At a decay of 0.99 an update moves the average by 1% of 2^-7, far below bfloat16's grid of 2^-7 at 1."""
    engine = make_engine(dtype="bfloat16", loss=against_average(0.99))
    norm = engine.policy.model.model.norm.weight
    with torch.no_grad():
        norm.add_(2.0**-7)
    for _ in range(80):
        engine.policies.average.update(engine.policy.model)
    # 1 - 0.99^80 = 0.55 of the way is nearer to the next number of the grid than to 1.
    assert torch.equal(average_state(engine)["model.norm.weight"], norm.detach())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1.0, 1.0, 1.0, 1.0, 1.0]),
        ("linear", [1 / 3, 2 / 3, 1.0, 0.75, 0.5, 0.25, 0.0]),
        ("cosine", [1 / 3, 2 / 3, 1.0, 0.5 + math.sqrt(0.125), 0.5, 0.5 - math.sqrt(0.125), 0.0]),
    ],
)
def test_learning_rate_warms_up_from_above_zero_and_the_last_update_still_learns(schedule, expected):
    config = OptimizerConfig(lr=2.0, schedule=schedule, warmup_updates=2)
    assert [learning_rate(config, update, 6) / 2.0 for update in range(7)] == pytest.approx(expected)
