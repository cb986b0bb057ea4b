"""Joins or starts Ray, and starts the actors of a run; the classes inside the actors are plain.

The only module that decides where things run. Everything it starts ends with `ray_session`.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.errors import RunError, UsageError
from actors.generation.config import GeneratorSpec
from actors.network import free_port
from actors.records import SENT_BY_LEARNER
from launch.cluster import security_warnings
from launch.cluster.placement import address_to_join, generator_gpus, resources_needed, resources_to_sample
from launch.cluster.ray_actors import PUBLISHING, RayGenerator, RayJudge, RayLearner, RayStage, origin, reason
from launch.cluster.ray_job import auth_token
from launch.settings.run import ClusterConfig, RunConfig
from learner.backend.process import RankPlace
from learner.config import LearnerSpec, TrainerConfig
from learner.stages.config import StageConfig, StageSpec

PLACEMENT_SECONDS = 120.0
CONNECT_SECONDS = 10.0


@contextlib.contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Join or start Ray for the duration. Raises RunError if the address does not answer."""
    address = address_to_join(cluster)
    if address is None:
        security_warnings.warn(security_warnings.started_ray(os.environ))
    else:
        security_warnings.warn(security_warnings.joined_ray(address, os.environ, auth_token(os.environ, Path.home())))
    # No usage reports to Ray's authors.
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
    except Exception as error:  # Ray raises a bare Exception if its start takes too long
        done = "started" if address is None else f"joined at {address}"
        raise RunError(
            f"Ray could not be {done}: {reason(error)}; check that the cluster runs and the address is right, or set "
            "cluster.address=local"
        ) from None


def _check_answers(address: str) -> None:
    """Raise ConnectionError within seconds; Ray itself would try for five minutes."""
    if address == "auto":  # Ray finds a local cluster, or fails at once
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise ConnectionError("the address is not HOST:PORT, the one that `ray start --head` printed")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers there ({error.strerror or error})") from None


def check_resources(config: RunConfig) -> None:
    """Raise UsageError if Ray cannot place the run's actors; they would wait forever."""
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
            "publication.transport shm works on one host, and this Ray cluster has several; set it to nccl (GPUs) or "
            "object_store"
        )


def check_sampling_resources(config: RunConfig) -> None:
    """Raise UsageError if Ray cannot place generators and judges; they would wait forever."""
    needed = resources_to_sample(config, config.generators.count)
    by = f"{config.generators.count} generators, {config.judging.count} judges"
    _check_amounts(needed, ray.cluster_resources(), by, "generators.count or their shares")


def check_stage_resources(learner: TrainerConfig) -> None:
    """Raise UsageError if Ray cannot place a stage's ranks; they would wait forever."""
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
    """Start all generator actors; their engines load in the background.

    `host`: address of the host that they must stay on, whatever joins the cluster later; None: any.
    """
    from actors.generation.engine import engine_environment
    from actors.remote import GeneratorPlace, start_generator

    gpus = generator_gpus(config)
    place = GeneratorPlace(gpus, host, {**engine_environment(config.generators, cuda=gpus > 0), **_import_path()})
    specs = [
        GeneratorSpec(
            name=f"generator-{number}",
            model_dir=model_dir,
            reference_dir=reference_dir,
            tokenizer=config.model.tokenizer,
            generators=config.generators,
            sampling=config.sampling,
            opponent=config.opponent,
            seed=config.seed + number,
            deterministic=config.deterministic,
            transport=config.publication.transport,
        )
        for number in range(config.generators.count)
    ]
    return [RayGenerator(spec.name, start_generator(spec, place)) for spec in specs]


def start_judges(config: RunConfig, model_dir: str) -> list[RayJudge]:
    """Start all judge actors; models load in the background. `model_dir` holds the policy's tokenizer."""
    from actors import remote

    security_warnings.warn(*map(security_warnings.http_judge, config.judging.judges))
    tokenizer = config.model.tokenizer or model_dir
    return [
        RayJudge(remote.start_judge(config.judging, tokenizer=tokenizer, environment=_import_path()))
        for _ in range(config.judging.count)
    ]


def start_learner(
    config: RunConfig, model_dir: str, reference_dir: str, shared_memory: Path, failed_batches: Path
) -> RayLearner:
    """Start all learner ranks, packed together, with rank 0's host as their meeting point."""
    from learner.training.worker import LearnerWorker

    transport = config.publication.transport
    spec = LearnerSpec(
        config=config.learner,
        model_dir=model_dir,
        reference_dir=reference_dir,
        tokenizer_dir=config.model.tokenizer,
        total_updates=config.updates,
        temperature=config.sampling.temperature,
        failed_batches_dir=str(failed_batches),
    )
    # Weights are sent beside the next update, not after it.
    options = {"concurrency_groups": {PUBLISHING: 1}} if transport in SENT_BY_LEARNER else {}

    def start(options: dict[str, Any], place: RankPlace) -> Any:
        actor = ray.remote(LearnerWorker).options(**options)
        return actor.remote(spec, place, config.publication, str(shared_memory))

    ranks, host = _start_ranks(start, config.learner, options)
    return RayLearner(ranks, transport, config.generators.tensor_parallel_size, host=host)


def start_stage(config: StageConfig, model_dir: Path, directory: Path, total_updates: int) -> RayStage:
    """Start all ranks of a stage, which read `directory`/data."""
    from learner.stages.worker import StageWorker

    spec = StageSpec(config, str(model_dir), str(directory / "data"), total_updates, str(directory / "failed_batches"))

    def start(options: dict[str, Any], place: RankPlace) -> Any:
        return ray.remote(StageWorker).options(**options).remote(spec, place)

    return RayStage(_start_ranks(start, config.learner, {})[0])


def _start_ranks(
    start: Callable[[dict[str, Any], RankPlace], Any], trainer: TrainerConfig, options: dict[str, Any]
) -> tuple[list[Any], str]:
    """Call `start` with the options and the place of each rank, packed together; return actors and rank 0's address."""
    bundle = {"CPU": trainer.cpus_per_rank, **({"GPU": trainer.gpus_per_rank} if trainer.gpus_per_rank else {})}
    group = placement_group([bundle] * trainer.ranks, strategy="PACK")
    if not group.wait(PLACEMENT_SECONDS):
        raise RunError(
            f"Ray could not place {trainer.ranks} learner ranks of {bundle} within {PLACEMENT_SECONDS:g} s; free those "
            "resources or lower learner.ranks"
        )
    strategies = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=n) for n in range(trainer.ranks)]
    meeting_point = ray.remote(_meeting_point).options(num_cpus=0, scheduling_strategy=strategies[0])
    address, port = ray.get(meeting_point.remote(trainer.port))
    options = options | {
        "num_cpus": trainer.cpus_per_rank,
        "num_gpus": trainer.gpus_per_rank,
        "runtime_env": {"env_vars": _import_path()},
    }
    places = [RankPlace(rank, trainer.ranks, address, port) for rank in range(trainer.ranks)]
    ranks = [
        start(options | {"scheduling_strategy": strategy}, place)
        for strategy, place in zip(strategies, places, strict=True)
    ]
    return ranks, address


def run_on_all_cores(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """Run `function` in a Ray worker that reserves every core of the largest node; return its result."""
    cores = int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
    task = ray.remote(function).options(num_cpus=cores, max_retries=0, runtime_env={"env_vars": _import_path()})
    try:
        return ray.get(task.remote(*arguments, threads=cores, **keywords))
    except RayTaskError as error:
        raise origin(error) from None


def _meeting_point(port: int | None) -> tuple[str, int]:
    """Return this node's address and a free port, where the learner's ranks meet."""
    address = ray.util.get_node_ip_address()
    try:
        return address, free_port(address, port)
    except OSError as error:
        raise UsageError(
            f"learner.port {port} cannot be used on {address}: {error.strerror}; choose a free port, or leave "
            "learner.port unset"
        ) from None


def _import_path() -> dict[str, str]:
    """Let workers import what the driver can, including judge functions in its working directory."""
    paths = [os.getcwd(), os.environ.get("PYTHONPATH", "")]
    return {"PYTHONPATH": os.pathsep.join(path for path in paths if path)}
