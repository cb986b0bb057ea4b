"""Run the checks of `offbeat doctor`, and the blocking ones for `offbeat train`.

Measures the machine and reads model and prompt files. Must not download anything: a hub name that is not cached is a
warning. Imports torch, transformers and Ray only inside the checks that need them.
"""

import os
import platform
from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from dataclasses import replace
from functools import partial
from importlib import metadata
from pathlib import Path
from shutil import disk_usage
from typing import Any

from actors.data.config import SHIPPED_PROMPTS
from actors.errors import OffbeatError, UsageError
from actors.files import nearest_folder, unwritable
from actors.foreign.model_place import missing_model_remedy
from actors.foreign.text import many
from actors.judges.config import FunctionJudgeConfig, ModelJudgeConfig
from actors.settings import WORLD
from launch.cluster.loopback import keeps_to_loopback
from launch.cluster.placement import address_to_join
from launch.doctor import machine, run_checks
from launch.doctor.findings import Finding, from_exception, graded, report
from launch.doctor.footprint import size
from launch.doctor.machine import Gpu
from launch.doctor.model_facts import (
    ELEMENT_BYTES,
    ModelFacts,
    is_hub_name,
    known_vocabulary,
    local_directory,
    read_model,
)
from launch.doctor.node import described, what
from launch.doctor.run_checks import Models
from launch.output import run_directory
from launch.settings.run import ClusterConfig, RunConfig
from launch.settings.runtime_env import upload_problem
from learner.config import TrainerConfig

LARGEST_LOADED = 500_000_000
"""Parameters of a judge's model that the doctor loads to try it."""
_HUB_REMEDY = "make sure that the hub can be reached when the run starts, or give a path"


def run_doctor(config: RunConfig | None, *, json: bool = False, gpus: str | None = None) -> int:
    """Print what every check finds on this machine, and with `config` for that run; return 1 on any error, else 0.

    With `gpus`, such as 8x80, the machine is a node with these; what can be known here of the run there is checked.
    """
    if gpus is None:
        return report(_all(config), as_json=json)
    node = described(gpus)
    if config is None:
        raise UsageError(f"--gpus {gpus} is the node of a run; give its configuration too")
    if config.learner.gpus_per_rank == 0:
        raise UsageError(
            f"--gpus {gpus}: the run is on CPU (learner.gpus_per_rank 0); `offbeat init --gpus {gpus}` writes one that "
            "is not"
        )
    return report(_on_node(config, node), as_json=json)


def fatal_checks(config: RunConfig) -> list[Finding]:
    """Return the errors that can be found without starting anything; may be empty.

    Reads only file headers and system counters. Must not import torch or Ray, use the network, or call a GPU driver.
    """
    findings = [*_requirements(config), *static_checks(config, [])]
    return [finding for finding in findings if finding.level == "error"]


def require_room(learner: TrainerConfig, cluster: ClusterConfig) -> None:
    """Raise UsageError if this machine cannot place a stage's ranks; a cluster that is joined is asked later."""
    if address_to_join(cluster) is not None:
        return
    placed = run_checks.check_ranks(learner, cluster, machine.cpus(), machine.visible_gpus())
    if placed.level == "error":
        raise UsageError(f"{placed.text}; {placed.remedy}")
    if (port := learner.port) is not None and not machine.port_free(port):
        raise UsageError(f"learner.port {port} is in use; choose a free port, or leave it unset")


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
    yield from static_checks(config, gpus)
    address = address_to_join(config.cluster)
    yield run_checks.check_network(config, elsewhere=address is not None or not keeps_to_loopback(os.environ))
    if address is not None:
        yield _attempt("cluster", f"{address}: the run can be placed", partial(_join, config))
    problems = {url: machine.connection_problem(url) for url in _judge_urls(config)}
    yield from _servers(problems)
    yield from _model_and_prompts(config, silent={url for url, problem in problems.items() if problem})


def _on_node(config: RunConfig, gpus: list[Gpu]) -> Iterator[Finding]:
    text = f"{what(gpus)}, as described; its cores, memory, disk and packages are not known here"
    yield graded("node", text)
    yield from static_checks(config, gpus, here=False)
    yield from _model_and_prompts(config, silent=_judge_urls(config))


def _attempt(name: str, text: str, action: Callable[[], object]) -> Finding:
    """Return `text` as ok if `action` succeeds, else the error that it raised."""
    try:
        action()
    except OffbeatError as exception:
        return from_exception(name, exception)
    return graded(name, text)


def _noted(name: str, text: str, check: Callable[[], list[str]]) -> Finding:
    """Return `text` as ok, or as a warning with what `check` notes, or the error that it raised."""
    try:
        notes = check()
    except OffbeatError as exception:
        return from_exception(name, exception)
    return Finding(name, "warning", "; ".join([text, *notes])) if notes else graded(name, text)


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


def static_checks(config: RunConfig, gpus: list[Gpu], *, here: bool = True) -> Iterator[Finding]:
    """Check models, cores, bytes and keys; `gpus` is empty if the driver was not asked.

    If these GPUs are not `here`, nothing that this machine has is compared.
    """
    models, findings = models_of(config)
    yield from findings
    if not here:
        if models is not None:
            yield from _sizes(config, models, gpus)
        yield run_checks.check_placement(config, None, len(gpus))
        return
    joins = address_to_join(config.cluster) is not None  # so the run uses other hosts
    published = 0 if models is None else run_checks.published_bytes(config, models.policy)
    if models is not None:
        yield from _sizes(config, models, gpus)
        if not joins:
            yield run_checks.check_memory(config, models, machine.memory())
    if not joins:
        if (problem := upload_problem(config.cluster.runtime_env)) is not None:
            yield from_exception("cluster", UsageError(problem))
        yield run_checks.check_placement(config, machine.cpus(), machine.visible_gpus())
        free = disk_usage(run_directory.SHARED_MEMORY).free
        yield run_checks.check_shared_memory(config.cluster, published, free)
        if (port := config.learner.port) is not None:
            in_use, remedy = not machine.port_free(port), "choose a free port, or leave learner.port unset"
            yield graded("learner.port", f"{port} is {'in use' if in_use else 'free'}", remedy, fatal=in_use)
    folder, _ = nearest_folder(config.directory)
    if (problem := unwritable(config.directory)) is None:
        yield run_checks.check_disk(config, None if models is None else models.policy, folder, disk_usage(folder).free)
    else:
        yield Finding("disk", "error", problem, run_checks.OTHER_DIRECTORY)
    yield from run_checks.check_keys(config, os.environ, elsewhere=joins)


def _sizes(config: RunConfig, models: Models, gpus: list[Gpu]) -> Iterator[Finding]:
    """Compare the models' shapes with the run's settings, and their bytes with the GPUs'."""
    yield run_checks.check_cache(config, models.policy)
    yield from run_checks.check_tensor_parallel(config, models.policy)
    yield from run_checks.check_sequence_parallel(config, models.policy)
    yield from run_checks.check_attention(config, models.policy)
    yield from run_checks.check_gpu_memory(config, models, gpus)


def models_of(config: RunConfig) -> tuple[Models | None, list[Finding]]:
    """Read the sizes of the run's models; None without the policy's. Report every model that is not here."""
    findings = []

    def facts(name: str, setting: str, path: str) -> ModelFacts | None:
        try:
            model = read_model(path)
        except ValueError as problem:
            findings.append(Finding(name, "error", f"{setting}: {problem}", "give a Hugging Face model's directory"))
            return None
        except UsageError as problem:
            findings.append(from_exception(name, problem))
            return None
        if model is None and is_hub_name(path):
            text = f"{setting} {path} is not on this machine; it will be downloaded"
            findings.append(Finding(name, "warning", text, _HUB_REMEDY))
        elif model is None:
            text = f"{setting} {path} does not exist (from {Path.cwd()})"
            findings.append(Finding(name, "error", text, missing_model_remedy(path)))
        return model

    policy = facts("model", "model.path", config.model.path)
    other = config.model.reference
    own = policy if config.learner.lora is None else None  # the base of adapters is their reference
    reference = own if other is None else facts("reference", "model.reference", other)
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


def _judge_urls(config: RunConfig) -> list[str]:
    return list(dict.fromkeys(judge.url for judge in run_checks.http_judges(config)))


def _servers(problems: Mapping[str, str | None]) -> Iterator[Finding]:
    """Say which of the judges' servers answer."""
    for url, problem in problems.items():
        remedy = "start the server before the run, or correct judging.judge.url"
        yield graded("judge server", f"{url}: {problem or 'connected'}", remedy, doubtful=problem is not None)


def _model_and_prompts(config: RunConfig, silent: Collection[str]) -> Iterator[Finding]:
    """Read model settings, tokenizer and every prompt, and try the judges, as `train` does.

    Judges behind `silent` servers are left out: these may be started later.
    """
    from actors import world
    from actors.data.text import load_tokenizer
    from launch.run.plugins import plugin_of
    from launch.run.preflight import check_model

    tokenizer: Any = None
    local = _with_local_models(config)
    if local is not None:  # otherwise `models_of` has reported it
        path = local.model.tokenizer or local.model.path
        yield _noted("model", f"{local.model.path} fits the run", partial(check_model, local, plugin_of(local)))
        try:
            tokenizer = world.tokenizer() if path == WORLD else load_tokenizer(path, chats=local.model)
        except OffbeatError as exception:
            yield from_exception("tokenizer", exception)
        else:
            yield _check_tokenizer(local, tokenizer, known_vocabulary(local.model.path))
    prompts = yield from _prompts(config, tokenizer)
    yield from _functions(config) if prompts is None else _met(config, prompts, tokenizer, silent)


def _check_tokenizer(config: RunConfig, tokenizer: Any, vocabulary: int | None) -> Finding:
    from actors.hub import answer_ends
    from launch.run.preflight import check_tokenizer

    template = "a chat template" if tokenizer.chat_template else "no chat template"
    limit = vocabulary or len(tokenizer)
    try:
        ends = tokenizer.convert_ids_to_tokens(list(answer_ends(config.model.path, tokenizer)))
    except OffbeatError as exception:
        return from_exception("tokenizer", exception)
    text = f"{many(len(tokenizer), 'token')} of the model's {limit:,}, answers end with {', '.join(map(repr, ends))}"
    text += f", {template}"
    return _noted("tokenizer", text, partial(check_tokenizer, config, tokenizer))


def _prompts(config: RunConfig, tokenizer: Any) -> Generator[Finding, None, Any]:
    """Read every prompt as `train` does and return them; without a tokenizer only the first row. None if they fail."""
    from actors.data.prompts import PromptSource
    from actors.data.rows import SUFFIXES, read_prompt_rows
    from launch.run.preflight import check_prompts

    source = config.prompts.source
    if source not in (WORLD, *SHIPPED_PROMPTS) and is_hub_name(source) and not source.endswith(SUFFIXES):
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
            return None
        try:
            notes = check_prompts(config, prompts)
        except OffbeatError as exception:
            yield from_exception("prompts", exception)
            return None
        yield from (Finding("prompts", "warning", note) for note in notes)
        text = f"{len(prompts):,} in {source}, {many(len(prompts.skipped), 'malformed row')} skipped"
        remedy = f"correct them; the first: {prompts.skipped[0]}" if prompts.skipped else ""
        yield graded("prompts", text, remedy, doubtful=bool(prompts.skipped))
        return prompts
    return None


def _met(config: RunConfig, prompts: Any, tokenizer: Any, silent: Collection[str]) -> Iterator[Finding]:
    """Let judges judge two completions, as `train` does; models too if they are small and meant for the CPU."""
    from launch.run.preflight import meet_judges

    for judge in config.judging.judges:
        if getattr(judge, "url", None) in silent:
            continue
        one = config.model_copy(update={"judging": config.judging.model_copy(update={"judge": judge})})
        model = read_model(judge.path) if isinstance(judge, ModelJudgeConfig) else None
        load = model is not None and model.parameters <= LARGEST_LOADED and config.judging.gpus == 0
        try:
            yield from (graded("judge", text) for text in meet_judges(one, prompts, tokenizer, load=load))
        except OffbeatError as exception:
            found = from_exception("judge", exception)
            elsewhere = "judges run on the cluster, which may have what is missing here"
            joins = address_to_join(config.cluster) is not None
            yield replace(found, level="warning", remedy=elsewhere) if joins else found


def _functions(config: RunConfig) -> Iterator[Finding]:
    """Import the judges that are Python functions: without prompts they cannot be tried."""
    for judge in config.judging.judges:
        if judge.kind == "function":
            yield _attempt("judge", f"{judge.path} can be imported", partial(_import, judge))


def _import(judge: FunctionJudgeConfig) -> None:
    """Import a judge's function in a process of its own, as a run does."""
    from actors.judges.functions.judge import FunctionJudge

    FunctionJudge(judge).close()


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
