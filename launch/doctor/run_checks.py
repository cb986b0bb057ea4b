"""Checks of a run against a machine: placement, memory, disk, keys. Pure: every fact is an argument."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from actors.judges.config import HttpJudgeConfig
from launch.cluster.placement import resources_needed
from launch.doctor import footprint
from launch.doctor.findings import Finding, graded
from launch.doctor.footprint import size
from launch.doctor.machine import Gpu, Memory
from launch.doctor.model_facts import ModelFacts
from launch.settings.run import ClusterConfig, RunConfig

NEARLY_ALL = 0.9
"""Share of a memory above which an estimate leaves too little for what it does not count."""
OTHER_DIRECTORY = "choose another directory with --output DIR or output=DIR"


@dataclass(frozen=True, slots=True)
class Models:
    """Sizes of a run's models."""

    policy: ModelFacts
    reference: ModelFacts | None
    """None if it is not on this machine. Equals `policy` if the run sets no reference."""
    judge_bytes: float = 0.0  # bytes of weights in one judge actor


def check_placement(config: RunConfig, cpus: int, gpus: int) -> Finding:
    """Compare the actors' reservations with a Ray started on this machine."""
    needed = resources_needed(config)
    have = {"CPU": float(config.cluster.num_cpus or cpus), "GPU": float(gpus)}
    counts = {"generator": config.generators.count, "learner rank": config.learner.ranks, "judge": config.judging.count}
    actors = ", ".join(f"{count} {actor}{'' if count == 1 else 's'}" for actor, count in counts.items())
    amounts = ", ".join(f"{needed[what]:g} of {have[what]:g} {what}s" for what in needed if needed[what] or have[what])
    remedy = "lower generators.count, learner.ranks, judging.count or their shares, or join a larger cluster"
    if needed["CPU"] > have["CPU"]:
        remedy += "; cluster.num_cpus oversubscribes cores"
    return graded("placement", f"{actors}: {amounts}", remedy, fatal=any(needed[what] > have[what] for what in needed))


def check_cache(config: RunConfig, policy: ModelFacts) -> Finding:
    """Check that the KV cache of an engine on CPU holds the longest sequence."""
    longest, cache = footprint.longest_sequence_bytes(policy, config), config.generators.kv_cache_mib
    text = f"{policy.parameters / 1e6:,.1f}M parameters, {size(longest)} of KV cache for the longest sequence"
    fatal = config.learner.gpus_per_rank == 0 and longest > cache << 20
    if fatal:
        text += f", more than generators.kv_cache_mib {cache}"
    remedy = f"set generators.kv_cache_mib to {-(-longest >> 20)} or more, or lower generators.max_model_len"
    return graded("policy", text, remedy, fatal=fatal)


def check_gpu_memory(config: RunConfig, models: Models, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """Compare each role's memory with its share of the smallest of `gpus`; report it alone if there are none."""
    if config.learner.gpus_per_rank == 0:
        return
    learner, active = _learner_memory(config, models)[0], _activations(config, models)
    engine, engine_share = footprint.generator_memory(models.policy, config), config.generators.gpu_memory_utilization
    roles = {
        "learner GPU": (
            (learner, active, config.learner.gpus_per_rank),
            f"a rank needs {size(learner)} and about {size(active)} of activations",
            "raise learner.ranks or learner.zero_stage, set learner.gradient_checkpointing or "
            "learner.offload_optimizer, or lower learner.micro_batch_tokens",
        ),
        "engine GPU": (
            (engine, 0.0, engine_share),
            f"weights and the longest sequence need {size(engine)}; vLLM takes {engine_share:.0%} of the GPU",
            "raise generators.tensor_parallel_size or generators.gpu_memory_utilization, or lower "
            "generators.max_model_len",
        ),
    }
    if models.judge_bytes and config.judging.gpus:
        text = f"weights need {size(models.judge_bytes)}"
        remedy = "raise judging.judge.gpus, or use a served model (judging.judge.kind served)"
        roles["judge GPU"] = (models.judge_bytes, 0.0, config.judging.gpus), text, remedy
    for name, ((sure, extra, share), text, remedy) in roles.items():
        if not gpus:
            yield graded(name, f"{text} (no GPU here to compare with)")
            continue
        total = min(gpu.total for gpu in gpus) * min(1.0, share)
        doubtful = extra > 0.0 and sure + extra > NEARLY_ALL * total
        yield graded(name, f"{text}, of {size(total)}", remedy, fatal=sure > total, doubtful=doubtful)


def check_memory(config: RunConfig, models: Models, memory: Memory) -> Finding:
    """Compare the host memory of all actors, the object store and publications with this machine's."""
    sure, on_gpu = host_memory(config, models), config.learner.gpus_per_rank > 0
    likely = sure | {
        "activations": 0.0 if on_gpu else config.learner.ranks * _activations(config, models),
        "object store": float(config.cluster.object_store_mib << 20),
        "publications": float(published_bytes(config, models.policy)),
    }
    processes = config.generators.count + config.learner.ranks + config.judging.count + 1  # the driver
    total = sum(likely.values()) + processes * footprint.PROCESS_BYTES
    roles = ", ".join(f"{name} {size(need)}" for name, need in likely.items() if need)
    text = f"{roles}, {processes} processes: about {size(total)}, of {size(memory.total)} with {size(memory.free)} free"
    remedy = "end other programs, lower generators.count, generators.kv_cache_mib or learner.ranks, or shrink the model"
    return graded("memory", text, remedy, fatal=sum(sure.values()) > memory.total, doubtful=total > memory.free)


def host_memory(config: RunConfig, models: Models) -> dict[str, float]:
    """Estimate the least host memory of each role (bytes), summed over its actors."""
    on_gpu, (device, host) = config.learner.gpus_per_rank > 0, _learner_memory(config, models)
    engine = 0.0 if on_gpu else footprint.generator_memory(models.policy, config)
    return {
        "learner": config.learner.ranks * (host if on_gpu else device),
        "generators": config.generators.count * engine,
        "judges": 0.0 if config.judging.gpus else config.judging.count * models.judge_bytes,
    }


def check_shared_memory(cluster: ClusterConfig, published: int, free: int) -> Finding:
    """Compare the `free` bytes of /dev/shm with Ray's object store and `published` bytes of the shm transport."""
    store = cluster.object_store_mib << 20
    text = f"{size(free)} free; object store {size(store)}, publications {size(published)}"
    remedy = "enlarge it (docker: --shm-size, compose: shm_size), lower cluster.object_store_mib, or set "
    remedy += "publication.transport to object_store"
    return graded("/dev/shm", text, remedy, fatal=free < store + published)


def check_disk(config: RunConfig, policy: ModelFacts | None, folder: Path, free: int) -> Finding:
    """Compare the `free` bytes at the output `folder` with the run's checkpoints."""
    text = f"{size(free)} free at {folder}"
    if policy is None:
        return graded("disk", text)
    one = footprint.checkpoint_bytes(policy, config.learner, average=footprint.has_average(config))
    needed = footprint.disk_bytes(policy, config)
    text += f"; {config.checkpoints.keep + 1} checkpoints of {size(one)} and final/ take {size(needed)}"
    remedy = f"free space, lower checkpoints.keep, or {OTHER_DIRECTORY}"
    return graded("disk", text, remedy, fatal=free < one, doubtful=free < needed)


def check_keys(config: RunConfig, environment: Mapping[str, str], *, elsewhere: bool) -> Iterator[Finding]:
    """Check that the judges' API keys are set; never shows their values.

    With `elsewhere` judges may run on other hosts, whose environment is not visible: a missing key is a warning.
    """
    for name in sorted({judge.api_key_env for judge in http_judges(config) if judge.api_key_env is not None}):
        missing = not environment.get(name)
        text = f"{name} is {'not set here' if missing else 'set'}"
        remedy = "set it on the hosts of the cluster" if elsewhere else f"export {name} before the run starts"
        yield graded("judge key", text, remedy, fatal=missing and not elsewhere, doubtful=missing)


def http_judges(config: RunConfig) -> list[HttpJudgeConfig]:
    return [judge for judge in config.judging.judges if isinstance(judge, HttpJudgeConfig)]


def published_bytes(config: RunConfig, policy: ModelFacts) -> int:
    """Return the bytes that publications keep in /dev/shm."""
    versions = footprint.PUBLISHED_VERSIONS if config.publication.transport == "shm" else 0
    return versions * footprint.publication_bytes(policy, config)


def _learner_memory(config: RunConfig, models: Models) -> tuple[float, float]:
    average = footprint.has_average(config)
    return footprint.learner_memory(models.policy, models.reference, config.learner, average=average)


def _activations(config: RunConfig, models: Models) -> float:
    return footprint.activation_bytes(models.policy, config.learner, largest_pass(config))


def largest_pass(config: RunConfig) -> int:
    """Return the padded tokens of a rank's largest forward pass: a micro-batch, or one prompt's rows if more."""
    rows = 2 if config.learner.loss.on_pairs else config.sampling.completions_per_prompt
    item = rows * (config.prompts.max_prompt_tokens + config.sampling.max_new_tokens)
    share = -(-config.replay.prompts_per_update // config.learner.ranks)
    return max(item, min(config.learner.micro_batch_tokens, share * item))
