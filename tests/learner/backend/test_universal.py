"""Checkpoints that another number of ranks resumes from: no bit of them is lost, and no code in them is run."""

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from actors.errors import UsageError
from learner.backend.universal import only_world_size_differs, seed_of_new_rank, weights_only
from tests.learner.backend.other_ranks import BATCHES, CASES, LEARNER, UPDATES, whole_state
from tests.learner.backend.ranks import make_model, run_ranks, spec_of

LEGS = ("one to two", "two to one")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("other ranks")
    make_model(path / "model")
    make_model(path / "tied", tie_word_embeddings=True)
    return path


@pytest.fixture(scope="module")
def runs(models):
    for scenario, world in (("start", 1), ("pass-on", 2), ("end", 1)):
        codes = run_ranks(models, scenario, world, "tests.learner.backend.other_ranks")
        assert codes == [0] * world, (models / f"{scenario}-rank0.log").read_text()[-3000:]
    start, both, other, end = (
        torch.load(models / f"{name}.pt", weights_only=False)
        for name in ("start-rank0", "pass-on-rank0", "pass-on-rank1", "end-rank0")
    )
    return {"one to two": (start, both), "two to one": (both, end), "second rank": other}


@pytest.fixture
def make_engine(models):
    """Engines of one rank in this process; the process is left as it was."""
    os.environ["DS_ACCELERATOR"] = "cpu"
    from learner.training.engine import TrainEngine

    environment = dict(os.environ)
    engines = []

    def make(**settings):
        config = LEARNER.model_copy(update=settings)
        engines.append(TrainEngine(spec_of(models / "model", config, total_updates=UPDATES)))
        return engines[-1]

    yield make
    for engine in engines[1:]:
        engine.policy.destroy()
    if engines:
        engines[0].policy.close()
    os.environ.clear()
    os.environ.update(environment)


def save_as_of_two_ranks(engine, checkpoint: Path) -> None:
    """Writes a checkpoint of one rank that says it is of two, so that one rank can convert it."""
    engine.policy.save(checkpoint)
    layout = checkpoint / "deepspeed" / "layout.json"
    layout.write_text(json.dumps(json.loads(layout.read_text()) | {"ranks": 2}))


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for kind, tensors in left.items():
        assert tensors.keys() == right[kind].keys()
        for name, tensor in tensors.items():
            assert tensor.dtype == right[kind][name].dtype
            assert torch.equal(tensor, right[kind][name]), (kind, name)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("leg", LEGS)
def test_weights_and_moments_are_loaded_bit_for_bit(runs, leg, case):
    wrote, resumed = (run[case] for run in runs[leg])
    written = wrote["before" if "before" in wrote else "resumed"]
    assert_equal(written["state"], resumed["resumed"]["loaded"])
    assert any(float(moment.abs().max()) > 0 for moment in resumed["resumed"]["loaded"]["exp_avg"].values())
    assert resumed["resumed"]["client"] == {"note": case}
    assert resumed["resumed"]["updates"] == (3 if leg == "one to two" else 6)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("leg", LEGS)
def test_training_goes_on_as_on_the_ranks_that_wrote_the_checkpoint(runs, leg, case):
    """Three updates on the one and on the other number of ranks, which sum gradients in different orders.

    In float32 a gradient's elements, clipped to 0.5 at most, then differ by some four roundings: d = 4 * 0.5 * 2^-24 =
    1.2e-7. An Adam step moves a weight by lr d / eps more at most, with lr 5e-3 and eps 1e-4 by 6e-6: 1.8e-5 in three.
    A lost moment or count of steps costs a part of lr. In bfloat16 an activation has 8 bits, gradients differ by some
    per cent, and float32 weights by a tenth of the way that they go.
    """
    wrote, resumed = (run[case] for run in runs[leg])
    expected, found = wrote["went on"], resumed["resumed"]
    exact = case[1] == "float32"
    for left, right in zip(expected["stats"], found["stats"], strict=True):
        assert (left.update, left.lr) == (right.update, right.lr)
        assert right.loss == pytest.approx(left.loss, abs=1e-5 if exact else 0.02)
        assert right.grad_norm == pytest.approx(left.grad_norm, rel=1e-4 if exact else 0.05)
    for name, weight in expected["state"]["master"].items():
        way = float((weight - found["loaded"]["master"][name]).abs().max())
        assert way > 1e-3, name
        assert float((weight - found["state"]["master"][name]).abs().max()) < (2e-5 if exact else 0.1 * way), name
    assert found["steps"] == expected["steps"] == {6 if leg == "one to two" else 9}


@pytest.mark.slow
def test_a_rank_takes_its_own_random_state_and_a_new_one_is_seeded_from_the_first(runs):
    start, both = runs["one to two"]
    for case in CASES:
        assert torch.equal(both[case]["resumed"]["random"], start[case]["random"])
        generator = torch.Generator()
        generator.set_state(start[case]["random"])
        seeds = [int(torch.randint(2**63 - 1, (), generator=generator)) for _ in range(2)]
        expected = torch.Generator().manual_seed(seeds[1]).get_state()
        assert torch.equal(runs["second rank"][case]["resumed"]["random"], expected)
        first_of_two, one = both[case]["random"], runs["two to one"][1][case]["resumed"]["random"]
        assert torch.equal(first_of_two, one)


@pytest.mark.slow
def test_every_rank_is_told_that_the_first_could_not_convert(runs):
    case = CASES[1]
    first, second = (run[case]["refusal"] for run in (runs["one to two"][1], runs["second rank"]))
    assert first == second
    assert "could not be converted to learner.ranks 2: AssertionError: . The conversion needs" in first


@pytest.mark.slow
def test_conversions_leave_nothing_behind(runs, models):
    del runs
    names = {path.name for path in models.iterdir()}
    assert {name for name in names if name.startswith(".tmp")} == set()
    assert len([name for name in names if name.startswith("by-")]) == 2 * len(CASES)


@pytest.mark.parametrize(("stage", "dtype"), [(1, "float32"), (2, "bfloat16"), (3, "bfloat16")])
def test_offloaded_optimizers_are_converted_whatever_the_path_is_called(make_engine, tmp_path, stage, dtype):
    """On as many ranks as before, so that what follows has the same bits. DeepSpeed takes paths for patterns."""
    settings = {"zero_stage": stage, "dtype": dtype, "offload_optimizer": True}
    checkpoint = tmp_path / "a[b]+(c" / "update-1"
    engine, other = make_engine(**settings), make_engine(**settings)
    engine.update(BATCHES[0])
    save_as_of_two_ranks(engine, checkpoint)
    other.policy.load(checkpoint)
    assert_equal(whole_state(other), whole_state(engine))
    went_on, resumed = engine.update(BATCHES[1]), other.update(BATCHES[1])
    assert replace(resumed, seconds=0.0) == replace(went_on, seconds=0.0)
    assert_equal(whole_state(other), whole_state(engine))
    assert [path.name for path in checkpoint.parent.iterdir()] == ["update-1"]


def test_every_group_of_parameters_counts_its_own_steps(make_engine, tmp_path, monkeypatch):
    """DeepSpeed's loader gives all groups of ZeRO-3 one count, and four groups advanced it by four at every update."""
    from learner.backend import sharded

    config = sharded.deepspeed_config

    def small_groups(*arguments):
        settings = config(*arguments)
        return settings | {"zero_optimization": settings["zero_optimization"] | {"sub_group_size": 4000}}

    monkeypatch.setattr(sharded, "deepspeed_config", small_groups)
    engine, other = make_engine(zero_stage=3), make_engine(zero_stage=3)
    engine.update(BATCHES[0])
    save_as_of_two_ranks(engine, tmp_path / "update-1")
    other.policy.load(tmp_path / "update-1")
    for batch in BATCHES[1:3]:
        engine.update(batch)
        other.update(batch)
    steps = [int(state["step"]) for state in other.policy._engine.optimizer.state.values()]
    assert len(steps) > 1
    assert set(steps) == {3}
    assert_equal(whole_state(other), whole_state(engine))


class Payload:
    """A pickle that writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Seen:
    def __init__(self, count: int) -> None:
        self.count = count


@pytest.mark.parametrize("stage", [1, 3])
@pytest.mark.parametrize("pattern", ["*model_states.pt", "*optim_states.pt"])
def test_a_conversion_runs_no_code_of_the_checkpoint(make_engine, tmp_path, stage, pattern):
    engine = make_engine(zero_stage=stage)
    save_as_of_two_ranks(engine, tmp_path / "update-0")
    (path,) = (tmp_path / "update-0" / "deepspeed" / "engine").glob(pattern)
    state = torch.load(path, weights_only=False)
    torch.save(state | {"more": Payload(tmp_path / "ran")}, path)
    with pytest.raises(UsageError, match=r"could not be converted to learner\.ranks 1: UnpicklingError: Weights only"):
        engine.policy.load(tmp_path / "update-0")
    assert [path.name for path in tmp_path.iterdir()] == ["update-0"]


def test_a_converted_checkpoint_is_read_as_restricted_as_any(make_engine, tmp_path, monkeypatch):
    from learner.backend import sharded

    convert = sharded.convert

    def spoil(directory: Path, stage: Path) -> None:
        convert(directory, stage)
        torch.save({"more": Payload(tmp_path / "ran")}, stage / "engine" / "zero" / "optimizer_state.pt")

    monkeypatch.setattr(sharded, "convert", spoil)
    engine = make_engine(zero_stage=2)
    save_as_of_two_ranks(engine, tmp_path / "update-0")
    with pytest.raises(UsageError, match="update-0 cannot be read: Weights only load failed"):
        engine.policy.load(tmp_path / "update-0")
    assert [path.name for path in tmp_path.iterdir()] == ["update-0"]


def test_a_conversion_that_fails_says_what_to_do_and_leaves_nothing(make_engine, tmp_path, monkeypatch):
    engine = make_engine(zero_stage=2)
    save_as_of_two_ranks(engine, tmp_path / "update-0")
    real_save = torch.save

    def full(state, target, **options):
        if isinstance(target, str):  # a file; messages between ranks are made by the same function
            raise OSError(28, "No space left on device")
        real_save(state, target, **options)

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(UsageError, match=r"No space left.* free space there .*or resume with the learner\.ranks"):
            engine.policy.load(tmp_path / "update-0")
    assert [path.name for path in tmp_path.iterdir()] == ["update-0"]
    (tmp_path / ".tmp-universal-update-0").mkdir()
    (tmp_path / ".tmp-universal-update-0" / "of a run that was killed").touch()
    engine.policy.load(tmp_path / "update-0")
    assert [path.name for path in tmp_path.iterdir()] == ["update-0"]
    shutil.rmtree(tmp_path / "update-0" / "deepspeed" / "engine")
    with pytest.raises(UsageError, match=r"update-0 could not be converted.*can't find"):
        engine.policy.load(tmp_path / "update-0")


def test_layouts_differ_in_their_ranks_alone_or_in_more():
    own = {"ranks": 1, "zero_stage": 2, "dtype": "float32"}
    assert only_world_size_differs(own | {"ranks": 2}, own)
    assert not only_world_size_differs(own, own)
    assert not only_world_size_differs(own | {"ranks": 2, "dtype": "bfloat16"}, own)
    assert not only_world_size_differs(own | {"ranks": 2, "zero_stage": 3}, own)
    assert not only_world_size_differs(own | {"more": 1}, own)


def test_new_ranks_have_seeds_apart_that_follow_from_the_first_rank_s_state():
    state = torch.Generator().manual_seed(5).get_state()
    seeds = [seed_of_new_rank(state, rank) for rank in range(1, 4)]
    assert len(set(seeds)) == 3
    assert seeds == [seed_of_new_rank(state, rank) for rank in range(1, 4)]
    assert seeds[0] != seed_of_new_rank(torch.Generator().manual_seed(6).get_state(), 1)


def test_the_restriction_ends_with_the_outermost_of_its_contexts(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0")
    torch.save(Payload(tmp_path / "ran"), tmp_path / "payload.pt")
    torch.save(Seen(3), tmp_path / "allowed.pt")
    with weights_only([Seen]):
        with weights_only([Seen]):
            pass
        assert torch.load(tmp_path / "allowed.pt", weights_only=False).count == 3
        with pytest.raises(Exception, match="Weights only load failed"):
            torch.load(tmp_path / "payload.pt", weights_only=False)
    assert not (tmp_path / "ran").exists()
    torch.load(tmp_path / "payload.pt", weights_only=False)
    assert (tmp_path / "ran").exists()
    with pytest.raises(Exception, match="Weights only load failed"):
        torch.load(tmp_path / "allowed.pt", weights_only=True)
