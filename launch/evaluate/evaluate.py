"""`offbeat evaluate`: sample a model's answers to prompts, judge them, and measure a selection among them.

Samples with the run's own engines and asks the run's own judge, both as Ray actors; a verifier then scores in this
process. User errors are checked before an actor starts.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from actors.data.prompts import PromptSource
from actors.data.text import load_tokenizer
from actors.errors import UsageError
from actors.foreign.text import WHOLE, many, shown
from actors.hub import resolve
from actors.judges.config import VerifierJudgeConfig
from actors.records import Group, Prompt
from actors.replay_buffer.pairing import effective_scores
from launch.cluster import wiring
from launch.cluster.placement import address_to_join
from launch.cluster.watchdog import Watchdog
from launch.evaluate import composition
from launch.evaluate.best_of import Candidates, Report, render, report
from launch.evaluate.sampling import judged_groups, line_printer, sample
from launch.evaluate.solutions import Solution, pairs_of, write_jsonl
from launch.evaluate.verifiers import Rank, find_verifier
from launch.run.plugins import plugin_of
from launch.run.preflight import check_model, check_prompts, check_tokenizer, meet_judges
from launch.run.protocols import GeneratorPort, JudgePort
from launch.settings.run import RunConfig
from learner.losses.config import PairLossConfig


@dataclass(frozen=True, slots=True)
class Request:
    """Options of the command line that are not settings."""

    verifiers: tuple[str, ...] = ()
    """Model directories or hub names; each ranks the answers."""
    rank: Rank = "likelihood"
    prompts: int | None = None
    """Number of prompts; None: `evaluation.prompts`, or all if there are fewer."""
    threshold: float | None = None
    """Lowest score of a correct answer; None: 1 if scores are 0 or 1, else no answer is called correct."""
    max_pairs: int = 8
    output: Path | None = None
    solutions: Path | None = None
    pairs: Path | None = None
    composed: bool = False
    """True to measure composition; `prompts` then counts pairs."""


def run_evaluation(config: RunConfig, request: Request) -> int:
    """Sample, judge, select or compose, and report; return the exit code 0.

    Raises UsageError before anything is sampled, RunError if a prompt cannot be answered or judged or the disk refuses.
    """
    config = for_sampling(config)
    if not request.composed:
        return _evaluate(config, request)
    judge = config.judging.judge
    if not isinstance(judge, VerifierJudgeConfig):
        raise UsageError(
            f"--composed compares final answers, and judging.judge.kind is {judge.kind}; set it to verifier"
        )
    if request.verifiers or request.pairs:
        raise UsageError("--composed selects nothing and makes no pairs; leave out --verifier and --pairs")
    from actors.judges.answers.verifier import VerifierJudge

    with composition.composed_prompts(config, request.prompts, VerifierJudge(judge).final_answer) as (read, pairs):
        return _evaluate(read, replace(request, prompts=len(composition.PARTS) * pairs))


def _evaluate(config: RunConfig, request: Request) -> int:
    say = line_printer()
    verifiers = [find_verifier(path, request.rank) for path in request.verifiers]
    tokenizer = load_tokenizer(config.model.tokenizer or str(resolve(config.model.path)), chats=config.model)
    for verifier in verifiers:
        verifier.check_reads(tokenizer)
    prompts = checked_prompts(config, tokenizer, request.prompts, say)
    different = len({prompt.token_ids for prompt in prompts})
    if different < len(prompts) and not request.composed:
        repeated = f"{many(different, 'different prompt')} among {len(prompts)}"
        repeated += ": repeats are no further draws for the intervals"
        say(repeated)
    count = config.sampling.completions_per_prompt
    say(f"sampling {count} answers to each of {many(len(prompts), 'prompt')}")
    with wiring.ray_session(config.cluster):
        wiring.check_sampling_resources(config)
        judges = wiring.start_judges(config, config.model.path)
        generators = wiring.start_generators(config, config.model.path, config.model.path, judges=judges)
        watchdog = Watchdog([*generators, *judges], config.watchdog, say, say)
        groups = asyncio.run(watchdog.guard(_sample_and_judge(config, generators, judges, prompts, say)))
    scores = [verifier.scores(groups, config) for verifier in verifiers]
    threshold = threshold_of(groups, config, request.threshold)
    solutions, candidates = judged(groups, scores, config, threshold)
    results, gap = report(candidates), None
    table = render(results, [f"{path}, {request.rank}" for path in request.verifiers])
    if request.composed:
        answers = zip(prompts, candidates, strict=True)
        gap = composition.measure({prompt.id: each.correct or () for prompt, each in answers})
        table = composition.render(gap)
    print(shown(table, WHOLE, lines=True))
    _write(results, gap, solutions, config, replace(request, threshold=threshold))
    return 0


async def _sample_and_judge(
    config: RunConfig,
    generators: Sequence[GeneratorPort],
    judges: Sequence[JudgePort],
    prompts: Sequence[Prompt],
    say: Callable[[str], None],
) -> list[Group]:
    await judges[0].ready()
    return await judged_groups(config, judges, await sample(generators, prompts, say), say)


def for_sampling(config: RunConfig) -> RunConfig:
    """Return `config` for sampling: one judge, and an engine without a second model."""
    plugin = plugin_of(config)
    if not plugin.check_model(config):
        raise UsageError(f"model.path is {config.model.path}, which a run makes first; name a model with --model DIR")
    learner = config.learner.model_copy(update={"loss": PairLossConfig()})
    model = config.model.model_copy(update={"reference": None})
    judging = config.judging.model_copy(update={"count": 1})
    return plugin.resolve(config.model_copy(update={"learner": learner, "model": model, "judging": judging}))


def checked_prompts(
    config: RunConfig, tokenizer: Any, wanted: int | None, say: Callable[[str], None], *, meet: bool = True
) -> list[Prompt]:
    """Return the prompts to answer, once model, tokenizer, prompts and, if `meet`, judges are found to go together.

    `wanted` as in `prompts_of`. Raises UsageError if they do not.
    """
    source = PromptSource(config.prompts, tokenizer)
    notes = [*check_model(config, plugin_of(config)), *check_tokenizer(config, tokenizer)]
    notes += check_prompts(config, source)
    if meet:
        notes += meet_judges(config, source, tokenizer, elsewhere=address_to_join(config.cluster) is not None)
    for note in dict.fromkeys(notes):
        say(note)
    return prompts_of(config, source, wanted)


def prompts_of(config: RunConfig, source: PromptSource, wanted: int | None) -> list[Prompt]:
    """Return `wanted` of the prompts that evaluations draw from; None: as many as the configuration says.

    Raises UsageError if there are fewer, or none are wanted.
    """
    size = source.evaluation_size
    if wanted is not None and wanted > size:
        raise UsageError(f"--prompts {wanted} exceeds the {many(size, 'prompt')} of {source.evaluated}; lower it")
    count = min(config.evaluation.prompts, size) if wanted is None else wanted
    if count < 1:
        raise UsageError("0 prompts requested; set --prompts or evaluation.prompts to 1 or more")
    return source.evaluation_prompts(count)


# ---------------------------------------------------------------- selecting


def judged(
    groups: Sequence[Group],
    scores: Sequence[Sequence[tuple[float, ...]]],
    config: RunConfig,
    threshold: float | None,
) -> tuple[list[Solution], list[Candidates]]:
    """Convert judged groups to solutions for files and candidates for the report; `scores` has one list a verifier."""
    answer_of = _final_answers(config)
    solutions: list[Solution] = []
    candidates: list[Candidates] = []
    for number, group in enumerate(groups):
        values = effective_scores(group, config.judging.missing_eos_score)
        correct = None if threshold is None else tuple(value >= threshold for value in values)
        own = tuple(each[number] for each in scores)
        answers = None if answer_of is None else tuple(answer_of(each.text) for each in group.completions)
        prompt = group.lease.prompt
        candidates.append(Candidates(correct, answers, own, values, tuple(prompt.token_ids)))
        given = prompt.metadata.get("messages", prompt.text)
        for index, each in enumerate(group.completions):
            right = None if correct is None else correct[index]
            judgement = (right, values[index], each.finished, tuple(score[index] for score in own))
            solutions.append(Solution(prompt.id, given, each.text, *judgement))
    return solutions, candidates


def threshold_of(groups: Sequence[Group], config: RunConfig, asked: float | None) -> float | None:
    """Return the lowest score of a correct answer: `asked`, or 1 if the judge says right or wrong; else None."""
    if asked is not None or isinstance(config.judging.judge, VerifierJudgeConfig):
        return 1.0 if asked is None else asked
    given = (score for group in groups if group.judgement is not None for score in group.judgement.scores)
    return 1.0 if all(score in (0.0, 1.0) for score in given) else None


def _final_answers(config: RunConfig) -> Any:
    """Return a function from a text to its final answer; None if the judge extracts none."""
    if not isinstance(config.judging.judge, VerifierJudgeConfig):
        return None
    from actors.judges.answers.exact import normalise, number
    from actors.judges.answers.verifier import VerifierJudge

    judge = VerifierJudge(config.judging.judge)

    def answer(text: str) -> Any:
        found = judge.final_answer(text)
        plain = "" if found is None else normalise(found)
        value = number(plain)
        return (plain or None) if value is None else value

    return answer


def _write(
    results: Report, gap: composition.Gap | None, solutions: Sequence[Solution], config: RunConfig, request: Request
) -> None:
    if request.solutions is not None:
        write_jsonl(request.solutions, [asdict(solution) for solution in solutions])
    if request.pairs is not None:
        rows = pairs_of(solutions, request.max_pairs, config.seed)
        write_jsonl(request.pairs, rows)
        print(shown(f"{many(len(rows), 'pair')} in {request.pairs}"))
    if request.output is not None:
        asked = {"model": config.model.path, "verifiers": request.verifiers, "rank": request.rank}
        found = asdict(results) | ({} if gap is None else {"composition": asdict(gap)})
        write_jsonl(request.output, [asked | {"threshold": request.threshold} | found])
