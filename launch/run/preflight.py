"""Check the models of `offbeat train` before it starts anything; list the settings that a resume must not change."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from actors.adapters import peft_form
from actors.data.prompts import PromptSource
from actors.data.text import template_problem
from actors.errors import UsageError
from actors.foreign.tensor_files import require_numbers
from actors.foreign.text import many
from actors.hub import (
    CLASSIFIER_HEAD,
    LANGUAGE_HEAD,
    answer_ends,
    check_same_architecture,
    listed,
    outline,
    positions_of,
    read_config,
    read_text_config,
    require_unquantised,
    resolve,
)
from actors.judges.answers.config import CodeJudgeConfig
from actors.records import Group
from actors.settings import WORLD
from actors.world import VOCABULARY
from launch.run.protocols import RunPlugin
from launch.settings.run import RunConfig
from learner.backend import manifest
from learner.losses.config import GameLossConfig

MANY_EPOCHS = 20
"""Epochs over the prompts above which a run prints their number."""


def check_model(config: RunConfig, plugin: RunPlugin) -> list[str]:
    """Raise UsageError if a model cannot be read or lacks weights; return notes to print once.

    Also raises it if the policy is too short for the run's sequences, or the reference does not fit the policy.
    """
    notes = _check_judges(config)
    if not plugin.check_model(config):
        return notes
    model = read_text_config("model.path", config.model.path)
    _require_prompts(config, model.vocab_size)
    notes += check_weights("model.path", config.model.path)
    _require_generator(config.model.path)
    check_split(config.learner.sequence_parallel, model, config.model.path)
    if config.model.reference is not None:
        reference = read_text_config("model.reference", config.model.reference)
        if reference.vocab_size != model.vocab_size:
            raise UsageError(
                f"model.reference {config.model.reference} has a vocabulary of {reference.vocab_size} tokens and the "
                f"policy {config.model.path} one of {model.vocab_size}; use a reference with the policy's vocabulary"
            )
        notes += check_weights("model.reference", config.model.reference)
        check_split(config.learner.sequence_parallel, reference, config.model.reference)
        if config.opponent is not None and config.opponent.needs_second_model:
            check_same_architecture(config.model.path, config.model.reference)
    if config.learner.lora is not None and Path(config.model.path).is_dir():
        peft_form.outline(config.model.path, config.learner.lora)
    longest = positions_of(model)
    if longest is not None and config.generators.max_model_len > longest:
        raise UsageError(
            f"generators.max_model_len {config.generators.max_model_len} exceeds the {longest} positions of "
            f"{config.model.path}; lower it to {longest} or less"
        )
    return notes


def _require_generator(path: str | Path) -> None:
    """Raise UsageError if engines, which read the class of a local model from its config.json, could not generate."""
    if not Path(path).is_dir():
        return
    import transformers

    named = (read_config(path).architectures or [""])[0]
    if not named.endswith(("Classification", "Answering")) and (not named or hasattr(transformers, named)):
        return
    kind = outline(path).kind
    if named.lower() != kind.lower():  # vLLM knows some by an older spelling
        raise UsageError(
            f"config.json of '{path}' names the architecture {named}, which engines cannot generate with; if it is a "
            f'{kind}, as its weights say, write "architectures": ["{kind}"] there, or give another model'
        )


def _require_prompts(config: RunConfig, vocabulary: int) -> None:
    """Raise UsageError if a model of the user's would train on the embedded world's prompts, as none were named."""
    of_world = vocabulary == len(VOCABULARY)
    if config.prompts.source == WORLD and not of_world and "source" not in config.prompts.model_fields_set:
        raise UsageError(
            f"prompts.source is unset, and model.path is {config.model.path}: the default, world, is the embedded "
            "world's 16 prompts; set prompts.source to your prompts, or to instructions, which come with Offbeat"
        )


def check_split(size: int, settings: Any, path: str | Path) -> None:
    """Raise UsageError unless `size` ranks can split the sequences of the model in `path`, which has these settings."""
    if size > 1:
        from learner.tensors.sequence_groups import check_heads

        check_heads(settings, size, str(path))


def check_weights(setting: str, path: str | Path, *, classifier: bool = False, new_head: bool = False) -> list[str]:
    """Raise UsageError if a local directory's files lack weights of its model; return a note on unused tensors.

    Also raises it if the files differ from their manifest, or hold whole numbers or, in small files, NaN.

    The model is a causal language model, or a sequence `classifier`, which may get a `new_head`. Reads only headers of
    large files. A hub name is checked when it is loaded.
    """
    if not Path(path).is_dir():
        return []
    from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

    manifest.check(Path(path))
    read_text_config(setting, path)
    if not classifier:
        require_unquantised(path)
    found = outline(path, AutoModelForSequenceClassification if classifier else AutoModelForCausalLM)
    found.require_complete(path, (CLASSIFIER_HEAD,) if new_head else ())
    require_numbers(Path(path))
    unused = [name for name in found.unused if not (new_head and name == LANGUAGE_HEAD)]
    if not unused:
        return []
    tensors = "1 tensor of its files is" if len(unused) == 1 else f"{len(unused):,} tensors of its files are"
    return [f"{setting} {path}: {tensors} not part of {found.kind}: {listed(unused)}"]


def check_tokenizer(config: RunConfig, tokenizer: Any) -> list[str]:
    """Raise UsageError if the tokenizer does not fit the policy; return notes to print once.

    Also raises it if nothing ends the policy's answers, or a model trained from the policy could not be saved.
    """
    from learner.backend.models import generation_settings

    if config.model.path == WORLD:
        return []
    path = resolve(config.model.path, weights=False)
    rows, size = read_text_config("model.path", path).vocab_size, len(tokenizer)
    described = f"the tokenizer of {config.model.tokenizer or path} has {size:,} tokens and {path} {rows:,}"
    if tokenizer.vocab_size > rows:
        raise UsageError(f"{described}; set model.tokenizer to the model's own, or leave it out")
    beyond = [each for each in config.sampling.stop_token_ids if each >= rows]
    if beyond:
        raise UsageError(
            f"sampling.stop_token_ids names {beyond[0]}, and model.path {path} has the tokens 0 to {rows - 1}; correct "
            "it, or leave it out"
        )
    ends = answer_ends(path, tokenizer)
    if min(ends) >= rows:
        raise UsageError(f"{described}, so no answer can end: {list(ends)} are beyond the model; correct eos_token")
    _, repaired = generation_settings(path, ends, config.sampling.temperature)
    notes = [] if repaired is None else [repaired]
    if problem := template_problem(tokenizer):
        said = f"the chat template of {config.model.tokenizer or path} {problem}"
        if config.sampling.environment is not None:
            raise UsageError(f"{said}, and sampling.environment holds conversations; set model.chat_template")
        notes.append(f"{said}: prompts that are texts do without; set model.chat_template before anyone chats with it")
    return notes if size <= rows else [*notes, f"{described}: those that were added to it must not be in the prompts"]


def check_prompts(config: RunConfig, prompts: PromptSource) -> list[str]:
    """Raise UsageError if a prompt has tokens that the policy lacks. Return notes to print once."""
    notes = list(prompts.notes)
    if prompts.doubled_bos:
        notes.append(
            f"{prompts.doubled_bos:,} of {many(len(prompts), 'prompt')} hold {prompts.bos_token}, which the tokenizer "
            "adds to texts as well; they are read with one"
        )
    if config.model.path != WORLD:
        rows = read_text_config("model.path", config.model.path).vocab_size
        if prompts.largest_token_id >= rows:
            raise UsageError(
                f"a prompt of prompts.source '{config.prompts.source}' has the token {prompts.largest_token_id}, and "
                f"model.path {config.model.path} only {rows:,}; set model.tokenizer to the model's own"
            )
    return notes


def meet_judges(
    config: RunConfig, prompts: PromptSource, tokenizer: Any, *, load: bool = False, elsewhere: bool = False
) -> list[str]:
    """Let every judge judge two made-up completions of the first prompt; return what each said.

    A judge that loads a model is decided from its settings and tokenizer, unless `load`. Also imports the environment.
    Raises UsageError with the first cause. If judges run `elsewhere`, on a cluster that is joined, a judge behind HTTP
    is left out, and a failure is only told: what they need may be there.
    """
    from actors.environments.protocol import environment_class
    from actors.judges.config import HttpJudgeConfig, ModelJudgeConfig
    from actors.judges.trial import check_model_inputs, meet, trial_group

    if config.sampling.environment is not None:
        environment_class(config.sampling.environment)
    group = trial_group(prompts.prompt(0), tokenizer, conversations=config.sampling.environment is not None)
    own = config.model.tokenizer or (None if config.model.path == WORLD else config.model.path)
    said = slow_programs(config)
    for judge in config.judging.judges:
        if elsewhere and isinstance(judge, HttpJudgeConfig):
            continue
        try:
            if isinstance(judge, ModelJudgeConfig):
                check_model_inputs(judge, group, own)
            if load or not isinstance(judge, ModelJudgeConfig):
                said.append(meet(judge, config.judging, group, own))
        except UsageError as error:
            if not elsewhere:
                raise
            said.append(f"warning: {error}; judges run on the cluster, which may have what is missing here")
    return said


def slow_programs(config: RunConfig) -> list[str]:
    """Say if programs of one prompt may take longer than a batch may."""
    limit, count = config.judging.timeout_seconds, config.sampling.completions_per_prompt
    if config.judging.in_time(count):
        return []
    programs = [judge for judge in config.judging.judges if isinstance(judge, CodeJudgeConfig)]
    judge = max(programs, key=lambda each: each.longest_seconds(count))
    return [
        f"warning: {count} programs of one prompt may take {judge.longest_seconds(count):g} s (time_limit_seconds "
        f"{judge.time_limit_seconds:g}, max_concurrent_programs {judge.max_concurrent_programs}, two batches at a "
        f"time), and judging.timeout_seconds {limit:g} ends them: prompts whose programs hang would fail; raise it, or "
        "lower judging.judge.time_limit_seconds"
    ]


def slow_anchor(config: RunConfig) -> list[str]:
    """Say if a run of a game has fewer updates than its anchor lets it settle in: two times T (tau + kappa) / tau.

    Its opponents' weights are quicker. Online DPO has none, and ends no worse with an anchor than without.
    """
    anchor, loss = config.anchor, config.learner.loss
    if anchor is None or not isinstance(loss, GameLossConfig):
        return []
    needed = 2.0 * anchor.horizon * (loss.tau + anchor.weight) / loss.tau
    if config.updates >= needed:
        return []
    over = f"{anchor.weight:g} over {many(anchor.horizon, 'update')}"
    return [
        f"an anchor of {over} lets a run settle in about {needed:,.0f} updates, and this one has {config.updates:,}: "
        "it stays near its start; raise updates, or set learner.anchor.weight=0"
    ]


def repetition(config: RunConfig, prompts: PromptSource) -> list[str]:
    """Say where a run has fewer different prompts than its settings ask for, and how often it goes over them."""
    if config.prompts.source == WORLD:  # its sixteen prompts are all there is
        return []
    notes, wanted, count = [], config.evaluation.prompts, len(prompts)
    different = prompts.different_evaluation_prompts(wanted)
    if different < wanted:
        notes.append(
            f"evaluation.prompts {wanted:,} finds {different:,} different prompts in {prompts.evaluated}: the "
            f"others repeat these, and intervals are over {different:,}; lower evaluation.prompts, or add prompts"
        )
    together = config.replay.prompts_per_update
    if together > count:
        notes.append(
            f"replay.prompts_per_update {together:,} exceeds the {many(count, 'prompt')} of prompts.source: an update "
            f"trains on a prompt up to {many(-(-together // count), 'time')}; lower it, or add prompts"
        )
    epochs = config.updates * together / count
    if epochs > MANY_EPOCHS:
        notes.append(
            f"updates {config.updates:,} of {many(together, 'prompt')} are {epochs:,.0f} epochs of "
            f"{many(count, 'prompt')}: "
            "the policy may learn these alone; evaluate it on others with offbeat evaluate"
        )
    return notes


def _check_judges(config: RunConfig) -> list[str]:
    """Check the weights of judges that run a model in their own process."""
    paths = [each.path for each in config.judging.judges if each.kind in ("reward_model", "preference_model")]
    setting = "judging.judge.path"
    return [note for path in dict.fromkeys(paths) for note in check_weights(setting, path, classifier=True)]


def model_content(path: str | Path) -> str:
    """Identify a model by its content: a directory's by its files, a hub's by its revision. Raises UsageError."""
    directory = resolve(path, weights=False)
    from_hub = directory != Path(path) and directory.parent.name == "snapshots"
    return directory.name if from_hub else manifest.content(directory)


def check_restored(groups: Sequence[Group], config: RunConfig) -> None:
    """Raise UsageError if buffered groups lack the reference log-probs that this run's learner does not compute."""
    lacking = [group for group in groups if not all(each.reference_logprobs for each in group.completions)]
    if config.reference.count and lacking:
        raise UsageError(
            f"{len(lacking)} of {many(len(groups), 'group')} in the checkpoint's buffer have no reference log-probs: "
            f"reference.count was 0 when they were judged, and is {config.reference.count}; resume with "
            "reference.count=0, or start a new run"
        )


def fixed_settings(config: RunConfig, prompts: PromptSource, plugin: RunPlugin) -> dict[str, Any]:
    """Return what a resumed run must share with the saved one, as JSON values; everything else may change."""
    fixed: dict[str, Any] = {
        "the prompts": prompts.fingerprint(),
        "prompts.seed": config.prompts.seed,
        "deterministic": config.deterministic,
        "prompts.shuffle": config.prompts.shuffle,
        "model.path": config.model.path,
        "model.reference": config.model.reference,
        "sampling": config.sampling.model_dump(mode="json", exclude_none=True),
        "learner.loss.kind": config.learner.loss.kind,
        "generators.engine": config.generators.engine,
        "learner.deepspeed": config.learner.deepspeed,
        "evaluation.prompts": config.evaluation.prompts,
    }
    if config.model.path != WORLD:
        fixed["the model"] = model_content(config.model.path)
    if config.model.reference is not None:
        fixed["the reference"] = model_content(config.model.reference)
    if config.opponent is not None:
        names = {"kind", "beta", "completions_per_prompt", "max_staleness"}
        fixed["learner.loss.opponent"] = config.opponent.model_dump(mode="json", include=names)
    if config.learner.lora is not None:
        fixed["learner.lora"] = config.learner.lora.fixed
    return fixed | plugin.fixed(config)
