"""`offbeat compare`: models answer the same prompts, the run's judge compares them, and a matrix says who wins.

Every model samples with its own engines, one after another; then one judge sees all answers to a prompt together.
"""

from __future__ import annotations

import asyncio
import csv
import html
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from actors.data.text import load_tokenizer
from actors.errors import UsageError, writing
from actors.files import atomic_write
from actors.foreign.text import WHOLE, many, shown
from actors.hub import resolve
from actors.intervals import mean_interval, share_interval
from actors.preferences import mean_win_probabilities
from actors.records import Group, Prompt
from actors.replay_buffer.pairing import MissingEos, effective_scores
from launch.cluster import wiring
from launch.cluster.watchdog import Watchdog
from launch.evaluate.best_of import Estimate, in_columns
from launch.evaluate.evaluate import checked_prompts, for_sampling
from launch.evaluate.sampling import judged_groups, line_printer, sample
from launch.run.win_rate import by_prompt, share_of
from launch.settings.loading import RECORDED
from launch.settings.run import RunConfig

FORMATS = (".json", ".csv", ".html")


@dataclass(frozen=True, slots=True)
class Comparison:
    """Win rates of each model against each other one. Means over prompts with 95% intervals."""

    models: tuple[str, ...]
    prompts: int  # different ones
    answers: int  # per model and prompt
    win_rates: tuple[tuple[Estimate | None, ...], ...]
    """`win_rates[i][j]`: how often model i is preferred to model j, ties one half; None on the diagonal."""
    rewards: tuple[Estimate, ...] | None
    """The judge's mean score of each model; None from a judge that only compares."""


def compare(judged: Sequence[Group], models: Sequence[str], missing_eos_score: MissingEos) -> Comparison:
    """Compare models by groups that hold equally many completions of each, in the order of `models`.

    A judge of pairs is asked both ways round: the share is the mean of both.
    """
    answers = len(judged[0].completions) // len(models)
    places = [range(number * answers, (number + 1) * answers) for number in range(len(models))]

    def share(one: int, other: int) -> Estimate:
        shares = [
            0.5
            * (
                share_of(group, places[one], places[other], missing_eos_score)
                + 1.0
                - share_of(group, places[other], places[one], missing_eos_score)
            )
            for group in judged
        ]
        return Estimate.of(by_prompt(judged, shares), share_interval)

    def reward(number: int) -> Estimate:
        scores = [effective_scores(group, missing_eos_score) for group in judged]
        means = [sum(each[place] for place in places[number]) / answers for each in scores]
        return Estimate.of(by_prompt(judged, means), mean_interval)

    numbers = range(len(models))
    return Comparison(
        tuple(models),
        len({group.lease.prompt.token_ids for group in judged}),
        answers,
        tuple(tuple(None if one == other else share(one, other) for other in numbers) for one in numbers),
        None if all(map(_only_compared, judged)) else tuple(map(reward, numbers)),
    )


def _only_compared(group: Group) -> bool:
    """Return whether a judge's scores are but the shares that answers win, which the matrix has."""
    assert group.judgement is not None
    preferences = group.judgement.preferences
    return preferences is not None and group.judgement.scores == mean_win_probabilities(preferences)


# ---------------------------------------------------------------- sampling and judging


def model_of(given: str) -> str:
    """Return the model that an argument names: a run's final one, a directory, or a hub name. Raises UsageError."""
    run = Path(given)
    if (run / RECORDED).is_file():
        if not (run / "final").is_dir():
            raise UsageError(f"{given} is a run without a final model; let it end, or name a checkpoint's hf directory")
        return str(run / "final")
    return str(resolve(given))


def run_comparison(config: RunConfig, names: Sequence[str], prompts: int | None, output: Path | None) -> int:
    """Sample every model's answers, judge them together, print and write the matrix; return the exit code 0.

    Raises UsageError before anything is sampled, RunError if a prompt cannot be answered or judged.
    """
    if output is not None and output.suffix not in FORMATS:
        raise UsageError(f"--output {output} ends in '{output.suffix}'; allowed: {', '.join(FORMATS)}")
    if len(names) < 2 or len(set(names)) < len(names):
        raise UsageError(f"given {', '.join(names) or 'no model'}; compare takes two different models or runs, or more")
    say = line_printer()
    models = [_model(config, name) for name in names]
    asked = [
        checked_prompts(each, load_tokenizer(each.model.path, chats=each.model), prompts, say, meet=each is models[0])
        for each in models
    ]
    if len({tuple(prompt.id for prompt in each) for each in asked}) > 1:
        raise UsageError(
            "the models' tokenizers leave out different prompts, so their answers cannot be compared; raise "
            "prompts.max_prompt_tokens"
        )
    sides = []
    for name, model, questions in zip(names, models, asked, strict=True):
        say(f"{name} answers {many(len(questions), 'prompt')}")
        sides.append(_answers(model, questions, say))
    joined = [_joined(groups) for groups in zip(*sides, strict=True)]
    say("judging")
    found = compare(_judged(models[0], joined, say), names, config.judging.missing_eos_score)
    print(shown(render(found), WHOLE, lines=True))
    if output is not None:
        with writing(output, "or give another path"):
            atomic_write(output, as_text(found, output.suffix))
    return 0


def _model(config: RunConfig, name: str) -> RunConfig:
    model = config.model.model_copy(update={"path": model_of(name), "tokenizer": None})
    return for_sampling(config.model_copy(update={"model": model}))


def _answers(config: RunConfig, prompts: Sequence[Prompt], say: Callable[[str], None]) -> list[Group]:
    with wiring.ray_session(config.cluster):
        wiring.check_sampling_resources(config)
        generators = wiring.start_generators(config, config.model.path, config.model.path)
        watchdog = Watchdog(generators, config.watchdog, say, say)
        found: list[Group] = []

        async def sampling() -> None:
            found.extend(await sample(generators, prompts, say))

        asyncio.run(watchdog.guard(sampling()))
    return found


def _joined(groups: Sequence[Group]) -> Group:
    """Put the answers of all models to one prompt into one group, whose prompt is the first model's."""
    return replace(groups[0], completions=tuple(each for group in groups for each in group.completions))


def _judged(config: RunConfig, groups: Sequence[Group], say: Callable[[str], None]) -> list[Group]:
    answers: list[Group] = []
    with wiring.ray_session(config.cluster):
        judges = wiring.start_judges(config, config.model.path)

        async def judging() -> None:
            await judges[0].ready()
            answers.extend(await judged_groups(config, judges, groups, say))

        asyncio.run(Watchdog(judges, config.watchdog, say, say).guard(judging()))
    return answers


# ---------------------------------------------------------------- messages


def render(found: Comparison) -> str:
    """Return the matrix as a table; models are letters in it."""
    letters = [chr(ord("A") + number) for number in range(len(found.models))]
    named = [f"{letter}  {name}" for letter, name in zip(letters, found.models, strict=True)]
    rows = [[letter, *map(_cell, row)] for letter, row in zip(letters, found.win_rates, strict=True)]
    table = [["wins against", *letters], *rows]
    if found.rewards is not None:
        table.append(["mean score", *map(_cell, found.rewards)])
    return "\n".join(in_columns([_size(found), *named, "", *table], 16))


def _size(found: Comparison) -> str:
    answers = "1 answer" if found.answers == 1 else f"{found.answers} answers"
    return f"{found.prompts} prompts, {answers} of each model, 95% intervals over prompts"


def _cell(estimate: Estimate | None) -> str:
    return "-" if estimate is None else estimate.cell()


def as_text(found: Comparison, suffix: str) -> str:
    """Return the comparison as JSON, CSV (one line for each ordered pair) or an HTML table."""
    if suffix == ".json":
        return json.dumps(asdict(found)) + "\n"
    cells = [
        (one, other, estimate)
        for one, row in zip(found.models, found.win_rates, strict=True)
        for other, estimate in zip(found.models, row, strict=True)
        if estimate is not None
    ]
    if suffix == ".csv":
        text = io.StringIO()
        rows = csv.writer(text, lineterminator="\n")
        rows.writerow(("model", "against", "win_rate", "low", "high"))
        rows.writerows((one, other, each.value, each.low, each.high) for one, other, each in cells)
        return text.getvalue()
    head = "".join(f"<th>{html.escape(name)}</th>" for name in found.models)
    body = "".join(
        f"<tr><th>{html.escape(name)}</th>{''.join(f'<td>{_cell(each)}</td>' for each in row)}</tr>"
        for name, row in zip(found.models, found.win_rates, strict=True)
    )
    scores = "".join(f"<td>{_cell(each)}</td>" for each in found.rewards or ())
    scores = f"<tr><th>mean score</th>{scores}</tr>" if scores else ""
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>Comparison</title><style>'
        "body{font:16px sans-serif;color-scheme:light dark}td,th{padding:.4em;text-align:left}</style><body><table>"
        f"<tr><th>wins against</th>{head}</tr>{body}{scores}</table>"
        f"<p>{_size(found)}</p></body></html>\n"
    )
