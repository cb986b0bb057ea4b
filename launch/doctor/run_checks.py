"""Decides from measured facts whether a machine can hold a run: placement, memory, disk, ports, keys.

Pure: every fact is an argument. What comes from files of models and prompts is in `launch/doctor.py`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

from actors.judges.config import HttpJudgeConfig
from launch.cluster.placement import resources_needed
from launch.doctor import footprint
from launch.doctor.findings import Finding, error, ok, warning
from launch.doctor.footprint import size
from launch.doctor.machine import Folder, Gpu, Space
from launch.doctor.model_facts import ModelFacts
from launch.settings.run import RunConfig

NEARLY_ALL = 0.9
"""Share of a memory above which an estimate leaves too little for what it does not count."""
BFLOAT16_CAPABILITY = (8, 0)
"""Compute capability from which vLLM serves bfloat16 (Ampere)."""


@dataclass(frozen=True, slots=True)
class Models:
    """Sizes of a run's models; None for those that are not on this machine, or none of."""

    policy: ModelFacts | None
    reference: ModelFacts | None
    """The policy's own where the configuration gives none."""
    judges: tuple[tuple[ModelFacts, str], ...] = ()
    """Models that each judge actor loads, with their dtype."""


def check_placement(config: RunConfig, cpus: int, gpus: int) -> Finding:
    """The run's reservations against a Ray started on this machine."""
    needed = resources_needed(config)
    have = {"CPU": float(config.cluster.num_cpus or cpus), "GPU": float(gpus)}
    counts = {"generator": config.generators.count, "learner rank": config.learner.ranks, "judge": config.judging.count}
    actors = ", ".join(f"{count} {actor}{'' if count == 1 else 's'}" for actor, count in counts.items())
    amounts = ", ".join(f"{needed[what]:g} of {have[what]:g} {what}s" for what in needed if needed[what] or have[what])
    short = [what for what in needed if needed[what] > have[what]]
    if short:
        remedy = "lower generators.count, learner.ranks, judging.count or their shares, or join a cluster that has more"
        return error("placement", f"{actors}: {amounts}", remedy + (_CPU_REMEDY if "CPU" in short else ""))
    return ok("placement", f"{actors}: {amounts}")


_CPU_REMEDY = "; cluster.num_cpus oversubscribes cores"


def check_capability(config: RunConfig, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """bfloat16 engines need GPUs that compute in it."""
    old = [gpu.name for gpu in gpus if gpu.capability < BFLOAT16_CAPABILITY]
    if old and config.learner.gpus_per_rank > 0 and config.generators.dtype == "bfloat16":
        yield error(
            "dtype", f"{old[0]} does not compute in bfloat16", "set generators.dtype and learner.dtype to float32"
        )


def check_model_size(config: RunConfig, models: Models) -> Iterator[Finding]:
    """What the model is, and whether the engine's cache holds its longest sequence."""
    policy = models.policy
    if policy is None:
        return
    generators = config.generators
    longest = footprint.longest_sequence_bytes(policy, config)
    text = f"{policy.parameters / 1e6:,.1f}M parameters, {size(longest)} of keys and values in a longest sequence"
    if config.learner.gpus_per_rank == 0 and longest > generators.kv_cache_mib << 20:
        yield error(
            "policy",
            f"{text}, more than generators.kv_cache_mib {generators.kv_cache_mib}",
            f"set generators.kv_cache_mib to {-(-longest >> 20)} or more, or lower generators.max_model_len",
        )
    else:
        yield ok("policy", text)


def check_gpu_memory(config: RunConfig, models: Models, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """Each role's share of one GPU; compared with the smallest of `gpus`, or only told where there are none here."""
    policy = models.policy
    if policy is None or config.learner.gpus_per_rank == 0:
        return
    total = min((gpu.total for gpu in gpus), default=None)
    learner = learner_memory(config, models)
    active = footprint.activation_bytes(policy, config.learner, _tokens(config))
    yield _fits(
        "learner GPU",
        f"a rank needs {size(learner.device)} and about {size(active)} of activations",
        sure=learner.device,
        likely=learner.device + active,
        total=None if total is None else total * min(1.0, config.learner.gpus_per_rank),
        remedy="raise learner.ranks or learner.zero_stage, set learner.gradient_checkpointing or "
        "learner.offload_optimizer, or lower learner.micro_batch_tokens",
    )
    engine = footprint.generator_memory(policy, config)
    share = config.generators.gpu_memory_utilization
    yield _fits(
        "engine GPU",
        f"weights and one longest sequence need {size(engine)}; vLLM takes {share:.0%} of the GPU",
        sure=engine,
        likely=engine,
        total=None if total is None else total * share,
        remedy="raise generators.tensor_parallel_size or generators.gpu_memory_utilization, or lower "
        "generators.max_model_len",
    )
    judge = judge_bytes(models)
    if config.judging.gpus and judge:
        yield _fits(
            "judge GPU",
            f"weights need {size(judge)}",
            sure=judge,
            likely=judge,
            total=None if total is None else total * min(1.0, config.judging.gpus),
            remedy="raise judging.judge.gpus, or judge with a served model (judging.judge.kind served)",
        )


def check_memory(config: RunConfig, models: Models, memory: Space) -> Iterator[Finding]:
    """Host memory of all actors, the object store and publications, against this machine's."""
    if models.policy is None:
        return
    sure = host_memory(config, models)
    likely = sure | {
        "activations": _host_activations(config, models.policy),
        "object store": float(config.cluster.object_store_mib << 20),
        "publications": float(_published(config, models.policy)),
    }
    actors = config.generators.count + config.learner.ranks + config.judging.count + 1  # the driver
    total = sum(likely.values()) + actors * footprint.PROCESS_BYTES
    roles = ", ".join(f"{name} {size(need)}" for name, need in likely.items() if need)
    text = f"{roles}, {actors} processes besides: about {size(total)}"
    remedy = "lower generators.count, generators.kv_cache_mib or learner.ranks, or take a smaller model"
    if sum(sure.values()) > memory.total:
        yield error("memory", f"{text}, and the machine has {size(memory.total)}", remedy)
    elif total > memory.free:
        yield warning(
            "memory", f"{text}, and {size(memory.free)} is available", f"end what else runs here, or {remedy}"
        )
    else:
        yield ok("memory", f"{text} of {size(memory.free)} available")


def host_memory(config: RunConfig, models: Models) -> dict[str, float]:
    """Bytes of host memory that each role cannot do without, all its actors together."""
    assert models.policy is not None
    on_gpu, learner = config.learner.gpus_per_rank > 0, learner_memory(config, models)
    engine = 0.0 if on_gpu else footprint.generator_memory(models.policy, config)
    return {
        "learner": config.learner.ranks * (learner.host + (0.0 if on_gpu else learner.device)),
        "generators": config.generators.count * engine,
        "judges": 0.0 if config.judging.gpus else config.judging.count * judge_bytes(models),
    }


def _host_activations(config: RunConfig, policy: ModelFacts) -> float:
    if config.learner.gpus_per_rank > 0:
        return 0.0
    return config.learner.ranks * footprint.activation_bytes(policy, config.learner, _tokens(config))


def check_shared_memory(config: RunConfig, models: Models, shm: Space) -> Finding:
    """Ray's object store and the publications of the shm transport, both in /dev/shm."""
    store = config.cluster.object_store_mib << 20
    published = 0 if models.policy is None else _published(config, models.policy)
    needed = store + published
    text = f"{size(shm.free)} free of {size(shm.total)}; object store {size(store)}"
    if published:
        text += f", {footprint.PUBLISHED_VERSIONS} publications {size(published)}"
    if shm.free < needed:
        return error(
            "/dev/shm",
            f"{text}: {size(needed)} needed",
            "enlarge it (docker: --shm-size, compose: shm_size), lower cluster.object_store_mib, or set "
            "publication.transport to object_store",
        )
    return ok("/dev/shm", text)


def check_object_store(config: RunConfig, models: Models) -> Iterator[Finding]:
    """Publications of the object_store transport in a Ray started here; Ray spills to disk what does not fit."""
    if models.policy is None or config.publication.transport != "object_store":
        return
    needed = footprint.PUBLISHED_VERSIONS * footprint.publication_bytes(models.policy, config)
    if needed > config.cluster.object_store_mib << 20:
        yield warning(
            "object store",
            f"publications take {size(needed)} of {config.cluster.object_store_mib} MiB; Ray writes the rest to disk",
            f"set cluster.object_store_mib to {-(-needed >> 20)} or more",
        )


def check_disk(config: RunConfig, models: Models, where: Folder) -> Finding:
    """The output directory's file system against the run's checkpoints."""
    if not where.writable:
        return error(
            "disk", f"{where.existing} cannot be written", "choose another directory with --output DIR or output=DIR"
        )
    text = f"{size(where.space.free)} free at {where.existing}"
    if models.policy is None:
        return ok("disk", text)
    ema = footprint.has_average(config)
    one = footprint.checkpoint_bytes(models.policy, config.learner, ema=ema)
    needed = footprint.disk_bytes(models.policy, config)
    text += f"; {config.checkpoints.keep + 1} checkpoints of {size(one)} and final/ take {size(needed)}"
    remedy = "free space, or choose another with --output DIR or output=DIR"
    if where.space.free < one:
        return error("disk", f"{text}: not even one checkpoint fits", remedy)
    if where.space.free < needed:
        return warning("disk", text, f"{remedy}, or lower checkpoints.keep")
    return ok("disk", text)


def check_port(port: int | None, free: bool) -> Iterator[Finding]:
    """`learner.port`, where it is set, on this host."""
    if port is None:
        return
    if free:
        yield ok("port", f"learner.port {port} is free")
    else:
        yield error("port", f"learner.port {port} is in use here", "choose a free one, or leave learner.port unset")


def check_keys(config: RunConfig, environment: Mapping[str, str], *, elsewhere: bool) -> Iterator[Finding]:
    """Names of the judges' keys in the environment; values are never shown. `elsewhere`: the judge may run on another
    host, whose environment is not seen from here."""
    for name in sorted({judge.api_key_env for judge in http_judges(config) if judge.api_key_env is not None}):
        if environment.get(name):
            yield ok("judge key", f"{name} is set")
        elif elsewhere:
            yield warning("judge key", f"{name} is not set here", "set it on the hosts of the cluster")
        else:
            yield error("judge key", f"{name} is not set", f"export {name} before the run starts")


def check_endpoint(url: str, problem: str | None) -> Finding:
    """Whether a judge's server takes connections; `problem` is None where it does."""
    if problem is None:
        return ok("judge server", f"{url} takes connections")
    return warning(
        "judge server", f"nothing answers at {url}: {problem}", "start it before the run, or correct judging.judge.url"
    )


def http_judges(config: RunConfig) -> list[HttpJudgeConfig]:
    return [judge for judge in config.judging.judges if isinstance(judge, HttpJudgeConfig)]


def host_and_port(url: str) -> tuple[str, int]:
    """Where an http or https URL connects to."""
    parts = urlsplit(url)
    return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)


def learner_memory(config: RunConfig, models: Models) -> footprint.Memory:
    """As `footprint.learner_memory`, of this run."""
    assert models.policy is not None
    ema = footprint.has_average(config)
    return footprint.learner_memory(models.policy, models.reference, config.learner, ema=ema)


def judge_bytes(models: Models) -> float:
    """Weights of the models of one judge actor."""
    return float(sum(footprint.ELEMENT_BYTES[dtype] * facts.parameters for facts, dtype in models.judges))


def _published(config: RunConfig, policy: ModelFacts) -> int:
    """Bytes that publications keep in /dev/shm."""
    if config.publication.transport != "shm":
        return 0
    return footprint.PUBLISHED_VERSIONS * footprint.publication_bytes(policy, config)


def _tokens(config: RunConfig) -> int:
    """Padded tokens of a rank's largest forward pass: a micro-batch, or one prompt's rows where they exceed it."""
    rows = 2 if config.learner.loss.on_pairs else config.sampling.completions_per_prompt
    item = rows * (config.prompts.max_prompt_tokens + config.sampling.max_new_tokens)
    share = -(-config.replay.prompts_per_update // config.learner.ranks)
    return max(item, min(config.learner.micro_batch_tokens, share * item))


def _fits(name: str, text: str, *, sure: float, likely: float, total: float | None, remedy: str) -> Finding:
    if total is None:
        return ok(name, f"{text} (no GPU here to compare with)")
    text += f"; {size(total)} is there"
    if sure > total:
        return error(name, text, remedy)
    if likely > NEARLY_ALL * total and likely > sure:
        return warning(name, text, remedy)
    return ok(name, text)
