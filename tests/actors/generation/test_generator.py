import hashlib
import itertools
import threading
import time
from dataclasses import replace

import pytest
import torch

from actors.environments.config import EnvironmentConfig
from actors.errors import RunError, UsageError, WeightMismatchError
from actors.generation.config import GeneratorConfig, OpponentConfig, SamplingConfig
from actors.generation.generator import Generator, request_seed, requested_roles
from actors.records import Canary, Draw, Failure, Group, Lease, Manifest, Prompt, TensorRecord
from learner.publication.config import PublicationConfig
from learner.publication.publisher import Publisher
from tests.fakes.canaries import canary_tokens
from tests.fakes.generators import FakeEngine, spec_of
from tests.fakes.models import tiny_llama


def lease(index: int, *, min_version: int = 0, prompt: tuple[int, ...] = (1, 2), draw: Draw = "policy") -> Lease:
    return Lease(index, 0, Prompt(f"p:{index}", prompt, "text"), min_version, deadline=1e9, draw=draw)


def manifest(version: int) -> Manifest:
    return Manifest(version, (), Canary((), ()), "shm")


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def generator(engine):
    opponent = OpponentConfig(completions_per_prompt=3, max_staleness=0)
    settings = GeneratorConfig(max_running_prompts=2), SamplingConfig(completions_per_prompt=2)
    made = Generator(spec_of("unused", *settings, name="g0", opponent=opponent), lambda spec: engine)
    yield made
    made.close()


def collect(generator: Generator, count: int) -> list[Group | Failure]:
    results: list[Group | Failure] = []
    deadline = time.monotonic() + 60
    while len(results) < count and time.monotonic() < deadline:
        results += generator.collect(1.0)
    return results


def test_each_lease_becomes_one_group_of_its_own_completions_in_order(generator):
    generator.submit([lease(i) for i in range(5)])
    groups = {group.lease.index: group for group in collect(generator, 5)}
    assert sorted(groups) == [0, 1, 2, 3, 4]
    assert [c.text for c in groups[3].completions] == ["3.0.0", "3.0.1"]


def test_withdrawn_leases_make_room_and_are_never_answered(engine):
    """Of four leases two run; one that runs and one that waits are withdrawn."""
    engine._steps = 400
    settings = GeneratorConfig(max_running_prompts=2), SamplingConfig(completions_per_prompt=2)
    generator = Generator(spec_of("unused", *settings, name="g0"), lambda spec: engine)
    try:
        generator.submit([lease(i) for i in range(4)])
        while generator.status().running < 2:
            time.sleep(0.001)
        generator.withdraw([(0, 0), (2, 0), (9, 0)])
        assert [each.lease.index for each in collect(generator, 2)] == [1, 3]
        assert sorted(engine.aborted) == ["0.0.0", "0.0.1"]
        assert (generator.status().running, generator.status().waiting) == (0, 0)
        assert generator.collect(0.01) == []
    finally:
        generator.close()


@pytest.mark.parametrize(
    ("draw", "opponent"),
    [
        ("all", [False, False, True, True, True]),
        ("policy", [False, False]),
        ("opponents", [True, True, True]),
    ],
)
def test_a_lease_gets_the_completions_that_it_asks_for_the_policy_s_before_the_opponents(generator, draw, opponent):
    generator.submit([lease(-3, draw=draw), lease(1)])
    (group,) = [group for group in collect(generator, 2) if group.lease.index == -3]
    assert [completion.opponent for completion in group.completions] == opponent
    assert [completion.text for completion in group.completions] == [f"-3.0.{k}" for k in range(len(opponent))]


@pytest.mark.parametrize(
    ("opponent", "count"),
    [({}, 2), ({"kind": "self"}, 2), ({"kind": "mixture"}, 5), ({"kind": "weighted", "max_staleness": 1}, 5)],
)
def test_only_opponents_that_are_completions_of_their_own_are_part_of_everything(opponent, count):
    roles = requested_roles(
        SamplingConfig(completions_per_prompt=2), OpponentConfig(completions_per_prompt=3, **opponent)
    )
    assert len(roles["all"]) == count
    assert sum(roles["all"]) == count - 2


def test_the_engine_is_built_from_the_generator_s_own_spec():
    given = []
    spec = spec_of("policy", opponent=OpponentConfig(kind="mixture", beta=0.5), reference_dir="start")
    Generator(spec, lambda spec: given.append(spec) or FakeEngine()).close()
    assert given == [spec]


def test_a_deterministic_generator_seeds_each_completion_by_run_lease_and_place_whatever_the_attempt():
    engine = FakeEngine()
    spec = spec_of(sampling=SamplingConfig(completions_per_prompt=2), seed=5, deterministic=True)
    generator = Generator(spec, lambda spec: engine)
    try:
        generator.submit([lease(3), lease(4)])
        collect(generator, 2)
        generator.submit([replace(lease(3), attempt=1)])
        collect(generator, 1)
    finally:
        generator.close()
    seeds = engine.seeds
    assert [seeds["3.1.0"], seeds["3.1.1"]] == [seeds["3.0.0"], seeds["3.0.1"]]
    assert len(set(seeds.values())) == 4
    assert seeds["4.0.1"] == request_seed(5, 4, 1) != request_seed(6, 4, 1)
    assert all(0 <= seed < 2**63 for seed in seeds.values())


def test_no_two_engines_of_runs_with_neighbouring_seeds_draw_the_same_numbers():
    """Once generator 1 of the run with seed 0 had the seed of generator 0 of the run with seed 1."""
    starts = itertools.product((0, 1, 2), (0, 1, 2), (0, 100))
    seeds = [spec_of(seed=seed, number=number, start=start).engine_seed for seed, number, start in starts]
    assert len(set(seeds)) == 18
    assert all(0 <= seed < 2**32 for seed in seeds), "numpy takes no more"


def test_seeds_of_completions_are_those_of_runs_made_before():
    """A deterministic run resumes to the bit: sha256 of b"5:4:1" begins with this."""
    digest = hashlib.sha256(b"5:4:1").digest()
    assert request_seed(5, 4, 1) == int.from_bytes(digest[:8], "big") // 2


@pytest.mark.parametrize(("kind", "averaged"), [("mixture", False), ("ema", True)])
def test_a_publication_is_checked_for_the_average_where_opponents_are_of_it(tmp_path, kind, averaged):
    tensors = dict(tiny_llama(tmp_path, seed=0).named_parameters())
    generator = Generator(spec_of(tmp_path, opponent=OpponentConfig(kind=kind)), FakeEngine)

    def publication(prefixes):
        records = [TensorRecord(p + n, tuple(t.shape), "float32", "") for p in prefixes for n, t in tensors.items()]
        return Manifest(1, tuple(records), Canary((), ()), "nccl")

    policy, both = publication([""]), publication(["", "reference."])
    try:
        generator.check_weights(both if averaged else policy)
        with pytest.raises(WeightMismatchError, match=r"reference\.lm_head\.weight"):
            generator.check_weights(policy if averaged else both)
    finally:
        generator.close()


def test_no_more_leases_run_than_allowed(generator):
    generator.submit([lease(i) for i in range(5)])
    time.sleep(0.002)
    assert generator.status().running <= 2
    assert len(collect(generator, 5)) == 5


def test_a_lease_waits_for_the_weights_it_asks_for_and_does_not_block_others(generator):
    generator.submit([lease(0, min_version=2), lease(1)])
    assert [group.lease.index for group in collect(generator, 1)] == [1]
    assert generator.status().waiting == 1
    generator.take_weights(manifest(1))
    assert generator.collect(0.05) == []
    assert generator.take_weights(manifest(2)) == 2
    (group,) = collect(generator, 1)
    assert group.oldest_version == 2


def test_a_lease_submitted_twice_is_generated_once(generator):
    generator.submit([lease(0, min_version=1), lease(1)])
    generator.submit([lease(0, min_version=1)])
    generator.take_weights(manifest(1))
    assert sorted(group.lease.index for group in collect(generator, 2)) == [0, 1]
    assert generator.collect(0.05) == []


def test_collect_returns_empty_after_its_timeout(generator):
    started = time.monotonic()
    assert generator.collect(0.05) == []
    assert 0.05 <= time.monotonic() - started < 10.0


def test_collect_wakes_as_soon_as_something_is_ready(generator):
    threading.Timer(0.05, lambda: generator.submit([lease(0)])).start()
    started = time.monotonic()
    assert len(generator.collect(30.0)) == 1
    assert time.monotonic() - started < 15.0


def test_a_prompt_that_the_engine_refuses_comes_back_as_a_failure(generator, engine):
    generator.submit([lease(0, prompt=()), lease(1)])
    results = sorted(collect(generator, 2), key=lambda item: isinstance(item, Failure))
    assert results[0].lease.index == 1
    assert results[1] == Failure(0, 0, "empty prompt")
    assert engine.aborted == ["0.0.0", "0.0.1"]


def test_refused_weights_are_raised_and_generation_goes_on_with_the_old_ones(generator, engine):
    engine.refuse_next_load = WeightMismatchError("tensor 'a' is missing")
    with pytest.raises(WeightMismatchError, match="'a' is missing"):
        generator.take_weights(manifest(1))
    generator.submit([lease(0)])
    (group,) = collect(generator, 1)
    assert group.oldest_version == 0
    assert generator.status().version == 0


def test_a_skipped_version_is_acknowledged_as_itself_and_an_older_one_is_refused_before_a_transfer(generator):
    assert generator.take_weights(manifest(3)) == 3
    assert generator.status().version == 3
    generator.submit([lease(0)])
    (group,) = collect(generator, 1)
    assert {version for completion in group.completions for version in completion.versions} == {3}
    with pytest.raises(WeightMismatchError, match="version 2 is older than version 3, which is in use"):
        generator.check_weights(manifest(2))


def test_the_version_that_is_acknowledged_is_the_engine_s_own_word(generator, engine):
    """It used to be the manifest's, whatever the engine had loaded."""
    engine.load = lambda manifest, payload: setattr(engine, "version", 4)
    assert generator.take_weights(manifest(5)) == 4


def test_weights_that_break_the_engine_stop_every_method(generator):
    with pytest.raises(WeightMismatchError, match="canary differs"):
        generator.take_weights(manifest(13))
    time.sleep(0.05)
    calls = (
        lambda: generator.collect(5.0),
        lambda: generator.submit([lease(0)]),
        lambda: generator.take_weights(manifest(14)),
        lambda: generator.status(),
    )
    for call in calls:
        with pytest.raises(WeightMismatchError, match="canary differs"):
            call()


def test_an_engine_failure_reaches_a_collect_that_is_waiting(generator, engine):
    engine.break_next_step = ValueError("out of cache")
    threading.Timer(0.05, lambda: generator.submit([lease(0)])).start()
    with pytest.raises(RunError, match="g0: the engine failed with ValueError: out of cache"):
        generator.collect(30.0)


def test_weights_ordered_while_the_engine_fails_do_not_hang(generator, engine):
    engine.break_next_step = ValueError("out of cache")
    generator.submit([lease(0)])

    def take_until_it_fails():
        while True:
            generator.take_weights(manifest(1))

    with pytest.raises(RunError, match="out of cache"):
        take_until_it_fails()


def test_an_engine_that_cannot_be_built_raises_from_the_constructor():
    def refuse(*_, **__):
        raise UsageError("no such model")

    with pytest.raises(UsageError, match="no such model"):
        Generator(spec_of(), refuse)


def test_the_three_durations_add_up_to_wall_time(generator):
    first, started = generator.status(), time.monotonic()
    generator.submit([lease(i) for i in range(4)])
    collect(generator, 4)
    generator.take_weights(manifest(1))
    time.sleep(0.05)
    last, wall = generator.status(), time.monotonic() - started

    def total(status):
        return status.generating_seconds + status.updating_seconds + status.idle_seconds

    assert total(last) - total(first) == pytest.approx(wall, abs=2e-3)
    assert last.generating_seconds >= 6 * 0.001  # two batches of three steps of a millisecond
    assert last.updating_seconds >= 0.002
    assert last.idle_seconds >= 0.05
    assert last.tokens == 4 * 2 * 3


def test_a_closed_generator_says_so(generator):
    generator.close()
    generator.close()
    with pytest.raises(RunError, match="g0 is closed"):
        generator.collect(0.0)


@pytest.mark.vllm
def test_a_real_engine_takes_weights_while_it_generates(tmp_path):
    a, b = tiny_llama(tmp_path / "a", seed=1), tiny_llama(tmp_path / "b", seed=2)
    canary = canary_tokens(96, 16)
    publisher = Publisher(PublicationConfig(), tmp_path / "shm")
    settings = GeneratorConfig(dtype="float32", max_model_len=512, max_running_prompts=4, kv_cache_mib=32)
    sampling = SamplingConfig(completions_per_prompt=2, max_new_tokens=300)
    generator = Generator(spec_of(tmp_path / "a", settings, sampling, name="g0"))
    try:
        generator.submit([lease(i, prompt=(2, 3 + i)) for i in range(8)] + [lease(8, min_version=1, prompt=(4,))])
        while not generator.status().running:
            time.sleep(0.001)
        manifest = publisher.publish(1, dict(b.named_parameters()), Canary(canary, log_probs(b, canary)))
        assert generator.take_weights(manifest) == 1
        groups = {group.lease.index: group for group in collect(generator, 9)}
        assert sorted(groups) == list(range(9))
        assert groups[8].oldest_version == 1
        for group in groups.values():
            for completion in group.completions:
                tokens = group.lease.prompt.token_ids + completion.token_ids
                start = len(group.lease.prompt.token_ids) - 1
                by_version = {v: log_probs(model, tokens)[start:] for v, model in ((0, a), (1, b))}
                expected = [by_version[version][i] for i, version in enumerate(completion.versions)]
                assert completion.logprobs == pytest.approx(expected, abs=1e-4)
        assert {version for group in groups.values() for c in group.completions for version in c.versions} == {0, 1}
        with pytest.raises(WeightMismatchError, match=r"'lm_head\.weight' is missing"):
            generator.check_weights(publisher.publish(2, {"model.norm.weight": b.model.norm.weight}, manifest.canary))
    finally:
        generator.close()
        publisher.close()


def log_probs(model, token_ids) -> tuple[float, ...]:
    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0].double()
    chosen = torch.tensor(token_ids[1:])[:, None]
    return tuple(torch.log_softmax(logits, -1)[:-1].gather(1, chosen)[:, 0].tolist())


class Moody:
    """Ends every conversation, but fails those of a lease's first completion."""

    def reset(self, prompt: Prompt) -> None:
        assert prompt.text == "text"

    def step(self, message: str) -> None:
        if message == "3.0.0":
            raise ValueError("not this one")


def test_an_environment_that_fails_returns_its_lease_with_the_reason_and_leaves_the_others_alone():
    class Conversing(FakeEngine):
        tokenizer, ends = None, (7,)

    engine = Conversing()
    sampling = SamplingConfig(completions_per_prompt=2, environment=EnvironmentConfig(path=f"{__name__}:Moody"))
    generator = Generator(spec_of(sampling=sampling), lambda spec: engine)
    try:
        generator.submit([lease(3), lease(4)])
        results = collect(generator, 2)
    finally:
        generator.close()
    (failure,) = [each for each in results if isinstance(each, Failure)]
    (group,) = [each for each in results if isinstance(each, Group)]
    assert (failure.lease_index, failure.attempt) == (3, 0)
    assert failure.reason.startswith(f"environment '{__name__}:Moody' raised ValueError: not this one (tests/")
    assert engine.aborted == ["3.0.0", "3.0.1"]
    assert [each.messages for each in group.completions] == [(("assistant", f"4.0.{k}"),) for k in range(2)]


def test_an_environment_that_is_not_there_ends_the_start_of_a_generator() -> None:
    class Conversing(FakeEngine):
        tokenizer, ends = None, (7,)

    sampling = SamplingConfig(environment=EnvironmentConfig(path="no_such_module:Tool"))
    with pytest.raises(UsageError, match="module 'no_such_module' cannot be imported"):
        Generator(spec_of(sampling=sampling), lambda spec: Conversing())
