"""Run the checks of `offbeat doctor`, and the blocking ones for `offbeat train`.

Measures the machine and reads model and prompt files. Must not download anything: a hub name that is not cached is a
warning. Imports torch, transformers and Ray only inside the checks that need them.
"""

import os
import platform
from collections.abc import Callable, Iterator
from functools import partial
from importlib import metadata
from pathlib import Path
from shutil import disk_usage
from typing import Any

from actors.errors import OffbeatError
from actors.settings import WORLD
from launch.cluster.placement import address_to_join
from launch.doctor import machine, run_checks
from launch.doctor.findings import Finding, from_exception, graded, report
from launch.doctor.footprint import size
from launch.doctor.machine import Gpu
from launch.doctor.model_facts import ELEMENT_BYTES, ModelFacts, is_hub_name, local_directory, read_model
from launch.doctor.run_checks import Models
from launch.output import run_directory
from launch.settings.run import ClusterConfig, RunConfig

_HUB_REMEDY = "make sure that the hub can be reached when the run starts, or give a path"


def run_doctor(config: RunConfig | None, *, json: bool = False) -> int:
    """Print what every check finds on this machine, and with `config` for that run; return 1 on any error, else 0."""
    return report(_all(config), as_json=json)


def fatal_checks(config: RunConfig) -> list[Finding]:
    """Return the errors that can be found without starting anything; may be empty.

    Reads only file headers and system counters. Must not import torch or Ray, use the network, or call a GPU driver.
    """
    findings = [*_requirements(config), *_static_checks(config, [])]
    return [finding for finding in findings if finding.level == "error"]


def _all(config: RunConfig | None) -> Iterator[Finding]:
    gpus = machine.gpus()
    memory = size(machine.memory().total)
    yield graded("machine", f"{machine.cpus()} cores, {memory} of memory, Python {platform.python_version()}")
    yield from _requirements(config)
    yield from machine.check_gpus(gpus)
    if gpus and machine.installed_version("torch") is not None:
        yield _cuda()
    if config is None:
        yield run_checks.check_shared_memory(ClusterConfig(), 0, disk_usage(run_directory.SHARED_MEMORY).free)
        return
    yield from _static_checks(config, gpus)
    if address := address_to_join(config.cluster):
        yield _attempt("cluster", f"{address}: the run can be placed", partial(_join, config))
    yield from _judges(config)
    yield from _model_and_prompts(config)


def _attempt(name: str, text: str, action: Callable[[], object]) -> Finding:
    """Return `text` as ok if `action` succeeds, else the error that it raised."""
    try:
        action()
    except OffbeatError as exception:
        return from_exception(name, exception)
    return graded(name, text)


def _requirements(config: RunConfig | None) -> Iterator[Finding]:
    requires = metadata.requires("offbeat") if machine.installed_version("offbeat") else None
    on_gpus = None if config is None else config.learner.gpus_per_rank > 0
    return machine.check_requirements(requires, machine.installed_version, on_gpus=on_gpus)


def _cuda() -> Finding:
    """Initialise CUDA in torch, which compares its own version with the driver's."""
    import torch

    try:
        torch.cuda.init()
    except (AssertionError, RuntimeError) as problem:  # AssertionError in a CPU build, which may be intended
        text, cpu_build = f"torch {torch.__version__}: {str(problem).splitlines()[0]}", torch.version.cuda is None
        remedy = machine.INSTALL if cpu_build else "update the NVIDIA driver"
        return graded("cuda", text, remedy, fatal=not cpu_build, doubtful=True)
    return graded("cuda", f"torch {torch.__version__} works with the driver")


def _static_checks(config: RunConfig, gpus: list[Gpu]) -> Iterator[Finding]:
    """Check models, cores, bytes and keys; `gpus` is empty if the driver was not asked."""
    models, findings = _models(config)
    yield from findings
    joins = address_to_join(config.cluster) is not None  # so the run uses other hosts
    published = 0 if models is None else run_checks.published_bytes(config, models.policy)
    if models is not None:
        yield run_checks.check_cache(config, models.policy)
        yield from run_checks.check_gpu_memory(config, models, gpus)
        if not joins:
            yield run_checks.check_memory(config, models, machine.memory())
    if not joins:
        yield run_checks.check_placement(config, machine.cpus(), machine.visible_gpus())
        free = disk_usage(run_directory.SHARED_MEMORY).free
        yield run_checks.check_shared_memory(config.cluster, published, free)
        if (port := config.learner.port) is not None:
            in_use, remedy = not machine.port_free(port), "choose a free port, or leave learner.port unset"
            yield graded("learner.port", f"{port} is {'in use' if in_use else 'free'}", remedy, fatal=in_use)
    folder, writable = machine.nearest_folder(config.directory)
    if writable:
        yield run_checks.check_disk(config, None if models is None else models.policy, folder, disk_usage(folder).free)
    else:
        yield Finding("disk", "error", f"{folder} is not a writable directory", run_checks.OTHER_DIRECTORY)
    yield from run_checks.check_keys(config, os.environ, elsewhere=joins)


def _models(config: RunConfig) -> tuple[Models | None, list[Finding]]:
    """Read the sizes of the run's models; None without the policy's. Report every model that is not here."""
    findings = []

    def facts(name: str, setting: str, path: str) -> ModelFacts | None:
        try:
            model = read_model(path)
        except ValueError as problem:
            findings.append(Finding(name, "error", f"{setting}: {problem}", "give a Hugging Face model's directory"))
            return None
        if model is None and is_hub_name(path):
            text = f"{setting} {path} is not on this machine; it will be downloaded"
            findings.append(Finding(name, "warning", text, _HUB_REMEDY))
        elif model is None:
            text = f"{setting} {path} does not exist (from {Path.cwd()})"
            findings.append(Finding(name, "error", text, "give an existing directory"))
        return model

    policy = facts("model", "model.path", config.model.path)
    other = config.model.reference
    reference = policy if other is None else facts("reference", "model.reference", other)
    judge_bytes = sum(
        ELEMENT_BYTES[judge.dtype] * model.parameters
        for judge in config.judging.judges
        if judge.kind in ("reward_model", "preference_model")
        if (model := facts("judge", "judging.judge.path", judge.path)) is not None
    )
    return None if policy is None else Models(policy, reference, judge_bytes), findings


def _join(config: RunConfig) -> None:
    """Join the run's Ray cluster and compare its resources. Raises OffbeatError if it cannot place the run."""
    from launch.cluster import wiring

    with wiring.ray_session(config.cluster):
        wiring.check_resources(config)


def _judges(config: RunConfig) -> Iterator[Finding]:
    """Connect to the judges' servers; import the judges that are Python functions, as the judge actor will."""
    from actors.judges.function import load_function

    for url in dict.fromkeys(judge.url for judge in run_checks.http_judges(config)):
        problem = machine.connection_problem(url)
        remedy = "start the server before the run, or correct judging.judge.url"
        yield graded("judge server", f"{url}: {problem or 'connected'}", remedy, doubtful=problem is not None)
    for path in [judge.path for judge in config.judging.judges if judge.kind == "function"]:
        yield _attempt("judge", f"{path} can be imported", partial(load_function, path))


def _model_and_prompts(config: RunConfig) -> Iterator[Finding]:
    """Read model settings, tokenizer and every prompt as `train` does."""
    from actors import world
    from actors.data.text import load_tokenizer
    from launch.run.plugins import plugin_of
    from launch.run.preflight import check_model

    tokenizer: Any = None
    local = _with_local_models(config)
    if local is not None:  # otherwise `_models` has reported it
        path = local.model.tokenizer or local.model.path
        yield _attempt("model", f"{local.model.path} fits the run", partial(check_model, local, plugin_of(local)))
        try:
            tokenizer = world.tokenizer() if path == WORLD else load_tokenizer(path)
        except OffbeatError as exception:
            yield from_exception("tokenizer", exception)
        else:
            yield _check_tokenizer(tokenizer, read_model(local.model.path))
    yield from _prompts(config, tokenizer)


def _check_tokenizer(tokenizer: Any, model: ModelFacts | None) -> Finding:
    limit = len(tokenizer) if model is None else model.vocabulary
    template = "a chat template" if tokenizer.chat_template else "no chat template"
    text = f"{len(tokenizer):,} tokens of the model's {limit:,}, end of sequence {tokenizer.eos_token!r}, {template}"
    remedy = "set model.tokenizer to the model's own, or leave it out"
    return graded("tokenizer", text, remedy, fatal=len(tokenizer) > limit)


def _prompts(config: RunConfig, tokenizer: Any) -> Iterator[Finding]:
    """Read every prompt as `train` does; without a tokenizer only the first row."""
    from actors.data.prompts import PromptSource
    from actors.data.rows import SUFFIXES, read_prompt_rows

    source = config.prompts.source
    if source != WORLD and is_hub_name(source) and not source.endswith(SUFFIXES):
        text = f"prompts.source {source} is not on this machine; it will be downloaded"
        yield Finding("prompts", "warning", text, _HUB_REMEDY)
    elif tokenizer is None:
        text = f"{source} can be read; not tokenised without the model"
        yield _attempt("prompts", text, lambda: next(iter(read_prompt_rows(config.prompts)), None))
    else:
        try:
            prompts = PromptSource(config.prompts, tokenizer)
        except OffbeatError as exception:
            yield from_exception("prompts", exception)
            return
        text = f"{len(prompts):,} in {source}, {len(prompts.skipped):,} malformed rows skipped"
        remedy = f"correct them; the first: {prompts.skipped[0]}" if prompts.skipped else ""
        yield graded("prompts", text, remedy, doubtful=bool(prompts.skipped))


def _with_local_models(config: RunConfig) -> RunConfig | None:
    """Replace every hub name by its cached directory; None if a model is not on this machine."""
    paths = config.model.model_dump(include={"path", "reference", "tokenizer"})
    for name, path in paths.items():
        if path not in (None, WORLD):
            directory = local_directory(path)
            if directory is None:
                return None
            paths[name] = str(directory)
    return config.model_copy(update={"model": config.model.model_copy(update=paths)})
