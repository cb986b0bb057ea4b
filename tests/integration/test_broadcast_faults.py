"""Four generators in processes of their own take versions by `gloo`, while they are killed, refuse and join late.

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

from actors.generation.config import GeneratorConfig, GeneratorSpec, SamplingConfig
from actors.generation.engine import engine_environment
from actors.records import Canary, Group, Manifest, Prompt, Seat
from actors.remote import RemoteGenerator
from launch.cluster.carriers import CONCURRENCY_GROUPS
from launch.cluster.ray_actors import RayGenerator, RayLearner
from launch.cluster.wiring import ray_session
from launch.run.protocols import Publication
from launch.settings.run import ClusterConfig
from learner.publication.config import PublicationConfig
from tests.fakes.models import tiny_llama
from tests.integration.runs import ROOT
from tests.integration.test_publication_faults import CANARY, _log_probs, _pool, _until
from tests.processes import Marked

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.vllm]

SETTINGS = GeneratorConfig(dtype="float32", max_model_len=64, max_running_prompts=8, kv_cache_mib=32, cpus=1.0)
SAMPLING = SamplingConfig(completions_per_prompt=2, max_new_tokens=8)
TAKE_SECONDS = 30.0
VERSIONS = 4


class Learner:
    """Rank 0 as far as publication goes; an update takes a tenth of a second."""

    def __init__(self, models: dict[int, str], directory: str) -> None:
        import torch
        from transformers import AutoModelForCausalLM

        from learner.publication.publisher import Publisher

        torch.set_num_threads(1)
        self._models = {version: AutoModelForCausalLM.from_pretrained(path).eval() for version, path in models.items()}
        self._publisher: Any = Publisher(PublicationConfig(transport="gloo"), directory)
        self.updates, self.longest, self._last = 0, 0.0, time.monotonic()

    def export(self, version: int) -> Manifest:
        model = self._models[version]
        tensors = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        canary = Canary(CANARY, tuple(_log_probs(model, CANARY)))
        return self._publisher.publish(version, tensors, canary)

    def update(self) -> None:
        """Note the longest time between the ends of two updates: the learner waits in between."""
        time.sleep(0.1)
        now = time.monotonic()
        self.longest = max(self.longest, now - self._last) if self.updates else 0.0
        self.updates, self._last = self.updates + 1, now

    def figures(self) -> tuple[int, float]:
        return self.updates, self.longest

    def retire(self, version: int) -> None:
        self._publisher.retire(version)

    def open_group(self, size: int, seconds: float) -> Seat:
        return self._publisher.sender.open_group(size, seconds)

    def send(self, manifest: Manifest, seat: Seat) -> None:
        self._publisher.sender.send(manifest, seat)

    def give_up(self, seat: Seat, reason: str) -> None:
        self._publisher.sender.give_up(seat, reason)


class Faulty(RemoteGenerator):
    """A generator whose first process meets `fault`, unless it is None, at version 2."""

    def __init__(self, spec: GeneratorSpec, fault: str | None, marker: str) -> None:
        from actors.generation import receivers, transfer_group

        super().__init__(spec)
        fetch = receivers.BroadcastReceiver.fetch
        wait_first = transfer_group.TransferGroup._wait_first

        def fetch_with_fault(receiver: Any, manifest: Manifest, payload: Any) -> Any:
            if manifest.version != 2 or fault is None or Path(marker).exists():
                return fetch(receiver, manifest, payload)
            if fault == "killed":
                Path(marker).touch()

                def die(group: Any) -> None:
                    wait_first(group)
                    os.kill(os.getpid(), signal.SIGKILL)

                transfer_group.TransferGroup._wait_first = die  # type: ignore[method-assign]
                return fetch(receiver, manifest, payload)
            tensors = dict(fetch(receiver, manifest, payload))
            Path(marker).touch()  # after it: the first transfer of this version is interrupted
            tensors["model.norm.weight"][0] += 1.0
            from actors.generation.weights import check_against

            check_against(manifest, tensors)
            return tensors

        receivers.BroadcastReceiver.fetch = fetch_with_fault  # type: ignore[method-assign]


@pytest.fixture
def cluster(own: Marked) -> Iterator[None]:
    with ray_session(ClusterConfig(address="local", num_cpus=6, object_store_mib=80)):
        yield


def _start(name: str, model_dir: str, fault: str | None, marker: Path) -> RayGenerator:
    actor = ray.remote(Faulty).options(
        num_cpus=1,
        max_restarts=2,
        max_concurrency=8,
        runtime_env={"env_vars": {**engine_environment(SETTINGS, cuda=False), "PYTHONPATH": str(ROOT)}},
    )
    spec = GeneratorSpec(
        name=name,
        model_dir=model_dir,
        reference_dir=model_dir,
        generators=SETTINGS,
        sampling=SAMPLING,
    )
    return RayGenerator(name, actor.remote(spec, fault, str(marker)))


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_kill_a_refusal_and_a_late_joiner_cost_the_others_and_the_learner_nothing(
    cluster: None, tmp_path: Path
) -> None:
    """One generator is killed in the middle of version 2, one finds wrong bits in it, one joins after it was sent."""
    models = {version: tiny_llama(tmp_path / str(version), seed=version + 1) for version in range(1 + VERSIONS)}
    directories = {version: str(tmp_path / str(version)) for version in models}
    messages: list[str] = []

    async def test() -> tuple[dict[str, list[int]], tuple[int, float], list[Any]]:
        environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        as_actor = ray.remote(concurrency_groups=CONCURRENCY_GROUPS)(Learner)
        rank = as_actor.options(num_cpus=1, runtime_env={"env_vars": environment}).remote(directories, str(tmp_path))
        learner = RayLearner([rank], "gloo", take_seconds=TAKE_SECONDS)
        faults = {"well": None, "killed": "killed", "refuses": "refuses"}
        generators = {name: _start(name, directories[0], fault, tmp_path / name) for name, fault in faults.items()}
        late = _start("late", directories[0], None, tmp_path / "late")
        taken: dict[str, list[int]] = {name: [] for name in (*generators, "late")}
        allowed = asyncio.Event()
        _hold(late, allowed)
        for generator in (*generators.values(), late):
            _note(generator, taken)
        pool, _ = _pool(messages, *generators.values(), late, take_seconds=TAKE_SECONDS)
        members = {member.port.name: member for member in pool._members}
        serving = asyncio.create_task(pool.run())

        async def updates() -> None:
            while True:
                await rank.update.remote()

        async def publish(version: int) -> None:
            publication: Publication = await learner.export(version)
            pool.offer(publication)

        await asyncio.gather(*(generator.ready() for generator in generators.values()))
        updating = asyncio.create_task(updates())
        for version in range(1 + VERSIONS):
            await publish(version)
            if version < 2:
                await _until(lambda version=version: all(members[name].version == version for name in generators))
            if version == 2:
                await _until(lambda: members["well"].version == 2)
                allowed.set()
                await _until(lambda: all(member.version == 2 for member in members.values()))
            if version > 2:
                await _until(lambda version=version: all(each.version == version for each in members.values()))
        answers = await pool.sample([Prompt(f"p:{i}", (2, 3 + i), "") for i in range(8)], min_version=VERSIONS)
        figures = await rank.figures.remote()
        updating.cancel()
        assert not serving.done()
        serving.cancel()
        await asyncio.wait({serving, updating})
        return taken, figures, answers

    taken, (updates, longest), answers = asyncio.run(asyncio.wait_for(test(), timeout=400))
    assert taken == {
        "well": [0, 1, 2, 3, 4],
        "killed": [0, 1, 2, 3, 4],
        "refuses": [0, 1, 2, 3, 4],
        "late": [2, 3, 4],
    }
    assert updates > 10
    assert longest < 0.8 * TAKE_SECONDS, "one transfer may take that long; the learner does not even wait for one"
    text = "\n".join(messages)
    assert "killed died and is being restarted" in text
    assert (
        "refuses refused policy version 2 and is restarted: version 2: tensor 'model.norm.weight' arrived with" in text
    )
    repeated = [message for message in messages if message.startswith("the transfer of policy version 2 is repeated")]
    assert repeated, text
    for answer in answers:
        assert isinstance(answer, Group)
        for completion in answer.completions:
            assert set(completion.versions) == {VERSIONS}
            tokens = answer.lease.prompt.token_ids + completion.token_ids
            expected = _log_probs(models[VERSIONS], tokens)[len(answer.lease.prompt.token_ids) - 1 :]
            assert completion.logprobs == pytest.approx(expected, abs=1e-4)


def _hold(generator: RayGenerator, allowed: asyncio.Event) -> None:
    """The pool does not see the generator as started before `allowed`."""
    ready: Callable[[], Any] = generator.ready

    async def held() -> None:
        await allowed.wait()
        await ready()

    generator.ready = held  # type: ignore[method-assign]


def _note(generator: RayGenerator, taken: dict[str, list[int]]) -> None:
    take: Callable[[Manifest, Any], Any] = generator.take_weights

    async def noted(manifest: Manifest, chunks: Any) -> int:
        version = await take(manifest, chunks)
        taken[generator.name].append(version)
        return version

    generator.take_weights = noted  # type: ignore[method-assign]
