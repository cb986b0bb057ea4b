"""Checks of a run against a machine: placement, memory, disk, keys. Pure: every fact is an argument."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from actors.errors import UsageError
from actors.judges.config import HttpJudgeConfig
from actors.records import TRANSPORTS
from launch.cluster import placement
from launch.cluster.placement import GENERATOR, JUDGE, RANK, REFERENCE, Node
from launch.doctor import footprint
from launch.doctor.findings import Finding, from_exception, graded
from launch.doctor.footprint import Pass, size
from launch.doctor.machine import Gpu, Memory
from launch.doctor.model_facts import ModelFacts
from launch.settings.run import ClusterConfig, RunConfig
from learner.config import TrainerConfig

VOCABULARY_STEP = 64
"""vLLM pads the vocabulary to a multiple of this before it splits it."""
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
"""Head sizes of vLLM's attention on CPU."""
NEARLY_ALL = 0.9
"""Share of a memory above which an estimate leaves too little for everything that it does not count."""
OTHER_DIRECTORY = "choose another directory with --output DIR or output=DIR"


@dataclass(frozen=True, slots=True)
class Models:
    """Sizes of a run's models."""

    policy: ModelFacts
    reference: ModelFacts | None
    """None if it is not on this machine, or the policy's adapters are left out for it. Equals `policy` if the run sets
    no reference."""
    judge_bytes: float = 0.0  # bytes of weights in one judge actor


def check_placement(config: RunConfig, cpus: int | None, gpus: int) -> Finding:
    """Compare the actors' reservations with a Ray started on one node; `cpus` is None if its cores are not known."""
    needed = placement.resources_needed(placement.run_actors(config))
    hosts = {name: 1.0 for name in needed if name.startswith("node:")}  # Ray's own, whose address is known only then
    cores = config.cluster.num_cpus or (math.ceil(needed["CPU"]) if cpus is None else cpus)
    node = Node(float(cores), gpus, hosts)
    have = {"CPU": node.cpus, "GPU": float(node.gpus)}
    for name in [name for name in needed if name not in have and name not in hosts]:
        return from_exception("placement", UsageError(placement.too_little(name, needed[name], 0.0)))
    counts = {"generator": config.generators.count, "learner rank": config.learner.ranks, "judge": config.judging.count}
    counts |= {REFERENCE: config.reference.count} if config.reference.count else {}
    actors = ", ".join(f"{count} {actor}{'' if count == 1 else 's'}" for actor, count in counts.items())
    known = {what: "" if what == "CPU" and cpus is None else f" of {have[what]:g}" for what in have}
    amounts = ", ".join(f"{needed[what]:g}{known[what]} {what}s" for what in have if needed[what] or have[what])
    text = f"{actors}: {amounts}"
    if any(needed[what] > have[what] for what in have):
        larger = "join a larger cluster" if cpus is not None else "describe all nodes as one with --gpus"
        remedy = f"lower generators.count, learner.ranks, judging.count or their shares, or {larger}"
        if needed["CPU"] > have["CPU"]:
            remedy += "; cluster.num_cpus oversubscribes cores"
        return Finding("placement", "error", text, remedy)
    try:
        shared = placement.describe(placement.plan(config, [node]))
    except UsageError as problem:
        return from_exception("placement", problem)
    return graded("placement", "; ".join(filter(None, (text, shared))))


def check_ranks(learner: TrainerConfig, cluster: ClusterConfig, cpus: int, gpus: int) -> Finding:
    """Compare what a stage's ranks reserve with a Ray started on this machine."""
    needed = placement.resources_needed(placement.rank_actors(learner))
    have = {"CPU": float(cluster.num_cpus or cpus), "GPU": float(gpus)}
    text = f"learner.ranks {learner.ranks}: " + ", ".join(
        f"{needed[what]:g} of {have[what]:g} {what}s" for what in have if needed.get(what)
    )
    fatal = any(needed.get(what, 0.0) > have[what] for what in have)
    remedy = "lower learner.ranks, learner.cpus_per_rank or learner.gpus_per_rank, or join a larger cluster"
    return graded("placement", text, remedy, fatal=fatal)


def check_cache(config: RunConfig, policy: ModelFacts) -> Finding:
    """Check that the KV cache of an engine on CPU holds the longest sequence."""
    longest, cache = footprint.longest_sequence_bytes(policy, config), config.generators.kv_cache_mib
    text = f"{policy.parameters / 1e6:,.1f}M parameters, {size(longest)} of KV cache for the longest sequence"
    fatal = config.learner.gpus_per_rank == 0 and longest > cache << 20
    if fatal:
        text += f", more than generators.kv_cache_mib {cache}"
    remedy = f"set generators.kv_cache_mib to {-(-longest >> 20)} or more, or lower generators.max_model_len"
    return graded("policy", text, remedy, fatal=fatal)


def check_tensor_parallel(config: RunConfig, policy: ModelFacts) -> Iterator[Finding]:
    """Check that vLLM can split the policy over the workers of an engine; silent without tensor parallelism."""
    size = config.generators.tensor_parallel_size
    if size == 1:
        return
    split = {
        "query heads": policy.heads,
        "rows of the padded vocabulary": -(-policy.vocabulary // VOCABULARY_STEP) * VOCABULARY_STEP,
    }
    split["hidden units of the MLP"] = policy.intermediate
    wrong = [f"{count:,} {what}" for what, count in split.items() if count % size]
    if policy.kv_heads % size and size % policy.kv_heads:
        wrong.append(f"{policy.kv_heads} key-value heads")
    text = f"generators.tensor_parallel_size {size}"
    fits = [other for other in range(1, size) if not any(count % other for count in split.values())]
    remedy = f"set generators.tensor_parallel_size to {fits[-1] if fits else 1}"
    text += f" does not divide {', '.join(wrong)}" if wrong else " divides heads, vocabulary and MLP"
    yield graded("tensor parallel", text, remedy, fatal=bool(wrong))


def check_sequence_parallel(config: RunConfig, policy: ModelFacts) -> Iterator[Finding]:
    """Check that ranks can split the policy's sequences, and report the size of their exchange, if they do."""
    split, ranks = config.learner.sequence_parallel, config.learner.ranks
    if split == 1:
        return
    fits = [other for other in range(1, split) if not policy.heads % other and not ranks % other]
    remedy = f"set learner.sequence_parallel to {fits[-1]}"
    if policy.heads % split:
        text = f"learner.sequence_parallel {split} does not divide {policy.heads} attention heads"
    else:
        sent = size(footprint.exchanged_bytes(policy, config.learner, largest_pass(config)))
        text = f"{split} ranks split a sequence; each sends up to {sent} per layer, forward and again backward"
    yield graded("sequence parallel", text, remedy, fatal=policy.heads % split > 0)


def check_attention(config: RunConfig, policy: ModelFacts) -> Iterator[Finding]:
    """Report a head size that vLLM's attention on CPU does not have."""
    if config.learner.gpus_per_rank == 0 and policy.head_size not in CPU_HEAD_SIZES:
        sizes = ", ".join(map(str, CPU_HEAD_SIZES))
        text = f"heads of {policy.head_size} dimensions, and vLLM's attention on CPU has those of {sizes}"
        yield graded("attention", text, "use another model, or generators on GPUs (learner.gpus_per_rank)", fatal=True)


def check_gpu_memory(config: RunConfig, models: Models, gpus: Sequence[Gpu]) -> Iterator[Finding]:
    """Compare each role's memory with the smallest of `gpus`, and those that share one with all of it.

    Without any GPU reports the estimates alone.
    """
    if config.learner.gpus_per_rank == 0:
        return
    card = min((gpu.total for gpu in gpus), default=None)
    roles = _gpu_roles(config, models, card)
    for role in roles.values():
        yield _compared(role.name, role.text, role.remedy, role.sure, role.likely, role.limit)
    for together in _sharing(config, len(gpus)):
        yield _shared_gpu([roles[role] for role in together if role in roles], card)


@dataclass(frozen=True, slots=True, kw_only=True)
class _GpuRole:
    """Memory of one role's process on its GPU (bytes)."""

    role: str
    name: str  # of the finding
    text: str
    remedy: str
    sure: float  # what it needs at least
    likely: float = 0.0  # what it needs besides by estimate
    taken: float  # what it keeps from others: at least `sure`
    limit: float | None  # what it may use; None if no GPU is known


def _gpu_roles(config: RunConfig, models: Models, card: int | None) -> dict[str, _GpuRole]:
    """Estimate each role's memory on a GPU with `card` bytes."""
    learner, active = _learner_memory(config, models)[0], _activations(config, models)
    engine, share = footprint.generator_memory(models.policy, config), config.generators.gpu_memory_share
    budget = None if card is None else card * share
    roles = {
        RANK: _GpuRole(
            role=RANK,
            name="learner GPU",
            text=f"a rank needs {size(learner)} and about {size(active)} of activations and buffers",
            remedy="raise learner.ranks or learner.zero_stage, set learner.gradient_checkpointing, "
            "learner.offload_optimizer or learner.offload_reference, or lower learner.micro_batch_tokens",
            sure=learner,
            likely=active,
            taken=learner,
            limit=None if card is None else card * config.learner.gpus_per_rank,
        ),
        GENERATOR: _GpuRole(
            role=GENERATOR,
            name="engine GPU",
            text=f"vLLM takes {share:.0%} of the GPU; weights and the longest sequence need {size(engine)}",
            remedy="raise generators.tensor_parallel_size or generators.gpu_memory_utilization, or lower "
            "generators.max_model_len",
            sure=engine,
            taken=engine if budget is None else budget,
            limit=budget,
        ),
    }
    if models.judge_bytes and config.judging.gpus:
        roles[JUDGE] = _GpuRole(
            role=JUDGE,
            name="judge GPU",
            text=f"weights need {size(models.judge_bytes)}",
            remedy="raise judging.judge.gpus, or use a served model (judging.judge.kind served)",
            sure=models.judge_bytes,
            taken=models.judge_bytes,
            limit=None if card is None else card * config.judging.gpus,
        )
    reference = _reference_of_actors(config, models)
    if config.reference.gpus and reference is not None:
        weights, active = footprint.reference_memory(reference, config)
        roles[REFERENCE] = _GpuRole(
            role=REFERENCE,
            name="reference GPU",
            text=f"weights need {size(weights)} and about {size(active)} of activations",
            remedy="raise reference.gpus, or lower reference.micro_batch_tokens",
            sure=weights,
            likely=active,
            taken=weights,
            limit=None if card is None else card * config.reference.gpus,
        )
    return roles


def _shared_gpu(together: Sequence[_GpuRole], card: int | None) -> Finding:
    """Add up the memory of processes that share one GPU of `card` bytes."""
    names = [each.role for each in together]
    parts = []
    for each in {each.role: each for each in together}.values():
        count = names.count(each.role)
        parts.append(f"{placement.counted([each.role] * count)} {size(count * (each.taken + each.likely))}")
    contexts = len(together) * footprint.CONTEXT_BYTES
    text = f"{', '.join(parts)}, {len(together)} CUDA contexts {size(contexts)} on one GPU"
    remedy = (
        "lower generators.gpu_memory_utilization or learner.micro_batch_tokens, set learner.offload_optimizer with "
        "learner.zero_stage 3, or give a role its own GPU"
    )
    likely = sum(each.likely for each in together) + contexts
    return _compared("shared GPU", text, remedy, sum(each.taken for each in together), likely, card)


def _sharing(config: RunConfig, gpus: int) -> list[tuple[str, ...]]:
    """Return each different set of roles that share a GPU, on a machine with room for the run."""
    actors = placement.run_actors(config)
    needed = placement.resources_needed(actors)
    actors = [replace(actor, labels={}) for actor in actors]  # wherever that node is
    node = Node(needed["CPU"], max(gpus, sum(math.ceil(actor.gpus) for actor in actors)), needed)
    cards: dict[int, list[str]] = {}
    for place in placement.place(actors, [node]):
        for number in place.cards:
            cards.setdefault(number, []).append(place.actor.role)
    return sorted({tuple(roles) for roles in cards.values() if len(roles) > 1})


def _compared(name: str, text: str, remedy: str, sure: float, likely: float, limit: float | None) -> Finding:
    if limit is None:
        return graded(name, f"{text} (no GPU here to compare with)")
    doubtful = likely > 0.0 and sure + likely > NEARLY_ALL * limit
    return graded(name, f"{text}, of {size(limit)}", remedy, fatal=sure > limit, doubtful=doubtful)


def check_memory(config: RunConfig, models: Models, memory: Memory) -> Finding:
    """Compare the host memory of all actors, the object store and publications with this machine's."""
    least, total, text = estimated_memory(config, models)
    text += f", of {size(memory.total)} with {size(memory.free)} free"
    remedy = "end other programs, lower generators.count, generators.kv_cache_mib or learner.ranks, or shrink the model"
    return graded("memory", text, remedy, fatal=least > memory.total, doubtful=total > memory.free)


def estimated_memory(config: RunConfig, models: Models) -> tuple[float, float, str]:
    """Return the host memory that a run takes at least, that it is likely to take (bytes), and both in words."""
    sure, on_gpu = host_memory(config, models), config.learner.gpus_per_rank > 0
    likely = sure | {
        "activations": 0.0 if on_gpu else config.learner.ranks * _activations(config, models),
        "object store": float(config.cluster.object_store_mib << 20),
        "publications": float(footprint.kept_on_host(models.policy, config)),
    }
    processes = config.generators.count + config.learner.ranks + config.judging.count + config.reference.count
    processes += 1  # the driver
    total = sum(likely.values()) + processes * footprint.PROCESS_BYTES
    roles = ", ".join(f"{name} {size(need)}" for name, need in likely.items() if need)
    return sum(sure.values()), total, f"{roles}, {processes} processes: about {size(total)}"


def host_memory(config: RunConfig, models: Models) -> dict[str, float]:
    """Estimate the least host memory of each role (bytes), summed over its actors."""
    on_gpu, (device, host) = config.learner.gpus_per_rank > 0, _learner_memory(config, models)
    loading = footprint.loading_bytes(models.policy, _held_reference(config, models), config.learner)
    engine = 0.0 if on_gpu else footprint.generator_memory(models.policy, config)
    needed = {
        "learner": max(loading, config.learner.ranks * (host if on_gpu else device)),
        "generators": config.generators.count * engine,
        "judges": 0.0 if config.judging.gpus else config.judging.count * models.judge_bytes,
    }
    reference = _reference_of_actors(config, models)
    if not config.reference.gpus and reference is not None:
        weights = footprint.reference_memory(reference, config)[0]
        needed["reference actors"] = config.reference.count * weights
    return needed


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
    averaged = footprint.averaged_parameters(policy, config)
    one = footprint.checkpoint_bytes(policy, config.learner, averaged=averaged)
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


def check_network(config: RunConfig, *, elsewhere: bool) -> Finding:
    """List the sorts of ports that other machines reach; none unless the run listens `elsewhere` than on loopback."""
    if not elsewhere:
        return graded("network", "everything that the run opens listens on loopback alone")
    torch = "NCCL and gloo" if config.learner.gpus_per_rank else "gloo"
    sorts = ["Ray's processes and actors", "the learner's meeting point", f"{torch} of learner and engines"]
    if TRANSPORTS[config.publication.transport].broadcast:
        sorts.append(f"weight sync by {config.publication.transport}")
    text = f"other machines reach {', '.join(sorts)}; all but Ray's ask for no token"
    remedy = "let a firewall admit the cluster's hosts alone, as in SECURITY.md under What listens where"
    return graded("network", text, remedy, doubtful=True)


def http_judges(config: RunConfig) -> list[HttpJudgeConfig]:
    return [judge for judge in config.judging.judges if isinstance(judge, HttpJudgeConfig)]


def published_bytes(config: RunConfig, policy: ModelFacts) -> int:
    """Return the bytes that publications keep in /dev/shm."""
    versions = footprint.PUBLISHED_VERSIONS if TRANSPORTS[config.publication.transport].in_files else 0
    return versions * footprint.publication_bytes(policy, config)


def _learner_memory(config: RunConfig, models: Models) -> tuple[float, float]:
    average = footprint.has_average(config)
    reference = _held_reference(config, models)
    device, host = footprint.learner_memory(
        models.policy, reference, config.learner, average=average, offload_reference=config.learner.offload_reference
    )
    kept = footprint.kept_on_gpu(models.policy, config) + footprint.average_bytes(models.policy, config)
    return device + kept, host


def _held_reference(config: RunConfig, models: Models) -> ModelFacts | None:
    """Return the reference if the learner holds it."""
    return None if config.reference.count else models.reference


def _reference_of_actors(config: RunConfig, models: Models) -> ModelFacts | None:
    """Return the reference if actors of its own hold it; adapters have none of their own at the learner."""
    if config.reference.count == 0:
        return None
    return models.policy if config.model.reference is None else models.reference


def _activations(config: RunConfig, models: Models) -> float:
    return footprint.activation_bytes(models.policy, config.learner, largest_pass(config), config.model.head_dtype)


def largest_pass(config: RunConfig) -> Pass:
    """Return a rank's largest forward pass: a micro-batch, or one prompt's completions if more, or its part of either.

    If prompts are not shared, each completion has its own, and no mask.
    """
    learner, prompt, completion = config.learner, config.prompts.max_prompt_tokens, config.sampling.max_new_tokens
    rows, split = 2 if learner.loss.on_pairs else config.sampling.completions_per_prompt, learner.sequence_parallel
    share = -(-config.replay.prompts_per_update // (learner.ranks // split))
    item = prompt + rows * completion if learner.share_prompts else rows * (prompt + completion)
    tokens = max(item, min(learner.pass_tokens, share * item))
    return footprint.pass_of(prompt, completion, rows, tokens, split) if learner.share_prompts else Pass(tokens)
