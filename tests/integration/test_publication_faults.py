"""Faults of a publication in processes of their own: Ray's actors, the pool that serves them, real files.

The actors' classes are here because Ray's workers import them by name.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import ray
import torch

from actors.generation.config import GeneratorConfig, GeneratorSpec, SamplingConfig
from actors.generation.engine import engine_environment
from actors.records import Canary, Group, Manifest, Prompt
from actors.remote import RemoteGenerator
from actors.replay_buffer.buffer import ReplayBuffer
from actors.replay_buffer.config import ReplayConfig
from launch.cluster.ray_actors import RayGenerator
from launch.cluster.wiring import ray_session
from launch.run.pools.generator_pool import GeneratorPool
from launch.run.protocols import PoolEvents, PoolLimits, Publication
from launch.settings.run import ClusterConfig
from learner.publication.config import PublicationConfig
from learner.publication.publisher import Publisher
from tests.fakes.canaries import canary_tokens
from tests.fakes.generators import FakeEngine, FakePrompts
from tests.fakes.models import tiny_llama
from tests.integration.runs import ROOT
from tests.processes import Marked

pytestmark = [pytest.mark.slow, pytest.mark.ray]

SETTINGS = GeneratorConfig(dtype="float32", max_model_len=64, max_running_prompts=8, kv_cache_mib=32, cpus=1.0)
SAMPLING = SamplingConfig(completions_per_prompt=2, max_new_tokens=8)
CANARY = canary_tokens(96, 16)


class DyingHalfway(RemoteGenerator):
    """Its first process is killed when it has loaded half of the tensors of its second publication."""

    def __init__(self, spec: GeneratorSpec, marker: str) -> None:
        from actors.generation.weight_receiver import WeightReceiver

        super().__init__(spec)
        load, self._loads = WeightReceiver.load_publication, 0

        def load_or_die(receiver: WeightReceiver, changed: float) -> str | None:
            self._loads += 1
            if self._loads == 2 and not Path(marker).exists():
                assert receiver.staged_publication is not None
                receiver.staged_publication = Half(receiver.staged_publication, Path(marker))
            return load(receiver, changed)

        WeightReceiver.load_publication = load_or_die  # type: ignore[method-assign]


class Half(dict[str, Any]):
    """Tensors of which only every other half can be had: then the process that reads them is killed."""

    def __init__(self, tensors: dict[str, Any], marker: Path) -> None:
        super().__init__(tensors)
        self._marker = marker

    def items(self) -> Iterator[tuple[str, Any]]:  # type: ignore[override]
        half = len(self) // 2
        yield from list(super().items())[:half]
        self._marker.write_text(f"{half} of {len(self)}")
        os.kill(os.getpid(), signal.SIGKILL)


class HangingOnce(RemoteGenerator):
    """Without a model. With `marker`, its first process never returns from loading version 1."""

    def __init__(self, spec: GeneratorSpec, marker: str | None) -> None:
        super().__init__(spec, make_engine=lambda spec: HangingEngine(marker))


class HangingEngine(FakeEngine):
    def __init__(self, marker: str | None) -> None:
        super().__init__()
        self._marker = None if marker is None else Path(marker)

    def load(self, manifest: Manifest, payload: Any = None) -> None:
        if self._marker is not None and manifest.version == 1 and not self._marker.exists():
            self._marker.touch()
            time.sleep(600)
        super().load(manifest, payload)


@pytest.fixture
def cluster(own: Marked) -> Iterator[None]:
    with ray_session(ClusterConfig(address="local", num_cpus=2, object_store_mib=80)):
        yield


def _start(kind: type, name: str, model_dir: Path, *, marker: str | None) -> RayGenerator:
    actor = ray.remote(kind).options(
        num_cpus=1,
        max_restarts=1,
        max_concurrency=8,
        runtime_env={"env_vars": {**engine_environment(SETTINGS, cuda=False), "PYTHONPATH": str(ROOT)}},
    )
    directory = str(model_dir)
    spec = GeneratorSpec(
        name=name, model_dir=directory, reference_dir=directory, generators=SETTINGS, sampling=SAMPLING
    )
    return RayGenerator(name, actor.remote(spec, marker))


def _pool(messages: list[str], *generators: RayGenerator, take_seconds: float) -> tuple[GeneratorPool, ReplayBuffer]:
    buffer = ReplayBuffer(ReplayConfig(prompts_per_update=1, max_staleness=0), FakePrompts(), total_updates=1)
    # The versions of these tests come from no update; the buffer is kept out of it.
    buffer.published = lambda version: None  # type: ignore[method-assign]
    pool = GeneratorPool(
        generators,
        buffer,
        PoolLimits(max_running=8, take_seconds=take_seconds, lease_seconds=600.0),
        PoolEvents(on_group=lambda group: None, on_retire=lambda version: None, on_message=messages.append),
    )
    return pool, buffer


async def _until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


def _log_probs(model: Any, token_ids: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([token_ids])).logits[0].double()
    chosen = torch.tensor(token_ids[1:])[:, None]
    return torch.log_softmax(logits, -1)[:-1].gather(1, chosen)[:, 0].tolist()


@pytest.mark.vllm
def test_a_receiver_killed_between_half_of_the_tensors_and_its_answer_comes_back_with_the_newest_weights_alone(
    cluster: None, tmp_path: Path
) -> None:
    """Version 2 is skipped: it is superseded while the new process starts."""
    models = {version: tiny_llama(tmp_path / str(version), seed=version + 1) for version in (0, 1, 2, 3)}
    publisher, marker, messages = Publisher(PublicationConfig(), tmp_path / "shm"), tmp_path / "died", list[str]()
    prompts = [Prompt(f"p:{i}", (2, 3 + i), "") for i in range(6)]

    def publication(version: int) -> Publication:
        model = models[version]
        canary = Canary(CANARY, tuple(_log_probs(model, CANARY)))
        return Publication(publisher.publish(version, dict(model.named_parameters()), canary))

    async def test() -> list[Any]:
        generator = _start(DyingHalfway, "g", tmp_path / "0", marker=str(marker))
        pool, _ = _pool(messages, generator, take_seconds=100.0)
        serving = asyncio.create_task(pool.run())
        pool.offer(publication(0))
        await pool.acknowledged(0)
        pool.offer(publication(1))
        await _until(lambda: messages)
        pool.offer(publication(2))
        pool.offer(publication(3))
        await pool.acknowledged(3)
        answers = await pool.sample(prompts, min_version=3)
        assert not serving.done()
        serving.cancel()
        await asyncio.wait({serving})
        return answers

    answers = asyncio.run(asyncio.wait_for(test(), timeout=150))
    publisher.close()
    half = len(list(models[1].parameters())) // 2
    assert marker.read_text().startswith(f"{half} of ")
    assert messages == ["g died and is being restarted"]
    for answer in answers:
        assert isinstance(answer, Group)
        for completion in answer.completions:
            assert set(completion.versions) == {3}
            tokens = answer.lease.prompt.token_ids + completion.token_ids
            expected = _log_probs(models[3], tokens)[len(answer.lease.prompt.token_ids) - 1 :]
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


@pytest.mark.long
def test_a_process_that_hangs_over_a_publication_is_replaced_while_the_other_generator_goes_on(
    cluster: None, tmp_path: Path
) -> None:
    marker, messages = tmp_path / "hung", list[str]()
    (tmp_path / "config.json").write_text("{}")  # what makes a directory a model's

    async def test() -> None:
        well = _start(HangingOnce, "well", tmp_path, marker=None)
        hung = _start(HangingOnce, "hung", tmp_path, marker=str(marker))
        pool, _ = _pool(messages, well, hung, take_seconds=1.0)
        serving = asyncio.create_task(pool.run())
        await asyncio.gather(well.ready(), hung.ready())
        pool.offer(Publication(Manifest(0, (), Canary((), ()), "shm")))
        await pool.acknowledged(0)
        pool.offer(Publication(Manifest(1, (), Canary((), ()), "shm")))
        await _until(lambda: messages)
        groups = await pool.sample([Prompt("p:0", (2, 3), "")], min_version=1)
        assert isinstance(groups[0], Group)
        await _until(lambda: len(messages) == 2)
        await hung.ready()
        await _until(lambda: all(member.version == 1 for member in pool._members))
        assert (await hung.status()).version == 1
        assert not serving.done()
        serving.cancel()
        await asyncio.wait({serving})

    asyncio.run(asyncio.wait_for(test(), timeout=60))
    assert marker.exists()
    assert messages[0].startswith("hung did not take policy version 1 within 1 s and is killed")
    assert messages[1:] == ["hung died and is being restarted"]
