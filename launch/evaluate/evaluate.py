"""`offbeat evaluate`: sample a model's answers to prompts, judge them, and measure a selection among them.

Samples with the run's own engines and asks the run's own judge, both as Ray actors; a verifier then scores in this
process. User errors are checked before an actor starts.
"""

import asyncio
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.text import Text

from actors.data.prompts import PromptSource
from actors.data.text import load_tokenizer
from actors.errors import RunError, UsageError
from actors.foreign.text import WHOLE, shown
from actors.hub import resolve
from actors.judges.config import VerifierJudgeConfig
from actors.records import Failure, Group, Lease, Prompt, flatten
from actors.replay_buffer.pairing import effective_scores
from launch.cluster import wiring
from launch.cluster.placement import address_to_join
from launch.cluster.watchdog import Watchdog
from launch.evaluate import composition
from launch.evaluate.best_of import Candidates, Report, render, report
from launch.evaluate.solutions import Solution, pairs_of, write_jsonl
from launch.run.plugins import plugin_of
from launch.run.preflight import check_model, check_prompts, check_tokenizer, meet_judges
from launch.run.protocols import GeneratorDeadError, GeneratorPort, GeneratorUnavailableError, JudgePort
from launch.settings.run import RunConfig
from learner.backend import manifest
from learner.backend.models import DPO_FILE
from learner.losses.config import PairLossConfig

COLLECT_SECONDS = 2.0
Rank = Literal["likelihood", "reward"]


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
    """Whether to measure composition; `prompts` then counts pairs."""


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
    console = Console(stderr=True, highlight=False)
    verifiers = [find_verifier(path, request.rank) for path in request.verifiers]
    tokenizer = load_tokenizer(config.model.tokenizer or str(resolve(config.model.path)), chats=config.model)
    source = PromptSource(config.prompts, tokenizer)
    notes = [*check_model(config, plugin_of(config)), *check_tokenizer(config, tokenizer)]
    elsewhere = address_to_join(config.cluster) is not None
    notes += [*check_prompts(config, source), *meet_judges(config, source, tokenizer, elsewhere=elsewhere)]
    for note in notes:
        console.print(Text(shown(f"offbeat: {note}")), soft_wrap=True)
    prompts = prompts_of(config, source, request.prompts)
    different = len({prompt.token_ids for prompt in prompts})
    if different < len(prompts) and not request.composed:
        repeated = f"{different} different prompts among {len(prompts)}: repeats are no further draws for the intervals"
        console.print(f"offbeat: {repeated}", soft_wrap=True)
    count = config.sampling.completions_per_prompt
    console.print(f"offbeat: sampling {count} answers to each of {len(prompts)} prompts", soft_wrap=True)
    with wiring.ray_session(config.cluster):
        wiring.check_sampling_resources(config)
        judges = wiring.start_judges(config, config.model.path)
        generators = wiring.start_generators(config, config.model.path, config.model.path, judges=judges)
        say = partial(console.print, markup=False, soft_wrap=True)
        watchdog = Watchdog([*generators, *judges], config.watchdog, say, say)
        groups = asyncio.run(watchdog.guard(_sample_and_judge(generators, judges[0], prompts)))
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


def for_sampling(config: RunConfig) -> RunConfig:
    """Return `config` for sampling: one judge, and an engine without a second model."""
    plugin = plugin_of(config)
    if not plugin.check_model(config):
        raise UsageError(f"model.path is {config.model.path}, which a run makes first; name a model with --model DIR")
    learner = config.learner.model_copy(update={"loss": PairLossConfig()})
    model = config.model.model_copy(update={"reference": None})
    judging = config.judging.model_copy(update={"count": 1})
    return plugin.resolve(config.model_copy(update={"learner": learner, "model": model, "judging": judging}))


def prompts_of(config: RunConfig, source: PromptSource, wanted: int | None) -> list[Prompt]:
    """Return `wanted` of the prompts that evaluations draw from; None: as many as the configuration says.

    Raises UsageError if there are fewer, or none are wanted.
    """
    size = source.evaluation_size
    if wanted is not None and wanted > size:
        raise UsageError(f"--prompts {wanted} exceeds the {size} prompts of {source.evaluated}; lower it")
    count = min(config.evaluation.prompts, size) if wanted is None else wanted
    if count < 1:
        raise UsageError("0 prompts requested; set --prompts or evaluation.prompts to 1 or more")
    return source.evaluation_prompts(count)


# ---------------------------------------------------------------- sampling


async def _sample_and_judge(
    generators: Sequence[GeneratorPort], judge: JudgePort, prompts: Sequence[Prompt]
) -> list[Group]:
    await judge.ready()
    groups = await sample(generators, prompts)
    return require_judged(await judge.judge(groups))


def require_judged(answers: Sequence[Group | Failure]) -> list[Group]:
    """Return judged groups. Raises RunError if one could not be judged."""
    failed = [answer.reason for answer in answers if isinstance(answer, Failure)]
    if failed:
        raise RunError(f"{len(failed)} of {len(answers)} prompts could not be judged; the first: {failed[0]}")
    return [answer for answer in answers if isinstance(answer, Group)]


async def sample(generators: Sequence[GeneratorPort], prompts: Sequence[Prompt]) -> list[Group]:
    """Sample one group for each prompt from the starting weights, with the prompts dealt out to the generators.

    Returns groups in the order of `prompts`. A restarted generator gets its open prompts again. Raises RunError if a
    generator dies for good or a prompt cannot be answered.
    """
    leases = [Lease(index, 0, prompt, 0, math.inf, draw="policy") for index, prompt in enumerate(prompts)]
    shares = [leases[number :: len(generators)] for number in range(len(generators))]
    served = await asyncio.gather(*[_serve(port, share) for port, share in zip(generators, shares, strict=True)])
    groups = {group.lease.index: group for part in served for group in part}
    return [groups[index] for index in range(len(prompts))]


async def _serve(port: GeneratorPort, leases: Sequence[Lease]) -> list[Group]:
    waiting = {lease.index: lease for lease in leases}
    groups: list[Group] = []
    while waiting:
        try:
            await port.ready()
            await port.submit(list(waiting.values()))
            while waiting:
                for item in await port.collect(COLLECT_SECONDS):
                    index = item.lease_index if isinstance(item, Failure) else item.lease.index
                    lease = waiting.pop(index, None)  # None: answered before and after a broken connection
                    if isinstance(item, Group) and lease is not None:
                        groups.append(item)
                    elif isinstance(item, Failure) and lease is not None:
                        raise RunError(f"prompt '{lease.prompt.id}' could not be generated: {item.reason}")
        except GeneratorUnavailableError:
            continue  # Ray restarts it, at most generators.max_restarts times
        except GeneratorDeadError as error:
            raise RunError(f"{error}; see its log, then run again") from error
    return groups


# ---------------------------------------------------------------- selecting


@dataclass(frozen=True, slots=True)
class Verifier:
    """A model that scores answers: by log-likelihood or, with `reference`, by implicit reward."""

    directory: Path
    reference: Path | None = None
    beta: float = 1.0

    def scores(self, groups: Sequence[Group], config: RunConfig) -> list[tuple[float, ...]]:
        """Score every completion: log V(y|x) (nats; Hosseini et al. 2024, section 3.1), or with a reference
        beta (log V(y|x) - log mu(y|x)) (Rafailov et al. 2023, eq. 5). Raises UsageError as `PerplexityModel` does."""
        values = _sequence_logprobs(self.directory, groups, config)
        if self.reference is not None:
            ours, theirs = values, _sequence_logprobs(self.reference, groups, config)
            values = [self.beta * (mine - other) for mine, other in zip(ours, theirs, strict=True)]
        rest = iter(values)
        return [tuple(next(rest) for _ in group.completions) for group in groups]


def find_verifier(path: str, rank: Rank) -> Verifier:
    """Return the verifier at a directory or hub name.

    Raises UsageError if it, or its reference, is not found or not as it was written.
    """
    directory = resolve(path)
    manifest.check(directory)
    if rank == "likelihood":
        return Verifier(directory)
    record = directory / DPO_FILE
    try:
        recorded: dict[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        reference, beta = resolve(recorded["reference"]), float(recorded["beta"])
    except (OSError, ValueError, KeyError) as error:
        raise UsageError(
            f"--rank reward needs the verifier's reference and beta, and {record} does not hold them ({error!r}); "
            "give the final/ directory of `offbeat dpo`, or --rank likelihood"
        ) from error
    manifest.check(reference)
    return Verifier(directory, reference, beta)


def _sequence_logprobs(directory: Path, groups: Sequence[Group], config: RunConfig) -> list[float]:
    """Compute the log-prob (nats, temperature 1) of each completion, summed over its tokens."""
    import torch

    from learner.stages.perplexity import PerplexityModel
    from learner.tensors.batching import rollout

    model = PerplexityModel(
        directory,
        dtype=config.generators.dtype,
        device="cuda" if torch.cuda.is_available() else "cpu",
        micro_batch_tokens=config.learner.micro_batch_tokens,
    )
    completions = flatten(groups)
    prompts = [group.lease.prompt.token_ids for group in groups for _ in group.completions]
    means = model.log_perplexities([rollout(prompt, each) for prompt, each in zip(prompts, completions, strict=True)])
    return [-float(mean) * each.sampled_tokens for mean, each in zip(means, completions, strict=True)]


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
        print(shown(f"{len(rows)} pairs in {request.pairs}"))
    if request.output is not None:
        asked = {"model": config.model.path, "verifiers": request.verifiers, "rank": request.rank}
        found = asdict(results) | ({} if gap is None else {"composition": asdict(gap)})
        write_jsonl(request.output, [asked | {"threshold": request.threshold} | found])
