"""Weight syncs of engines that schedule asynchronously, and of engines that keep running requests' keys and values.

Every log-prob is compared with transformers in float64. vLLM turns asynchronous scheduling off on CPU, where nothing
would overlap; these tests leave it on, so that the scheduler, the queue of steps and the drain are vLLM's own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from actors.generation.config import GeneratorConfig, OpponentConfig, SamplingConfig
from actors.generation.engine import Engine
from actors.records import Canary, Completion, Manifest
from learner.publication.config import PublicationConfig
from learner.publication.publisher import Publisher
from tests.actors.generation.lora.test_slot import World as AdapterWorld
from tests.fakes.canaries import canary_tokens
from tests.fakes.generators import spec_of
from tests.fakes.models import tiny_llama

pytestmark = pytest.mark.vllm

CANARY = canary_tokens(96, 32)
NEW_TOKENS = 24
SHORT, LONG = 9, 140
"""Prompt tokens; the engine caches prefixes in blocks of 128 tokens on CPU."""


class World:
    """Two models on disk, and what makes engines and publications of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.a = tiny_llama(directory / "a", seed=1)
        self.b = tiny_llama(directory / "b", seed=2)
        self.publisher = Publisher(PublicationConfig(), directory / "shm")
        self.versions = {0: self.a}

    def engine(self, opponent: OpponentConfig | None = None, **settings: Any) -> Engine:
        generators = GeneratorConfig(
            dtype="float32", max_model_len=256, max_running_prompts=8, kv_cache_mib=32, **settings
        )
        sampling = SamplingConfig(max_new_tokens=NEW_TOKENS, stop_token_ids=tuple(range(2, 6)))
        return Engine(spec_of(self.directory / "a", generators, sampling, opponent=opponent, seed=3))

    def publish(self, model: Any, version: int) -> Manifest:
        tensors = {name: p.detach() for name, p in model.named_parameters()}
        canary = Canary(CANARY, tuple(log_probs(model, CANARY)))
        self.versions[version] = model
        return self.publisher.publish(version, tensors, canary)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    world = World(tmp_path_factory.mktemp("models"))
    yield world
    world.publisher.close()


@pytest.fixture(scope="module")
def scheduling_ahead() -> Iterator[None]:
    """Leave asynchronous scheduling on although the engine runs on CPU."""
    from vllm.platforms.cpu import CpuPlatform

    check = CpuPlatform.check_and_update_config.__func__

    def leave_on(cls: Any, vllm_config: Any) -> None:
        wanted = vllm_config.scheduler_config.async_scheduling
        check(cls, vllm_config)
        vllm_config.scheduler_config.async_scheduling = wanted

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CpuPlatform, "check_and_update_config", classmethod(leave_on))
        yield


@pytest.fixture(scope="module")
def ahead(world: World, scheduling_ahead: None) -> Engine:
    return world.engine(async_scheduling=True)


@pytest.fixture(scope="module")
def keeping(world: World) -> Engine:
    return world.engine(on_update="keep")


def read(parts: list[tuple[Any, Any]]) -> torch.Tensor:
    """Log-probs [tokens, vocabulary] after each token of one sequence, whose `parts` are read by one model each, with
    the keys and values that those before it left. Softmax in float64."""
    logits, cache = [], None
    with torch.no_grad():
        for model, tokens in parts:
            output = model(torch.tensor([list(tokens)]), past_key_values=cache, use_cache=True)
            logits.append(output.logits[0].double())
            cache = output.past_key_values
    return torch.log_softmax(torch.cat(logits), -1)


def log_probs(model: Any, tokens: Any) -> list[float]:
    """Log-probs of tokens 1.. of a sequence."""
    return read([(model, tokens)])[:-1].gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()


def policy_of(world: World, prompt: list[int], completion: Completion, *, kept: bool) -> torch.Tensor:
    """Log-probs [tokens, vocabulary] that the policy had wherever it sampled a token of the completion.

    A token's keys and values are computed in the step after the one that samples it: with `kept` ones, the sequence up
    to but without the last token of a version is read by that version's model. Otherwise each version reads it whole.
    """
    tokens, versions, before = prompt + list(completion.token_ids), completion.versions, slice(len(prompt) - 1, -1)
    if kept:
        changes = enumerate(itertools.pairwise(versions))
        ends = [len(prompt) + i for i, (version, following) in changes if version != following]
        readers = [versions[0], *(versions[end - len(prompt) + 1] for end in ends)]
        spans = zip(readers, itertools.pairwise([0, *ends, len(tokens)]), strict=True)
        return read([(world.versions[version], tokens[start:end]) for version, (start, end) in spans])[before]
    whole = {version: read([(world.versions[version], tokens)])[before] for version in set(versions)}
    return torch.stack([whole[version][position] for position, version in enumerate(versions)])


def expected_of(world: World, prompt: list[int], completion: Completion, *, kept: bool) -> list[float]:
    chosen = torch.tensor(completion.token_ids)[:, None]
    return policy_of(world, prompt, completion, kept=kept).gather(1, chosen)[:, 0].tolist()


def assert_exact(world: World, prompt: list[int], completion: Completion, *, kept: bool = False) -> None:
    assert len(completion.token_ids) == len(completion.logprobs) == len(completion.versions) > 0
    assert completion.logprobs == pytest.approx(expected_of(world, prompt, completion, kept=kept), abs=1e-4)
    assert list(completion.versions) == sorted(completion.versions)


def prompts(count: int, length: int, seed: int) -> dict[str, list[int]]:
    generator = torch.Generator().manual_seed(seed)
    return {f"{length}-{i}": torch.randint(6, 96, (length,), generator=generator).tolist() for i in range(count)}


def over_an_update(engine: Engine, asked: dict[str, list[int]], manifest: Manifest, steps: int) -> dict[str, Any]:
    """Start all requests, load `manifest` after some steps, and return all completions."""
    for name, prompt in asked.items():
        engine.add(name, prompt)
    finished = {}
    for _ in range(steps):
        finished.update(engine.step())
    engine.load(manifest)
    while engine.busy:
        finished.update(engine.step())
    assert finished.keys() == asked.keys()
    return finished


def split(finished: dict[str, Completion]) -> list[Completion]:
    return [completion for completion in finished.values() if len(set(completion.versions)) > 1]


# ---------------------------------------------------------------- asynchronous scheduling


def test_a_step_in_flight_at_an_update_keeps_its_version(world: World, ahead: Engine) -> None:
    """After n calls of `step` n - 1 tokens are out and one is in flight, of the old version: vLLM would label it with
    the new one."""
    ahead.load(world.publish(world.a, 10))
    asked = prompts(8, SHORT, seed=1) | prompts(6, LONG, seed=1)
    finished = over_an_update(ahead, asked, world.publish(world.b, 11), steps=6)
    for name, completion in finished.items():
        assert_exact(world, asked[name], completion)
    assert split(finished)
    assert {completion.versions.count(10) for completion in split(finished)} == {6}


def test_without_the_drain_a_token_would_have_the_wrong_version(
    world: World, ahead: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What shows that the test above can fail: the token in flight is dropped or mislabelled."""
    ahead.load(world.publish(world.a, 20))
    monkeypatch.setattr(ahead, "_finish_step_in_flight", lambda: None)
    monkeypatch.setattr(ahead._llm, "reset_prefix_cache", lambda **_: True)
    asked = prompts(8, SHORT, seed=2)
    finished = over_an_update(ahead, asked, world.publish(world.b, 21), steps=6)
    monkeypatch.undo()
    assert {completion.versions.count(20) for completion in split(finished)} == {5}
    ahead.load(world.publish(world.a, 22))


def test_what_ends_in_the_drained_step_is_returned_by_the_next_one(world: World, ahead: Engine) -> None:
    ahead.load(world.publish(world.a, 30))
    asked = prompts(6, SHORT, seed=3)
    finished = over_an_update(ahead, asked, world.publish(world.b, 31), steps=NEW_TOKENS)
    whole = [completion for completion in finished.values() if len(completion.token_ids) == NEW_TOKENS]
    assert whole
    assert {completion.versions for completion in whole} == {(30,) * NEW_TOKENS}
    for name, completion in finished.items():
        assert_exact(world, asked[name], completion)


def test_an_idle_engine_with_a_step_in_flight_takes_weights_and_goes_on(world: World, ahead: Engine) -> None:
    """The last step of all requests is scheduled before the end of one before it is known."""
    ahead.load(world.publish(world.a, 40))
    for version in (41, 42):
        asked = prompts(3, SHORT, seed=version)
        for name, prompt in asked.items():
            ahead.add(name, prompt)
        finished = {}
        while ahead.busy:
            finished.update(ahead.step())
        for name, completion in finished.items():
            assert_exact(world, asked[name], completion)
            assert set(completion.versions) == {version - 1}
        ahead.load(world.publish(world.b if version == 41 else world.a, version))


def test_requests_dropped_while_their_step_is_in_flight_never_come_back(world: World, ahead: Engine) -> None:
    asked = prompts(4, SHORT, seed=5)
    for name, prompt in asked.items():
        ahead.add(name, prompt)
    finished = dict(ahead.step())
    ahead.abort(list(asked)[:2])
    while ahead.busy:
        finished.update(ahead.step())
    assert finished.keys() == set(list(asked)[2:])
    for name, completion in finished.items():
        assert_exact(world, asked[name], completion)


# ---------------------------------------------------------------- keys and values that stay


def test_kept_requests_go_on_with_the_keys_and_values_of_the_weights_that_read_them(
    world: World, keeping: Engine
) -> None:
    keeping.load(world.publish(world.a, 110))
    asked = prompts(8, SHORT, seed=11) | prompts(6, LONG, seed=11)
    finished = over_an_update(keeping, asked, world.publish(world.b, 111), steps=6)
    for name, completion in finished.items():
        assert_exact(world, asked[name], completion, kept=True)
    assert {completion.versions.count(110) for completion in split(finished)} == {6}
    (name, completion), *_ = ((n, c) for n, c in finished.items() if len(set(c.versions)) > 1)
    fresh = expected_of(world, asked[name], completion, kept=False)
    assert max(abs(x - y) for x, y in zip(completion.logprobs, fresh, strict=True)) > 0.1, "the two can be told apart"


def test_a_request_kept_over_two_updates_has_three_readers(world: World, keeping: Engine) -> None:
    keeping.load(world.publish(world.a, 120))
    asked = prompts(8, SHORT, seed=12)
    for name, prompt in asked.items():
        keeping.add(name, prompt)
    finished = {}
    for version, model in ((121, world.b), (122, world.a)):
        for _ in range(5):
            finished.update(keeping.step())
        keeping.load(world.publish(model, version))
    while keeping.busy:
        finished.update(keeping.step())
    assert any(len(set(completion.versions)) == 3 for completion in finished.values())
    for name, completion in finished.items():
        assert_exact(world, asked[name], completion, kept=True)


def test_a_new_request_never_reads_what_older_weights_cached(world: World, keeping: Engine) -> None:
    """While others run on, nothing of the cache can be dropped; prompts of different versions share no block."""
    keeping.load(world.publish(world.a, 130))
    cached = prompts(3, LONG, seed=13)
    before = over_an_update(keeping, cached, world.publish(world.a, 131), steps=3)
    assert before.keys() == cached.keys()
    for name, prompt in (cached | prompts(2, SHORT, seed=14)).items():
        keeping.add(f"old-{name}", prompt)
    finished = {}
    for _ in range(3):
        finished.update(keeping.step())
    assert keeping._running, "something runs over the update"
    keeping.load(world.publish(world.b, 132))
    for name, prompt in cached.items():
        keeping.add(f"new-{name}", prompt)
    while keeping.busy:
        finished.update(keeping.step())
    for name, prompt in cached.items():
        assert set(finished[f"new-{name}"].versions) == {132}
        assert_exact(world, prompt, finished[f"new-{name}"])


def test_without_the_salt_a_new_request_would_read_it(
    world: World, keeping: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What shows that the test above can fail."""
    keeping.load(world.publish(world.a, 140))
    checked = keeping._requests.checked

    def without_salt(*arguments: Any, **named: Any) -> Any:
        prompt, params = checked(*arguments, **named)
        prompt.pop("cache_salt")
        return prompt, params

    monkeypatch.setattr(keeping._requests, "checked", without_salt)
    (prompt,) = prompts(1, LONG, seed=15).values()
    keeping.add("old", prompt)
    keeping.step()
    keeping.load(world.publish(world.b, 141))
    keeping.add("new", prompt)
    finished = {}
    while keeping.busy:
        finished.update(keeping.step())
    expected = expected_of(world, prompt, finished["new"], kept=False)
    assert max(abs(x - y) for x, y in zip(finished["new"].logprobs, expected, strict=True)) > 0.1


def test_an_engine_keeps_and_schedules_ahead_at_once(world: World, scheduling_ahead: None) -> None:
    engine = world.engine(on_update="keep", async_scheduling=True)
    asked = prompts(6, SHORT, seed=16) | prompts(3, LONG, seed=16)
    finished = over_an_update(engine, asked, world.publish(world.b, 1), steps=6)
    for name, completion in finished.items():
        assert_exact(world, asked[name], completion, kept=True)
    assert {completion.versions.count(0) for completion in split(finished)} == {6}


@pytest.mark.parametrize("settings", [{"async_scheduling": True}, {"on_update": "keep"}], ids=["ahead", "kept"])
def test_a_mixture_is_sampled_by_its_formula_over_an_update(
    world: World, scheduling_ahead: None, settings: dict[str, Any]
) -> None:
    """Long prompts that policy and mixture share: their blocks must not, as the policy's lack the reference's keys."""
    beta, kept = 0.5, "on_update" in settings
    engine = world.engine(opponent=OpponentConfig(kind="mixture", beta=beta), **settings)
    asked = {f"{kind}-{n}": p for n, p in (prompts(3, SHORT, 6) | prompts(2, LONG, 6)).items() for kind in "pm"}
    finished: dict[str, Completion] = {}
    for name, prompt in asked.items():
        engine.add(name, prompt, opponent=name.startswith("m"))
    for _ in range(5):
        finished.update(engine.step())
    engine.load(world.publish(world.b, 1))
    for name in [name for name in asked if str(LONG) in name]:
        asked[f"{name}-new"] = asked[name]
        engine.add(f"{name}-new", asked[name], opponent=name.startswith("m"))
    while engine.busy:
        finished.update(engine.step())
    assert finished.keys() == asked.keys()
    assert split(finished)
    for name, completion in finished.items():
        prompt, weight = asked[name], beta if completion.opponent else 0.0
        reference = read([(world.a, prompt + list(completion.token_ids))])[len(prompt) - 1 : -1]
        policy = policy_of(world, prompt, completion, kept=kept)
        mixed = ((1 - weight) * policy + weight * reference).log_softmax(-1)
        expected = mixed.gather(1, torch.tensor(completion.token_ids)[:, None])[:, 0].tolist()
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)
        assert not name.endswith("new") or set(completion.versions) == {1}


@pytest.mark.parametrize("kept", [False, True], ids=["ahead", "ahead and kept"])
def test_adapters_take_over_requests_as_all_weights_do(tmp_path: Path, scheduling_ahead: None, kept: bool) -> None:
    adapters: Any = AdapterWorld(tmp_path)
    adapters.versions = {0: adapters.base, 1: adapters.b}
    engine = adapters.engine(async_scheduling=True, on_update="keep" if kept else "recompute")
    asked = prompts(6, SHORT, seed=17) | prompts(3, LONG, seed=17)
    finished = over_an_update(engine, asked, adapters.publish(adapters.b, 1), steps=6)
    for name, completion in finished.items():
        assert_exact(adapters, asked[name], completion, kept=kept)
    assert {completion.versions.count(0) for completion in split(finished)} == {6}
    adapters.publisher.close()
