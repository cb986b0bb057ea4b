"""Ray on the outside, plain classes inside: starts the actors of a run and adapts them to the loop's ports.

The only module that knows where things run. `System.close` ends everything that `System.start` began.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import ActorDiedError, ActorUnavailableError, RayActorError, RayError, RayTaskError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.errors import RunError, UsageError, WeightMismatchError
from actors.records import Failure, GeneratorStatus, Group, Lease, Manifest, Pair
from launch.config import ClusterConfig, RunConfig
from launch.ports import GeneratorDeadError, GeneratorUnavailableError, Publication

PLACEMENT_SECONDS = 120.0
JUDGE_ATTEMPTS = 3
"""Deaths of the judge over one batch before its groups are returned."""
ANSWER_SECONDS = 2.0
"""Longest wait for a number that is only reported."""
CLOSE_SECONDS = 10.0
PUBLISHING = "publishing"
"""Concurrency group of the learner's actors."""
SENT_BY_LEARNER = ("nccl", "ipc")


async def _answer(reference: Awaitable[Any]) -> Any:
    """The call's result; an exception of the actor's own code comes back as itself, not wrapped in Ray's."""
    try:
        return await reference
    except RayTaskError as error:
        raise _origin(error) from None


def _origin(error: Exception) -> Exception:
    """What an actor raised, where Ray has wrapped it: once for each actor that it came through."""
    while isinstance(error, RayTaskError) and isinstance(error.cause, Exception):
        error = error.cause
    return error


@dataclass(frozen=True)
class Delivery:
    """A publication that learner rank 0 sends to each generator itself (`nccl`, `ipc`). Not run on a GPU so far."""

    sender: Any
    """Rank 0's actor."""
    workers: int
    """Tensor parallel size of a generator."""


class RayGenerator:
    """A generator actor as the pool sees it."""

    def __init__(self, name: str, actor: Any) -> None:
        self.name = name
        self._actor = actor
        self._incarnation = 0
        self._killed = False
        self._unreachable = False
        self._collect_seconds = 0.0

    async def ready(self) -> None:
        # A restarting actor answers "unavailable" until it is back: that is what is being waited for.
        while True:
            try:
                await self._call("status")
                break
            except GeneratorUnavailableError:
                self._incarnation += 1
                await asyncio.sleep(0.5)
        if self._unreachable:
            # If only the connection broke, a collect call that nobody waits for may be there still, and would take
            # what is finished next with it.
            await asyncio.sleep(self._collect_seconds)
        self._killed = self._unreachable = False

    async def submit(self, leases: Sequence[Lease]) -> None:
        await self._call("submit", list(leases))

    async def collect(self, timeout_seconds: float) -> list[Group | Failure]:
        self._collect_seconds = timeout_seconds
        return await self._call("collect", timeout_seconds)

    async def take_weights(self, manifest: Manifest, chunks: Any) -> int:
        if isinstance(chunks, Delivery):
            from actors.remote import GeneratorHandle

            deliver = chunks.sender.deliver.options(concurrency_group=PUBLISHING)
            arguments = (self.name, self._incarnation, GeneratorHandle(self._actor), manifest.version, chunks.workers)
            return await self._delivered(deliver.remote(*arguments))
        # Chunks are object references: passed as arguments of their own, Ray delivers what they hold.
        return await self._call("take_published", manifest, *(chunks or ()))

    async def status(self) -> GeneratorStatus:
        return await self._call("status")

    async def _call(self, method: str, *arguments: Any) -> Any:
        try:
            return await getattr(self._actor, method).remote(*arguments)
        except RayError as error:
            raise self._translated(_origin(error)) from None

    async def _delivered(self, reference: Awaitable[Any]) -> int:
        try:
            return await reference
        except RayTaskError as error:
            raise self._translated(_origin(error)) from None
        except RayActorError as error:
            raise _learner_died(error) from None

    def _translated(self, error: Exception) -> Exception:
        if isinstance(error, RunError) and not isinstance(error, WeightMismatchError):
            # The process lives and its engine does not: Ray starts a new one, while restarts are left. Once: every call
            # in progress ends with this error, and a second kill would meet the new process.
            if not self._killed:
                self._killed = True
                ray.kill(self._actor, no_restart=False)
            return GeneratorUnavailableError(f"{self.name}: {error}")
        if isinstance(error, ActorDiedError):
            return GeneratorDeadError(f"{self.name}: {_reason(error)}")
        if isinstance(error, RayActorError):
            self._unreachable = True
            return GeneratorUnavailableError(self.name)
        return error


class RayJudge:
    """The judge actor."""

    def __init__(self, actor: Any) -> None:
        self._actor = actor
        self._seconds = 0.0

    async def judge(self, groups: Sequence[Group]) -> list[Group | Failure]:
        try:
            for _ in range(JUDGE_ATTEMPTS):
                try:
                    return await _answer(self._actor.judge.remote(list(groups)))
                except ActorUnavailableError:
                    await self._back()
        except ActorDiedError as error:
            raise RunError(f"the judge died for good: {_reason(error)}; go on with --resume") from None
        return [Failure(group.lease.index, group.lease.attempt, "judge unavailable") for group in groups]

    async def seconds(self) -> float:
        """As it says itself; what it said last when it does not answer."""
        with contextlib.suppress(RayActorError, TimeoutError):
            async with asyncio.timeout(ANSWER_SECONDS):
                self._seconds = await _answer(self._actor.seconds.remote())
        return self._seconds

    async def _back(self) -> None:
        """Returns once the judge answers again: loading a model may take minutes, and no group is to blame for it."""
        while True:
            try:
                await _answer(self._actor.seconds.remote())
                return
            except ActorUnavailableError:
                await asyncio.sleep(0.5)


class RayLearner:
    """All learner ranks as one: every call enters every rank, as collectives require; rank 0 answers."""

    def __init__(self, ranks: Sequence[Any], transport: str, generator_workers: int = 1) -> None:
        self._ranks = ranks
        self._transport = transport
        self._generator_workers = generator_workers

    async def update(self, pairs: Sequence[Pair]) -> Any:
        return await self._all("update", ray.put(list(pairs)))

    async def export(self, version: int) -> Publication:
        manifest = await self._all("export", version)
        chunks: Any = None
        if self._transport in SENT_BY_LEARNER:
            chunks = Delivery(self._ranks[0], self._generator_workers)
        if self._transport == "object_store":
            count = await self._first("chunk_count")
            # Return values outlive the learner; what an actor puts itself dies with it.
            chunks = [self._ranks[0].chunk.remote(index) for index in range(count)]
            await self._gather(chunks)
        return Publication(manifest, chunks)

    async def retire(self, version: int) -> None:
        await self._first("retire", version)

    async def score(self, sequences: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Any]:
        return await self._all("score", ray.put([(tuple(p), tuple(r)) for p, r in sequences]))

    async def save(self, stage: Path) -> None:
        await self._all("save", str(stage))

    async def load(self, checkpoint: Path) -> Any:
        return await self._all("load", str(checkpoint))

    async def save_pretrained(self, directory: Path) -> None:
        await self._all("save_pretrained", str(directory))

    async def ready(self) -> None:
        await self._all("ready")

    async def close(self) -> None:
        """Asks for a tidy end; what does not answer is ended with Ray."""
        with contextlib.suppress(RunError, TimeoutError):
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._all("close")

    async def _all(self, method: str, *arguments: Any) -> Any:
        return (await self._gather([getattr(rank, method).remote(*arguments) for rank in self._ranks]))[0]

    async def _first(self, method: str, *arguments: Any) -> Any:
        return (await self._gather([getattr(self._ranks[0], method).remote(*arguments)]))[0]

    async def _gather(self, references: Sequence[Awaitable[Any]]) -> list[Any]:
        try:
            return list(await asyncio.gather(*[_answer(reference) for reference in references]))
        except RayActorError as error:
            raise _learner_died(error) from None


def _learner_died(error: Exception) -> RunError:
    return RunError(f"a learner process died: {_reason(error)}; go on from the last checkpoint with --resume")


def _reason(error: Exception) -> str:
    """One line of what Ray reports; of a constructor that failed, the exception itself, which is the last line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return lines[-1].split(": ", 1)[-1]
    return lines[0]


@contextlib.contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Joins or starts Ray, and leaves it as it was.

    Raises:
        RunError: the address does not answer.
    """
    address = address_to_join(cluster)
    # Ray watches memory by cgroup and kills workers near the limit; its own report on usage is not wanted.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _init(cluster, address)
        yield
    finally:
        ray.shutdown()


def address_to_join(cluster: ClusterConfig) -> str | None:
    """The running Ray to join; None to start one."""
    if cluster.address == "auto":
        return os.environ.get("RAY_ADDRESS")
    return None if cluster.address == "local" else cluster.address


def _init(cluster: ClusterConfig, address: str | None) -> None:
    try:
        if address is not None:
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
            return
        ray.init(
            address="local",
            num_cpus=cluster.num_cpus,
            object_store_memory=cluster.object_store_mib << 20,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        done = "started" if address is None else f"joined at {address}"
        raise RunError(
            f"Ray could not be {done}: {_reason(error)}; check that the cluster runs and the address is right, or set "
            "cluster.address=local"
        ) from None


def check_resources(config: RunConfig) -> None:
    """Raises `UsageError` when Ray cannot place the run's actors, which would otherwise wait for ever."""
    have = ray.cluster_resources()
    needed = {
        "CPU": config.generators.count * config.generators.cpus + config.learner.ranks * config.learner.cpus_per_rank,
        "GPU": config.generators.count * generator_gpus(config)
        + config.learner.ranks * config.learner.gpus_per_rank
        + getattr(config.judging.judge, "gpus", 0.0),
    }
    for resource, amount in needed.items():
        if amount > have.get(resource, 0.0):
            raise UsageError(
                f"the run needs {amount:g} {resource}s ({config.generators.count} generators, "
                f"{config.learner.ranks} learner ranks, the judge) and Ray has {have.get(resource, 0.0):g}; lower "
                "generators.count, learner.ranks or their "
                "shares, or give Ray more (cluster.num_cpus oversubscribes CPUs)"
            )
    if (
        config.publication.transport == "shm"
        and len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) > 1
    ):
        raise UsageError(
            "publication.transport shm reaches one host only and this Ray cluster has several; set it to nccl (GPUs) "
            "or object_store"
        )


def generator_gpus(config: RunConfig) -> float:
    """GPUs that each generator reserves: its tensor parallel size where the run uses GPUs at all."""
    return float(config.generators.tensor_parallel_size) if config.learner.gpus_per_rank > 0 else 0.0


def start_generators(config: RunConfig, model_dir: str) -> list[RayGenerator]:
    """Starts all generator actors; their engines load in the background."""
    from actors.engine import engine_environment
    from actors.remote import start_generator

    environment = {**engine_environment(config.generators, cuda=generator_gpus(config) > 0), **_import_path()}
    return [
        RayGenerator(
            name,
            start_generator(
                name,
                model_dir=model_dir,
                tokenizer=config.model.tokenizer,
                generators=config.generators,
                sampling=config.sampling,
                seed=config.seed + index,
                transport=config.publication.transport,
                gpus=generator_gpus(config),
                environment=environment,
            ),
        )
        for index, name in enumerate(f"generator-{number}" for number in range(config.generators.count))
    ]


def start_judge(config: RunConfig) -> RayJudge:
    """Starts the judge actor."""
    from actors import remote

    tokenizer = config.model.tokenizer or (None if config.model.path == "world" else config.model.path)
    return RayJudge(
        remote.start_judge(
            config.judging,
            task=config.world.task,
            seed=config.world.seed,
            tokenizer=tokenizer,
            environment=_import_path(),
        )
    )


def start_learner(config: RunConfig, model_dir: str, shared_memory: Path, failed_batches: Path) -> RayLearner:
    """Starts all learner ranks, packed together, with rank 0's host as their meeting point."""
    from learner.worker import LearnerWorker

    learner = config.learner
    bundle = {"CPU": learner.cpus_per_rank, **({"GPU": learner.gpus_per_rank} if learner.gpus_per_rank else {})}
    group = placement_group([bundle] * learner.ranks, strategy="PACK")
    if not group.wait(PLACEMENT_SECONDS):
        raise RunError(
            f"Ray could not place {learner.ranks} learner ranks of {bundle} within {PLACEMENT_SECONDS:g} s; free those "
            "resources or lower learner.ranks"
        )
    first = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    master_addr, master_port = ray.get(
        ray.remote(_meeting_point).options(num_cpus=0, scheduling_strategy=first).remote(learner.port)
    )
    # Weights are sent beside the next update, not after it.
    groups: dict[str, Any] = (
        {"concurrency_groups": {PUBLISHING: 1}} if config.publication.transport in SENT_BY_LEARNER else {}
    )
    actor = ray.remote(LearnerWorker)
    ranks = [
        actor.options(
            **groups,
            num_cpus=learner.cpus_per_rank,
            num_gpus=learner.gpus_per_rank,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            runtime_env={"env_vars": _import_path()},
        ).remote(
            learner=learner,
            publication=config.publication,
            rank=rank,
            world_size=learner.ranks,
            master_addr=master_addr,
            master_port=master_port,
            model_dir=model_dir,
            reference_dir=model_dir,
            total_updates=config.updates,
            temperature=config.sampling.temperature,
            publish_dir=str(shared_memory),
            failed_batches_dir=str(failed_batches),
            tokenizer_dir=config.model.tokenizer,
        )
        for rank in range(learner.ranks)
    ]
    return RayLearner(ranks, config.publication.transport, config.generators.tensor_parallel_size)


def run_on_all_cores(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """Runs `function` in a Ray worker that has every core of the largest node to itself; returns its result."""
    cores = int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
    task = ray.remote(function).options(num_cpus=cores, max_retries=0, runtime_env={"env_vars": _import_path()})
    try:
        return ray.get(task.remote(*arguments, threads=cores, **keywords))
    except RayTaskError as error:
        raise getattr(error, "cause", error) from None


def _meeting_point(port: int | None) -> tuple[str, int]:
    """This node's address and a port for the learner's ranks to meet at."""
    address = ray.util.get_node_ip_address()
    with socket.socket() as probe:
        try:
            probe.bind((address, port or 0))
        except OSError as error:
            raise UsageError(
                f"learner.port {port} cannot be used on {address}: {error.strerror}; choose a free port, or leave "
                "learner.port unset to have one chosen"
            ) from None
        return address, probe.getsockname()[1]


def _import_path() -> dict[str, str]:
    """Workers import what the driver can import: the directory it was started in, for judge functions."""
    paths = [os.getcwd(), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
