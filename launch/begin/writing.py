"""The file of a request: read what it names, put the settings together, fit them to the machine, write."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from actors.data.config import PromptConfig
from actors.errors import UsageError, writing_remedy
from actors.files import atomic_write, unwritable
from actors.foreign.model_place import PRETRAINED
from actors.foreign.text import many, shown
from launch.begin import rows
from launch.begin.judges import Judge, read_judge
from launch.begin.lines import Line, written
from launch.begin.place import Machine, machine_for
from launch.begin.policy import Policy, own_model, read_policy
from launch.begin.room import Fitted, fit, learning_rate
from launch.begin.rows import Lengths, Sample
from launch.settings.fields import settings
from launch.settings.loading import preset_names
from launch.settings.run import RunConfig
from learner.losses.config import GameLossConfig

SHIPPED = "instructions"
STEP = 16
"""Limits in tokens are multiples of it."""
COMMON_PROMPT, COMMON_POSITIONS = 512, 4096
"""Tokens, where the tokenizer or the model could not be read."""
LEAST_COMPLETION = 16


@dataclass(frozen=True, slots=True)
class Request:
    """The command's arguments."""

    file: Path
    model: str | None = None
    data: str | None = None
    judge: str | None = None
    loss: str | None = None
    prompt: str | None = None
    answer: str | None = None
    output: Path | None = None
    force: bool = False
    gpus: str | None = None


@dataclass(frozen=True, slots=True)
class Given:
    """Policy, data and judge of a request, after reading them."""

    policy: Policy
    sample: Sample
    judge: Judge
    prompts: PromptConfig
    lengths: Lengths


def write(request: Request) -> int:
    """Write the configuration, and print the commands that come next. Raises UsageError before anything is written."""
    _check_file(request)
    loss = _checked_loss(request.loss)
    here, notes = machine_for(request.gpus)
    given = read(request)
    lines = [*_general(request, here), *_prompts(given), *_lengths(given, gpus=bool(here.gpus))]
    lines += [*given.judge.lines, *_learning(given, here, loss)]
    fitted = fit(lines, here, given.policy.facts, loads_judge=given.judge.loads)
    try:
        atomic_write(request.file, written(_head(given, here), _in_order([*lines, *fitted.lines])))
    except OSError as error:
        raise UsageError(
            f"cannot write {request.file}: {error.strerror}; {writing_remedy(error)}, or give another name"
        ) from error
    _tell(request, [*notes, *given.policy.notes, *given.sample.notes], fitted, here)
    return 0


def read(request: Request) -> Given:
    """Read model, data and judge. Raises UsageError with the first that is wrong."""
    sample = rows.read_sample(SHIPPED if request.data is None else request.data)
    column = rows.prompt_column(sample, request.prompt)
    judge = read_judge(request.judge, sample, request.answer)
    policy = read_policy(own_model() if request.model is None else request.model)
    chats = rows.is_chat(sample, column)
    if chats and policy.tokenizer is not None and not policy.chats:
        raise UsageError(
            f"the column {column} of --data {sample.source} holds chats, and the tokenizer of --model {policy.path} "
            "has no chat template; give a chat model, or prompts that are texts"
        )
    prompts = PromptConfig(
        source=sample.source,
        prompt_field=column,
        answer_field=judge.answer,
        columns=judge.columns,
        template="{prompt}" if chats else _template(policy, judge.ask),
    )
    return Given(policy, sample, judge, prompts, rows.measure(sample, prompts, policy))


def _check_file(request: Request) -> None:
    file = request.file
    if file.suffix not in (".yaml", ".yml"):
        near = f"; write {file}.yaml" if str(file) not in preset_names() else f", and {file} is a preset"
        raise UsageError(f"{file} does not end in .yaml{near}")
    if not file.parent.is_dir():
        raise UsageError(f"{file}: the directory {file.parent} does not exist; make it first")
    if file.is_dir():
        raise UsageError(f"{file} is a directory; give the name of a file")
    if request.output is not None and request.gpus is None and (problem := unwritable(request.output)):
        raise UsageError(f"--output {request.output}: {problem}; give another directory")
    if file.exists() and not request.force:
        raise UsageError(f"{file} exists; give another name, or pass --force to replace it")


def _checked_loss(given: str | None) -> str:
    kinds = next(each.allowed for each in settings(RunConfig) if each.key == "learner.loss.kind").split(" | ")
    if given is not None and given not in kinds:
        raise UsageError(f"--loss {given}: no such loss; allowed: {', '.join(kinds)}")
    return given or "dpo"


def _template(policy: Policy, ask: str) -> str:
    """Return the text around a prompt: a chat model's own turn of the user, with what the judge needs to be asked."""
    if not policy.chats:
        return f"Question: {{prompt}}{ask}\nAnswer:" if ask else "{prompt}"
    from actors.data.conversations import render
    from actors.data.text import holds_bos

    rendered = render([{"role": "user", "content": f"{{prompt}}{ask}"}], policy.tokenizer, "--model")
    if holds_bos(rendered, policy.tokenizer):  # which it puts before texts itself
        rendered = rendered.lstrip().removeprefix(policy.tokenizer.bos_token)
    return rendered if rendered.count("{prompt}") == 1 else f"{{prompt}}{ask}"


def _general(request: Request, here: Machine) -> list[Line]:
    stem = re.sub(r"[^A-Za-z0-9._-]+", "-", request.file.stem).strip("-") or "run"
    why = "enough to see rewards rise" if here.gpus else "few, for a first run without a GPU: some minutes"
    lines = [
        Line("name", stem, f"the run's directory is runs/{stem}" if request.output is None else "the file's name"),
        Line("updates", 200 if here.gpus else 40, why),
    ]
    return lines if request.output is None else [*lines, Line("output", str(request.output))]


def _prompts(given: Given) -> list[Line]:
    sample, prompts, policy = given.sample, given.prompts, given.policy
    own = policy.path.rstrip("/").endswith(f"models/{PRETRAINED}")
    form = "chats" if rows.is_chat(sample, prompts.prompt_field) else "texts"
    found = f"{form}; columns: {', '.join(sample.columns)}" if sample.rows else "a guess: the data could not be read"
    lines = [
        Line("model.path", policy.path, "the one that `make pretrained` brings" if own else ""),
        Line("prompts.source", sample.source, "192 prompts that come with Offbeat" if sample.source == SHIPPED else ""),
        Line("prompts.prompt_field", prompts.prompt_field, found),
    ]
    if prompts.answer_field is not None:
        answers = prompts.answer_field if isinstance(prompts.answer_field, str) else list(prompts.answer_field)
        lines.append(Line("prompts.answer_field", answers, "what the judge compares with"))
    if prompts.columns:
        lines.append(Line("prompts.columns", list(prompts.columns), "your function's parameters name them"))
    if prompts.template != "{prompt}":
        whose = "the model's own chat form" if policy.chats else "a form for models that continue texts"
        asks = ", with the form of answers that the judge finds" if given.judge.ask else ""
        lines.append(Line("prompts.template", prompts.template, whose + asks))
    return lines


def _lengths(given: Given, *, gpus: bool) -> list[Line]:
    """Return limits in tokens from the longest rows that were read, within the model's positions."""
    known = given.policy.tokenizer is not None and bool(given.sample.rows)
    positions = given.policy.positions or COMMON_POSITIONS
    if positions < 2 * STEP:
        raise UsageError(
            f"--model {given.policy.path} has only {positions} positions, too few for a prompt and an answer; give "
            "another model"
        )
    longest, whole = given.lengths.prompt, given.sample.whole
    wanted = _rounded(longest if whole else longest * 1.5) if known else COMMON_PROMPT
    prompt = min(max(wanted, STEP), max(STEP, positions - _rounded(positions / 4)))
    completion = _completion(given, gpus=gpus)
    completion = max(min(completion, positions - prompt), min(LEAST_COMPLETION, positions - prompt))
    if not known:
        why = "a common value: the lengths could not be read"
    elif whole:
        why = f"the longest of {many(given.lengths.good, 'prompt')} has {many(longest, 'token')}"
    else:
        why = f"half as many again as the longest of the first {given.lengths.good:,} prompts, {many(longest, 'token')}"
    lines = [Line("prompts.max_prompt_tokens", prompt, why)]
    if prompt < longest or not whole or given.lengths.malformed:
        bad = (
            f"{given.lengths.malformed} of those that were read cannot be used"
            if given.lengths.malformed
            else "longer prompts are left out"
        )
        lines.append(Line("prompts.on_malformed", "skip", bad))
    endpoint = given.judge.costly
    ties = "four answers are 12 requests to the judge" if endpoint else "more answers make ties between them rarer"
    gold = _gold(given)
    new = f"gold answers have up to {many(gold, 'token')}" if gold else "short answers, to begin"
    lines.append(Line("sampling.completions_per_prompt", 4 if endpoint or gpus else 8, ties))
    lines.append(Line("sampling.max_new_tokens", completion, new))
    of = f", of the model's {positions:,}" if given.policy.positions else ""
    return [*lines, Line("generators.max_model_len", prompt + completion, f"prompt and completion together{of}")]


def _completion(given: Given, *, gpus: bool) -> int:
    least, most = (256, 1024) if gpus else (48, 256)
    least *= 2 if given.judge.ask else 1
    return min(most, max(least, _rounded(1.5 * _gold(given))))


def _gold(given: Given) -> int:
    """Return the tokens of the longest gold answer; 0 if the answers' column holds something else, such as checks."""
    return given.lengths.answer if given.judge.ask else 0


def _rounded(tokens: float) -> int:
    return -(-int(tokens) // STEP) * STEP


def _learning(given: Given, here: Machine, loss: str) -> list[Line]:
    together, asked = (64, 256) if here.gpus else (8, 40)
    few = given.sample.whole and given.lengths.good
    count, tested = (min(together, few), min(asked, few)) if few else (together, asked)
    why = "of one update; more are steadier and slower" if count == together else "all that there are"
    short = loss in get_args(GameLossConfig.model_fields["kind"].annotation) and not here.gpus
    anchor = Line("learner.anchor.weight", 0, "none: it would hold so short a run near its start")
    return [
        Line("replay.prompts_per_update", count, why),
        Line("learner.dtype", "bfloat16", "half the memory of float32; the optimizer's state is float32"),
        Line("learner.loss.kind", loss, "the best answer of a prompt against its worst" if loss == "dpo" else ""),
        *([anchor] if short else []),
        learning_rate(given.policy.facts, gpus=bool(here.gpus)),
        Line("evaluation.prompts", tested, "judged at the start and at the end, to compare"),
    ]


def _in_order(lines: Sequence[Line]) -> list[Line]:
    """Return lines with those of each section together: sections as a configuration declares them."""
    order = list(dict.fromkeys(each.key.partition(".")[0] for each in settings(RunConfig)))
    front = ["name", "output", "updates"]

    def place(line: Line) -> int:
        top = line.key.partition(".")[0]
        return front.index(top) if top in front else len(front) + order.index(top)

    return sorted(lines, key=place)


def _head(given: Given, here: Machine) -> str:
    judge = next(line.value for line in given.judge.lines if line.key == "judging.judge.kind")
    return (
        f"{given.policy.path} on {given.sample.source}, with a judge of kind {judge}.\n"
        f"Written by `offbeat init` for {here.what}. Paths are as seen from where you start the run.\n"
        "`offbeat train --help` has every other setting."
    )


def _tell(request: Request, notes: Sequence[str], fitted: Fitted, here: Machine) -> None:
    for note in notes:
        print(shown(f"note: {note}"))
    for finding in fitted.left:
        print(shown(f"{finding.level}: {finding.name}: {finding.text}; {finding.remedy}"))
    file, there = shlex.quote(str(request.file)), "" if here.asked is None else f" --gpus {here.asked}"
    print(shown(f"{request.file} is written. Next:\n", lines=True) + shown(f"    offbeat doctor {file}{there}"))
    print(shown(f"    offbeat {'train' if here.asked is None else 'submit slurm'} {file}"))
