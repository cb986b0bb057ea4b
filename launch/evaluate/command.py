"""The commands that look at models: evaluate, compare, chat. Imports nothing heavy, so that `--help` is quick."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from launch.settings.options import Config, Overrides
from launch.settings.yaml_text import quoted


def evaluate(
    config: Config,
    overrides: Overrides = None,
    model: Annotated[str | None, Option(metavar="DIR", help="the policy; unset: model.path")] = None,
    best_of: Annotated[
        int | None, Option(metavar="K", min=2, help="answers per prompt; unset: sampling.completions_per_prompt")
    ] = None,
    verifier: Annotated[
        list[str] | None, Option(metavar="DIR", help="model of `offbeat dpo` that ranks the answers; repeatable")
    ] = None,
    rank: Annotated[
        Literal["likelihood", "reward"], Option(help="rank by the verifier's log-likelihood or implicit reward")
    ] = "likelihood",
    prompts: Annotated[int | None, Option(metavar="N", min=1, help="unset: evaluation.prompts, at most all")] = None,
    threshold: Annotated[
        float | None, Option(help="lowest score of a correct answer; unset: 1 if all scores are 0 or 1, else none")
    ] = None,
    max_pairs: Annotated[int, Option(metavar="N", min=1, help="pairs per prompt")] = 8,
    output: Annotated[Path | None, Option(metavar="FILE", help="write the results here, as JSON")] = None,
    solutions: Annotated[Path | None, Option(metavar="FILE", help="write the answers here, as JSONL")] = None,
    pairs: Annotated[Path | None, Option(metavar="FILE", help="write preferences for `offbeat dpo` here")] = None,
    composed: Annotated[
        bool,
        Option("--composed", help="pairs of problems, the second needs the first's answer; --prompts counts pairs"),
    ] = False,
) -> int:
    """Sample answers to prompts, judge them, select by a verifier."""
    from actors.errors import UsageError
    from launch.evaluate.solutions import require_targets
    from launch.settings.loading import config_file, load_config

    if threshold is not None and not math.isfinite(threshold):
        raise UsageError(f"--threshold: given {threshold}; allowed: a finite number")
    given = [] if model is None else [f"model.path={quoted(model)}"]
    given += [] if best_of is None else [f"sampling.completions_per_prompt={best_of}"]
    run_config = load_config(config, [*(overrides or []), *given])
    read = [str(config_file(config)), run_config.prompts.source, run_config.prompts.validation_source]
    read += [run_config.model.path, *(verifier or [])]
    require_targets({"--output": output, "--solutions": solutions, "--pairs": pairs}, read)
    from launch.evaluate.evaluate import Request, run_evaluation

    chosen = tuple(verifier or ())
    request = Request(chosen, rank, prompts, threshold, max_pairs, output, solutions, pairs, composed)
    return run_evaluation(run_config, request)


def compare(
    models: Annotated[list[str], Argument(metavar="MODEL MODEL...", help="runs, model directories or hub names")],
    config: Annotated[
        str | None, Option(metavar="FILE", help="prompts, sampling and judge; unset: those of the first run named")
    ] = None,
    prompts: Annotated[int | None, Option(metavar="N", min=1, help="unset: evaluation.prompts, at most all")] = None,
    answers: Annotated[int, Option(metavar="K", min=1, help="of each model to a prompt")] = 1,
    settings: Annotated[
        list[str] | None, Option("--set", metavar="KEY=VALUE", help="another setting; may be repeated")
    ] = None,
    output: Annotated[Path | None, Option(metavar="FILE", help="write the matrix here: .json, .csv or .html")] = None,
) -> int:
    """Let models answer the same prompts, and compare the answers."""
    from actors.errors import UsageError
    from launch.evaluate.solutions import require_targets
    from launch.settings.loading import RECORDED, load_config

    if len(models) < 2:
        raise UsageError(f"{models[0]} is one model, and it takes two to compare; give another one beside it")
    recorded = [Path(each) / RECORDED for each in models if (Path(each) / RECORDED).is_file()]
    if config is None and not recorded:
        raise UsageError(
            f"none of {', '.join(models)} is a run, so nothing names prompts and judge; give --config FILE"
        )
    run_config = load_config(config or recorded[0], settings or [])
    require_targets({"--output": output}, [config, run_config.prompts.source, *models])
    # Not by the setting: a run has at least two completions of a prompt, and a model here may have one.
    sampling = run_config.sampling.model_copy(update={"completions_per_prompt": answers})
    from launch.evaluate.compare import run_comparison

    return run_comparison(run_config.model_copy(update={"sampling": sampling}), models, prompts, output)


def chat(
    model: Annotated[str, Argument(metavar="MODEL", help="a run, a model directory or a hub name")],
    system: Annotated[str | None, Option(metavar="TEXT", help="system message, before all turns")] = None,
    max_new_tokens: Annotated[int, Option(metavar="N", min=1, help="longest answer, in tokens")] = 256,
    temperature: Annotated[float, Option(metavar="T", min=0.0, help="0: the likeliest token each time")] = 0.7,
) -> int:
    """Talk to a model, or pipe questions to it, one a line."""
    from launch.evaluate.chat import run_chat

    return run_chat(model, system=system, max_new_tokens=max_new_tokens, temperature=temperature)
