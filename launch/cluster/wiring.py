"""Ray on the outside, plain classes inside: joins or starts Ray, and starts the actors of a run.

The only module that knows where things run. Everything it starts ends with `ray_session`.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.errors import RunError, UsageError
from actors.records import SENT_BY_LEARNER
from actors.settings import WORLD
from launch.cluster import security_warnings
from launch.cluster.placement import address_to_join, generator_gpus, resources_needed, resources_to_sample
from launch.cluster.ray_actors import PUBLISHING, RayGenerator, RayJudge, RayLearner, RayRanks, origin, reason
from launch.cluster.ray_job import auth_token
from launch.settings.run import ClusterConfig, RunConfig
from learner.config import TrainerConfig
from learner.stages.config import StageConfig

PLACEMENT_SECONDS = 120.0
CONNECT_SECONDS = 10.0


@contextlib.contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Joins or starts Ray, and leaves it as it was.

    Raises:
        RunError: the address does not answer.
    """
    address = address_to_join(cluster)
    if address is None:
        security_warnings.warn(security_warnings.started_ray(os.environ))
    else:
        security_warnings.warn(security_warnings.joined_ray(address, os.environ, auth_token(os.environ, Path.home())))
    # Ray watches memory by cgroup and kills workers near the limit; its own report on usage is not wanted.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        _init(cluster, address)
        yield
    finally:
        ray.shutdown()


def _init(cluster: ClusterConfig, address: str | None) -> None:
    try:
        if address is not None:
            _check_answers(address)
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
        security_warnings.keep_token_private(Path.home())
    except Exception as error:  # a start that takes too long is a bare one
        done = "started" if address is None else f"joined at {address}"
        raise RunError(
            f"Ray could not be {done}: {reason(error)}; check that the cluster runs and the address is right, or set "
            "cluster.address=local"
        ) from None


def _check_answers(address: str) -> None:
    """Raises `ConnectionError` within seconds where Ray itself would try for five minutes."""
    if address == "auto":  # Ray finds the one on this host, or says at once that there is none
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConnectionError("the address is not HOST:PORT, the one that `ray start --head` printed")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers there ({error.strerror or error})") from None


def check_resources(config: RunConfig) -> None:
    """Raises `UsageError` when Ray cannot place the run's actors, which would otherwise wait for ever."""
    have = ray.cluster_resources()
    needed = resources_needed(config)
    _check_amounts(
        needed,
        have,
        f"{config.generators.required} generators, {config.learner.ranks} learner ranks, {config.judging.count} judges",
        "generators.count, learner.ranks or their shares",
    )
    if (
        config.publication.transport == "shm"
        and len({node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}) > 1
    ):
        raise UsageError(
            "publication.transport shm reaches one host only and this Ray cluster has several; set it to nccl (GPUs) "
            "or object_store"
        )


def check_sampling_resources(config: RunConfig) -> None:
    """Raises `UsageError` when Ray cannot place generators and judge, which would otherwise wait for ever."""
    needed = resources_to_sample(config, config.generators.count)
    by = f"{config.generators.count} generators, {config.judging.count} judges"
    _check_amounts(needed, ray.cluster_resources(), by, "generators.count or their shares")


def check_stage_resources(learner: TrainerConfig) -> None:
    """Raises `UsageError` when Ray cannot place a stage's ranks, which would otherwise wait for ever."""
    needed = {"CPU": learner.ranks * learner.cpus_per_rank, "GPU": learner.ranks * learner.gpus_per_rank}
    _check_amounts(needed, ray.cluster_resources(), f"{learner.ranks} learner ranks", "learner.ranks or their shares")


def _check_amounts(needed: Mapping[str, float], have: Mapping[str, float], by: str, lowered: str) -> None:
    for resource, amount in needed.items():
        if amount > have.get(resource, 0.0):
            raise UsageError(
                f"the run needs {amount:g} {resource}s ({by}) and Ray has {have.get(resource, 0.0):g}; lower "
                f"{lowered}, or give Ray more (cluster.num_cpus oversubscribes CPUs)"
            )


def start_generators(
    config: RunConfig, model_dir: str, reference_dir: str, host: str | None = None
) -> list[RayGenerator]:
    """Starts all generator actors; their engines load in the background.

    `host`: address of the host that they must be on, whatever joins the cluster later; None: any.
    """
    from actors.generation.engine import engine_environment
    from actors.remote import start_generator

    environment = {**engine_environment(config.generators, cuda=generator_gpus(config) > 0), **_import_path()}
    return [
        RayGenerator(
            name,
            start_generator(
                name,
                model_dir=model_dir,
                reference_dir=reference_dir,
                tokenizer=config.model.tokenizer,
                generators=config.generators,
                sampling=config.sampling,
                opponent=config.opponent_drawn,
                seed=config.seed + index,
                deterministic=config.deterministic,
                transport=config.publication.transport,
                gpus=generator_gpus(config),
                host=host,
                environment=environment,
            ),
        )
        for index, name in enumerate(f"generator-{number}" for number in range(config.generators.count))
    ]


def start_judges(config: RunConfig) -> list[RayJudge]:
    """Starts all judge actors; models load in the background."""
    from actors import remote

    security_warnings.warn(*map(security_warnings.http_judge, config.judging.judges))
    tokenizer = config.model.tokenizer or (None if config.model.path == WORLD else config.model.path)
    return [
        RayJudge(
            remote.start_judge(
                config.judging,
                task=config.world.task,
                seed=config.world.seed,
                tokenizer=tokenizer,
                environment=_import_path(),
            )
        )
        for _ in range(config.judging.count)
    ]


def start_learner(
    config: RunConfig, model_dir: str, reference_dir: str, shared_memory: Path, failed_batches: Path
) -> RayLearner:
    """Starts all learner ranks, packed together, with rank 0's host as their meeting point."""
    from learner.training.worker import LearnerWorker

    transport = config.publication.transport
    ranks, host = _start_ranks(
        LearnerWorker,
        config.learner,
        # Weights are sent beside the next update, not after it.
        {"concurrency_groups": {PUBLISHING: 1}} if transport in SENT_BY_LEARNER else {},
        learner=config.learner,
        publication=config.publication,
        model_dir=model_dir,
        reference_dir=reference_dir,
        total_updates=config.updates,
        temperature=config.sampling.temperature,
        publish_dir=str(shared_memory),
        failed_batches_dir=str(failed_batches),
        tokenizer_dir=config.model.tokenizer,
        opponent=config.opponent_drawn,
    )
    return RayLearner(ranks, transport, config.generators.tensor_parallel_size, host=host)


def start_stage(config: StageConfig, model_dir: Path, directory: Path, total_updates: int) -> RayRanks:
    """Starts all ranks of a stage before the loop, which read `directory`/data."""
    from learner.training.stage_worker import StageWorker

    ranks, _ = _start_ranks(
        StageWorker,
        config.learner,
        {},
        config=config,
        model_dir=str(model_dir),
        data_dir=str(directory / "data"),
        total_updates=total_updates,
        failed_batches_dir=str(directory / "failed_batches"),
    )
    return RayRanks(ranks)


def _start_ranks(
    actor: type, trainer: TrainerConfig, options: dict[str, Any], **keywords: Any
) -> tuple[list[Any], str]:
    """Actors of all ranks, packed together, with rank 0's host as their meeting point, and that host's address."""
    bundle = {"CPU": trainer.cpus_per_rank, **({"GPU": trainer.gpus_per_rank} if trainer.gpus_per_rank else {})}
    group = placement_group([bundle] * trainer.ranks, strategy="PACK")
    if not group.wait(PLACEMENT_SECONDS):
        raise RunError(
            f"Ray could not place {trainer.ranks} learner ranks of {bundle} within {PLACEMENT_SECONDS:g} s; free those "
            "resources or lower learner.ranks"
        )
    first = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=0)
    master_addr, master_port = ray.get(
        ray.remote(_meeting_point).options(num_cpus=0, scheduling_strategy=first).remote(trainer.port)
    )
    ranks = [
        ray.remote(actor)
        .options(
            **options,
            num_cpus=trainer.cpus_per_rank,
            num_gpus=trainer.gpus_per_rank,
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
            runtime_env={"env_vars": _import_path()},
        )
        .remote(rank=rank, world_size=trainer.ranks, master_addr=master_addr, master_port=master_port, **keywords)
        for rank in range(trainer.ranks)
    ]
    return ranks, master_addr


def run_on_all_cores(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """Runs `function` in a Ray worker that has every core of the largest node to itself; returns its result."""
    cores = int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
    task = ray.remote(function).options(num_cpus=cores, max_retries=0, runtime_env={"env_vars": _import_path()})
    try:
        return ray.get(task.remote(*arguments, threads=cores, **keywords))
    except RayTaskError as error:
        raise origin(error) from None


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
