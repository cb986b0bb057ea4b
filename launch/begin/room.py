"""Fits a run to a machine: settings from the roomiest to the most frugal, of which the doctor's checks choose one.

Must not estimate anything itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from actors.errors import UsageError
from launch.begin.lines import Line, tree_of
from launch.begin.place import CORES_PER_GPU, Machine
from launch.doctor.checkup import static_checks
from launch.doctor.findings import Finding
from launch.doctor.footprint import kv_bytes_per_token
from launch.doctor.model_facts import ModelFacts
from launch.settings.run import RunConfig

CACHE_STEP_MIB = 64
MOST_CACHE_MIB = 1024
"""Largest cache of an engine on CPU, where more sequences at a time are hardly faster."""
SEQUENCES = 64
"""Sequences of full length that an engine's cache on CPU should hold."""
FEW_SEQUENCES = 16  # where memory is short
ROOM = ("memory", "/dev/shm", "placement", "learner GPU", "engine GPU", "judge GPU", "shared GPU")
"""Checks of the doctor that more frugal settings can pass."""
SPLIT = "weights, gradients and optimizer split over the ranks: the least GPU memory"
UNKNOWN_SIZE = "the model's size could not be read, and this takes the least GPU memory"
SMALL_MODEL = 1_000_000_000
"""Parameters below which a model takes a higher learning rate."""


@dataclass(frozen=True, slots=True)
class Fitted:
    """The settings that were chosen, and what the doctor's checks have against the best of them."""

    lines: tuple[Line, ...]
    left: tuple[Finding, ...] = ()


def fit(lines: Sequence[Line], machine: Machine, policy: ModelFacts | None, *, loads_judge: bool) -> Fitted:
    """Return the first settings that pass the doctor's checks of this machine, or those with the fewest errors.

    Args:
        lines: everything that does not depend on the machine.
        loads_judge: whether judges hold a model of their own, which takes a share of a GPU.
    """
    best: Fitted | None = None
    for rung in _rungs(lines, machine, policy, loads_judge):
        config = _config([*lines, *rung])
        found = static_checks(config, list(machine.gpus), here=machine.asked is None)
        bad = tuple(each for each in found if each.level != "ok")
        if best is None or _weight(bad) <= _weight(best.left):  # of equal ones the most frugal
            best = Fitted(tuple(rung), bad)
        if not any(_weight(bad)):
            break
    assert best is not None
    return best


def learning_rate(policy: ModelFacts | None, *, gpus: bool) -> Line:
    """Return a learning rate for a model's size; presets train with these."""
    if policy is not None and policy.parameters < SMALL_MODEL and not gpus:
        return Line("learner.optimizer.lr", 3e-5, "high, as in the preset chat: a small model and few updates")
    if policy is not None and policy.parameters < SMALL_MODEL:
        return Line("learner.optimizer.lr", 5e-6, "a model below a billion parameters takes more than a larger one")
    return Line("learner.optimizer.lr", 1e-6, "usual for all weights of a billion parameters and more")


def _config(lines: Sequence[Line]) -> RunConfig:
    """Return the run that lines configure. Raises UsageError, without the values, if it is refused."""
    try:
        return RunConfig.model_validate(tree_of(lines))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        said = first["msg"].removeprefix("Value error, ")
        raise UsageError(f"{key}: {said}; change what the command was given") from None


def _weight(findings: Sequence[Finding]) -> tuple[int, int]:
    levels = [finding.level for finding in findings if finding.name in ROOM]
    return levels.count("error"), levels.count("warning")


def _rungs(
    lines: Sequence[Line], machine: Machine, policy: ModelFacts | None, loads_judge: bool
) -> Iterator[list[Line]]:
    if machine.gpus:
        yield from _on_gpus(machine, loads_judge, known=policy is not None)
        return
    config = _config(lines)
    base = [
        *_cores(machine),
        *_cache(config, policy, SEQUENCES),
        Line("generators.max_running_prompts", 16, "few, on CPU"),
    ]
    yield base
    for tokens in (4096, 2048):
        yield [*base, _micro_batch(tokens)]
    frugal = [*base, *_cache(config, policy, FEW_SEQUENCES), _micro_batch(1024), _checkpointing()]
    yield frugal
    yield [*frugal, *_adapters()]


def _cores(machine: Machine) -> list[Line]:
    """Share out the cores of a machine without GPUs between one generator and one learner rank."""
    if machine.cores == 1:
        return [Line("cluster.num_cpus", 2, "one core for generator and learner, which take turns")]
    if machine.cores < 4:
        return []
    half = machine.cores // 2
    why = f"half of the {machine.cores} cores"
    return [Line("generators.cpus", half, why), Line("learner.cpus_per_rank", machine.cores - half, "the other half")]


def _cache(config: RunConfig, policy: ModelFacts | None, sequences: int) -> list[Line]:
    longest = config.generators.max_model_len
    if policy is None:
        return []
    one = kv_bytes_per_token(policy, config.generators.dtype) * longest
    wanted = -(-sequences * one // (CACHE_STEP_MIB << 20)) * CACHE_STEP_MIB
    least = -(-2 * one // (CACHE_STEP_MIB << 20)) * CACHE_STEP_MIB  # an opponent's model has a cache as well
    mib = max(least, min(wanted, MOST_CACHE_MIB))
    held = (mib << 20) // one
    return [Line("generators.kv_cache_mib", mib, f"keys and values of {held} sequences of {longest} tokens")]


def _micro_batch(tokens: int) -> Line:
    return Line("learner.micro_batch_tokens", tokens, "smaller passes, which take less memory")


def _checkpointing() -> Line:
    return Line("learner.gradient_checkpointing", True, "activations are computed again: less memory, more time")


def _adapters() -> list[Line]:
    return [
        Line("learner.lora.rank", 16, "adapters: all weights with their optimizer do not fit here"),
        Line("learner.optimizer.lr", 1e-5, "adapters take a higher rate than all weights"),
    ]


def _on_gpus(machine: Machine, loads_judge: bool, *, known: bool) -> Iterator[list[Line]]:
    """Yield settings for GPUs: one that all share, or the learner's apart from the generators'.

    `known`: whether the model's size could be read. If not, the first choice is a frugal one.
    """
    if len(machine.gpus) == 1:
        for engine, rank in ((0.4, 0.6), (0.3, 0.7)):
            base = _one_gpu(machine, engine, rank, loads_judge)
            yield from _frugal(base, 1) if known else [_split(base, UNKNOWN_SIZE)]
        base = _one_gpu(machine, 0.7, 0.3, loads_judge)
        yield [*base, *_stage_3(), _micro_batch(2048), _checkpointing(), *_adapters()]
        whole = Line("learner.offload_weights", True, "the frozen weights are in host memory")
        yield [*base, *_stage_3(), whole, _micro_batch(2048), _checkpointing(), *_adapters()]
        return
    for parallel in (1, 2, 4):
        base = _many_gpus(machine, loads_judge, parallel)
        if base:
            yield from _frugal(base, 2) if known else [_split(base, UNKNOWN_SIZE)]


def _frugal(base: Sequence[Line], stage: int) -> Iterator[list[Line]]:
    zero = Line("learner.zero_stage", stage, "what fits without splitting or moving the weights")
    yield [*base, zero]
    yield [*base, zero, _micro_batch(4096), _checkpointing()]
    yield _split(base, SPLIT)
    yield [*base, *_stage_3(), _micro_batch(4096), _checkpointing()]
    yield [*_split(base, SPLIT), *_adapters()]


def _split(base: Sequence[Line], why: str) -> list[Line]:
    return [*base, Line("learner.zero_stage", 3, why), _micro_batch(4096), _checkpointing()]


def _stage_3() -> list[Line]:
    return [
        Line("learner.zero_stage", 3, SPLIT),
        Line("learner.offload_optimizer", True, "the optimizer is in host memory, where it fits"),
    ]


def _one_gpu(machine: Machine, engine: float, rank: float, loads_judge: bool) -> list[Line]:
    judge = 0.15 if loads_judge else 0.0
    lines = [
        Line("generators.gpus", engine, "share of the one GPU; the rest is the learner's"),
        Line("learner.gpus_per_rank", round(rank - judge, 2), "its share of the GPU"),
        *_threads(machine, 2),
    ]
    if loads_judge:
        lines.append(Line("judging.judge.gpus", judge, "its share of the GPU"))
    return lines


def _many_gpus(machine: Machine, loads_judge: bool, parallel: int) -> list[Line]:
    """Return who gets which of several GPUs; empty if there are too few for engines of `parallel` each."""
    count = len(machine.gpus)
    own = 1.0 if loads_judge and count > 2 else 0.2 if loads_judge else 0.0
    left = count - (own == 1.0)
    engines = left // 2 // parallel
    ranks = left - engines * parallel
    if not engines:
        return []
    share = 0.8 if own == 0.2 else 1
    lines = [
        Line("generators.count", engines, f"{engines * parallel} of the {count} GPUs generate"),
        Line("learner.ranks", ranks, f"{ranks} train"),
        Line("learner.gpus_per_rank", share, "" if share == 1 else "the judge has the rest"),
        *_threads(machine, engines + ranks),
        Line("publication.transport", "nccl", "weights go from GPU to GPU"),
    ]
    if parallel > 1:
        why = "an engine's weights do not fit on one GPU"
        lines.insert(1, Line("generators.tensor_parallel_size", parallel, why))
    return [*lines, Line("judging.judge.gpus", own, "the judge's model")] if loads_judge else lines


def _threads(machine: Machine, actors: int) -> list[Line]:
    if machine.cores < actors:
        return [Line("cluster.num_cpus", actors, "fewer cores than processes, which take turns")]
    each = min(4, machine.cores // actors)
    if each == 1:
        return []
    assumed = "" if machine.asked is None else f", if each GPU has {CORES_PER_GPU}"
    why = f"{each} of the {machine.cores} cores for each process{assumed}"
    return [Line("generators.cpus", each, why), Line("learner.cpus_per_rank", each)]
