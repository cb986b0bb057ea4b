"""`offbeat doctor`: measures the machine, asks every check and prints what they found; and what `train` asks first.

Decisions are in `machine_checks.py` and `run_checks.py`, measurements in `machine.py`. Nothing is downloaded: a hub
name that is not cached is a warning. Imports torch, transformers and Ray only where a check needs them.
"""

from __future__ import annotations

import os
import platform
import tomllib
from collections.abc import Iterator
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich.console import Console

from actors.errors import OffbeatError
from actors.settings import WORLD
from launch.cluster.placement import address_to_join
from launch.doctor import machine, machine_checks, run_checks
from launch.doctor.findings import Finding, as_json, error, exit_code, ok, refusal, show, verdict, warning
from launch.doctor.machine import Gpu
from launch.doctor.model_facts import ModelFacts, is_hub_name, local_directory, read_model
from launch.doctor.run_checks import Models
from launch.output import run_directory as rundir
from launch.settings.run import ClusterConfig, RunConfig

ENDPOINT_SECONDS = 3.0
_HUB_REMEDY = "see that the hub can be reached when the run starts, or give a path"


def run_doctor(config: RunConfig | None, *, json: bool = False) -> int:
    """Prints what every check finds: of the machine, and with `config` of the machine for that run.

    Args:
        config: of `train`.
        json: one JSON object at the end instead of lines as they come.

    Returns:
        The exit code: 1 where there is an error, else 0.
    """
    console = Console(highlight=False)
    findings = []
    for finding in _all(config):
        findings.append(finding)
        if not json:
            show(finding, console)
    if json:
        print(as_json(findings))
    else:
        console.print(verdict(findings), style="bold")
    return exit_code(findings)


def fatal_checks(config: RunConfig) -> list[Finding]:
    """What stands against a run on this machine, as far as it can be told at once; empty where nothing does.

    Reads files' headers and counters of the system only: no torch, no Ray, no network, no GPU is touched.
    """
    gpus = machine.visible_gpus()
    models, found = _models(config)
    found += [*_packages(config), *_resources(config, models, gpus, []), *_keys(config)]
    return [finding for finding in found if finding.level == "error"]


def _all(config: RunConfig | None) -> Iterator[Finding]:
    gpus = machine.gpus()
    yield from _packages(config)
    yield machine_checks.check_lock(_lock(), machine.installed_version)
    yield machine_checks.check_machine_memory(machine.cpus(), machine.memory())
    yield from machine_checks.check_gpus(gpus, _torch_cuda() if gpus else None, machine.driver_cuda())
    yield _pair(len(gpus))
    yield from machine_checks.check_left_behind(
        [(path, machine.space_taken(path)) for path in rundir.left_behind(rundir.SHARED_MEMORY)]
    )
    if config is None:
        # What `train` starts Ray with, where no configuration says otherwise.
        yield machine_checks.check_store(ClusterConfig().object_store_mib, machine.space(rundir.SHARED_MEMORY))
        return
    models, found = _models(config)
    yield from found
    yield from _resources(config, models, machine.visible_gpus(), gpus)
    yield from _cluster(config)
    yield from _keys(config)
    yield from _endpoints(config)
    yield from _functions(config)
    yield from _model_and_prompts(config)


# ---------------------------------------------------------------- the machine


def _packages(config: RunConfig | None) -> Iterator[Finding]:
    on_gpus = None if config is None else config.learner.gpus_per_rank > 0
    requires, python = _own_requirements()
    if find_spec("packaging") is None:
        yield error("requirements", "not installed: packaging", "`make install`, or docs/install.md for GPUs")
    else:
        yield machine_checks.check_python(platform.python_version(), python)
        yield from machine_checks.check_requirements(requires, machine.installed_version, platform.python_version())
    yield machine_checks.check_engine(machine.installed_version, on_gpus=on_gpus)


def _own_requirements() -> tuple[list[str], str | None]:
    """Offbeat's requirements and its Python: of the source tree, else of the installation."""
    root = machine.source_tree()
    if root is not None:
        project: dict[str, Any] = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        return project["dependencies"], project["requires-python"]
    try:
        return metadata.requires("offbeat") or [], metadata.metadata("offbeat")["Requires-Python"]
    except metadata.PackageNotFoundError:
        return [], None


def _lock() -> dict[str, str] | None:
    root = machine.source_tree()
    path = None if root is None else root / "requirements-cpu.lock"
    return machine_checks.parse_lock(path.read_text(encoding="utf-8")) if path is not None and path.is_file() else None


def _torch_cuda() -> str | None:
    """CUDA that torch was built with; None for a CPU build, or without torch."""
    if machine.installed_version("torch") is None:
        return None
    import torch

    return torch.version.cuda


def _pair(gpus: int) -> Finding:
    problem, seconds = None, None
    if gpus >= 2 and _torch_cuda() is not None:
        from launch.doctor.allreduce import problem_between_two

        problem, seconds = problem_between_two()
    return machine_checks.check_pair(gpus, problem, seconds)


# ---------------------------------------------------------------- what a run takes


def _models(config: RunConfig) -> tuple[Models, list[Finding]]:
    """Sizes of the run's models, and what stands against those that have none."""
    found: list[Finding] = []

    def facts(name: str, setting: str, path: str) -> ModelFacts | None:
        model, finding = _model(name, setting, path)
        found.extend([] if finding is None else [finding])
        return model

    policy = facts("model", "model.path", config.model.path)
    reference = (
        policy if config.model.reference is None else facts("reference", "model.reference", config.model.reference)
    )
    judges = tuple(
        (model, judge.dtype)
        for judge in config.judging.judges
        if judge.kind in ("reward_model", "preference_model")
        if (model := facts("judge", "judging.judge.path", judge.path)) is not None
    )
    return Models(policy, reference, judges), found


def _model(name: str, setting: str, path: str) -> tuple[ModelFacts | None, Finding | None]:
    """The size of one model; or None and why."""
    try:
        facts = read_model(path)
    except ValueError as problem:
        return None, error(name, f"{setting}: {problem}", "give the directory of a Hugging Face model")
    if facts is not None:
        return facts, None
    if is_hub_name(path):
        return None, warning(name, f"{setting} {path} is not on this machine: it will be downloaded", _HUB_REMEDY)
    return None, error(name, f"{setting} {path} does not exist (from {Path.cwd()})", "give an existing directory")


def _resources(config: RunConfig, models: Models, count: int, gpus: list[Gpu]) -> Iterator[Finding]:
    """Everything that counts cores and bytes. `count` GPUs can be used here; `gpus` says more, where it was asked."""
    yield from run_checks.check_model_size(config, models)
    yield from run_checks.check_gpu_memory(config, models, gpus)
    yield from run_checks.check_capability(config, gpus)
    if address_to_join(config.cluster) is None:
        # On a cluster the hosts of the run are not this one.
        yield run_checks.check_placement(config, machine.cpus(), count)
        yield from run_checks.check_memory(config, models, machine.memory())
        yield run_checks.check_shared_memory(config, models, machine.space(rundir.SHARED_MEMORY))
        yield from run_checks.check_object_store(config, models)
        port = config.learner.port
        yield from run_checks.check_port(port, port is None or machine.port_free(port))
    yield run_checks.check_disk(config, models, machine.folder(config.directory))


def _cluster(config: RunConfig) -> Iterator[Finding]:
    """The run's reservations against the Ray cluster that it would join."""
    address = address_to_join(config.cluster)
    if address is None:
        return
    import ray

    from launch.cluster import wiring

    try:
        with wiring.ray_session(config.cluster):
            wiring.check_resources(config)
            have = ray.cluster_resources()
            nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    except OffbeatError as refused:
        yield refusal("cluster", refused)
    else:
        amounts = f"{have.get('CPU', 0):g} CPUs, {have.get('GPU', 0):g} GPUs"
        hosts = f"{nodes} host{'' if nodes == 1 else 's'}"
        yield ok("cluster", f"{address}: {hosts}, {amounts}; the run can be placed")


# ---------------------------------------------------------------- judge, model and prompts


def _keys(config: RunConfig) -> Iterator[Finding]:
    elsewhere = address_to_join(config.cluster) is not None
    yield from run_checks.check_keys(config, os.environ, elsewhere=elsewhere)


def _endpoints(config: RunConfig) -> Iterator[Finding]:
    for url in dict.fromkeys(judge.url for judge in run_checks.http_judges(config)):
        host, port = run_checks.host_and_port(url)
        yield run_checks.check_endpoint(url, machine.connection_problem(host, port, ENDPOINT_SECONDS))


def _functions(config: RunConfig) -> Iterator[Finding]:
    """Judges that are Python functions, imported as the judge actor will."""
    from actors.judges.function import load_function

    for judge in config.judging.judges:
        if judge.kind != "function":
            continue
        try:
            load_function(judge.path)
        except OffbeatError as refused:
            yield refusal("judge", refused)
        else:
            yield ok("judge", f"{judge.path} can be imported")


def _model_and_prompts(config: RunConfig) -> Iterator[Finding]:
    """Reads model settings, tokenizer and every prompt as `train` does."""
    local = _with_local_models(config)
    if local is None:  # told with the model's size
        yield from _prompts(config, None)
        return
    from launch.run.plugins import plugin_of
    from launch.run.preflight import check_model

    try:
        check_model(local, plugin_of(local))
    except OffbeatError as refused:
        yield refusal("model", refused)
    yield from _tokenizer_and_prompts(local)


def _tokenizer_and_prompts(config: RunConfig) -> Iterator[Finding]:
    from actors.data.prompts import load_tokenizer

    path = config.model.tokenizer or config.model.path
    try:
        tokenizer = _world_tokenizer() if path == WORLD else load_tokenizer(path)
    except OffbeatError as refused:
        yield refusal("tokenizer", refused)
        return
    template = "a chat template" if tokenizer.chat_template else "no chat template"
    text = f"{len(tokenizer):,} tokens, end of sequence {tokenizer.eos_token!r}, {template}"
    model = read_model(config.model.path)
    if model is not None and len(tokenizer) > model.vocabulary:
        yield error(
            "tokenizer",
            f"{text}: more than the {model.vocabulary:,} of the model",
            "set model.tokenizer to the model's own, or leave it out",
        )
    else:
        yield ok("tokenizer", text)
    yield from _prompts(config, tokenizer)


def _prompts(config: RunConfig, tokenizer: Any) -> Iterator[Finding]:
    """Every prompt as `train` reads it; without a tokenizer the first row only."""
    from actors.data.prompts import PromptSource
    from actors.data.rows import SUFFIXES, read_rows

    source = config.prompts.source
    if source != WORLD and is_hub_name(source) and not source.endswith(SUFFIXES):
        yield warning("prompts", f"prompts.source {source} is not on this machine: it will be downloaded", _HUB_REMEDY)
        return
    try:
        if tokenizer is None:
            next(iter(read_rows(config.prompts)), None)
            yield ok("prompts", f"{source} can be read; not tokenised, for want of a model")
            return
        prompts = PromptSource(config.prompts, tokenizer)
    except OffbeatError as refused:
        yield refusal("prompts", refused)
        return
    text = f"{len(prompts):,} in {source}"
    if prompts.skipped:
        remedy = f"correct them; the first: {prompts.skipped[0]}"
        yield warning("prompts", f"{text}, {len(prompts.skipped):,} malformed rows left out", remedy)
    else:
        yield ok("prompts", text)


def _world_tokenizer() -> Any:
    from actors import world

    return world.tokenizer()


def _with_local_models(config: RunConfig) -> RunConfig | None:
    """`config` with every hub name replaced by its cached copy; None where a model is not on this machine."""
    given = {name: getattr(config.model, name) for name in ("path", "reference", "tokenizer")}
    here: dict[str, str | None] = {}
    for name, path in given.items():
        if path is None or path == WORLD:
            here[name] = path
            continue
        directory = local_directory(path)
        if directory is None:
            return None
        here[name] = str(directory)
    return config.model_copy(update={"model": config.model.model_copy(update=here)})
