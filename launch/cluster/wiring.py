"""Joins or starts Ray, and starts the actors of a run; the classes inside the actors are plain.

The only module that decides where things run. Everything it starts ends with `ray_session`.
"""

import contextlib
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray
from ray.exceptions import RayTaskError
from ray.runtime_env import RuntimeEnv
from ray.util.placement_group import placement_group, placement_group_table
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from actors.data.text import load_tokenizer
from actors.errors import RunError, UsageError
from actors.foreign.text import many
from actors.generation.config import GeneratorSpec
from actors.host import free_port, threads
from actors.hub import answer_ends, resolve
from actors.records import TRANSPORTS
from launch.cluster import interchangeable, loopback, placement, security_warnings
from launch.cluster.carriers import CONCURRENCY_GROUPS, PULSE
from launch.cluster.interchangeable import RayJudge, RayReference
from launch.cluster.placement import Node, address_to_join, generator_gpus
from launch.cluster.ray_actors import RayGenerator, RayLearner, RayStage, origin, reason
from launch.cluster.ray_job import auth_token
from launch.cluster.ray_processes import no_ray, own_handlers, without_notice_of_cpu_time
from launch.run.pools.reference_pool import ReferencePool
from launch.settings.run import ClusterConfig, RunConfig
from launch.settings.runtime_env import upload_problem
from learner.config import LearnerSpec, TrainerConfig
from learner.stages.config import StageConfig, StageSpec
from learner.training.process import RankPlace

PLACEMENT_SECONDS = 120.0
CONNECT_SECONDS = 10.0
HEAPS = "MALLOC_ARENA_MAX"
"""Heaps that the C library keeps in a process; by default one for each thread. What one thread frees, no other can use:
a generator grew by 4 KiB an update."""


@contextlib.contextmanager
def ray_session(cluster: ClusterConfig) -> Iterator[None]:
    """Join or start Ray for the duration. Raises RunError if the address does not answer."""
    address = address_to_join(cluster)
    _check_runtime_env(cluster.runtime_env, joins=address is not None)
    if address is None:
        security_warnings.warn(security_warnings.started_ray(os.environ))
    else:
        security_warnings.warn(security_warnings.joined_ray(address, os.environ, auth_token(os.environ, Path.home())))
    # No usage reports to Ray's authors.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault(HEAPS, "2")
    try:
        with own_handlers():
            _init(cluster, address)
        yield
    finally:
        ray.shutdown()


def _init(cluster: ClusterConfig, address: str | None) -> None:
    try:
        if address is not None:
            _check_answers(address)
            ray.init(
                address=address, runtime_env=cluster.runtime_env or None, log_to_driver=False, logging_level="ERROR"
            )
            return
        # Ray's GCS would keep a record of each of the last 100,000 calls, which nobody can look at without a dashboard.
        os.environ.setdefault("RAY_task_events_report_interval_ms", "0")
        # Nor its figures, for which the raylet grows by a MiB in ten minutes.
        os.environ.setdefault("RAY_enable_metrics_collection", "0")
        # Nor a worker for each core, for which `ray.init` waits: no actor takes one, as each has variables of its own.
        os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
        with loopback.own_ray(os.environ), without_notice_of_cpu_time():
            ray.init(
                address="local",
                num_cpus=cluster.num_cpus,
                object_store_memory=cluster.object_store_mib << 20,
                runtime_env=cluster.runtime_env or None,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="ERROR",
            )
        security_warnings.keep_token_private(Path.home())
    except SystemExit:  # raised by Ray's handler of SIGTERM
        raise KeyboardInterrupt from None
    except Exception as error:  # Ray raises a bare Exception if its start takes too long
        raise RunError(no_ray(address, reason(error).rstrip("."), runtime_env=bool(cluster.runtime_env))) from None


def _check_runtime_env(given: Mapping[str, Any], *, joins: bool) -> None:
    """Raise UsageError if Ray refuses `cluster.runtime_env`, or there is no cluster to upload its code to."""
    if not joins and (problem := upload_problem(given)):
        raise UsageError(problem)
    try:
        RuntimeEnv(**given)
    except Exception as error:  # Ray raises TypeError, ValueError, and others from packages that it imports
        raise UsageError(f"Ray refuses cluster.runtime_env: {error}; correct the key that it names") from error


def _check_answers(address: str) -> None:
    """Raise ConnectionError within seconds; Ray itself would try for five minutes."""
    if address == "auto":  # Ray finds a local cluster, or fails at once
        return
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ConnectionError(f"nothing answers there ({error.strerror or error})") from None


def check_resources(config: RunConfig) -> None:
    """Raise UsageError if Ray cannot place the run's actors; they would wait forever."""
    needed = placement.resources_needed(placement.run_actors(config))
    by = f"{many(config.generators.required, 'generator')}, {many(config.learner.ranks, 'learner rank')}"
    by += f", {many(config.judging.count, 'judge')}"
    by += f", {many(config.reference.count, 'reference actor')}" if config.reference.count else ""
    _check_amounts(needed, ray.cluster_resources(), by, "generators.count, learner.ranks or their shares")
    transport = config.publication.transport
    if TRANSPORTS[transport].one_host and len(_hosts()) > 1:
        raise UsageError(
            f"publication.transport {transport} works on one host, and this Ray cluster has several; set it to nccl "
            "(GPUs), gloo or object_store"
        )
    placement.plan(config, _nodes())


def check_sampling_resources(config: RunConfig) -> None:
    """Raise UsageError if Ray cannot place generators and judges; they would wait forever."""
    actors = placement.sampling_actors(config)
    by = f"{many(config.generators.count, 'generator')}, {many(config.judging.count, 'judge')}"
    needed = placement.resources_needed(actors)
    _check_amounts(needed, ray.cluster_resources(), by, "generators.count or their shares")
    placement.place(actors, _nodes())


def check_stage_resources(learner: TrainerConfig) -> None:
    """Raise UsageError if Ray cannot place a stage's ranks; they would wait forever."""
    actors = placement.rank_actors(learner)
    needed = placement.resources_needed(actors)
    _check_amounts(needed, ray.cluster_resources(), f"{learner.ranks} learner ranks", "learner.ranks or their shares")
    placement.place(actors, _nodes())


def _check_amounts(needed: Mapping[str, float], have: Mapping[str, float], by: str, lowered: str) -> None:
    for resource, amount in needed.items():
        present = have.get(resource, 0.0)
        if amount <= present:
            continue
        if resource not in ("CPU", "GPU"):
            raise UsageError(placement.too_little(resource, amount, present))
        raise UsageError(
            f"the run needs {amount:g} {resource}s ({by}) and Ray has {present:g}; lower {lowered}, or give Ray more "
            "(cluster.num_cpus oversubscribes CPUs)"
        )


def _nodes() -> list[Node]:
    """List the live nodes of the Ray cluster."""
    alive = [(node["Resources"], node.get("Labels", {})) for node in ray.nodes() if node["Alive"]]
    return [Node(each.get("CPU", 0.0), int(each.get("GPU", 0.0)), each, labels) for each, labels in alive]


def _hosts() -> set[str]:
    return {node["NodeManagerAddress"] for node in ray.nodes() if node["Alive"]}


def start_generators(
    config: RunConfig,
    model_dir: str,
    reference_dir: str,
    learner: RayLearner | None = None,
    judges: Sequence[RayJudge | RayReference] = (),
    *,
    updates: int = 0,
) -> list[RayGenerator]:
    """Start all generator actors; their engines load in the background.

    `learner`, `judges`: those of the run, and its reference actors. Generators stay on the learner's host if its
    publications do; engines that may share a GPU with them start when they have loaded, because vLLM measures the
    memory that others leave. `updates`: those that a resumed run begins with.
    """
    from actors.data.text import load_tokenizer
    from actors.generation.engine import engine_environment
    from actors.remote import GeneratorPlace, start_generator

    gpus = generator_gpus(config)
    host = learner.host if learner is not None and placement.on_learner_host(config) else None
    after = [ref for other in (learner, *judges) if other is not None for ref in other.loaded()] if 0 < gpus < 1 else []
    environment = engine_environment(config.generators, cuda=gpus > 0) | _environment(config.generators.environment)
    place = GeneratorPlace(gpus, host, environment, after)
    chat_template = None
    if config.sampling.environment is not None:
        chat_template = load_tokenizer(config.model.tokenizer or model_dir, chats=config.model).chat_template
    specs = [
        GeneratorSpec(
            name=f"generator-{number}",
            model_dir=model_dir,
            reference_dir=reference_dir,
            tokenizer=config.model.tokenizer,
            chat_template=chat_template,
            head_dtype=config.model.head_dtype,
            generators=config.generators,
            sampling=config.sampling,
            opponent=config.opponent,
            adapter=config.adapter,
            seed=config.seed,
            number=number,
            start=updates,
            deterministic=config.deterministic,
        )
        for number in range(config.generators.count)
    ]
    return [RayGenerator(spec.name, start_generator(spec, place)) for spec in specs]


def start_judges(config: RunConfig, model_dir: str) -> list[RayJudge]:
    """Start all judge actors; models load in the background. `model_dir` holds the policy's tokenizer."""
    from actors import remote

    security_warnings.warn(*map(security_warnings.http_judge, config.judging.judges))
    tokenizer = config.model.tokenizer or model_dir
    environment = _environment(config.judging.environment)
    return [
        RayJudge(remote.start_judge(config.judging, tokenizer=tokenizer, environment=environment), f"judge-{number}")
        for number in range(config.judging.count)
    ]


def start_references(config: RunConfig, reference_dir: str) -> list[RayReference]:
    """Start all reference actors, none if the learner holds the reference; models load in the background."""
    return interchangeable.start_references(config, reference_dir, _environment(config.reference.environment))


def start_learner(
    config: RunConfig,
    model_dir: str,
    reference_dir: str,
    shared_memory: Path,
    failed_batches: Path,
    prompt: Sequence[int] = (0,),
    reference: ReferencePool | None = None,
) -> RayLearner:
    """Start all learner ranks, packed together, with rank 0's host as their meeting point.

    `prompt`: token ids of the one that learner and engines score an answer of after each weight sync. `reference`: the
    actors that hold the reference in place of the ranks.
    """
    from learner.training.worker import LearnerWorker

    transport = config.publication.transport
    spec = LearnerSpec(
        config=config.learner,
        model_dir=model_dir,
        reference_dir=reference_dir,
        with_reference=config.reference.count == 0,
        tokenizer_dir=config.model.tokenizer,
        total_updates=config.updates,
        anchor=config.anchor,
        temperature=config.sampling.temperature,
        head_dtype=config.model.head_dtype,
        ends=_ends(model_dir, config.model.tokenizer),
        failed_batches_dir=str(failed_batches),
        **_canary(config, prompt),
    )
    # Weights are sent beside the next update, not after it. `.options()` refuses concurrency groups.
    beside = CONCURRENCY_GROUPS if TRANSPORTS[transport].beside_updates else {}
    actor = ray.remote(concurrency_groups={PULSE: 1, **beside})(LearnerWorker)

    def start(options: dict[str, Any], place: RankPlace) -> Any:
        return actor.options(**options).remote(spec, place, config.publication, str(shared_memory))

    ranks, host = _start_ranks(start, config.learner)
    workers, seconds = config.generators.tensor_parallel_size, config.publication.timeout_seconds
    return RayLearner(ranks, transport, workers, host=host, take_seconds=seconds, reference=reference)


def start_stage(config: StageConfig, model_dir: Path, directory: Path, total_updates: int) -> RayStage:
    """Start all ranks of a stage, which read `directory`/data."""
    from learner.stages.worker import StageWorker

    spec = StageSpec(
        config,
        str(model_dir),
        str(directory / "data"),
        total_updates,
        str(directory / "failed_batches"),
        _ends(model_dir, config.model.tokenizer),
    )

    def start(options: dict[str, Any], place: RankPlace) -> Any:
        return ray.remote(concurrency_groups={PULSE: 1})(StageWorker).options(**options).remote(spec, place)

    return RayStage(_start_ranks(start, config.learner)[0])


def _canary(config: RunConfig, prompt: Sequence[int]) -> dict[str, Any]:
    """Return a prompt and the length of its answer, of which an engine can still sample one token."""
    answer = min(config.publication.canary_tokens, config.sampling.max_new_tokens)
    room = config.generators.max_model_len - 1 - answer
    return {"canary_prompt": tuple(prompt)[-room:], "canary_tokens": answer}


def _ends(model_dir: str | Path, tokenizer: str | None) -> tuple[int, ...]:
    """Return the token ids that end an answer, for the models that the learner saves."""
    directory = resolve(model_dir, weights=False)
    return answer_ends(directory, load_tokenizer(tokenizer or str(directory)))


def _start_ranks(start: Callable[[dict[str, Any], RankPlace], Any], trainer: TrainerConfig) -> tuple[list[Any], str]:
    """Call `start` with the options and the place of each rank, packed together; return actors and rank 0's address.

    Ranks that split sequences are on one node if it has room for them.
    """
    bundle = {"CPU": trainer.cpus_per_rank, **trainer.resources}
    if trainer.gpus_per_rank:
        bundle["GPU"] = trainer.gpus_per_rank
    labels = [trainer.labels] * trainer.ranks if trainer.labels else None
    group = placement_group([bundle] * trainer.ranks, strategy="PACK", bundle_label_selector=labels)
    if not group.wait(PLACEMENT_SECONDS):
        raise RunError(
            f"Ray could not place {trainer.ranks} learner ranks of {bundle} within {PLACEMENT_SECONDS:g} s; free those "
            "resources or lower learner.ranks"
        )
    nodes = placement_group_table(group)["bundles_to_node_id"]
    order = placement.in_groups([nodes[number] for number in range(trainer.ranks)], trainer.sequence_parallel)
    strategies = [PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number) for number in order]
    if nodes[order[0]] == ray.get_runtime_context().get_node_id():
        address, port = _meeting_point(trainer.port)
    else:
        meeting_point = ray.remote(_meeting_point).options(num_cpus=0, scheduling_strategy=strategies[0])
        address, port = ray.get(meeting_point.remote(trainer.port))
    options = {
        "num_cpus": trainer.cpus_per_rank,
        "num_gpus": trainer.gpus_per_rank,
        "resources": trainer.resources,
        "runtime_env": {"env_vars": _environment(trainer.environment)},
    }
    places = [RankPlace(rank, trainer.ranks, address, port) for rank in range(trainer.ranks)]
    ranks = [
        start(options | {"scheduling_strategy": strategy}, place)
        for strategy, place in zip(strategies, places, strict=True)
    ]
    return ranks, address


def run_on_all_cores(function: Any, *arguments: Any, **keywords: Any) -> Any:
    """Run `function` in a Ray worker that reserves every core of the largest node; return its result.

    It has a thread for each core, or as many as OMP_NUM_THREADS gives this process.
    """
    cores = int(max(node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]))
    task = ray.remote(function).options(num_cpus=cores, max_retries=0, runtime_env={"env_vars": _environment()})
    try:
        return ray.get(task.remote(*arguments, threads=threads(cores), **keywords))
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


def _environment(of_role: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Let workers import what the driver can, including judge functions in its working directory.

    Where this node has no address but loopback, they listen there alone. Their heaps are few. `of_role`: the variables
    that the settings give, which come last.
    """
    paths = [os.getcwd(), os.environ.get("PYTHONPATH", "")]
    path = os.pathsep.join(path for path in paths if path)
    own = {"PYTHONPATH": path, HEAPS: os.environ.get(HEAPS, "2")}
    return own | loopback.environment(ray.util.get_node_ip_address(), os.environ) | dict(of_role)
